"""One session of the HTTP library that all requests share, and what is lent of it to kopf, which closes what it has.

kopf closes its session when it likes: after a login that is no longer good, or at its end, with requests under way.
aiohttp takes the pool of connections out of a session in that moment; a request that is just connecting does not find
it any more and leaves its new connection open. So kopf is lent a thing that only takes a mark when it is closed, and
the session itself is closed by us alone, when no request is under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp

from virtnet import __version__
from virtnet.kube import pace
from virtnet.kube.credentials import Server

__all__ = ["Lent", "OnAnswer", "Session"]

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 15.0
CONNECTIONS = 16
"""At the same time; a watch holds one as long as it lasts."""

NAME = {"User-Agent": f"virtnet/{__version__}"}

OnAnswer = Callable[[str, bool, int], None]
"""Told the path, whether it was a watch, and the status of the answer."""


class Session:
    """Made with the first request, and `close` ends it for good."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.requests = 0
        """How many were sent."""
        self.closed = False
        self._session: aiohttp.ClientSession | None = None
        self._under_way: set[asyncio.Timeout] = set()
        self._over = asyncio.Event()

    async def request(self, method: str, url: str, **options: Any) -> aiohttp.ClientResponse:
        """The answer, whose body is still to be read; aiohttp's errors, also when `close` comes before the answer."""
        if self.closed:
            raise aiohttp.ClientConnectionError("the session is closed")
        limit = asyncio.timeout(None)
        try:
            async with limit:
                with self._counted(limit):
                    return await self._shared().request(method, url, **options)
        except TimeoutError as error:
            if limit.expired():
                raise aiohttp.ClientConnectionError("the session was closed") from error
            raise

    async def close(self) -> None:
        """Break off what is under way, await its end, and close all connections; bodies that are read end too."""
        if not self.closed:
            self.closed = True
            for limit in self._under_way:
                limit.reschedule(asyncio.get_running_loop().time())
        while self._under_way:
            self._over.clear()
            await self._over.wait()
        if self._session is not None:
            await self._session.close()

    @contextmanager
    def _counted(self, limit: asyncio.Timeout) -> Iterator[None]:
        self._under_way.add(limit)
        try:
            yield
        finally:
            self._under_way.discard(limit)
            self._over.set()

    def _shared(self) -> aiohttp.ClientSession:
        if self._session is None:
            context = self.server.context
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS, ssl=True if context is None else context),
                headers={**NAME, **self.server.headers},
                cookie_jar=aiohttp.DummyCookieJar(),
                middlewares=(self._identified,),
            )
        return self._session

    async def _identified(
        self, request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """With the token as it is now: it may be another one than when the session was made."""
        token = self.server.token
        if token is not None:
            request.headers.update(token.headers())
        self.requests += 1
        response = await send(request)
        if token is not None and response.status == HTTPStatus.UNAUTHORIZED:
            token.distrust()
        return response


class Lent:
    """What kopf needs of a `ClientSession`. It is paced, and `notice` is told of each list and watch.

    Once it is closed it refuses requests, as aiohttp would; what is under way goes on to its end.
    """

    headers: Mapping[str, str] = NAME
    """The session sends them; kopf looks whether there is a name, and would write its own."""

    def __init__(self, session: Session, turns: pace.Pace, notice: OnAnswer) -> None:
        self._session, self._turns, self._notice = session, turns, notice
        self._returned = False

    @property
    def closed(self) -> bool:
        return self._returned or self._session.closed

    async def close(self) -> None:
        self._returned = True

    async def request(self, method: str, url: str, **options: Any) -> aiohttp.ClientResponse:
        """As `ClientSession.request`. A refusal comes with its body read: kopf reads it with no patience of its own."""
        path, watch = _asked(url)
        reads = method.upper() == "GET"
        if reads:
            await asyncio.sleep(self._turns.wait((path, watch), spread=pace.SPREAD if watch else 0.0))
        if self.closed:
            raise RuntimeError("Session is closed")  # as aiohttp says it, and kopf understands it
        # Also a watch is begun at once. kopf would wait for that as long as for the next event.
        async with asyncio.timeout(ANSWER_SECONDS):
            response = await self._session.request(method, url, **options)
            if response.status >= HTTPStatus.BAD_REQUEST:
                await _read(response)
        if reads:
            self._notice(path, watch, response.status)
        return response


def _asked(url: str) -> tuple[str, bool]:
    """The path, and whether it is watched."""
    parts = urlsplit(url)
    return parts.path, parse_qs(parts.query).get("watch") == ["true"]


async def _read(response: aiohttp.ClientResponse) -> None:
    """The body is kept in the response. kopf has no name for one that breaks off, and would end for it."""
    try:
        await response.read()
    except aiohttp.ClientPayloadError as error:
        raise aiohttp.ServerDisconnectedError(str(error)) from error
