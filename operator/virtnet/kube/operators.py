"""kopf, embedded: it watches, we are told; it never writes to an object, and never ends because the API server does.

Only `on.event` is used: it is the one kind of handler for which kopf writes nothing, and of which every agent on every
node hears everything. A handler returns nothing: kopf would write that into the object's status.

What kopf does not do, and this module does: it begins anew after whatever ended it, waits while there are no such
kinds, leaves tasks alone that are not its own, gives the process its signals back, and does not fill the log.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import signal
import threading
import time
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, NoReturn
from weakref import WeakSet

from virtnet import errors
from virtnet.kube import pace, sessions
from virtnet.kube.connection import Connection, Object, Resource
from virtnet.kube.lean import kopf

__all__ = ["Backoffs", "Muffle", "Operator", "Signals", "Watch", "settings"]

log = logging.getLogger(__name__)

RESTART_SECONDS = (0.5, 2.0)
"""kopf itself takes five more to end."""
SERVER_ENDS_WATCH = (300, 600)
"""Seconds after which the server ends a watch, so that connections spread over its replicas again."""
STOPPING = (signal.SIGINT, signal.SIGTERM)

Signals = Mapping[signal.Signals, Callable[[], object]]
Handle = Callable[[str | None, Object], None]
"""Told of an event: ADDED, MODIFIED, DELETED or None (found in a list), and the object as it is in JSON."""


class Watch(NamedTuple):
    """Which objects of a kind, by selectors that the server evaluates ("": all of them), and who is told."""

    resource: Resource
    handle: Handle
    fields: str = ""
    labels: str = ""


class Backoffs:
    """Seconds between the attempts of one request, at random and without end.

    kopf counts the attempts of whatever has a length, and gives up after the last one.
    """

    def __iter__(self) -> Iterator[float]:
        longest = pace.SHORTEST
        while True:
            yield random.uniform(longest / 2, longest)
            longest = min(longest * 2, pace.LONGEST)


def settings(finalizer: str, watches: Sequence[Watch]) -> Any:
    """kopf's settings: no peering, no events, no scanning, nothing in the objects, patience without end."""
    found = kopf.OperatorSettings()
    found.peering.standalone = True
    found.posting.enabled = False
    found.scanning.disabled = True
    # kopf removes its usual finalizer from every object that it sees: another operator's would be gone.
    found.persistence.finalizer = finalizer
    # After any end of the operator kopf kills the process in ten minutes, unless it is told not to.
    found.process.ultimate_exiting_timeout = None
    found.networking.connect_timeout = sessions.CONNECT_SECONDS
    found.networking.request_timeout = 2 * sessions.ANSWER_SECONDS
    found.networking.error_backoffs = Backoffs()
    found.queueing.error_delays = (1, 2, 5, 10)
    found.watching.server_timeout = random.randint(*SERVER_ENDS_WATCH)
    for watch in watches:
        kind = (watch.resource.group, watch.resource.version, watch.resource.plural)
        if watch.fields:
            found.watching.field_selectors[kind] = watch.fields
        if watch.labels:
            found.watching.label_selectors[kind] = watch.labels
    return found


class Operator:
    """Watches some kinds of objects for ever. `finalizer` must be another one for each program that uses kopf."""

    def __init__(self, connection: Connection, watches: Sequence[Watch], *, finalizer: str) -> None:
        self.connection, self.watches, self.finalizer = connection, tuple(watches), finalizer
        self.obstacle = "the API server has not been asked yet"
        """Why nothing is watched, in a sentence; empty while kopf runs."""
        self.starts = 0
        """How often kopf was started."""
        self._logins = pace.Pace()
        # At level INFO kopf says of each event that its handler succeeded, and of each login how far it is.
        for name in ("kopf.objects", "kopf.activities", "kopf._core.engines.activities"):
            logging.getLogger(name).setLevel(logging.WARNING)

    async def run(self, signals: Signals | None = None) -> NoReturn:
        """Until cancelled. `signals` are the process's own handlers; kopf takes SIGINT and SIGTERM for itself."""
        while True:
            await self._until_served()
            try:
                # A task of its own has a context of its own, and with it a family.
                await asyncio.create_task(self._run_once(signals or {}), name="kopf")
                self.obstacle = "kopf ended"
            # kopf passes on whatever ended it, of whatever kind; the answer to all of them is to begin anew.
            except Exception as error:
                self.obstacle = f"kopf ended: {error or type(error).__name__}"
                log.warning("%s; it begins anew", self.obstacle)
                log.debug("how kopf ended", exc_info=True)
            await asyncio.sleep(random.uniform(*RESTART_SECONDS))

    async def _run_once(self, signals: Signals) -> None:
        others = _Others(_found_family())
        tasks = await kopf.spawn_tasks(
            registry=self._registry(),
            settings=settings(self.finalizer, self.watches),
            clusterwide=True,
            # For peering, which is off; else kopf asks for the name of its user, and in a container nobody has one.
            identity=typing.cast(Any, self.finalizer),
        )
        _give_back(signals)
        self.obstacle = ""
        self.starts += 1
        await kopf.run_tasks(tasks, ignored=others)

    def _registry(self) -> Any:
        """Of our own: the usual one would log in with whatever libraries are installed."""
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry)(self._login)
        for watch in self.watches:
            group, version, plural = watch.resource[:3]
            kopf.on.event(group, version, plural, id=plural, registry=registry)(_teller(watch.handle))
        return registry

    async def _login(self, **_: Any) -> Any:
        """At the start, and after a 401: at once the first time, later ever more slowly."""
        await asyncio.sleep(self._logins.wait("login"))
        lent: Any = self.connection.lend()
        return kopf.AiohttpSession(server=self.connection.server.url, aiohttp_session=lent)

    async def _until_served(self) -> None:
        """kopf looks only once which kinds there are, and would watch nothing for ever."""
        for seconds in Backoffs():
            self.obstacle = await self._missing()
            if not self.obstacle:
                return
            log.warning("nothing can be watched: %s", self.obstacle)
            await asyncio.sleep(seconds)

    async def _missing(self) -> str:
        wanted = [watch.resource for watch in self.watches if watch.resource.group]
        try:
            for api_version in {resource.api_version for resource in wanted}:
                there = await self.connection.kinds(api_version)
                for resource in wanted:
                    if resource.api_version == api_version and resource.plural not in there:
                        return f"the API server has no {resource.plural}.{resource.group}"
        except errors.ApiError as error:
            return str(error)
        return ""


def _teller(handle: Handle) -> Callable[..., Any]:
    async def tell(event: Any, **_: Any) -> None:
        handle(event["type"], event["object"])

    return tell


def _give_back(signals: Signals) -> None:
    """kopf has just set its own handlers, and there is no telling it not to."""
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    for number in STOPPING:
        loop.remove_signal_handler(number)
        if number in signals:
            loop.add_signal_handler(number, signals[number])


# --- whose tasks are whose ---------------------------------------------------------------------------------

_family: ContextVar[WeakSet[asyncio.Task[Any]] | None] = ContextVar("_family", default=None)


class _Others(Collection[Any]):
    """Every task that was not born inside one operator.

    At its end kopf cancels all tasks that it is not told to ignore, and what is born later cannot be told beforehand:
    the probes of a transaction, or another operator's watches.
    """

    def __init__(self, family: WeakSet[asyncio.Task[Any]]) -> None:
        self._family = family

    def __contains__(self, task: object) -> bool:
        # Its owner ends a pause waiter. Cancelled by somebody else it fails in kopf's own callback, loudly.
        waiter = isinstance(task, asyncio.Task) and task.get_name().startswith("pause-waiter")
        return waiter or task not in self._family

    def __iter__(self) -> Iterator[Any]:
        return iter(asyncio.all_tasks() - set(self._family))

    def __len__(self) -> int:
        return len(asyncio.all_tasks() - set(self._family))


def _found_family() -> WeakSet[asyncio.Task[Any]]:
    """From here on, the tasks that this one makes, and those make, are one family."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop.get_task_factory(), _Register):
        loop.set_task_factory(_Register(loop.get_task_factory()))
    family = WeakSet[asyncio.Task[Any]]()
    _family.set(family)
    return family


class _Register:
    """A task factory that enters each task into the family of the one that makes it."""

    def __init__(self, before: Any) -> None:
        self._make = before or (lambda loop, coroutine, **options: asyncio.Task(coroutine, loop=loop, **options))

    def __call__(self, loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = self._make(loop, coroutine, **options)
        family = _family.get()
        if family is not None:
            family.add(task)
        return task


class Muffle(logging.Filter):
    """Lets the same sentence pass once in `seconds`, whatever numbers are in it, and says how many were kept back.

    For a handler: it looks at `names` and what is below them. kopf says every failed attempt at level ERROR, and
    whatever ends it with several tracebacks, while the sentence says the same; those of our own handlers remain.
    """

    def __init__(self, names: Collection[str] = ("kopf", "aiohttp", __name__), seconds: float = 60.0) -> None:
        super().__init__()
        self._names, self._seconds = tuple(names), seconds
        self._said: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith(self._names):
            return True
        message = _shortened(record)
        # Which address it was is no other trouble.
        sentence = f"{record.name} {re.sub('[0-9]+', '#', message.partition('http')[0])}"
        now = time.monotonic()
        since, kept_back = self._said.get(sentence, (-self._seconds, 0))
        if now - since < self._seconds:
            self._said[sentence] = (since, kept_back + 1)
            return False
        self._said = {known: entry for known, entry in self._said.items() if now - entry[0] < self._seconds}
        self._said[sentence] = (now, 0)
        more = f" (and {kept_back} times before)" if kept_back else ""
        record.msg, record.args = message + more, None
        return True


LONGEST_MESSAGE = 300


def _shortened(record: logging.LogRecord) -> str:
    """The message in a bearable length, and the traceback taken away unless it is of our own handlers."""
    if record.levelno > logging.DEBUG and record.name != "kopf.objects":
        record.exc_info = record.exc_text = None
    message = record.getMessage()
    return message if len(message) <= LONGEST_MESSAGE else message[: LONGEST_MESSAGE - 1] + "…"
