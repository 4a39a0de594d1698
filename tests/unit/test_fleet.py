"""The status of a policy, from what all nodes report: as text, so that a case can be read at a glance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from virtnet.core import fleet, rollout
from virtnet.core.fleet import AgentFacts, Entry, Fleet, NodeFacts, StateFacts, Verdict
from virtnet.core.model import NodeSelector, Policy, Reason, Rollout
from virtnet.core.rollout import EVERYBODY, Fault, Published
from virtnet.kube.status import PolicyStatus

NOW = 1_700_000_000.0
LATER = NOW + 3600
UID = "0d7e4a2c-3a50-4a6e-9c39-8d5d3a3b7f10"
POLICY = Policy("p", UID, 2)
OVER = Published(2, EVERYBODY)

REFUSED = Fault("uplink.mtu", Reason.REFUSED, "link/eth0: the driver says no", NOW)
FIXED = Fault("uplink.offloads.lro", Reason.FIXED, "link/eth0: the driver lacks it", NOW)
IN_USE = Fault("tap.vnetHdr", Reason.IN_USE, "link/tap0: qemu[7] has it open", NOW)
OVERRIDDEN = Fault("bridge.mtu", Reason.OVERRIDDEN_BY, "link/br0: policy q wins", NOW)

AS_ASKED = Entry(2, True)
REFUSES = Entry(2, False, 1, (REFUSED,))
WAITS = Entry(1, True)


def a_fleet(**entries: Entry | None) -> Fleet:
    """Nodes with a ready agent that reports this about the policy; None: it reports nothing about it."""
    return Fleet(
        {name: NodeFacts(name, f"uid-{name}", {"zone": "a"}, True) for name in entries},
        {
            name: StateFacts(f"state-{name}", f"uid-{name}", {"p": entry} if entry else {})
            for name, entry in entries.items()
        },
        {name: AgentFacts(True) for name in entries},
    )


def without(found: Fleet, node: str, *, agent: bool = False, state: bool = False) -> Fleet:
    return Fleet(
        found.nodes,
        {name: each for name, each in found.states.items() if not (state and name == node)},
        {name: each for name, each in found.agents.items() if not (agent and name == node)},
    )


def dead(found: Fleet, node: str) -> Fleet:
    nodes = {**found.nodes, node: replace(found.nodes[node], ready=False)}
    return Fleet(nodes, found.states, {**found.agents, node: AgentFacts(False, NOW)})


def judge(
    found: Fleet,
    published: Published | None = OVER,
    *,
    policy: Policy = POLICY,
    waiting: Mapping[str, float] | None = None,
) -> Verdict:
    previous = {"rollout": published.write()} if published else None
    return fleet.judge(policy, found, previous, waiting or {}, NOW)


def told(status: Mapping[str, Any]) -> dict[str, str]:
    """Each condition as "status reason"."""
    return {each["type"]: f"{each['status']} {each['reason']}" for each in status["conditions"]}


def message(status: Mapping[str, Any], kind: str) -> str:
    return next(each["message"] for each in status["conditions"] if each["type"] == kind)


def conditions(ready: str, reconciling: str, stalled: str, conflicted: str, complete: str) -> dict[str, str]:
    return dict(
        zip(
            ("Ready", "Reconciling", "Stalled", "Conflicted", "Complete"),
            (ready, reconciling, stalled, conflicted, complete),
            strict=True,
        )
    )


AT_REST = ("False Settled", "False NotStalled", "False NoConflict")
MOVING = ("True RollingOut", "False NotStalled", "False NoConflict")
LATE = {"n1": NOW - 120}
ON_ITS_WAY = Published(2, EVERYBODY, began=NOW)

CASES = [
    ("all as asked", a_fleet(n1=AS_ASKED, n2=AS_ASKED), OVER, {}, ("True AsAsked", *AT_REST, "True AsAsked")),
    ("no node", a_fleet(), OVER, {}, ("True NoNodes", *AT_REST, "True NoNodes")),
    (
        "a settled reason leaves it Ready",
        a_fleet(n1=Entry(2, True, 1, (FIXED,)), n2=AS_ASKED),
        OVER,
        {},
        ("True AsAsked", *AT_REST, "False Fixed"),
    ),
    ("a node has yet to move", a_fleet(n1=WAITS), ON_ITS_WAY, {}, ("False RollingOut", *MOVING, "False RollingOut")),
    ("a node fails, it may recover", a_fleet(n1=REFUSES), OVER, {}, ("False Refused", *MOVING, "False Refused")),
    (
        "a node fails past the deadline",
        a_fleet(n1=REFUSES),
        OVER,
        LATE,
        ("False Refused", "False Stalled", "True Refused", "False NoConflict", "False Refused"),
    ),
    (
        "no agent",
        without(a_fleet(n1=AS_ASKED, n2=AS_ASKED), "n1", agent=True),
        OVER,
        {},
        ("Unknown AgentDown", *MOVING, "Unknown AgentDown"),
    ),
    (
        "no agent past the deadline",
        without(a_fleet(n1=AS_ASKED, n2=AS_ASKED), "n1", agent=True),
        OVER,
        LATE,
        ("Unknown AgentDown", "False Stalled", "True AgentDown", "False NoConflict", "Unknown AgentDown"),
    ),
    (
        "no state",
        without(a_fleet(n1=AS_ASKED), "n1", state=True),
        OVER,
        {},
        ("Unknown AgentDown", *MOVING, "Unknown AgentDown"),
    ),
    (
        "a dead node stalls nothing",
        dead(a_fleet(n1=AS_ASKED, n2=AS_ASKED), "n1"),
        OVER,
        LATE,
        ("Unknown AgentDown", *AT_REST, "Unknown AgentDown"),
    ),
    (
        "another policy wins",
        a_fleet(n1=Entry(2, True, 1, (OVERRIDDEN,))),
        OVER,
        {},
        ("True AsAsked", "False Settled", "False NotStalled", "True OverriddenBy", "False OverriddenBy"),
    ),
]


@pytest.mark.parametrize(
    ("found", "published", "waiting", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_the_conditions_say_what_holds(
    found: Fleet, published: Published, waiting: dict[str, float], expected: tuple[str, str, str, str, str]
) -> None:
    assert told(judge(found, published, waiting=waiting).status) == conditions(*expected)


def test_a_paused_rollout_is_stalled_and_says_why() -> None:
    policy = replace(POLICY, rollout=Rollout(paused=True))
    status = judge(a_fleet(n1=WAITS, n2=AS_ASKED), Published(2, 0, began=NOW), policy=policy).status
    assert told(status) == conditions(
        "False Paused", "False Stalled", "True Paused", "False NoConflict", "False Paused"
    )
    assert message(status, "Ready") == "1 of 2 nodes as asked; spec.rollout.paused is true"
    assert status["rollout"]["paused"] is True


def test_a_pause_that_holds_nobody_back_is_no_stall() -> None:
    policy = replace(POLICY, rollout=Rollout(paused=True))
    status = judge(a_fleet(n1=AS_ASKED), Published(2, 0, began=NOW), policy=policy).status
    assert told(status)["Stalled"] == "False NotStalled"


def test_never_reconciling_and_stalled_at_once_because_kstatus_takes_whichever_comes_first() -> None:
    for _, found, published, waiting, _ in CASES:
        status = told(judge(found, published, waiting=waiting).status)
        assert not (status["Reconciling"].startswith("True") and status["Stalled"].startswith("True"))


def test_nodes_are_counted() -> None:
    found = a_fleet(n1=AS_ASKED, n2=Entry(2, True, 2, (FIXED, IN_USE)), n3=WAITS, n4=REFUSES, n5=AS_ASKED)
    status = judge(without(found, "n5", agent=True), replace(ON_ITS_WAY, admitted=0)).status
    assert status["nodes"] == {"matched": 5, "admitted": 5, "ready": 2, "blocked": 2, "unknown": 1}


def test_a_node_that_the_selector_does_not_select_is_not_counted_until_it_leaves() -> None:
    policy = replace(POLICY, node_selector=NodeSelector(labels=(("zone", "b"),)))
    status = judge(a_fleet(n1=WAITS), ON_ITS_WAY, policy=policy).status
    assert status["nodes"]["matched"] == 0
    assert told(status)["Ready"] == "True NoNodes"
    assert told(status)["Reconciling"] == "True RollingOut"


def test_the_three_worst_problems_are_told() -> None:
    found = a_fleet(
        n1=Entry(2, True, 1, (FIXED,)),
        n2=Entry(2, True, 2, (FIXED, IN_USE)),
        n3=Entry(2, False, 1, (REFUSED,)),
        n4=Entry(2, True, 1, (OVERRIDDEN,)),
    )
    problems = judge(found).status["problems"]
    assert [(each["node"], each["setting"], each["reason"]) for each in problems] == [
        ("n3", "uplink.mtu", "Refused"),
        ("n1", "uplink.offloads.lro", "Fixed"),
        ("n2", "tap.vnetHdr", "InUse"),
    ]
    assert problems[1]["message"] == "link/eth0: the driver lacks it (and on 1 node more)"


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (without(a_fleet(n1=AS_ASKED), "n1", agent=True), "no agent runs there"),
        (without(a_fleet(n1=AS_ASKED), "n1", state=True), "its agent has not reported yet"),
        (dead(a_fleet(n1=AS_ASKED), "n1"), "the Node is not Ready"),
        (replace(a_fleet(n1=AS_ASKED), agents={"n1": AgentFacts(False)}), "its agent is not ready"),
        (replace(a_fleet(n1=AS_ASKED), agents={"n1": AgentFacts(True, None, NOW + 1)}), "its agent crashes again"),
        (replace(a_fleet(n1=None), states={"n1": StateFacts("s", "uid-n1", {}, released=True)}), "it was released"),
        (replace(a_fleet(n1=None), states={"n1": StateFacts("s", "other", {"p": AS_ASKED})}), "has not reported yet"),
    ],
)
def test_a_node_of_which_nothing_is_known_is_a_problem_that_says_why(found: Fleet, why: str) -> None:
    status = judge(found).status
    assert [each["reason"] for each in status["problems"]] == ["AgentDown"]
    assert why in status["problems"][0]["message"]
    assert told(status)["Ready"] == "Unknown AgentDown"


def test_a_node_that_is_silent_past_the_deadline_is_a_problem_too() -> None:
    problems = judge(a_fleet(n1=WAITS), ON_ITS_WAY, waiting=LATE).status["problems"]
    assert [each["reason"] for each in problems] == ["Failed"]
    assert "generation 2 is not done after 120 seconds" in problems[0]["message"]


def test_an_equal_fleet_gives_an_equal_status_at_any_time() -> None:
    found = a_fleet(n1=AS_ASKED, n2=Entry(2, True, 1, (FIXED,)))
    first = judge(found).status
    assert fleet.judge(POLICY, found, first, {}, LATER).status == first


def test_a_condition_is_as_old_as_its_last_change() -> None:
    first = judge(a_fleet(n1=WAITS), ON_ITS_WAY).status
    second = fleet.judge(POLICY, a_fleet(n1=AS_ASKED), first, {}, LATER).status
    since = {each["type"]: each["lastTransitionTime"] for each in second["conditions"]}
    assert since["Ready"] == rollout.timestamp(LATER)
    assert since["Stalled"] == rollout.timestamp(NOW)
    assert {each["observedGeneration"] for each in second["conditions"]} == {2}


def test_the_next_look_is_when_time_alone_changes_something() -> None:
    assert judge(a_fleet(n1=AS_ASKED)).again is None
    assert judge(a_fleet(n1=REFUSES), waiting={"n1": NOW - 20}).again == NOW + 100
    assert judge(a_fleet(n1=REFUSES), waiting=LATE).again is None
    crashing = replace(a_fleet(n1=AS_ASKED), agents={"n1": AgentFacts(True, None, NOW + 7)})
    assert judge(crashing, waiting=LATE).again == NOW + 7


def test_the_annotation_resumes_the_generation_that_it_names() -> None:
    found = a_fleet(n1=REFUSES, n2=WAITS)
    paused = Published(2, EVERYBODY, True, "n1 fails", began=NOW)
    for generation, is_paused in (("1", True), ("2", False)):
        policy = replace(POLICY, annotations=((fleet.RESUME, generation),))
        assert judge(found, paused, policy=policy).status["rollout"]["paused"] is is_paused


def test_a_policy_that_cannot_be_understood_keeps_what_is_published() -> None:
    before = judge(a_fleet(n1=AS_ASKED)).status
    status = fleet.refuse(3, "spec.bridge: no", before, NOW)
    assert told(status) == {"Ready": "False Invalid", "Reconciling": "False Invalid", "Stalled": "True Invalid"}
    assert (status["rollout"], status["observedGeneration"]) == (before["rollout"], 3)


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_every_status_is_what_the_definition_allows(case: tuple[Any, ...]) -> None:
    status = judge(case[1], case[2], waiting=case[3]).status
    PolicyStatus.model_validate(status, strict=False)


def test_a_rollout_over_many_nodes_goes_step_by_step_to_its_end() -> None:
    entries = {f"n{number}": WAITS for number in range(8)}
    status: Mapping[str, Any] = {"rollout": Published(1, EVERYBODY).write()}
    ready = []
    while not ready or ready[-1] < 8:
        verdict = fleet.judge(POLICY, a_fleet(**entries), status, {}, NOW)
        status, found = verdict.status, Published.read(verdict.status)
        assert found is not None
        ready.append(status["nodes"]["ready"])
        entries = {n: AS_ASKED if found.admits(rollout.rank(UID, n), 2) else each for n, each in entries.items()}
    assert ready == [0, 1, 3, 5, 7, 8]
    assert told(status) == conditions("True AsAsked", *AT_REST, "True AsAsked")


@pytest.mark.parametrize(("uid", "ready"), [("of-the-deleted-one", "False RollingOut"), (UID, "True AsAsked")])
def test_what_a_node_still_says_of_a_deleted_policy_is_not_said_of_a_new_one_of_that_name(uid: str, ready: str) -> None:
    new = Policy("p", UID, 1)
    found = a_fleet(n1=Entry(1, True, uid=uid))
    verdict = judge(found, Published(1, EVERYBODY, began=NOW), policy=new)
    assert told(verdict.status)["Ready"] == ready
