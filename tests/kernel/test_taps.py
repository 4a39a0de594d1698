"""Persistent taps, seen by `ip -d link`: what is made, what is kept, and that a held tap is never opened."""

from __future__ import annotations

import fcntl
import os
from functools import partial
from typing import Any

import pytest

from tests.kernel.holding import MULTI_QUEUE, VNET_HDR, hold, let_go
from tests.kernel.playground import Playground
from virtnet import errors
from virtnet.core.model import CreateTap, Interest, Link
from virtnet.host import LinuxHost, namespaces, taps


def shown(playground: Playground, name: str) -> dict[str, Any]:
    link = playground.links()[name]
    data: dict[str, Any] = link["linkinfo"]["info_data"]
    return data | {"kind": link["linkinfo"]["info_kind"], "up": "UP" in link["flags"]}


def look(host: LinuxHost, name: str) -> Link:
    found = host.observe(Interest()).by_name(name)
    assert found is not None, f"no link {name}"
    return found


# --- making ------------------------------------------------------------------------------------------------


def test_a_tap_is_made_persistent_without_packet_information_and_set_up(playground: Playground) -> None:
    taps.create(playground.namespace, CreateTap("t0"))
    tap = shown(playground, "t0")
    assert (tap["type"], tap["pi"], tap["vnet_hdr"], tap["persist"], tap["multi_queue"], tap["up"]) == (
        *("tap", False, True, True, False, True),
    )


@pytest.mark.parametrize("vnet_hdr", [False, True])
@pytest.mark.parametrize("multi_queue", [False, True])
def test_a_tap_is_made_with_the_flags_that_are_asked(playground: Playground, vnet_hdr: bool, multi_queue: bool) -> None:
    taps.create(playground.namespace, CreateTap("t0", vnet_hdr=vnet_hdr, multi_queue=multi_queue))
    tap = shown(playground, "t0")
    assert (tap["vnet_hdr"], tap["multi_queue"]) == (vnet_hdr, multi_queue)


def test_a_tap_is_made_for_its_owner_and_group(playground: Playground, host: LinuxHost) -> None:
    owner, group = (0xFFFFFFFE, 4343) if namespaces.in_initial_user_namespace() else (0, 0)
    taps.create(playground.namespace, CreateTap("t0", owner=owner, group=group))
    found = look(host, "t0").tun
    assert found is not None
    assert (found.owner, found.group) == (owner, group)
    assert owner == 0 or str(owner) in playground.run("ip -d link show t0")


@pytest.mark.parametrize("there", ["mode tap", "mode tap multi_queue", "mode tap vnet_hdr pi"])
def test_a_tap_that_is_there_is_not_touched(playground: Playground, there: str) -> None:
    playground.run(f"ip tuntap add t0 {there}")
    before = shown(playground, "t0")
    taps.create(playground.namespace, CreateTap("t0", owner=0, multi_queue=True))
    assert shown(playground, "t0") == before


def test_a_held_tap_is_not_touched_by_making_it_again(playground: Playground) -> None:
    change = CreateTap("t0", multi_queue=True)
    taps.create(playground.namespace, change)
    hold(playground, "t0", VNET_HDR | MULTI_QUEUE, queues=2)
    taps.create(playground.namespace, change)
    assert shown(playground, "t0")["numqueues"] == 2


@pytest.mark.parametrize("other", ["link add t0 type ifb", "link add t0 type bridge", "tuntap add t0 mode tun"])
def test_another_kind_of_link_of_that_name_is_refused_and_left_alone(playground: Playground, other: str) -> None:
    playground.run(f"ip {other}")
    before = playground.links()["t0"]
    with pytest.raises(errors.Refused, match="t0 is there and is not a tap"):
        taps.create(playground.namespace, CreateTap("t0"))
    assert playground.links()["t0"] == before


def test_an_owner_that_the_kernel_refuses_leaves_no_tap_behind(playground: Playground) -> None:
    with pytest.raises(errors.Refused, match="4294967295 is no user or group id"):
        taps.create(playground.namespace, CreateTap("t0", owner=0xFFFFFFFF))
    assert "t0" not in playground.links()


# --- re-opening --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queues", ["", "multi_queue"])
@pytest.mark.parametrize("pi", ["", "pi"])
def test_vnet_hdr_is_repaired_in_place_and_the_other_flags_stay(
    playground: Playground, host: LinuxHost, queues: str, pi: str
) -> None:
    playground.run(f"ip tuntap add t0 mode tap {queues} {pi}")
    before = shown(playground, "t0")
    for _ in range(2):
        taps.set_vnet_hdr(playground.namespace, look(host, "t0"), on=True)
        assert shown(playground, "t0") == before | {"vnet_hdr": True}
    taps.set_vnet_hdr(playground.namespace, look(host, "t0"), on=False)
    assert shown(playground, "t0") == before


def test_a_tap_that_a_foreign_opener_robbed_of_vnet_hdr_gets_it_back(playground: Playground, host: LinuxHost) -> None:
    taps.create(playground.namespace, CreateTap("t0"))
    let_go(hold(playground, "t0", flags=0))
    assert shown(playground, "t0")["vnet_hdr"] is False
    taps.set_vnet_hdr(playground.namespace, look(host, "t0"), on=True)
    assert shown(playground, "t0")["vnet_hdr"] is True


@pytest.mark.parametrize("flags", [0, MULTI_QUEUE], ids=["one queue", "multi queue"])
def test_a_held_tap_is_in_use_and_its_holder_is_named(playground: Playground, host: LinuxHost, flags: int) -> None:
    taps.create(playground.namespace, CreateTap("t0", multi_queue=bool(flags), vnet_hdr=False))
    holder = hold(playground, "t0", flags, arguments=("-name", "guest=web1,debug-threads=on"))
    link = look(host, "t0")
    before = shown(playground, "t0")
    for change in (
        partial(taps.set_vnet_hdr, playground.namespace, link, on=True),
        partial(taps.set_owner, playground.namespace, link, owner=0, group=None),
    ):
        with pytest.raises(errors.InUse, match=rf"t0 is held by \S+\[{holder.pid}\] \(guest web1\)") as caught:
            change()
        assert caught.value.retry
    assert shown(playground, "t0") == before


def test_an_old_look_that_saw_no_holder_does_not_open_a_held_tap(playground: Playground, host: LinuxHost) -> None:
    taps.create(playground.namespace, CreateTap("t0", multi_queue=True, vnet_hdr=False))
    old = look(host, "t0")
    assert not old.held
    hold(playground, "t0", MULTI_QUEUE)
    with pytest.raises(errors.InUse):
        taps.set_vnet_hdr(playground.namespace, old, on=True)
    assert shown(playground, "t0")["numqueues"] == 1


def test_a_tap_that_was_renamed_or_made_anew_is_gone_and_nothing_is_left(
    playground: Playground, host: LinuxHost
) -> None:
    playground.run("ip tuntap add t0 mode tap")
    old = look(host, "t0")
    playground.run("ip link set t0 name t1")
    with pytest.raises(errors.Gone):
        taps.set_vnet_hdr(playground.namespace, old, on=True)
    assert "t0" not in playground.links()
    playground.run("ip tuntap add t0 mode tap")
    with pytest.raises(errors.Gone):
        taps.set_vnet_hdr(playground.namespace, old, on=True)
    assert shown(playground, "t0")["vnet_hdr"] is shown(playground, "t1")["vnet_hdr"] is False


def test_what_is_not_a_tap_is_refused(playground: Playground, host: LinuxHost) -> None:
    playground.run("ip tuntap add t0 mode tun")
    with pytest.raises(errors.Refused, match="t0 is not a tap"):
        taps.set_vnet_hdr(playground.namespace, look(host, "t0"), on=True)


@pytest.mark.parametrize("queues", ["", "multi_queue"])
def test_owner_and_group_are_changed_alone_and_the_flags_stay(
    playground: Playground, host: LinuxHost, queues: str
) -> None:
    playground.run(f"ip tuntap add t0 mode tap vnet_hdr {queues}")
    taps.set_owner(playground.namespace, look(host, "t0"), owner=0, group=None)
    tun = look(host, "t0").tun
    assert tun is not None
    assert (tun.owner, tun.group, tun.vnet_hdr, tun.multi_queue) == (0, None, True, bool(queues))
    taps.set_owner(playground.namespace, look(host, "t0"), owner=None, group=0)
    tun = look(host, "t0").tun
    assert tun is not None
    assert (tun.owner, tun.group, tun.vnet_hdr) == (0, 0, True)


def test_an_owner_cannot_be_cleared_and_that_is_the_kernel(playground: Playground, host: LinuxHost) -> None:
    playground.run("ip tuntap add t0 mode tap user 0")
    with pytest.raises(errors.NotSupported, match="has to be made anew"):
        taps.set_owner(playground.namespace, look(host, "t0"), owner=-1, group=None)
    with taps._opened(playground.namespace) as (tap, _):
        taps._attach(tap, "t0", taps.IFF_TAP)
        with pytest.raises(OSError, match="Invalid argument"):
            fcntl.ioctl(tap, taps.TUNSETOWNER, -1)


def test_no_descriptor_stays_open(playground: Playground, host: LinuxHost) -> None:
    taps.create(playground.namespace, CreateTap("t0"))
    look(host, "t0")
    before = len(os.listdir("/proc/self/fd"))
    for on in (False, True):
        taps.create(playground.namespace, CreateTap("t0"))
        taps.set_vnet_hdr(playground.namespace, look(host, "t0"), on=on)
    assert len(os.listdir("/proc/self/fd")) == before
