"""The agent of one node: what kopf sees of the cluster goes to the engine, what the engine reports goes to the API.

It watches the policies, its own Node and its own node state, and writes to that state alone. The engine knows nothing
of all this and runs before it; what was in force when the last process ended is in force before any server is asked.

    deleted         obeyed a moment later, when the server still says so and is not about to lose the whole kind
    not listed      a watch that began anew does not tell what went meanwhile: the same question
    404, 403        no deletion; what is in force stays
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Coroutine, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, NoReturn

from virtnet import errors
from virtnet.core.model import Node
from virtnet.engine.engine import Engine, OnStatus
from virtnet.host import records, remembrance
from virtnet.host.remembrance import NodeFacts
from virtnet.host.state import StateDir
from virtnet.kube.admission import Admission
from virtnet.kube.connection import NODE_STATES, NODES, POLICIES, Connection, Object
from virtnet.kube.operators import Backoffs, Operator, Signals, Watch
from virtnet.kube.publishing import Publisher

__all__ = ["FINALIZER", "HOLD", "RELEASE", "Agent", "held_until"]

log = logging.getLogger(__name__)

FINALIZER = "virtnet.dev/agent"
"""Never set by us. kopf removes it where it finds it, and must not find another operator's."""
HOLD = "virtnet.dev/hold"
RELEASE = "virtnet.dev/release"

TOGETHER_SECONDS = 0.05
"""Edits that come within this time are put in force together."""
SETTLE_SECONDS = 1.0
"""After a list, until its objects have been heard; after a deletion, until the server knows that it loses the kind."""
WITHOUT_STATE_SECONDS = 10.0
"""How long policies wait, at the first start, for the word whether this node is released."""
AFTER_A_FAULT = (1.0, 5.0)
ORPHAN_SECONDS = 600.0
"""How long policies stay in force that did not come back with the definition of their kind."""


class Agent:
    """Wires one engine to one API server. Call `restore` before the engine runs, then await `run` beside it."""

    def __init__(self, node: str, engine: Engine, state: StateDir, connection: Connection) -> None:
        self.node, self.engine, self.state, self.connection = node, engine, state, connection
        self.admission = Admission(node, state)
        self.publisher = Publisher(connection, node)
        own = f"metadata.name={node}"
        watches = (
            Watch(POLICIES, self._hear_policy),
            Watch(NODES, self._hear_node, fields=own),
            Watch(NODE_STATES, self._hear_node_state, fields=own),
        )
        self.operator = Operator(connection, watches, finalizer=FINALIZER)
        self._facts: NodeFacts | None = None
        self._known = False
        """Whether it is known which policies there are, from the disk or from the server."""
        self._heard: dict[str, set[str]] = {watch.resource.path(): set() for watch in watches}
        """By path: the names that were heard of since the last list."""
        self._listed: set[str] = set()
        """Paths that were listed since this process began."""
        self._unlisted: dict[str, str] = {}
        """By path: why it cannot be listed."""
        self._doubt = asyncio.Event()
        self._orphans_until: float | None = None
        self._soon: asyncio.TimerHandle | None = None

    # --- life ---

    def restore(self) -> None:
        """What the last process knew, from the disk: in force at once, whatever becomes of the API server."""
        facts = remembrance.read_node(self.state)
        if facts is not None:
            self._take_node(facts)
        self._known = self.admission.restore()
        if self._known:
            self.engine.set_policies(self.admission.in_force(), self._complaints())

    async def run(self, signals: Signals | None = None) -> NoReturn:
        """Until cancelled. `signals`: who handles them; kopf takes them away."""
        self.connection.on_answer = self._hear_answer
        written, self.engine.on_status = self.engine.on_status, self._report(self.engine.on_status)
        if self.engine.status is not None:
            self.publisher.want(self.engine.status)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_forever(self.publisher.run), name="publisher")
                group.create_task(_forever(self._settle_doubts), name="doubts")
                group.create_task(_forever(lambda: self.operator.run(signals)), name="operator")
        finally:
            self.engine.on_status = written
            await self.connection.close()
        raise AssertionError("what runs for ever has ended")

    def _report(self, before: OnStatus | None) -> OnStatus:
        """The engine's status goes to the API server too."""

        def report(status: Mapping[str, Any]) -> None:
            if before is not None:
                before(status)
            self.publisher.want(status)

        return report

    # --- what kopf tells ---

    def _hear_answer(self, path: str, watch: bool, status: int) -> None:
        """kopf asked for objects. That a list is complete it tells nobody else, nor that one was refused."""
        if path not in self._heard:
            return
        if status in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
            self._unlist(path, f"{path.rpartition('/')[2]} cannot be read from the API server ({status})")
        elif status < HTTPStatus.BAD_REQUEST:
            self._unlist(path, "")
            if not watch:
                self._heard[path].clear()
                self._listed.add(path)
                asyncio.get_running_loop().call_later(SETTLE_SECONDS, self._after_list, path)

    def _unlist(self, path: str, why: str) -> None:
        before = self._unlisted.pop(path, "")
        if why:
            self._unlisted[path] = why
        if why != before:
            if why:
                log.warning("%s; the last admitted policies stay in force", why)
            self._enforce_soon()

    def _after_list(self, path: str) -> None:
        """By now all that was in a list has been heard; what has not is gone."""
        if path == POLICIES.path():
            self._doubt.set()
        elif self.node not in self._heard[path]:
            self._lose(path)

    def _lose(self, path: str) -> None:
        if path == NODES.path():
            self.publisher.own(None)
        elif self.admission.resting:
            # Whoever released the cluster takes the node states away last. Only a new process begins anew.
            self.publisher.own(None)
        else:
            self.publisher.found(None)
            self._enforce_soon()

    def _hear_policy(self, kind: str | None, found: Object) -> None:
        name, heard = found["metadata"]["name"], self._heard[POLICIES.path()]
        if kind == "DELETED":
            heard.discard(name)
            self._doubt.set()
            return
        heard.add(name)
        if self.admission.see(found):
            self._enforce_soon()

    def _hear_node(self, kind: str | None, found: Object) -> None:
        if kind == "DELETED":
            return self._lose(NODES.path())
        metadata = found["metadata"]
        self._heard[NODES.path()].add(metadata["name"])
        annotations = metadata.get("annotations") or {}
        facts = NodeFacts(metadata["uid"], metadata.get("labels") or {}, annotations.get(HOLD, ""))
        if facts != self._facts:
            self._take_node(facts)
            self._keep(facts)
        self.publisher.own(facts.uid)
        return None

    def _hear_node_state(self, kind: str | None, found: Object) -> None:
        if kind == "DELETED":
            return self._lose(NODE_STATES.path())
        self._heard[NODE_STATES.path()].add(found["metadata"]["name"])
        self._release(RELEASE in (found["metadata"].get("annotations") or {}))
        self.publisher.found(found)
        return None

    # --- what follows for the engine ---

    def _take_node(self, facts: NodeFacts) -> None:
        if self._facts is None or facts.hold != self._facts.hold:
            held, until = held_until(facts.hold)
            self.engine.set_holds({records.EVERYTHING: until} if held else {})
        self._facts = facts
        self.engine.set_node(Node(self.node, dict(facts.labels)))

    def _keep(self, facts: NodeFacts) -> None:
        try:
            remembrance.write_node(self.state, facts)
        except errors.LedgerError as error:
            log.warning("the node's labels are not kept for a restart: %s", error)

    def _release(self, asked: bool) -> None:
        """Put everything back and rest; nothing is kept on the disk that a later process could put in force."""
        if asked == self.admission.resting:
            return
        log.warning("released: everything is put back" if asked else "no longer released: the policies are in force")
        if asked:
            self.admission.rest()
            self.admission.save()
        else:
            self.admission.resume()
        self.engine.release(asked)
        self._enforce_soon()

    def _enforce_soon(self) -> None:
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_later(TOGETHER_SECONDS, self._enforce)

    def _enforce(self) -> None:
        self._soon = None
        if self._known:
            self.admission.save()
            self.engine.set_policies(self.admission.in_force(), self._complaints())

    def _complaints(self) -> tuple[str, ...]:
        return (*self.admission.complaints(), *self._unlisted.values())

    # --- what is gone ---

    async def _settle_doubts(self) -> NoReturn:
        """After a list and after a deletion: which policies are there no more."""
        while True:
            await self._doubt.wait()
            await asyncio.sleep(SETTLE_SECONDS)
            self._doubt.clear()
            if POLICIES.path() in self._listed:
                await self._drop_deleted()
            if not self._known:
                await self._until_state_is_known()
                self._known = True
                self._enforce_soon()

    async def _until_state_is_known(self) -> None:
        """Whether this node is released must be known before anything is put in force that was not before."""
        try:
            async with asyncio.timeout(WITHOUT_STATE_SECONDS):
                while NODE_STATES.path() not in self._listed:  # noqa: ASYNC110 - kopf tells nobody
                    await asyncio.sleep(0.1)
                await asyncio.sleep(SETTLE_SECONDS / 2)
        except TimeoutError:
            log.warning("whether this node is released is not known; it is taken not to be")

    async def _drop_deleted(self) -> None:
        """Ask until there is an answer, and forget what it does not have."""
        for seconds in Backoffs():
            missing = self.admission.names - self._heard[POLICIES.path()]
            if not missing:
                return
            try:
                if await self._forget(missing):
                    return
            except errors.ApiError as error:
                log.info("whether %s is deleted is not known yet: %s", ", ".join(sorted(missing)), error)
            await asyncio.sleep(seconds)

    async def _forget(self, missing: Collection[str]) -> bool:
        """Forget those that are deleted; whether there are policies at all on this server, so that this is known."""
        served = POLICIES.plural in await self.connection.kinds(POLICIES.api_version)
        if served:
            listed = await self.connection.list(POLICIES, names_only=True)
            gone = set(missing) - {each["metadata"]["name"] for each in listed}
            gone = gone.difference(self._spared(gone))
            self.admission.forget(gone)
            if gone:
                log.info("no longer there: policy %s", ", ".join(sorted(gone)))
        else:
            self._orphans_until = None
            self.admission.orphan(missing)
        self._enforce_soon()
        return served

    def _spared(self, gone: Collection[str]) -> Collection[str]:
        """Those that went with their definition have some time to come back after it."""
        loop, orphans = asyncio.get_running_loop(), self.admission.orphans & set(gone)
        if not orphans:
            return ()
        if self._orphans_until is None:
            self._orphans_until = loop.time() + ORPHAN_SECONDS
            loop.call_later(ORPHAN_SECONDS, self._doubt.set)
        return orphans if loop.time() < self._orphans_until else ()


async def _forever(work: Callable[[], Coroutine[Any, Any, NoReturn]]) -> NoReturn:
    """What ends by a fault of ours is told and begun anew: the engine beside it must not end for that."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("this is a fault of virtnet, please report it; it begins anew")
        await asyncio.sleep(random.uniform(*AFTER_A_FAULT))


def held_until(value: str) -> tuple[bool, float | None]:
    """Whether the annotation holds the node, and until when (seconds since the epoch, None: until it is lifted).

    A time is RFC 3339; without a zone it is UTC. "" and "false" hold nothing. Whatever else somebody wrote there at
    night was meant to hold, as "true" does.
    """
    if value.strip().lower() in ("", "false"):
        return False, None
    try:
        end = datetime.fromisoformat(value.strip())
    except ValueError:
        if value.strip().lower() != "true":
            log.warning(
                "%s: %r is neither true nor a time such as 2026-01-31T06:00:00Z; held until lifted", HOLD, value
            )
        return True, None
    return True, (end if end.tzinfo else end.replace(tzinfo=UTC)).timestamp()
