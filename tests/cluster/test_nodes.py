"""Nodes come and go, agents are restarted, killed and drained; nothing on a host moves for that."""

from __future__ import annotations

import contextlib
import functools
import re
import time
from collections.abc import Iterator
from pathlib import Path

from tests.cluster.cluster import Object
from tests.cluster.installation import Operator, uplink
from tests.cluster.nodes import BRIDGE, TAPS, UPLINK, Node
from tests.cluster.sandbox import wait_until

TSO = "tcp-segmentation-offload"
MANAGED = (BRIDGE, UPLINK, *TAPS)


@contextlib.contextmanager
def unmoved(*nodes: Node) -> Iterator[None]:
    """The kernel says nothing of the links of these nodes meanwhile, neither of rtnetlink's nor of ethtool's things."""
    by_line = ("stdbuf", "--output=L")  # else they keep what they say until they are ended
    watchers = {"links": ("ip", "-oneline", "monitor", "link"), "features": ("ethtool", "--monitor")}
    for node in nodes:
        for name, command in watchers.items():
            node.sandbox.log(name).unlink(missing_ok=True)
            node.sandbox.spawn(name, *by_line, *command)
    time.sleep(0.5)
    try:
        yield
    finally:
        for node in nodes:
            for name in watchers:
                node.sandbox.stop(name)
    for node in nodes:
        for name in watchers:
            assert not spoken_of(node.sandbox.log(name)), f"{node.name} moved"


def spoken_of(log: Path) -> list[str]:
    """`ip` begins a line with `5: uplink0@if7:`, where what follows the @ may be a number of another namespace."""
    own = re.compile(rf"^(Deleted )?\d+: ({'|'.join(MANAGED)})[@:]|for ({'|'.join(MANAGED)}):")
    return [line for line in log.read_text().splitlines() if own.search(line)]


def test_a_restart_of_all_agents_moves_nothing_on_any_host(virtnet: Operator) -> None:
    virtnet.apply(uplink("lan", tso=False))
    virtnet.ready("lan")
    with unmoved(*virtnet.cluster.nodes):
        virtnet.kubectl("delete", "pods", "--selector=app.kubernetes.io/component=agent")
        virtnet.wait_agents()
        virtnet.ready("lan")


def test_an_agent_that_is_killed_comes_back_and_repairs_what_happened_meanwhile(virtnet: Operator) -> None:
    node = virtnet.cluster.node(1)
    virtnet.apply(uplink("lan", tso=False))
    virtnet.ready("lan")
    node.run("sh", "-c", "kill -9 $(pidof -x virtnet)")
    node.fix(UPLINK, tso=True)
    wait_until("it is as asked again", lambda: not node.feature(UPLINK, TSO), 30)
    virtnet.wait_agents()


def test_a_drain_leaves_the_agent_and_moves_nothing(virtnet: Operator) -> None:
    node = virtnet.cluster.node(2)
    virtnet.apply(uplink("lan", tso=False))
    virtnet.ready("lan")
    with unmoved(node):
        virtnet.cluster.kubectl("drain", node.name, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s")
        virtnet.ready("lan")
        virtnet.cluster.kubectl("uncordon", node.name)
    virtnet.kubectl("rollout", "status", "deployment/virtnet-controller", "--timeout=60s")


def test_a_node_that_joins_is_made_as_asked_and_one_that_leaves_is_forgotten(virtnet: Operator) -> None:
    virtnet.apply(uplink("lan", tso=False))
    virtnet.ready("lan")
    virtnet.apply(uplink("lan", tso=False, gro=True))
    virtnet.ready("lan")
    node = virtnet.cluster.add_node(4)
    try:
        wait_until("the new node is as asked", lambda: not node.feature(UPLINK, TSO), 60)
        wait_until("four nodes count", lambda: virtnet.get("lan")["status"]["nodes"]["ready"] == 4, 30)
    finally:
        virtnet.cluster.remove_node(node)
    wait_until("its state is gone", lambda: virtnet.state(node) is None, 60, 0.5)
    wait_until("three nodes count", lambda: virtnet.get("lan")["status"]["nodes"]["matched"] == 3, 30)
    virtnet.ready("lan")


def test_a_node_that_dies_is_unknown_and_keeps_no_rollout_waiting(virtnet: Operator) -> None:
    steps = {"rollout": {"canary": 1, "maxUnavailable": 1, "deadlineSeconds": 20}}
    virtnet.apply(uplink("lan", steps, tso=False))
    virtnet.ready("lan")
    dead, *others = virtnet.cluster.nodes
    dead.sandbox.stop("kubelet")
    try:
        virtnet.wait_condition("lan", "Ready", "Unknown", "AgentDown", 60)
        virtnet.apply(uplink("lan", steps, tso=True))
        wait_until("the others have it", lambda: all(node.feature(UPLINK, TSO) for node in others), 60, 0.3)
    finally:
        dead.start_kubelet()
    virtnet.ready("lan")
    assert dead.feature(UPLINK, TSO)


def test_a_node_that_is_deleted_and_made_anew_under_its_agent_is_another_one_and_does_not_move(
    virtnet: Operator,
) -> None:
    cluster, node = virtnet.cluster, virtnet.cluster.node(3)
    virtnet.apply(uplink("lan", tso=False))
    virtnet.ready("lan")
    with unmoved(node):
        before = cluster.object("node", node.name)
        cluster.kubectl("delete", "node", node.name)
        cluster.apply(without_history(before))
        uid = cluster.object("node", node.name)["metadata"]["uid"]
        assert uid != before["metadata"]["uid"]
        cluster.wait_ready(node)
        wait_until("its state is owned by the new Node", lambda: owners(virtnet.state(node)) == [uid], 90, 0.5)
        virtnet.wait_status("lan", "in force on three", lambda found: found["status"]["nodes"]["ready"] == 3, 90)
        virtnet.ready("lan")
    node.fix(UPLINK, tso=True)
    wait_until("its agent repairs it", lambda: not node.feature(UPLINK, TSO), 30)


def owners(state: Object | None) -> list[str]:
    """The uids of those who take a node state along when they go."""
    return [owner["uid"] for owner in state["metadata"].get("ownerReferences", [])] if state else []


def test_definitions_that_are_removed_and_come_back_restore_no_host(virtnet: Operator) -> None:
    """Removing a definition deletes all of its kind; whoever puts the files back puts the policies back too."""
    cluster = virtnet.cluster
    virtnet.apply(uplink("lan", tso=False))
    virtnet.ready("lan")
    definitions = [without_history(each) for each in cluster.objects("crd") if each["spec"]["group"] == "virtnet.dev"]
    assert len(definitions) == 2
    with unmoved(*cluster.nodes):
        cluster.delete(*definitions)
        for node in cluster.nodes:
            wait_until(f"the agent of {node.name} noticed", functools.partial(notices_the_loss, virtnet, node), 60, 0.5)
        cluster.apply(*definitions)
        cluster.wait_for("condition=Established", *(f"crd/{each['metadata']['name']}" for each in definitions))
        virtnet.apply(uplink("lan", tso=False))
        virtnet.ready("lan", seconds=150)
    assert {virtnet.state(node)["metadata"]["name"] for node in cluster.nodes} == {"node1", "node2", "node3"}
    node = cluster.node(2)
    node.fix(UPLINK, tso=True)
    wait_until("drift is repaired", lambda: not node.feature(UPLINK, TSO), 30)


def notices_the_loss(virtnet: Operator, node: Node) -> bool:
    pod = virtnet.agent(node)["metadata"]["name"]
    return "the last admitted policies stay in force" in virtnet.kubectl("logs", pod, "--since=120s")


def without_history(found: Object) -> Object:
    """An object as somebody could have written it, to make it anew."""
    kept = {key: found["metadata"][key] for key in ("name", "labels", "annotations") if key in found["metadata"]}
    return {**{key: found[key] for key in ("apiVersion", "kind", "spec")}, "metadata": kept}
