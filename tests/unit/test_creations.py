"""Bridges and taps that have to be there: made, made again, or left to somebody else."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from tests.unit.hosts import BR0, bridge, host, ledger, named, nic, plan_of, said, soft, tap, todo, tun
from virtnet.core.model import (
    BridgeSpec,
    Change,
    CreateBridge,
    CreateTap,
    DeleteLink,
    HostState,
    Made,
    Policy,
    Recorded,
    Ref,
    TapSpec,
    TapToCreate,
)

BRIDGE = Policy("p", bridge=BridgeSpec("br9", create=True))


def keeping(asked: TapToCreate, vnet_hdr: bool | None = None) -> Policy:
    return Policy("p", bridge=BR0, tap=TapSpec(create=(asked,), vnet_hdr=vnet_hdr))


@dataclass(frozen=True)
class Case:
    state: HostState
    policy: Policy
    change: Change | None = None
    said: tuple[str, ...] = ()
    message: str = ""
    recorded: Recorded = field(default_factory=Recorded)


EMPTY = host(bridge("br0"))
MULTI = keeping(TapToCreate("tap0", multi_queue=True))
SINGLE_TAP = host(bridge("br0"), tap("tap0", on="br0"))
HELD_TAP = host(bridge("br0"), tap("tap0", on="br0", held=True))
OURS = ledger(made=(Made("tap0", named(SINGLE_TAP, "tap0").ifindex, "tap", "p"),))

CASES = {
    "an absent bridge is made": Case(EMPTY, BRIDGE, CreateBridge("br9")),
    "a bridge that is there is not": Case(host(bridge("br9")), BRIDGE),
    "an absent tap is made with a vnet header": Case(EMPTY, keeping(TapToCreate("tap0")), CreateTap("tap0")),
    "unless the policy wants none": Case(EMPTY, keeping(TapToCreate("tap0"), False), CreateTap("tap0", vnet_hdr=False)),
    "a tap is made with its owner, group and queues": Case(
        EMPTY, keeping(TapToCreate("tap0", 107, 108, True)), CreateTap("tap0", 107, 108, True, True)
    ),
    "a tap that is there is not": Case(SINGLE_TAP, keeping(TapToCreate("tap0"))),
    "a tap's name that hardware has is Foreign, and the hardware does not become a port": Case(
        host(bridge("br0"), nic("tap0")),
        keeping(TapToCreate("tap0")),
        None,
        ("tap0 tap.create Foreign",),
        "tap0 exists and is a hardware link; choose another name",
    ),
    "a tap's name that a tun has is Foreign": Case(
        host(bridge("br0"), tun("tap0")), keeping(TapToCreate("tap0")), None, ("tap0 tap.create Foreign",)
    ),
    "a bridge's name that a veth has is Foreign": Case(
        host(soft("br9", "veth")), BRIDGE, None, ("br9 bridge.name Foreign",), "not a bridge (veth link)"
    ),
    "unset multiQueue accepts any": Case(
        host(bridge("br0"), tap("tap0", on="br0", multi_queue=True)), keeping(TapToCreate("tap0"))
    ),
    "a tap that is not ours is not made again": Case(
        SINGLE_TAP, MULTI, None, ("tap0 tap.create Foreign",), "multiQueue of tap0 is fixed at creation"
    ),
    "one of ours that nobody holds is": Case(
        SINGLE_TAP, MULTI, DeleteLink(Ref("tap0", 2)), (), "make tap0 again", OURS
    ),
    "one of ours that somebody holds is InUse": Case(
        HELD_TAP, MULTI, None, ("tap0 tap.create InUse",), "qemu-system-x86[42] (guest web1)", OURS
    ),
    "a later tap of that name is not ours": Case(
        SINGLE_TAP,
        MULTI,
        None,
        ("tap0 tap.create Foreign",),
        "it was not made here",
        ledger(made=(Made("tap0", 77, "tap", "p"),)),
    ),
    "one whose number we had no time to write down is ours": Case(
        SINGLE_TAP,
        MULTI,
        DeleteLink(Ref("tap0", 2)),
        recorded=ledger(made=(Made("tap0", 0, "tap", "p"),)),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_link_that_has_to_be_there(case: Case) -> None:
    plan = plan_of(case.state, case.policy, recorded=case.recorded)
    assert [step.change for step in plan.steps] == ([case.change] if case.change else [])
    assert tuple(said(plan.blocked)) == case.said
    assert all(case.message in row.message for row in (*plan.pending, *plan.blocked))


def test_making_a_tap_again_is_risky_and_is_two_passes_of_one_plan() -> None:
    plan = plan_of(SINGLE_TAP, MULTI, recorded=OURS)
    assert [(step.risky, step.restores) for step in plan.steps] == [(True, False)]
    after = host(bridge("br0"))
    assert todo(plan_of(after, MULTI, recorded=OURS)) == ["tap0 exists=True"]
    assert plan_of(after, MULTI, recorded=OURS).forget_made == ()


def test_a_row_says_what_is_made() -> None:
    (row,) = plan_of(EMPTY, BRIDGE).pending
    assert (row.subject, row.setting, row.wanted, row.actual, row.message) == (
        "link/br9",
        "bridge.create",
        "bridge",
        None,
        "make bridge br9",
    )
