"""Every change and what undoes it: made on a host and undone, the host reads as before."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest

from tests.flow.fake import FakeHost
from virtnet.core.inverse import inverse
from virtnet.core.model import (
    Change,
    CreateBridge,
    CreateTap,
    DeleteLink,
    Interest,
    LinkChange,
    LoadModule,
    Ref,
    RemoveModuleFile,
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
    UnloadModule,
    WriteModuleFile,
)

EVERYTHING = Interest(True, True, True, True, True, True, True)

HOST = """
    br0 bridge mtu=1400 delay=4 snooping=off
    br1 bridge
    eth0 mlx5_core master=br0 mtu=1400 rx-ring=512/8192
    eth1 mlx5_core +lro
    tap0 tap master=br0 vnet_hdr owner=107
    tap1 tap mtu=1400 txqlen=500 frames=4 mq
    vhost_net Loaded experimental_zcopytx=0
"""

CHANGES: dict[str, Callable[[FakeHost], Change]] = {
    "features": lambda host: host.ask("eth0", "-tso", "+lro", "-gro"),
    "features of which some are so already": lambda host: host.ask("tap0", "-gro", "+gso"),
    "both rings": lambda host: SetRings(host.ref("eth0"), 1024, 256),
    "one ring": lambda host: SetRings(host.ref("eth0"), rx=2048),
    "channels": lambda host: SetChannels(host.ref("eth0"), combined=2),
    "rx-frames": lambda host: SetRxFrames(host.ref("tap1"), 8),
    "an mtu": lambda host: SetMtu(host.ref("tap1"), 1300),
    "a queue length": lambda host: SetTxQueueLength(host.ref("tap1"), 0),
    "bridge options": lambda host: SetBridgeOptions(
        host.ref("br0"), (("multicastSnooping", True), ("forwardDelaySeconds", 20), ("groupForwardMask", 8))
    ),
    "becoming a port, with the LRO that it costs": lambda host: SetMaster(host.ref("eth1"), host.ref("br1")),
    "becoming a port elsewhere": lambda host: SetMaster(host.ref("tap0"), host.ref("br1")),
    "leaving a bridge": lambda host: SetMaster(host.ref("eth0"), None),
    "a bridge that was not there": lambda host: CreateBridge("br9"),
    "a bridge that was there": lambda host: CreateBridge("br1"),
    "a tap that was not there": lambda host: CreateTap("tap9", 107),
    "a tap that was there": lambda host: CreateTap("tap0"),
    "removing a bridge": lambda host: DeleteLink(host.ref("br1")),
    "removing a tap": lambda host: DeleteLink(host.ref("tap0")),
    "a vnet header": lambda host: SetVnetHdr(host.ref("tap0"), False),
    "an owner": lambda host: SetTapOwner(host.ref("tap0"), owner=108, group=109),
    "an owner that is cleared": lambda host: SetTapOwner(host.ref("tap0"), owner=-1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_that_is_undone_leaves_the_host_as_it_was(change: Callable[[FakeHost], Change]) -> None:
    host = FakeHost(HOST)
    before, state = str(host), host.observe(EVERYTHING)
    made = change(host)
    undo = inverse(made, state)
    host.apply(made)
    assert (str(host) != before) is bool(undo)
    for step in undo:
        host.apply(step)
    assert str(host) == before


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_undoing_can_be_done_twice_and_before_the_change(change: Callable[[FakeHost], Change]) -> None:
    host = FakeHost(HOST)
    before = str(host)
    undo = inverse(change(host), host.observe(EVERYTHING))
    if isinstance(change(host), DeleteLink):
        undo = ()
    for step in (*undo, *undo):
        host.apply(step)
    assert str(host) == before


def test_every_change_of_a_link_is_tried() -> None:
    tried = {type(change(FakeHost(HOST))) for change in CHANGES.values()}
    assert tried == {*get_args(LinkChange), CreateBridge, CreateTap}


def test_a_removed_bridge_comes_back_with_its_options() -> None:
    host = FakeHost("br0 bridge stp=on delay=4 ageing=10 snooping=off vlan=on mask=8")
    before = str(host)
    removal = DeleteLink(host.ref("br0"))
    undo = inverse(removal, host.observe(EVERYTHING))
    for step in (removal, *undo):
        host.apply(step)
    assert str(host) == before


def test_what_follows_a_removal_names_the_link_without_its_number() -> None:
    host = FakeHost(HOST)
    undo = inverse(DeleteLink(host.ref("tap0")), host.observe(EVERYTHING))
    assert isinstance(undo[0], CreateTap)
    assert {step.link.ifindex for step in undo if isinstance(step, SetMtu | SetMaster | SetTxQueueLength)} == {0}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(LoadModule("vhost_net"), id="loading a module"),
        pytest.param(UnloadModule("vhost_net"), id="unloading one"),
        pytest.param(WriteModuleFile("/etc/modules-load.d/x.conf", ""), id="writing a file"),
        pytest.param(RemoveModuleFile("/etc/modules-load.d/x.conf"), id="removing a file"),
        pytest.param(SetMtu(Ref("gone", 99), 9000), id="a link that is gone"),
        pytest.param(SetFeatures(Ref("br1", 2), 1, 1), id="features that could not be read"),
        pytest.param(SetRings(Ref("br1", 2), 1), id="rings that the link lacks"),
        pytest.param(SetChannels(Ref("br1", 2), 1), id="channels that the link lacks"),
        pytest.param(SetRxFrames(Ref("br1", 2), 1), id="rx-frames that the link lacks"),
        pytest.param(SetVnetHdr(Ref("br1", 2), True), id="a vnet header of no tap"),
        pytest.param(SetTapOwner(Ref("br1", 2), 1), id="an owner of no tap"),
    ],
)
def test_there_is_nothing_to_undo_for(change: Change) -> None:
    state = FakeHost("br0 bridge\nbr1 bridge unreadable=features").observe(EVERYTHING)
    assert inverse(change, state) == ()
