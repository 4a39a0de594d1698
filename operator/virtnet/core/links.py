"""What differs on one link besides its features, and the changes that set or put back such attributes.

The keys are those of `Setting.key`. Rules that the kernel or the policy's author impose are decided here, before
anything is tried: a link in use, a ring that does not exist, a port that belongs to somebody else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from virtnet.core import features as feature_names
from virtnet.core import select
from virtnet.core.model import (
    Change,
    Disruption,
    HostState,
    Link,
    Policy,
    Reason,
    Ref,
    SetBridgeOptions,
    SetChannels,
    SetMaster,
    SetMtu,
    SetRings,
    SetRxFrames,
    SetTapOwner,
    SetTxQueueLength,
    SetVnetHdr,
    Unreadable,
    Value,
)
from virtnet.core.resolve import Want
from virtnet.values import frozen

CAN_CUT_OFF = ("master", "mtu", "rings.", "channels.", "bridge.")
"""Keys whose change can cut the node off: they run in a transaction."""

DISRUPTS = ("mtu", "rings.", "channels.")
"""Keys that `uplink.disruption` holds back while guests use the uplink."""


@frozen
class Scene:
    """One look at the host, indexed; what every question about a link needs."""

    state: HostState
    topology: select.Topology
    policies: Mapping[str, Policy]
    coming: frozenset[str] = frozenset()
    """Names of links that this plan makes."""


def can_cut_off(key: str) -> bool:
    return key.startswith(CAN_CUT_OFF)


def observed_value(state: HostState, link: Link, key: str) -> Value | Unreadable | None:
    """What an attribute is now; None where the link has no such thing (or no master)."""
    reader = _READERS.get(key)
    if reader is not None:
        return reader(state, link)
    group, _, member = key.partition(".")
    if group == "bridge":
        return _bridge_option(link, member)
    maps: Mapping[str, Mapping[int, object]] = {"rings": state.rings, "channels": state.channels}
    found = maps[group].get(link.ifindex)
    if found is None or isinstance(found, Unreadable):
        return found
    value = getattr(found, member)
    assert value is None or isinstance(value, int)
    return value


def current_value(state: HostState, link: Link, key: str) -> Value | Unreadable | None:
    """Like `observed_value`, for features too: their wanted bit, because that is what somebody asked for."""
    name = key.removeprefix("feature:")
    if name == key:
        return observed_value(state, link, key)
    features = state.features.get(link.ifindex)
    if features is None or isinstance(features, Unreadable):
        return features
    return bool(features.wanted & feature_names.mask_of((name,), state.feature_names))


def _master(state: HostState, link: Link) -> str | None:
    master = state.links.get(link.master)
    return master.name if master else None


def _tun(name: str) -> Callable[[HostState, Link], Value | None]:
    return lambda _, link: getattr(link.tun, name) if link.tun else None


_READERS: Mapping[str, Callable[[HostState, Link], Value | Unreadable | None]] = {
    "mtu": lambda _, link: link.mtu,
    "txQueueLength": lambda _, link: link.tx_queue_length,
    "rxFrames": lambda state, link: state.rx_frames.get(link.ifindex),
    "master": _master,
    "vnetHdr": _tun("vnet_hdr"),
    "owner": _tun("owner"),
    "group": _tun("group"),
}

_CENTISECONDS = {"forwardDelaySeconds": "forward_delay", "ageingTimeSeconds": "ageing_time"}
_OPTIONS = {
    "stp": "stp",
    "multicastSnooping": "multicast_snooping",
    "vlanFiltering": "vlan_filtering",
    "groupForwardMask": "group_forward_mask",
}


def _bridge_option(link: Link, name: str) -> Value | None:
    """Times are whole seconds, or text such as "0.5" where they are not: then they equal no wanted value."""
    if link.bridge is None:
        return None
    if name in _CENTISECONDS:
        centiseconds = int(getattr(link.bridge, _CENTISECONDS[name]))
        return centiseconds // 100 if centiseconds % 100 == 0 else f"{centiseconds / 100:g}"
    value = getattr(link.bridge, _OPTIONS[name])
    assert isinstance(value, int)
    return value


# --- what stands in the way --------------------------------------------------------------------------------

Obstacle = tuple[Reason, str]


def obstacle(scene: Scene, link: Link, want: Want, current: Value | None) -> Obstacle | None:
    """Why this want cannot be set on this link now, or None."""
    if want.key == "master":
        return _not_enslavable(scene, link, str(want.value))
    if want.key in ("vnetHdr", "owner", "group"):
        return _not_reopenable(scene, link, want.key)
    if current is None:
        return _no_such_thing(link, want.key)
    if want.key.startswith(("rings.", "channels.")):
        return _over_maximum(scene.state, link, want) or disruption(scene, link, want)
    return disruption(scene, link, want) if want.key == "mtu" else None


def disruption(scene: Scene, link: Link, want: Want) -> Obstacle | None:
    """Waits for the guests when the want's policy says so."""
    policy = scene.policies.get(want.policy)
    uplink = policy.uplink if policy else None
    if uplink is None or uplink.disruption is not Disruption.WHEN_NO_GUESTS or not want.path.startswith("uplink."):
        return None
    guests = scene.topology.guests_on(link)
    if not guests:
        return None
    names = ", ".join(guest.name for guest in guests[:3]) + (", …" if len(guests) > 3 else "")
    return Reason.GUESTS_RUNNING, f"waits until no guest uses {link.name}: {names}"


def _not_enslavable(scene: Scene, link: Link, bridge: str) -> Obstacle | None:
    master = scene.topology.links.get(link.master)
    if link.name == bridge or link.loopback:
        return Reason.REFUSED, f"{link.name} cannot be a port of {bridge}"
    if master is not None and master.name != bridge:
        return Reason.FOREIGN, f"{link.name} already belongs to {master.name}; release it there first"
    carries = scene.state.carries.get(link.ifindex)
    if carries:
        return (
            Reason.CARRIES_ADDRESSES,
            f"{link.name} carries {carries}; move it to {bridge} before {link.name} becomes its port",
        )
    if bridge not in scene.topology.by_name and bridge not in scene.coming:
        return Reason.MISSING, f"bridge {bridge} does not exist"
    return None


def _not_reopenable(scene: Scene, link: Link, key: str) -> Obstacle | None:
    if not link.is_tap:
        return Reason.UNSUPPORTED, f"{link.name} is not a tap"
    held = held_by(scene.state, link)
    return (Reason.IN_USE, f"{link.name} is held by {held}; {key} can change when it is let go") if held else None


def held_by(state: HostState, link: Link) -> str:
    """Who has a tap open, in words; empty when nobody has."""
    if not link.held:
        return ""
    return ", ".join(map(str, state.holders.get(link.ifindex, ()))) or "a process that cannot be seen from here"


_THINGS = {
    "rxFrames": "interrupt coalescing",
    "rings": "ring sizes",
    "channels": "channels",
    "bridge": "bridge options",
}


def _no_such_thing(link: Link, key: str) -> Obstacle | None:
    group, _, member = key.partition(".")
    thing = _THINGS.get(group, key)
    kind = f" of kind {member}" if group == "channels" and member else ""
    return Reason.UNSUPPORTED, f"the driver of {link.name} has no {thing}{kind}"


def _over_maximum(state: HostState, link: Link, want: Want) -> Obstacle | None:
    most = observed_value(state, link, f"{want.key}_max")
    if isinstance(most, int) and isinstance(want.value, int) and want.value > most:
        return Reason.REFUSED, f"{link.name} allows {want.key.replace('.', ' ')} up to {most}"
    return None


# --- changes -----------------------------------------------------------------------------------------------


def changes(
    link: Link, values: Mapping[str, Value | None], masters: Mapping[str, Link]
) -> Iterator[tuple[Change, tuple[str, ...]]]:
    """The changes that give a link these values, each with the keys it sets; one change sets all of a group."""
    ref = Ref(link.name, link.ifindex)
    groups: dict[str, dict[str, Value | None]] = {}
    for key, value in values.items():
        group = "owner" if key == "group" else key.partition(".")[0]
        groups.setdefault(group, {})[key] = value
    for group, members in groups.items():
        yield _BUILDERS[group](ref, members, masters), tuple(members)


_Builder = Callable[[Ref, Mapping[str, Value | None], Mapping[str, Link]], Change]


def _number(members: Mapping[str, Value | None], key: str) -> int | None:
    value = members.get(key)
    return int(value) if value is not None else None


def _set_master(ref: Ref, members: Mapping[str, Value | None], masters: Mapping[str, Link]) -> Change:
    name = members["master"]
    if name is None:
        return SetMaster(ref, None)
    master = masters.get(str(name))
    return SetMaster(ref, Ref(str(name), master.ifindex if master else 0))


def _set_owner(ref: Ref, members: Mapping[str, Value | None], _: Mapping[str, Link]) -> Change:
    def identity(key: str) -> int | None:
        return None if key not in members else -1 if members[key] is None else _number(members, key)

    return SetTapOwner(ref, identity("owner"), identity("group"))


_BUILDERS: Mapping[str, _Builder] = {
    "mtu": lambda ref, members, _: SetMtu(ref, _number(members, "mtu") or 0),
    "txQueueLength": lambda ref, members, _: SetTxQueueLength(ref, _number(members, "txQueueLength") or 0),
    "rxFrames": lambda ref, members, _: SetRxFrames(ref, _number(members, "rxFrames") or 0),
    "vnetHdr": lambda ref, members, _: SetVnetHdr(ref, bool(members["vnetHdr"])),
    "owner": _set_owner,
    "master": _set_master,
    "rings": lambda ref, members, _: SetRings(ref, _number(members, "rings.rx"), _number(members, "rings.tx")),
    "channels": lambda ref, members, _: SetChannels(
        ref,
        _number(members, "channels.combined"),
        _number(members, "channels.rx"),
        _number(members, "channels.tx"),
    ),
    "bridge": lambda ref, members, _: SetBridgeOptions(
        ref, tuple((key.removeprefix("bridge."), value) for key, value in members.items() if value is not None)
    ),
}
