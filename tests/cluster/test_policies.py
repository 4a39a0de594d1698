"""What an administrator does with policies: apply, edit, delete, select, audit; and what others do meanwhile."""

from __future__ import annotations

import json
import re
import time

import pytest

from tests.chart import argocd
from tests.cluster.cluster import condition
from tests.cluster.commands import CommandFailed
from tests.cluster.installation import Operator, on_all, policy, uplink
from tests.cluster.nodes import BRIDGE, UPLINK, Node
from tests.cluster.sandbox import wait_until

GRO, TSO = "generic-receive-offload", "tcp-segmentation-offload"


def test_an_applied_policy_is_in_force_on_every_node_and_says_so(virtnet: Operator) -> None:
    nodes = virtnet.cluster.nodes
    assert all(node.feature(UPLINK, TSO) for node in nodes)
    virtnet.apply(uplink(gro=True, tso=False))
    virtnet.ready("lan")
    assert [(node.feature(UPLINK, GRO), node.feature(UPLINK, TSO)) for node in nodes] == [(True, False)] * 3
    found = virtnet.get("lan")
    assert argocd.health(found)[0] == "Healthy"
    assert found["status"]["nodes"] == {"matched": 3, "admitted": 3, "ready": 3, "blocked": 0, "unknown": 0}


def test_an_edit_is_followed_and_a_deletion_puts_back_what_was_there(virtnet: Operator) -> None:
    nodes = virtnet.cluster.nodes
    virtnet.apply(uplink(tso=False))
    virtnet.ready("lan")
    virtnet.apply(uplink(gro=True))
    virtnet.ready("lan")
    assert [(node.feature(UPLINK, GRO), node.feature(UPLINK, TSO)) for node in nodes] == [(True, True)] * 3
    virtnet.cluster.kubectl("delete", "vnp", "lan")
    on_all(nodes, lambda node: not node.feature(UPLINK, GRO), "the original of gro")


def test_what_another_program_changes_is_put_back_at_once_and_counted(virtnet: Operator) -> None:
    node = virtnet.cluster.node(2)
    virtnet.apply(uplink(tso=False))
    virtnet.ready("lan")
    node.fix(UPLINK, tso=True)
    wait_until("tso is off again", lambda: not node.feature(UPLINK, TSO), 2, 0.02)
    repaired = virtnet.metrics(node)
    assert sum(value for name, value in repaired.items() if name.startswith("virtnet_drift_repaired_total")) >= 1


def test_of_two_policies_the_higher_priority_wins_and_the_other_is_told(virtnet: Operator) -> None:
    nodes = virtnet.cluster.nodes
    virtnet.apply(uplink("loser", tso=True, gro=True), uplink("winner", {"priority": 10}, tso=False))
    virtnet.ready("winner")
    lost = virtnet.wait_condition("loser", "Conflicted", "True")
    assert condition(lost, "Ready") == "True"
    assert condition(lost, "Complete") == "False"
    (problem,) = lost["status"]["problems"]
    assert (problem["reason"], problem["setting"]) == ("OverriddenBy", "uplink.offloads.tso")
    assert "winner" in problem["message"]
    assert [(node.feature(UPLINK, GRO), node.feature(UPLINK, TSO)) for node in nodes] == [(True, False)] * 3
    virtnet.cluster.kubectl("delete", "vnp", "winner")
    on_all(nodes, lambda node: node.feature(UPLINK, TSO), "the loser's wish")
    virtnet.wait_condition("loser", "Conflicted", "False")


def test_two_policies_that_swap_are_right_in_the_end(virtnet: Operator) -> None:
    nodes = virtnet.cluster.nodes
    virtnet.apply(uplink("one", gro=True), uplink("two", tso=False))
    virtnet.ready("one", "two")
    virtnet.apply(uplink("one", tso=False), uplink("two", gro=True))
    virtnet.ready("one", "two")
    on_all(nodes, lambda node: (node.feature(UPLINK, GRO), node.feature(UPLINK, TSO)) == (True, False), "both wishes")


def test_two_policies_that_swap_their_priorities_swap_who_is_told(virtnet: Operator) -> None:
    nodes = virtnet.cluster.nodes
    high, low = {"priority": 10}, {"priority": 5}
    virtnet.apply(uplink("one", high, tso=False), uplink("two", low, tso=True))
    virtnet.wait_condition("two", "Conflicted", "True")
    on_all(nodes, lambda node: not node.feature(UPLINK, TSO), "the wish of one")
    virtnet.apply(uplink("one", low, tso=False), uplink("two", high, tso=True))
    virtnet.ready("one", "two")
    virtnet.wait_condition("one", "Conflicted", "True")
    virtnet.wait_condition("two", "Conflicted", "False")
    on_all(nodes, lambda node: node.feature(UPLINK, TSO), "the wish of two")


def test_of_two_edits_within_a_second_the_last_is_in_force(virtnet: Operator) -> None:
    virtnet.apply(uplink(tso=False))
    virtnet.ready("lan")
    virtnet.apply(uplink(tso=True))
    virtnet.apply(uplink(tso=False, gro=True))
    virtnet.ready("lan")
    for node in virtnet.cluster.nodes:
        assert (node.feature(UPLINK, GRO), node.feature(UPLINK, TSO)) == (True, False)


def test_an_audit_reports_what_it_would_do_and_changes_nothing(virtnet: Operator) -> None:
    nodes = virtnet.cluster.nodes
    before = [node.picture() for node in nodes]
    virtnet.apply(uplink("lan", {"mode": "Audit"}, tso=False))
    virtnet.ready("lan")
    found = virtnet.wait_condition("lan", "Complete", "False", "AuditOnly")
    assert {problem["reason"] for problem in found["status"]["problems"]} == {"AuditOnly"}
    assert [node.picture() for node in nodes] == before


def test_a_policy_follows_the_labels_of_the_nodes(virtnet: Operator) -> None:
    one, two, three = virtnet.cluster.nodes
    virtnet.cluster.kubectl("label", "node", one.name, "role=gateway")
    virtnet.apply(uplink("gateways", {"nodeSelector": {"matchLabels": {"role": "gateway"}}}, tso=False))
    virtnet.wait_status("gateways", "in force on one node", lambda found: found["status"]["nodes"]["ready"] == 1)
    assert [node.feature(UPLINK, TSO) for node in (one, two, three)] == [False, True, True]
    virtnet.cluster.kubectl("label", "node", two.name, "role=gateway")
    wait_until("node2 follows", lambda: not two.feature(UPLINK, TSO), 15)
    virtnet.cluster.kubectl("label", "node", one.name, two.name, "role-")
    on_all([one, two], lambda node: node.feature(UPLINK, TSO), "the original")
    virtnet.wait_status("gateways", "of no node", lambda found: found["status"]["nodes"]["matched"] == 0)
    virtnet.wait_condition("gateways", "Ready", "True", "NoNodes")


def test_bridges_and_taps_are_made_kept_and_removed(virtnet: Operator) -> None:
    nodes = virtnet.cluster.nodes
    virtnet.apply(
        policy("taps", bridge={"name": "br-lab", "create": True, "stp": False}, tap={"create": [{"name": "vm1"}]})
    )
    virtnet.ready("taps")
    assert {link(node, "vm1")["master"] for node in nodes} == {"br-lab"}
    nodes[0].run("ip", "link", "del", "vm1")
    wait_until("the tap is there again", lambda: "vm1" in nodes[0].run("ip", "link"), 10)


def link(node: Node, name: str) -> dict[str, object]:
    return dict(json.loads(node.run("ip", "-json", "-details", "link", "show", name))[0])


def test_a_node_that_is_held_is_left_alone_until_it_is_let_go(virtnet: Operator) -> None:
    node, *others = virtnet.cluster.nodes
    virtnet.apply(uplink(tso=False))
    virtnet.ready("lan")
    virtnet.cluster.kubectl("annotate", "node", node.name, "virtnet.dev/hold=true")
    wait_until("it says that it is held", lambda: condition(virtnet.state(node), "Held") == "True", 15)
    wait_until("its metrics say so", lambda: virtnet.metrics(node)["virtnet_held"] == 1, 15, 0.5)
    assert [virtnet.metrics(other)["virtnet_held"] for other in others] == [0, 0]
    assert spoken_of(virtnet.alert("VirtnetHeld")) <= virtnet.metrics(node).keys()
    node.fix(UPLINK, tso=True)
    time.sleep(2)
    assert node.feature(UPLINK, TSO)
    virtnet.cluster.kubectl("annotate", "node", node.name, "virtnet.dev/hold-")
    wait_until("it is as asked again", lambda: not node.feature(UPLINK, TSO), 15)
    wait_until("its metrics say so", lambda: virtnet.metrics(node)["virtnet_held"] == 0, 15, 0.5)


def spoken_of(expression: str) -> set[str]:
    """The names of our metrics in an expression of PromQL."""
    return set(re.findall(r"\bvirtnet_\w+", expression))


def test_what_kubectl_shows_fits_on_a_line_and_says_what_is_wrong(virtnet: Operator) -> None:
    virtnet.apply(policy("lan", bridge={"name": BRIDGE, "ports": ["absent0"]}))
    found = virtnet.wait_condition("lan", "Ready", "False", "Missing")
    assert argocd.health(found)[0] == "Degraded"
    header, line = virtnet.cluster.kubectl("get", "vnp").splitlines()
    assert header.split() == ["NAME", "READY", "MODE", "NODES", "READYNODES", "BLOCKED", "AGE"]
    assert line.split()[:5] == ["lan", "False", "Enforce", "3", "0"]
    described = virtnet.cluster.kubectl("describe", "vnp", "lan")
    assert "absent0" in described
    assert "Missing" in described
    assert "VirtioNetworkPolicy" in virtnet.cluster.kubectl("explain", "vnp.spec.rollout")


def test_the_plugin_of_kubectl_tells_the_same_in_tables(virtnet: Operator) -> None:
    virtnet.apply(uplink("lan", tso=False), uplink("rival", {"priority": -1}, tso=True))
    virtnet.ready("lan", "rival")
    virtnet.wait_condition("rival", "Conflicted", "True")
    assert re.search(r"^ *lan +Ready +Enforce +3 of 3 nodes", virtnet.plugin("status"), re.M)
    why = virtnet.plugin("why", "rival")
    assert "OverriddenBy" in why
    assert "lan" in why
    with pytest.raises(
        CommandFailed, match=r"exit code 2: (?s:.*)uplink.offloads.tso"
    ):  # as diff: there is a difference
        virtnet.plugin("diff", "node1")
