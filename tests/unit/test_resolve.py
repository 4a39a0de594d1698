"""Who owns a setting where policies meet, who lost to whom, and what an Audit policy would own."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest

from tests.unit.hosts import (
    BR0,
    NODE,
    asks,
    bridge,
    desired_of,
    host,
    named,
    nic,
    plan_of,
    said,
    soft,
    tap,
    todo,
    with_link,
)
from virtnet.core import resolve
from virtnet.core.model import (
    BridgeSpec,
    Interest,
    Match,
    Mode,
    ModuleWish,
    NodeSelector,
    Policy,
    Reason,
    Safety,
    TapSpec,
    TapToCreate,
    Unenforced,
    UplinkSpec,
    VhostMode,
    VhostSpec,
)
from virtnet.core.resolve import Desired

HOST = host(bridge("br0"), nic("eth0", on="br0"), tap("tap0", on="br0"))


def mtu(name: str, value: int, priority: int = 0, created: str = "", mode: Mode = Mode.ENFORCE) -> Policy:
    return Policy(name, bridge=BridgeSpec("br0", mtu=value), priority=priority, created=created, mode=mode)


# --- precedence --------------------------------------------------------------------------------------------

OLD, NEW = "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"

WINNERS = {
    "the higher priority wins over age and name": (mtu("b", 1400, 1, NEW), mtu("a", 1300, 0, OLD)),
    "a negative priority loses to the default": (mtu("b", 1400), mtu("a", 1300, -1)),
    "at equal priority the older one wins over the name": (mtu("b", 1400, 0, OLD), mtu("a", 1300, 0, NEW)),
    "at equal age the name decides": (mtu("a", 1400, 0, OLD), mtu("b", 1300, 0, OLD)),
    "without ages the name decides": (mtu("a", 1400), mtu("b", 1300)),
    "age is ignored when one has none": (mtu("a", 1400, 0, ""), mtu("b", 1300, 0, OLD)),
    "whichever of the two that is": (mtu("a", 1400, 0, OLD), mtu("b", 1300, 0, "")),
}


@pytest.mark.parametrize(("winner", "loser"), WINNERS.values(), ids=WINNERS)
def test_precedence(winner: Policy, loser: Policy) -> None:
    for policies in permutations((winner, loser)):
        plan = plan_of(HOST, *policies)
        assert todo(plan) == ["br0 mtu=1400"]
        (row,) = plan.blocked
        assert (row.policy, row.reason, row.wanted, row.actual) == (loser.name, Reason.OVERRIDDEN_BY, 1300, 1400)
        assert row.message == f"policy {winner.name} wants 1400"


def test_ages_of_three_are_ignored_when_one_has_none() -> None:
    policies = (mtu("a", 1, 0, NEW), mtu("b", 2, 0, OLD), mtu("c", 3))
    assert [policy.name for policy in resolve.on_node(policies, NODE)] == ["a", "b", "c"]


def test_a_policy_for_other_nodes_decides_nothing_and_its_missing_age_is_not_counted() -> None:
    elsewhere = replace(mtu("z", 9), node_selector=NodeSelector((("no", "node"),)))
    policies = (mtu("a", 1, 0, NEW), mtu("b", 2, 0, OLD), elsewhere)
    assert [policy.name for policy in resolve.on_node(policies, NODE)] == ["b", "a"]


def test_two_policies_with_the_same_value_do_not_conflict_and_the_first_owns_it() -> None:
    plan = plan_of(HOST, mtu("a", 1400), mtu("b", 1400))
    assert [(row.policy, row.reason) for row in (*plan.pending, *plan.blocked)] == [("a", None)]


def test_settings_of_different_policies_merge() -> None:
    stp = Policy("b", bridge=BridgeSpec("br0", stp=True))
    plan = plan_of(HOST, mtu("a", 1400), stp)
    assert sorted(todo(plan)) == ["br0 bridge.stp=True", "br0 mtu=1400"]
    assert plan.blocked == ()


def test_of_three_each_loser_is_told_of_the_winner() -> None:
    plan = plan_of(HOST, mtu("a", 1400), mtu("b", 1300), mtu("c", 1200))
    assert [(row.policy, row.message) for row in plan.blocked] == [
        ("b", "policy a wants 1400"),
        ("c", "policy a wants 1400"),
    ]


def test_one_link_in_two_sections_has_both_roles_and_the_first_role_names_it() -> None:
    policy = Policy("p", bridge=BridgeSpec("br0", ports=("eth0",)), uplink=UplinkSpec(rings_rx=512))
    want = desired_of(HOST, policy).links[named(HOST, "eth0").ifindex]
    assert (want.role, want.roles, want.policies) == ("uplink", ("uplink", "port"), ("p",))
    assert {attr.key for attr in want.attrs} == {"rings.rx", "master"}


@pytest.mark.parametrize("kind", ["bond", "team", "vlan"])
def test_rings_and_channels_are_asked_of_the_links_below_a_stacked_one(kind: str) -> None:
    below = nic("eth0", on="" if kind == "vlan" else "up0")
    state = host(bridge("br0"), soft("up0", kind, on="br0", over="eth0" if kind == "vlan" else ""), below)
    policy = Policy("p", bridge=BR0, uplink=UplinkSpec(rings_rx=512, channels_combined=2))
    assert todo(plan_of(state, policy)) == ["eth0 rings.rx=512", "eth0 channels.combined=2"]


# --- links that have to be there ---------------------------------------------------------------------------


def test_a_port_that_is_not_there_is_missing() -> None:
    policy = Policy("p", bridge=BridgeSpec("br0", ports=("eth9",)))
    (row,) = plan_of(HOST, policy).blocked
    assert (row.subject, row.setting, row.reason) == ("link/eth9", "bridge.ports", Reason.MISSING)


def test_ports_and_taps_of_a_bridge_that_cannot_be_ours_are_not_touched() -> None:
    state = host(nic("eth0"), nic("eth1"))
    spec = BridgeSpec("eth0", create=True, ports=("eth1",))
    plan = plan_of(state, Policy("p", bridge=spec, tap=TapSpec(create=(TapToCreate("tap9"),))))
    assert todo(plan) == []
    assert said(plan.blocked) == ["eth0 bridge.name Foreign"]


def test_two_policies_that_make_one_link_of_different_kinds_are_decided() -> None:
    first = Policy("a", bridge=BridgeSpec("x0", create=True))
    second = Policy("b", bridge=BridgeSpec("br0"), tap=TapSpec(create=(TapToCreate("x0"),)))
    plan = plan_of(HOST, first, second)
    assert todo(plan) == ["x0 exists=True"]
    assert [(row.policy, row.reason, row.message) for row in plan.blocked] == [
        ("b", Reason.OVERRIDDEN_BY, "policy a wants x0 to be a bridge")
    ]


def test_two_policies_that_make_the_same_bridge_agree() -> None:
    policies = [Policy(name, bridge=BridgeSpec("br9", create=True)) for name in "ab"]
    plan = plan_of(HOST, *policies)
    assert [(step.policy, step.settings) for step in plan.steps] == [("a", ((("br9", "exists"), True),))]
    assert plan.blocked == ()


# --- the module --------------------------------------------------------------------------------------------


def vhost(
    name: str, state: ModuleWish = ModuleWish.UNMANAGED, mode: VhostMode | None = None, **parameters: int
) -> Policy:
    return Policy(name, vhost=VhostSpec(mode, state, tuple(parameters.items())))


LOADED, ABSENT = ModuleWish.LOADED, ModuleWish.ABSENT

MODULES = {
    "nobody asks": ([vhost("a"), Policy("b")], None, []),
    "Auto asks for nothing": ([vhost("a", mode=VhostMode.AUTO)], None, []),
    "Disabled asks nothing of the module": ([vhost("a", mode=VhostMode.DISABLED)], None, []),
    "the state that is asked": ([vhost("a", ABSENT)], (ABSENT, "a", "vhost.module.state"), []),
    "Required implies Loaded": ([vhost("a", mode=VhostMode.REQUIRED)], (LOADED, "a", "vhost.mode"), []),
    "the first policy wins": ([vhost("a", LOADED), vhost("b", ABSENT)], (LOADED, "a", "vhost.module.state"), ["b"]),
    "equal wishes do not conflict": ([vhost("a", LOADED), vhost("b", LOADED)], (LOADED, "a", "vhost.module.state"), []),
    "Required loses to Absent": (
        [vhost("a", ABSENT), vhost("b", mode=VhostMode.REQUIRED)],
        (ABSENT, "a", "vhost.module.state"),
        ["b"],
    ),
    "one that leaves the state alone does not win it": (
        [vhost("a", zcopytx=1), vhost("b", LOADED)],
        (LOADED, "b", "vhost.module.state"),
        [],
    ),
    "parameters alone": (
        [vhost("a", zcopytx=1)],
        (ModuleWish.UNMANAGED, "a", "vhost.module.parameters"),
        [],
    ),
    "a parameter's first value wins": (
        [vhost("a", LOADED, zcopytx=1), vhost("b", LOADED, zcopytx=0)],
        (LOADED, "a", "vhost.module.state"),
        ["b"],
    ),
}


@pytest.mark.parametrize(("policies", "want", "losers"), MODULES.values(), ids=MODULES)
def test_what_is_wanted_of_the_module(
    policies: list[Policy], want: tuple[ModuleWish, str, str] | None, losers: list[str]
) -> None:
    found, rows = resolve.module_want(policies)
    assert (None if found is None else (found.state, found.policy, found.path)) == want
    assert [row.policy for row in rows] == losers
    assert all(row.reason is Reason.OVERRIDDEN_BY and row.subject == "module/vhost_net" for row in rows)


def test_parameters_of_several_policies_merge_with_their_owners() -> None:
    found, rows = resolve.module_want([vhost("a", LOADED), vhost("b", LOADED, zcopytx=1)])
    assert found is not None
    assert (found.policy, found.parameters, rows) == ("a", (("zcopytx", 1, "b"),), ())


# --- Audit -------------------------------------------------------------------------------------------------


def only_audit(desired: Desired) -> Desired:
    (audit,) = desired.audits
    return audit


def test_an_audit_policy_owns_nothing_and_overrides_nobody() -> None:
    plan = plan_of(HOST, mtu("audit", 1400, 9, mode=Mode.AUDIT), mtu("real", 1300))
    assert todo(plan) == ["br0 mtu=1300"]
    assert said(plan.blocked) == ["br0 bridge.mtu AuditOnly"]


def test_an_audit_policy_is_planned_as_if_it_had_won_even_with_the_lowest_priority() -> None:
    plan = plan_of(HOST, mtu("real", 1300, 9), mtu("audit", 1400, -9, mode=Mode.AUDIT))
    (row,) = plan.blocked
    assert (row.policy, row.reason, row.wanted, row.actual) == ("audit", Reason.AUDIT_ONLY, 1400, 1500)
    assert row.message == "Audit: would set mtu to 1400 (is 1500)"


def test_an_audit_policy_that_is_as_asked_says_nothing() -> None:
    assert plan_of(HOST, mtu("audit", 1500, mode=Mode.AUDIT)).blocked == ()


def test_two_audit_policies_are_each_planned_as_if_they_had_won() -> None:
    plan = plan_of(HOST, mtu("a", 1400, mode=Mode.AUDIT), mtu("b", 1300, mode=Mode.AUDIT))
    assert [(row.policy, row.reason, row.wanted) for row in plan.blocked] == [
        ("a", Reason.AUDIT_ONLY, 1400),
        ("b", Reason.AUDIT_ONLY, 1300),
    ]


def test_what_an_audit_policy_cannot_have_is_said_as_for_any_other() -> None:
    audit = Policy("audit", bridge=BR0, uplink=UplinkSpec(offloads=asks(ufo=True)), mode=Mode.AUDIT)
    assert said(plan_of(HOST, audit).blocked) == ["eth0 uplink.offloads.ufo Unsupported"]


def test_an_audit_sees_only_its_own_share_of_a_link() -> None:
    real = Policy("real", bridge=BR0, uplink=UplinkSpec(offloads=asks(gro=False), rings_rx=512))
    audit = Policy("audit", bridge=BR0, uplink=UplinkSpec(offloads=asks(gso=False)), mode=Mode.AUDIT)
    desired = only_audit(desired_of(HOST, real, audit))
    want = desired.links[named(HOST, "eth0").ifindex]
    assert (want.policies, want.attrs) == (("audit",), ())
    assert want.features is not None
    assert [ask.path for ask in want.features.asks] == ["uplink.offloads.gso"]


# --- the rest ----------------------------------------------------------------------------------------------


def test_what_nothing_enforces_yet_is_said() -> None:
    policy = Policy("p", unenforced=(Unenforced("guest.nic.queues", 4, "not enforced yet"),), safety=Safety())
    (row,) = plan_of(HOST, policy).blocked
    assert (row.subject, row.setting, row.wanted, row.reason) == (
        "policy/p",
        "guest.nic.queues",
        4,
        Reason.UNSUPPORTED,
    )


INTERESTS = {
    "nothing for a bridge's options": (mtu("p", 9000), Interest()),
    "addresses for ports": (Policy("p", bridge=BridgeSpec("br0", ports=("eth0",))), Interest(addresses=True)),
    "drivers for uplinks": (Policy("p", uplink=UplinkSpec()), Interest(untold_drivers=True)),
    "rings": (Policy("p", uplink=UplinkSpec(rings_tx=1)), Interest(untold_drivers=True, rings=True)),
    "channels": (Policy("p", uplink=UplinkSpec(channels_tx=1)), Interest(untold_drivers=True, channels=True)),
    "drivers for taps that are matched by driver": (
        Policy("p", tap=TapSpec(Match(drivers=("tun",)))),
        Interest(drivers=True),
    ),
    "coalescing for rxFrames": (Policy("p", tap=TapSpec(rx_frames=0)), Interest(rx_frames=True)),
    "the module when its state is asked": (vhost("p", ABSENT), Interest(module=True)),
    "the module when vhost is required": (vhost("p", mode=VhostMode.REQUIRED), Interest(module=True)),
    "no module for Auto": (vhost("p", mode=VhostMode.AUTO), Interest()),
}


@pytest.mark.parametrize(("policy", "interest"), INTERESTS.values(), ids=INTERESTS)
def test_what_a_look_must_read(policy: Policy, interest: Interest) -> None:
    assert resolve.interest([policy]) == interest


def test_the_same_host_and_policies_are_resolved_once() -> None:
    memory = resolve.Memory()
    first = resolve.resolve([mtu("p", 1400)], NODE, HOST, memory)
    assert resolve.resolve([mtu("p", 1400)], NODE, HOST, memory) is first


def test_another_host_keeps_the_shared_wants_and_another_policy_does_not() -> None:
    memory = resolve.Memory()
    bridge_number = named(HOST, "br0").ifindex
    first = resolve.resolve([mtu("p", 1400)], NODE, HOST, memory)
    moved = resolve.resolve([mtu("p", 1400)], NODE, with_link(HOST, "tap0", carrier=True), memory)
    edited = resolve.resolve([mtu("p", 1401)], NODE, HOST, memory)
    assert moved.links[bridge_number] is first.links[bridge_number]
    assert edited.links[bridge_number] is not first.links[bridge_number]
