"""The changes that undo a change, as seen before it was made; what a transaction writes down before it begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from virtnet.core import links
from virtnet.core.model import (
    Change,
    Channels,
    CreateBridge,
    CreateTap,
    DeleteLink,
    Features,
    HostState,
    Link,
    Ref,
    Rings,
    SetBridgeOptions,
    SetChannels,
    SetFeatures,
    SetMaster,
    SetMtu,
    SetRings,
    SetRxFrames,
    SetTapOwner,
    SetTxQueueLength,
    SetVnetHdr,
    Unreadable,
)


def inverse(change: Change, state: HostState) -> tuple[Change, ...]:
    """What puts back how things are in `state`, in order; nothing where there is nothing to put back.

    A link that a change removes is named without its ifindex in what follows: it will have another one.
    """
    if isinstance(change, CreateBridge | CreateTap):
        return () if state.by_name(change.name) else (DeleteLink(Ref(change.name, 0)),)
    undo = _UNDO.get(type(change))
    reference = getattr(change, "link", None)
    link = state.links.get(reference.ifindex) if reference is not None else None
    return tuple(undo(change, link, state)) if undo is not None and link is not None else ()


def _features(change: SetFeatures, link: Link, state: HostState) -> tuple[Change, ...]:
    before = state.features.get(link.ifindex)
    if not isinstance(before, Features):
        return ()
    return (SetFeatures(change.link, change.mask, before.wanted & change.mask),)


def _rings(change: SetRings, link: Link, state: HostState) -> tuple[Change, ...]:
    before = state.rings.get(link.ifindex)
    if not isinstance(before, Rings):
        return ()
    return (SetRings(change.link, _same(change.rx, before.rx), _same(change.tx, before.tx)),)


def _channels(change: SetChannels, link: Link, state: HostState) -> tuple[Change, ...]:
    before = state.channels.get(link.ifindex)
    if not isinstance(before, Channels):
        return ()
    return (
        SetChannels(
            change.link,
            _same(change.combined, before.combined),
            _same(change.rx, before.rx),
            _same(change.tx, before.tx),
        ),
    )


def _same(asked: int | None, before: int | None) -> int | None:
    """Only what a change sets is put back."""
    return before if asked is not None else None


def _rx_frames(change: SetRxFrames, link: Link, state: HostState) -> tuple[Change, ...]:
    before = state.rx_frames.get(link.ifindex)
    return () if before is None or isinstance(before, Unreadable) else (SetRxFrames(change.link, before),)


def _options(change: SetBridgeOptions, link: Link, state: HostState) -> tuple[Change, ...]:
    before = []
    for name, _ in change.options:
        value = links.observed_value(state, link, f"bridge.{name}")
        if value is not None and not isinstance(value, Unreadable):
            before.append((name, value))
    return (SetBridgeOptions(change.link, tuple(before)),)


def _master(change: SetMaster, link: Link, state: HostState) -> tuple[Change, ...]:
    """Back to where it was; LRO, which enslaving switches off, comes back with it."""
    master = state.links.get(link.master)
    undo: list[Change] = [SetMaster(change.link, Ref(master.name, 0) if master else None)]
    before = state.features.get(link.ifindex)
    bit = 1 << state.feature_names.index("rx-lro") if "rx-lro" in state.feature_names else 0
    if master is None and isinstance(before, Features) and before.wanted & bit:
        undo.append(SetFeatures(change.link, bit, bit))
    return tuple(undo)


def _remake(change: DeleteLink, link: Link, state: HostState) -> tuple[Change, ...]:
    again = Ref(link.name, 0)
    if link.tun is not None:
        tun = link.tun
        make: list[Change] = [CreateTap(link.name, tun.owner, tun.group, tun.multi_queue, tun.vnet_hdr)]
    else:
        make = [CreateBridge(link.name)]
        if link.bridge is not None:
            names = (
                "forwardDelaySeconds",
                "ageingTimeSeconds",
                "multicastSnooping",
                "vlanFiltering",
                "groupForwardMask",
            )
            options = [(name, links.observed_value(state, link, f"bridge.{name}")) for name in ("stp", *names)]
            known = tuple((name, value) for name, value in options if isinstance(value, int))
            make.append(SetBridgeOptions(again, known))
    make += [SetMtu(again, link.mtu), SetTxQueueLength(again, link.tx_queue_length)]
    master = state.links.get(link.master)
    if master is not None:
        make.append(SetMaster(again, Ref(master.name, 0)))
    return tuple(make)


_UNDO: Mapping[type, Callable[[Any, Link, HostState], tuple[Change, ...]]] = {
    SetFeatures: _features,
    SetRings: _rings,
    SetChannels: _channels,
    SetRxFrames: _rx_frames,
    SetMtu: lambda change, link, _: (SetMtu(change.link, link.mtu),),
    SetTxQueueLength: lambda change, link, _: (SetTxQueueLength(change.link, link.tx_queue_length),),
    SetBridgeOptions: _options,
    SetMaster: _master,
    DeleteLink: _remake,
    SetVnetHdr: lambda change, link, _: (SetVnetHdr(change.link, link.tun.vnet_hdr),) if link.tun else (),
    SetTapOwner: lambda change, link, _: (
        (SetTapOwner(change.link, _clear(link.tun.owner), _clear(link.tun.group)),) if link.tun else ()
    ),
}


def _clear(identity: int | None) -> int:
    return -1 if identity is None else identity
