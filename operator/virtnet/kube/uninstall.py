"""Takes the operator off a cluster: every agent puts back what was there before it, then the node states go.

It asks by an annotation and waits for what the agents answer; it touches no host and no policy. Nothing is deleted
while a node has not answered, so whoever comes later still sees which nodes are left, and why.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from virtnet import errors
from virtnet.kube.connection import NODE_STATES, Connection, Object
from virtnet.values import frozen

log = logging.getLogger(__name__)

RELEASE = "virtnet.dev/release"
"""The annotation of a node state by which its agent is asked; any value but the empty one."""
ASKED = {"metadata": {"annotations": {RELEASE: "true"}}}

NOT_TAKEN_UP = "NotReleased"
"""The reason of the condition Released while an agent enforces (`report.node_state`)."""

PAUSE_SECONDS = 1.0
SHARE = 0.2
"""Of the time at most, that is spent listing: with thousands of nodes a look takes its time."""
AT_ONCE = 16
"""Writes on their way at the same time."""
NAMED = 20
"""How many nodes are named one by one while there is still hope; at the end all are."""


@frozen
class Laggard:
    """A node that has not put everything back, and what its agent says of that."""

    node: str
    why: str

    def __str__(self) -> str:
        return f"{self.node}: {self.why}"


async def release(connection: Connection, *, seconds: float) -> tuple[Laggard, ...]:
    """Ask every node, wait until all have answered, and delete their states; who has not answered in `seconds`.

    Nodes that appear meanwhile are asked too. An API server that does not answer is waited for. Raises the errors that
    waiting does not cure: Forbidden, Invalid.
    """
    deadline = time.monotonic() + seconds
    laggards: tuple[Laggard, ...] = ()
    while True:
        began = time.monotonic()
        try:
            left = await _look(connection)
            if not left:
                return ()
        except errors.ApiError as error:
            if not error.retry:
                raise
            log.warning("%s; waiting for it", error)
            left = laggards or (Laggard("every node", str(error)),)
        if left != laggards:
            log.info("waiting for %s", _listed(left))
        laggards, took = left, time.monotonic() - began
        pause = max(PAUSE_SECONDS, took / SHARE)
        if time.monotonic() + pause > deadline:
            return laggards
        await asyncio.sleep(pause)


async def _look(connection: Connection) -> tuple[Laggard, ...]:
    """One round: ask whoever was not asked yet; when all have answered, delete their states."""
    try:
        states = await connection.list(NODE_STATES)
    except errors.NotFound:
        log.info("the definition of node states is gone, and every node state with it: there is nobody to ask")
        return ()
    unasked = [state for state in states if not _is_asked(state)]
    if unasked:
        log.info("asking %d of %d nodes to put back what was there before", len(unasked), len(states))
    await _each(unasked, lambda state: _ask(connection, state))
    laggards = tuple(Laggard(_name(state), why) for state in states if (why := _why_not_released(state)))
    if not laggards:
        log.info("all %d nodes have put back what was there before; deleting their states", len(states))
        await _each(states, lambda state: connection.delete(_path(state)))
    return laggards


async def _ask(connection: Connection, state: Object) -> None:
    try:
        await connection.patch(_path(state), ASKED)
    except errors.NotFound:
        log.info("the state of %s went away meanwhile", _name(state))


async def _each(states: Sequence[Object], act: Callable[[Object], Awaitable[None]]) -> None:
    for start in range(0, len(states), AT_ONCE):
        await asyncio.gather(*map(act, states[start : start + AT_ONCE]))


def _is_asked(state: Object) -> bool:
    return bool((state["metadata"].get("annotations") or {}).get(RELEASE))


def _why_not_released(state: Object) -> str:
    """What the agent says of its release; "" when it is done. A node that was not asked before has no answer yet."""
    if not _is_asked(state):
        return "was only just asked"
    status = state.get("status") or {}
    conditions = {each["type"]: each for each in status.get("conditions") or ()}
    released = conditions.get("Released", {"status": "Unknown", "reason": NOT_TAKEN_UP})
    if released["status"] == "True":
        return ""
    if released["reason"] == NOT_TAKEN_UP:
        return "its agent has not taken it up: is it running?"
    left = [f"{each['subject']} {each['setting']}: {each.get('message', '')}" for each in status.get("settings") or ()]
    return "; ".join([released["message"], *left[:1]])


def _name(state: Object) -> str:
    return str(state["metadata"]["name"])


def _path(state: Object) -> str:
    return NODE_STATES.path(_name(state))


def _listed(laggards: Sequence[Laggard]) -> str:
    names = [laggard.node for laggard in laggards]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
