"""`virtnet run`: follow a directory of policies and keep this host as they say.

It imports neither the command-line nor the table library. One asyncio loop holds the engine; the policies and the holds
are looked at twice a second, which a stat of a few files does best: it needs no watches to be renewed when a directory,
a mount or a chain of symlinks is swapped.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from virtnet import __version__, errors
from virtnet.cli import logs
from virtnet.core import report
from virtnet.engine.engine import Engine, Options, timestamp
from virtnet.engine.fights import Thresholds
from virtnet.engine.workplace import STATUS, Workplace
from virtnet.host.exits import Exits
from virtnet.kube.directory import PolicyDirectory

log = logging.getLogger("virtnet.run")

LISTEN = "127.0.0.1:9571"
LOOK_SECONDS = 0.5
STOP_SECONDS = 4.0
"""How long an engine may take to roll back and end; the promise is 5 seconds."""


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
    found = _Parser(prog="virtnet run", description="Keep this host as the policies in a directory say, until stopped.")
    add = found.add_argument
    add("--policies", required=True, metavar="DIR", help="directory of *.yaml, *.yml and *.json policy files")
    add("--netns", metavar="NAME", help="work in this network namespace, as `ip netns` names it")
    add("--state-dir", type=Path, metavar="DIR", help="where originals and last good policies are kept")
    add("--node-name", metavar="NAME", help="the name nodeSelector sees (default: the host name)")
    add("--node-label", action="append", default=[], type=_label, metavar="KEY=VALUE", help="a label; repeatable")
    add("--listen", default=LISTEN, metavar="ADDRESS:PORT", help=f"/healthz /readyz /metrics (default {LISTEN})")
    add("--allow-mass-removal", action="store_true", help="let the brake off: remove however much is asked")
    add("--resync", type=_positive, default=300.0, metavar="SECONDS", help="the safety pass (default 300)")
    add("--log-format", choices=("text", "json"), default="text")
    add("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    _add_thresholds(found)
    return found


class _Parser(argparse.ArgumentParser):
    """Ends with 1 on a wrong command line, as every command here does."""

    def error(self, message: str) -> NoReturn:
        self.exit(1, f"{self.prog}: {message} ({self.prog} --help shows how)\n")


def _add_thresholds(found: argparse.ArgumentParser) -> None:
    usual = Thresholds()
    add = found.add_argument_group("when somebody else keeps changing a setting back").add_argument
    add("--contention-repairs", type=int, default=usual.repairs, help="give up after this many repairs")
    add("--contention-window", type=_positive, default=usual.window, help="in this many seconds")
    add("--contention-retry", type=_positive, default=usual.retry, help="try again after, doubling")
    add("--contention-longest", type=_positive, default=usual.longest, help="up to this many seconds")
    add("--contention-quiet", type=_positive, default=usual.quiet, help="forget after this many quiet seconds")


def _label(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not key or not sign:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return number


def _options(arguments: argparse.Namespace) -> Options:
    thresholds = Thresholds(
        repairs=max(1, arguments.contention_repairs),
        window=arguments.contention_window,
        retry=arguments.contention_retry,
        longest=arguments.contention_longest,
        quiet=arguments.contention_quiet,
    )
    return Options(thresholds, resync=arguments.resync, allow_mass_removal=arguments.allow_mass_removal)


# --- the process -------------------------------------------------------------------------------------------


async def _main(arguments: argparse.Namespace) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
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
        write=True,
    ) as place:
        assert place.state is not None
        assert place.ledger is not None
        directory = PolicyDirectory(arguments.policies, place.state)
        directory.refuse_if_open_to_all()
        monitor = place.host.monitor()
        with contextlib.closing(monitor):
            engine = Engine(
                place.host,
                place.ledger,
                place.state,
                place.transactions(),
                monitor,
                place.node,
                options=_options(arguments),
                agent={"version": __version__, "bootID": place.host.identity().boot_id},
                on_status=lambda status: _write_status(place, status),
            )
            engine.exits = exits = Exits(lambda: engine.wake("a user of a module ended"))
            for notice in place.notices:
                log.warning(notice)
            directory.first_look()
            _take(engine, directory)
            try:
                with contextlib.closing(exits):
                    await _serve(arguments, engine, directory, place, stop)
            except errors.Gone as error:
                _write_status(place, report.lost(engine.status or {}, str(error), timestamp()))
                raise


async def _serve(
    arguments: argparse.Namespace, engine: Engine, directory: PolicyDirectory, place: Workplace, stop: asyncio.Event
) -> None:
    """The engine, the two looks a second, and the web site, until the first of them ends."""
    running = asyncio.create_task(engine.run(), name="engine")
    following = asyncio.create_task(_follow(engine, directory, place), name="policies")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    site = asyncio.create_task(_site_when_ready(arguments.listen, engine), name="site")
    try:
        done, _ = await asyncio.wait({running, following, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stopping}:
            task.result()
    finally:
        for task in (running, following, stopping, site):
            task.cancel()
        await asyncio.wait({running, following, stopping, site}, timeout=STOP_SECONDS)
        if site.done() and not site.cancelled() and site.result() is not None:
            site.result().close()


async def _follow(engine: Engine, directory: PolicyDirectory, place: Workplace) -> None:
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        place.namespace.check()
        if directory.look():
            _take(engine, directory)
        engine.check_holds()


async def _site_when_ready(listen: str, engine: Engine) -> Any:
    """The web site comes after the first pass: enforcing is what a start is for."""
    await engine.looked.wait()
    from virtnet.cli import site

    return site.start(listen, engine)


def _take(engine: Engine, directory: PolicyDirectory) -> None:
    for sentence in directory.unread:
        log.error(sentence)
    if directory.policies is not None:
        engine.set_policies(directory.policies, directory.unread)


def _write_status(place: Workplace, status: Mapping[str, Any]) -> None:
    assert place.state is not None
    try:
        place.state.write_json(STATUS, status, durable=False)
    except errors.LedgerError as error:
        log.warning("%s is not up to date: %s", STATUS, error)
