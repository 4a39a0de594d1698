"""What `run` and `agent` share: their flags, the engine of one place, and the life of its tasks until it is stopped."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from virtnet import __version__, errors
from virtnet.core import report
from virtnet.engine.engine import Engine, Options, timestamp
from virtnet.engine.fights import Thresholds
from virtnet.engine.workplace import STATUS, Workplace
from virtnet.host import records
from virtnet.host.exits import Exits

if TYPE_CHECKING:
    from virtnet.cli.site import Site
    from virtnet.host.guests import Guests

log = logging.getLogger(__name__)

STOP_SECONDS = 4.0
"""How long an engine may take to roll back and end; the promise is 5 seconds."""


# --- flags -------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Ends with 1 on a wrong command line, as every command here does."""

    def error(self, message: str) -> NoReturn:
        self.exit(1, f"{self.prog}: {message} ({self.prog} --help shows how)\n")


def add_arguments(parser: argparse.ArgumentParser, listen: str) -> None:
    """The flags of whoever keeps an engine running; `listen` is where its web site is unless somebody says."""
    add = parser.add_argument
    add("--netns", metavar="NAME", help="work in this network namespace, as `ip netns` names it")
    add("--state-dir", type=Path, metavar="DIR", help="where originals and last good policies are kept")
    add("--libvirt-uri", metavar="URI", help="whose guests (default: the system's libvirt, where it listens)")
    add("--listen", default=listen, metavar="ADDRESS:PORT", help=f"/healthz /readyz /metrics (default {listen})")
    add("--allow-mass-removal", action="store_true", help="let the brake off: remove however much is asked")
    add("--resync", type=positive, default=300.0, metavar="SECONDS", help="the safety pass (default 300)")
    add_log_arguments(parser)
    _add_thresholds(parser)


def add_log_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--log-format", choices=("text", "json"), default="text")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")


def _add_thresholds(parser: argparse.ArgumentParser) -> None:
    usual = Thresholds()
    add = parser.add_argument_group("when somebody else keeps changing a setting back").add_argument
    add("--contention-repairs", type=int, default=usual.repairs, help="give up after this many repairs")
    add("--contention-window", type=positive, default=usual.window, help="in this many seconds")
    add("--contention-retry", type=positive, default=usual.retry, help="try again after, doubling")
    add("--contention-longest", type=positive, default=usual.longest, help="up to this many seconds")
    add("--contention-quiet", type=positive, default=usual.quiet, help="forget after this many quiet seconds")


def positive(text: str) -> float:
    """A flag's number of seconds."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return number


def engine_options(arguments: argparse.Namespace) -> Options:
    thresholds = Thresholds(
        repairs=max(1, arguments.contention_repairs),
        window=arguments.contention_window,
        retry=arguments.contention_retry,
        longest=arguments.contention_longest,
        quiet=arguments.contention_quiet,
    )
    return Options(thresholds, resync=arguments.resync, allow_mass_removal=arguments.allow_mass_removal)


# --- the engine --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def engine_at(place: Workplace, options: Options, whose: str) -> Iterator[Engine]:
    """An engine for an open place, not running yet; `whose` policies, for the log. Its status is in state.json."""
    assert place.state is not None
    assert place.ledger is not None
    says = "virtnet %s keeps node %s, %s, as %s says; what was there before is kept in %s"
    log.info(says, __version__, place.node.name, place.namespace, whose, place.state.path)
    for name, until in place.holds().items():
        log.info(report.hold(None if name == records.EVERYTHING else name, until))
    for notice in place.notices:
        log.warning(notice)
    with contextlib.closing(place.host.monitor()) as monitor:
        engine = Engine(
            place.host,
            place.ledger,
            place.state,
            place.transactions(),
            monitor,
            place.node,
            options=options,
            agent={"version": __version__, "bootID": place.host.identity().boot_id},
            on_status=lambda status: write_status(place, status),
            earlier=place.status(),
        )
        if place.host.guests is not None:
            hear(place.host.guests, engine)
        with contextlib.closing(Exits(lambda: engine.wake("a user of a module ended"))) as exits:
            engine.exits = exits
            try:
                yield engine
            except errors.Gone as error:
                write_status(place, report.lost(engine.status or {}, str(error), timestamp()))
                raise


def hear(guests: Guests, engine: Engine) -> None:
    """Wake the engine when libvirt tells of something; it never waits for libvirt."""
    loop = asyncio.get_running_loop()

    def told() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: we are ending
            loop.call_soon_threadsafe(engine.wake, "libvirt told of guests")

    guests.patience, guests.told = 0.0, told


def write_status(place: Workplace, status: Mapping[str, Any]) -> None:
    """STATE_DIR/state.json; a disk that refuses is said and no more."""
    assert place.state is not None
    try:
        place.state.write_json(STATUS, status, durable=False)
    except errors.LedgerError as error:
        log.warning("%s is not up to date: %s", STATUS, error)


# --- the process -------------------------------------------------------------------------------------------


def stop_on_signals(stop: asyncio.Event) -> Mapping[signal.Signals, Callable[[], object]]:
    """SIGTERM and SIGINT end the process in order; returns who handles them, for kopf, which takes them away."""
    handlers = dict.fromkeys((signal.SIGTERM, signal.SIGINT), stop.set)
    for number, handler in handlers.items():
        asyncio.get_running_loop().add_signal_handler(number, handler)
    return handlers


async def until_stopped(
    engine: Engine,
    stop: asyncio.Event,
    *others: Coroutine[Any, Any, NoReturn],
    site: Coroutine[Any, Any, Site | None],
) -> None:
    """Run the engine, the others and the web site until `stop`, or until the engine or one of the others fails.

    The engine's task is born first, and whatever becomes of the others, it ends last: it may have to roll back.
    """
    running = asyncio.create_task(engine.run(), name="engine")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    beside = [asyncio.create_task(other) for other in others]
    serving = asyncio.create_task(site, name="site")
    try:
        done, _ = await asyncio.wait({running, stopping, *beside}, return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stopping}:
            task.result()
    finally:
        await _end([running, stopping, *beside, serving])
        if serving.done() and not serving.cancelled() and (opened := serving.result()):
            opened.close()


async def _end(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=STOP_SECONDS)
