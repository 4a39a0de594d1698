"""Keeps this node's VirtioNetworkNodeState as the engine reports it: written when it differs, and seldom otherwise.

    news        anything that somebody may act upon: at once, and at most once a second
    quiet       counters and times alone: at most every five minutes
    nothing     what the API server has is what we would write

It writes to no other object. What somebody else wrote into it is taken back; what the API server itself made of our
words (a field that its definition does not know is dropped) is left as it is.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NoReturn

from virtnet import errors
from virtnet.kube.connection import NODE_STATES, NODES, Connection, Object

__all__ = ["MANAGER", "Publisher", "difference"]

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


def difference(wanted: Status, stored: Status | None) -> Difference:
    """What writing `wanted` over `stored` would tell anybody."""
    if wanted == stored:
        return "nothing"
    return "quiet" if stored is not None and _news(wanted) == _news(stored) else "news"


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
        self._stored: Object | None = None
        self._known = False
        self._answer: tuple[Status, Status] | None = None
        """What was written last, and what the API server made of it."""
        self._written = -BETWEEN_QUIET_WRITES
        self._changed = asyncio.Event()

    # --- what is known ---

    def want(self, status: Status) -> None:
        """The engine reports this."""
        self._wanted = status
        self._changed.set()

    def own(self, uid: str | None) -> None:
        """The Node that the state belongs to; None when there is no such Node now."""
        if uid != self._owner:
            self._owner = uid
            self._changed.set()

    def found(self, stored: Object | None) -> None:
        """The API server has this; None: nothing. News that are older than the answer to our last write are late."""
        if stored is not None and self._known and _version(stored) < _version(self._stored):
            return
        self._stored, self._known = stored, True
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
        if self._wanted is None or self._owner is None or not self._known:
            return None
        if not self._is_owned():
            return 0.0
        what = self._difference(self._wanted)
        if what == "quiet":
            return self._written + BETWEEN_QUIET_WRITES - self._clock()
        return 0.0 if what == "news" else None

    def _is_owned(self) -> bool:
        owners = (self._stored or {}).get("metadata", {}).get("ownerReferences") or ()
        return [owner.get("uid") for owner in owners] == [self._owner]

    def _difference(self, wanted: Status) -> Difference:
        stored = (self._stored or {}).get("status")
        if self._answer is not None and self._answer == (wanted, stored):
            return "nothing"
        return difference(wanted, stored)

    async def _write(self) -> None:
        """The object and its owner when that is not as it should be, then its status. A state that went is remade."""
        if not self._is_owned():
            owner = {"apiVersion": NODES.api_version, "kind": NODES.kind, "name": self.node, "uid": self._owner}
            await self._apply({"metadata": {"name": self.node, "ownerReferences": [owner]}})
        wanted = self._wanted
        assert wanted is not None
        if self._difference(wanted) == "nothing":
            return
        try:
            await self._apply({"metadata": {"name": self.node}, "status": wanted}, "status")
        except errors.NotFound:
            self._stored = None
            raise
        self._answer = wanted, (self._stored or {}).get("status", {})
        self._written = self._clock()

    async def _apply(self, wanted: Object, subresource: str = "") -> None:
        self._stored = await self.connection.apply(NODE_STATES, wanted, manager=MANAGER, subresource=subresource)
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


def _version(stored: Object | None) -> int:
    """Resource versions of one object are numbers that grow (KEP-5504); where they are none, nothing is late."""
    text = str((stored or {}).get("metadata", {}).get("resourceVersion", ""))
    return int(text) if text.isdecimal() else 0
