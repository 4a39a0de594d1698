"""Idle: what `virtnet run` holds and burns when nothing happens, and how long its start takes to enforce."""

from __future__ import annotations

import os
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scripts.foreign import Ethtool
from tests.bench import figures, place, raw
from tests.bench.figures import MIB, Fact, Figure, Report, Target
from tests.bench.place import Agent, Links

HOW = """\
The agent runs on its own policy directory with its web site on, and has settled. Memory is read from
/proc/PID/smaps_rollup (`proportional` shares out pages that other processes map as well), CPU time from the process's
own clock, once a second. Beside it are processes that only import: nothing, the libraries that any such agent needs
(asyncio, PyYAML and the pydantic models), and all modules of `virtnet run`, imported in the way it does it.

Start to first enforcement: from before the process is started until another process sees the first feature changed,
and the last one. Beside it, a process that only imports the same modules and exits."""
LIBRARIES = "import asyncio, yaml, virtnet.kube.api"
MODULES = """\
import gc
from virtnet import __main__ as start
gc.set_threshold(start.SELDOM)
start.import_without_openssl()
import virtnet.cli.run, virtnet.cli.site"""
UNWANTED = ("typer", "rich", "kopf", "kubernetes", "pyroute2")
TELL_MODULES = """\
import pathlib, signal, sys
from virtnet.__main__ import main
names = lambda *_: pathlib.Path(sys.argv[1]).write_text("\\n".join(sorted(sys.modules)))
signal.signal(signal.SIGUSR1, names)
sys.exit(main(sys.argv[2:]))"""


@dataclass(frozen=True, slots=True)
class Size:
    links: int
    settle: float
    seconds: int
    starting_links: int
    starts: int


FULL = Size(links=1000, settle=5.0, seconds=40, starting_links=100, starts=10)
QUICK = Size(links=40, settle=0.1, seconds=1, starting_links=20, starts=1)


def measure(directory: Path, *, quick: bool = False) -> Report:
    size = QUICK if quick else FULL
    links = place.make_links(size.starting_links)
    starts = [_start(links, directory / f"start-{number}") for number in range(size.starts)]
    place.remove_links()
    place.make_links(size.links)
    with place.agent(directory / "idle", place.policy()) as agent:
        time.sleep(size.settle)
        found = _watch(agent, size)
        facts = (Fact("threads", str(agent.count("task"))), Fact("open files", str(agent.count("fd"))))
    imported = _modules_of_a_run(directory / "modules")
    return _report(size, [*found, *_imports(size), *_starts(size, starts)], (*facts, *_unwanted(imported)))


# --- idle --------------------------------------------------------------------------------------------------


def _watch(agent: Agent, size: Size) -> list[Figure]:
    """One sample a second."""
    resident, proportional, burnt = [], [], []
    then, before = time.monotonic(), agent.cpu_seconds()
    for _ in range(size.seconds):
        time.sleep(1.0)
        now, spent = time.monotonic(), agent.cpu_seconds()
        burnt.append((spent - before) * 1000 / (now - then))
        then, before = now, spent
        memory = agent.memory()
        resident.append(memory.resident)
        proportional.append(memory.proportional)
    return [
        Figure(f"virtnet run, {size.links} links: resident", MIB, tuple(resident)),
        Figure(f"virtnet run, {size.links} links: proportional", MIB, tuple(proportional)),
        Figure(f"virtnet run, {size.links} links: CPU time per second", "ms", tuple(burnt)),
    ]


def _imports(size: Size) -> list[Figure]:
    ours = f"virtnet run, {size.links} links: resident"
    ways = (("Python alone", ""), ("the libraries imported", LIBRARIES), ("all modules of run imported", MODULES))
    return [
        Figure(f"{what}: resident", MIB, tuple(_resident_after(code) for _ in range(size.starts)), beside=ours)
        for what, code in ways
    ]


def _resident_after(code: str) -> float:
    """MiB of a process that has run `code`."""
    tell = "import pathlib; print(pathlib.Path('/proc/self/smaps_rollup').read_text())"
    rows = place.run(sys.executable, "-c", f"{code}\n{tell}").splitlines()
    return next(int(row.split()[1]) / 1024 for row in rows if row.startswith("Rss:"))


# --- what it imports ---------------------------------------------------------------------------------------


def _modules_of_a_run(directory: Path) -> frozenset[str]:
    """sys.modules of a `virtnet run` that has its policy in force, asked by a signal."""
    told = directory / "modules"
    words = place.agent_words(directory)
    at = words.index("-m")
    words[at : at + 2] = ["-c", TELL_MODULES, str(told)]
    with place.starting_agent(words, directory, place.policy()) as agent:
        place.wait_until(agent.is_ready, "the policy to be in force")
        place.wait_until(agent.is_healthy, "the web site, which comes after the first pass")
        os.kill(agent.pid, signal.SIGUSR1)
        place.wait_until(lambda: told.exists() and bool(told.read_text()), "the names of the modules")
        return frozenset(told.read_text().split())


def _unwanted(imported: frozenset[str]) -> tuple[Fact, ...]:
    found = [name for name in UNWANTED if name in imported]
    return (
        Fact(f"of {', '.join(UNWANTED)} imported by a running agent", ", ".join(found) or "none"),
        Fact("modules imported by a running agent", str(len(imported))),
    )


# --- start -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds since before the process was started."""

    first: float
    last: float


def _start(links: Links, directory: Path) -> Start:
    """When the first, and when the last of two links at the ends of the list was seen as asked."""
    raw.send(raw.messages(links, on=True))
    kernel = Ethtool()
    ends = [target.partition(":")[::2] for target in (links.targets[0], links.targets[-1])]
    started, seen = time.monotonic(), list[float]()
    with place.starting_agent(place.agent_words(directory), directory, place.policy()) as agent:
        while ends:
            time.sleep(0.0005)
            now = time.monotonic() - started
            left = [(link, feature) for link, feature in ends if kernel.is_on(link, feature)]
            seen += [now] * (len(ends) - len(left))
            ends = left
            if now > place.SECONDS:
                raise RuntimeError(f"nothing enforced: {ends}")
        place.wait_until(agent.is_ready, "the policy to be in force")
    wrong = place.wrong_links(links)
    if wrong:
        raise RuntimeError(f"not as the policy asks: {', '.join(wrong)}")
    return Start(seen[0], seen[-1])


def _starts(size: Size, starts: Sequence[Start]) -> list[Figure]:
    scene = f"{size.starting_links} links"
    ours = f"start to first enforcement, {scene}"
    imports = [place.timed(lambda: place.run(sys.executable, "-c", MODULES)) for _ in starts]
    return [
        figures.milliseconds(ours, [start.first for start in starts]),
        figures.milliseconds(f"start to last enforcement, {scene}", [start.last for start in starts], beside=ours),
        figures.milliseconds("start: floor, a process that imports the modules of run", imports, beside=ours),
    ]


def _report(size: Size, found: list[Figure], facts: tuple[Fact, ...]) -> Report:
    report = Report("Idle and start", HOW, tuple(found), (), facts)
    idle, start = f"virtnet run, {size.links} links", f"start to first enforcement, {size.starting_links} links"
    targets = (
        Target(f"{idle}: resident", report.figure(f"{idle}: resident").median, 45.0, MIB),
        Target(f"{idle}: CPU time per second, mean", _mean(report.figure(f"{idle}: CPU time per second")), 1.0, "ms"),
        Target(start, report.figure(start).median, 500.0, "ms"),
    )
    return replace(report, targets=targets)


def _mean(figure: Figure) -> float:
    return statistics.fmean(figure.values)
