"""The entry point: it sends `virtnet run` its own way, and turns every error into one sentence and an exit code.

Exit codes of all commands: 0 done, 1 error; `plan` 2 when a change is pending; `apply` and `release` 3 when something
is left; 128 + N when signal N ended it.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from virtnet import errors
from virtnet.cli import terminal

ERROR = 1
SIGNALLED = 128
SELDOM = 100_000
"""New objects until garbage is looked for. Usually it is 700, and while modules are imported there is none."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name) and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    gc.set_threshold(SELDOM)
    # A plugin of pydantic is code of whatever else is installed, and looking for one reads every package's metadata.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    return guarded(lambda: _dispatch(arguments))


def guarded(command: Callable[[], int]) -> int:
    """The exit code of a command, whatever becomes of it; an error of ours is one sentence."""
    _never_fail_to_print()
    try:
        code = command()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return SIGNALLED + signal.SIGINT
    except BrokenPipeError:
        return _reader_has_left()
    except terminal.Ended as ended:
        return ended.code
    except errors.VirtnetError as error:
        terminal.say(error)
        return ERROR
    return code


def _dispatch(arguments: Sequence[str]) -> int:
    """The images have neither typer nor rich: what runs in them must not come near those."""
    if arguments[:1] == ["run"]:
        import_without_openssl()
        from virtnet.cli import run

        return run.main(arguments[1:])
    if arguments[:1] == ["agent"]:
        from virtnet.cli import agent

        return agent.main(arguments[1:])
    if arguments[:1] == ["controller"]:
        from virtnet.cli import controller

        return controller.main(arguments[1:])
    if arguments[:1] == ["release-nodes"]:
        from virtnet.cli import release_nodes

        return release_nodes.main(arguments[1:])
    if arguments[:1] in (["plan"], ["apply"]):
        from virtnet.cli import policies

        with policies.begun(arguments[1:]) as read:  # before anything else is imported: it takes longest
            from virtnet.cli import quick

            if command := quick.command(arguments, read):
                import_without_openssl()
                return command()
    from virtnet.cli.app import app

    return typed(app, "virtnet", arguments)


def import_without_openssl() -> None:
    """Without a cluster nothing speaks TLS, and OpenSSL would be a tenth of an agent's memory, only because asyncio,
    hashlib and hmac find it.

    They know a Python that was built without it, and None in sys.modules is how the import system is told that there
    is no such module. Whoever imports ssl later gets it.
    """
    modules: dict[str, Any] = sys.modules
    hidden = [name for name in ("ssl", "_hashlib") if name not in modules]
    modules.update(dict.fromkeys(hidden))
    try:
        import asyncio  # noqa: F401
        import hashlib  # noqa: F401
        import hmac  # noqa: F401
    finally:
        for name in hidden:
            del modules[name]


def typed(app: Any, name: str, arguments: Sequence[str]) -> int:
    """Run a program made of typer's commands; `name` is how people call it."""
    import typer

    try:
        code: int | None = app(args=list(arguments), prog_name=name, standalone_mode=False)
        return code or 0
    except SystemExit as ended:
        # Typer makes exit code 1 of a broken pipe, which is for `guarded` to answer.
        if isinstance(ended.__context__, BrokenPipeError):
            raise ended.__context__ from None
        raise
    except typer.TyperException as error:
        terminal.say(f"{error.format_message()} ({name} --help shows how)")
        return ERROR


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
