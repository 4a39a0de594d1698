"""Links as we read them are links as `ip -d link` shows them, and each setter does what its name says."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kernel.playground import Playground
from virtnet import errors
from virtnet.core import model
from virtnet.core.model import Interest, Link, Ref
from virtnet.host import LinuxHost

ALL_KINDS = (
    "link add br0 type bridge",
    "link set br0 up",
    "link add v0 type veth peer name v1",
    "link set v0 master br0 mtu 1400 up",
    "link set v1 up txqueuelen 77",
    "link add mv0 link v1 type macvlan",
    "link add mt0 link v1 type macvtap",
    "tuntap add t0 mode tap",
    "tuntap add t1 mode tap vnet_hdr multi_queue",
    "tuntap add tun0 mode tun",
    "link add ifb9 type ifb",
)


def look(host: LinuxHost) -> model.HostState:
    return host.observe(Interest())


def named(host: LinuxHost, name: str) -> Link:
    found = look(host).by_name(name)
    assert found is not None, f"no link {name}"
    return found


def as_ref(link: Link) -> Ref:
    return Ref(link.name, link.ifindex)


def expected(shown: dict[str, Any], indexes: dict[str, int]) -> dict[str, object]:
    """The fields of a Link, from what `ip -j -d link` shows."""
    kind = shown.get("linkinfo", {}).get("info_kind", "")
    return {
        "ifindex": shown["ifindex"],
        "name": shown["ifname"],
        "kind": kind,
        "mac": shown.get("address", ""),
        "mtu": shown["mtu"],
        "tx_queue_length": shown["txqlen"],
        "master": indexes.get(shown.get("master", ""), 0),
        "lower": indexes.get(shown.get("link", ""), 0) if kind.startswith("macv") else 0,
        "up": "UP" in shown["flags"],
        "loopback": "LOOPBACK" in shown["flags"],
        "physical": "parentdev" in shown,
    }


def test_every_link_is_read_as_ip_shows_it(playground: Playground, host: LinuxHost) -> None:
    playground.batch(*ALL_KINDS)
    shown = playground.links()
    indexes = {name: link["ifindex"] for name, link in shown.items()}
    found = {link.name: link for link in look(host).links.values()}
    assert found.keys() == shown.keys()
    for name, link in found.items():
        wanted = expected(shown[name], indexes)
        assert {field: getattr(link, field) for field in wanted} == wanted


def test_carrier_follows_the_other_end(playground: Playground, host: LinuxHost) -> None:
    playground.batch("link add v0 type veth peer name v1", "link set v0 up")
    assert not named(host, "v0").carrier
    playground.run("ip link set v1 up")
    assert named(host, "v0").carrier


@pytest.mark.parametrize("flags", ["", "vnet_hdr", "multi_queue", "pi", "vnet_hdr multi_queue pi user 0 group 0"])
def test_a_tap_is_read_as_ip_shows_it(playground: Playground, host: LinuxHost, flags: str) -> None:
    playground.run(f"ip tuntap add t0 mode tap {flags}")
    shown = playground.links()["t0"]["linkinfo"]["info_data"]
    tun = named(host, "t0").tun
    assert tun is not None
    assert (tun.tap, tun.pi, tun.vnet_hdr, tun.persist, tun.multi_queue) == (
        shown["type"] == "tap",
        shown["pi"],
        shown["vnet_hdr"],
        shown["persist"],
        shown["multi_queue"],
    )
    assert (tun.owner is None, tun.group is None) == ("user" not in shown, "group" not in shown)
    assert tun.queues == (0 if "multi_queue" in flags else None)


def test_a_tun_is_no_tap(playground: Playground, host: LinuxHost) -> None:
    playground.run("ip tuntap add tun0 mode tun")
    assert not named(host, "tun0").is_tap


def test_a_name_that_is_no_utf8_survives_the_round_trip(playground: Playground, host: LinuxHost) -> None:
    name = b"br\xff\xfe".decode("utf-8", "surrogateescape")
    playground.run(f"ip link add {name} type bridge")
    host.apply(model.SetMtu(as_ref(named(host, name)), 1300))
    assert named(host, name).mtu == 1300


# --- the steady look ---------------------------------------------------------------------------------------


def test_nothing_changed_gives_the_very_same_state(playground: Playground, host: LinuxHost) -> None:
    playground.batch(*ALL_KINDS)
    first = look(host)
    for _ in range(3):
        assert look(host) is first


def test_only_the_link_that_changed_is_a_new_object(playground: Playground, host: LinuxHost) -> None:
    playground.batch(*ALL_KINDS)
    before = look(host)
    playground.run("ip link set t0 mtu 1234")
    after = look(host)
    changed = {after.links[index].name for index in after.links if after.links[index] is not before.links[index]}
    assert changed == {"t0"}
    assert after.features is before.features
    assert before.by_name("t0") != after.by_name("t0"), "the earlier look must stay as it was"


def test_a_link_added_in_front_leaves_the_objects_of_the_others(playground: Playground, host: LinuxHost) -> None:
    playground.batch(*(f"link add b{number} index {number + 100} type bridge" for number in range(60)))
    before = look(host)
    playground.run("ip link add early index 50 type bridge")
    after = look(host)
    assert after.by_name("early") is not None
    assert all(after.links[index] is link for index, link in before.links.items())
    assert all(after.features[index] is features for index, features in before.features.items())


def test_traffic_does_not_make_a_link_a_new_object(playground: Playground, host: LinuxHost) -> None:
    """Counters are in every message; a packet must not cost a parse, nor look like a change."""
    playground.batch("link add v0 type veth peer name v1", "link set v0 up", "link set v1 up")
    before = look(host)
    rx = playground.run("ip -s link show v1")
    playground.python(
        "import socket; s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind(('v0', 0x88b5))\n"
        "for _ in range(9): s.send(b'\\xff' * 6 + b'\\2' * 6 + b'\\x88\\xb5' + bytes(50))"
    )
    assert playground.run("ip -s link show v1") != rx, "no packet went through: the test proves nothing"
    after = look(host)
    assert after.by_name("v0") is before.by_name("v0")
    assert after.by_name("v1") is before.by_name("v1")


def test_links_that_stay_are_in_every_look_while_others_come_and_go(playground: Playground, host: LinuxHost) -> None:
    playground.batch(*(f"link add stay{number} type bridge" for number in range(40)))
    stay = set(look(host).links)
    churn = "\n".join(f"link add c{number} type bridge\nlink del c{number}" for number in range(300))
    child = playground.start("ip", "-force", "-batch", "-")
    assert child.stdin is not None
    child.stdin.write(churn + "\n")
    child.stdin.close()
    looks = 0
    while child.poll() is None:
        state = look_in_churn(host)
        looks += state is not None
        assert state is None or stay <= state.links.keys() == state.features.keys()
    child.stdin = None
    assert looks > 0
    assert set(look(host).links) == stay


def look_in_churn(host: LinuxHost) -> model.HostState | None:
    """A look, or None where the kernel says that the list changed in each attempt."""
    try:
        return look(host)
    except errors.Temporary:
        return None


# --- setters -----------------------------------------------------------------------------------------------


def test_mtu_and_queue_length_are_set(playground: Playground, host: LinuxHost) -> None:
    playground.run("ip tuntap add t0 mode tap")
    ref = as_ref(named(host, "t0"))
    for _ in range(2):
        host.apply(model.SetMtu(ref, 9000))
        host.apply(model.SetTxQueueLength(ref, 321))
    shown = playground.links()["t0"]
    assert (shown["mtu"], shown["txqlen"]) == (9000, 321)


def test_an_mtu_that_the_driver_cannot_do_is_refused_in_the_kernels_words(
    playground: Playground, host: LinuxHost
) -> None:
    playground.run("ip tuntap add t0 mode tap")
    with pytest.raises(errors.Refused, match="cannot set the mtu of t0 to 5: mtu less than device minimum"):
        host.apply(model.SetMtu(as_ref(named(host, "t0")), 5))


def test_a_number_too_big_for_the_kernel_is_refused(playground: Playground, host: LinuxHost) -> None:
    playground.run("ip tuntap add t0 mode tap")
    with pytest.raises(errors.Refused, match="does not fit"):
        host.apply(model.SetTxQueueLength(as_ref(named(host, "t0")), 1 << 32))


def test_a_link_is_enslaved_and_released(playground: Playground, host: LinuxHost) -> None:
    playground.batch("link add br0 type bridge", "tuntap add t0 mode tap")
    link, bridge = as_ref(named(host, "t0")), as_ref(named(host, "br0"))
    for _ in range(2):
        host.apply(model.SetMaster(link, bridge))
        assert playground.links()["t0"]["master"] == "br0"
    for _ in range(2):
        host.apply(model.SetMaster(link, None))
        assert "master" not in playground.links()["t0"]


def test_a_link_made_earlier_in_the_plan_is_found_by_name(playground: Playground, host: LinuxHost) -> None:
    playground.run("ip tuntap add t0 mode tap")
    host.apply(model.CreateBridge("br0"))
    host.apply(model.SetMaster(Ref("t0", 0), Ref("br0", 0)))
    assert playground.links()["t0"]["master"] == "br0"


def test_a_link_is_removed_and_removing_it_again_is_success(playground: Playground, host: LinuxHost) -> None:
    playground.run("ip link add br0 type bridge")
    ref = as_ref(named(host, "br0"))
    for _ in range(2):
        host.apply(model.DeleteLink(ref))
        assert "br0" not in playground.links()
    host.apply(model.DeleteLink(Ref("br0", 0)))


CHANGES = {
    "features": lambda ref: model.SetFeatures(ref, 1, 1),
    "mtu": lambda ref: model.SetMtu(ref, 1300),
    "queue": lambda ref: model.SetTxQueueLength(ref, 10),
    "options": lambda ref: model.SetBridgeOptions(ref, (("stp", True),)),
    "master": lambda ref: model.SetMaster(ref, None),
    "delete": model.DeleteLink,
    "rx frames": lambda ref: model.SetRxFrames(ref, 3),
    "rings": lambda ref: model.SetRings(ref, rx=256),
    "channels": lambda ref: model.SetChannels(ref, combined=1),
    "vnet_hdr": lambda ref: model.SetVnetHdr(ref, True),
    "owner": lambda ref: model.SetTapOwner(ref, owner=0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_link_renamed_since_the_look_is_gone_and_untouched(
    playground: Playground, host: LinuxHost, change: Any
) -> None:
    playground.run("ip link add br0 type bridge")
    ref = as_ref(named(host, "br0"))
    playground.run("ip link set br0 name br1")
    before = (playground.run("ip -d link show br1"), playground.ethtool("br1"))
    with pytest.raises(errors.Gone):
        host.apply(change(ref))
    assert (timeless(playground.run("ip -d link show br1")), playground.ethtool("br1")) == (
        timeless(before[0]),
        before[1],
    )


def timeless(shown: str) -> str:
    """Without the bridge's running timers."""
    words = shown.split()
    return " ".join(word for at, word in enumerate(words) if at == 0 or not words[at - 1].endswith("_timer"))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_an_index_that_another_link_has_now_is_gone_and_untouched(
    playground: Playground, host: LinuxHost, change: Any
) -> None:
    playground.run("ip link add br0 type bridge")
    ref = as_ref(named(host, "br0"))
    playground.batch("link del br0", f"link add other index {ref.ifindex} type bridge")
    before = timeless(playground.run("ip -d link show other"))
    with pytest.raises(errors.Gone):
        host.apply(change(ref))
    assert timeless(playground.run("ip -d link show other")) == before


@pytest.mark.parametrize("change", [CHANGES[key] for key in CHANGES if key != "delete"])
def test_a_link_that_is_no_longer_there_is_gone(playground: Playground, host: LinuxHost, change: Any) -> None:
    playground.run("ip link add br0 type bridge")
    ref = as_ref(named(host, "br0"))
    playground.run("ip link del br0")
    with pytest.raises(errors.Gone):
        host.apply(change(ref))
