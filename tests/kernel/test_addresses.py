"""A link that carries an address, or a route somewhere, is told with it; what goes with an address is not counted."""

from __future__ import annotations

import pytest

from tests.kernel.playground import Playground
from tests.kernel.test_links import named
from virtnet.core.model import Interest
from virtnet.host import LinuxHost


@pytest.mark.parametrize(
    ("commands", "carried"),
    [
        ([], None),
        (["addr add 192.0.2.1/24 dev v0"], "address 192.0.2.1/24"),
        (["addr add 169.254.3.4/16 dev v0"], "address 169.254.3.4/16"),
        (["addr add 192.0.2.1 peer 192.0.2.9/32 dev v0"], "address 192.0.2.1/32"),
        (["addr add 2001:db8::1/64 dev v0"], "address 2001:db8::1/64"),
        (["addr add fe80::77/64 dev v0"], None),
        (["addr add fc00::1/7 dev v0"], "address fc00::1/7"),
        (["route add 198.51.100.0/24 dev v0"], "route 198.51.100.0/24"),
        (["route add default dev v0"], "route default"),
        (["-6 route add 2001:db8:1::/48 dev v0"], "route 2001:db8:1::/48"),
        (["-6 route add default via fe80::1 dev v0"], "route default via fe80::1"),
        (["route add 198.51.100.0/24 dev v0 table 77"], "route 198.51.100.0/24"),
        (["route add 239.1.0.0/16 dev v0"], None),
        (["-6 route add ff05::/16 dev v0"], None),
        (
            ["route add 10.0.0.0/8 nexthop dev v0 nexthop dev v1"],
            "route 10.0.0.0/8",
        ),
        (["nexthop add id 7 dev v0", "route add 10.0.0.0/8 nhid 7"], "route 10.0.0.0/8"),
        (["nexthop add id 7 dev v1", "nexthop add id 8 dev v0", "nexthop add id 9 group 7/8"], "next hop 8"),
    ],
)
def test_what_a_link_carries_is_said(
    playground: Playground, host: LinuxHost, commands: list[str], carried: str | None
) -> None:
    playground.batch("link add v0 type veth peer name v1", "link set v0 up", "link set v1 up")
    for command in commands:
        playground.run(f"ip {command}")
    state = host.observe(Interest(addresses=True))
    assert state.carries.get(named(host, "v0").ifindex) == carried


def test_a_gateway_is_told_where_the_address_is_on_another_link(playground: Playground, host: LinuxHost) -> None:
    playground.batch(
        "link add v0 type veth peer name v1",
        "link set v0 up",
        "link set v1 up",
        "addr add 192.0.2.1/24 dev lo",
        "route add 10.0.0.0/8 via 192.0.2.254 dev v0 onlink",
    )
    state = host.observe(Interest(addresses=True))
    assert state.carries[named(host, "v0").ifindex] == "route 10.0.0.0/8 via 192.0.2.254"


def test_a_route_that_names_its_next_hop_only_by_number_is_told(playground: Playground, host: LinuxHost) -> None:
    """With net.ipv4.nexthop_compat_mode=0 the kernel does not say by which link a route leaves."""
    playground.batch("link add v0 type veth peer name v1", "link set v0 up", "link set v1 up")
    if playground.netns:
        playground.run("sysctl -qw net.ipv4.nexthop_compat_mode=0")
    playground.batch("nexthop add id 7 dev v0", "route add 10.0.0.0/8 nhid 7")
    assert named(host, "v0").ifindex in host.observe(Interest(addresses=True)).carries


def test_nothing_is_read_of_addresses_unless_it_is_asked(playground: Playground, host: LinuxHost) -> None:
    playground.batch("link add v0 type veth peer name v1", "addr add 192.0.2.1/24 dev v0")
    assert not host.observe(Interest()).carries
