"""One node of a fake cluster: a real engine on a fake host, the real agent beside it, and their API server."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from tests.agent.objects import Object
from tests.agent.server import NODE_STATES, NODES, POLICIES, TOKEN, ApiServer
from tests.flow.agent import FakeProber, MortalState
from tests.flow.fake import MemoryLedger
from tests.flow.monitor import TellingHost
from virtnet.core.model import Node
from virtnet.engine.engine import Engine, Options
from virtnet.engine.transactions import Transactions
from virtnet.kube.agent import Agent
from virtnet.kube.connection import Connection
from virtnet.kube.credentials import Server, TokenFile

NAME = "n1"
HOST = "br0 bridge\neth0 mlx5_core master=br0\ntap0 tap master=br0"
EVERYBODY = 2**52
PATIENCE = 40.0
"""Seconds; generous, other work goes on while the tests run. Nobody waits that long for what comes true."""
QUICK = Options(retries=(0.03, 0.1), settle=0.001, rate=100)


def run(story: Callable[[], Any]) -> None:
    asyncio.run(story())


async def until(true: Callable[[], Any], what: str = "") -> None:
    try:
        async with asyncio.timeout(PATIENCE):
            while not true():  # noqa: ASYNC110 - the fakes are asked, they tell nobody
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"it did not come true in time: {what}") from None


def queue(length: int, **more: Any) -> Object:
    """A policy's spec that the host can be seen to obey: GRO of tap0 off, its queue so long."""
    return {"bridge": {"name": "br0"}, "tap": {"offloads": {"gro": False}, "txQueueLength": length}, **more}


class Cluster:
    """The API server with one Node, and what an administrator and the controller do to it."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self.add_node()

    def add_node(self, **labels: str) -> Object:
        return self.server.create(NODES, {"metadata": {"name": NAME, "labels": labels}})

    def annotate_node(self, **annotations: str | None) -> None:
        changed = {f"virtnet.dev/{name}": value for name, value in annotations.items()}
        self.server.merge(NODES, NAME, {"metadata": {"annotations": changed}})

    def add(self, name: str, spec: Object) -> Object:
        """A policy that may go everywhere."""
        self.server.create(POLICIES, {"metadata": {"name": name}, "spec": spec})
        return self.admit(name)

    def edit(self, name: str, **spec: Any) -> Object:
        return self.server.merge(POLICIES, name, {"spec": spec})

    def admit(self, name: str, admitted: int = EVERYBODY) -> Object:
        """Let the newest generation out, as the controller does."""
        generation = self.server.objects[POLICIES.plural].get(name)["metadata"]["generation"]
        rollout = {"generation": generation, "admitted": admitted, "paused": False}
        return self.server.merge(POLICIES, name, {"status": {"rollout": rollout}}, "status")

    def release(self, asked: bool = True) -> None:
        change = {"metadata": {"annotations": {"virtnet.dev/release": "true" if asked else None}}}
        self.server.merge(NODE_STATES, NAME, change)

    # --- what the agent has said ---

    @property
    def node(self) -> Object:
        return self.server.objects[NODES.plural].get(NAME)

    @property
    def state(self) -> Object | None:
        return self.server.objects[NODE_STATES.plural].found.get(("", NAME))

    @property
    def status(self) -> Object:
        return (self.state or {}).get("status", {})

    def generations(self) -> dict[str, int]:
        return {policy["name"]: policy["generation"] for policy in self.status.get("policies", ())}

    def condition(self, kind: str) -> str:
        """`Ready=False Unreadable: why`."""
        for each in self.status.get("conditions", ()):
            if each["type"] == kind:
                return f"{kind}={each['status']} {each['reason']}: {each['message']}"
        return f"{kind} is not there"

    def writes(self) -> int:
        return len([asked for asked in self.server.asked if asked.is_write])


class Machine:
    """A host and its disk, on which agents live one after another."""

    def __init__(self, cluster: Cluster, path: Path, lines: str = HOST, *, token: TokenFile | None = None) -> None:
        self.cluster, self.path, self.token = cluster, path, token
        self.host = TellingHost(lines)
        self.ledger = MemoryLedger()
        self.before = self.host.line("tap0")
        self.agent: Agent

    @contextlib.asynccontextmanager
    async def living(self) -> AsyncIterator[Agent]:
        """The life of one process: the engine first, the agent beside it."""
        state = MortalState(self.path, self.host.boundaries)
        state.prepare()
        transactions = Transactions(self.host, self.ledger, state, FakeProber())
        engine = Engine(self.host, self.ledger, state, transactions, self.host.monitor, Node(NAME, {}), options=QUICK)
        usual = {} if self.token else {"Authorization": f"Bearer {TOKEN}"}
        server = Server(self.cluster.server.url, headers=usual, token=self.token)
        self.agent = agent = Agent(NAME, engine, state, Connection(server))
        agent.restore()
        tasks = [asyncio.create_task(engine.run(), name="engine"), asyncio.create_task(agent.run(), name="agent")]
        try:
            yield agent
            assert not [task for task in tasks if task.done()], "nothing of an agent ends by itself"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def has(self, *words: str) -> bool:
        """Whether tap0 is so: "txqlen=500", "-gro"."""
        return set(words) <= self.host.words("tap0")

    def is_as_before(self) -> bool:
        """Whether tap0 is as it was before any agent came."""
        return self.host.line("tap0") == self.before

    async def drifts(self) -> None:
        """Somebody switches GRO of tap0 on, and the engine puts it back."""
        self.host.flip("tap0", "gro", True)
        await until(lambda: self.has("-gro"), "drift is repaired")

    def kept(self) -> dict[str, Any]:
        """The policies on the disk."""
        found: dict[str, Any] = json.loads((self.path / "admitted.json").read_text())
        return found


@contextlib.asynccontextmanager
async def a_cluster() -> AsyncIterator[Cluster]:
    """It must not have been asked anything that an API server would not understand."""
    server = ApiServer()
    await server.start()
    try:
        yield Cluster(server)
        assert server.surprises == []
    finally:
        await server.stop()
