"""Bridges are made and tuned as `ip -d link` then shows; what the kernel refuses is told in its words."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kernel.playground import Playground
from tests.kernel.test_links import as_ref, named
from virtnet import errors
from virtnet.core import model
from virtnet.host import LinuxHost


def shown(playground: Playground, name: str = "br0") -> dict[str, Any]:
    return dict(playground.links()[name]["linkinfo"]["info_data"])


def test_a_bridge_is_made_up_and_making_it_again_is_success(playground: Playground, host: LinuxHost) -> None:
    for _ in range(2):
        host.apply(model.CreateBridge("br0"))
    link = playground.links()["br0"]
    assert link["linkinfo"]["info_kind"] == "bridge"
    assert "UP" in link["flags"]


def test_a_bridge_that_somebody_set_down_is_left_down(playground: Playground, host: LinuxHost) -> None:
    playground.run("ip link add br0 type bridge")
    host.apply(model.CreateBridge("br0"))
    assert "UP" not in playground.links()["br0"]["flags"]


def test_a_name_that_another_kind_of_link_has_is_refused(playground: Playground, host: LinuxHost) -> None:
    playground.run("ip tuntap add br0 mode tap")
    with pytest.raises(errors.Refused, match="exists and is no bridge"):
        host.apply(model.CreateBridge("br0"))


def test_a_name_that_no_link_can_have_is_refused(host: LinuxHost) -> None:
    with pytest.raises(errors.HostError, match="cannot make bridge"):
        host.apply(model.CreateBridge("a/b"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"stp": True}, {"stp_state": 1}),
        ({"forwardDelaySeconds": 7}, {"forward_delay": 700}),
        ({"ageingTimeSeconds": 33}, {"ageing_time": 3300}),
        ({"ageingTimeSeconds": 1000000}, {"ageing_time": 100000000}),
        ({"multicastSnooping": False}, {"mcast_snooping": 0}),
        ({"groupForwardMask": 0xFFF8}, {"group_fwd_mask": "0xfff8"}),
        ({"stp": True, "forwardDelaySeconds": 2}, {"stp_state": 1, "forward_delay": 200}),
        ({"forwardDelaySeconds": 0, "stp": False}, {"stp_state": 0, "forward_delay": 0}),
    ],
)
@pytest.mark.parametrize("before", [0, 1], ids=["stp was off", "stp was on"])
def test_options_are_set_whatever_the_order_and_the_state_before(
    playground: Playground, host: LinuxHost, options: dict[str, int], expected: dict[str, object], before: int
) -> None:
    playground.run(f"ip link add br0 type bridge stp_state {before}")
    for _ in range(2):
        host.apply(model.SetBridgeOptions(as_ref(named(host, "br0")), tuple(options.items())))
        found = shown(playground)
        assert {key: found[key] for key in expected} == expected


def test_what_we_read_is_what_ip_shows(playground: Playground, host: LinuxHost) -> None:
    playground.run(
        "ip link add br0 type bridge stp_state 1 forward_delay 900 ageing_time 1234 mcast_snooping 0 group_fwd_mask 16"
    )
    assert named(host, "br0").bridge == model.BridgeOptions(
        stp=True,
        forward_delay=900,
        ageing_time=1234,
        multicast_snooping=False,
        vlan_filtering=False,
        group_forward_mask=16,
    )


def test_one_refused_option_does_not_keep_the_others_from_being_set(playground: Playground, host: LinuxHost) -> None:
    playground.run("ip link add br0 type bridge")
    options = (("groupForwardMask", 1), ("ageingTimeSeconds", 9), ("stp", True))
    with pytest.raises(errors.Refused, match="cannot set groupForwardMask of bridge br0 to 1"):
        host.apply(model.SetBridgeOptions(as_ref(named(host, "br0")), options))
    found = shown(playground)
    assert (found["ageing_time"], found["stp_state"], found["group_fwd_mask"]) == (900, 1, "0")


def test_a_forward_delay_too_short_for_stp_is_refused(playground: Playground, host: LinuxHost) -> None:
    playground.run("ip link add br0 type bridge stp_state 1")
    with pytest.raises(errors.Refused, match="forwardDelaySeconds"):
        host.apply(model.SetBridgeOptions(as_ref(named(host, "br0")), (("forwardDelaySeconds", 1),)))


def test_a_removed_bridge_releases_its_ports(playground: Playground, host: LinuxHost) -> None:
    playground.batch("link add br0 type bridge", "tuntap add t0 mode tap", "link set t0 master br0")
    host.apply(model.DeleteLink(as_ref(named(host, "br0"))))
    assert "master" not in playground.links()["t0"]
