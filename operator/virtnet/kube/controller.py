"""Sums up what all nodes report into the status of each policy; the only writer of it, and of nothing on any node.

kopf watches the policies, of which there are few. Nodes, node states and the agents' pods, of which there are
thousands, are left to informers of our own, which keep a summary of each and not the object.

Everything is derived anew on every look from what the API server has, so it can be killed and started at any moment.
A look at a policy happens when something changed, at most once a second, and writes only what differs, tied to the
version of the policy that was looked at: a replica that does not know yet that it works no more writes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import NoReturn

from virtnet import errors
from virtnet.core.fleet import AgentFacts, Fleet, NodeFacts, StateFacts
from virtnet.engine.exposition import Counter, Gauge, Histogram, Registry
from virtnet.kube import events, sightings
from virtnet.kube.connection import NODE_STATES, NODES, POLICIES, Connection, Object, Resource
from virtnet.kube.events import Recorder
from virtnet.kube.following import Followed
from virtnet.kube.informer import Informer
from virtnet.kube.operators import Backoffs, Operator, Signals, Watch
from virtnet.kube.sightings import Pod

log = logging.getLogger(__name__)

PODS = Resource("", "v1", "pods", "Pod")
AGENTS = "app.kubernetes.io/name=virtio-network-operator,app.kubernetes.io/component=agent"

MANAGER = "virtnet-controller"
FINALIZER = "virtnet.dev/controller"

SWEEP_SECONDS = 60.0
"""Between two looks for states of Nodes that are gone; one is deleted when two looks found it."""
LONGEST_WAIT = 10.0
OVERDUE_SECONDS = 60.0
LOOK_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """What `/metrics` serves."""

    def __init__(self) -> None:
        self.registry = Registry(auto_describe=False)

        def gauge(name: str, help: str, labels: Sequence[str] = ()) -> Gauge:
            return Gauge(f"virtnet_controller_{name}", help, labels, registry=self.registry)

        def counter(name: str, help: str) -> Counter:
            return Counter(f"virtnet_controller_{name}_total", help, registry=self.registry)

        self.leads = gauge("leads", "1 on the replica that works, 0 on one that stands by")
        self.nodes = gauge("nodes", "Nodes of the cluster")
        self.policies = gauge("policies", "Policies, by the status of their condition Ready", ["ready"])
        self.paused = gauge("rollouts_paused", "Policies whose rollout is paused")
        self.writes = counter("status_writes", "Written statuses of policies")
        self.failures = counter("status_failures", "Statuses that could not be written")
        self.looks = Histogram(
            "virtnet_controller_look_seconds",
            "Looks at one policy and all nodes",
            buckets=LOOK_BUCKETS,
            registry=self.registry,
        )


class Controller:
    """`namespace` is where the agents' pods are, `identity` names this replica; `clock`: seconds since the epoch."""

    def __init__(
        self, connection: Connection, namespace: str, identity: str, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.metrics = Metrics()
        self.policies: dict[str, Followed] = {}
        self._connection, self._clock = connection, clock
        self._recorder = Recorder(connection, identity, clock=clock)
        self._nodes = Informer(connection, NODES, sightings.node, self._node_changed, cut=self._cut)
        self._states = Informer(connection, NODE_STATES, sightings.state, self._state_changed, cut=self._cut)
        self._pods = Informer(
            connection, PODS, sightings.pod, self._pod_changed, namespace=namespace, labels=AGENTS, cut=self._cut
        )
        self._informers = (self._nodes, self._states, self._pods)
        self._operator = Operator(connection, [Watch(POLICIES, self._policy_event)], finalizer=FINALIZER)
        self._agents: dict[str, AgentFacts] = {}
        self._pods_of: dict[str, dict[str, AgentFacts]] = {}
        self._wake, self._listed = asyncio.Event(), asyncio.Event()
        self._suspects: frozenset[str] = frozenset()
        self._beat = time.monotonic()
        connection.on_answer = self._hear_answer

    # --- its life ---

    async def run(self, signals: Signals | None = None) -> None:
        """Until cancelled. `signals` are the process's own handlers."""
        self._beat = time.monotonic()
        self.metrics.leads.set(1)
        async with asyncio.TaskGroup() as tasks:
            for informer in self._informers:
                tasks.create_task(informer.run())
            tasks.create_task(self._operator.run(signals))
            tasks.create_task(self._prune_for_ever())
            tasks.create_task(self._sweep_for_ever())
            tasks.create_task(self._look_for_ever())

    @property
    def synced(self) -> bool:
        return all(informer.synced.is_set() for informer in self._informers)

    @property
    def obstacles(self) -> tuple[str, ...]:
        """Why not everything is heard, a sentence each."""
        found = (*(informer.obstacle for informer in self._informers), self._operator.obstacle)
        return tuple(dict.fromkeys(sentence for sentence in found if sentence))

    def overdue(self) -> float:
        """Seconds by which the looks are late: they have stopped when it is more than 0."""
        return time.monotonic() - self._beat - OVERDUE_SECONDS

    # --- what is heard ---

    def _policy_event(self, kind: str | None, found: Object) -> None:
        name = found["metadata"]["name"]
        if kind == "DELETED":
            self.policies.pop(name, None)
        elif name in self.policies:
            self.policies[name].see(found)
        else:
            self.policies[name] = Followed(found)
        self._wake.set()

    def _hear_answer(self, path: str, watch: bool, status: int) -> None:
        """kopf has listed anew, and tells nobody what is gone since; or there is nothing to list any more."""
        if (
            path == POLICIES.path()
            and not watch
            and (status == HTTPStatus.NOT_FOUND or status < HTTPStatus.BAD_REQUEST)
        ):
            self._listed.set()

    def _node_changed(self, _: str, __: NodeFacts | None, ___: NodeFacts | None) -> None:
        self._touch(self.policies)

    def _state_changed(self, _: str, before: StateFacts | None, now: StateFacts | None) -> None:
        """Only what is said of a policy matters to it, unless the whole state is another one."""
        if before is None or now is None or (before.owner, before.released) != (now.owner, now.released):
            self._touch(self.policies)
            return
        names = before.entries.keys() | now.entries.keys()
        self._touch(name for name in names if before.entries.get(name) != now.entries.get(name))

    def _pod_changed(self, name: str, before: Pod | None, now: Pod | None) -> None:
        for pod in filter(None, (before, now)):
            self._pods_of.setdefault(pod.node, {}).pop(name, None)
        if now is not None:
            self._pods_of[now.node][name] = now.agent
        for node in {pod.node for pod in (before, now) if pod}:
            self._settle_agent(node)
        self._touch(self.policies)

    def _settle_agent(self, node: str) -> None:
        """While one pod replaces another there are two: the one that is ready is the agent."""
        pods = self._pods_of.get(node)
        if pods:
            self._agents[node] = max(pods.values(), key=lambda agent: (agent.ready, -agent.steady, agent.since or 0.0))
        else:
            self._pods_of.pop(node, None)
            self._agents.pop(node, None)

    def _cut(self) -> None:
        """What nodes reported meanwhile was not heard: their silence is not theirs."""
        for followed in self.policies.values():
            followed.forget_waiting()
        self._wake.set()

    def _touch(self, names: Mapping[str, Followed] | Iterator[str]) -> None:
        for name in names:
            if name in self.policies:
                self.policies[name].dirty = True
        self._wake.set()

    # --- looking ---

    async def _look_for_ever(self) -> NoReturn:
        while not self.synced:
            self._beat = time.monotonic()  # waiting for the first lists is no standstill of ours
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LONGEST_WAIT):
                    await asyncio.gather(*(informer.synced.wait() for informer in self._informers))
        while True:
            self._wake.clear()
            now = self._clock()
            for followed in list(self.policies.values()):
                self._beat = time.monotonic()
                due = followed.due()
                if due is not None and due <= now:
                    await self._look(followed)
            self._beat = time.monotonic()
            self._count()
            await self._sleep()

    async def _sleep(self) -> None:
        """Until something changes, or until the next look that is due."""
        moments = [due for followed in self.policies.values() if (due := followed.due()) is not None]
        pause = min((moment - self._clock() for moment in moments), default=LONGEST_WAIT)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(max(pause, 0.0), LONGEST_WAIT)):
                await self._wake.wait()

    async def _look(self, followed: Followed) -> None:
        began = time.monotonic()
        before, now = followed.status, self._clock()
        verdict = followed.look(Fleet(self._nodes.found, self._states.found, self._agents), now)
        seconds = time.monotonic() - began
        self.metrics.looks.observe(seconds)
        followed.took(seconds, now)
        if not followed.differs(verdict.status):
            followed.accept(verdict)
            return
        try:
            answer = await self._write(followed, verdict.status)
        except errors.ApiError as error:
            self.metrics.failures.inc()
            level = logging.DEBUG if isinstance(error, errors.Conflict | errors.NotFound) else logging.WARNING
            log.log(level, "the status of %s was not written: %s", followed.name, error)
            followed.failed(self._clock())
            return
        self.metrics.writes.inc()
        followed.written(verdict, answer)
        for told in events.news(before, verdict.status):
            log.info("policy %s: %s: %s", followed.name, told.reason, told.message)
            await self._recorder.tell(followed.name, followed.uid, told)

    async def _write(self, followed: Followed, status: Object) -> Object:
        """Conflict when the policy is another one by now than the one that was looked at."""
        metadata = {"name": followed.name, "uid": followed.uid, "resourceVersion": followed.version}
        wanted = {"metadata": metadata, "status": status}
        return await self._connection.apply(POLICIES, wanted, manager=MANAGER, subresource="status")

    def _count(self) -> None:
        ready = dict.fromkeys(("True", "False", "Unknown"), 0)
        paused = 0
        for followed in self.policies.values():
            status = followed.status or {}
            conditions = {each["type"]: each["status"] for each in status.get("conditions") or ()}
            ready[conditions.get("Ready", "Unknown")] += 1
            paused += (status.get("rollout") or {}).get("paused") is True
        for answer, count in ready.items():
            self.metrics.policies.labels(answer).set(count)
        self.metrics.paused.set(paused)
        self.metrics.nodes.set(len(self._nodes.found))

    # --- what is gone ---

    async def _prune_for_ever(self) -> NoReturn:
        """Forget policies that were deleted while kopf was not looking."""
        pauses = iter(Backoffs())
        while True:
            await self._listed.wait()
            self._listed.clear()
            known = {name: followed.uid for name, followed in self.policies.items()}
            try:
                listed = await self._connection.list(POLICIES, names_only=True)
            except errors.NotFound:  # the definition itself is gone, and all policies with it
                listed = []
            except errors.ApiError as error:
                log.debug("the policies could not be listed: %s", error)
                self._listed.set()
                await asyncio.sleep(next(pauses))
                continue
            there = {one["metadata"]["name"] for one in listed}
            for name in known.keys() - there:
                if name in self.policies and self.policies[name].uid == known[name]:
                    del self.policies[name]
            pauses = iter(Backoffs())

    async def _sweep_for_ever(self) -> NoReturn:
        while True:
            await asyncio.sleep(random.uniform(0.9, 1.1) * SWEEP_SECONDS)
            if self.synced:
                await self.sweep()

    async def sweep(self) -> None:
        """Delete the states of Nodes that are gone, when the look before found them too.

        The API server's own garbage collection takes those that a Node owned; left are those that nobody owned, and
        what an agent wrote while its Node was going.
        """
        found = frozenset(name for name, state in self._states.found.items() if self._is_orphan(name, state))
        for name in sorted(found & self._suspects):
            try:
                await self._delete_orphan(name)
            except errors.ApiError as error:
                log.warning("the state of %s, whose Node is gone, was not deleted: %s", name, error)
        self._suspects = found

    def _is_orphan(self, name: str, state: StateFacts) -> bool:
        node = self._nodes.found.get(name)
        return node is None or state.owner not in {"", node.uid}

    async def _delete_orphan(self, name: str) -> None:
        """Ask for the Node itself first: what we know of it may be late."""
        state = self._states.found.get(name)
        if state is None:
            return
        try:
            node = sightings.node(await self._connection.get(NODES.path(name)))
            if state.owner in {"", node.uid}:
                return
        except errors.NotFound:
            pass
        await self._connection.delete(NODE_STATES.path(name), uid=state.uid)
        log.info("deleted the state of %s: its Node is gone", name)
