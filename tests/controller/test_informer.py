"""The informer: pages, long lines, watches that end in every way, and what went meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.agent.server import NODES, ApiServer
from tests.controller.cluster import connect
from virtnet.kube import connection, informer
from virtnet.kube.informer import Informer

pytestmark = pytest.mark.timeout(60)

Change = tuple[str, str | None, str | None]


class Told:
    """An informer of Nodes that keeps their label `is`, what it told, and how often it was cut off."""

    def __init__(self, server: ApiServer) -> None:
        self.connection = connect(server)
        self.changes: list[Change] = []
        self.cuts = 0
        self.informer: Informer[str] = Informer(
            self.connection,
            connection.NODES,
            lambda one: str(one["metadata"]["labels"]["is"]),
            self._note,
            cut=self._cut,
        )

    def _note(self, name: str, before: str | None, now: str | None) -> None:
        self.changes.append((name, before, now))

    def _cut(self) -> None:
        self.cuts += 1

    async def knows(self, **found: str) -> None:
        async with asyncio.timeout(20):
            while self.informer.found != found:  # noqa: ASYNC110 - as a bystander
                await asyncio.sleep(0.02)


@asynccontextmanager
async def informing(server: ApiServer) -> AsyncIterator[Told]:
    await server.start()
    told = Told(server)
    task = asyncio.create_task(told.informer.run())
    try:
        yield told
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait({task})
        await told.connection.close()
        await server.stop()
        assert server.surprises == []


def label(server: ApiServer, name: str, value: str) -> None:
    server.merge(NODES, name, {"metadata": {"labels": {"is": value}}})


def add(server: ApiServer, name: str, value: str, text: str = "") -> None:
    server.create(NODES, {"metadata": {"name": name, "labels": {"is": value}, "annotations": {"text": text}}})


def test_it_lists_in_pages_and_follows_one_watch() -> None:
    async def story() -> None:
        server = ApiServer(kinds=(NODES,))
        expected = {f"n{number}": "x" for number in range(2 * informer.PAGE + 1)}
        for name in expected:
            add(server, name, "x")
        async with informing(server) as told:
            await told.knows(**expected)
            assert server.count("GET", "/nodes", watch=False) == 3
            label(server, "n1", "y")
            server.delete(NODES, "n2")
            del expected["n2"]
            await told.knows(**{**expected, "n1": "y"})
            assert told.changes[-2:] == [("n1", "x", "y"), ("n2", "x", None)]
            assert server.count("GET", "/nodes", watch=True) == 1

    asyncio.run(story())


def test_what_does_not_matter_is_not_told() -> None:
    async def story() -> None:
        server = ApiServer(kinds=(NODES,))
        add(server, "n1", "x")
        async with informing(server) as told:
            await told.knows(n1="x")
            server.merge(NODES, "n1", {"metadata": {"annotations": {"text": "other"}}})
            add(server, "n2", "x")
            await told.knows(n1="x", n2="x")
            assert told.changes == [("n1", None, "x"), ("n2", None, "x")]

    asyncio.run(story())


def test_an_event_of_a_megabyte_is_read() -> None:
    async def story() -> None:
        server = ApiServer(kinds=(NODES,))
        async with informing(server) as told:
            await asyncio.wait_for(told.informer.synced.wait(), 10)
            await asyncio.sleep(0.2)
            add(server, "n1", "x", "t" * 1_000_000)
            await told.knows(n1="x")

    asyncio.run(story())


def test_what_went_while_the_server_was_away_is_gone_afterwards() -> None:
    async def story() -> None:
        server = ApiServer(kinds=(NODES,))
        add(server, "n1", "x")
        add(server, "n2", "x")
        async with informing(server) as told:
            await told.knows(n1="x", n2="x")
            await server.stop()
            server.delete(NODES, "n1")
            add(server, "n3", "x")
            server.forget()
            await server.start()
            await told.knows(n2="x", n3="x")
            assert ("n1", "x", None) in told.changes
            assert told.cuts > 0

    asyncio.run(story())


def test_a_watch_that_is_cut_off_goes_on_where_it_was() -> None:
    async def story() -> None:
        server = ApiServer(kinds=(NODES,))
        add(server, "n1", "x")
        async with informing(server) as told:
            await told.knows(n1="x")
            await asyncio.sleep(0.2)
            server.cut()
            add(server, "n2", "x")
            await told.knows(n1="x", n2="x")
            assert server.count("GET", "/nodes", watch=False) == 1

    asyncio.run(story())


def test_a_server_that_says_no_is_asked_ever_more_seldom() -> None:
    async def story() -> None:
        server = ApiServer(kinds=(NODES,))
        server.refuse = lambda _: 403
        async with informing(server) as told:
            await asyncio.sleep(4.0)
            assert server.count() < 12
            assert "403" in told.informer.obstacle
            assert not told.informer.synced.is_set()
            server.refuse = lambda _: None
            add(server, "n1", "x")
            await told.knows(n1="x")

    asyncio.run(story())


def test_a_watch_that_falls_silent_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        server = ApiServer(kinds=(NODES,))
        add(server, "n1", "x")
        async with informing(server) as told:
            await told.knows(n1="x")
            await asyncio.sleep(0.2)
            server.hanging = True
            label(server, "n1", "y")
            await asyncio.sleep(1.5)
            server.hanging = False
            await told.knows(n1="y")
            assert server.count("GET", "/nodes", watch=True) > 1

    monkeypatch.setattr(informer, "SILENCE", 0.5)
    asyncio.run(story())
