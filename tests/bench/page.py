"""Shows reports in the terminal, and renders docs/performance.md from them. It computes nothing but the layout."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from string import Template

from rich.console import Console
from rich.table import Table

from tests.bench.figures import Fact, Figure, Report, Target

TEMPLATE = Template("""\
# Performance

Measured by `make bench`, which writes this page; nothing in it was typed by hand. Every promise is measured beside what
a user would run instead and beside the floor, what the kernel takes by itself, in one run on one machine: read the
ratios rather than the milliseconds. `×` is the median in terms of our median that it stands beside. A missed target is
printed as missed and fails nothing. A whole fleet is measured apart: [performance-fleet.md](performance-fleet.md).

$machine

## Targets

$targets

$sections
""")
FIGURES = ("measured", "count", "median", "99 %", "max", "unit", "×")
NUMBERS = (1, 2, 3, 4, 6)
TARGETS = ("target", "measured", "promised", "met")


def render(reports: Sequence[Report], machine: Sequence[Fact], template: Template = TEMPLATE) -> str:
    """The whole page as Markdown."""
    targets = [row for report in reports for row in _target_rows(report)]
    return template.substitute(
        machine=_markdown(("run", ""), [(fact.what, fact.value) for fact in machine]),
        targets=_markdown(TARGETS, targets),
        sections="\n\n".join(map(_section, reports)),
    )


def show(console: Console, report: Report) -> None:
    console.rule(f"[bold]{report.title}", align="left")
    console.print(_table(FIGURES, _figure_rows(report), right=NUMBERS))
    if report.facts:
        console.print(_table(("counted", ""), ((fact.what, fact.value) for fact in report.facts)))
    if report.targets:
        console.print(_table(TARGETS, _target_rows(report), right=(1, 2)))


def number(value: float) -> str:
    """Three digits that mean something."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 or not value else f"{value:.3f}"


def _section(report: Report) -> str:
    parts = [f"## {report.title}", report.how, _markdown(FIGURES, _figure_rows(report), right=NUMBERS)]
    if report.facts:
        parts.append(_markdown(("counted", ""), [(fact.what, fact.value) for fact in report.facts]))
    return "\n\n".join(parts)


def _figure_rows(report: Report) -> list[tuple[str, ...]]:
    return [_figure_row(figure, report.ratio(figure)) for figure in report.figures]


def _figure_row(figure: Figure, ratio: float | None) -> tuple[str, ...]:
    numbers = map(number, (figure.median, figure.p99, figure.most))
    return (figure.what, str(len(figure.values)), *numbers, figure.unit, "" if ratio is None else number(ratio))


def _target_rows(report: Report) -> list[tuple[str, ...]]:
    return [_target_row(target) for target in report.targets]


def _target_row(target: Target) -> tuple[str, ...]:
    promised = f"{'≥' if target.at_least else '≤'} {target.limit:g} {target.unit}"
    return target.promise, f"{number(target.measured)} {target.unit}", promised, "yes" if target.met else "MISSED"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[int] = ()) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="bold")
    for place, name in enumerate(head):
        table.add_column(name, justify="right" if place in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[int] = ()) -> str:
    rule = ["---:" if place in right else "---" for place in range(len(head))]
    return "\n".join(f"| {' | '.join(_escaped(row))} |" for row in (head, rule, *rows))


def _escaped(row: Sequence[str]) -> Iterator[str]:
    """A shell's pipe is no border of a cell."""
    return (cell.replace("|", "\\|") for cell in row)
