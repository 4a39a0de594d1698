"""Small hosts, policies and ledgers for the tests of the core, as plain values; nothing here touches a machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tests.flow import rules
from virtnet.core import plan as planning
from virtnet.core import resolve
from virtnet.core.model import (
    BridgeOptions,
    BridgeSpec,
    Channels,
    Deletion,
    Entry,
    Features,
    HostState,
    Link,
    LinkRecord,
    Made,
    ModuleState,
    Node,
    Policy,
    Process,
    Recorded,
    Rings,
    Row,
    Setting,
    Step,
    Tun,
    Unreadable,
    Value,
)
from virtnet.core.plan import Plan
from virtnet.core.resolve import Desired
from virtnet.core.standing import Standing

NAMES = rules.FEATURE_NAMES
NODE = Node("node1", {"kubernetes.io/hostname": "node1"})
QEMU = Process(42, "qemu-system-x86", "web1")
NOTHING_RECORDED = Recorded()

KINDS = {"bridge": "bridge", "bond": "bond", "team": "team", "vlan": "vlan", "veth": "veth", "macvtap": "macvtap"}


@dataclass(frozen=True, slots=True)
class Part:
    """One link of a host, before it has a number; `on` and `over` name its master and its real device."""

    link: Link
    profile: str
    features: Features | Unreadable
    on: str = ""
    over: str = ""
    rings: Rings | Unreadable | None = None
    channels: Channels | Unreadable | None = None
    rx_frames: int | Unreadable | None = None
    carries: str = ""
    holders: tuple[Process, ...] = ()


def nic(name: str, on: str = "", driver: str = "mlx5_core", carries: str = "", **features: str) -> Part:
    """Hardware: mlx5_core has rings up to 8192 and 8 combined channels, r8169 neither."""
    profile = rules.PROFILES[driver]
    link = Link(0, name, mtu=1500, up=True, carrier=True, physical=True, bus=profile.driver.bus)
    mine = turned(profile.features, **features)
    return Part(link, driver, mine, on, rings=profile.rings, channels=profile.channels, carries=carries)


def soft(name: str, kind: str, on: str = "", over: str = "", carries: str = "", **features: str) -> Part:
    """A software link without attributes of its own: bond, team, vlan, veth, macvtap."""
    link = Link(0, name, kind=kind, up=True, carrier=True)
    return Part(link, kind, turned(rules.PROFILES[kind].features, **features), on, over, carries=carries)


def bridge(name: str, carries: str = "", mtu: int = 1500, **options: int) -> Part:
    """A bridge with the kernel's options, except those that are given (fields of BridgeOptions)."""
    values = BridgeOptions(False, 1500, 30000, True, False, 0)
    link = Link(0, name, kind="bridge", mtu=mtu, up=True, bridge=replace(values, **options))  # type: ignore[arg-type]
    return Part(link, "bridge", rules.PROFILES["bridge"].features, carries=carries)


def tap(
    name: str,
    on: str = "",
    held: bool = False,
    *,
    vnet_hdr: bool = True,
    owner: int | None = None,
    multi_queue: bool = False,
    **features: str,
) -> Part:
    tun = Tun(True, owner, None, False, vnet_hdr, True, multi_queue)
    link = Link(0, name, kind="tun", up=True, carrier=held, tun=tun)
    mine = turned(rules.PROFILES["tap"].features, **features)
    return Part(link, "tap", mine, on, rx_frames=0, holders=(QEMU,) if held else ())


def tun(name: str) -> Part:
    """A tun link of type tun: it carries packets, not frames, and belongs to no guest."""
    made = tap(name)
    assert made.link.tun is not None
    return replace(made, profile="tun", link=replace(made.link, tun=replace(made.link.tun, tap=False)))


def loopback() -> Part:
    return Part(Link(0, "lo", up=True, loopback=True, mtu=65536), "lo", rules.PROFILES["lo"].features)


def turned(
    features: Features, *, set_on: str = "", set_off: str = "", stuck_off: str = "", stuck_on: str = "", fixed: str = ""
) -> Features:
    """Features that were set otherwise; `stuck_off`: asked for and not in effect, `fixed`: no user can change them."""
    on, off = rules.mask(set_on), rules.mask(set_off)
    sticking_off, sticking_on = rules.mask(stuck_off), rules.mask(stuck_on)
    return replace(
        features,
        hw=(features.hw | on | off | sticking_off | sticking_on) & ~rules.mask(fixed),
        wanted=(features.wanted | on | sticking_off) & ~(off | sticking_on),
        active=(features.active | on | sticking_on) & ~(off | sticking_off),
    )


def host(*parts: Part, module: ModuleState | None = None, names: tuple[str, ...] = NAMES) -> HostState:
    """Links are numbered from 1 in the order they are given."""
    numbers = {part.link.name: number for number, part in enumerate(parts, 1)}
    by_number = dict(zip(numbers.values(), parts, strict=True))
    return HostState(
        links={number: _numbered(part, numbers) for number, part in by_number.items()},
        features={number: part.features for number, part in by_number.items()},
        feature_names=names,
        drivers={number: rules.PROFILES[part.profile].driver for number, part in by_number.items()},
        rings={number: part.rings for number, part in by_number.items() if part.rings is not None},
        channels={number: part.channels for number, part in by_number.items() if part.channels is not None},
        rx_frames={number: part.rx_frames for number, part in by_number.items() if part.rx_frames is not None},
        carries={number: part.carries for number, part in by_number.items() if part.carries},
        holders={number: part.holders for number, part in by_number.items() if part.holders},
        module=module,
    )


def _numbered(part: Part, numbers: Mapping[str, int]) -> Link:
    number = numbers[part.link.name]
    master, lower = numbers.get(part.on, 0), numbers.get(part.over, 0)
    return replace(part.link, ifindex=number, mac=f"02:00:00:00:00:{number:02x}", master=master, lower=lower)


def named(state: HostState, name: str) -> Link:
    link = state.by_name(name)
    assert link is not None, f"no link is named {name}"
    return link


def with_link(state: HostState, name: str, **fields: object) -> HostState:
    """The same host after somebody changed a link's own attributes."""
    link = named(state, name)
    changed = replace(link, **fields)  # type: ignore[arg-type]
    return replace(state, links={**state.links, link.ifindex: changed})


def with_features(state: HostState, name: str, **features: str) -> HostState:
    """The same host after somebody turned features of a link (words of `turned`)."""
    number = named(state, name).ifindex
    now = state.features[number]
    assert isinstance(now, Features)
    return replace(state, features={**state.features, number: turned(now, **features)})


def without(state: HostState, name: str) -> HostState:
    """The same host after a link has gone."""
    gone = named(state, name).ifindex
    return replace(state, links={number: link for number, link in state.links.items() if number != gone})


# --- policies ----------------------------------------------------------------------------------------------


def asks(**offloads: bool) -> tuple[tuple[str, bool], ...]:
    """Offloads as a policy has them; `tx_udp_segmentation` stands for the kernel's tx-udp-segmentation."""
    return tuple((name.replace("_", "-"), wanted) for name, wanted in offloads.items())


BR0 = BridgeSpec("br0")


def desired_of(state: HostState, *policies: Policy) -> Desired:
    return resolve.resolve(policies, NODE, state)


def plan_of(
    state: HostState,
    *policies: Policy,
    recorded: Recorded = NOTHING_RECORDED,
    standing: Standing = planning.NOTHING_STANDS,
) -> Plan:
    return planning.make_plan(desired_of(state, *policies), state, recorded, standing)


# --- ledgers -----------------------------------------------------------------------------------------------


def entry(
    setting: Setting,
    original: Value | None,
    wanted: Value | None,
    policy: str = "old",
    deletion: Deletion = Deletion.RESTORE,
) -> Entry:
    return Entry(setting, original, wanted, policy, deletion)


def record(
    link: Link,
    deletion: Deletion = Deletion.RESTORE,
    policy: str = "old",
    /,
    **settings: tuple[Value | None, Value | None],
) -> LinkRecord:
    """Settings by key with `__` for "." (`rings__rx`) and `feature_` for "feature:": (original, wanted)."""
    entries = {}
    for word, (original, wanted) in settings.items():
        key = word.replace("__", ".")
        if key.startswith("feature_"):
            key = "feature:" + key.removeprefix("feature_").replace("_", "-")
        entries[key] = Entry(Setting(link.ifindex, key), original, wanted, policy, deletion)
    return LinkRecord(link.ifindex, link.name, link.kind, link.mac, entries)


def ledger(*records: LinkRecord, made: tuple[Made, ...] = ()) -> Recorded:
    return Recorded(links={one.ifindex: one for one in records}, made={one.name: one for one in made})


def ledger_after(plan: Plan, before: Recorded = NOTHING_RECORDED) -> Recorded:
    """What the ledger holds once a plan's originals are written down; the first original stays."""
    links, module = dict(before.links), dict(before.module)
    for link, entries in plan.originals:
        if link is None:
            module |= {one.setting.key: one for one in entries}
            continue
        known = links[link.ifindex].entries if link.ifindex in links else {}
        new = {
            one.setting.key: replace(one, original=known[one.setting.key].original) if one.setting.key in known else one
            for one in entries
        }
        links[link.ifindex] = LinkRecord(link.ifindex, link.name, link.kind, link.mac, {**known, **new})
    return Recorded(links, module, before.made)


# --- plans as words ----------------------------------------------------------------------------------------


def todo(plan: Plan) -> list[str]:
    """What a plan sets, in its order: "eth0 mtu=9000", "eth0 -rx-lro"."""
    return [words for step in plan.steps for words in words_of(step)]


def words_of(step: Step) -> list[str]:
    reference = getattr(step.change, "link", None)
    name = reference.name if reference is not None else getattr(step.change, "name", "")
    return [f"{name} {_word(setting.key, value)}" for setting, value in step.settings]


def _word(key: str, value: Value | None) -> str:
    feature = key.removeprefix("feature:")
    if feature != key:
        return ("+" if value else "-") + feature
    return f"{key}={value}"


def said(rows: tuple[Row, ...]) -> list[str]:
    """Blocked rows without their sentences: "eth0 uplink.mtu Fixed"."""
    return [f"{row.subject.partition('/')[2]} {row.setting} {row.reason}" for row in rows]
