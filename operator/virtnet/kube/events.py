"""Kubernetes Events on a policy: what an administrator wants to see in `kubectl describe`, and no more than that.

They are told from what changed between two statuses, so a restart tells nothing twice. The same news again counts up
the Event that is there; a policy may tell a few in some minutes. An Event that cannot be written
is lost: the status has it all.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from virtnet import errors
from virtnet.core.model import Reason
from virtnet.core.rollout import EVERYBODY, timestamp
from virtnet.kube.connection import POLICIES, Connection, Object, Resource

log = logging.getLogger(__name__)

EVENTS = Resource("", "v1", "events", "Event")

NAMESPACE = "default"
"""Where Events about objects without a namespace live (client-go, tools/record)."""
COMPONENT = "virtnet-controller"

MOST = 10
MOST_SECONDS = 300.0
"""A policy may tell so many in so many seconds."""
REMEMBERED_SECONDS = 1800.0
"""The same news within this time is the same Event; the API server forgets Events after an hour."""
LONGEST_MESSAGE = 1024


class News(NamedTuple):
    """Something to tell. `warning`: somebody may have to do something. `about` tells what is the same news again."""

    reason: str
    message: str
    warning: bool = False
    about: str = ""


_PROBLEMS: Mapping[str, str] = {Reason.CONTENDED: "Contended", Reason.AGENT_DOWN: "AgentDown"}
"""Problems that are told under their own name; all others are Blocked."""


def news(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> Iterator[News]:
    """What is new in a policy's status. Without an earlier status only problems are."""
    yield from _of_rollout((before or {}).get("rollout") or {}, after.get("rollout") or {}, after)
    known = {_identity(problem) for problem in (before or {}).get("problems") or ()}
    for problem in after.get("problems") or ():
        if _identity(problem) not in known:
            reason = _PROBLEMS.get(problem["reason"], "Blocked")
            what = "" if reason == problem["reason"] else f"{problem['reason']}: "
            message = f"{problem['node']}: {problem['setting']}: {what}{problem['message']}"
            yield News(reason, message, warning=True, about=f"{problem['setting']} {problem['reason']}")


def _identity(problem: Mapping[str, Any]) -> tuple[object, object]:
    """Without the node and the message: the same problem on more nodes is no news."""
    return problem.get("setting"), problem.get("reason")


def _of_rollout(old: Mapping[str, Any], new: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[News]:
    generation = new.get("generation")
    if new.get("paused") and not (old.get("paused") and old.get("generation") == generation):
        message = f"generation {generation}: {new.get('reason', '')}"
        yield News("RolloutPaused", message, warning=True, about=str(generation))
    elif old.get("paused") and not new.get("paused"):
        yield News("RolloutResumed", f"generation {generation} goes on")
    is_over, was_over = _over(new), _over(old) and old.get("generation") == generation
    if is_over and not was_over:
        matched = (after.get("nodes") or {}).get("matched", 0)
        whom = "the one node" if matched == 1 else f"all {matched} nodes"
        yield News("RolledOut", f"generation {generation} was let out to {whom} that it selects")


def _over(rollout: Mapping[str, Any]) -> bool:
    return rollout.get("admitted") == EVERYBODY and "began" not in rollout


class _Told(NamedTuple):
    name: str
    times: int
    first: float
    last: float


class Recorder:
    """Writes Events on policies. `identity` is the replica's name; `clock` tells seconds since the epoch."""

    def __init__(self, connection: Connection, identity: str, *, clock: Callable[[], float] = time.time) -> None:
        self._connection, self._identity, self._clock = connection, identity, clock
        self._told: dict[tuple[str, str, str], _Told] = {}
        self._spent: dict[str, deque[float]] = {}
        self.lost = 0
        """How many were not told, because there were too many or they could not be written."""

    async def tell(self, policy: str, uid: str, told: News) -> None:
        """Never raises an ApiError."""
        now = self._clock()
        self._forget(now)
        if not self._may(uid, now):
            self.lost += 1
            return
        key = uid, told.reason, told.about or told.message
        known = self._told.get(key)
        name = known.name if known else _name(policy, uid, told, now)
        this = _Told(name, known.times + 1 if known else 1, known.first if known else now, now)
        try:
            if known is None or not await self._again(this, told):
                await self._connection.create(EVENTS, self._event(policy, uid, told, this), namespace=NAMESPACE)
            self._told[key] = this
        except errors.ApiError as error:
            self.lost += 1
            log.warning("the event %r on %s was not written: %s", told.reason, policy, error)

    async def _again(self, this: _Told, told: News) -> bool:
        """Count up an Event that is there; False when it has been forgotten."""
        message = told.message[:LONGEST_MESSAGE]
        change = {"count": this.times, "lastTimestamp": timestamp(this.last), "message": message}
        try:
            await self._connection.patch(EVENTS.path(this.name, namespace=NAMESPACE), change)
        except errors.NotFound:
            return False
        return True

    def _event(self, policy: str, uid: str, told: News, this: _Told) -> Object:
        """With the fields that `kubectl describe` and `kubectl get events` read."""
        return {
            "metadata": {"name": this.name, "namespace": NAMESPACE},
            "involvedObject": {
                "apiVersion": POLICIES.api_version,
                "kind": POLICIES.kind,
                "name": policy,
                "uid": uid,
            },
            "type": "Warning" if told.warning else "Normal",
            "reason": told.reason,
            "message": told.message[:LONGEST_MESSAGE],
            "count": this.times,
            "firstTimestamp": timestamp(this.first),
            "lastTimestamp": timestamp(this.last),
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "reportingInstance": self._identity[:128],
        }

    def _may(self, uid: str, now: float) -> bool:
        spent = self._spent.setdefault(uid, deque())
        while spent and spent[0] <= now - MOST_SECONDS:
            spent.popleft()
        if len(spent) >= MOST:
            return False
        spent.append(now)
        return True

    def _forget(self, now: float) -> None:
        self._told = {key: each for key, each in self._told.items() if now - each.last < REMEMBERED_SECONDS}
        self._spent = {
            uid: spent for uid, spent in self._spent.items() if spent and now - spent[-1] < REMEMBERED_SECONDS
        }


def _name(policy: str, uid: str, told: News, now: float) -> str:
    """Of this news at this time; two replicas in a row do not meet."""
    digest = hashlib.sha256(f"{uid}/{told}/{now!r}".encode()).hexdigest()[:16]
    return f"{policy[:200]}.{digest}"
