"""Repair: a foreign flip on a managed link, until its value is back, as another process sees it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bench import figures, place
from tests.bench.figures import Fact, Figure, Report, Target
from tests.bench.place import Links

FEATURE = "tx-tcp-segmentation"
LISTENING_LOOP = f"""\
stdbuf -oL ethtool --monitor | while read -r first second link; do
    case "$first $second" in
        "Features for") ethtool -K "${{link%:}}" {FEATURE} off >/dev/null ;;
        "listening"*) echo ready ;;
    esac
done"""
POLLING_LOOP = f"echo ready; while :; do ethtool -K v0 {FEATURE} off; sleep 1; done"
HOW = """\
Another process (`scripts/foreign.py`) changes a feature of a managed link and looks at it by ioctl until it is back;
the time counts from its own call. The policy has `onContention: Insist`, and each link is left below the 100 repairs a
second from which Insist paces itself. With `ethtool -K` the flip is made by that program, and the time counts from the
last look that found the value right.

Instead, a user has a shell: `ethtool --monitor` read line by line with one `ethtool -K` for each change it tells of
(`stdbuf -oL` makes it tell at once when it writes to a pipe), or `ethtool -K` once a second. TuneD and dispatcher
scripts of NetworkManager act when they start or when a link comes up, and repair nothing later. The floor is a loop
that does not look at what it hears and sends one message that was made beforehand."""


@dataclass(frozen=True, slots=True)
class Size:
    links: int
    flips: int
    commands: int
    loop_flips: int
    polls: int


FULL = Size(links=1000, flips=1000, commands=300, loop_flips=100, polls=10)
QUICK = Size(links=40, flips=40, commands=6, loop_flips=4, polls=1)


class Measured:
    """Figures as they come, and the flips whose value never came back."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []
        self.lost = 0

    def flips(self, what: str, number: int, pause: float, targets: Sequence[str], *how: str, beside: str = "") -> None:
        seen = place.foreign(*how, str(number), str(pause), *targets)
        back = [one["seconds"] for one in seen if one["seconds"] is not None]
        self.lost += len(seen) - len(back)
        if not back:
            raise RuntimeError(f"{what}: no flip was ever repaired")
        self.figures.append(figures.milliseconds(what, back, beside))


def measure(directory: Path, *, quick: bool = False) -> Report:
    size, measured = QUICK if quick else FULL, Measured()
    links = place.make_links(1)
    with place.agent(directory / "one", place.policy()):
        _by_both(measured, "1 link", size, links)
    _instead(measured, size, links)
    place.run("ip", "link", "del", links.veths[0])
    links = place.make_links(size.links)
    many = f"{size.links} links"
    with place.agent(directory / "many", place.policy()):
        _by_both(measured, many, size, links)
    _floor(measured, many, size, links)
    return _report(measured, many)


def _by_both(measured: Measured, scene: str, size: Size, links: Links) -> None:
    measured.flips(f"{scene}, ioctl: virtnet run", size.flips, 0.02 if len(links.names) == 1 else 0.005, links.targets)
    spread = links.targets[:: max(1, len(links.targets) // size.commands)]
    measured.flips(f"{scene}, ethtool -K: virtnet run", size.commands, 0.02, spread, "--with-ethtool")


def _instead(measured: Measured, size: Size, links: Links) -> None:
    ours = "1 link, ioctl: virtnet run"
    _floor(measured, "1 link", size, links)
    with place.listener(place.shell(LISTENING_LOOP)):
        what = "1 link, ioctl: ethtool --monitor | while read"
        measured.flips(what, size.loop_flips, 0.02, links.targets, beside=ours)
    with place.listener(place.shell(POLLING_LOOP)):
        measured.flips("1 link, ioctl: ethtool -K every second", size.polls, 1.0, links.targets, beside=ours)


def _floor(measured: Measured, scene: str, size: Size, links: Links) -> None:
    words = [*place.DIE_WITH_US, sys.executable, "-m", "tests.bench.raw", links.veths[0], FEATURE]
    ours = f"{scene}, ioctl: virtnet run"
    with place.listener(words):
        measured.flips(f"{scene}, ioctl: floor", size.flips // 2, 0.01, links.targets[:1], beside=ours)


def _report(measured: Measured, many: str) -> Report:
    report = Report("Repair", HOW, tuple(measured.figures))
    targets = []
    for by in ("ioctl", "ethtool -K"):
        one, thousand = (report.figure(f"{scene}, {by}: virtnet run") for scene in ("1 link", many))
        targets += [
            Target(f"1 link, {by}: median", one.median, 1.0, "ms"),
            Target(f"1 link, {by}: 99 % within", one.p99, 10.0, "ms"),
            Target(f"{many}, {by}: median", thousand.median, 2.0, "ms"),
        ]
    lost = Fact("flips whose value never came back", str(measured.lost))
    return replace(report, targets=tuple(targets), facts=(lost,))
