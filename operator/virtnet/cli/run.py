"""`virtnet run`: follow a directory of policies and keep this host as they say.

It imports neither the command-line nor the table library. One asyncio loop holds the engine; the policies and the holds
are looked at every now and then, which a stat of a few files does best: it needs no watches to be renewed when a
directory, a mount or a chain of symlinks is swapped. What an idle agent burns is what waking up costs, not the stats.
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
from virtnet.kube.directory import PolicyDirectory

if TYPE_CHECKING:
    from virtnet.cli.site import Site

log = logging.getLogger("virtnet.run")

LISTEN = "127.0.0.1:9571"
LOOK_SECONDS = 0.7
SETTLE_SECONDS = 0.3
"""How long a directory must have stayed the same before it is read. With the look before, a change is in force within a
second."""


def main(argv: Sequence[str]) -> int:
    """The whole life of the process; the exit code."""
    arguments = parser().parse_args(argv)
    logs.start(arguments.log_format, arguments.log_level)
    try:
        return asyncio.run(_main(arguments))
    except errors.VirtnetError as error:
        print(f"virtnet run: {error}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    found = serving.Parser(
        prog="virtnet run", description="Keep this host as the policies in a directory say, until stopped."
    )
    add = found.add_argument
    add("--policies", required=True, metavar="DIR", help="directory of *.yaml, *.yml and *.json policy files")
    add("--node-name", metavar="NAME", help="the name nodeSelector sees (default: the host name)")
    add("--node-label", action="append", default=[], type=_label, metavar="KEY=VALUE", help="a label; repeatable")
    serving.add_arguments(found, LISTEN)
    return found


def _label(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not key or not sign:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


# --- the process -------------------------------------------------------------------------------------------


async def _main(arguments: argparse.Namespace) -> int:
    stop = asyncio.Event()
    serving.stop_on_signals(stop)
    first = True
    while not stop.is_set():
        try:
            await _in_namespace(arguments, stop)
        except errors.Gone as error:
            log.error("%s; waiting for it", error)
        except errors.UsageError as error:
            if first or isinstance(error, errors.StateBusy):
                raise
            log.debug("%s", error)
        first = False
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), LOOK_SECONDS)
    return 0


async def _in_namespace(arguments: argparse.Namespace, stop: asyncio.Event) -> None:
    """Work in one network namespace until it is gone or we are stopped."""
    with Workplace.open(
        netns=arguments.netns,
        state_dir=arguments.state_dir,
        node_name=arguments.node_name,
        node_labels=dict(arguments.node_label),
        libvirt_uri=arguments.libvirt_uri,
        write=True,
    ) as place:
        assert place.state is not None
        directory = PolicyDirectory(arguments.policies, place.state)
        directory.refuse_if_open_to_all()
        with serving.engine_at(place, serving.engine_options(arguments), arguments.policies) as engine:
            directory.first_look()
            _take(engine, directory)
            site = _site_when_ready(arguments.listen, engine)
            await serving.until_stopped(engine, stop, _follow(engine, directory, place), site=site)


async def _follow(engine: Engine, directory: PolicyDirectory, place: Workplace) -> NoReturn:
    while True:
        await asyncio.sleep(SETTLE_SECONDS if directory.unsettled else LOOK_SECONDS)
        place.namespace.check()
        if directory.look():
            _take(engine, directory)
        engine.check_holds()


async def _site_when_ready(listen: str, engine: Engine) -> Site | None:
    """The web site comes after the first pass: enforcing is what a start is for."""
    await engine.looked.wait()
    from virtnet.cli import site

    return await site.start(listen, site.pages(engine))


def _take(engine: Engine, directory: PolicyDirectory) -> None:
    for sentence in directory.unread:
        log.error(sentence)
    if directory.policies is not None:
        engine.set_policies(directory.policies, directory.unread)
