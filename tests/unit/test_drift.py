"""Which steps of a plan undo a foreign change: what was verified before and is wanted alike, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.hosts import (
    BR0,
    asks,
    bridge,
    desired_of,
    host,
    ledger_after,
    named,
    nic,
    plan_of,
    tap,
    with_features,
    with_link,
    without,
)
from virtnet.core import plan as planning
from virtnet.core.model import (
    BridgeSpec,
    HostState,
    ModuleState,
    ModuleStatus,
    ModuleWish,
    OnContention,
    Policy,
    Recorded,
    Setting,
    TapSpec,
    UplinkSpec,
    VhostSpec,
)
from virtnet.core.standing import Standing
from virtnet.engine import drift
from virtnet.reconcile import Look, Outcome

HOST = host(
    bridge("br0", mtu=1400),
    nic("eth0", on="br0", set_off="rx-gro"),
    tap("tap0", on="br0"),
    module=ModuleState("vhost_net", ModuleStatus.LOADED, parameters={"experimental_zcopytx": "0"}),
)
P = Policy(
    "p",
    bridge=BridgeSpec("br0", create=True, mtu=1400),
    uplink=UplinkSpec(offloads=asks(gro=False)),
    vhost=VhostSpec(state=ModuleWish.LOADED, persist=False),
)


def look(state: HostState, *policies: Policy, standing: Standing = planning.NOTHING_STANDS) -> Look:
    recorded = ledger_after(plan_of(HOST, P))
    desired = desired_of(state, *policies)
    return Look(state, desired, planning.make_plan(desired, state, recorded, standing))


def outcome(found: Look) -> Outcome:
    return Outcome(found, found, ())


def drifted(now: Look, before: Look | None) -> list[tuple[str | int, str, str]]:
    found = drift.drifted(now, outcome(before) if before else None)
    return [(setting.target, setting.key, policy) for setting, policy in found]


VERIFIED = look(HOST, P)
CHANGED = with_features(HOST, "eth0", set_on="rx-gro")


def test_the_host_of_these_tests_is_as_asked() -> None:
    assert VERIFIED.plan.steps == ()


FOREIGN = {
    "a feature": (CHANGED, (2, "feature:rx-gro", "p")),
    "an attribute": (with_link(HOST, "br0", mtu=1500), (1, "mtu", "p")),
    "the module": (replace(HOST, module=ModuleState("vhost_net", ModuleStatus.ABSENT)), ("vhost_net", "state", "p")),
    "a link that we made": (without(HOST, "br0"), ("br0", "exists", "p")),
}


@pytest.mark.parametrize(("state", "expected"), FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_change_is_drift(state: HostState, expected: tuple[str | int, str, str]) -> None:
    assert drifted(look(state, P), VERIFIED) == [expected]


def test_before_the_first_pass_nothing_was_verified() -> None:
    assert drifted(look(CHANGED, P), None) == []


def test_a_policy_edit_is_no_drift() -> None:
    edited = replace(
        P, bridge=BridgeSpec("br0", create=True, mtu=1300), uplink=UplinkSpec(offloads=asks(gro=True, gso=False))
    )
    now = look(HOST, edited)
    assert len(now.plan.steps) == 2
    assert drifted(now, VERIFIED) == []


def test_a_new_policy_is_no_drift() -> None:
    other = Policy("q", bridge=BR0, tap=TapSpec(tx_queue_length=500))
    assert drifted(look(HOST, P, other), VERIFIED) == []


def test_a_foreign_change_beside_an_edit_is_drift() -> None:
    edited = replace(P, bridge=BridgeSpec("br0", create=True, mtu=1300))
    assert drifted(look(CHANGED, edited), VERIFIED) == [(2, "feature:rx-gro", "p")]


def test_putting_back_is_no_drift() -> None:
    now = planning.make_plan(desired_of(HOST), HOST, _set_by_us(), Standing(allow_mass_removal=True))
    assert [step.restores for step in now.steps]
    assert all(step.restores for step in now.steps)
    assert drifted(Look(HOST, desired_of(HOST), now), VERIFIED) == []


def _set_by_us() -> Recorded:
    return ledger_after(plan_of(CHANGED, P))


def test_what_was_pending_at_the_end_of_the_last_pass_was_not_verified() -> None:
    unfinished = look(CHANGED, P)
    assert drifted(look(CHANGED, P), unfinished) == []


def test_what_something_stood_in_the_way_of_was_not_verified() -> None:
    held = look(CHANGED, P, standing=Standing(held="for now"))
    assert held.plan.steps == ()
    assert drifted(look(CHANGED, P), held) == []


def test_a_link_that_came_since_is_no_drift() -> None:
    before = look(without(HOST, "eth0"), P)
    assert drifted(look(CHANGED, P), before) == []


@pytest.mark.parametrize(
    ("answer", "insists"), [(OnContention.YIELD, False), (OnContention.INSIST, True)], ids=["Yield", "Insist"]
)
def test_who_insists(answer: OnContention, insists: bool) -> None:
    desired = desired_of(HOST, replace(P, on_contention=answer))
    assert drift.insists(desired, "p") is insists
    assert not drift.insists(desired, "gone")


@pytest.mark.parametrize(
    ("setting", "surface"),
    [
        (Setting(named(HOST, "eth0").ifindex, "mtu"), "link"),
        (Setting("br0", "exists"), "link"),
        (Setting("vhost_net", "state"), "module"),
    ],
    ids=["of a link", "of a link to be made", "of the module"],
)
def test_the_surface_of_a_setting(setting: Setting, surface: str) -> None:
    assert drift.surface(setting) == surface
