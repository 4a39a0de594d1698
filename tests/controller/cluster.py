"""A small cluster on the fake API server: Nodes, agents' pods and what agents would report, each set by one call."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from tests.agent.objects import Kind, Object
from tests.agent.server import KINDS, NODE_STATES, NODES, POLICIES, TOKEN, ApiServer
from virtnet.core import rollout
from virtnet.core.rollout import Published
from virtnet.kube.connection import Connection
from virtnet.kube.controller import Controller
from virtnet.kube.credentials import Server

PODS = Kind("", "v1", "pods", "Pod", namespaced=True)
LEASES = Kind("coordination.k8s.io", "v1", "leases", "Lease", namespaced=True, status=False)
EVENTS = Kind("", "v1", "events", "Event", namespaced=True, status=False)

NAMESPACE = "virtnet-system"
LABELS = {"app.kubernetes.io/name": "virtio-network-operator", "app.kubernetes.io/component": "agent"}

PATIENCE = 20.0


def connect(server: ApiServer) -> Connection:
    return Connection(Server(server.url, headers={"Authorization": f"Bearer {TOKEN}"}))


def ready(status: bool, since: str = "2026-01-01T00:00:00Z") -> Object:
    return {"type": "Ready", "status": str(status), "lastTransitionTime": since}


class Cluster:
    """What the API server has; `report` and the like stand in for agents and kubelets."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self._obedient: set[str] = set()

    # --- nodes ---

    def add_node(self, name: str, *, agent: bool = True, **labels: str) -> Object:
        node = self.server.create(NODES, {"metadata": {"name": name, "labels": labels}})
        self.server.merge(NODES, name, {"status": {"conditions": [ready(True)]}}, "status")
        if agent:
            self.add_agent(name)
        return node

    def add_agent(self, node: str) -> None:
        metadata = {"name": f"agent-{node}", "labels": LABELS}
        self.server.create(PODS, {"metadata": metadata, "spec": {"nodeName": node}}, NAMESPACE)
        self.set_agent(node, True)
        self.report(node)

    def set_agent(self, node: str, is_ready: bool) -> None:
        pods = self.server.objects["pods"]
        status = {"status": {"conditions": [ready(is_ready)]}}
        self.server.tell(pods.merge(f"agent-{node}", status, NAMESPACE, "status"))

    def report(self, node: str, settings: list[Object] | None = None, **generations: int) -> None:
        """The node's state: these policies in force, Ready unless a setting of theirs fails."""
        states = self.server.objects["virtionetworknodestates"]
        if ("", node) not in states.found:
            uid = self.server.objects["nodes"].get(node)["metadata"]["uid"]
            owner = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}
            self.server.create(NODE_STATES, {"metadata": {"name": node, "ownerReferences": [owner]}})
        failing = {row["policy"] for row in settings or []}
        policies = [
            {"name": name, "generation": generation, "admitted": True, "ready": name not in failing, "blocked": 0}
            for name, generation in generations.items()
        ]
        self.server.merge(NODE_STATES, node, {"status": {"policies": policies, "settings": settings or []}}, "status")

    # --- policies ---

    def add_policy(self, name: str, **spec: Any) -> Object:
        return self.server.create(POLICIES, {"metadata": {"name": name}, "spec": spec})

    def policy(self, name: str) -> Object:
        return self.server.objects["virtionetworkpolicies"].get(name)

    def status(self, name: str) -> Object:
        found: Object = self.policy(name).get("status") or {}
        return found

    def condition(self, name: str, kind: str) -> str:
        conditions = {each["type"]: each for each in self.status(name).get("conditions", ())}
        return f"{conditions[kind]['status']} {conditions[kind]['reason']}" if kind in conditions else ""

    def events(self) -> list[str]:
        found = self.server.objects["events"].found.values()
        return [f"{each['type']} {each['reason']} x{each['count']}: {each['message']}" for each in found]

    def admitted(self, name: str) -> set[str]:
        """The nodes that may have the newest generation."""
        policy = self.policy(name)
        published, metadata = Published.read(policy.get("status")), policy["metadata"]
        if published is None:
            return set()
        ranks = {node: rollout.rank(metadata["uid"], node) for _, node in self.server.objects["nodes"].found}
        return {node for node, place in ranks.items() if published.admits(place, metadata["generation"])}

    def obey(self, name: str, failing: str = "") -> None:
        """What agents do: those that are admitted report the newest generation; `failing` fails."""
        generation = self.policy(name)["metadata"]["generation"]
        row = {"subject": "link/eth0", "setting": "uplink.mtu", "reason": "Refused", "message": "no", "policy": name}
        for node in self.admitted(name):
            self.report(node, [row] if node == failing else None, **{name: generation})

    # --- waiting ---

    async def until(self, true: Callable[[], bool], what: str = "") -> None:
        end = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < end, what or f"{self.server.objects['virtionetworkpolicies'].found}"
            await asyncio.sleep(0.02)

    async def rolled_out(self, name: str) -> None:
        """Until every node has the newest generation and says so."""

        def is_over() -> bool:
            self.obey(name)
            return self.condition(name, "Ready").startswith("True")

        await self.until(is_over)


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Cluster]:
    server = ApiServer(kinds=(*KINDS, PODS, LEASES, EVENTS))
    await server.start()
    try:
        yield Cluster(server)
    finally:
        await server.stop()
        assert server.surprises == []


@contextlib.asynccontextmanager
async def controlling(cluster: Cluster) -> AsyncIterator[Controller]:
    """The whole controller, as the process runs it, without the lease."""
    connection = connect(cluster.server)
    controller = Controller(connection, NAMESPACE, "controller-0")
    task = asyncio.create_task(controller.run())
    try:
        yield controller
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait({task})
        await connection.close()
