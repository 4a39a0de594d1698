"""`virtnet controller`: of all replicas one sums up what the nodes report, the others stand by.

It imports neither the command-line nor the table library. A replica that loses the lease ends with 1: what it still had
under way must not go on beside its successor, and its pod starts it anew.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import socket
import sys
import uuid
from collections.abc import Sequence
from typing import NoReturn

from virtnet import __version__, errors
from virtnet.cli import logs, site
from virtnet.engine import exposition
from virtnet.kube import informer, lease, operators
from virtnet.kube.connection import Connection
from virtnet.kube.controller import Controller
from virtnet.kube.lease import Lease

log = logging.getLogger("virtnet.controller")

LISTEN = "127.0.0.1:9572"
NAMESPACE = "virtnet-system"
LEASE = "virtnet-controller"
REPEATING = ("kopf", "aiohttp", operators.__name__, informer.__name__, lease.__name__)
"""Whose log repeats itself as long as the API server is away."""
STOP_SECONDS = 4.0
"""How long what is under way may take to end; handing the lease over comes after it."""


def main(argv: Sequence[str]) -> int:
    """The whole life of the process; the exit code. Raises VirtnetError, also when the lease is lost."""
    arguments = parser().parse_args(argv)
    logs.start(arguments.log_format, arguments.log_level)
    for handler in logging.getLogger().handlers:
        handler.addFilter(operators.Muffle(REPEATING))
    try:
        return asyncio.run(_main(arguments))
    except errors.VirtnetError as error:
        print(f"virtnet controller: {error}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    found = _Parser(
        prog="virtnet controller", description="Sum up what all nodes report into the status of the policies."
    )
    add = found.add_argument
    add("--namespace", metavar="NS", help="where the agents' pods and the lease are (default: this pod's)")
    add("--lease-name", default=LEASE, metavar="NAME", help=f"who holds it works (default {LEASE})")
    add("--identity", metavar="NAME", help="of this process, and of no other that runs (default: made up)")
    add("--listen", default=LISTEN, metavar="ADDRESS:PORT", help=f"/healthz /readyz /metrics (default {LISTEN})")
    add("--kubeconfig", metavar="FILE", help="the cluster (default: the one this pod runs in)")
    add("--log-format", choices=("text", "json"), default="text")
    add("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    return found


class _Parser(argparse.ArgumentParser):
    """Ends with 1 on a wrong command line, as every command here does."""

    def error(self, message: str) -> NoReturn:
        self.exit(1, f"{self.prog}: {message} ({self.prog} --help shows how)\n")


# --- the process -------------------------------------------------------------------------------------------


async def _main(arguments: argparse.Namespace) -> int:
    """0 when it was stopped. Raises the error by which the lease was lost."""
    stop = asyncio.Event()
    handlers = dict.fromkeys((signal.SIGTERM, signal.SIGINT), stop.set)
    loop = asyncio.get_running_loop()
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    connection = Connection.find(arguments.kubeconfig)
    namespace = arguments.namespace or connection.server.namespace or NAMESPACE
    name = arguments.identity or f"{socket.gethostname()}_{uuid.uuid4()}"
    right = Lease(connection, namespace, arguments.lease_name, name)
    controller = Controller(connection, namespace, name)
    says = "virtnet %s at the API server %s stands by as %s for the lease %s/%s"
    log.info(says, __version__, connection.server.address, name, namespace, arguments.lease_name)
    served = await site.start(arguments.listen, pages(controller, right))
    try:
        await _work(controller, right, handlers, stop)
    finally:
        if served is not None:
            served.close()
        await right.release()
        await connection.close()
    return 0


async def _work(controller: Controller, right: Lease, handlers: operators.Signals, stop: asyncio.Event) -> None:
    """Stand by, then work, until stopped or until the lease is lost."""
    stopping = asyncio.create_task(stop.wait(), name="stop")
    tasks = {stopping, asyncio.create_task(right.acquire(), name="stand by")}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if stopping not in done:
            tasks |= {asyncio.create_task(right.keep(), name="lease")}
            tasks |= {asyncio.create_task(controller.run(handlers), name="controller")}
            running = {task for task in tasks if not task.done()}
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stopping}:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=STOP_SECONDS)


# --- its web site ------------------------------------------------------------------------------------------


def pages(controller: Controller, right: Lease) -> site.Pages:
    return {
        "/healthz": lambda: site.said(*_healthy(controller, right)),
        "/readyz": lambda: site.said(*_ready(controller, right)),
        "/metrics": lambda: (200, exposition.CONTENT_TYPE, exposition.text(controller.metrics.registry)),
    }


def _healthy(controller: Controller, right: Lease) -> tuple[bool, str]:
    late = controller.overdue() if right.held else 0.0
    return (False, f"the last look is {late:.0f} s overdue") if late > 0 else (True, "ok")


def _ready(controller: Controller, right: Lease) -> tuple[bool, str]:
    """A replica that stands by is ready: else no rollout of the Deployment would ever end."""
    if not right.held:
        return True, "ok: it stands by"
    obstacles = "; ".join(controller.obstacles)
    if not controller.synced:
        return False, f"not everything was listed yet: {obstacles}"
    return True, f"ok: it works{f', though {obstacles}' if obstacles else ''}"
