"""What becomes of an agent when its API server does not answer as it should: at the start, and in the middle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.agent.node import NAME, NODE_STATES, POLICIES, Machine, a_cluster, queue, run, until
from tests.agent.server import TOKEN, ApiServer

OUTAGE_SECONDS = 3.0
MOST_REQUESTS = 60
"""In an outage of three seconds at a tenth of an agent's usual patience: three watches, each a few times a second."""
RECOVERY_SECONDS = 20.0


async def refuses(server: ApiServer) -> None:
    await server.stop()


async def denies_all_tokens(server: ApiServer) -> None:
    server.tokens = set()
    server.cut()


def _answers(status: int) -> Callable[[ApiServer], Awaitable[None]]:
    async def answers(server: ApiServer) -> None:
        server.refuse = lambda _: status
        server.cut()

    return answers


async def hangs(server: ApiServer) -> None:
    server.hanging = True
    server.cut()


async def resets(server: ApiServer) -> None:
    server.resetting = True
    server.cut()


async def closes_politely(server: ApiServer) -> None:
    """Every request is answered well, and every watch ends at once."""
    server.brief = True
    server.cut()


async def has_forgotten(server: ApiServer) -> None:
    """What happened since the watches began is compacted away when they begin again."""
    server.refuse = lambda _: 503
    server.cut()


OUTAGES = {
    "refused": refuses,
    "401": denies_all_tokens,
    "403": _answers(403),
    "500": _answers(500),
    "503": _answers(503),
    "429": _answers(429),
    "hanging": hangs,
    "reset": resets,
    "brief": closes_politely,
    "410": has_forgotten,
}


@asynccontextmanager
async def outage(server: ApiServer, kind: str) -> AsyncIterator[None]:
    """While it lasts the server says nothing useful; afterwards all is well."""
    await OUTAGES[kind](server)
    yield
    server.tokens, server.refuse = {TOKEN}, lambda _: None
    server.hanging = server.resetting = server.brief = False
    if kind == "410":
        server.forget()
    if kind == "refused":
        await server.start()


async def passes(seconds: float) -> None:
    await asyncio.sleep(seconds)


async def recovered(true: Callable[[], bool], what: str) -> None:
    began = time.monotonic()
    await until(true, what)
    assert time.monotonic() - began < RECOVERY_SECONDS


@pytest.mark.parametrize("kind", OUTAGES)
def test_in_an_outage_enforcing_goes_on_and_afterwards_nothing_was_missed(kind: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with a_cluster() as cluster:
            machine, server = Machine(cluster, tmp_path), cluster.server
            cluster.add("p", queue(500))
            cluster.add("doomed", {"bridge": {"name": "br0", "ageingTimeSeconds": 7}})
            async with machine.living():
                await until(lambda: cluster.generations() == {"p": 1, "doomed": 1})
                async with outage(server, kind):
                    began = time.monotonic()
                    await machine.drifts()
                    cluster.edit("p", tap={"txQueueLength": 700})
                    cluster.admit("p")
                    server.delete(POLICIES, "doomed")
                    await passes(OUTAGE_SECONDS)
                    await machine.drifts()
                    if kind != "brief":
                        assert machine.has("txqlen=500")
                    assert server.count(since=began) <= MOST_REQUESTS
                await recovered(lambda: cluster.generations() == {"p": 2}, "the edit and no ghost")
                assert machine.has("-gro", "txqlen=700")
                await recovered(lambda: cluster.condition("Ready").startswith("Ready=True"), "Ready")
                assert set(machine.kept()) == {"p"}

    run(story)


@pytest.mark.parametrize("kind", [kind for kind in OUTAGES if kind != "brief"])
def test_a_node_that_boots_in_an_outage_enforces_what_was_admitted_last(kind: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with a_cluster() as cluster:
            machine, server = Machine(cluster, tmp_path), cluster.server
            cluster.add("p", queue(500))
            cluster.add("doomed", {"bridge": {"name": "br0", "ageingTimeSeconds": 7}})
            async with machine.living():
                await until(lambda: cluster.generations() == {"p": 1, "doomed": 1})
            server.delete(POLICIES, "doomed")
            async with outage(server, kind):
                began = time.monotonic()
                machine.host.flip("tap0", "gro", True)
                async with machine.living() as agent:
                    await until(lambda: machine.has("-gro"), "enforced from the disk")
                    await passes(OUTAGE_SECONDS / 2)
                    await machine.drifts()
                    assert agent.operator.obstacle or kind == "410"
                    assert {policy.name for policy in agent.engine.policies or ()} == {"p", "doomed"}
                    assert server.count(since=began) <= MOST_REQUESTS
            async with machine.living():
                await recovered(lambda: cluster.generations() == {"p": 1}, "no ghost")

    run(story)


def test_an_agent_that_has_never_seen_its_cluster_waits_for_it_and_changes_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_cluster() as cluster:
            machine = Machine(cluster, tmp_path)
            cluster.add("p", queue(500))
            async with outage(cluster.server, "503"), machine.living() as agent:
                await passes(1.0)
                assert not agent.engine.looked.is_set()
                assert machine.is_as_before()
            async with machine.living():
                await recovered(lambda: cluster.generations() == {"p": 1}, "enforced")

    run(story)


def test_a_lost_cache_undoes_nothing_before_all_policies_are_known(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_cluster() as cluster:
            machine = Machine(cluster, tmp_path)
            for name, length in (("a", 500), ("b", 600)):
                cluster.add(name, {"bridge": {"name": "br0"}, "tap": {"match": {"names": ["tap0"]}}} | queue(length))
            async with machine.living():
                await until(lambda: len(cluster.generations()) == 2)
            (tmp_path / "admitted.json").unlink()
            changes = len(machine.host.applied)
            async with machine.living() as agent:
                await until(agent.engine.looked.is_set)
                await passes(0.5)
            assert len(machine.host.applied) == changes

    run(story)


@pytest.mark.parametrize("status", [403, 404])
def test_a_list_that_is_refused_deletes_nothing_and_it_is_said(status: int, tmp_path: Path) -> None:
    async def story() -> None:
        async with a_cluster() as cluster:
            machine, server = Machine(cluster, tmp_path), cluster.server
            cluster.add("p", queue(500))
            async with machine.living():
                await until(lambda: cluster.generations() == {"p": 1})
                server.refuse = lambda request: status if request.path.endswith(POLICIES.plural) else None
                server.cut()
                await until(lambda: f"cannot be read from the API server ({status})" in cluster.condition("Ready"))
                await machine.drifts()
                assert machine.has("txqlen=500")
                server.refuse = lambda _: None
                await recovered(lambda: cluster.condition("Ready").startswith("Ready=True"), "all is well again")

    run(story)


def test_a_state_that_cannot_be_written_is_written_when_it_can_be(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_cluster() as cluster:
            machine, server = Machine(cluster, tmp_path), cluster.server
            async with machine.living() as agent:
                await until(lambda: cluster.status)
                server.refuse = lambda request: 403 if request.method == "PATCH" else None
                began = time.monotonic()
                cluster.add("p", queue(500))
                await until(lambda: machine.has("-gro"))
                await until(lambda: "Forbidden" in agent.publisher.trouble)
                await passes(1.0)
                assert server.count("PATCH", NODE_STATES.plural, since=began) <= 10
                server.refuse = lambda _: None
                await recovered(lambda: cluster.generations() == {"p": 1}, "published")
                assert agent.publisher.trouble == ""

    run(story)


def test_whatever_ends_kopf_it_leaves_no_task_behind_and_the_engine_alone(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_cluster() as cluster:
            machine, server = Machine(cluster, tmp_path), cluster.server
            cluster.add("p", queue(500))
            async with machine.living() as agent:
                await until(lambda: cluster.generations() == {"p": 1})
                tasks = []
                for starts in (2, 3):
                    server.refuse = lambda request: 404 if request.path.endswith(f"/nodes/{NAME}") else None
                    server.removed = {NODE_STATES.plural}
                    server.tell(None)
                    await until(lambda: agent.operator.obstacle)
                    server.removed, server.refuse = set(), lambda _: None
                    await until(lambda starts=starts: agent.operator.starts == starts)  # type: ignore[misc]
                    await passes(1.0)
                    tasks.append(sum(task.get_name().startswith(("watcher", "kopf")) for task in asyncio.all_tasks()))
                    await machine.drifts()
                assert tasks == [4, 4], "kopf and its three watchers, each time"

    run(story)
