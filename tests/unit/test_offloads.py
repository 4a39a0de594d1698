"""What a feature name means on a link: what is set, what is said, and what the fast loop may repair."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from tests.flow import rules
from tests.unit import hosts
from tests.unit.hosts import BR0, NAMES, Part, asks, bridge, desired_of, host, named, nic, said, soft, tap, todo
from virtnet.core import features as feature_names
from virtnet.core import offloads
from virtnet.core.model import BridgeSpec, HostState, Match, Policy, Reason, SetFeatures, Unreadable, UplinkSpec
from virtnet.core.plan import Plan

MLX = nic("eth0", on="br0")


def policy(name: str = "p", priority: int = 0, /, **wanted: bool) -> Policy:
    return Policy(name, bridge=BR0, uplink=UplinkSpec(offloads=asks(**wanted)), priority=priority)


def plan(part: Part, *policies: Policy) -> Plan:
    return hosts.plan_of(host(bridge("br0"), part), *policies)


# --- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wanted", "members"),
    [
        pytest.param("sg", True, "tx-scatter-gather tx-scatter-gather-fraglist", id="a short name means its members"),
        pytest.param(
            "tso",
            True,
            "tx-tcp-segmentation tx-tcp-ecn-segmentation tx-tcp6-segmentation",
            id="tso: true asks neither for mangleid nor for accecn",
        ),
        pytest.param(
            "tso",
            False,
            "tx-tcp-segmentation tx-tcp-ecn-segmentation tx-tcp-mangleid-segmentation tx-tcp6-segmentation "
            "tx-tcp-accecn-segmentation",
            id="tso: false asks for all of them",
        ),
        pytest.param("rx-gro", True, "rx-gro", id="a kernel name means itself"),
        pytest.param("tx-tcp-mangleid-segmentation", True, "tx-tcp-mangleid-segmentation", id="mangleid by its name"),
        pytest.param("ufo", True, None, id="a short name whose members this kernel has lost is none"),
        pytest.param("tx-no-such-thing", True, None, id="an unknown name is none"),
    ],
)
def test_what_a_name_means(name: str, wanted: bool, members: str | None) -> None:
    mask = feature_names.members(name, wanted, NAMES)
    assert (None if mask is None else set(feature_names.names_of(mask, NAMES))) == (
        None if members is None else set(members.split())
    )


# --- one policy on one link --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    part: Part
    wanted: dict[str, bool]
    todo: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    message: str = ""


R8169 = nic("eth0", on="br0", driver="r8169")
VIRTIO = nic("eth0", on="br0", driver="virtio_net")

CASES = {
    "what is as asked needs nothing": Case(MLX, {"tso": True, "gro": True, "lro": False}),
    "a short name turns its changeable members off": Case(
        MLX, {"tso": False}, ["eth0 -tx-tcp-segmentation", "eth0 -tx-tcp6-segmentation"]
    ),
    "only the members that differ are set": Case(
        nic("eth0", on="br0", set_off="tx-tcp-segmentation"), {"tso": False}, ["eth0 -tx-tcp6-segmentation"]
    ),
    "names of one link go in one message": Case(
        MLX, {"gro": False, "gso": False}, ["eth0 -rx-gro", "eth0 -tx-generic-segmentation"]
    ),
    "a kernel name beats a short name in one policy": Case(
        MLX, {"tso": False, "tx_tcp6_segmentation": True}, ["eth0 -tx-tcp-segmentation"]
    ),
    "even when it is written first": Case(
        MLX, {"tx_tcp6_segmentation": True, "tso": False}, ["eth0 -tx-tcp-segmentation"]
    ),
    "fixed members of a short name are ignored": Case(
        nic("eth0", on="br0", fixed="tx-tcp6-segmentation"), {"tso": False}, ["eth0 -tx-tcp-segmentation"]
    ),
    "a name without a changeable member is Fixed": Case(
        R8169,
        {"tx_udp_segmentation": True},
        [],
        ["eth0 uplink.offloads.tx-udp-segmentation Fixed"],
        "tx-udp-segmentation is fixed off on eth0: its driver lacks it",
    ),
    "fixed on is said to a policy that wants it off": Case(
        VIRTIO, {"rx": False}, [], ["eth0 uplink.offloads.rx Fixed"], "rx is fixed on on eth0"
    ),
    "fixed with the wanted value is as asked": Case(VIRTIO, {"rx": True}),
    "false is satisfied by a fixed off": Case(R8169, {"tx_udp_segmentation": False, "lro": False}),
    "false is satisfied by a name this kernel lacks": Case(MLX, {"ufo": False, "tx_no_such_thing": False}),
    "true for a name this kernel lacks is Unsupported": Case(
        MLX, {"ufo": True}, [], ["eth0 uplink.offloads.ufo Unsupported"], "this kernel has no feature ufo"
    ),
    "a mistyped name is told the nearest": Case(
        MLX,
        {"tx_tcp_segmentatoin": True},
        [],
        ["eth0 uplink.offloads.tx-tcp-segmentatoin Unsupported"],
        "did you mean tx-tcp-segmentation?",
    ),
    "a bad name does not stop the others": Case(
        MLX, {"ufo": True, "gro": False}, ["eth0 -rx-gro"], ["eth0 uplink.offloads.ufo Unsupported"]
    ),
    "wanted but dragged off by a prerequisite is NeedsFeature": Case(
        nic("eth0", on="br0", set_off="tx-scatter-gather", stuck_off="tx-generic-segmentation"),
        {"gso": True},
        [],
        ["eth0 uplink.offloads.gso NeedsFeature"],
        "tx-generic-segmentation needs tx-scatter-gather, which is off on eth0",
    ),
    "not when this very plan turns the prerequisite on": Case(
        nic("eth0", on="br0", set_off="tx-scatter-gather", stuck_off="tx-generic-segmentation"),
        {"gso": True, "tx_scatter_gather": True},
        ["eth0 +tx-scatter-gather"],
    ),
    "wanted and not effective without a reason is Refused": Case(
        nic("eth0", on="br0", stuck_off="rx-gro"),
        {"gro": True},
        [],
        ["eth0 uplink.offloads.gro Refused"],
        "the driver of eth0 keeps rx-gro off although it was asked otherwise",
    ),
    "kept on although asked off is Refused": Case(
        nic("eth0", on="br0", stuck_on="rx-gro"), {"gro": False}, [], ["eth0 uplink.offloads.gro Refused"]
    ),
    "features that cannot be read are Unreadable": Case(
        replace(MLX, features=Unreadable("no permission")),
        {"gro": False},
        [],
        ["eth0 uplink.offloads.gro Unreadable"],
        "the features of eth0 cannot be read: no permission",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_offloads_of_one_policy(case: Case) -> None:
    found = plan(case.part, policy(**case.wanted))
    assert sorted(todo(found)) == sorted(case.todo)
    assert said(found.blocked) == case.said
    assert not case.message or case.message in found.blocked[0].message


def test_a_name_is_one_row_with_its_members_in_the_message() -> None:
    (row,) = plan(MLX, policy(tso=False)).pending
    assert (row.subject, row.setting, row.wanted, row.actual, row.reason, row.policy) == (
        "link/eth0",
        "uplink.offloads.tso",
        False,
        True,
        None,
        "p",
    )
    assert row.message == "turn tx-tcp-segmentation, tx-tcp6-segmentation off"


def test_what_is_present_of_true_is_whether_all_members_are_on() -> None:
    (row,) = plan(nic("eth0", on="br0", set_off="tx-tcp-segmentation"), policy(tso=True)).pending
    assert row.actual is False


# --- hardware that may reset its link ----------------------------------------------------------------------


def test_features_that_may_reset_hardware_go_apart_and_are_risky() -> None:
    found = plan(MLX, policy(gro=False, lro=True, rxvlan=False))
    plain, risky = found.steps
    assert not plain.risky
    assert risky.risky
    assert risky.wait_carrier
    assert [todo_of.split()[1] for todo_of in todo(found)] == ["-rx-gro", "+rx-lro", "-rx-vlan-hw-parse"]
    assert len(risky.settings) == 2


def test_they_go_apart_for_each_policy() -> None:
    found = plan(MLX, policy("a", gro=False, lro=True), policy("b", gso=False, rxvlan=False))
    assert [(step.policy, step.risky, len(step.settings)) for step in found.steps] == [
        ("a", False, 2),
        ("a", True, 1),
        ("b", True, 1),
    ]
    assert all(isinstance(step.change, SetFeatures) for step in found.steps)


def test_a_link_without_carrier_is_not_waited_for() -> None:
    part = replace(MLX, link=replace(MLX.link, carrier=False))
    (step,) = plan(part, policy(lro=True)).steps
    assert (step.risky, step.wait_carrier) == (True, False)


def test_the_same_features_of_a_software_link_are_set_in_one_plain_message() -> None:
    (step,) = plan(soft("bond0", "bond", on="br0"), policy(lro=False, gro=False)).steps
    assert not step.risky
    assert len(step.settings) == 2


# --- the fast loop -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "wanted", "mask"),
    [
        pytest.param(MLX, {"gro": True, "lro": False}, "rx-gro", id="on hardware not what may reset the link"),
        pytest.param(
            soft("bond0", "bond", on="br0"), {"gro": True, "lro": False}, "rx-gro rx-lro", id="all of a software link"
        ),
        pytest.param(R8169, {"tx_udp_segmentation": True}, "", id="nothing that is fixed"),
    ],
)
def test_what_the_fast_loop_may_repair(part: Part, wanted: dict[str, bool], mask: str) -> None:
    found = plan(part, policy(**wanted))
    value = "rx-gro" if "gro" in wanted else ""
    assert found.reflexes == {2: (rules.mask(mask), rules.mask(value))}


# --- merging -----------------------------------------------------------------------------------------------


def test_each_kernel_feature_is_resolved_on_its_own() -> None:
    found = plan(MLX, policy("high", 9, tx_tcp_segmentation=True), policy("low", tso=False))
    assert todo(found) == ["eth0 -tx-tcp6-segmentation"]
    assert said(found.blocked) == ["eth0 uplink.offloads.tso OverriddenBy"]
    assert found.blocked[0].policy == "low"
    assert found.blocked[0].message == "tx-tcp-segmentation: policy high wants it on"


def test_the_same_value_is_no_conflict() -> None:
    found = plan(MLX, policy("high", 9, gro=False), policy("low", gro=False))
    assert todo(found) == ["eth0 -rx-gro"]
    assert [row.policy for row in found.pending] == ["high"]
    assert found.blocked == ()


def test_losing_only_members_that_cannot_be_changed_is_no_conflict() -> None:
    found = plan(MLX, policy("high", 9, tx_scatter_gather_fraglist=True), policy("low", sg=False))
    assert todo(found) == ["eth0 -tx-scatter-gather"]
    assert said(found.blocked) == ["eth0 uplink.offloads.tx-scatter-gather-fraglist Fixed"]


MERGED = {
    "what needs what a winner turns off": ({"sg": False}, {"gso": True}, "gso", "cannot be on while sg is off"),
    "at second hand, too": (
        {"tx_tcp_segmentation": False},
        {"tx_tcp_mangleid_segmentation": True},
        "tx-tcp-mangleid-segmentation",
        "tx-tcp-mangleid-segmentation cannot be on while tx-tcp-segmentation is off",
    ),
    "what a winner needs on": (
        {"gso": True},
        {"tx_scatter_gather": False},
        "tx-scatter-gather",
        "tx-generic-segmentation needs tx-scatter-gather",
    ),
}


@pytest.mark.parametrize(("winning", "losing", "name", "because"), MERGED.values(), ids=MERGED)
def test_a_contradiction_by_merging_is_told_to_the_loser(
    winning: dict[str, bool], losing: dict[str, bool], name: str, because: str
) -> None:
    found = plan(soft("bond0", "bond", on="br0"), policy("high", 9, **winning), policy("low", **losing))
    rows = [row for row in found.blocked if row.reason is Reason.OVERRIDDEN_BY]
    assert [(row.policy, row.setting) for row in rows] == [("low", f"uplink.offloads.{name}")]
    assert because in rows[0].message
    assert rows[0].message.endswith("as policy high wants")
    assert {step.policy for step in found.steps} <= {"high"}


def test_a_contradiction_within_one_policy_is_not_resolved_by_taking_sides() -> None:
    found = plan(soft("bond0", "bond", on="br0"), policy(sg=False, gso=True))
    assert not [row for row in found.blocked if row.reason is Reason.OVERRIDDEN_BY]
    assert "bond0 -tx-scatter-gather" in todo(found)


# --- links alike share their work --------------------------------------------------------------------------


def test_links_that_are_wanted_alike_share_one_table() -> None:
    state = host(bridge("br0"), nic("eth0", on="br0"), nic("eth1", on="br0"))
    desired = desired_of(state, policy(gro=False))
    wants = [desired.links[named(state, name).ifindex] for name in ("eth0", "eth1")]
    assert wants[0] is wants[1]
    assert wants[0].features is not None


def test_the_table_means_something_else_for_another_driver() -> None:
    state = host(bridge("br0"), MLX, nic("eth1", on="br0", driver="r8169"))
    found = hosts.plan_of(state, policy(lro=True))
    assert todo(found) == ["eth0 +rx-lro"]
    assert said(found.blocked) == ["eth1 uplink.offloads.lro Fixed"]


def test_each_section_has_its_own_offloads() -> None:
    state: HostState = host(bridge("br0"), MLX, tap("tap0", on="br0"))
    both = Policy(
        "p",
        bridge=BridgeSpec("br0", offloads=asks(gro=False)),
        uplink=UplinkSpec(Match(names=("eth0",)), asks(gso=False)),
    )
    assert todo(hosts.plan_of(state, both)) == ["br0 -rx-gro", "eth0 -tx-generic-segmentation"]


def test_the_quick_answer_agrees_with_the_long_one() -> None:
    state = host(bridge("br0"), MLX)
    for wanted in ({"gro": True}, {"gro": False}, {"ufo": True}, {"tx_tcp_ecn_segmentation": True}):
        desired = desired_of(state, policy(**wanted))
        link = named(state, "eth0")
        table, features = desired.links[link.ifindex].features, state.features[link.ifindex]
        assert table is not None
        assert not isinstance(features, Unreadable)
        quick = offloads.is_as_asked(offloads.enforced(table, features), features)
        assert quick is (offloads.diff(link, table, features) == offloads.NOTHING)
