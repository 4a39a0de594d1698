"""How a change travels over the nodes: the canary first, and no further when it fails there."""

from __future__ import annotations

import time

from tests.chart import argocd
from tests.cluster.cluster import condition
from tests.cluster.installation import Operator, uplink
from tests.cluster.nodes import SPARE, UPLINK, Node
from tests.cluster.sandbox import wait_until
from virtnet.core import rollout

TSO = "tcp-segmentation-offload"
STEPS = {"canary": 1, "maxUnavailable": 1, "deadlineSeconds": 20}


def queue(virtnet: Operator, name: str) -> list[Node]:
    """The nodes in the order in which they get a new generation of this policy."""
    uid = virtnet.get(name)["metadata"]["uid"]
    return sorted(virtnet.cluster.nodes, key=lambda node: rollout.rank(uid, node.name))


def with_spare(**features: bool) -> dict[str, object]:
    """Also asks for a link of which a node can be deprived."""
    wanted = uplink("lan", {"rollout": STEPS}, **features)
    wanted["spec"]["bridge"] = {"name": "br0", "ports": [SPARE]}
    return wanted


def test_a_change_reaches_one_node_at_a_time_and_all_in_the_end(virtnet: Operator) -> None:
    virtnet.apply(uplink("lan", {"rollout": STEPS}, tso=True))
    virtnet.ready("lan")
    members = queue(virtnet, "lan")
    virtnet.apply(uplink("lan", {"rollout": STEPS}, tso=False))
    seen: list[list[bool]] = []

    def is_done() -> bool:
        now = [node.feature(UPLINK, TSO) for node in members]
        if not seen or seen[-1] != now:
            seen.append(now)
        return not any(now)

    wait_until("every node has it", is_done, 40, 0.02)
    virtnet.ready("lan")
    assert all(states == sorted(states) for states in seen), f"out of turn: {seen}"


def test_a_change_that_fails_on_the_canary_goes_no_further_until_it_is_mended(virtnet: Operator) -> None:
    virtnet.apply(uplink("lan", {"rollout": STEPS}, tso=True))
    virtnet.ready("lan")
    canary, *others = queue(virtnet, "lan")
    canary.run("ip", "link", "set", SPARE, "name", "elsewhere0")
    try:
        virtnet.apply(with_spare(tso=False))
        stalled = virtnet.wait_condition("lan", "Stalled", "True")
        assert stalled["status"]["rollout"]["paused"]
        assert argocd.health(stalled) == ("Degraded", condition(stalled, "Stalled", "message"))
        wait_until("an Event tells it", lambda: "RolloutPaused" in events(virtnet, "lan"), 30, 0.5)
        assert canary.name in stalled["status"]["rollout"]["reason"]
        assert stalled["status"]["problems"][0]["node"] == canary.name
        time.sleep(2)
        assert [node.feature(UPLINK, TSO) for node in (canary, *others)] == [False, True, True]
    finally:
        canary.run("ip", "link", "set", "elsewhere0", "name", SPARE)
    virtnet.ready("lan")
    assert [node.feature(UPLINK, TSO) for node in (canary, *others)] == [False, False, False]


def events(virtnet: Operator, name: str) -> set[str]:
    """The reasons of the Kubernetes Events on a policy, which `kubectl describe` shows."""
    found = virtnet.cluster.objects("events", "--namespace=default", f"--field-selector=involvedObject.name={name}")
    return {event["reason"] for event in found}


def test_a_rollout_goes_on_in_its_turn_when_every_controller_is_replaced_on_the_way(virtnet: Operator) -> None:
    virtnet.apply(uplink("lan", {"rollout": STEPS}, tso=True))
    virtnet.ready("lan")
    first, *_, last = queue(virtnet, "lan")
    virtnet.apply(uplink("lan", {"rollout": STEPS}, tso=False))
    wait_until("the canary has it", lambda: not first.feature(UPLINK, TSO), 40, 0.02)
    virtnet.kubectl("delete", "pods", "--selector=app.kubernetes.io/component=controller", "--wait=false")
    wait_until("the last has it", lambda: not last.feature(UPLINK, TSO), 90, 0.1)
    virtnet.kubectl("rollout", "status", "deployment/virtnet-controller", "--timeout=90s")
    virtnet.ready("lan")
    assert not any(node.feature(UPLINK, TSO) for node in virtnet.cluster.nodes)


def test_a_paused_rollout_is_continued_by_an_annotation_in_spite_of_the_failure(virtnet: Operator) -> None:
    virtnet.apply(uplink("lan", {"rollout": STEPS}, tso=True))
    virtnet.ready("lan")
    canary, *others = queue(virtnet, "lan")
    canary.run("ip", "link", "set", SPARE, "name", "elsewhere0")
    try:
        virtnet.apply(with_spare(tso=False))
        stalled = virtnet.wait_condition("lan", "Stalled", "True")
        generation = stalled["metadata"]["generation"]
        virtnet.cluster.kubectl("annotate", "vnp", "lan", f"virtnet.dev/resume={generation}")
        wait_until("the others have it", lambda: not any(n.feature(UPLINK, TSO) for n in others), 60, 0.3)
        assert condition(virtnet.get("lan"), "Ready") == "False"
    finally:
        canary.run("ip", "link", "set", "elsewhere0", "name", SPARE)


def test_a_rollout_that_its_author_paused_stays_where_it_is(virtnet: Operator) -> None:
    virtnet.apply(uplink("lan", {"rollout": STEPS}, tso=True))
    virtnet.ready("lan")
    virtnet.apply(uplink("lan", {"rollout": STEPS | {"paused": True}}, tso=False))
    virtnet.wait_condition("lan", "Stalled", "True")
    time.sleep(2)
    assert all(node.feature(UPLINK, TSO) for node in virtnet.cluster.nodes)


def test_an_agent_that_crashes_is_told_and_never_counted_as_ready(virtnet: Operator) -> None:
    virtnet.apply(uplink("lan", tso=False))
    virtnet.ready("lan")
    node = virtnet.cluster.node(3)
    node.sandbox.stop("kubelet")  # nobody starts the agent again
    try:
        node.run("sh", "-c", "kill -9 $(pidof -x virtnet)")
        found = virtnet.wait_condition("lan", "Ready", "Unknown", "AgentDown", 60)
        assert found["status"]["problems"][0]["reason"] == "AgentDown"
        assert found["status"]["problems"][0]["node"] == node.name
    finally:
        node.start_kubelet()
    virtnet.ready("lan")
