"""What is kept of Nodes, pods and node states, also of ones that are not as they should be."""

from __future__ import annotations

from typing import Any

import pytest

from virtnet.core.fleet import AgentFacts, Entry, NodeFacts, StateFacts
from virtnet.core.model import Reason
from virtnet.core.rollout import Fault, seconds
from virtnet.kube import sightings
from virtnet.kube.sightings import Pod

T0, T1 = "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"
READY = {"type": "Ready", "status": "True", "lastTransitionTime": T0}


def test_a_node_is_its_name_uid_labels_and_whether_it_is_ready() -> None:
    found = {"metadata": {"name": "n1", "uid": "u1", "labels": {"a": "b"}}, "status": {"conditions": [READY]}}
    assert sightings.node(found) == NodeFacts("n1", "u1", {"a": "b"}, True)
    unknown = {**found, "status": {"conditions": [{**READY, "status": "Unknown"}]}}
    assert not sightings.node(unknown).ready


def pod(ready: str = "True", **others: Any) -> dict[str, Any]:
    conditions = [{**READY, "status": ready}]
    return {"metadata": {}, "spec": {"nodeName": "n1"}, "status": {"conditions": conditions, **others}}


def container(restarts: int, lived: str, started: str = T1) -> dict[str, Any]:
    last = {"terminated": {"startedAt": T0, "finishedAt": lived}}
    return {"restartCount": restarts, "state": {"running": {"startedAt": started}}, "lastState": last}


@pytest.mark.parametrize(
    ("found", "agent"),
    [
        (pod(), AgentFacts(True, seconds(T0))),
        (pod("False"), AgentFacts(False, seconds(T0))),
        (pod() | {"metadata": {"deletionTimestamp": T1}}, AgentFacts(False, seconds(T0))),
        (pod(containerStatuses=[container(1, T1)]), AgentFacts(True, seconds(T0))),
        (pod(containerStatuses=[container(3, T1)]), AgentFacts(True, seconds(T0), (seconds(T1) or 0) + 60)),
        (pod(containerStatuses=[container(3, "2026-01-01T05:00:00Z")]), AgentFacts(True, seconds(T0))),
    ],
)
def test_an_agent_is_there_when_its_pod_is_ready_and_lasts(found: dict[str, Any], agent: AgentFacts) -> None:
    assert sightings.pod(found) == Pod("n1", agent)


def row(reason: str = "Refused", since: str = T0, **others: str) -> dict[str, Any]:
    setting = {"subject": "link/eth0", "setting": "uplink.mtu", "message": "no", "policy": "p"}
    return {**setting, "reason": reason, "since": since, **others}


def state(*settings: Any, ready: bool = True, **others: Any) -> dict[str, Any]:
    policies = [{"name": "p", "generation": 2, "admitted": True, "ready": ready, "blocked": len(settings), **others}]
    owner = {"kind": "Node", "uid": "u1"}
    return {
        "metadata": {"uid": "s1", "ownerReferences": [owner]},
        "status": {"policies": policies, "settings": list(settings)},
    }


def entry(found: dict[str, Any]) -> Entry:
    return sightings.state(found).entries["p"]


def test_a_state_is_its_owner_and_an_entry_for_each_policy() -> None:
    assert sightings.state(state()) == StateFacts("s1", "u1", {"p": Entry(2, True)})


def test_of_several_links_with_the_same_fault_the_newest_is_kept() -> None:
    found = entry(state(row(since=T1, subject="link/eth1"), row(), row("Fixed"), ready=False))
    assert found.faults == (
        Fault("uplink.mtu", Reason.REFUSED, "link/eth1: no", seconds(T1)),
        Fault("uplink.mtu", Reason.FIXED, "link/eth0: no", seconds(T0)),
    )
    assert found.failing == found.faults[0]


def test_a_pending_change_and_another_policys_row_are_no_fault() -> None:
    pending = row()
    del pending["reason"]
    assert entry(state(pending, row(policy="q"))).faults == ()


def test_a_policy_that_fails_without_a_listed_setting_fails_all_the_same() -> None:
    found = entry(state(ready=False, reason="TooMuchAtOnce"))
    assert found.failing is not None
    assert found.failing.reason is Reason.TOO_MUCH_AT_ONCE


def test_a_released_node_says_so() -> None:
    found = state()
    found["status"]["conditions"] = [{"type": "Released", "status": "True"}]
    assert sightings.state(found).released


@pytest.mark.parametrize("status", [None, {}, {"policies": "x", "settings": [None, 7]}, {"policies": [{"name": "p"}]}])
def test_a_state_that_is_not_as_it_should_be_says_nothing(status: Any) -> None:
    assert sightings.state({"metadata": {"uid": "s1"}, "status": status}) == StateFacts("s1", "")
