"""Keeps a summary of every object of one kind, as the API server has them now: one list, then one watch, for ever.

It is for kinds of which there are thousands. kopf keeps each object whole, and a task for each while it changes: some
50 KiB of memory a Node, and nearly ten times the work of an event. It also forgets deletions when it must list anew;
here whatever a list does not have is gone. It never writes, and never ends because the API server does.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, NoReturn, TypeVar

import aiohttp

from virtnet import errors
from virtnet.kube import sessions
from virtnet.kube.connection import Connection, Object, Resource
from virtnet.kube.operators import SERVER_ENDS_WATCH, Backoffs

log = logging.getLogger(__name__)

T = TypeVar("T")

PAGE = 200
"""Objects in one page of a list: only one page is in memory at a time."""
SILENCE = 90.0
"""Seconds without a byte after which a watch is dead. The server sends a bookmark every minute."""

OnChange = Callable[[str, T | None, T | None], None]
"""The name of an object, its summary before and now; None: there was none, it is gone."""


class Informer(Generic[T]):
    """The summaries of all objects of a kind that a selector lets through, by name.

    `synced` is set once everything was listed. `cut` is called whenever what is known here may be behind: nobody should
    be blamed for silence until then.
    """

    def __init__(
        self,
        connection: Connection,
        resource: Resource,
        summarize: Callable[[Object], T],
        changed: OnChange[T],
        *,
        namespace: str = "",
        labels: str = "",
        cut: Callable[[], None] = lambda: None,
    ) -> None:
        self.found: dict[str, T] = {}
        self.synced = asyncio.Event()
        self.obstacle = "nothing was listed yet"
        """Why nothing is heard, in a sentence; empty while all is well."""
        self._connection, self._resource = connection, resource
        self._summarize, self._changed, self._cut = summarize, changed, cut
        self._path = resource.path(namespace=namespace)
        self._version = ""
        """To watch from; "": list first."""
        self._selector = {"labelSelector": labels} if labels else {}

    async def run(self) -> NoReturn:
        """Until cancelled. The API server may be gone for as long as it likes."""
        pauses, failures = iter(Backoffs()), 0
        while True:
            try:
                self._version = self._version or await self._list()
                async for event in self._watch():
                    self._hear(event)
                    pauses, failures = iter(Backoffs()), 0
                await asyncio.sleep(random.uniform(0.0, 1.0))
            except errors.ApiError as error:
                failures += 1
                self._fail(error, failures)
                await asyncio.sleep(next(pauses))

    def _fail(self, error: errors.ApiError, failures: int) -> None:
        """One failure is no outage: a watch that ended in whatever way goes on where it was, and misses nothing."""
        expired = isinstance(error, errors.Expired)
        if expired:
            self._version = ""
        if expired or failures > 1:
            self.obstacle = str(error)
            self._cut()
        log.log(logging.WARNING if failures > 1 else logging.DEBUG, "%s", error)

    async def _list(self) -> str:
        """Everything, page by page; the version to watch from."""
        query = {"limit": str(PAGE), **self._selector}
        seen: set[str] = set()
        while True:
            page = await self._connection.get(self._path, **query)
            for one in page.get("items") or ():
                seen.add(self._take(one))
            query["continue"] = page["metadata"].get("continue", "")
            if not query["continue"]:
                break
        for name in self.found.keys() - seen:
            self._drop(name)
        self.synced.set()
        return str(page["metadata"]["resourceVersion"])

    async def _watch(self) -> AsyncIterator[Object]:
        """The events since the last version that was heard of, until the server ends the watch."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(random.randint(*SERVER_ENDS_WATCH)),
            **self._selector,
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=sessions.CONNECT_SECONDS, sock_read=SILENCE)
        async with self._connection.answer("GET", self._path, query=query, timeout=timeout) as response:
            self.obstacle = ""
            async for event in _lines(response):
                yield event

    def _hear(self, event: Object) -> None:
        kind, one = event["type"], event["object"]
        if kind == "ERROR":
            refusal = errors.Expired if one.get("code") == 410 else errors.Unreachable
            raise refusal(f"watch {self._path}: {one.get('message')}")
        if kind == "DELETED":
            self._drop(one["metadata"]["name"])
        elif kind != "BOOKMARK":
            self._take(one)
        self._version = str(one["metadata"]["resourceVersion"])

    def _take(self, one: Object) -> str:
        name: str = one["metadata"]["name"]
        before, now = self.found.get(name), self._summarize(one)
        self.found[name] = now
        if before != now:
            self._changed(name, before, now)
        return name

    def _drop(self, name: str) -> None:
        before = self.found.pop(name, None)
        if before is not None:
            self._changed(name, before, None)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[Any]:
    """JSON values, one a line, however long: aiohttp's own lines end at 128 KiB."""
    rest: list[bytes] = []
    async for chunk in response.content.iter_any():
        *whole, last = chunk.split(b"\n")
        for line in whole:
            yield json.loads(b"".join([*rest, line]))
            rest = []
        rest.append(last)
