"""A fleet on one machine: 1000 agents and the controller on a real API server, from an edit to Ready on every node; at
the end 5000 nodes.

    python -m tests.bench.fleet [--nodes 1000]

As root. It brings up a control plane of its own, registers Nodes and pods that nobody runs, and starts agents that work
on hosts in memory; of the nodes that join at the end only the node states are written. It prints what it found, and
writes docs/performance-fleet.md when it ran with all its nodes.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import yaml
from rich.console import Console

from tests.bench import figures, machine, page, scribe, summaries
from tests.bench.figures import Fact, Figure, Report, Target
from tests.cluster.cluster import Cluster
from virtnet.core import rollout
from virtnet.core.fleet import StateFacts
from virtnet.core.rollout import Published
from virtnet.kube import crds, sightings
from virtnet.kube.connection import NODE_STATES, NODES, POLICIES, Connection, Object, Resource
from virtnet.kube.controller import PODS
from virtnet.kube.informer import Informer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance-fleet.md"
NAME = "fleet"
NODES_WANTED = 1000
NODES_AT_LAST = 5000
"""With those that have no agent; for other numbers of agents as many times more."""
CROWDS = 2
NAMESPACE = "virtnet-system"
LABELS = {"app.kubernetes.io/name": "virtio-network-operator", "app.kubernetes.io/component": "agent"}
POLICY = "uplinks"
NAMESPACES = Resource("", "v1", "namespaces", "Namespace")
ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount")
DEFINITIONS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition")
AT_ONCE = 16
TEMPLATE = Template("""\
# Performance of a fleet

Measured by `make bench-fleet`, which writes this page; nothing in it was typed by hand. One machine does the work of a
thousand nodes and of a control plane, so read the counts rather than the times. What one node does alone is in
[performance.md](performance.md).

$machine

## Targets

$targets

$sections
""")
PATIENCE = 600.0
Process = subprocess.Popen[Any]
WRITES = {"create", "update", "patch", "delete"}


# --- what is seen ------------------------------------------------------------------------------------------


@dataclass
class Story:
    """From an edit until every node is as it asks: when each node might, and when it said that it is."""

    generation: int
    began: float = field(default_factory=time.monotonic)
    admitted: dict[str, float] = field(default_factory=dict)
    ready: dict[str, float] = field(default_factory=dict)


class Eye:
    """Watches the policy and the node states, as a bystander."""

    def __init__(self, connection: Connection, names: list[str]) -> None:
        self.names, self.story, self.status = list(names), Story(0), {}
        self.places: dict[str, int] = {}
        self._policies: Informer[Any] = Informer(connection, POLICIES, _brief, self._see_policy)
        self._states: Informer[StateFacts] = Informer(connection, NODE_STATES, sightings.state, self._see_state)

    async def run(self) -> None:
        await asyncio.gather(self._policies.run(), self._states.run())

    @property
    def states(self) -> int:
        return len(self._states.found)

    def also(self, names: list[str]) -> None:
        """Look at these nodes too."""
        self.names += names
        self.places.clear()

    def _see_policy(self, _: str, __: Any, now: Any) -> None:
        if now is None:
            return
        uid, self.status = now
        published, moment = Published.read(self.status), time.monotonic()
        if not self.places:
            self.places = {name: rollout.rank(uid, name) for name in self.names}
        for name, place in self.places.items():
            if published and published.admits(place, self.story.generation):
                self.story.admitted.setdefault(name, moment)

    def _see_state(self, name: str, _: StateFacts | None, now: StateFacts | None) -> None:
        entry = now.entries.get(POLICY) if now else None
        if entry and entry.generation == self.story.generation and entry.ready:
            self.story.ready.setdefault(name, time.monotonic())

    def counts(self) -> int:
        """How many nodes the newest status counts as Ready; 0 for an older generation."""
        newest = self.status.get("observedGeneration") == self.story.generation
        return int(self.status["nodes"]["ready"]) if newest else 0

    def condition(self, kind: str) -> str:
        """Of the generation that the story is about; empty before it is judged."""
        if self.status.get("observedGeneration") != self.story.generation:
            return ""
        return next(f"{c['status']} {c['reason']}" for c in self.status["conditions"] if c["type"] == kind)


def _brief(found: Object) -> tuple[str, Object]:
    return found["metadata"]["uid"], found.get("status") or {}


async def until(true: Callable[[], bool], what: str, processes: Sequence[Process] = ()) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, f"not within {PATIENCE:g} s: {what}"
        assert all(process.poll() is None for process in processes), "a process has ended"
        await asyncio.sleep(0.1)


class Audit:
    """The API server's log of requests about our objects, from one moment on."""

    def __init__(self, cluster: Cluster) -> None:
        self._path = cluster.control.audit_log
        self._offset = self._path.stat().st_size

    def requests(self) -> Iterator[Object]:
        with self._path.open() as log:
            log.seek(self._offset)
            yield from (json.loads(line) for line in log if line.endswith("}\n"))

    def writes(self) -> collections.Counter[str]:
        """Of each kind of object."""
        return collections.Counter(
            one["objectRef"]["resource"] for one in self.requests() if one["verb"] in WRITES and _went_well(one)
        )

    def busiest_second(self) -> int:
        seconds = collections.Counter(one["requestReceivedTimestamp"][:19] for one in self.requests())
        return max(seconds.values(), default=0)


def _went_well(one: Object) -> bool:
    return bool(one.get("responseStatus", {}).get("code", 500) < 300)


# --- what is there -----------------------------------------------------------------------------------------


async def together(jobs: list[Coroutine[Any, Any, Any]]) -> None:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(job: Coroutine[Any, Any, Any]) -> None:
        async with gate:
            await job

    await asyncio.gather(*map(one, jobs))


async def furnish(connection: Connection, names: list[str]) -> None:
    """Definitions, Nodes that are Ready, and on each an agent's pod that is."""
    for text in crds.render().values():
        definition = yaml.safe_load(text)
        await connection.create(DEFINITIONS, definition)
    await connection.create(NAMESPACES, {"metadata": {"name": NAMESPACE}})
    await connection.create(ACCOUNTS, {"metadata": {"name": "agent"}}, namespace=NAMESPACE)
    await together([_furnish_node(connection, name) for name in names])
    for _ in range(50):
        if POLICIES.plural in await connection.kinds(POLICIES.api_version):
            return
        await asyncio.sleep(0.2)
    raise AssertionError("the definitions are not served")


async def _furnish_node(connection: Connection, name: str) -> None:
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    node = {**ready, "reason": "Bench", "message": "", "lastHeartbeatTime": "2026-01-01T00:00:00Z"}
    await connection.create(NODES, {"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}})
    await connection.patch(NODES.path(name, subresource="status"), {"status": {"conditions": [node]}})
    spec = {
        "nodeName": name,
        "serviceAccountName": "agent",
        "automountServiceAccountToken": False,
        "containers": [{"name": "agent", "image": "none"}],
    }
    pod = {"metadata": {"name": f"agent-{name}", "labels": LABELS}, "spec": spec}
    await connection.create(PODS, pod, namespace=NAMESPACE)
    path = PODS.path(f"agent-{name}", namespace=NAMESPACE, subresource="status")
    await connection.patch(path, {"status": {"phase": "Running", "conditions": [ready]}})


class Crowds:
    """The processes with the agents in them."""

    def __init__(self, kubeconfig: str, count: int) -> None:
        share = -(-count // CROWDS)
        parts = [(first, min(share, count - first)) for first in range(0, count, share)]
        self.processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.bench.crowd",
                    f"--kubeconfig={kubeconfig}",
                    f"--first={a}",
                    f"--count={n}",
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for a, n in parts
        ]

    async def begun(self) -> None:
        for process in self.processes:
            assert process.stdout is not None
            said = await asyncio.to_thread(process.stdout.readline)
            assert said == "ready\n", f"a crowd ended: {process.poll()}"

    def tell(self, line: str) -> None:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(line + "\n")
            process.stdin.flush()


class Replica:
    """The controller's process, which a kubelet would start anew when it ends."""

    def __init__(self, kubeconfig: str) -> None:
        virtnet = [sys.executable, "-m", "virtnet", "controller"]
        self._command = [*virtnet, f"--kubeconfig={kubeconfig}", f"--namespace={NAMESPACE}", "--log-level=error"]
        self.process: Process = subprocess.Popen(self._command)

    def stop(self) -> None:
        end([self.process])

    def restart(self) -> bool:
        """Whether it had ended."""
        ended = self.process.poll() is not None
        if ended:
            self.process = subprocess.Popen(self._command)
        return ended


def end(processes: list[Process]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass
class Usage:
    """What a process has used so far: seconds of a processor, MiB that it has now and had at most."""

    cpu: float
    rss: float
    peak: float

    @staticmethod
    def of(pid: int) -> Usage:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))  # KiB
        return Usage(ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20), peak / 1024)


# --- the stories -------------------------------------------------------------------------------------------


class Bench:
    """All that happens once everything stands."""

    def __init__(self, cluster: Cluster, connection: Connection, eye: Eye, crowds: Crowds, controller: Replica) -> None:
        self.cluster, self.connection, self.eye, self.crowds = cluster, connection, eye, crowds
        self.controller, self.facts = controller, []
        self._agents = len(eye.names)
        self.figures: list[Figure] = []
        self.targets: list[Target] = []

    async def apply(self, generation: int, gro: bool) -> Story:
        self.eye.story = Story(generation)
        spec = {"bridge": {"name": "br0"}, "tap": {"offloads": {"gro": gro}}}
        await self.connection.apply(POLICIES, {"metadata": {"name": POLICY}, "spec": spec}, manager="bench")
        return self.eye.story

    async def _until(self, true: Callable[[], bool], what: str) -> None:
        await until(true, what, [*self.crowds.processes, self.controller.process])

    async def is_ready(self) -> None:
        await self._until(lambda: self.eye.condition("Ready").startswith("True"), "the policy is Ready")

    async def first(self) -> None:
        """The first generation, on nodes that have nothing."""
        await self._measured(1, "first generation", steps=5)

    async def second(self) -> None:
        """An edit, on nodes that have the first."""
        await self._measured(2, "edit", steps=5)

    async def _measured(self, generation: int, what: str, steps: int, others: scribe.Scribe | None = None) -> None:
        audit, before = Audit(self.cluster), Usage.of(self.controller.process.pid)
        story = await self.apply(generation, gro=generation % 2 == 1)
        if others is None:
            await self.is_ready()
        else:
            async with _running(scribe.follow(others, story.admitted, generation, AT_ONCE)):
                await self.is_ready()
        took = time.monotonic() - story.began
        used = Usage.of(self.controller.process.pid)
        names = self.eye.names
        self.figures += [
            figures.milliseconds(f"{what}: policy applied to Ready", [took]),
            figures.milliseconds(f"{what}: applied to Ready, per node", [story.ready[n] - story.began for n in names]),
            figures.milliseconds(
                f"{what}: admitted to Ready, per node",
                [max(0.0, story.ready[n] - story.admitted[n]) for n in names],
            ),
        ]
        writes = audit.writes()
        self.facts.append(Fact(f"{what}: writes to node states", str(writes[NODE_STATES.plural])))
        self.facts.append(Fact(f"{what}: writes to the policy", str(writes[POLICIES.plural])))
        self.facts.append(Fact(f"{what}: processor time of the controller", f"{used.cpu - before.cpu:.1f} s"))
        allowed = len(names) + steps + 1 + took
        self.targets.append(
            Target(f"{what}: API writes, at most 1 a node + 1 a second", sum(writes.values()), allowed, "")
        )

    async def failing(self) -> None:
        """A tenth of the nodes refuse the next edit; later they do not any more."""
        self.crowds.tell(f"fail {len(self.eye.names) // 10 // CROWDS}")
        story = await self.apply(3, gro=True)
        await self._until(lambda: self.eye.condition("Stalled") == "True Paused", "the rollout is paused")
        moved = len(story.admitted)
        self.figures.append(
            figures.milliseconds("edit that fails: applied to paused", [time.monotonic() - story.began])
        )
        self.facts.append(Fact("edit that fails: nodes let out before the pause", str(moved)))
        self.facts.append(Fact("edit that fails: the reason", str(self.eye.status["rollout"]["reason"])))
        healed = time.monotonic()
        self.crowds.tell("heal")
        await self.is_ready()
        self.figures.append(figures.milliseconds("failing nodes recovered to Ready", [time.monotonic() - healed]))

    async def outage(self) -> None:
        """The API server is away for a while; an edit right after it is back."""
        self.cluster.control.stop_api()
        await asyncio.sleep(20)
        audit = Audit(self.cluster)
        self.cluster.control.start_api()
        back = time.monotonic()
        anew = self.controller.restart()
        self.facts.append(Fact("API server away for 20 s: the controller began anew", "yes" if anew else "no"))
        story = await self.apply(4, gro=False)
        await self.is_ready()
        self.figures.append(
            figures.milliseconds("after an API restart: edit to Ready", [time.monotonic() - story.began])
        )
        await asyncio.sleep(max(0.0, 30 - (time.monotonic() - back)))
        requests = sum(1 for _ in audit.requests())
        self.facts.append(Fact("after an API restart: requests in 30 s", str(requests)))
        self.facts.append(Fact("after an API restart: requests in the busiest second", str(audit.busiest_second())))

    async def quiet(self) -> None:
        """Nothing happens, and nothing is written."""
        audit, before, began = Audit(self.cluster), Usage.of(self.controller.process.pid), time.monotonic()
        await asyncio.sleep(30)
        used = Usage.of(self.controller.process.pid)
        share = 1000 * (used.cpu - before.cpu) / (time.monotonic() - began)
        what = self._prefix("idle")
        self.facts.append(Fact(f"{what}: memory of the controller", f"{used.rss:.0f} MiB, at most {used.peak:.0f}"))
        self.facts.append(Fact(f"{what}: processor time of the controller", f"{share:.1f} ms/s"))
        self.targets.append(Target(f"{what}: writes in 30 s", sum(audit.writes().values()), 0, ""))

    def _prefix(self, what: str) -> str:
        """Of what is measured once more, after nodes have joined."""
        count = len(self.eye.names)
        return what if count == self._agents else f"{count} nodes: {what}"

    async def many(self) -> None:
        """Five times as many nodes: the others' states are written for them. The controller begins anew; an edit."""
        count = self._agents * NODES_AT_LAST // NODES_WANTED
        names = [f"n{number:04}" for number in range(self._agents, count)]
        model = await self.connection.get(NODE_STATES.path(self.eye.names[0]))
        self.controller.stop()
        await together([_furnish_node(self.connection, name) for name in names])
        listed = await self.connection.list(NODES, names_only=True)
        uids = {each["metadata"]["name"]: each["metadata"]["uid"] for each in listed}
        others = scribe.Scribe(self.connection, {name: uids[name] for name in names}, model["status"])
        generation = self.eye.story.generation
        await together([others.begin(name, generation) for name in names])
        self.eye.also(names)
        await until(lambda: self.eye.states == count, "every node has a state", self.crowds.processes)
        await self._begin_anew(count)
        await _settled(self.cluster)
        await self._measured(generation + 1, self._prefix("edit"), steps=5, others=others)
        await self.quiet()

    async def _begin_anew(self, count: int) -> None:
        """The controller, with so many nodes there from the beginning, of which it has counted fewer so far."""
        audit, began = Audit(self.cluster), time.monotonic()
        self.controller.restart()
        await self._until(lambda: self.eye.counts() == count, "the controller has summed up all nodes")
        used, what = Usage.of(self.controller.process.pid), self._prefix("the controller begins anew")
        self.figures.append(figures.milliseconds(f"{what}: to a status that counts them", [time.monotonic() - began]))
        self.facts.append(Fact(f"{what}: its requests", str(sum(1 for _ in audit.requests()))))
        self.facts.append(Fact(f"{what}: processor time, memory", f"{used.cpu:.1f} s, at most {used.peak:.0f} MiB"))

    async def counted(self) -> None:
        """What five thousand nodes that have much to tell would cost the controller."""
        command = [sys.executable, "-m", "tests.bench.summaries"]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True, timeout=300)
        found = json.loads(done.stdout)
        what = f"{summaries.NODES} nodes, {summaries.POLICIES} policies and {summaries.SETTINGS} rows each"
        self.facts.append(Fact(f"{what}: memory", f"{found['after']:.0f} MiB, {found['before']:.0f} without them"))
        self.figures.append(figures.milliseconds(f"{summaries.NODES} nodes: a look at one policy", found["looks"]))

    def report(self) -> Report:
        how = (
            f"{self._agents} agents in {CROWDS} processes, each the real agent and engine on a host in memory, "
            "and the real controller, on a kube-apiserver with etcd on the same machine. canary 1, maxUnavailable 25%: "
            "five steps. Times are seen by a bystander who watches; writes are counted in the API server's audit log. "
            "All agents share the machine's processors, which a real fleet does not. Then there are "
            f"{len(self.eye.names)} nodes: Nodes, agents' pods and node states on the same API server, the states of "
            "nodes without an agent written by the bench as soon as the rollout admits them, as a real agent wrote its."
        )
        return Report("A fleet", how, tuple(self.figures), tuple(self.targets), tuple(self.facts))


async def inside(kubeconfig: str, count: int) -> Report:
    """In the network namespace of the control plane."""
    cluster, connection = Cluster(NAME), Connection.find(kubeconfig)
    names = [f"n{number:04}" for number in range(count)]
    await furnish(connection, names)
    eye = Eye(connection, names)
    async with _running(eye.run()), _processes(kubeconfig, count) as (crowds, controller):
        await crowds.begun()
        await until(lambda: eye.states == count, "every agent has reported", [*crowds.processes, controller.process])
        await _settled(cluster)
        bench = Bench(cluster, connection, eye, crowds, controller)
        for story in (bench.first, bench.second, bench.failing, bench.outage, bench.quiet, bench.many, bench.counted):
            print(f"{story.__doc__} …", file=sys.stderr, flush=True)
            await story()
        report = bench.report()
    await connection.close()
    return report


async def _settled(cluster: Cluster) -> None:
    """Until nobody writes any more: the agents' starts are no part of the first generation."""
    while True:
        audit = Audit(cluster)
        await asyncio.sleep(5)
        if not audit.writes():
            return


@asynccontextmanager
async def _running(job: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(job)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


@asynccontextmanager
async def _processes(kubeconfig: str, count: int) -> AsyncIterator[tuple[Crowds, Replica]]:
    controller = Replica(kubeconfig)
    crowds = Crowds(kubeconfig, count)
    try:
        yield crowds, controller
    finally:
        await asyncio.to_thread(end, [*crowds.processes, controller.process])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fleet", description=__doc__)
    parser.add_argument("--nodes", type=int, default=NODES_WANTED)
    parser.add_argument("--inside", metavar="KUBECONFIG", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(figures.to_json(asyncio.run(inside(options.inside, options.nodes))))
        return 0
    _, *machine_facts = machine.describe()
    setting, cluster = [Fact("Command", "python -m tests.bench.fleet"), *machine_facts], Cluster(NAME)
    try:
        cluster.up(0)
        for name in ("manager", "scheduler"):  # nobody heartbeats for these Nodes
            cluster.control.sandbox.stop(name)
        kubeconfig = cluster.control.credentials.kubeconfig("admin")
        command = [sys.executable, "-m", "tests.bench.fleet", f"--nodes={options.nodes}", f"--inside={kubeconfig}"]
        entered = cluster.control.sandbox.enter(*command, namespaces="--net")
        done = subprocess.run(entered, stdout=subprocess.PIPE, text=True, check=True, timeout=3600)
    finally:
        cluster.down()
    report = figures.from_json(done.stdout)
    page.show(Console(), report)
    if options.nodes == NODES_WANTED:
        PAGE.write_text(page.render([report], setting, TEMPLATE))
    return 0


if __name__ == "__main__":
    sys.exit(main())
