"""The commands `hold` and `unhold`, for the one who is called at night; they work beside a running agent."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from virtnet import errors
from virtnet.cli import terminal, where
from virtnet.cli.terminal import Output
from virtnet.cli.where import Where
from virtnet.core import report
from virtnet.core.model import Interest
from virtnet.engine.workplace import Workplace

EVERYTHING = "*"

PATIENCE = 3.0
"""Seconds that a running agent is given to take notice."""
BETWEEN_LOOKS = 0.05


def hold(link: str | None, duration: str, place: Where, output: Output) -> int:
    """Leave a link, or the whole node, alone for a time such as "1h"; returns when a running agent knows."""
    seconds = where.seconds(duration)
    _check(link)
    with place.open(write=False) as workplace:
        if link is not None and workplace.host.observe(Interest()).by_name(link) is None:
            terminal.say(f"no link is named {link} now; one that appears under this name is held")
        workplace.hold(link, seconds)
        # As it is written, which is how the agent will say it: an end is rounded up to a whole second.
        until = workplace.holds()[link or EVERYTHING]
        _tell(report.hold(link, until), workplace, output)
        _wait(workplace, lambda held: f"{link} {until}" in held if link else until in held)
    return 0


def unhold(link: str | None, place: Where, output: Output) -> int:
    """Lift the hold of a link, or all holds."""
    _check(link)
    with place.open(write=False) as workplace:
        held = sorted(workplace.holds())
        lifted = [name for name in held if link in (None, name)]
        for name in lifted:
            workplace.unhold(None if name == EVERYTHING else name)
        if link is not None and not lifted and EVERYTHING in held:
            terminal.say("this whole node is held, and stays so: virtnet unhold lifts that")
        shown = ", ".join(report.whom(None if name == EVERYTHING else name) for name in lifted)
        _tell(f"{shown}: no longer held" if lifted else f"{report.whom(link)} was not held", workplace, output)
        if lifted:
            _wait(workplace, lambda said: not any(_is_said(name, said) for name in lifted))
    return 0


def _check(link: str | None) -> None:
    if link in ("", EVERYTHING):
        raise errors.UsageError("name one link, or none for the whole node")


def _is_said(name: str, held: str) -> bool:
    return "the node is held" in held if name == EVERYTHING else f"{name} until" in held


def _tell(sentence: str, workplace: Workplace, output: Output) -> None:
    if output is Output.TABLE:
        print(terminal.plain(sentence), flush=True)
    else:
        terminal.emit({"holds": dict(workplace.holds())}, output)


def _wait(workplace: Workplace, noticed: Callable[[str], bool]) -> None:
    """Until the running agent, if there is one, reports it in its condition Held; says so when it does not."""
    pid = workplace.state.holder() if workplace.state else None
    if pid is None:
        return
    end = time.monotonic() + PATIENCE
    while not noticed(_held(workplace.status())):
        if time.monotonic() >= end:
            terminal.say(f"the virtnet process {pid or ''} has not taken notice yet; virtnet inspect shows when it has")
            return
        time.sleep(BETWEEN_LOOKS)


def _held(status: Mapping[str, Any] | None) -> str:
    """The message of the condition Held, "" where it is not true or nobody has reported yet."""
    conditions = (status or {}).get("conditions", ())
    return next((each["message"] for each in conditions if each["type"] == "Held" and each["status"] == "True"), "")
