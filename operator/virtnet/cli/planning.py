"""The command `plan`: what `apply` would change and what stands in the way; it changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console

from virtnet.cli import policies, tables, terminal
from virtnet.cli.options import Where
from virtnet.cli.terminal import Output
from virtnet.core import report
from virtnet.core.plan import Plan

NOTHING_TO_CHANGE = 0
PENDING = 2


def run(files: Sequence[str], place: Where, output: Output) -> int:
    """The exit code: 2 when at least one change is pending, else 0; what is only blocked is no change."""
    wanted = policies.read(files)
    policies.say_doubts(wanted)
    with place.open(write=False) as workplace:
        plan = workplace.look(wanted).plan
        holds = workplace.holds()
        for notice in workplace.notices:
            terminal.say(notice)
    if output is Output.TABLE:
        show(terminal.console(), plan, holds, policies=len(wanted) > 1)
    else:
        terminal.emit(as_json(plan), output)
    return PENDING if plan.steps else NOTHING_TO_CHANGE


def as_json(plan: Plan) -> dict[str, object]:
    return {
        "changes": [report.row_json(row) for row in plan.pending],
        "blocked": [report.row_json(row) for row in plan.blocked],
    }


def show(console: Console, plan: Plan, holds: Mapping[str, str], *, policies: bool) -> None:
    """The plan as tables, in the order in which it would be carried out, and one sentence that sums it up."""
    tables.show_holds(console, holds)
    tables.show_changes(console, "WOULD CHANGE", plan.pending, policies=policies)
    tables.show_reasons(console, "BLOCKED", report.merge(plan.blocked), policies=policies)
    console.print(tables.text(summary(len(plan.pending), len(plan.blocked))))


def summary(pending: int, blocked: int) -> str:
    changes = f"{tables.count(pending, 'change')} pending" if pending else "Nothing to change"
    return f"{changes}, {blocked} blocked." if blocked else f"{changes}."
