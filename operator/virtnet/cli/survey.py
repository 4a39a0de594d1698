"""The host as `inspect` tells it to programs: plain data made from one look, in the words of ethtool and of the API."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from virtnet.core import features as feature_names
from virtnet.core import select
from virtnet.core.model import (
    BridgeOptions,
    Channels,
    Features,
    HostState,
    Link,
    Process,
    Rings,
    Unreadable,
)

Data = dict[str, Any]

CENTISECONDS = 100


def uplinks(state: HostState, also: Collection[str] = ()) -> list[Data]:
    """Hardware, bonds, teams and vlans, and the links named in `also` (those that a policy took for uplinks)."""
    return [
        _uplink(state, link)
        for link in _by_name(state)
        if not select.never_uplink(link) and (link.physical or link.kind in select.UPLINK_KINDS or link.name in also)
    ]


def bridges(state: HostState) -> list[Data]:
    """Linux bridges with their ports and options, times in seconds."""
    return [
        {
            **_link(state, link),
            "ports": [port.name for port in _by_name(state) if port.master == link.ifindex],
            "options": _options(link.bridge) if link.bridge else {},
            "offloads": offloads(state, link),
        }
        for link in _by_name(state)
        if link.kind == "bridge"
    ]


def taps(state: HostState) -> list[Data]:
    """Taps with their flags and who holds them; `held` also where the holder cannot be seen."""
    return [_tap(state, link) for link in _by_name(state) if link.is_tap]


def offloads(state: HostState, link: Link) -> Data:
    """By short name {active, requested, fixed}, as `ethtool --json -k` has it: active when any member is.

    {"unreadable": why} where the kernel did not let us look.
    """
    found = state.features.get(link.ifindex)
    if isinstance(found, Unreadable):
        return {"unreadable": found.reason}
    return {} if found is None else dict(_short_names(found, state.feature_names))


def _short_names(found: Features, names: tuple[str, ...]) -> Iterator[tuple[str, Data]]:
    for short in feature_names.SHORT:
        mask = feature_names.members(short, False, names)
        if mask is not None:
            yield (
                short,
                {
                    "active": bool(found.active & mask),
                    "requested": bool(found.wanted & mask),
                    "fixed": not found.changeable & mask,
                },
            )


def _by_name(state: HostState) -> list[Link]:
    return sorted(state.links.values(), key=lambda link: link.name)


def _link(state: HostState, link: Link) -> Data:
    master = state.links.get(link.master)
    return {
        "name": link.name,
        "mac": link.mac,
        "mtu": link.mtu,
        "up": link.up,
        "carrier": link.carrier,
        "master": master.name if master else None,
    }


def _uplink(state: HostState, link: Link) -> Data:
    driver = state.drivers.get(link.ifindex)
    lower = state.links.get(link.lower)
    return {
        **_link(state, link),
        "kind": link.kind or "hardware",
        "driver": driver.name if driver else link.kind,
        "version": driver.version if driver else "",
        "firmware": driver.firmware if driver else "",
        "bus": (driver.bus if driver else "") or link.bus,
        "lower": lower.name if lower else None,
        "rings": _rings(state.rings.get(link.ifindex)),
        "channels": _channels(state.channels.get(link.ifindex)),
        "offloads": offloads(state, link),
    }


def _rings(found: Rings | Unreadable | None) -> Data | None:
    """None: this link has no rings."""
    if isinstance(found, Unreadable):
        return {"unreadable": found.reason}
    if found is None:
        return None
    return {"rx": found.rx, "tx": found.tx, "rxMax": found.rx_max, "txMax": found.tx_max}


def _channels(found: Channels | Unreadable | None) -> Data | None:
    """None: this link has no channels."""
    if isinstance(found, Unreadable):
        return {"unreadable": found.reason}
    if found is None:
        return None
    return {
        "combined": found.combined,
        "rx": found.rx,
        "tx": found.tx,
        "combinedMax": found.combined_max,
        "rxMax": found.rx_max,
        "txMax": found.tx_max,
    }


def _options(found: BridgeOptions) -> Data:
    return {
        "stp": found.stp,
        "forwardDelaySeconds": found.forward_delay / CENTISECONDS,
        "ageingTimeSeconds": found.ageing_time / CENTISECONDS,
        "multicastSnooping": found.multicast_snooping,
        "vlanFiltering": found.vlan_filtering,
        "groupForwardMask": found.group_forward_mask,
    }


def _tap(state: HostState, link: Link) -> Data:
    assert link.tun is not None
    frames = state.rx_frames.get(link.ifindex)
    return {
        **_link(state, link),
        "txQueueLength": link.tx_queue_length,
        "vnetHdr": link.tun.vnet_hdr,
        "multiQueue": link.tun.multi_queue,
        "queues": link.tun.queues,
        "persistent": link.tun.persist,
        "owner": link.tun.owner,
        "group": link.tun.group,
        "rxFrames": {"unreadable": frames.reason} if isinstance(frames, Unreadable) else frames,
        "held": link.held,
        "holders": [process(holder) for holder in state.holders.get(link.ifindex, ())],
        "offloads": offloads(state, link),
    }


def process(found: Process) -> Data:
    return {"pid": found.pid, "command": found.command, "guest": found.guest}


def unseen(host: Mapping[str, list[Data]], vhost: Mapping[str, Any] | None) -> Iterator[str]:
    """A sentence for each thing that this process was not allowed to see, from the lists of this module."""
    reasons: dict[str, list[str]] = {}
    for link in (entry for entries in host.values() for entry in entries):
        for reason in {part["unreadable"] for part in link.values() if isinstance(part, dict) and "unreadable" in part}:
            reasons.setdefault(reason, []).append(link["name"])
    for reason, names in reasons.items():
        yield f"not readable on {', '.join(names)}: {reason}"
    hidden = [tap["name"] for tap in host["taps"] if tap["held"] and not tap["holders"]]
    if hidden:
        yield f"who holds {', '.join(hidden)} cannot be seen from here; root sees more"
    if vhost and vhost.get("refcount") and not vhost.get("users"):
        yield "who uses vhost_net cannot be seen from here; root sees more"
