"""The NICs of running virtual machines: wanted, configured and effective, and what proves it; it never touches one.

Evidence of vhost, the strongest first (docs/path.md): QEMU's own word by QMP is the only proof. A descriptor of
/dev/vhost-net or a vhost thread says that vhost was set up and may be idle: VHOST_SET_OWNER makes the thread before the
guest's driver starts anything. A process without such a descriptor cannot use vhost at all.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from functools import lru_cache
from typing import Any

from virtnet.core import features, guests, nics, qemu_args
from virtnet.core.guests import Configured, Read
from virtnet.core.model import Features, HostState, Link, Mode, Policy, Reason, Row, Running, Told, Value, VhostMode
from virtnet.core.nics import NIC, Nic, Wanted
from virtnet.values import frozen

ON_THE_TAP: Mapping[str, str] = {
    f"{NIC}guest.csum": "tx-checksum-ip-generic",
    f"{NIC}guest.tso4": "tx-tcp-segmentation",
    f"{NIC}guest.tso6": "tx-tcp6-segmentation",
    f"{NIC}guest.ecn": "tx-tcp-ecn-segmentation",
}
"""What a guest's driver accepted on receive is what its tap may hand over: set_offload() in drivers/net/tun.c."""

NEGOTIATED: Mapping[str, str] = {
    f"{NIC}host.csum": "CSUM",
    f"{NIC}host.tso4": "HOST_TSO4",
    f"{NIC}host.tso6": "HOST_TSO6",
    f"{NIC}host.ecn": "HOST_ECN",
    f"{NIC}host.ufo": "HOST_UFO",
    f"{NIC}guest.csum": "GUEST_CSUM",
    f"{NIC}guest.tso4": "GUEST_TSO4",
    f"{NIC}guest.tso6": "GUEST_TSO6",
    f"{NIC}guest.ecn": "GUEST_ECN",
    f"{NIC}guest.ufo": "GUEST_UFO",
    f"{NIC}mergeableRxBuffers": "MRG_RXBUF",
    f"{NIC}packed": "RING_PACKED",
    f"{NIC}eventIdx": "EVENT_IDX",
    f"{NIC}iommu": "ACCESS_PLATFORM",
    f"{NIC}rss": "RSS",
    f"{NIC}rssHashReport": "HASH_REPORT",
}
"""The feature bits of virtio 1.2, 5.1.3 and 6, behind the settings, as `Told` names them.

Not host.gso: drivers of modern devices do not know its bit (VIRTIO_NET_F_GSO), whatever it is."""

OVERRUN = "; its tap drops what the guest does not fetch in time: see UdpHostToGuest in docs/profiles.md"
"""What is recommended, and never done."""

_ALWAYS_SHOWN = (nics.MODE, f"{NIC}model", f"{NIC}queues", f"{NIC}rxQueueSize")
_LIBVIRT = ("masterKey0", "charmonitor")


class Proof(StrEnum):
    """What is known of vhost for one NIC; the words of `vhostEvidence`."""

    STARTED = "Started"
    NOT_STARTED = "NotStarted"
    OPEN = "FdOpen"
    CONFIGURED = "Configured"
    NONE = "None"


@frozen
class Evidence:
    proof: Proof
    sentence: str

    def __str__(self) -> str:
        return f"{self.proof}: {self.sentence}"


@frozen
class RunningNic:
    """One NIC of a running guest. `configured` is None when its QEMU's arguments do not speak of it: it was plugged in
    later. `told` is what QMP said of it."""

    running: Running
    identity: Nic
    tap: Link
    configured: Configured | None
    evidence: Evidence
    told: Told | None = None

    @property
    def raw(self) -> bool:
        """Whether its QEMU was started without libvirt."""
        return not any(mark in argument for argument in self.running.argv for mark in _LIBVIRT)


def find(state: HostState) -> tuple[RunningNic, ...]:
    """The NICs of all running guests with a tap in this namespace, by guest and tap."""
    by_name = {link.name: link for link in state.links.values()} if state.running else {}
    found = [nic for running in state.running for nic in _of(running, state, by_name)]
    return tuple(sorted(found, key=lambda nic: (nic.identity.guest, nic.tap.name)))


def hubs(state: HostState) -> Iterator[str]:
    """A sentence for each NIC at a hub, with the fix: nobody wants one, whatever the policies ask."""
    for nic in find(state):
        if nic.configured is not None and nic.configured.hub:
            yield f"{nic.identity.guest or nic.running.process} on {nic.tap.name}: {guests.HUB}"


@lru_cache(maxsize=1024)
def _read(argv: tuple[str, ...], files: tuple[tuple[str, str], ...]) -> Read:
    """A running QEMU's arguments never change, and a pass looks at them several times."""
    return guests.read(argv, dict(files))


def _of(running: Running, state: HostState, by_name: Mapping[str, Link]) -> Iterator[RunningNic]:
    read = _read(running.argv, tuple(running.files.items()))
    if not (read.nics or running.process.guest or running.process.command.startswith("qemu")):
        return  # another user of taps: a VPN, dnsmasq's helper
    taps = {name: by_name[name] for name in running.taps.values() if name in by_name}
    pairs = _pair(read.nics, running, taps)
    for tap, configured in pairs:
        told = _told(running, tap, configured, alone=len(pairs) == 1)
        mac = configured.mac if configured and configured.mac else (told.mac if told else "")
        master = state.links.get(tap.master)
        nic = Nic(running.process.guest, mac, master.name if master else "", vcpus=read.vcpus)
        yield RunningNic(running, nic, tap, configured, _evidence(running, configured, told, read.nics), told)


def _pair(
    configured: Sequence[Configured], running: Running, taps: Mapping[str, Link]
) -> list[tuple[Link, Configured | None]]:
    """Each tap with its NIC: by name, by descriptor, by libvirt's choice of address, and the last two of a kind."""
    found: dict[str, Configured] = {}
    left = [nic for nic in configured if nic.backend in {"tap", "bridge", ""} or nic.hub]
    for nic in tuple(left):
        name = _tap_of(nic, running, taps)
        if name in taps and name not in found:
            found[name] = nic
            left.remove(nic)
    over = [name for name in taps if name not in found]
    if len(left) == len(over) == 1:
        found[over[0]] = left[0]
    return [(link, found.get(name)) for name, link in taps.items()]


def _tap_of(nic: Configured, running: Running, taps: Mapping[str, Link]) -> str:
    numbers = (int(number) for number in nic.fds if number.isascii() and number.isdigit())
    by_descriptor = next((running.taps[number] for number in numbers if number in running.taps), "")
    # libvirt gives a tap its NIC's address with another first byte (virNetDevTapCreateInBridgePort).
    by_address = (name for name, link in taps.items() if nic.mac and link.mac[2:].lower() == nic.mac[2:])
    return nic.tap or by_descriptor or next(by_address, "")


def _told(running: Running, tap: Link, configured: Configured | None, *, alone: bool) -> Told | None:
    told = running.told if isinstance(running.told, tuple) else ()
    if configured is not None:
        peer, mac = configured.options.get("id", ""), configured.mac
        same = [one for one in told if (peer and one.peer == peer) or (mac and one.mac == mac)]
    else:
        same = [one for one in told if one.mac and one.mac[2:] == tap.mac[2:].lower()]
    if not same and alone and len(told) == 1:
        same = [told[0]]
    return same[0] if same else None


# --- vhost -------------------------------------------------------------------------------------------------


def _evidence(
    running: Running, configured: Configured | None, told: Told | None, all_nics: Sequence[Configured]
) -> Evidence:
    if told is not None:
        return _by_qmp(told)
    asked = configured is None or guests.asks_vhost(configured)
    if not running.vhost:
        why = "; it was asked for: was /dev/vhost-net missing at the start?" if configured and asked else ""
        return Evidence(Proof.NONE, f"its process has no descriptor of /dev/vhost-net: no vhost{why}")
    if not asked:
        return Evidence(Proof.NONE, "its arguments ask for no vhost; what the process has open is for other NICs")
    needed = sum(_queues(nic) for nic in all_nics if guests.asks_vhost(nic))
    held = f"{running.vhost} of {needed}" if needed > running.vhost else str(running.vhost)
    noun = "descriptor" if held == "1" else "descriptors"
    threads = f" and {len(running.workers)} vhost thread{'s' * (len(running.workers) > 1)}" if running.workers else ""
    text = f"{held} {noun} of /dev/vhost-net{threads}: set up, and perhaps idle; only QMP proves that it works"
    return Evidence(Proof.OPEN if needed <= running.vhost else Proof.CONFIGURED, text)


def _by_qmp(told: Told) -> Evidence:
    if told.started:
        return Evidence(Proof.STARTED, "QEMU says vhost-started")
    ready = "" if told.driver_ok else ": the guest's driver is not ready, and vhost starts with it"
    return Evidence(Proof.NOT_STARTED, f"QEMU says that vhost is not started{ready}")


def _queues(nic: Configured) -> int:
    found = guests.actual(nic, f"{NIC}queues")
    return found if isinstance(found, int) else 1


# --- wanted, configured, effective -------------------------------------------------------------------------


def configured(nic: RunningNic, also: Iterable[str] = ()) -> dict[str, Value]:
    """What QEMU was told, by path: the main settings, all that were written, and those in `also`."""
    if nic.configured is None:
        return {}
    written = (path for path, about in qemu_args.PROPERTIES.items() if about.name in nic.configured.properties)
    paths = dict.fromkeys((*_ALWAYS_SHOWN, *written, *also))
    return _known({path: guests.actual(nic.configured, path) for path in paths})


def effective(nic: RunningNic, state: HostState) -> dict[str, Value]:
    """What is in effect as far as there is evidence: QMP where it was asked, the tap, the open descriptors."""
    values: dict[str, Value | None] = {nics.MODE: _mode(nic.evidence)}
    values[f"{NIC}queues"] = nic.tap.tun.queues if nic.tap.tun else None
    seen = state.features.get(nic.tap.ifindex)
    if isinstance(seen, Features):
        for path, name in ON_THE_TAP.items():
            values[path] = bool(seen.active & features.mask_of((name,), state.feature_names))
    if nic.told is not None and nic.told.driver_ok:
        values |= {path: name in nic.told.accepted for path, name in NEGOTIATED.items()}
        values[f"{NIC}rxQueueSize"] = nic.told.rings[0] if nic.told.rings else None
    return _known(values)


def _mode(evidence: Evidence) -> Value | None:
    """What vhost is only where that is certain."""
    if evidence.proof is Proof.STARTED:
        return str(VhostMode.REQUIRED)
    return str(VhostMode.DISABLED) if evidence.proof in {Proof.NONE, Proof.NOT_STARTED} else None


def _known(values: Mapping[str, Value | None]) -> dict[str, Value]:
    return {path: value for path, value in values.items() if value is not None}


def asks(policy: Policy) -> bool:
    """Whether a policy makes it worth looking at running guests: also one that leaves vhost to them."""
    return nics.asks(policy) or (policy.vhost is not None and policy.vhost.mode is VhostMode.AUTO)


# --- what is said ------------------------------------------------------------------------------------------


def wanted(policies: Iterable[Policy], nic: RunningNic) -> Wanted:
    """What the policies in force want of a NIC."""
    return nics.wanted(policies, nic.identity)


def rows(policies: Iterable[Policy], state: HostState) -> Iterator[Row]:
    """A row for each wish that a QEMU without libvirt was not started with: reported, never touched."""
    policies = tuple(policies)
    for nic in find(state):
        if nic.raw and nic.configured is not None:
            found = wanted(policies, nic)
            yield from found.rows
            yield from guests.compare(nic.configured, nic.identity, found)
            for policy in policies:
                if policy.mode is Mode.AUDIT:
                    yield from _audit(policy, nic, nic.configured)


def _audit(policy: Policy, nic: RunningNic, configured: Configured) -> Iterator[Row]:
    found = nics.wanted((policy,), nic.identity, mode=Mode.AUDIT)
    for row in (*found.rows, *guests.compare(configured, nic.identity, found)):
        yield replace(row, reason=Reason.AUDIT_ONLY)


def overrun(policies: Iterable[Policy], state: HostState, dropping: Collection[int]) -> tuple[RunningNic, ...]:
    """The NICs that show the old trouble of UDP from a host to a slower guest: their taps (ifindexes) drop packets, a
    policy leaves vhost to the guest (`Auto`) and vhost is set up."""
    if not dropping:
        return ()
    policies = tuple(policies)
    return tuple(
        nic
        for nic in find(state)
        if nic.tap.ifindex in dropping
        and nic.evidence.proof in {Proof.OPEN, Proof.STARTED}
        and _leaves_vhost(policies, nic)
    )


def _leaves_vhost(policies: Iterable[Policy], nic: RunningNic) -> bool:
    modes = {policy.vhost.mode for policy in policies if policy.vhost and nics.selects(policy, nic.identity)}
    return VhostMode.AUTO in modes and not modes & {VhostMode.REQUIRED, VhostMode.DISABLED}


def entries(
    policies: Iterable[Policy], state: HostState, waiting: Container[str], dropping: Collection[int] = ()
) -> list[dict[str, Any]]:
    """The NICs of which something is wanted, as the node state shows them; those that wait for a restart first.

    `waiting` are the subjects of rows that say `RestartRequired`, `dropping` is as in `overrun`.
    """
    policies = tuple(policies)
    advised = {nic.tap.ifindex for nic in overrun(policies, state, dropping)}
    found = [
        _entry(nic, wishes, state, waiting, OVERRUN if nic.tap.ifindex in advised else "")
        for nic in find(state)
        if (wishes := wanted(policies, nic)).wishes or nic.tap.ifindex in advised
    ]
    return sorted(found, key=lambda entry: not entry["restartRequired"])


def _entry(nic: RunningNic, found: Wanted, state: HostState, waiting: Container[str], advice: str) -> dict[str, Any]:
    wishes = {path: wish.value for path, wish in found.wishes.items()}
    return {
        "name": nic.identity.guest or str(nic.running.process),
        "mac": nic.identity.mac,
        "tap": nic.tap.name,
        "wanted": wishes,
        "configured": configured(nic, wishes),
        "effective": effective(nic, state),
        "vhostEvidence": f"{nic.evidence}{advice}"[:253],
        "restartRequired": nic.identity.subject in waiting,
    }
