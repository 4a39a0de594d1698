"""First apply: two features on many links that have neither yet, by the engine, by the command, and by ethtool."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bench import figures, place, raw
from tests.bench.figures import Figure, Report, Target
from tests.bench.place import Links
from virtnet import reconcile
from virtnet.core.model import Policy
from virtnet.engine.workplace import Workplace
from virtnet.kube import manifests

HOW = """\
Before each turn, the features of all links are put back to what they were. The engine is one pass in a process that is
running already: look, plan, write the originals to the ledger, change, look again. The command is `virtnet apply FILE`
from start to exit, with a new state directory.

Instead, a user calls `ethtool -K LINK FEATURE off FEATURE off` once for each link, from a shell script. The floor is
one message for each link that was made beforehand, and its acknowledgement: nothing is read, recorded or checked. After
each turn, `ethtool --json -k` confirms a sample of the links."""
ENGINE, COMMAND, ETHTOOL = "engine: virtnet", "command: virtnet apply", "ethtool -K once per link"


@dataclass(frozen=True, slots=True)
class Size:
    links: int
    turns: int


FULL, QUICK = Size(links=1000, turns=7), Size(links=40, turns=2)


def measure(directory: Path, *, quick: bool = False) -> Report:
    size = QUICK if quick else FULL
    links = place.make_links(size.links)
    file = directory / "bench.yaml"
    file.write_text(place.policy())
    policies = manifests.read(file.read_bytes(), file.name).policies
    numbers = itertools.count()
    script, ready = "\n".join(links.commands()), raw.messages(links, on=False)
    ways: list[tuple[str, Callable[[], float], str]] = [
        (ENGINE, lambda: _engine(policies, directory / f"state-{next(numbers)}"), ""),
        (COMMAND, lambda: place.timed(lambda: _command(file, directory / f"state-{next(numbers)}")), ENGINE),
        (ETHTOOL, lambda: place.timed(lambda: place.run("sh", "-e", text=script)), ENGINE),
        ("floor: one message per link", lambda: place.timed(lambda: raw.send(ready)), ENGINE),
    ]
    taken = [[_turn(links, way) for _, way, _ in ways] for _ in range(size.turns)]
    found = [
        figures.milliseconds(what, seconds, beside)
        for (what, _, beside), seconds in zip(ways, zip(*taken, strict=True), strict=True)
    ]
    return _report(tuple(found))


def _turn(links: Links, way: Callable[[], float]) -> float:
    raw.send(raw.messages(links, on=True))
    if len(place.wrong_links(links)) < min(8, len(links.names)):
        raise RuntimeError("the features could not be put back")
    seconds = way()
    wrong = place.wrong_links(links)
    if wrong:
        raise RuntimeError(f"not as the policy asks: {', '.join(wrong)}")
    return seconds


def _engine(policies: tuple[Policy, ...], state: Path) -> float:
    """Opening the host and the ledger is not counted: the agent has them open."""
    with Workplace.open(state_dir=state, write=True) as workplace:
        assert workplace.ledger is not None
        wish = reconcile.Wish(policies, workplace.node)
        started = time.perf_counter()
        asyncio.run(_pass(workplace.host, workplace.ledger, wish))
        return time.perf_counter() - started


async def _pass(host: reconcile.Host, ledger: reconcile.Ledger, wish: reconcile.Wish) -> None:
    """Returns no outcome: asyncio.run would make a text of it when it ends."""
    await reconcile.run(host, ledger, wish)


def _command(file: Path, state: Path) -> None:
    place.run(sys.executable, "-m", "virtnet", "apply", str(file), "--state-dir", str(state))


def _report(found: tuple[Figure, ...]) -> Report:
    report = Report("First apply", HOW, found)
    ethtool = report.figure(ETHTOOL).median
    targets = tuple(
        Target(f"{name}, times faster than {ETHTOOL}", ethtool / report.figure(name).median, limit, "×", at_least=True)
        for name, limit in ((ENGINE, 10.0), (COMMAND, 3.0))
    )
    return replace(report, targets=targets)
