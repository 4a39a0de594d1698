"""One replica works at a time, on a strict fake of the API server; times are short, the rules are the real ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.agent.server import ApiServer
from tests.controller.cluster import LEASES, connect
from virtnet import errors
from virtnet.kube.connection import Connection
from virtnet.kube.lease import Lease, Times

NS, NAME = "virtnet-system", "virtnet-controller"
SHORT = Times(lease=1, renew=0.6, retry=0.1)


@asynccontextmanager
async def replicas(*names: str) -> AsyncIterator[tuple[ApiServer, list[Lease]]]:
    server = ApiServer(kinds=(LEASES,))
    await server.start()
    connections: list[Connection] = [connect(server) for _ in names]
    try:
        yield server, [Lease(c, NS, NAME, name, SHORT) for c, name in zip(connections, names, strict=True)]
    finally:
        for connection in connections:
            await connection.close()
        await server.stop()
        assert server.surprises == []


def holder(server: ApiServer) -> str:
    return str(server.objects["leases"].get(NAME, NS)["spec"]["holderIdentity"])


async def keeping(lease: Lease) -> asyncio.Task[None]:
    await lease.acquire()
    return asyncio.create_task(lease.keep())


async def end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


def test_the_first_has_it_and_the_second_stands_by_while_it_is_renewed() -> None:
    async def story() -> None:
        async with replicas("a", "b") as (server, (a, b)):
            keep = await keeping(a)
            waiting = asyncio.create_task(b.acquire())
            await asyncio.sleep(2.5 * SHORT.lease)
            assert (a.held, b.held, waiting.done(), holder(server)) == (True, False, False, "a")
            await end(keep)
            waiting.cancel()

    asyncio.run(story())


def test_a_holder_that_ends_well_hands_over_at_once() -> None:
    async def story() -> None:
        async with replicas("a", "b") as (server, (a, b)):
            keep = await keeping(a)
            waiting = asyncio.create_task(b.acquire())
            await asyncio.sleep(0.3)
            await end(keep)
            await a.release()
            began = time.monotonic()
            await waiting
            assert time.monotonic() - began < SHORT.lease
            assert (a.held, b.held, holder(server)) == (False, True, "b")
            assert server.objects["leases"].get(NAME, NS)["spec"]["leaseTransitions"] == 1

    asyncio.run(story())


def test_a_holder_that_is_killed_is_succeeded_when_its_lease_has_run_out_and_not_before() -> None:
    async def story() -> None:
        async with replicas("a", "b") as (server, (a, b)):
            keep = await keeping(a)
            waiting = asyncio.create_task(b.acquire())
            await asyncio.sleep(0.3)
            await end(keep)
            began = time.monotonic()
            await waiting
            assert time.monotonic() - began > SHORT.lease - 0.3
            assert holder(server) == "b"

    asyncio.run(story())


def test_who_begins_anew_under_its_name_goes_on_at_once() -> None:
    async def story() -> None:
        async with replicas("a", "a") as (server, (before, after)):
            await end(await keeping(before))
            began = time.monotonic()
            await after.acquire()
            assert time.monotonic() - began < SHORT.lease / 2
            assert server.objects["leases"].get(NAME, NS)["spec"]["leaseTransitions"] == 0

    asyncio.run(story())


@pytest.mark.parametrize("outage", ["refused", "hanging", "500"])
def test_a_holder_that_cannot_renew_gives_up_before_anybody_else_may_take_over(outage: str) -> None:
    async def story() -> None:
        async with replicas("a") as (server, (a,)):
            keep = await keeping(a)
            await asyncio.sleep(0.2)
            began = time.monotonic()
            if outage == "refused":
                await server.stop()
            server.hanging = outage == "hanging"
            server.refuse = lambda _: 500 if outage == "500" else None
            with pytest.raises(errors.Unreachable, match="could not be renewed"):
                await keep
            assert time.monotonic() - began < SHORT.lease
            assert not a.held
            server.hanging = False

    asyncio.run(story())


def test_a_short_outage_costs_nothing() -> None:
    async def story() -> None:
        async with replicas("a") as (server, (a,)):
            keep = await keeping(a)
            server.refuse = lambda _: 503
            await asyncio.sleep(0.35)
            server.refuse = lambda _: None
            await asyncio.sleep(0.5)
            assert not keep.done()
            await end(keep)

    asyncio.run(story())


def test_who_finds_another_name_in_it_has_lost_it() -> None:
    async def story() -> None:
        async with replicas("a") as (server, (a,)):
            keep = await keeping(a)
            server.objects["leases"].merge(NAME, {"spec": {"holderIdentity": "x"}}, NS)
            with pytest.raises(errors.Conflict, match="lost to x"):
                await keep
            assert not a.held

    asyncio.run(story())


def test_a_lease_that_somebody_deletes_is_made_anew() -> None:
    async def story() -> None:
        async with replicas("a") as (server, (a,)):
            keep = await keeping(a)
            server.objects["leases"].delete(NAME, NS)
            await asyncio.sleep(0.4)
            assert (holder(server), keep.done()) == ("a", False)
            await end(keep)

    asyncio.run(story())


def test_of_many_that_begin_together_one_works() -> None:
    async def story() -> None:
        names = [f"r{number}" for number in range(5)]
        async with replicas(*names) as (_, leases):
            tasks = [asyncio.create_task(lease.acquire()) for lease in leases]
            await asyncio.sleep(0.5)
            assert sum(lease.held for lease in leases) == 1
            for task in tasks:
                task.cancel()

    asyncio.run(story())


def test_releasing_what_is_not_held_asks_nobody() -> None:
    async def story() -> None:
        async with replicas("a") as (server, (a,)):
            await a.release()
            assert server.asked == []

    asyncio.run(story())


def test_the_usual_times_are_those_of_client_go() -> None:
    assert Times() == Times(15, 10.0, 2.0)
