"""What a shown plan goes on to say about links that it first has to make."""

from __future__ import annotations

from dataclasses import replace

from tests.flow.fake import FakeHost
from tests.unit.hosts import NODE, asks, bridge, desired_of, host, nic, plan_of, said, tap, todo
from virtnet.core import foresight
from virtnet.core.model import (
    BridgeSpec,
    CreateBridge,
    HostState,
    Interest,
    Match,
    Policy,
    Recorded,
    SetFeatures,
    TapSpec,
    TapToCreate,
    UplinkSpec,
)
from virtnet.core.plan import Plan
from virtnet.core.standing import Standing

WHOLE = Policy(
    "p",
    bridge=BridgeSpec("br9", create=True, ports=("eth0",), stp=True),
    uplink=UplinkSpec(offloads=asks(gro=False)),
    tap=TapSpec(create=(TapToCreate("tap9"),), mtu=1400, offloads=asks(gso=False)),
)
BEFORE = host(nic("eth0"))


def foreseen(state: HostState, *policies: Policy, standing: Standing | None = None) -> Plan:
    standing = standing or Standing()
    plan = plan_of(state, *policies, standing=standing)
    return foresight.foresee(plan, desired_of(state, *policies), state, policies, NODE, Recorded(), standing)


def messages(plan: Plan) -> list[str]:
    return [f"{row.subject.removeprefix('link/')}: {row.message}" for row in plan.pending]


def test_links_are_made_then_get_ports_options_and_masters_and_then_what_their_sections_ask() -> None:
    plan = foreseen(BEFORE, WHOLE)
    assert sorted(messages(plan)) == [
        "br9: make bridge br9",
        "br9: set stp to true (is false)",
        "eth0: make it a port of br9",
        "eth0: turn rx-gro off",
        "tap9: make it a port of br9",
        "tap9: make tap tap9",
        "tap9: see to it that gso is off once tap9 is there",
        "tap9: set mtu to 1400 (is 1500)",
    ]


def test_the_first_steps_come_first_and_nothing_is_told_twice() -> None:
    first, plan = plan_of(BEFORE, WHOLE), foreseen(BEFORE, WHOLE)
    assert plan.steps[: len(first.steps)] == first.steps
    assert len(set(messages(plan))) == len(messages(plan))


def test_a_plan_that_makes_nothing_is_told_as_it_is() -> None:
    state = host(bridge("br0"), nic("eth0", on="br0"), tap("tap0", on="br0"))
    wish = Policy("p", bridge=BridgeSpec("br0", stp=True), tap=TapSpec(offloads=asks(gro=False)))
    assert foreseen(state, wish) == plan_of(state, wish)


def test_a_port_that_is_enslaved_is_an_uplink_afterwards() -> None:
    state = host(bridge("br0"), nic("eth0"))
    wish = Policy("p", bridge=BridgeSpec("br0", ports=("eth0",)), uplink=UplinkSpec(rings_rx=512))
    assert todo(plan_of(state, wish)) == ["eth0 master=br0"]
    assert todo(foreseen(state, wish)) == ["eth0 master=br0", "eth0 rings.rx=512"]


def test_what_is_blocked_is_said_of_the_last_stage() -> None:
    state = host(bridge("br0"), nic("eth0"))
    wish = Policy("p", bridge=BridgeSpec("br0", ports=("eth0",)), uplink=UplinkSpec(rings_rx=99999))
    assert said(plan_of(state, wish).blocked) == []
    assert said(foreseen(state, wish).blocked) == ["eth0 uplink.rings.rx Refused"]


def test_what_is_held_is_not_foreseen() -> None:
    plan = foreseen(BEFORE, WHOLE, standing=Standing(held="on"))
    assert plan.steps == ()


def test_made_links_have_no_number_that_a_change_could_be_made_to() -> None:
    shown = [step.change for step in foreseen(BEFORE, WHOLE).steps if isinstance(step.change, SetFeatures)]
    assert {change.link.ifindex for change in shown if change.link.name == "tap9"} == {0}


def test_a_policy_that_matches_what_another_makes_is_foreseen_too() -> None:
    other = Policy("q", tap=TapSpec(Match(names=("tap*",)), tx_queue_length=500))
    assert "tap9: set txQueueLength to 500 (is 1000)" in messages(foreseen(BEFORE, WHOLE, other))


def test_the_ledger_and_the_reflexes_are_those_of_the_plan_itself() -> None:
    first, plan = plan_of(BEFORE, WHOLE), foreseen(BEFORE, WHOLE)
    assert replace(plan, steps=first.steps, blocked=first.blocked) == first


def test_a_new_bridge_is_expected_as_the_host_makes_it() -> None:
    machine = FakeHost()
    machine.apply(CreateBridge("br9"))
    made = machine.observe(Interest()).by_name("br9")
    assert made is not None
    assert made.bridge == foresight.NEW_BRIDGE
