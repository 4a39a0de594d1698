"""The command `plan`: what `apply` would change and what stands in the way; it changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from virtnet.cli import lines, policies, terminal
from virtnet.cli.terminal import Output
from virtnet.cli.where import Where
from virtnet.core import report
from virtnet.core.model import Policy
from virtnet.core.plan import Plan

if TYPE_CHECKING:
    from rich.console import Console

NOTHING_TO_CHANGE = 0
PENDING = 2


def run(wanted: tuple[Policy, ...], place: Where, output: Output) -> int:
    """The exit code: 2 when at least one change is pending, else 0; what is only blocked is no change."""
    policies.say_doubts(wanted)
    with place.open(write=False) as workplace:
        plan = workplace.look(wanted).plan
        holds = workplace.holds()
        for notice in workplace.notices:
            terminal.say(notice)
    if output is Output.TABLE:
        _print(plan, holds, policies=len(wanted) > 1)
    else:
        terminal.emit(as_json(plan), output)
    return PENDING if plan.steps else NOTHING_TO_CHANGE


def as_json(plan: Plan) -> dict[str, object]:
    return {
        "changes": [report.row_json(row) for row in plan.pending],
        "blocked": [report.row_json(row) for row in plan.blocked],
    }


def _print(plan: Plan, holds: Mapping[str, str], *, policies: bool) -> None:
    width = terminal.plain_width()
    if width and not (holds or plan.blocked):
        text = lines.changes("WOULD CHANGE", plan.pending, width, policies=policies)
        if text is not None:
            print(f"{text}{summary(len(plan.pending), 0)}")
            return
    show(terminal.console(), plan, holds, policies=policies)


def show(console: Console, plan: Plan, holds: Mapping[str, str], *, policies: bool) -> None:
    """The plan as tables, in the order in which it would be carried out, and one sentence that sums it up."""
    from virtnet.cli import tables

    tables.show_holds(console, holds)
    tables.show_changes(console, "WOULD CHANGE", plan.pending, policies=policies)
    tables.show_reasons(console, "BLOCKED", report.merge(plan.blocked), policies=policies)
    console.print(tables.text(summary(len(plan.pending), len(plan.blocked))))


def summary(pending: int, blocked: int) -> str:
    changes = f"{lines.count(pending, 'change')} pending" if pending else "Nothing to change"
    return f"{changes}, {blocked} blocked." if blocked else f"{changes}."
