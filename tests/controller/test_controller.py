"""The controller as a process sees it: statuses, rollouts, Events, restarts, outages and what is gone."""

from __future__ import annotations

import asyncio

import pytest

from tests.agent.server import NODE_STATES, NODES, POLICIES
from tests.controller.cluster import NAMESPACE, Cluster, controlling, ready, serving
from virtnet.kube.controller import MANAGER

pytestmark = pytest.mark.timeout(90)

NAMES = [f"n{number}" for number in range(5)]
UPLINK = {"match": {"names": ["eth0"]}}


def writes(cluster: Cluster) -> int:
    return len([each for each in cluster.server.asked if each.is_write and each.path.endswith("/status")])


def add_nodes(cluster: Cluster) -> None:
    for name in NAMES:
        cluster.add_node(name)


def test_a_policy_is_let_out_step_by_step_until_it_is_ready_everywhere() -> None:
    async def story() -> None:
        async with serving() as cluster:
            add_nodes(cluster)
            cluster.add_policy("p", uplink=UPLINK)
            async with controlling(cluster):
                await cluster.until(lambda: len(cluster.admitted("p")) == 1, "the canary")
                assert cluster.condition("p", "Reconciling") == "True RollingOut"
                await cluster.rolled_out("p")
            assert cluster.status("p")["nodes"] == {"matched": 5, "admitted": 5, "ready": 5, "blocked": 0, "unknown": 0}
            assert cluster.condition("p", "Complete") == "True AsAsked"
            assert cluster.events() == ["Normal RolledOut x1: generation 1 was let out to all 5 nodes that it selects"]
            assert {each.manager for each in cluster.server.asked if each.path.endswith("/status")} == {MANAGER}

    asyncio.run(story())


def test_a_failing_node_pauses_it_and_an_edit_goes_on() -> None:
    async def story() -> None:
        async with serving() as cluster:
            add_nodes(cluster)
            cluster.add_policy("p", uplink=UPLINK)
            async with controlling(cluster):
                await cluster.until(lambda: len(cluster.admitted("p")) == 1)
                canary = min(cluster.admitted("p"))
                cluster.obey("p", failing=canary)
                await cluster.until(lambda: cluster.condition("p", "Stalled") == "True Paused")
                reason = cluster.status("p")["rollout"]["reason"]
                assert reason == f"{canary}: uplink.mtu: Refused: link/eth0: no"
                assert cluster.admitted("p") == {canary}
                cluster.server.merge(POLICIES, "p", {"spec": {"uplink": {"match": {"names": ["eth1"]}}}})
                await cluster.rolled_out("p")
            told = [each.split(" x1: ")[0] for each in cluster.events()]
            assert told[:2] == ["Warning RolloutPaused", "Warning Blocked"]
            assert told[2:] == ["Normal RolloutResumed", "Normal RolledOut"]

    asyncio.run(story())


def test_a_quiet_cluster_is_left_alone() -> None:
    async def story() -> None:
        async with serving() as cluster:
            add_nodes(cluster)
            cluster.add_policy("p", uplink=UPLINK)
            async with controlling(cluster):
                await cluster.rolled_out("p")
                await asyncio.sleep(1.5)
                before = len([each for each in cluster.server.asked if not each.is_watch])
                for name in NAMES:  # a heartbeat of the kubelet, and drifts that an agent counted
                    cluster.server.merge(NODES, name, {"status": {"images": [name]}}, "status")
                    cluster.report(name, p=1)
                await asyncio.sleep(2.5)
                assert len([each for each in cluster.server.asked if not each.is_watch]) == before

    asyncio.run(story())


def test_a_storm_of_reports_is_one_write_a_second() -> None:
    async def story() -> None:
        async with serving() as cluster:
            add_nodes(cluster)
            cluster.add_policy("p", uplink=UPLINK)
            async with controlling(cluster):
                await cluster.rolled_out("p")
                before = writes(cluster)
                row = {"subject": "link/eth0", "setting": "uplink.mtu", "reason": "Fixed", "policy": "p"}
                for number in range(150):
                    settings = [{**row, "message": f"number {number}"}]
                    cluster.report(NAMES[number % len(NAMES)], settings, p=1)
                    await asyncio.sleep(0.02)
                assert 1 <= writes(cluster) - before <= 5

    asyncio.run(story())


def test_an_agent_that_is_gone_is_told() -> None:
    async def story() -> None:
        async with serving() as cluster:
            add_nodes(cluster)
            cluster.add_policy("p", uplink=UPLINK)
            async with controlling(cluster):
                await cluster.rolled_out("p")
                cluster.set_agent("n1", False)
                await cluster.until(lambda: cluster.condition("p", "Ready") == "Unknown AgentDown")
                problem = {"node": "n1", "setting": "agent", "reason": "AgentDown", "message": "its agent is not ready"}
                assert cluster.status("p")["problems"] == [problem]
                cluster.set_agent("n1", True)
                await cluster.until(lambda: cluster.condition("p", "Ready") == "True AsAsked")
            assert "Warning AgentDown x1: n1: agent: its agent is not ready" in cluster.events()

    asyncio.run(story())


def test_a_controller_that_is_started_anew_goes_on_where_the_last_one_was() -> None:
    async def story() -> None:
        async with serving() as cluster:
            add_nodes(cluster)
            cluster.add_policy("p", uplink=UPLINK, rollout={"maxUnavailable": 1})
            admitted: list[set[str]] = []
            for _ in range(3):
                async with controlling(cluster):
                    seen = len(cluster.admitted("p"))
                    await cluster.until(lambda seen=seen: len(cluster.admitted("p")) > seen)  # type: ignore[misc]
                admitted.append(cluster.admitted("p"))
                cluster.obey("p")
            assert [len(nodes) for nodes in admitted] == [1, 2, 3]
            assert admitted[0] < admitted[1] < admitted[2]

    asyncio.run(story())


def test_an_outage_is_outlived_and_what_happened_meanwhile_is_known_afterwards() -> None:
    async def story() -> None:
        async with serving() as cluster:
            add_nodes(cluster)
            cluster.add_policy("p", uplink=UPLINK)
            cluster.add_policy("gone", uplink=UPLINK)
            async with controlling(cluster) as controller:
                await cluster.rolled_out("p")
                await cluster.rolled_out("gone")
                await cluster.server.stop()
                await asyncio.sleep(1.0)
                asked = len(cluster.server.asked)
                cluster.server.delete(POLICIES, "gone")
                cluster.server.delete(NODES, "n4")
                cluster.server.forget()
                await cluster.server.start()
                await cluster.until(lambda: cluster.status("p")["nodes"]["matched"] == 4)
                await cluster.until(lambda: set(controller.policies) == {"p"}, "a policy deleted meanwhile")
                assert len(cluster.server.asked) - asked < 60

    asyncio.run(story())


def test_a_server_that_refuses_for_a_while_is_not_stormed() -> None:
    async def story() -> None:
        async with serving() as cluster:
            add_nodes(cluster)
            cluster.add_policy("p", uplink=UPLINK)
            async with controlling(cluster):
                await cluster.rolled_out("p")
                cluster.server.refuse = lambda _: 503
                cluster.server.cut()
                before = len(cluster.server.asked)
                await asyncio.sleep(4.0)
                assert len(cluster.server.asked) - before < 40
                cluster.server.refuse = lambda _: None
                cluster.set_agent("n1", False)
                await cluster.until(lambda: cluster.condition("p", "Ready") == "Unknown AgentDown")

    asyncio.run(story())


def test_a_status_written_by_somebody_else_is_put_right() -> None:
    async def story() -> None:
        async with serving() as cluster:
            add_nodes(cluster)
            cluster.add_policy("p", uplink=UPLINK)
            async with controlling(cluster):
                await cluster.rolled_out("p")
                right = cluster.status("p")
                cluster.server.merge(POLICIES, "p", {"status": {"nodes": {"matched": 99}}}, "status")
                await cluster.until(lambda: cluster.status("p") == right)

    asyncio.run(story())


def test_the_state_of_a_node_that_is_gone_is_deleted_and_no_other() -> None:
    async def story() -> None:
        async with serving() as cluster:
            add_nodes(cluster)
            async with controlling(cluster) as controller:
                await cluster.until(lambda: controller.synced)
                cluster.server.delete(NODES, "n3")
                cluster.server.delete(NODES, "n4")
                cluster.server.create(NODES, {"metadata": {"name": "n4"}})
                await asyncio.sleep(0.3)
                await controller.sweep()
                states = cluster.server.objects["virtionetworknodestates"].found
                assert len(states) == 5, "it looks twice"
                await controller.sweep()
                assert sorted(name for _, name in states) == ["n0", "n1", "n2"]

    asyncio.run(story())


def test_a_policy_that_the_models_refuse_says_so() -> None:
    async def story() -> None:
        async with serving() as cluster:
            add_nodes(cluster)
            cluster.add_policy("p", uplink={"nonsense": 1})
            async with controlling(cluster):
                await cluster.until(lambda: cluster.condition("p", "Stalled") == "True Invalid")
                assert "nonsense" in cluster.status("p")["conditions"][0]["message"]

    asyncio.run(story())


def test_a_node_joins_and_leaves_and_a_policy_follows() -> None:
    async def story() -> None:
        async with serving() as cluster:
            add_nodes(cluster)
            cluster.add_policy("p", uplink=UPLINK, nodeSelector={"matchLabels": {"role": "hypervisor"}})
            async with controlling(cluster):
                await cluster.until(lambda: cluster.condition("p", "Ready") == "True NoNodes")
                cluster.server.merge(NODES, "n1", {"metadata": {"labels": {"role": "hypervisor"}}})
                await cluster.until(lambda: cluster.status("p")["nodes"]["matched"] == 1)
                await cluster.rolled_out("p")
                cluster.server.merge(NODES, "n1", {"status": {"conditions": [ready(False)]}}, "status")
                await cluster.until(lambda: cluster.condition("p", "Ready") == "Unknown AgentDown")
                cluster.server.delete(NODES, "n1")
                await cluster.until(lambda: cluster.condition("p", "Ready") == "True NoNodes")
                assert ("", "n1") in cluster.server.objects[NODE_STATES.plural].found

    asyncio.run(story())


def test_pods_of_others_and_in_other_namespaces_are_no_agents() -> None:
    async def story() -> None:
        async with serving() as cluster:
            cluster.add_node("n1", agent=False)
            cluster.report("n1")
            cluster.add_policy("p", uplink=UPLINK)
            async with controlling(cluster):
                await cluster.until(lambda: cluster.condition("p", "Ready") == "Unknown AgentDown")
                assert cluster.status("p")["problems"][0]["message"] == "no agent runs there"
                asked = {each.path: each.query for each in cluster.server.asked if each.path.endswith("/pods")}
                assert list(asked) == [f"/api/v1/namespaces/{NAMESPACE}/pods"]

    asyncio.run(story())
