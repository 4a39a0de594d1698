"""Many agents in one process, for the benchmark of a fleet: the real agent and engine, each on a host in memory.

A line on standard input that says `fail N` lets N of its hosts fail at every change from then on, `heal` ends it. It
says `ready` when all agents have begun.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import resource
import sys
import tempfile
from pathlib import Path

from tests.flow.agent import FakeProber, MortalState
from tests.flow.fake import MemoryLedger
from tests.flow.monitor import TellingHost
from virtnet import errors
from virtnet.core.model import Node, SetFeatures
from virtnet.engine.engine import Engine, Options
from virtnet.engine.transactions import Transactions
from virtnet.kube import credentials
from virtnet.kube.agent import Agent
from virtnet.kube.connection import Connection
from virtnet.kube.credentials import Server

HOST = "br0 bridge\neth0 mlx5_core master=br0\ntap0 tap master=br0\ntap1 tap master=br0"
STARTS_A_SECOND = 20.0
"""How fast a DaemonSet can be: all at once would measure the start and nothing else."""


class Member:
    """One node."""

    def __init__(self, name: str, folder: Path, server: Server) -> None:
        self.host, ledger = TellingHost(HOST), MemoryLedger()
        state = MortalState(folder / name, self.host.boundaries)
        transactions = Transactions(self.host, ledger, state, FakeProber())
        self.engine = Engine(
            self.host,
            ledger,
            state,
            transactions,
            self.host.monitor,
            Node(name),
            options=Options(retries=(1.0, 5.0)),
            agent={"version": "bench", "bootID": name},
        )
        self.agent = Agent(name, self.engine, state, Connection(server))

    def begin(self) -> list[asyncio.Task[None]]:
        self.agent.restore()
        return [asyncio.create_task(self.engine.run()), asyncio.create_task(self.agent.run())]


async def main(arguments: argparse.Namespace) -> None:
    server = credentials.find(arguments.kubeconfig)
    with tempfile.TemporaryDirectory() as folder:
        names = [f"n{number:04}" for number in range(arguments.first, arguments.first + arguments.count)]
        members = [Member(name, Path(folder), server) for name in names]
        tasks = []
        for member in members:
            tasks += member.begin()
            await asyncio.sleep(1 / STARTS_A_SECOND)
        print("ready", flush=True)
        obeying = asyncio.create_task(obey(members))
        done, _ = await asyncio.wait({*tasks, obeying}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()


async def obey(members: list[Member]) -> None:
    """Until standard input ends."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).decode().split():
        if line[0] == "fail":
            for member in members[: int(line[1])]:
                member.host.fail(SetFeatures, errors.Temporary("the driver is busy"))
        else:
            for member in members:
                member.host.heal()
                member.engine.wake("healed")
    raise SystemExit


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    logging.basicConfig(level=logging.CRITICAL)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(main(parse()))
