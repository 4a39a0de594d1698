"""`virtnet controller` as processes: two replicas, what they import, and how they end."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.agent.server import TOKEN
from tests.controller.cluster import NAMESPACE, Cluster, serving

pytestmark = pytest.mark.timeout(90)

UNWANTED = {"kubernetes", "rich", "typer", "pyroute2", "libvirt"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Replica:
    """One process. `ask` a page of its web site."""

    def __init__(self, cluster: Cluster, folder: Path, name: str) -> None:
        self.name, self.port = name, free_port()
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(
            json.dumps(
                {
                    "current-context": "it",
                    "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
                    "clusters": [{"name": "it", "cluster": {"server": cluster.server.url}}],
                    "users": [{"name": "it", "user": {"token": TOKEN}}],
                }
            )
        )
        self.arguments = [
            *(sys.executable, "-m", "virtnet", "controller"),
            *("--kubeconfig", str(kubeconfig), "--namespace", NAMESPACE),
            *("--listen", f"127.0.0.1:{self.port}", "--identity", name),
        ]

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *self.arguments, stderr=asyncio.subprocess.PIPE, env={"PYTHONPATH": ":".join(sys.path)}
        )

    async def ask(self, page: str) -> tuple[int, str]:
        """Status 0 while it does not listen."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return 0, ""
        writer.write(f"GET {page} HTTP/1.1\r\nHost: it\r\n\r\n".encode())
        head, _, text = (await reader.read()).decode().partition("\r\n\r\n")
        writer.close()
        return int(head.split()[1]), text

    async def says(self, page: str, *words: str) -> None:
        async with asyncio.timeout(30):
            while True:
                found = await self.ask(page)
                if found[0] == 200 and all(word in found[1] for word in words):
                    return
                assert self.process.returncode is None
                await asyncio.sleep(0.1)

    async def end(self, number: signal.Signals) -> tuple[int, str]:
        """The exit code, and what it said."""
        self.process.send_signal(number)
        async with asyncio.timeout(15):
            _, said = await self.process.communicate()
        return self.process.returncode or 0, said.decode()


@asynccontextmanager
async def replicas(cluster: Cluster, folder: Path, *names: str) -> AsyncIterator[list[Replica]]:
    found = [Replica(cluster, folder, name) for name in names]
    try:
        for replica in found:
            await replica.start()
        yield found
    finally:
        for replica in found:
            if replica.process.returncode is None:
                replica.process.kill()
                await replica.process.communicate()


def test_it_imports_nothing_that_its_image_does_not_need() -> None:
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "virtnet", "controller", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "kopf" in imported
    assert not imported & UNWANTED
    assert "--lease-name" in shown.stdout


def test_a_wrong_command_line_is_one_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "virtnet", "controller", "--nonsense"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)


def test_one_replica_works_and_the_other_is_ready_to(tmp_path: Path) -> None:
    async def story() -> None:
        async with serving() as cluster, replicas(cluster, tmp_path, "a") as (a,):
            cluster.add_node("n1")
            cluster.add_policy("p", uplink={"match": {"names": ["eth0"]}})
            await a.says("/readyz", "it works")
            async with replicas(cluster, tmp_path, "b") as (b,):
                await b.says("/readyz", "it stands by")
                await b.says("/metrics", "virtnet_controller_leads 0.0")
                await cluster.rolled_out("p")
                await a.says(
                    "/metrics", "virtnet_controller_leads 1.0", 'virtnet_controller_policies{ready="True"} 1.0'
                )
                code, said = await a.end(signal.SIGTERM)
                assert (code, "stands by as a for the lease" in said) == (0, True)
                await b.says("/readyz", "it works")
                cluster.set_agent("n1", False)
                await cluster.until(lambda: cluster.condition("p", "Ready") == "Unknown AgentDown")
                assert (await b.end(signal.SIGINT))[0] == 0

    asyncio.run(story())


def test_a_replica_that_loses_the_lease_ends_and_says_so(tmp_path: Path) -> None:
    async def story() -> None:
        async with serving() as cluster, replicas(cluster, tmp_path, "a") as (a,):
            await a.says("/readyz", "it works")
            lease = cluster.server.objects["leases"]
            lease.merge("virtnet-controller", {"spec": {"holderIdentity": "somebody"}}, NAMESPACE)
            async with asyncio.timeout(15):
                _, said = await a.process.communicate()
            assert a.process.returncode == 1
            assert (
                said.decode().splitlines()[-1]
                == "virtnet controller: the lease virtnet-controller was lost to somebody"
            )

    asyncio.run(story())
