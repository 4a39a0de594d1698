"""Policies × node → what is desired of this host, setting by setting, with its owner, and who lost to whom.

    higher priority wins, then the older policy, then the name
    same value                    no conflict: the first owns it, the other is as asked
    other value                   the loser is told who won (OverriddenBy)
    one policy's feature needs    the lower one yields, as if it had asked for the same setting
    what another turns off
    Audit                         never owns; resolved apart, as if it had won

Links that are wanted alike share one `LinkWant`, so a thousand taps cost one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from virtnet.core import features as feature_names
from virtnet.core import modules, select
from virtnet.core.model import (
    EMPTY,
    Driver,
    HostState,
    Interest,
    Link,
    Mode,
    ModuleWish,
    Node,
    Policy,
    Reason,
    Row,
    TapToCreate,
    Value,
    VhostMode,
)
from virtnet.values import frozen


@frozen
class Want:
    """One value of one link attribute; `key` as in `Setting.key`, `path` as the user typed it."""

    key: str
    value: Value
    policy: str
    path: str


@frozen
class Overridden:
    """A want that lost: `winner` owns the setting and wants `winning` there."""

    want: Want
    winner: str
    winning: Value


@frozen
class FeatureAsk:
    """One typed feature name of one policy: the kernel features it means (`mask`) and those it owns (`won`).

    `lost` are those that `winner` keeps otherwise; `because` says why where the two did not name the same feature.
    """

    policy: str
    path: str
    wanted: bool
    mask: int
    won: int
    lost: int = 0
    winner: str = ""
    because: str = ""

    @property
    def name(self) -> str:
        return self.path.rsplit(".", 1)[-1]


@frozen
class FeatureTable:
    """All asked features of a kind of link. `care` and `value` are masks over `names`."""

    names: tuple[str, ...]
    care: int
    value: int
    asks: tuple[FeatureAsk, ...]
    unknown: tuple[Want, ...] = ()
    compiled: dict[tuple[int, int], object] = field(default_factory=dict, compare=False, repr=False)
    """A memo for `core.offloads`: what the table means for one set of changeable features."""


@dataclass(frozen=True, slots=True, eq=False)
class LinkWant:
    """What is wanted of a link; shared by all links that are wanted alike, compared by identity."""

    roles: tuple[str, ...]
    policies: tuple[str, ...]
    attrs: tuple[Want, ...] = ()
    features: FeatureTable | None = None
    overridden: tuple[Overridden, ...] = ()

    @property
    def role(self) -> str:
        return self.roles[0]

    def attr(self, key: str) -> Want | None:
        return next((want for want in self.attrs if want.key == key), None)


@frozen
class Creation:
    """A bridge or tap that has to be there. `tap` is None for a bridge."""

    name: str
    kind: str
    policy: str
    path: str
    tap: TapToCreate | None = None
    vnet_hdr: bool = True


@frozen
class Desired:
    """What the policies ask of this node. `audits` are the Audit policies, each resolved as if it had won.

    `policies` are those that select this node, winners first. `rows` are known without comparing any value.
    """

    policies: Mapping[str, Policy]
    links: Mapping[int, LinkWant]
    creations: tuple[Creation, ...] = ()
    module: modules.ModuleWant | None = None
    rows: tuple[Row, ...] = ()
    audits: tuple[Desired, ...] = ()


Section = tuple[int, str, str]
"""(position of the policy, section, detail): what one policy's section asks of a link it selects.

The detail is the name of a port or tap, or "stacked" for an uplink that is a bond, team or vlan.
"""


def precedence(policy: Policy) -> tuple[int, str, str]:
    """Sorts winners first. A policy without a creation time is as old as any other: the name decides."""
    return (-policy.priority, policy.created, policy.name)


def on_node(policies: Iterable[Policy], node: Node) -> tuple[Policy, ...]:
    """The policies that select this node, winners first."""
    chosen = [policy for policy in policies if select.selects_node(policy.node_selector, node.labels)]
    if not all(policy.created for policy in chosen):
        return tuple(sorted(chosen, key=lambda policy: (-policy.priority, policy.name)))
    return tuple(sorted(chosen, key=precedence))


def interest(policies: Iterable[Policy]) -> Interest:
    """What a look must read for these policies."""
    policies = tuple(policies)
    uplinks = [policy.uplink for policy in policies if policy.uplink]
    taps = [policy.tap for policy in policies if policy.tap]
    matches = [match for match in (*(u.match for u in uplinks), *(t.match for t in taps)) if match]
    return Interest(
        drivers=any(match.drivers for match in matches),
        untold_drivers=bool(uplinks),
        rings=any(uplink.rings_rx is not None or uplink.rings_tx is not None for uplink in uplinks),
        channels=any(
            count is not None
            for uplink in uplinks
            for count in (uplink.channels_combined, uplink.channels_rx, uplink.channels_tx)
        ),
        rx_frames=any(tap.rx_frames is not None for tap in taps),
        addresses=any(policy.bridge is not None and bool(policy.bridge.ports) for policy in policies),
        module=any(_asks_for_module(policy) for policy in policies),
    )


def _asks_for_module(policy: Policy) -> bool:
    vhost = policy.vhost
    if vhost is None:
        return False
    return vhost.state is not ModuleWish.UNMANAGED or bool(vhost.parameters) or vhost.mode is VhostMode.REQUIRED


@dataclass(slots=True)
class Memory:
    """What the resolution before found, for the same inputs; it may be thrown away at any time.

    `wants` are the shared `LinkWant` of each combination of sections: while the policies stay the same so do they.
    """

    asked: tuple[tuple[Policy, ...], tuple[str, ...]] = ((), ())
    wants: dict[tuple[str, tuple[Section, ...]], LinkWant] = field(default_factory=dict)
    links: Mapping[int, Link] | None = None
    drivers: Mapping[int, Driver] | None = None
    desired: Desired | None = None


def resolve(policies: Iterable[Policy], node: Node, observed: HostState, memory: Memory | None = None) -> Desired:
    """What the policies want of what was observed, all conflicts decided."""
    chosen = on_node(policies, node)
    memory = memory or Memory()
    asked = (chosen, observed.feature_names)
    if memory.asked != asked:
        memory.asked, memory.desired = asked, None
        memory.wants.clear()
    if memory.desired is not None and memory.links is observed.links and memory.drivers == observed.drivers:
        return memory.desired
    topology = select.Topology.of(observed.links, observed.drivers)
    enforced = [policy for policy in chosen if policy.mode is Mode.ENFORCE]
    desired = _Resolver(enforced, topology, observed.feature_names, memory, "").desired()
    audits = tuple(
        _Resolver([_first(policy), *enforced], topology, observed.feature_names, memory, policy.name)
        .desired()
        .only(policy.name)
        for policy in chosen
        if policy.mode is Mode.AUDIT
    )
    found = replace(desired.whole(), policies={policy.name: policy for policy in chosen}, audits=audits)
    memory.links, memory.drivers, memory.desired = observed.links, observed.drivers, found
    return found


def _first(policy: Policy) -> Policy:
    return replace(policy, mode=Mode.ENFORCE)


# --- one resolution ----------------------------------------------------------------------------------------


class _Resolver:
    """Resolves one list of policies, winners first, against one topology."""

    def __init__(
        self, policies: list[Policy], topology: select.Topology, names: tuple[str, ...], memory: Memory, audit: str
    ) -> None:
        self.policies, self.topology, self.names = policies, topology, names
        self.memory, self.audit = memory, audit
        self.sections: dict[int, list[Section]] = {}
        self.creations: dict[str, Creation] = {}
        self.rows: list[Row] = []

    def desired(self) -> _Resolved:
        for position, policy in enumerate(self.policies):
            self._collect(position, policy)
        shared = self.memory.wants
        links = {}
        for ifindex, sections in self.sections.items():
            key = (self.audit, tuple(sections))
            if key not in shared:
                shared[key] = self._link_want(key[1])
            links[ifindex] = shared[key]
        module, module_rows = module_want(self.policies)
        rows = (*self.rows, *module_rows)
        return _Resolved(tuple(self.policies), links, tuple(self.creations.values()), module, rows)

    def _collect(self, position: int, policy: Policy) -> None:
        bridge, uplinks, taps = (
            select.bridge(policy, self.topology),
            select.uplinks(policy, self.topology),
            select.taps(policy, self.topology),
        )
        self.rows += [*bridge.rows, *uplinks.rows, *taps.rows, *unenforced_rows(policy)]
        for section, chosen in (("bridge", bridge), ("uplink", uplinks), ("tap", taps)):
            for link in chosen.links:
                detail = "stacked" if section == "uplink" and link.kind in select.UPLINK_KINDS else ""
                self._add(link, (position, section, detail))
        usable = not bridge.rows
        self._collect_ports(position, policy, usable)
        self._collect_creations(policy, usable)

    def _add(self, link: Link, section: Section) -> None:
        self.sections.setdefault(link.ifindex, []).append(section)

    def _collect_ports(self, position: int, policy: Policy, usable: bool) -> None:
        """Links to enslave: the named ports, and the taps that the policy keeps in being."""
        if policy.bridge is None or not usable:
            return
        named = [(name, "bridge.ports") for name in policy.bridge.ports]
        named += [(tap.name, "tap.create") for tap in (policy.tap.create if policy.tap else ())]
        for name, path in named:
            link = self.topology.by_name.get(name)
            if link is not None and (link.is_tap or path == "bridge.ports"):
                self._add(link, (position, path, name))
            elif link is None and path == "bridge.ports":
                text = f"no link is named {name}"
                self.rows.append(Row(f"link/{name}", path, policy.bridge.name, None, Reason.MISSING, text, policy.name))

    def _collect_creations(self, policy: Policy, usable: bool) -> None:
        if not usable:
            return
        if policy.bridge is not None and policy.bridge.create:
            self._create(Creation(policy.bridge.name, "bridge", policy.name, "bridge.create"))
        tap = policy.tap
        for asked in tap.create if tap else ():
            vnet_hdr = tap is None or tap.vnet_hdr is not False
            self._create(Creation(asked.name, "tap", policy.name, "tap.create", asked, vnet_hdr))

    def _create(self, creation: Creation) -> None:
        winner = self.creations.setdefault(creation.name, creation)
        if winner.kind != creation.kind:
            text = f"policy {winner.policy} wants {creation.name} to be a {winner.kind}"
            self.rows.append(
                Row(
                    f"link/{creation.name}",
                    creation.path,
                    creation.kind,
                    winner.kind,
                    Reason.OVERRIDDEN_BY,
                    text,
                    creation.policy,
                )
            )

    def _link_want(self, sections: tuple[Section, ...]) -> LinkWant:
        asked = sorted(sections, key=lambda section: section[0])
        attrs, overridden = _merge(want for section in asked for want in self._attrs(section))
        return LinkWant(
            roles=tuple(dict.fromkeys(_role(section) for section in asked)),
            policies=tuple(dict.fromkeys(self.policies[section[0]].name for section in asked)),
            attrs=attrs,
            features=self._features(asked),
            overridden=overridden,
        )

    def _attrs(self, section: Section) -> Iterator[Want]:
        position, kind, detail = section
        policy = self.policies[position]
        for key, path, value in _section_attrs(policy, kind, detail):
            if value is not None:
                yield Want(key, value, policy.name, path)

    def _features(self, sections: list[Section]) -> FeatureTable | None:
        table = _TableBuilder(self.names)
        for position, kind, _ in sections:
            policy = self.policies[position]
            offloads = _offloads(policy, kind)
            if offloads:
                table.add(policy.name, kind, offloads)
        return table.build()


def _role(section: Section) -> str:
    return {"bridge.ports": "port", "tap.create": "tap"}.get(section[1], section[1])


def _offloads(policy: Policy, section: str) -> tuple[tuple[str, bool], ...]:
    spec = {"bridge": policy.bridge, "uplink": policy.uplink, "tap": policy.tap}.get(section)
    return spec.offloads if spec else ()


def _section_attrs(policy: Policy, section: str, detail: str) -> Iterator[tuple[str, str, Value | None]]:
    """(key, API path, value or None) of everything that a section can ask of a link besides features."""
    if section == "bridge" and policy.bridge:
        bridge = policy.bridge
        yield "bridge.stp", "bridge.stp", bridge.stp
        yield "bridge.forwardDelaySeconds", "bridge.forwardDelaySeconds", bridge.forward_delay_seconds
        yield "bridge.ageingTimeSeconds", "bridge.ageingTimeSeconds", bridge.ageing_time_seconds
        yield "bridge.multicastSnooping", "bridge.multicastSnooping", bridge.multicast_snooping
        yield "bridge.vlanFiltering", "bridge.vlanFiltering", bridge.vlan_filtering
        yield "bridge.groupForwardMask", "bridge.groupForwardMask", bridge.group_forward_mask
        yield "mtu", "bridge.mtu", bridge.mtu
    elif section == "uplink" and policy.uplink and detail != "stacked":
        # A bond, team or vlan has no queues of its own: those of the links below it are meant.
        uplink = policy.uplink
        yield "rings.rx", "uplink.rings.rx", uplink.rings_rx
        yield "rings.tx", "uplink.rings.tx", uplink.rings_tx
        yield "channels.combined", "uplink.channels.combined", uplink.channels_combined
        yield "channels.rx", "uplink.channels.rx", uplink.channels_rx
        yield "channels.tx", "uplink.channels.tx", uplink.channels_tx
    elif section == "tap" and policy.tap:
        tap = policy.tap
        yield "vnetHdr", "tap.vnetHdr", tap.vnet_hdr
        yield "rxFrames", "tap.rxFrames", tap.rx_frames
        yield "mtu", "tap.mtu", tap.mtu
        yield "txQueueLength", "tap.txQueueLength", tap.tx_queue_length
    elif section in ("bridge.ports", "tap.create") and policy.bridge:
        yield "master", section, policy.bridge.name
        if section == "tap.create" and policy.tap:
            asked = next(tap for tap in policy.tap.create if tap.name == detail)
            yield "owner", "tap.create", asked.owner
            yield "group", "tap.create", asked.group


def _merge(wants: Iterable[Want]) -> tuple[tuple[Want, ...], tuple[Overridden, ...]]:
    """The first want of each key wins; a later one with another value is overridden."""
    won: dict[str, Want] = {}
    lost = []
    for want in wants:
        winner = won.setdefault(want.key, want)
        if winner.value != want.value:
            lost.append(Overridden(want, winner.policy, winner.value))
    return tuple(won.values()), tuple(lost)


class _TableBuilder:
    """Merges the offloads of several policies, added winners first, into one table."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.asks: list[FeatureAsk] = []
        self.unknown: list[Want] = []
        self.care = self.value = 0

    def add(self, policy: str, section: str, offloads: Iterable[tuple[str, bool]]) -> None:
        """In one policy a kernel name beats a short name; between policies each kernel feature stands alone."""
        offloads = tuple(offloads)
        named = feature_names.mask_of((name for name, _ in offloads if name not in feature_names.SHORT), self.names)
        before_care, before_value = self.care, self.value
        earlier = tuple(self.asks)
        for name, wanted in offloads:
            path = f"{section}.offloads.{name}"
            mask = feature_names.members(name, wanted, self.names)
            if mask is None:
                self.unknown.append(Want(f"feature:{name}", wanted, policy, path))
                continue
            if name in feature_names.SHORT:
                mask &= ~named
            self._ask(FeatureAsk(policy, path, wanted, mask, mask), earlier, before_care, before_value)

    def _ask(self, ask: FeatureAsk, earlier: tuple[FeatureAsk, ...], care: int, value: int) -> None:
        same = ask.mask & care
        differs = same & (value ^ (-1 if ask.wanted else 0))
        blocked, winner, because = self._contradicts(ask, earlier, care, value)
        lost = differs | (blocked & ~care)
        if differs:
            winner, because = _owner(earlier, differs), ""
        won = ask.mask & ~care & ~lost
        self.asks.append(replace(ask, won=won, lost=lost, winner=winner if lost else "", because=because))
        self.care |= won
        self.value |= won if ask.wanted else 0

    def _contradicts(
        self, ask: FeatureAsk, earlier: tuple[FeatureAsk, ...], care: int, value: int
    ) -> tuple[int, str, str]:
        """What of `ask` cannot be together with what winners of other policies want: (mask, winner, sentence)."""
        others = [other for other in earlier if other.policy != ask.policy]
        if ask.wanted:
            return self._starved(ask.mask & ~care, others, care & ~value)
        return self._starving(ask.mask & ~care, others, care & value)

    def _starved(self, asked: int, others: list[FeatureAsk], off: int) -> tuple[int, str, str]:
        """What of `asked` cannot be on because winners want off what it needs, be it at second hand."""
        blocked = asked & feature_names.starved(off, self.names)
        guilty = [other for other in others if other.won & off]
        if not blocked or not guilty:
            return 0, "", ""
        alone = (other for other in guilty if blocked & feature_names.starved(other.won & off, self.names))
        winner = next(alone, guilty[0])
        name = feature_names.names_of(blocked, self.names)[0]
        return blocked, winner.policy, f"{name} cannot be on while {winner.name} is off"

    def _starving(self, asked: int, others: list[FeatureAsk], on: int) -> tuple[int, str, str]:
        """What of `asked` cannot be off because winners want on what needs it."""
        blocked, winner, because = 0, "", ""
        for feature in feature_names.names_of(on, self.names):
            for alternatives in feature_names.NEEDS.get(feature, ()):
                needed = asked & feature_names.mask_of(alternatives, self.names)
                if needed and not blocked:
                    winner = _owner(others, feature_names.mask_of((feature,), self.names))
                    because = f"{feature} needs {' or '.join(alternatives)}"
                blocked |= needed
        return blocked, winner, because

    def build(self) -> FeatureTable | None:
        if not self.asks and not self.unknown:
            return None
        return FeatureTable(self.names, self.care, self.value, tuple(self.asks), tuple(self.unknown))


def _owner(asks: Iterable[FeatureAsk], mask: int) -> str:
    return next((ask.policy for ask in asks if ask.won & mask), "")


# --- the module --------------------------------------------------------------------------------------------


def module_want(policies: Iterable[Policy]) -> tuple[modules.ModuleWant | None, tuple[Row, ...]]:
    """The state, parameters and persistence of vhost_net that win, and rows for those that lost."""
    wants = [(policy, _module_state(policy)) for policy in policies if policy.vhost and _asks_for_module(policy)]
    stated = [(policy, state, path) for policy, (state, path) in wants if state is not ModuleWish.UNMANAGED]
    if not wants:
        return None, ()
    rows = [
        _overridden_module(policy, path, state, stated[0][0], stated[0][1])
        for policy, state, path in stated[1:]
        if state is not stated[0][1]
    ]
    parameters: dict[str, tuple[int, str]] = {}
    for policy, _ in wants:
        for name, value in policy.vhost.parameters if policy.vhost else ():
            held, winner = parameters.setdefault(name, (value, policy.name))
            if held != value:
                path = f"vhost.module.parameters.{name}"
                text = f"policy {winner} wants {held}"
                rows.append(Row(f"module/{modules.NAME}", path, value, held, Reason.OVERRIDDEN_BY, text, policy.name))
    first, state, path = stated[0] if stated else (wants[0][0], ModuleWish.UNMANAGED, "vhost.module.parameters")
    assert first.vhost is not None
    want = modules.ModuleWant(
        state=state,
        policy=first.name,
        path=path,
        parameters=tuple((name, value, owner) for name, (value, owner) in parameters.items()),
        persist=first.vhost.persist,
        persist_policy=first.name,
    )
    return want, tuple(rows)


def _module_state(policy: Policy) -> tuple[ModuleWish, str]:
    assert policy.vhost is not None
    if policy.vhost.state is ModuleWish.UNMANAGED and policy.vhost.mode is VhostMode.REQUIRED:
        return ModuleWish.LOADED, "vhost.mode"
    return policy.vhost.state, "vhost.module.state"


def _overridden_module(policy: Policy, path: str, state: ModuleWish, winner: Policy, won: ModuleWish) -> Row:
    text = f"policy {winner.name} wants {modules.NAME} {won}"
    return Row(f"module/{modules.NAME}", path, state, won, Reason.OVERRIDDEN_BY, text, policy.name)


def unenforced_rows(policy: Policy) -> Iterator[Row]:
    """A row for every field that is accepted and that nothing enforces yet."""
    for field_ in policy.unenforced:
        yield Row(
            f"policy/{policy.name}", field_.path, field_.wanted, None, Reason.UNSUPPORTED, field_.why, policy.name
        )


@frozen
class _Resolved:
    policies: tuple[Policy, ...]
    links: Mapping[int, LinkWant]
    creations: tuple[Creation, ...]
    module: modules.ModuleWant | None
    rows: tuple[Row, ...]

    def whole(self) -> Desired:
        return Desired(EMPTY, self.links, self.creations, self.module, self.rows)

    def only(self, name: str) -> Desired:
        """What one policy owns of this resolution, for auditing it."""
        own = {policy.name: policy for policy in self.policies if policy.name == name}
        links = {index: mine for index, want in self.links.items() if (mine := _only(want, name)) is not None}
        module = self.module if self.module and self.module.policy == name else None
        creations = tuple(creation for creation in self.creations if creation.policy == name)
        return Desired(own, links, creations, module, tuple(row for row in self.rows if row.policy == name))


def _only(want: LinkWant, policy: str) -> LinkWant | None:
    if policy not in want.policies:
        return None
    attrs = tuple(attr for attr in want.attrs if attr.policy == policy)
    table = want.features
    if table is not None:
        asks = tuple(ask for ask in table.asks if ask.policy == policy)
        care = 0
        for ask in asks:
            care |= ask.won
        unknown = tuple(ask for ask in table.unknown if ask.policy == policy)
        table = FeatureTable(table.names, care, table.value & care, asks, unknown) if asks or unknown else None
    return LinkWant(want.roles, (policy,), attrs, table)
