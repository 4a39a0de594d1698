"""An agent on its node: what it enforces, what it writes, and what it leaves alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.agent.node import NAME, NODE_STATES, NODES, POLICIES, Cluster, Machine, a_cluster, queue, run, until
from virtnet.kube import agent, publishing
from virtnet.kube.publishing import MANAGER

MOST_AT_START = 14


async def rest(seconds: float = 1.0) -> None:
    """Time in which something that should not happen could."""
    await asyncio.sleep(seconds)


async def in_force(machine: Machine, cluster: Cluster, **generations: int) -> None:
    await until(lambda: cluster.generations() == generations, f"{generations} reported")
    assert machine.agent.operator.starts >= 1


# --- the start ---------------------------------------------------------------------------------------------


def test_a_node_that_joins_enforces_the_policies_and_reports_them(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_cluster() as cluster:
            cluster.add("p", queue(500))
            machine = Machine(cluster, tmp_path)
            async with machine.living():
                await in_force(machine, cluster, p=1)
                assert machine.has("-gro", "txqlen=500")
                assert cluster.condition("Ready").startswith("Ready=True AsAsked")
                assert cluster.state["metadata"]["ownerReferences"] == [
                    {"apiVersion": "v1", "kind": "Node", "name": NAME, "uid": cluster.node["metadata"]["uid"]}
                ]

    run(story)


def test_a_start_takes_few_requests_one_list_and_one_watch_of_each_kind(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_cluster() as cluster:
            cluster.add("p", queue(500))
            machine = Machine(cluster, tmp_path)
            async with machine.living():
                await in_force(machine, cluster, p=1)
                await rest()
            assert len(cluster.server.asked) <= MOST_AT_START
            for kind in (POLICIES, NODES, NODE_STATES):
                lists = [a for a in cluster.server.select("GET", watch=False) if a.path.endswith(f"/{kind.plural}")]
                assert len(lists) == cluster.server.count(path=f"/{kind.plural}", watch=True) == 1
            assert {a.manager for a in cluster.server.asked if a.is_write} == {MANAGER}

    run(story)


def test_it_asks_for_its_own_node_and_state_alone(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_cluster() as cluster:
            machine = Machine(cluster, tmp_path)
            async with machine.living():
                await until(lambda: cluster.condition("Ready").startswith("Ready=True NoPolicies"))
            asked = [a for a in cluster.server.select("GET") if a.path.endswith(("/nodes", NODE_STATES.plural))]
            assert {a.query.get("fieldSelector") for a in asked} == {f"metadata.name={NAME}"}

    run(story)


def test_an_agent_that_is_started_again_changes_and_writes_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_cluster() as cluster:
            cluster.add("p", queue(500))
            machine = Machine(cluster, tmp_path)
            async with machine.living():
                await in_force(machine, cluster, p=1)
            writes, changes = cluster.writes(), len(machine.host.applied)
            async with machine.living() as second:
                second.engine._earlier = cluster.status
                await until(lambda: cluster.server.count(path=POLICIES.plural, watch=True) == 2)
                await rest()
            assert (cluster.writes(), len(machine.host.applied)) == (writes, changes)

    run(story)


# --- policies ----------------------------------------------------------------------------------------------


def test_edits_conflicts_and_deletions_are_followed(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_cluster() as cluster:
            machine = Machine(cluster, tmp_path)
            cluster.add("low", queue(500, priority=1))
            async with machine.living():
                await in_force(machine, cluster, low=1)
                cluster.add("high", queue(600, priority=2))
                await until(lambda: machine.has("txqlen=600"))
                cluster.edit("high", priority=0)
                cluster.edit("high", priority=-1)
                cluster.admit("high")
                await until(lambda: machine.has("txqlen=500"), "swapped")
                await until(lambda: cluster.generations() == {"low": 1, "high": 3})
                cluster.server.delete(POLICIES, "low")
                await until(lambda: machine.has("txqlen=600"), "the other one is left")
                cluster.server.delete(POLICIES, "high")
                await until(lambda: machine.has("+gro") and cluster.generations() == {}, "originals are back")

    run(story)


def test_a_node_that_waits_for_admission_enforces_what_it_had_and_writes_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_cluster() as cluster:
            cluster.add("p", queue(500))
            machine = Machine(cluster, tmp_path)
            async with machine.living():
                await in_force(machine, cluster, p=1)
                before = cluster.writes()
                cluster.edit("p", tap={"txQueueLength": 700})
                cluster.admit("p", admitted=0)
                await rest()
                assert machine.has("txqlen=500")
                assert cluster.writes() == before
                cluster.admit("p")
                await in_force(machine, cluster, p=2)
                assert machine.has("txqlen=700")
                assert cluster.writes() == before + 1

    run(story)


def test_what_others_write_into_the_status_of_a_policy_wakes_nobody(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_cluster() as cluster:
            cluster.add("p", queue(500))
            machine = Machine(cluster, tmp_path)
            async with machine.living():
                await in_force(machine, cluster, p=1)
                passes, asked = machine.agent.engine.passes, len(cluster.server.asked)
                for ready in range(20):
                    cluster.server.merge(POLICIES, "p", {"status": {"nodes": {"ready": ready}}}, "status")
                await rest()
                assert (machine.agent.engine.passes, len(cluster.server.asked)) == (passes, asked)

    run(story)


def test_a_stored_object_that_the_models_refuse_leaves_the_last_good_one_in_force(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_cluster() as cluster:
            cluster.add("p", queue(500))
            machine = Machine(cluster, tmp_path)
            async with machine.living():
                await in_force(machine, cluster, p=1)
                cluster.edit("p", tap={"txQueueLenght": 700})
                cluster.admit("p")
                await until(lambda: "Ready=False Unreadable" in cluster.condition("Ready"))
                assert "policy p, generation 2: spec.tap.txQueueLenght" in cluster.condition("Ready")
                assert "its generation 1 stays in force" in cluster.condition("Ready")
                assert machine.has("txqlen=500")
                await machine.drifts()
                cluster.edit("p", tap={"txQueueLenght": None, "txQueueLength": 700})
                cluster.admit("p")
                await in_force(machine, cluster, p=3)
                await until(lambda: cluster.condition("Ready").startswith("Ready=True"))

    run(story)


def test_labels_of_the_node_decide_which_policies_select_it(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_cluster() as cluster:
            cluster.add("p", queue(500, nodeSelector={"matchLabels": {"rack": "a"}}))
            machine = Machine(cluster, tmp_path)
            async with machine.living():
                await until(lambda: cluster.condition("Ready").startswith("Ready=True NoPolicies"))
                cluster.server.merge(NODES, NAME, {"metadata": {"labels": {"rack": "a"}}})
                await in_force(machine, cluster, p=1)
                assert machine.has("txqlen=500")
                cluster.server.merge(NODES, NAME, {"metadata": {"labels": {"rack": "b"}}})
                await until(lambda: cluster.generations() == {})
                await until(lambda: machine.has("+gro"))

    run(story)


# --- definitions -------------------------------------------------------------------------------------------


def test_a_definition_that_is_removed_and_comes_back_deletes_no_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "ORPHAN_SECONDS", 1.0)

    async def story() -> None:
        async with a_cluster() as cluster:
            cluster.add("p", queue(500))
            cluster.add("q", {"bridge": {"name": "br0", "ageingTimeSeconds": 7}})
            machine = Machine(cluster, tmp_path)
            server = cluster.server
            async with machine.living():
                await in_force(machine, cluster, p=1, q=1)
                server.terminating = {POLICIES.plural}
                server.delete(POLICIES, "p")
                server.delete(POLICIES, "q")
                await until(lambda: machine.agent.admission.orphans == {"p", "q"})
                server.removed = {POLICIES.plural}
                server.tell(None)
                await until(lambda: "its definition is gone from the API server" in cluster.condition("Ready"))
                await machine.drifts()
                server.terminating, server.removed = set(), set()
                cluster.add("p", queue(500))
                await until(
                    lambda: cluster.generations() == {"p": 1}, "the one that did not come back has had its time"
                )
                assert machine.has("-gro", "txqlen=500")
                await until(lambda: cluster.condition("Ready").startswith("Ready=True"))

    run(story)


# --- the node and its state --------------------------------------------------------------------------------


def test_a_hold_on_the_node_leaves_the_host_alone_until_it_is_lifted(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_cluster() as cluster:
            cluster.add("p", queue(500))
            machine = Machine(cluster, tmp_path)
            async with machine.living():
                await in_force(machine, cluster, p=1)
                cluster.annotate_node(hold="true")
                await until(lambda: cluster.condition("Held").startswith("Held=True Held"))
                machine.host.flip("tap0", "gro", True)
                await rest(0.3)
                assert machine.has("+gro")
            async with machine.living():
                await rest(0.3)
                assert machine.has("+gro"), "also at a start, before the API server was asked"
                cluster.annotate_node(hold=None)
                await until(lambda: machine.has("-gro"))
                await until(lambda: cluster.condition("Held").startswith("Held=False"))

    run(story)


def test_a_release_puts_everything_back_and_lasts_until_it_is_lifted(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_cluster() as cluster:
            cluster.add("p", queue(500))
            machine = Machine(cluster, tmp_path)
            async with machine.living():
                await in_force(machine, cluster, p=1)
                cluster.release()
                await until(lambda: cluster.condition("Released").startswith("Released=True"))
                assert machine.is_as_before()
                assert machine.kept() == {}
                cluster.edit("p", tap={"txQueueLength": 700})
                cluster.admit("p")
                await rest()
                assert machine.is_as_before()
                cluster.release(False)
                await in_force(machine, cluster, p=2)
                assert machine.has("-gro", "txqlen=700")
                assert cluster.condition("Released").startswith("Released=False NotReleased")

    run(story)


def test_a_released_agent_that_is_started_again_under_the_annotation_enforces_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_cluster() as cluster:
            cluster.add("p", queue(500))
            machine = Machine(cluster, tmp_path)
            async with machine.living():
                await in_force(machine, cluster, p=1)
                cluster.release()
                await until(lambda: cluster.condition("Released").startswith("Released=True"))
            changes = len(machine.host.applied)
            async with machine.living():
                await until(lambda: machine.agent.admission.resting)
                await rest()
            assert len(machine.host.applied) == changes

    run(story)


def test_an_uninstalled_agent_rests_when_its_state_is_taken_away_and_begins_anew_when_it_is_started(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        async with a_cluster() as cluster:
            cluster.add("p", queue(500))
            machine = Machine(cluster, tmp_path)
            async with machine.living():
                await in_force(machine, cluster, p=1)
                cluster.release()
                await until(lambda: cluster.condition("Released").startswith("Released=True"))
                cluster.server.delete(NODE_STATES, NAME)
                await rest()
                assert cluster.state is None
                assert machine.has("+gro")
            async with machine.living():
                await in_force(machine, cluster, p=1)
                assert machine.has("-gro")

    run(story)


def test_a_state_that_somebody_deletes_is_made_again(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_cluster() as cluster:
            machine = Machine(cluster, tmp_path)
            async with machine.living():
                await until(lambda: cluster.status)
                cluster.server.delete(NODE_STATES, NAME)
                await until(lambda: cluster.status)

    run(story)


def test_what_somebody_writes_into_the_state_is_taken_back(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_cluster() as cluster:
            cluster.add("p", queue(500))
            machine = Machine(cluster, tmp_path)
            async with machine.living():
                await in_force(machine, cluster, p=1)
                right = cluster.status
                cluster.server.merge(NODE_STATES, NAME, {"status": {"policies": []}}, "status")
                await until(lambda: cluster.status == right)

    run(story)


def test_the_state_follows_a_node_that_is_made_anew_and_stays_away_while_there_is_none(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_cluster() as cluster:
            machine = Machine(cluster, tmp_path)
            async with machine.living():
                await until(lambda: cluster.status)
                cluster.server.delete(NODES, NAME)
                cluster.server.delete(NODE_STATES, NAME)
                await rest()
                assert cluster.state is None
                uid = cluster.add_node()["metadata"]["uid"]
                await until(lambda: cluster.status)
                assert cluster.state["metadata"]["ownerReferences"][0]["uid"] == uid

    run(story)


def test_a_storm_of_changes_is_few_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "BETWEEN_WRITES", 0.5)

    async def story() -> None:
        async with a_cluster() as cluster:
            cluster.add("p", queue(500))
            machine = Machine(cluster, tmp_path)
            async with machine.living():
                await in_force(machine, cluster, p=1)
                before = cluster.writes()
                for number in range(40):
                    cluster.annotate_node(hold="true" if number % 2 else None)
                    await asyncio.sleep(0.05)
                await until(lambda: cluster.condition("Held").startswith("Held=True"))
                assert cluster.writes() - before <= 6

    run(story)


def test_drifts_alone_are_no_news(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_cluster() as cluster:
            cluster.add("p", queue(500, onContention="Insist"))
            machine = Machine(cluster, tmp_path)
            async with machine.living():
                await in_force(machine, cluster, p=1)
                before = cluster.writes()
                for _ in range(3):
                    await machine.drifts()
                    machine.agent.engine.wake("a pass, for its report")
                await until(lambda: machine.agent.engine.status["policies"][0]["drifts"] == 3)
                await rest()
                assert cluster.writes() == before

    run(story)
