"""An agent on a fake host: passes, restarts and kills; what it keeps over its own death is only what is on disk.

It is the engine without its clock: every pass is asked for, and nothing happens between two of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.flow.boundaries import Boundaries
from tests.flow.fake import FakeHost, MemoryLedger
from virtnet import reconcile
from virtnet.core.model import Node, Policy, Safety, Setting
from virtnet.core.standing import Refusal, Standing
from virtnet.engine.transactions import Transactions
from virtnet.host.probes import Probe
from virtnet.host.state import StateDir

NODE = Node("node-1", {"kubernetes.io/os": "linux"})
GATEWAY = Probe("gateway", "192.0.2.1%br0")


class MortalState(StateDir):
    """A state directory at whose writes the agent can be killed; it is never synced, the test is its only disk."""

    def __init__(self, path: Path, boundaries: Boundaries) -> None:
        super().__init__(path)
        self.boundaries = boundaries
        self.prepare()

    def write_json(self, name: str, value: Any, *, durable: bool) -> None:
        with self.boundaries.around(lambda: None):
            super().write_json(name, value, durable=False)

    def remove(self, name: str, *, durable: bool) -> None:
        with self.boundaries.around(lambda: None):
            super().remove(name, durable=False)


class FakeProber:
    """One gateway that answers, until `lost` says that after a change it does not."""

    def __init__(self) -> None:
        self.lost = False

    def probes(self, safety: Safety) -> tuple[Probe, ...]:
        return (GATEWAY,) if safety.gateway else ()

    async def working(self, probes: Iterable[Probe], within: float) -> frozenset[Probe]:
        return frozenset(probes)

    async def confirm(self, probes: Iterable[Probe], within: float) -> Mapping[Probe, str]:
        return dict.fromkeys(probes, "no answer") if self.lost else {}


class Agent:
    """One life after another of an agent on one host, with one ledger and, given a directory, transactions."""

    def __init__(self, host: FakeHost, directory: Path | None = None) -> None:
        self.host, self.ledger, self.prober = host, MemoryLedger(host.boundaries), FakeProber()
        self.state = MortalState(directory, host.boundaries) if directory else None
        self.held: str | None = None
        self.allow_mass_removal = False
        self.refused: dict[Setting, Refusal] = {}
        self.transactions: Transactions | None = None
        host.judge.ledger = self.ledger
        self._start()

    def _start(self) -> None:
        self.memory = reconcile.Memory()
        if self.state is not None:
            self.transactions = Transactions(self.host, self.ledger, self.state, self.prober)

    def restart(self) -> None:
        """A new process: what was on its way is put back, and nothing but the disk is remembered."""
        self.host.heal()
        self.ledger.heal()
        self._start()
        if self.transactions is not None:
            self.transactions.recover()

    def forgive(self) -> None:
        """What `virtnet apply` does: what went back before may be tried again."""
        if self.transactions is not None:
            self.transactions.forgive()

    def run(self, policies: tuple[Policy, ...]) -> reconcile.Outcome:
        """One pass, as the engine makes it."""
        with asyncio.Runner() as runner:
            outcome = runner.run(self.start(policies))
        self.refused |= outcome.refusals
        return outcome

    async def start(self, policies: tuple[Policy, ...]) -> reconcile.Outcome:
        """The pass itself, for those who have a loop and may want to stop it."""
        wish = reconcile.Wish(policies, NODE, self._standing(policies))
        return await reconcile.run(self.host, self.ledger, wish, transact=self.transactions, memory=self.memory)

    def look(self, policies: tuple[Policy, ...]) -> reconcile.Look:
        """What a fresh pair of eyes sees: no memory of the looks before."""
        return reconcile.look(self.host, self.ledger.recorded, reconcile.Wish(policies, NODE, self._standing(policies)))

    def _standing(self, policies: tuple[Policy, ...]) -> Standing:
        return Standing(
            held=self.held,
            rolled_back=self.transactions.standing(policies) if self.transactions else {},
            refused=self.refused,
            allow_mass_removal=self.allow_mass_removal,
        )
