"""Where output goes: data to standard output, sentences to standard error, nothing that could steer the terminal."""

from __future__ import annotations

import json
import os
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 100
"""Columns where there is no terminal to ask."""


class Output(StrEnum):
    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


class Ended(BaseException):
    """The command is over with this exit code, and why has been said."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(code)


def plain(text: object) -> str:
    """One line of printable text: names of links and processes are chosen by others, and may hold escape sequences."""
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(char if char.isprintable() else " " if char.isspace() else "�" for char in shown)


def say(sentence: object) -> None:
    """One line on standard error."""
    print(plain(sentence), file=sys.stderr, flush=True)


def emit(value: Any, output: Output) -> None:
    """A value for programs on standard output."""
    if output is Output.JSON:
        print(json.dumps(value, indent=2))
        return
    import yaml

    print(yaml.safe_dump(value, sort_keys=False, default_flow_style=False), end="")


def plain_width() -> int | None:
    """Columns of standard output where it is a pipe or a file; None where it is a terminal, or shall look like one."""
    if sys.stdout.isatty() or any(os.environ.get(name) for name in ("FORCE_COLOR", "TTY_COMPATIBLE")):
        return None
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdigit() else WIDTH


def console() -> Console:
    """Standard output as tables need it: colour only on a terminal and without NO_COLOR, markup never."""
    from rich.console import Console

    terminal = sys.stdout.isatty()
    width = None if terminal or os.environ.get("COLUMNS", "").isdigit() else WIDTH
    return Console(width=width, markup=False, emoji=False, highlight=False, soft_wrap=False)
