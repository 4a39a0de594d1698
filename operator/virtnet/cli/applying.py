"""The commands `apply` and `release`: one pass, then what was done and what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from virtnet.cli import interrupts, lines, policies, terminal
from virtnet.cli.terminal import Output
from virtnet.cli.where import Where
from virtnet.core import report
from virtnet.core.model import Policy
from virtnet.reconcile import Outcome

if TYPE_CHECKING:
    from rich.console import Console

ALL_DONE = 0
SOMETHING_LEFT = 3


def apply(wanted: tuple[Policy, ...], place: Where, output: Output, *, allow_mass_removal: bool) -> int:
    """The exit code: 0 when all is as asked, 3 when something is left or failed."""
    policies.say_doubts(wanted)
    with place.open(write=True) as workplace:
        outcome = interrupts.run(workplace.apply(wanted, allow_mass_removal=allow_mass_removal))
        holds, notices = workplace.holds(), tuple(workplace.notices)
    return _tell(outcome, holds, notices, output, done="All as asked", policies=len(wanted) > 1)


def release(place: Where, output: Output) -> int:
    """The exit code: 0 when everything is put back, 3 when something was skipped."""
    with place.open(write=True) as workplace:
        outcome = interrupts.run(workplace.release())
        holds, notices = workplace.holds(), tuple(workplace.notices)
    return _tell(outcome, holds, notices, output, done="Everything is put back", policies=True)


def _tell(
    outcome: Outcome, holds: Mapping[str, str], notices: Sequence[str], output: Output, *, done: str, policies: bool
) -> int:
    for notice in notices:
        terminal.say(notice)
    if outcome.ledger_error:
        terminal.say(outcome.ledger_error)
    if output is Output.TABLE:
        _print(outcome, holds, done=done, policies=policies)
    else:
        terminal.emit(as_json(outcome), output)
    return ALL_DONE if is_done(outcome) else SOMETHING_LEFT


def is_done(outcome: Outcome) -> bool:
    return outcome.complete and not outcome.failures and not outcome.ledger_error


def as_json(outcome: Outcome) -> dict[str, object]:
    """The shape of `plan -o json`: `changes` are those that were made, `blocked` is everything that is left."""
    return {
        "changes": [report.row_json(row) for row in outcome.applied],
        "blocked": [report.row_json(row) for row in outcome.rows],
    }


def _print(outcome: Outcome, holds: Mapping[str, str], *, done: str, policies: bool) -> None:
    width = terminal.plain_width()
    if width and not (holds or outcome.rows):
        text = lines.changes("CHANGED", outcome.applied, width, policies=policies)
        if text is not None:
            print(f"{text}{summary(outcome, done)}")
            return
    show(terminal.console(), outcome, holds, done=done, policies=policies)


def show(console: Console, outcome: Outcome, holds: Mapping[str, str], *, done: str, policies: bool) -> None:
    """What was done and what is left, as tables."""
    from virtnet.cli import tables

    tables.show_holds(console, holds)
    tables.show_changes(console, "CHANGED", outcome.applied, policies=policies)
    tables.show_reasons(console, "LEFT", report.merge(outcome.rows), policies=policies)
    console.print(tables.text(summary(outcome, done)))


def summary(outcome: Outcome, done: str) -> str:
    made = f"{lines.count(len(outcome.applied), 'change')} made" if outcome.applied else "Nothing was changed"
    if outcome.rows:
        return f"{made}, {len(outcome.rows)} left."
    return f"{done}; {made[0].lower()}{made[1:]}."
