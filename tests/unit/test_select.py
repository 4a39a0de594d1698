"""Which nodes and which links each section of a policy selects, as tables of hosts and policies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.unit.hosts import BR0, bridge, host, loopback, named, nic, soft, tap, tun, with_link
from virtnet.core import select
from virtnet.core.model import (
    BridgeSpec,
    HostState,
    Match,
    NodeSelector,
    Policy,
    Reason,
    Requirement,
    TapSpec,
    UplinkSpec,
)
from virtnet.core.select import Selection, Topology

LABELS = {"zone": "a", "gpu": ""}


def expressions(*requirements: Requirement) -> NodeSelector:
    return NodeSelector(expressions=requirements)


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        pytest.param(NodeSelector(), True, id="no selector selects every node"),
        pytest.param(NodeSelector((("zone", "a"),)), True, id="a label that is equal selects"),
        pytest.param(NodeSelector((("zone", "b"),)), False, id="a label with another value does not"),
        pytest.param(NodeSelector((("rack", "1"),)), False, id="a label that the node lacks does not"),
        pytest.param(NodeSelector((("zone", "a"), ("rack", "1"))), False, id="all labels must hold"),
        pytest.param(expressions(Requirement("zone", "In", ("a", "b"))), True, id="In holds for a listed value"),
        pytest.param(expressions(Requirement("rack", "In", ("a",))), False, id="In fails for a missing label"),
        pytest.param(expressions(Requirement("zone", "NotIn", ("a",))), False, id="NotIn fails for a listed value"),
        pytest.param(expressions(Requirement("rack", "NotIn", ("a",))), True, id="NotIn holds for a missing label"),
        pytest.param(expressions(Requirement("gpu", "Exists")), True, id="Exists holds for an empty value"),
        pytest.param(expressions(Requirement("rack", "Exists")), False, id="Exists fails for a missing label"),
        pytest.param(expressions(Requirement("rack", "DoesNotExist")), True, id="DoesNotExist holds without the label"),
        pytest.param(
            expressions(Requirement("gpu", "DoesNotExist")), False, id="DoesNotExist fails for an empty value"
        ),
        pytest.param(
            NodeSelector((("zone", "a"),), (Requirement("gpu", "DoesNotExist"),)),
            False,
            id="labels and expressions must both hold",
        ),
    ],
)
def test_a_node_selector(selector: NodeSelector, selected: bool) -> None:
    assert select.selects_node(selector, LABELS) is selected


# --- a host with everything --------------------------------------------------------------------------------

HOST = host(
    loopback(),
    bridge("br0"),
    bridge("br1"),
    nic("eth0", on="br0"),
    nic("eth1", on="bond0"),
    nic("eth2", on="bond0", driver="e1000e"),
    soft("bond0", "bond", on="br0"),
    nic("eth3"),
    soft("eth3.7", "vlan", on="br0", over="eth3"),
    soft("veth0", "veth", on="br0"),
    soft("mvtap0", "macvtap", over="eth0"),
    tap("tap0", on="br0"),
    tap("tap1", on="br1"),
    tap("tap2"),
    tun("tun0"),
    nic("eth4", driver="virtio_net"),
    nic("eth5", on="br1"),
)


def topology(state: HostState) -> Topology:
    return Topology.of(state.links, state.drivers)


def names(selection: Selection) -> list[str]:
    return sorted(link.name for link in selection.links)


def uplink(match: Match | None = None, spec: BridgeSpec | None = BR0) -> Policy:
    return Policy("p", bridge=spec, uplink=UplinkSpec(match))


UPLINKS_OF_BR0 = ["bond0", "eth0", "eth1", "eth2", "eth3", "eth3.7"]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        pytest.param(
            uplink(),
            UPLINKS_OF_BR0,
            id="without a match: the bridge's hardware, bonds and vlans, a bond's slaves and a vlan's real device",
        ),
        pytest.param(uplink(Match(bridge="br1")), ["eth5"], id="match.bridge is used in place of bridge.name"),
        pytest.param(uplink(Match(bridge="br1"), None), ["eth5"], id="match.bridge needs no bridge.name"),
        pytest.param(uplink(Match(names=("eth0",))), ["eth0"], id="an exact name"),
        pytest.param(
            uplink(Match(names=("eth?",))),
            ["eth0", "eth1", "eth2", "eth3", "eth4", "eth5"],
            id="a glob selects on every bridge and on none, whatever bridge.name says",
        ),
        pytest.param(uplink(Match(names=("veth0", "mvtap0"))), ["mvtap0", "veth0"], id="a veth or macvtap when named"),
        pytest.param(uplink(Match(names=("ETH0*",))), [], id="names are case-sensitive"),
        pytest.param(
            uplink(Match(names=("*",))),
            [*UPLINKS_OF_BR0, "eth4", "eth5", "mvtap0", "veth0"],
            id="a name glob never selects taps, tuns, bridges or the loopback",
        ),
        pytest.param(uplink(Match(drivers=("e1000e",))), ["eth2"], id="a driver alone selects on the whole node"),
        pytest.param(
            uplink(Match(drivers=("e1000e", "virtio_net"))), ["eth2", "eth4"], id="any of the drivers is enough"
        ),
        pytest.param(
            uplink(Match(names=("eth2", "eth4"), drivers=("e1000e",))), ["eth2"], id="names and drivers must both hold"
        ),
        pytest.param(uplink(Match(drivers=("virtio_net",), bridge="br0")), [], id="drivers and bridge must both hold"),
        pytest.param(
            uplink(Match(names=("veth0", "eth5"), bridge="br0")), ["veth0"], id="a veth on the bridge when named"
        ),
        pytest.param(
            uplink(Match(names=("eth1",), bridge="br0")), ["eth1"], id="a name below the bridge's bond is on the bridge"
        ),
        pytest.param(uplink(Match(bridge="nobr")), [], id="a bridge that is not there has no uplinks"),
    ],
)
def test_uplinks(policy: Policy, expected: list[str]) -> None:
    assert names(select.uplinks(policy, topology(HOST))) == sorted(expected)


def test_uplinks_come_uppermost_first_and_each_once() -> None:
    shared = host(
        bridge("br0"),
        nic("eth0"),
        soft("eth0.1", "vlan", on="br0", over="eth0"),
        soft("eth0.2", "vlan", on="br0", over="eth0"),
    )
    found = [link.name for link in select.uplinks(uplink(), topology(shared)).links]
    assert found == ["eth0.1", "eth0.2", "eth0"]


def test_a_vlan_on_a_bond_leads_to_the_bonds_slaves() -> None:
    state = host(
        bridge("br0"),
        soft("bond0.7", "vlan", on="br0", over="bond0"),
        soft("bond0", "team"),
        nic("eth0", on="bond0"),
        nic("eth1", on="bond0"),
    )
    assert names(select.uplinks(uplink(), topology(state))) == ["bond0", "bond0.7", "eth0", "eth1"]


def test_a_vlan_whose_real_device_is_in_another_namespace_is_the_last_hop() -> None:
    state = host(bridge("br0"), soft("eth0.7", "vlan", on="br0", over="elsewhere"))
    assert names(select.uplinks(uplink(), topology(state))) == ["eth0.7"]


@pytest.mark.parametrize(
    ("name", "reason", "message"),
    [
        pytest.param("eth9", Reason.MISSING, "no link is named eth9", id="a name that is not there is Missing"),
        pytest.param("tap0", Reason.UNSUPPORTED, "write it under tap", id="a tap belongs under tap"),
        pytest.param("br1", Reason.UNSUPPORTED, "write it under bridge", id="a bridge belongs under bridge"),
        pytest.param("lo", Reason.UNSUPPORTED, "lo is a loopback link", id="the loopback is never an uplink"),
    ],
)
def test_an_exact_uplink_name_that_selects_nothing_is_said(name: str, reason: Reason, message: str) -> None:
    found = select.uplinks(uplink(Match(names=("eth0", name))), topology(HOST))
    assert names(found) == ["eth0"]
    assert [(row.subject, row.setting, row.reason) for row in found.rows] == [
        (f"link/{name}", "uplink.match.names", reason)
    ]
    assert message in found.rows[0].message


@pytest.mark.parametrize("pattern", ["eth9*", "eth?9", "eth[89]"])
def test_a_glob_that_selects_nothing_is_not_missing(pattern: str) -> None:
    assert select.uplinks(uplink(Match(names=(pattern,))), topology(HOST)) == Selection()


# --- taps --------------------------------------------------------------------------------------------------


def taps(match: Match | None = None, spec: BridgeSpec | None = BR0) -> Policy:
    return Policy("p", bridge=spec, tap=TapSpec(match))


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        pytest.param(taps(), ["tap0"], id="without a match: the taps on the bridge"),
        pytest.param(taps(Match(names=("tap*",))), ["tap0", "tap1", "tap2"], id="a glob selects on every bridge"),
        pytest.param(taps(Match(bridge="br1")), ["tap1"], id="match.bridge in place of bridge.name"),
        pytest.param(taps(Match(names=("tap1",), bridge="br0")), [], id="names and bridge must both hold"),
        pytest.param(taps(Match(names=("*",))), ["tap0", "tap1", "tap2"], id="only taps are taps, and no tun is one"),
        pytest.param(taps(Match(names=("tap2",)), None), ["tap2"], id="a match needs no bridge.name"),
    ],
)
def test_taps(policy: Policy, expected: list[str]) -> None:
    found = select.taps(policy, topology(HOST))
    assert names(found) == expected
    assert found.rows == ()


@pytest.mark.parametrize(
    ("section", "chosen"),
    [("uplink", select.uplinks), ("tap", select.taps)],
    ids=["an uplink section", "a tap section"],
)
def test_without_a_match_and_a_bridge_a_section_selects_nothing_and_says_so(
    section: str, chosen: Callable[[Policy, Topology], Selection]
) -> None:
    policy = Policy("p", uplink=UplinkSpec(), tap=TapSpec())
    found = chosen(policy, topology(HOST))
    assert found.links == ()
    assert [(row.subject, row.setting, row.reason) for row in found.rows] == [
        ("policy/p", f"{section}.match", Reason.MISSING)
    ]
    assert "no match and no bridge.name" in found.rows[0].message


@pytest.mark.parametrize("chosen", [select.uplinks, select.taps, select.bridge], ids=["uplink", "tap", "bridge"])
def test_a_section_that_is_not_there_selects_nothing_and_says_nothing(
    chosen: Callable[[Policy, Topology], Selection],
) -> None:
    assert chosen(Policy("p"), topology(HOST)) == Selection()


# --- the bridge --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bridge:
    spec: BridgeSpec
    links: tuple[str, ...] = ()
    reason: Reason | None = None
    message: str = ""


BRIDGES = host(bridge("br0"), bridge("k6t-eth0"), nic("eth0"), bridge("ovs0"))


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Bridge(BridgeSpec("br0"), ("br0",)), id="a bridge that is there"),
        pytest.param(
            Bridge(BridgeSpec("br9"), (), Reason.MISSING, "set bridge.create: true"), id="an absent one is Missing"
        ),
        pytest.param(Bridge(BridgeSpec("br9", create=True)), id="an absent one that is to be made is nothing yet"),
        pytest.param(
            Bridge(BridgeSpec("ovs0"), (), Reason.UNSUPPORTED, "Open vSwitch"), id="Open vSwitch is Unsupported"
        ),
        pytest.param(
            Bridge(BridgeSpec("eth0"), (), Reason.FOREIGN, "not a bridge (hardware link)"), id="a link of another kind"
        ),
        pytest.param(
            Bridge(BridgeSpec("eth0", create=True), (), Reason.FOREIGN, "choose another"), id="even with create: true"
        ),
        pytest.param(
            Bridge(BridgeSpec("k6t-eth0"), (), Reason.FOREIGN, "KubeVirt"), id="KubeVirt's bridges are left alone"
        ),
        pytest.param(
            Bridge(BridgeSpec("k6t-new", create=True), (), Reason.FOREIGN, "KubeVirt"), id="and never made by us"
        ),
    ],
)
def test_the_bridge(case: Bridge) -> None:
    found = select.bridge(
        Policy("p", bridge=case.spec), topology(with_link(BRIDGES, "ovs0", kind="openvswitch", bridge=None))
    )
    assert tuple(names(found)) == case.links
    assert [row.reason for row in found.rows] == ([case.reason] if case.reason else [])
    assert all(case.message in row.message and row.setting == "bridge.name" for row in found.rows)


# --- guests ------------------------------------------------------------------------------------------------

GUESTS = host(
    bridge("br0"),
    nic("eth0", on="bond0"),
    nic("eth1", on="bond0"),
    soft("bond0", "bond"),
    soft("bond0.7", "vlan", on="br0", over="bond0"),
    tap("tap0", on="br0", held=True),
    tap("tap1", on="br0"),
    nic("eth2"),
    soft("mvtap0", "macvtap", over="eth2"),
    nic("eth3", on="br1"),
    bridge("br1"),
    tap("tap2", on="br1", held=True),
    nic("eth4"),
)


@pytest.mark.parametrize(
    ("name", "guests"),
    [
        pytest.param("eth0", ["tap0"], id="a slave of a bond under a vlan on the bridge carries the held taps"),
        pytest.param("bond0.7", ["tap0"], id="so does the vlan itself"),
        pytest.param("eth2", ["mvtap0"], id="a macvtap that is up carries its guest"),
        pytest.param("eth3", ["tap2"], id="each bridge has its own guests"),
        pytest.param("eth4", [], id="a link that nothing stands on carries none"),
    ],
)
def test_the_guests_on_an_uplink(name: str, guests: list[str]) -> None:
    assert [link.name for link in topology(GUESTS).guests_on(named(GUESTS, name))] == guests
