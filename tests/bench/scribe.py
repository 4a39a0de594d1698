"""Nodes without an agent, whose node states the benchmark of a fleet writes as their agents would.

What a node state costs the API server and the controller is real; only the host behind it is not there. Each is written
anew, once, when the rollout admits its node.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Collection, Iterable
from typing import Any

from virtnet.kube.connection import NODE_STATES, NODES, Connection, Object
from virtnet.kube.publishing import MANAGER


class Scribe:
    """`model` is the status of a real agent that has the one policy in force."""

    def __init__(self, connection: Connection, uids: dict[str, str], model: Object) -> None:
        self._connection, self._uids, self._model = connection, uids, model
        self._written: dict[str, int] = {}
        """By node: the generation that its state tells of."""

    def late(self, names: Iterable[str], generation: int) -> list[str]:
        """Which of these nodes are ours and do not tell of this generation yet."""
        return [name for name in names if name in self._uids and self._written.get(name) != generation]

    async def begin(self, name: str, generation: int) -> None:
        """The object, owned by its Node, and its first status."""
        owner = {"apiVersion": NODES.api_version, "kind": NODES.kind, "name": name, "uid": self._uids[name]}
        await self._apply({"metadata": {"name": name, "ownerReferences": [owner]}})
        await self.write(name, generation)

    async def write(self, name: str, generation: int) -> None:
        status: Any = copy.deepcopy(self._model)
        for policy in status["policies"]:
            policy["generation"] = generation
        await self._apply({"metadata": {"name": name}, "status": status}, "status")
        self._written[name] = generation

    async def _apply(self, wanted: Object, subresource: str = "") -> None:
        await self._connection.apply(NODE_STATES, wanted, manager=MANAGER, subresource=subresource)


async def follow(scribe: Scribe, admitted: Collection[str], generation: int, at_once: int) -> None:
    """Until cancelled: write what is late, so many requests at a time."""
    while True:
        late = scribe.late(tuple(admitted), generation)[:at_once]
        await asyncio.gather(*(scribe.write(name, generation) for name in late))
        if not late:
            await asyncio.sleep(0.05)
