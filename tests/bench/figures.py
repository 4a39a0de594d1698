"""The values that a benchmark returns: measured samples, targets and facts. Nothing is measured or printed here."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

MILLISECONDS = "ms"
MIB = "MiB"


@dataclass(frozen=True, slots=True)
class Figure:
    """Samples of one quantity. `beside` names the figure that its median is divided by; empty: no ratio is shown."""

    what: str
    unit: str
    values: tuple[float, ...]
    beside: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def p99(self) -> float:
        """The nearest rank: with fewer than 100 samples it is the largest."""
        ordered = sorted(self.values)
        return ordered[max(0, -(-len(ordered) * 99 // 100) - 1)]

    @property
    def most(self) -> float:
        return max(self.values)


@dataclass(frozen=True, slots=True)
class Target:
    """What was promised and what was measured; `at_least`: more is better."""

    promise: str
    measured: float
    limit: float
    unit: str
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that was counted or checked once."""

    what: str
    value: str


@dataclass(frozen=True, slots=True)
class Report:
    """All that one benchmark found. `how` says how it was measured, and what stands beside it and why."""

    title: str
    how: str
    figures: tuple[Figure, ...]
    targets: tuple[Target, ...] = ()
    facts: tuple[Fact, ...] = ()

    def figure(self, what: str) -> Figure:
        return next(figure for figure in self.figures if figure.what == what)

    def ratio(self, figure: Figure) -> float | None:
        """Its median in terms of the figure that it stands beside."""
        return figure.median / self.figure(figure.beside).median if figure.beside else None


def check_plausible(report: Report) -> None:
    """AssertionError for what cannot have been measured."""
    assert report.figures
    for figure in report.figures:
        assert figure.values, figure.what
        assert all(math.isfinite(value) and value >= 0 for value in figure.values), figure
        assert 0 <= figure.median <= figure.p99 <= figure.most, figure
    for target in report.targets:
        assert math.isfinite(target.measured), target
    assert all(report.ratio(figure) != 0 for figure in report.figures)


def milliseconds(what: str, seconds: Sequence[float], beside: str = "") -> Figure:
    return Figure(what, MILLISECONDS, tuple(one * 1000 for one in seconds), beside)


def to_json(report: Report) -> str:
    return json.dumps(asdict(report))


def from_json(text: str) -> Report:
    raw = json.loads(text)
    return Report(
        raw["title"],
        raw["how"],
        tuple(Figure(one["what"], one["unit"], tuple(one["values"]), one["beside"]) for one in raw["figures"]),
        tuple(Target(**one) for one in raw["targets"]),
        tuple(Fact(**one) for one in raw["facts"]),
    )
