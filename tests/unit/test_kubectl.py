"""`kubectl virtnet`: what it reads over HTTP, and the sheets that it draws."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.agent.objects import Kind, Object
from tests.agent.server import KINDS, NODE_STATES, POLICIES, TOKEN, ApiServer
from virtnet.cli import fleet, kubectl, remote
from virtnet.cli.remote import Cluster

PODS = Kind("", "v1", "pods", "Pod", namespaced=True)
LABELS = {"app.kubernetes.io/name": "virtio-network-operator", "app.kubernetes.io/component": "agent"}
HALF = 2**51


def condition(kind: str, status: str, reason: str = "AsAsked", message: str = "") -> Object:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def setting(subject: str, reason: str, message: str, policy: str = "lan", name: str = "uplink.offloads.lro") -> Object:
    row = {"subject": subject, "setting": name, "wanted": True, "actual": False}
    return {**row, "reason": reason, "message": message, "policy": policy}


def policy(name: str, *conditions: Object, generation: int = 1, **status: Any) -> Object:
    found = {"conditions": list(conditions), **status}
    return {"metadata": {"name": name, "generation": generation}, "spec": {"mode": "Enforce"}, "status": found}


def state(name: str, *settings: Object, ready: str = "True", generation: int = 1, **status: Any) -> Object:
    failing = [condition("Ready", "False", "Failed", "1 setting fails")] if ready == "False" else []
    held = status.pop("held", "")
    found = {
        "conditions": [
            *(failing or [condition("Ready", "True")]),
            condition("Held", "True" if held else "False", "Held", held),
        ],
        "policies": [{"name": "lan", "generation": generation, "ready": ready == "True", "blocked": len(settings)}],
        "settings": list(settings),
        "vhost": {"module": "Loaded"},
        "agent": {"version": "0.1.0"},
        "counts": {"policies": 1, "blocked": len(settings)},
        **status,
    }
    return {"metadata": {"name": name}, "status": found}


def pod(node: str, trouble: str = "", restarts: int = 0) -> Object:
    waits = {"state": {"waiting": {"reason": trouble}}} if trouble else {"state": {"running": {}}}
    container = {"name": "agent", "ready": not trouble, "restartCount": restarts, **waits}
    return {
        "metadata": {"name": f"virtnet-agent-{node}", "labels": LABELS},
        "spec": {"nodeName": node},
        "status": {"phase": "Running", "containerStatuses": [container]},
    }


class Served:
    """An API server on a thread of its own, as the program under test waits for its answers."""

    def __init__(self, folder: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.server = ApiServer(kinds=(PODS, *KINDS))
        self.call(self.server.start())
        self.kubeconfig = str(folder / "config")
        self.write(TOKEN)

    def call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def write(self, token: str) -> None:
        found = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "c", "cluster": {"server": self.server.url}}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        }
        Path(self.kubeconfig).write_text(yaml.safe_dump(found))

    def put(self, kind: Kind, one: Object, namespace: str = "") -> None:
        objects = self.server.objects[kind.plural]
        made = objects.create(one, namespace)
        made["metadata"] |= {"generation": one["metadata"].get("generation", 1)}
        objects.merge(one["metadata"]["name"], {"status": one["status"]}, namespace, "status")

    def run(self, *words: str) -> int:
        return kubectl.main([*words, "--kubeconfig", self.kubeconfig])

    def close(self) -> None:
        self.call(self.server.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("COLUMNS", "120")
    found = Served(tmp_path)
    yield found
    found.close()
    assert found.server.surprises == []


@pytest.fixture
def fleet_of_three(served: Served) -> Served:
    """A policy that fails on one node, is settled on two in the same words, and has not reached one of them."""
    problem = {"node": "node4", "setting": "", "reason": "AgentDown", "message": "no agent reports from this node"}
    conditions = [
        condition("Ready", "False", "Failed", "2 of 4 nodes are not as asked"),
        condition("Reconciling", "False"),
        condition("Stalled", "True", "Paused", "paused: node1 fails"),
    ]
    served.put(
        POLICIES,
        policy(
            "lan",
            *conditions,
            generation=2,
            nodes={"matched": 4, "admitted": 1, "ready": 2, "blocked": 2},
            rollout={"generation": 2, "admitted": HALF, "paused": True, "reason": "node1: eth0 mtu: no"},
            problems=[problem],
        ),
    )
    fixed = setting("link/eth0", "Fixed", "the driver cannot change it")
    served.put(NODE_STATES, state("node1", setting("link/eth0", "Failed", "no", name="uplink.mtu"), ready="False"))
    served.put(NODE_STATES, state("node2", fixed, generation=2))
    served.put(NODE_STATES, state("node3", fixed, held="the node is held until 23:15: reported, not changed"))
    served.put(PODS, pod("node1"), "virtnet-system")
    served.put(PODS, pod("node2", "CrashLoopBackOff", 4), "virtnet-system")
    return served


def test_status_shows_policies_nodes_and_agents_on_one_sheet(
    fleet_of_three: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fleet_of_three.run("status") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "POLICIES",
        "lan Stalled Enforce 2 of 4 nodes 2 blocked generation 2 admitted on 1 of 4, paused paused: node1 fails",
        "",
        "NODES",
        "node1 Not ready 1 policy 1 blocked vhost_net Loaded 0.1.0 1 setting fails",
        "node2 Ready 1 policy 1 blocked vhost_net Loaded 0.1.0",
        "node3 Ready 1 policy 1 blocked vhost_net Loaded 0.1.0 the node is held until 23:15: reported, not changed",
        "",
        "AGENTS",
        "1 of 2 ready",
        "node2 virtnet-agent-node2 CrashLoopBackOff, 4 restarts",
        "",
    ]


def test_status_of_an_empty_cluster_says_so(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert served.run("status") == 0
    assert capsys.readouterr().out.split() == ["POLICIES", "none", "NODES", "none", "AGENTS", "0", "of", "0", "ready"]


def test_status_goes_on_when_pods_may_not_be_read(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    served.server.refuse = lambda request: 403 if "/pods" in request.path else None
    assert served.run("status") == 0
    said = capsys.readouterr()
    assert "AGENTS" not in said.out
    assert "the agents' pods cannot be seen" in said.err


@pytest.mark.parametrize(("output", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_programs_get_the_status_as_it_is(
    fleet_of_three: Served, capsys: pytest.CaptureFixture[str], output: str, read: Any
) -> None:
    assert fleet_of_three.run("status", "-o", output) == 0
    found = read(capsys.readouterr().out)
    assert [each["name"] for each in found["nodes"]] == ["node1", "node2", "node3"]
    assert found["policies"][0]["status"]["rollout"]["admitted"] == HALF


def test_diff_shows_what_differs_on_one_node_with_the_state_of_its_agent(
    fleet_of_three: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fleet_of_three.run("diff", "node2") == kubectl.DIFFERENT
    out = capsys.readouterr().out
    assert "node2 · virtnet 0.1.0 · agent virtnet-agent-node2 is not ready: CrashLoopBackOff, 4 restarts" in out
    assert "lan  Ready, generation 2, 1 setting blocked" in out
    assert "uplink.offloads.lro  off → on  Fixed" in out
    assert "the driver cannot change it" in out


def test_diff_of_a_node_without_an_agent_and_with_a_hold_says_both(
    fleet_of_three: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet_of_three.run("diff", "node3")
    out = capsys.readouterr().out
    assert "no agent is running there" in out
    assert "HELD  the node is held until 23:15" in out


def test_diff_of_a_node_that_is_as_asked_ends_with_0(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    served.put(NODE_STATES, state("node1"))
    assert served.run("diff", "node1") == 0
    out = capsys.readouterr().out
    assert "lan  as asked, generation 1" in out
    assert "DIFFERS" not in out


def test_diff_gives_programs_the_status_of_the_node_state(
    fleet_of_three: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fleet_of_three.run("diff", "node1", "-o", "json") == kubectl.DIFFERENT
    assert json.loads(capsys.readouterr().out)["settings"][0]["reason"] == "Failed"


def test_what_did_not_fit_into_a_node_state_is_said(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    served.put(NODE_STATES, state("node1", setting("link/eth0", "Fixed", "no"), omitted={"settings": 7}))
    served.run("diff", "node1")
    assert "7 more settings did not fit into the node state." in capsys.readouterr().out


def test_why_names_everything_that_stands_in_the_way_the_worst_first(
    fleet_of_three: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fleet_of_three.run("why", "lan") == 0
    out = capsys.readouterr().out
    headings = [line for line in out.splitlines() if line and not line.startswith(" ")]
    assert headings == [
        "lan  Stalled  generation 2 admitted on 1 of 4, paused",
        "CONDITIONS",
        "ROLLOUT",
        "WAITS FOR ADMISSION",
        "NODES THAT DO NOT SAY",
        "node1",
        "node2, node3",
    ]
    assert "  node1, node3, 1 node without any generation of it\n" in out
    assert "node4  AgentDown  no agent reports from this node" in out


def test_why_of_a_policy_that_is_as_asked_is_short(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    served.put(POLICIES, policy("lan", condition("Ready", "True"), condition("Complete", "True")))
    served.put(NODE_STATES, state("node1"))
    assert served.run("why", "lan") == 0
    assert capsys.readouterr().out.endswith("Nothing stands in its way.\n")


def test_why_gives_programs_each_finding_with_its_nodes(
    fleet_of_three: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet_of_three.run("why", "lan", "-o", "json")
    found = json.loads(capsys.readouterr().out)
    assert found["waiting"] == ["node1", "node3"]
    assert [(each["reason"], each["nodes"]) for each in found["findings"]] == [
        ("Failed", ["node1"]),
        ("Fixed", ["node2", "node3"]),
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["diff", "nodel"], "nodel is no node with an agent; there are: node1, node2, node3"),
        (["why", "wan"], "wan is no policy; there are: lan"),
        (["status", "--context", "there"], "the kubeconfig cannot be used"),
        (["diff"], "Missing argument"),
        (["status", "-o", "xml"], "kubectl virtnet --help shows how"),
    ],
)
def test_a_mistake_is_one_sentence_and_ends_with_1(
    fleet_of_three: Served, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert fleet_of_three.run(*words) == 1
    said = capsys.readouterr()
    assert sentence in said.err
    assert len(said.err.splitlines()) == 1
    assert said.out == ""


def test_an_api_server_that_is_gone_is_one_sentence(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    served.call(served.server.stop())
    assert served.run("status") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("the API server cannot be reached: ")
    served.call(served.server.start())


def test_a_token_that_is_not_taken_is_said(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    served.write("another")
    assert served.run("status") == 1
    assert "(401)" in capsys.readouterr().err


def test_a_missing_client_library_is_one_sentence(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    assert served.run("status") == 1
    assert capsys.readouterr().err == f"{remote.NO_CLIENT}\n"


def test_long_lists_are_read_page_by_page_and_in_the_order_of_names(served: Served) -> None:
    for number in range(remote.PAGE + 20):
        served.put(NODE_STATES, {"metadata": {"name": f"n{number:04}"}, "status": {}})
    found = Cluster.connect(served.kubeconfig).list(remote.NODE_STATES)
    assert [remote.name(one) for one in found] == [f"n{number:04}" for number in range(remote.PAGE + 20)]
    assert served.server.count("GET", NODE_STATES.plural) == 2


@pytest.mark.parametrize(
    ("conditions", "word"),
    [
        ([], "Unknown"),
        ([("Ready", "True")], "Ready"),
        ([("Ready", "False")], "Not ready"),
        ([("Ready", "Unknown")], "Unknown"),
        ([("Ready", "False"), ("Reconciling", "True")], "Reconciling"),
        ([("Ready", "False"), ("Reconciling", "True"), ("Stalled", "True")], "Stalled"),
    ],
)
def test_conditions_are_one_word(conditions: list[tuple[str, str]], word: str) -> None:
    found = {"status": {"conditions": [condition(kind, status) for kind, status in conditions]}}
    assert fleet.verdict(found).plain == word


def test_a_reason_of_a_newer_agent_is_told_in_the_sentence() -> None:
    (row,) = fleet.rows(state("n", setting("link/eth0", "Novel", "something new")))
    assert (row.reason, row.message) == (None, "Novel: something new")


def test_many_nodes_that_say_the_same_are_counted() -> None:
    assert fleet.few([f"n{number}" for number in range(8)]) == "n0, n1, n2, n3, n4 and 3 more"


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ({"phase": "Pending"}, "Pending, not ready"),
        ({"phase": "Running", "containerStatuses": [{"ready": True}]}, ""),
        ({"phase": "Running", "containerStatuses": [{"ready": False}]}, "Running, not ready"),
        (
            {"containerStatuses": [{"ready": False, "state": {"terminated": {"reason": "OOMKilled"}}}]},
            "OOMKilled",
        ),
    ],
)
def test_the_trouble_of_a_pod_is_a_few_words(found: Object, why: str) -> None:
    assert fleet.pod_trouble({"status": found}) == why
