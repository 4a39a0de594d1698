"""`virtnet agent`: keep this node as the policies of its cluster say.

The engine begins with what was in force before, and then the API server is asked; whatever becomes of it, the engine
goes on. It imports neither the command-line nor the table library, nor a client library of Kubernetes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from virtnet import errors
from virtnet.cli import logs, serving
from virtnet.engine.engine import Engine
from virtnet.engine.workplace import Workplace
from virtnet.kube import credentials
from virtnet.kube.credentials import Server

if TYPE_CHECKING:
    from virtnet.cli.site import Pages, Site
    from virtnet.kube.agent import Agent

log = logging.getLogger("virtnet.agent")

LISTEN = "127.0.0.1:9571"
LOOK_SECONDS = 1.0
FIRST_PASS_SECONDS = 3.0
"""How long the web site waits for the first pass: enforcing is what a start is for, but a kubelet asks soon."""


def main(argv: Sequence[str]) -> int:
    """The whole life of the process; the exit code."""
    arguments = parser().parse_args(argv)
    logs.start(arguments.log_format, arguments.log_level)
    try:
        return asyncio.run(_main(arguments))
    except errors.VirtnetError as error:
        print(f"virtnet agent: {error}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    found = serving.Parser(
        prog="virtnet agent", description="Keep this node as the policies of its cluster say, until stopped."
    )
    add = found.add_argument
    add("--node-name", required=True, metavar="NAME", help="the name of this host's Node object")
    add("--kubeconfig", metavar="FILE", help="the cluster (default: the one this pod runs in)")
    serving.add_arguments(found, LISTEN)
    return found


async def _main(arguments: argparse.Namespace) -> int:
    stop = asyncio.Event()
    signals = serving.stop_on_signals(stop)
    server = credentials.find(arguments.kubeconfig)
    with (
        Workplace.open(
            netns=arguments.netns,
            state_dir=arguments.state_dir,
            node_name=arguments.node_name,
            api_server=server.address,
            libvirt_uri=arguments.libvirt_uri,
            write=True,
        ) as place,
        serving.engine_at(place, serving.engine_options(arguments), f"the API server {server.address}") as engine,
    ):
        agent = _agent(place, engine, server)
        agent.restore()
        site = _site(arguments.listen, engine, agent)
        await serving.until_stopped(engine, stop, agent.run(signals), _follow(engine, place), site=site)
    return 0


async def _follow(engine: Engine, place: Workplace) -> NoReturn:
    """What somebody does on the host itself: `virtnet hold`, or the end of the namespace that we work in."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        place.namespace.check()
        engine.check_holds()


def _agent(place: Workplace, engine: Engine, server: Server) -> Agent:
    from virtnet.kube.agent import Agent
    from virtnet.kube.connection import Connection
    from virtnet.kube.operators import Muffle

    assert place.state is not None
    for handler in logging.getLogger().handlers:
        handler.addFilter(Muffle())
    return Agent(place.node.name, engine, place.state, Connection(server))


# --- the web site ------------------------------------------------------------------------------------------


async def _site(listen: str, engine: Engine, agent: Agent) -> Site | None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(engine.looked.wait(), FIRST_PASS_SECONDS)
    from virtnet.cli import site

    return await site.start(listen, _pages(engine, agent))


def _pages(engine: Engine, agent: Agent) -> Pages:
    """Healthy as any engine, but ready when it works: whether the policies are Ready is for the node state to say.

    Before the first pass nothing can be overdue: without an API server a new node has nothing to enforce.
    """
    from virtnet.cli import site

    def healthy() -> site.Answer:
        return usual["/healthz"]() if engine.looked.is_set() else site.said(True, _waiting(agent))

    def ready() -> site.Answer:
        return site.said(engine.looked.is_set(), "ok" if engine.looked.is_set() else _waiting(agent))

    usual = site.pages(engine)
    return {**usual, "/healthz": healthy, "/readyz": ready}


def _waiting(agent: Agent) -> str:
    return f"no policies are known yet: {agent.operator.obstacle or 'waiting for them'}"
