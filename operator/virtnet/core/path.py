"""The whole path of one guest NIC as hops with their switches, and the first hop that breaks what is wanted of it.

    guest NIC ↔ QEMU ↔ vhost ↔ tap ↔ bridge ↔ uplink

It reads a look and the rows of a plan and says what they mean for this NIC; it plans and changes nothing. A hop breaks
the wish when a row of the plan says so, when nothing can pass it, or when it takes away an offload that a policy asks
for somewhere on the path. An offload that is lost and that nobody asked for is a remark.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field, replace

from virtnet.core import features as feature_names
from virtnet.core import guests, modules, nics, running, select
from virtnet.core.model import (
    DONE,
    Features,
    HostState,
    Link,
    Policy,
    Reason,
    Row,
    Unreadable,
    Value,
)
from virtnet.core.nics import NIC, Wanted
from virtnet.core.resolve import Desired
from virtnet.core.running import Proof, RunningNic
from virtnet.errors import UsageError
from virtnet.values import frozen

GUEST, QEMU, VHOST, TAP, BRIDGE, UPLINK = "guest", "qemu", "vhost", "tap", "bridge", "uplink"
KINDS = (GUEST, QEMU, VHOST, TAP, BRIDGE, UPLINK)

SHOWN: Mapping[str, tuple[str, ...]] = {
    TAP: ("tx", "tso", "gso", "gro"),
    BRIDGE: ("tx", "tso", "gso", "gro"),
    UPLINK: ("rx", "tx", "sg", "tso", "gso", "gro", "lro"),
}
"""The offloads that are switches of a hop."""

_SETTLED_ELSEWHERE = frozenset({*DONE, Reason.OVERRIDDEN_BY, Reason.AUDIT_ONLY})
"""Rows of wishes that are fulfilled, or that are not in force."""

_NEEDED: Mapping[str, tuple[str, ...]] = {
    "tx": ("tx-checksum-ip-generic", "tx-checksum-ipv4", "tx-checksum-ipv6"),
    "sg": ("tx-scatter-gather",),
    "tso": ("tx-tcp-segmentation", "tx-tcp6-segmentation"),
}
"""What an uplink needs for a guest's large packets; the other members of these names are for other traffic."""

_CHECKSUM = "checksum offload"
_TSO = "TSO"


@frozen
class Switch:
    """One switch of a hop: what the policies want (None: nobody asks), what QEMU's arguments say (None: nothing), and
    the actual value as far as there is evidence (None: there is none)."""

    name: str
    actual: Value | None
    wanted: Value | None = None
    configured: Value | None = None

    @property
    def wrong(self) -> bool:
        seen = self.configured if self.actual is None else self.actual
        return self.wanted is not None and seen is not None and seen != self.wanted


@frozen
class Hop:
    """One place on the path. `facts` are short words about it, `breaks` the sentences that say what is lost here."""

    kind: str
    name: str
    facts: tuple[str, ...] = ()
    switches: tuple[Switch, ...] = ()
    breaks: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@frozen
class Path:
    """The hops of one NIC, the guest first. `first` is the place of the first hop that breaks the wish, None: none."""

    guest: str
    mac: str
    tap: str
    hops: tuple[Hop, ...]

    @property
    def first(self) -> int | None:
        return next((place for place, hop in enumerate(self.hops) if hop.breaks), None)

    @property
    def sentence(self) -> str:
        """What the first breaking hop does, "" when the path is as wanted."""
        return "" if self.first is None else self.hops[self.first].breaks[0]


@frozen
class Plans:
    """What is wanted: the policies in force, what they come to on this host, and the rows of the plan."""

    policies: tuple[Policy, ...] = ()
    desired: Desired = field(default_factory=lambda: Desired({}, {}))
    rows: tuple[Row, ...] = ()


NO_PLANS = Plans()


# --- which paths -------------------------------------------------------------------------------------------


def trace(state: HostState, plans: Plans = NO_PLANS, target: str | None = None) -> tuple[Path, ...]:
    """The paths through all taps of this namespace, or those of one guest, tap or MAC address.

    Raises `UsageError` with what there is when nothing is called `target`.
    """
    nics_of = {nic.tap.ifindex: nic for nic in running.find(state)}
    taps = sorted((link for link in state.links.values() if link.is_tap), key=lambda link: link.name)
    found = [_path(state, plans, tap, nics_of.get(tap.ifindex)) for tap in taps]
    if target is None:
        return tuple(found)
    chosen = tuple(path for path in found if _is_called(target, path.guest, path.tap, path.mac))
    if not chosen:
        known = [name for path in found for name in dict.fromkeys((path.guest, path.tap)) if name]
        there = f"there are {', '.join(dict.fromkeys(known))}" if known else "there is no tap here"
        raise UsageError(f"no running guest, tap or MAC address is called {target}; {there}")
    return chosen


def processes(state: HostState, target: str | None = None) -> frozenset[int]:
    """The ids of the processes behind the paths that `trace` shows, as far as they can be told before QMP is asked."""
    return frozenset(
        nic.running.process.pid
        for nic in running.find(state)
        if target is None or _is_called(target, nic.identity.guest, nic.tap.name, nic.identity.mac)
    )


def _is_called(target: str, guest: str, tap: str, mac: str) -> bool:
    return target in {guest, tap} or target.lower() == mac


def _path(state: HostState, plans: Plans, tap: Link, nic: RunningNic | None) -> Path:
    wanted = running.wanted(plans.policies, nic) if nic else Wanted({})
    bridge = state.links.get(tap.master)
    uplinks = _uplinks(state, plans.desired, bridge) if bridge else ()
    hops = [
        *((_guest(state, nic, wanted), _qemu(nic), _vhost(state, nic, wanted)) if nic else ()),
        _link_hop(TAP, tap, state, plans.desired, _tap_facts(tap, nic, state.drops.get(tap.ifindex, 0))),
        *((_link_hop(BRIDGE, bridge, state, plans.desired),) if bridge else ()),
        *(_link_hop(UPLINK, link, state, plans.desired, _uplink_facts(link, state)) for link in uplinks),
    ]
    hops = [_with_rows(hop, plans.rows, nic) for hop in hops]
    hops = _with_losses(hops, list(_losses(state, nic, tap, bridge, uplinks)), _asked(wanted, plans, uplinks))
    identity = nic.identity if nic else nics.Nic("")
    return Path(identity.guest, identity.mac, tap.name, tuple(hops))


def _uplinks(state: HostState, desired: Desired, bridge: Link) -> tuple[Link, ...]:
    """The bridge's uplinks, those that a policy takes for such, and where there is none its only other port."""
    topology = select.Topology.of(state.links, state.drivers)
    ports = [port for port in topology.ports.get(bridge.ifindex, ()) if not select.never_uplink(port)]
    chosen = [port for port in ports if (want := desired.links.get(port.ifindex)) and "uplink" in want.roles]
    found = dict.fromkeys((*select.uplinks_of_bridge(bridge.name, topology), *chosen))
    return tuple(found) or tuple(ports[:1] if len(ports) == 1 else ())


# --- the hops ----------------------------------------------------------------------------------------------


def _guest(state: HostState, nic: RunningNic, wanted: Wanted) -> Hop:
    """The guest's NIC: what is wanted, what QEMU was told and what the guest took."""
    told, effective = running.configured(nic, wanted.wishes), running.effective(nic, state)
    paths = dict.fromkeys((*told, *effective, *wanted.wishes))
    switches = tuple(
        Switch(path.removeprefix(NIC), effective.get(path), _wish(wanted, path), told.get(path))
        for path in paths
        if path.startswith(NIC)
    )
    facts = (nic.identity.mac, "" if nic.configured else "plugged in later: not on the command line", _msix(nic))
    return Hop(GUEST, nic.identity.guest or "guest", tuple(filter(None, facts)), switches)


def _msix(nic: RunningNic) -> str:
    """Nothing where QEMU was not asked."""
    seen = nic.told.msix if nic.told else None
    if isinstance(seen, Unreadable):
        return f"MSI-X not known: {seen.reason}"
    return "" if seen is None else "MSI-X in use" if seen else "MSI-X not in use"


def _wish(wanted: Wanted, path: str) -> Value | None:
    return wanted.wishes[path].value if path in wanted.wishes else None


def _qemu(nic: RunningNic) -> Hop:
    configured = nic.configured
    facts = ("started by libvirt",) if not nic.raw else ()
    told = nic.running.told
    silent = (f"it could not be asked: {told.reason}",) if isinstance(told, Unreadable) else ()
    if configured is None:
        return Hop(QEMU, str(nic.running.process), facts, remarks=silent)
    switches = tuple(
        Switch(name, None, configured=configured.options[name])
        for name in ("vnet_hdr", "vhost", "vhostforce", "poll-us")
        if name in configured.options
    )
    backend = "hub 0" if configured.hub else f"-netdev {configured.backend or 'unknown'}"
    said = (*guests.explain(configured), *silent)
    return Hop(QEMU, str(nic.running.process), (*facts, backend), switches, remarks=said)


def _vhost(state: HostState, nic: RunningNic, wanted: Wanted) -> Hop:
    told = running.configured(nic, (nics.MODE,)).get(nics.MODE)
    switch = Switch("mode", running.effective(nic, state).get(nics.MODE), _wish(wanted, nics.MODE), told)
    name = "QEMU's own backend" if nic.evidence.proof is Proof.NONE else "vhost_net"
    return Hop(VHOST, name, (str(nic.evidence),), (switch,))


def _link_hop(kind: str, link: Link, state: HostState, desired: Desired, facts: Iterable[str] = ()) -> Hop:
    """A link with its offloads; one that is down, or without a carrier, lets nothing pass."""
    wishes = _wishes(link, desired)
    switches = [Switch("mtu", link.mtu, wishes.get("mtu"))]
    if kind == TAP and link.tun is not None:
        switches.append(Switch("vnetHdr", link.tun.vnet_hdr, wishes.get("vnetHdr")))
    seen = state.features.get(link.ifindex)
    remarks = (f"its offloads cannot be read: {seen.reason}",) if isinstance(seen, Unreadable) else ()
    if isinstance(seen, Features):
        switches += _offloads(kind, seen, state.feature_names, wishes)
    breaks = () if link.up else (f"{link.name} is down: nothing passes",)
    if link.up and not link.carrier and kind == UPLINK:
        breaks = (f"{link.name} has no carrier: nothing passes",)
    return Hop(kind, link.name, tuple(facts), tuple(switches), breaks, remarks)


def _offloads(kind: str, seen: Features, names: tuple[str, ...], wishes: Mapping[str, Value]) -> Iterator[Switch]:
    others = [name for name in wishes if name not in SHOWN[kind] and feature_names.members(name, False, names)]
    for name in (*SHOWN[kind], *others):
        mask = feature_names.members(name, wishes.get(name) is not False, names)
        if mask is not None:
            yield Switch(name, bool(seen.active & mask), wishes.get(name))


def _wishes(link: Link, desired: Desired) -> dict[str, Value]:
    """What the winners want of a link: features by their typed name, other settings by their key."""
    want = desired.links.get(link.ifindex)
    if want is None:
        return {}
    asked: dict[str, Value] = {attr.key.removeprefix("bridge."): attr.value for attr in want.attrs}
    return asked | {ask.name: ask.wanted for ask in (want.features.asks if want.features else ()) if ask.won}


def _tap_facts(tap: Link, nic: RunningNic | None, drops: int) -> Iterator[str]:
    if tap.tun and tap.tun.queues:
        yield f"{tap.tun.queues} queue{'s' if tap.tun.queues > 1 else ''} open"
    if drops:
        yield f"{drops} packets were dropped because the guest did not fetch them in time"
    if nic is None:
        yield "held by a process that cannot be seen from here" if tap.held else "nobody holds it"


def _uplink_facts(link: Link, state: HostState) -> Iterator[str]:
    driver = state.drivers.get(link.ifindex)
    yield driver.name if driver else link.kind or "hardware"


# --- what the plan says ------------------------------------------------------------------------------------


def _with_rows(hop: Hop, rows: Iterable[Row], nic: RunningNic | None) -> Hop:
    """The hop with a sentence for each row of the plan that is about it. Files for the next boot break nothing now."""
    breaks, remarks = dict.fromkeys(hop.breaks), dict.fromkeys(hop.remarks)
    for row in rows:
        if row.reason not in _SETTLED_ELSEWHERE and _is_about(row, hop, nic):
            said = f"{row.setting} is {_shown(row.actual)}, not {_shown(row.wanted)}, at {hop.name}: {row.message}"
            (remarks if row.setting == modules.PERSIST_PATH else breaks)[said] = None
    return replace(hop, breaks=tuple(breaks), remarks=tuple(remarks))


def _is_about(row: Row, hop: Hop, nic: RunningNic | None) -> bool:
    if hop.kind in {TAP, BRIDGE, UPLINK}:
        return row.subject == f"link/{hop.name}"
    if hop.kind == VHOST and row.subject.startswith("module/"):
        return True
    mine = nic is not None and row.subject == nic.identity.subject
    return mine and hop.kind == (VHOST if row.setting.startswith("vhost.") else GUEST)


def _shown(value: Value | None) -> str:
    if value is None:
        return "unknown"
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


# --- what gets lost on the way -----------------------------------------------------------------------------


@frozen
class Loss:
    """An offload of what the guest sends that ends at a hop: `what` is lost at `name`, because of `why`."""

    what: str
    kind: str
    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.what} is lost at {self.name}: {self.why}"


def _losses(
    state: HostState, nic: RunningNic | None, tap: Link, bridge: Link | None, uplinks: Iterable[Link]
) -> Iterator[Loss]:
    """Where checksum offload and TSO of the guest's packets end on their way out, from the guest on."""
    configured = nic.configured if nic else None
    if nic and configured:
        for what, path in ((_CHECKSUM, f"{NIC}host.csum"), (_TSO, f"{NIC}host.tso4")):
            if configured.hub:
                yield Loss(what, QEMU, str(nic.running.process), "hub 0 has no virtio-net header")
            elif configured.virtio and guests.actual(configured, path) is False:
                yield Loss(what, GUEST, nic.identity.guest or "the guest", f"{path.removeprefix(NIC)} is off")
    if tap.held and tap.tun and not tap.tun.vnet_hdr:
        for what in (_CHECKSUM, _TSO):
            yield Loss(what, TAP, tap.name, "it carries no virtio-net header (vnetHdr is off)")
    for uplink in uplinks if bridge else ():
        seen = state.features.get(uplink.ifindex)
        if bridge and isinstance(seen, Features):
            yield from _lost_at_uplink(bridge, uplink, seen.active, state.feature_names)


def _lost_at_uplink(bridge: Link, uplink: Link, active: int, names: tuple[str, ...]) -> Iterator[Loss]:
    """Before a packet leaves the bridge by its uplink, the kernel does what the uplink cannot: it sums up and cuts."""
    has = {name: bool(active & feature_names.mask_of(members, names)) for name, members in _NEEDED.items()}
    if not has["tx"]:
        yield Loss(_CHECKSUM, BRIDGE, bridge.name, f"uplink {uplink.name} has tx-checksum off")
    if not has["tso"]:
        culprit = "tx-checksum" if not has["tx"] else "scatter-gather" if not has["sg"] else "tso"
        yield Loss(_TSO, BRIDGE, bridge.name, f"uplink {uplink.name} has {culprit} off")


def _asked(wanted: Wanted, plans: Plans, uplinks: Iterable[Link]) -> dict[str, bool]:
    """Which offloads a policy asks for (true) or does not want (false), at the guest's NIC or at an uplink."""
    asked: dict[str, bool] = {}
    for path, wish in wanted.wishes.items():
        if path in {f"{NIC}host.tso4", f"{NIC}host.tso6"}:
            asked[_TSO] = bool(wish.value) or asked.get(_TSO, False)
        if path == f"{NIC}host.csum":
            asked[_CHECKSUM] = bool(wish.value)
    for uplink in uplinks:
        wishes = _wishes(uplink, plans.desired)
        for what, name in ((_TSO, "tso"), (_CHECKSUM, "tx")):
            if name in wishes:
                asked[what] = bool(wishes[name]) or asked.get(what, False)
    if asked.get(_TSO):
        asked.setdefault(_CHECKSUM, True)
    return asked


def _with_losses(hops: list[Hop], losses: list[Loss], asked: Mapping[str, bool]) -> list[Hop]:
    """Losses that are asked for otherwise break the wish, those that are wanted are none, others are remarks."""
    for loss in losses:
        if asked.get(loss.what) is False:
            continue
        place = next((at for at, hop in enumerate(hops) if (hop.kind, hop.name) == (loss.kind, loss.name)), None)
        if place is None:
            continue
        hop, said = hops[place], str(loss)
        if asked.get(loss.what):
            first = (said, *hop.breaks) if loss.what == _TSO else (*hop.breaks, said)
            hops[place] = replace(hop, breaks=first)
        else:
            hops[place] = replace(hop, remarks=(*hop.remarks, said))
    return hops
