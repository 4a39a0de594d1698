"""Counts, and writes them as Prometheus reads them: the text format 0.0.4, for numbers of one thread.

The client library of Prometheus does the same and brings a web server, a web client, mail and TLS along when it is
imported: ten megabytes and a sixth of the time of a start, in a process of forty. The tests have it read this text.
https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[str, Mapping[str, str], float]
"""A name, its labels, a value."""


class Family:
    """Numbers of one name, one for each combination of label values. Without labels there is one from the start."""

    type = "untyped"
    suffix = ""

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()) -> None:
        self.name, self.help, self.labels = name, help, tuple(labels)
        self._numbers: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}

    def samples(self) -> Iterator[Sample]:
        for values, number in self._numbers.items():
            yield self.name + self.suffix, dict(zip(self.labels, values, strict=True)), number


class Counter(Family):
    """Only grows. Its name is given without `_total`."""

    type = "counter"
    suffix = "_total"

    def inc(self, *values: str) -> None:
        self._numbers[values] = self._numbers.get(values, 0.0) + 1.0


class Gauge(Family):
    type = "gauge"

    def set(self, number: float, *values: str) -> None:
        self._numbers[values] = float(number)

    def replace(self, numbers: Mapping[str, float]) -> None:
        """By the value of its one label; what is not in them is gone."""
        self._numbers = {(value,): float(number) for value, number in numbers.items()}


class Histogram(Family):
    """How many observations were at most so large, for each of `bounds`, and their sum."""

    type = "histogram"

    def __init__(self, name: str, help: str, bounds: Sequence[float]) -> None:
        super().__init__(name, help)
        self._bounds = (*bounds, math.inf)
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0

    def observe(self, number: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, number)] += 1
        self._sum += number

    def samples(self) -> Iterator[Sample]:
        for bound, count in zip(self._bounds, itertools.accumulate(self._counts), strict=True):
            yield f"{self.name}_bucket", {"le": _number(bound)}, float(count)
        yield f"{self.name}_count", {}, float(sum(self._counts))
        yield f"{self.name}_sum", {}, self._sum


class Registry:
    """Families that are served together, in this order."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterator[Family]:
        return iter(self._families)

    def get_sample_value(self, name: str, labels: Mapping[str, str] | None = None) -> float | None:
        """None where there is no such sample."""
        samples = (sample for family in self._families for sample in family.samples())
        return next((value for found, its, value in samples if (found, its) == (name, dict(labels or {}))), None)

    def text(self) -> str:
        return "".join(map(_written, self._families))


def _written(family: Family) -> str:
    name = family.name + family.suffix
    lines = [f"# HELP {name} {_escaped(family.help)}", f"# TYPE {name} {family.type}"]
    lines += (f"{sample}{_labels(labels)} {_number(number)}" for sample, labels, number in family.samples())
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    shown = (f'{name}="{_escaped(value, quote=True)}"' for name, value in sorted(labels.items()))
    return f"{{{','.join(shown)}}}" if labels else ""


def _escaped(text: str, *, quote: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quote else text


def _number(number: float) -> str:
    return "+Inf" if number == math.inf else repr(number)
