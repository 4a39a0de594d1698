"""The entry point: it sends `virtnet run` its own way, and turns every error into one sentence and an exit code.

Exit codes of all commands: 0 done, 1 error; `plan` 2 when a change is pending; `apply` and `release` 3 when something
is left; 128 + N when signal N ended it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from virtnet import errors

ERROR = 1
SIGNALLED = 128


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name) and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return guarded(lambda: _dispatch(arguments))


def guarded(command: Callable[[], int]) -> int:
    """The exit code of a command, whatever becomes of it; an error of ours is one sentence."""
    try:
        code = command()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return SIGNALLED + signal.SIGINT
    except BrokenPipeError:
        return _reader_has_left()
    except errors.VirtnetError as error:
        _say(error)
        return ERROR
    return code


def _dispatch(arguments: Sequence[str]) -> int:
    """An agent's image has neither typer nor rich, so `run` must not come near them."""
    if arguments[:1] == ["run"]:
        from virtnet.cli import run

        return run.main(arguments[1:])
    if arguments[:1] == ["release-nodes"]:
        from virtnet.cli import release_nodes

        return release_nodes.main(arguments[1:])
    from virtnet.cli.app import app

    return typed(app, "virtnet", arguments)


def typed(app: Any, name: str, arguments: Sequence[str]) -> int:
    """Run a program made of typer's commands; `name` is how people call it."""
    import typer

    from virtnet.cli.interrupts import Interrupted

    _never_fail_to_print()
    try:
        code: int | None = app(args=list(arguments), prog_name=name, standalone_mode=False)
        return code or 0
    except Interrupted as interrupted:
        return SIGNALLED + interrupted.number
    except typer.TyperException as error:
        _say(f"{error.format_message()} ({name} --help shows how)")
        return ERROR


def _say(error: object) -> None:
    from virtnet.cli import terminal

    terminal.say(error)


def _never_fail_to_print() -> None:
    """A terminal that lacks a character gets a question mark, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _reader_has_left() -> int:
    """`virtnet inspect | head`: end as a shell expects, also when the interpreter flushes what is left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return SIGNALLED + signal.SIGPIPE


if __name__ == "__main__":
    sys.exit(main())
