"""`virtnet release-nodes`: what `helm uninstall` runs first, so that every host is again as it was before.

It runs in the controller's image and imports neither the command-line nor the table library.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Sequence

from virtnet.cli import logs, serving
from virtnet.kube import uninstall
from virtnet.kube.connection import Connection

log = logging.getLogger("virtnet.release-nodes")

LEFT = 3
"""The exit code when a node did not put everything back, as `virtnet release` has it."""


def main(argv: Sequence[str]) -> int:
    """0: every node is released and no node state is left; 3: some are not, and are named. Raises VirtnetError."""
    arguments = parser().parse_args(argv)
    logs.start(arguments.log_format, arguments.log_level)
    laggards = asyncio.run(_release(arguments))
    for laggard in laggards:
        log.error("not released: %s", laggard)
    if laggards:
        log.error(
            "not released: %d in all, after %g s; no node state was deleted. Call it again when they can answer, or "
            "leave their hosts as they are: helm uninstall --no-hooks",
            len(laggards),
            arguments.timeout,
        )
    return LEFT if laggards else 0


async def _release(arguments: argparse.Namespace) -> tuple[uninstall.Laggard, ...]:
    connection = Connection.find(arguments.kubeconfig)
    try:
        return await uninstall.release(connection, seconds=arguments.timeout)
    finally:
        await connection.close()


def parser() -> argparse.ArgumentParser:
    found = serving.Parser(
        prog="virtnet release-nodes",
        description="Let every agent of the cluster put back what was there before it, then delete the node states.",
        epilog="Exit code: 0 all released, 3 some nodes are not (they are named), 1 error.",
    )
    add = found.add_argument
    add(
        "--timeout",
        type=serving.positive,
        default=240.0,
        metavar="SECONDS",
        help="how long they may take (default 240)",
    )
    add("--kubeconfig", metavar="FILE", help="the cluster (default: the one this pod runs in)")
    serving.add_log_arguments(found)
    return found
