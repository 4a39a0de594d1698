"""Keeps this node's VirtioNetworkNodeState as the engine reports it: written when it differs, and seldom otherwise.

    news        anything that somebody may act upon: at once, and at most once a second
    quiet       counters and times alone: at most every five minutes
    nothing     what the API server has is what we would write

It writes to no other object. What somebody else wrote into it is taken back; what the API server itself made of our
words (a field that its definition does not know is dropped) is left as it is.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NoReturn

from virtnet import errors
from virtnet.kube.connection import NODE_STATES, NODES, Connection, Object
from virtnet.values import frozen

__all__ = ["ABSENT", "MANAGER", "Print", "Publisher", "Stored", "difference"]

log = logging.getLogger(__name__)

MANAGER = "virtnet-agent"

BETWEEN_WRITES = 1.0
BETWEEN_QUIET_WRITES = 300.0
RETRY_SECONDS = (0.5, 8.0)
LONGEST_REFUSED = 60.0
"""Between attempts that the API server answered with a plain no: only somebody's work on its rules changes that."""

Difference = Literal["nothing", "quiet", "news"]
Status = Mapping[str, Any]

_QUIET: Mapping[str, tuple[str, ...]] = {
    "conditions": ("lastTransitionTime",),
    "settings": ("since",),
    "policies": ("drifts",),
}
"""Of each entry in these lists, what may change without being news. A time never changes alone."""


@frozen
class Print:
    """What remains of a status to be compared: digests of all of it, and of what is news. The text can be 64 KiB."""

    all: bytes
    news: bytes

    @staticmethod
    def of(status: Status) -> Print:
        return Print(_digest(status), _digest(_news(status)))


@frozen
class Stored:
    """What the API server has: its version (0 when that is no number), the uids of its owners, its status if any."""

    version: int = 0
    owners: tuple[str, ...] = ()
    status: Print | None = None

    @staticmethod
    def of(found: Object) -> Stored:
        metadata = found["metadata"]
        # Resource versions of one object are numbers that grow (KEP-5504); where they are none, nothing is late.
        version = str(metadata.get("resourceVersion", ""))
        owners = tuple(owner.get("uid", "") for owner in metadata.get("ownerReferences") or ())
        status = Print.of(found["status"]) if found.get("status") else None
        return Stored(int(version) if version.isdecimal() else 0, owners, status)


ABSENT = Stored()


def difference(wanted: Print, stored: Print | None) -> Difference:
    """What writing `wanted` over `stored` would tell anybody."""
    if stored is None or wanted.news != stored.news:
        return "news"
    return "nothing" if wanted == stored else "quiet"


def _digest(value: Any) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()


def _news(status: Status) -> Object:
    """The status without what may wait."""
    left: Object = dict(status)
    for part, names in _QUIET.items():
        if isinstance(left.get(part), list):
            left[part] = [{key: each[key] for key in each if key not in names} for each in left[part]]
    if isinstance(left.get("vhost"), dict):
        left["vhost"] = {key: value for key, value in left["vhost"].items() if key != "refcount"}
    return left


class Publisher:
    """Writes one object, `node`'s; `want`, `own` and `found` say what is to be there, whose it is, and what is there.

    Nothing is written before all three are known, nor while the Node is gone: its state would be collected at once.
    """

    def __init__(self, connection: Connection, node: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.connection, self.node = connection, node
        self.writes = 0
        """Requests that were answered with success."""
        self.trouble = ""
        """Why the last attempt failed, in a sentence; empty when it did not."""
        self._clock = clock
        self._wanted: Status | None = None
        self._owner: str | None = None
        self._print: Print | None = None
        """Of what is wanted."""
        self._stored = ABSENT
        self._known = False
        self._answer: tuple[Print, Print | None] | None = None
        """What was written last, and what the API server made of it."""
        self._written = -BETWEEN_QUIET_WRITES
        self._changed = asyncio.Event()

    # --- what is known ---

    def want(self, status: Status) -> None:
        """The engine reports this."""
        self._wanted, self._print = status, Print.of(status)
        self._changed.set()

    def own(self, uid: str | None) -> None:
        """The Node that the state belongs to; None when there is no such Node now."""
        if uid != self._owner:
            self._owner = uid
            self._changed.set()

    def found(self, stored: Object | None) -> None:
        """The API server has this; None: nothing. News that are older than the answer to our last write are late."""
        now = ABSENT if stored is None else Stored.of(stored)
        if stored is not None and self._known and now.version < self._stored.version:
            return
        self._stored, self._known = now, True
        self._changed.set()

    # --- writing ---

    async def run(self) -> NoReturn:
        """Until cancelled."""
        attempt = 0
        while True:
            await self._until_due()
            try:
                await self._write()
                attempt, self.trouble = 0, ""
                await asyncio.sleep(BETWEEN_WRITES)
            except errors.ApiError as error:
                attempt += 1
                self._say(error)
                await asyncio.sleep(_pause(error, attempt))

    async def _until_due(self) -> None:
        while True:
            self._changed.clear()
            due = self._due()
            if due is not None and due <= 0.0:
                return
            try:
                async with asyncio.timeout(due):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _due(self) -> float | None:
        """Seconds until something is to be written; None: nothing as things are."""
        if self._print is None or self._owner is None or not self._known:
            return None
        if not self._is_owned():
            return 0.0
        what = self._difference(self._print)
        if what == "quiet":
            return self._written + BETWEEN_QUIET_WRITES - self._clock()
        return 0.0 if what == "news" else None

    def _is_owned(self) -> bool:
        return self._stored.owners == (self._owner,)

    def _difference(self, wanted: Print) -> Difference:
        stored = self._stored.status
        return "nothing" if self._answer == (wanted, stored) else difference(wanted, stored)

    async def _write(self) -> None:
        """The object and its owner when that is not as it should be, then its status. A state that went is remade."""
        if not self._is_owned():
            owner = {"apiVersion": NODES.api_version, "kind": NODES.kind, "name": self.node, "uid": self._owner}
            await self._apply({"metadata": {"name": self.node, "ownerReferences": [owner]}})
        status, wanted = self._wanted, self._print
        assert wanted is not None
        if self._difference(wanted) == "nothing":
            return
        try:
            await self._apply({"metadata": {"name": self.node}, "status": status}, "status")
        except errors.NotFound:
            self._stored = ABSENT
            raise
        self._answer = wanted, self._stored.status
        self._written = self._clock()

    async def _apply(self, wanted: Object, subresource: str = "") -> None:
        found = await self.connection.apply(NODE_STATES, wanted, manager=MANAGER, subresource=subresource)
        self._stored = Stored.of(found)
        self.writes += 1

    def _say(self, error: errors.ApiError) -> None:
        """Once for each kind of trouble: an outage is long, and the log of the node is not ours alone."""
        if type(error).__name__ != self.trouble.partition(":")[0]:
            log.warning("the state of this node cannot be published: %s", error)
        self.trouble = f"{type(error).__name__}: {error}"


def _pause(error: errors.ApiError, attempt: int) -> float:
    shortest, longest = RETRY_SECONDS
    if not (error.retry or isinstance(error, errors.NotFound)):
        longest = LONGEST_REFUSED
    delay = min(shortest * 2 ** min(attempt, 10), longest)
    return random.uniform(delay / 2, delay)
