"""A session that is closed while somebody uses it, at every moment of a request; what comes of it, and what is left."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from kopf._cogs.clients import api, auth
from kopf._cogs.structs import credentials

from tests.agent.node import Machine, a_cluster, queue, run, until
from tests.agent.server import TOKEN
from virtnet import errors
from virtnet.kube.connection import Connection
from virtnet.kube.credentials import Server, TokenFile
from virtnet.kube.lean import kopf
from virtnet.kube.sessions import CONNECTIONS

BEGUN = "it has a turn, and nothing was sent"
CONNECTING = "its connection is being made"
ASKED = "the server has it and says nothing"
ANSWERED = "the headers are here"
TOLD = "the first line of the body is here"
OVER = "all of it is here"
MOMENTS = (BEGUN, CONNECTING, ASKED, ANSWERED, TOLD, OVER)

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
FIRST, REST = b'{"type": "ADDED"}\n', b'{"type": "DELETED"}\n'


class Stop:
    """Who comes to the moment waits there until it is let go."""

    def __init__(self, moment: str) -> None:
        self.moment = moment
        self.reached, self.go = asyncio.Event(), asyncio.Event()

    async def at(self, moment: str) -> None:
        if moment == self.moment:
            self.reached.set()
            await self.go.wait()


class Loop(asyncio.SelectorEventLoop):
    """In which connecting can be stopped."""

    held: Stop

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        await self.held.at(CONNECTING)
        await super().sock_connect(sock, address)


class Watched:
    """A server that answers whatever it is asked with a watch of two events; it ends each body when it is let go."""

    def __init__(self, stop: Stop) -> None:
        self.stop = stop
        self.accepted = self.open = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[tuple[Watched, str]]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        yield self, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        server.close()
        await until(lambda: not self.open, "all connections are closed")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted, self.open = self.accepted + 1, self.open + 1
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await self.stop.at(ASKED)
                writer.write(HEAD + _chunk(FIRST))
                if self.stop.moment in (ANSWERED, TOLD):
                    await self.stop.go.wait()
                writer.write(_chunk(REST) + _chunk(b""))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Scene:
    """One connection to one server, and a request that stands still at the moment."""

    def __init__(self, stop: Stop, server: Watched, url: str) -> None:
        self.stop, self.server, self.url = stop, server, url
        self.connection = Connection(Server(url))
        self.lent = self.connection.lend()

    @asynccontextmanager
    async def standing_still(self) -> AsyncIterator[asyncio.Task[bytes]]:
        asking = asyncio.create_task(self._watch())
        try:
            if self.stop.moment != BEGUN:
                await self.stop.reached.wait()
            yield asking
        finally:
            self.stop.go.set()
            await asyncio.wait({asking})

    async def _watch(self) -> bytes:
        """As kopf does it."""
        response = await self.lent.request("get", f"{self.url}/w?watch=true", timeout=aiohttp.ClientTimeout(total=None))
        await self.stop.at(ANSWERED)
        async with response:
            first = await response.content.readline()
            await self.stop.at(TOLD)
            whole = first + await response.content.read()
        await self.stop.at(OVER)
        return whole

    async def is_well(self) -> bool:
        """Whether another part of the same session gets an answer."""
        async with await self.connection.lend().request("get", f"{self.url}/other") as response:
            return await response.read() == FIRST + REST


def tell(moment: str, story: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
    """Nobody complains to the loop meanwhile, and every connection is closed at the end."""
    complaints: list[dict[str, Any]] = []

    async def told() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        async with Watched(stop := loop.held).serving() as (server, url):  # type: ignore[attr-defined]
            scene = Scene(stop, server, url)
            try:
                await story(scene)
            finally:
                await scene.connection.close()

    def new_loop() -> Loop:
        loop = Loop()
        loop.held = Stop(moment)
        return loop

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(told())
    assert complaints == []


# --- at every moment of a request --------------------------------------------------------------------------


@pytest.mark.parametrize("moment", MOMENTS)
def test_what_kopf_closes_is_closed_for_new_requests_alone(moment: str) -> None:
    async def story(scene: Scene) -> None:
        async with scene.standing_still() as asking:
            await scene.lent.close()
            assert scene.lent.closed
        if moment == BEGUN:
            assert isinstance(asking.exception(), RuntimeError)
        else:
            assert asking.result() == FIRST + REST
        assert await scene.is_well()
        assert scene.server.accepted == 1, "the connection went back to the pool"

    tell(moment, story)


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_end_for_good_breaks_off_what_is_under_way_and_refuses_the_rest(moment: str) -> None:
    async def story(scene: Scene) -> None:
        async with scene.standing_still() as asking:
            await scene.connection.close()
            await scene.connection.close()
        accepted = scene.server.accepted
        if moment == OVER:
            assert asking.result() == FIRST + REST
        else:
            # Of a body that is read on afterwards aiohttp says RuntimeError.
            late = moment in (BEGUN, ANSWERED, TOLD)
            assert isinstance(asking.exception(), RuntimeError if late else aiohttp.ClientError)
        with pytest.raises(errors.Unreachable, match="GET /x: the session is closed"):
            await scene.connection.get("/x")
        with pytest.raises(RuntimeError, match="Session is closed"):
            await scene.is_well()
        assert scene.server.accepted == accepted

    tell(moment, story)


def test_an_end_for_good_also_reaches_who_waits_for_a_connection() -> None:
    async def story(scene: Scene) -> None:
        crowd = [asyncio.create_task(scene.connection.get("/x")) for _ in range(CONNECTIONS + 1)]
        await until(lambda: scene.server.accepted == CONNECTIONS)
        await scene.connection.close()
        await asyncio.wait(crowd)
        assert {type(each.exception()) for each in crowd} == {errors.Unreachable}
        scene.stop.go.set()

    tell(ASKED, story)


def test_who_is_cancelled_while_the_session_ends_is_cancelled() -> None:
    async def story(scene: Scene) -> None:
        async with scene.standing_still() as asking:
            closing = asyncio.create_task(scene.connection.close())
            asking.cancel()
            await closing
        assert asking.cancelled()

    tell(ASKED, story)


@pytest.mark.parametrize("moment", [BEGUN, CONNECTING, ASKED, TOLD])
def test_kopf_that_loses_its_login_meanwhile_asks_again_or_hears_it_all(moment: str) -> None:
    async def story(scene: Scene) -> None:
        vault = credentials.Vault()
        auth.vault_var.set(vault)
        await vault.populate({"first": kopf.AiohttpSession(server=scene.url, aiohttp_session=cast(Any, scene.lent))})
        key, info = vault.select()[0], vault.select()[1].info
        heard: list[Any] = []

        async def listen() -> None:
            settings = kopf.OperatorSettings()
            async for event in api.stream("/w?watch=true", settings=settings, logger=logging.getLogger()):
                heard.append(event["type"])
                await scene.stop.at(TOLD)

        listening = asyncio.create_task(listen())
        if moment != BEGUN:
            await scene.stop.reached.wait()
        else:
            async for _ in vault.extended(auth.APIContext, "contexts"):
                break
        losing = asyncio.create_task(vault.invalidate(key, info))
        await vault.wait_for_emptiness()
        assert scene.lent.closed
        lent = cast(Any, scene.connection.lend())
        await vault.populate({"second": kopf.AiohttpSession(server=scene.url, aiohttp_session=lent)})
        await losing
        scene.stop.go.set()
        await asyncio.wait({listening})
        if moment == TOLD:
            assert isinstance(listening.exception(), aiohttp.ClientConnectionError)
            assert heard == ["ADDED"]
        else:
            listening.result()
            assert heard == ["ADDED", "DELETED"]

    tell(moment, story)


# --- a whole agent -----------------------------------------------------------------------------------------


def test_a_token_that_is_renewed_again_and_again_ends_no_watch_for_good(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_cluster() as cluster:
            cluster.add("p", queue(500))
            token = tmp_path / "token"
            token.write_text(TOKEN)
            machine = Machine(cluster, tmp_path / "state", token=TokenFile(token))
            async with machine.living() as agent:
                await until(lambda: cluster.generations() == {"p": 1})
                for number in (2, 3, 4):
                    token.write_text(f"token {number}")
                    cluster.server.tokens = {f"token {number}"}
                    cluster.server.cut()
                    cluster.edit("p", tap={"txQueueLength": 500 + number})
                    cluster.admit("p")
                    await until(lambda number=number: cluster.generations() == {"p": number})  # type: ignore[misc]
                assert machine.has("txqlen=504")
                assert agent.operator.starts == 1

    run(story)
