"""Runs a command that has to succeed, within a time; a failure says what was run and what it answered."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

LINES = 40


class CommandFailed(AssertionError):
    """The command line, the exit code, and the last lines that it printed."""


def run(*command: str, text: str = "", seconds: float = 60, env: Mapping[str, str] | None = None) -> str:
    """What the command prints on standard output; `text` is its standard input.

    CommandFailed when its exit code is not 0, and when it takes longer than `seconds`.
    """
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, check=False, timeout=seconds, env=env
        )
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"{' '.join(command)}: not done after {seconds} s: {error.stderr!r}") from error
    if done.returncode:
        answer = "\n".join((done.stdout + done.stderr).splitlines()[-LINES:])
        raise CommandFailed(f"{' '.join(command)}: exit code {done.returncode}: {answer}")
    return done.stdout
