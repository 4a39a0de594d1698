"""Runs work that must not be cut in the middle: the first SIGINT or SIGTERM cancels it, and it may finish undoing."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

from virtnet.cli import terminal

Result = TypeVar("Result")

SIGNALS = (signal.SIGINT, signal.SIGTERM)


SIGNALLED = 128
"""What a shell adds to the number of the signal that ended a program."""


class Interrupted(terminal.Ended):
    """The work was cancelled by a signal and has undone what it had to."""

    def __init__(self, number: int) -> None:
        super().__init__(SIGNALLED + number)


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`; raises `Interrupted` when a signal ended it first.

    The result is kept from asyncio's own task: putting SIGINT's handler back, `signal.signal` makes a text of the old
    one to no end (enum's "is not a valid Handlers"), and with it of the task and its result, a thousand links long.
    """
    found: list[Result] = []

    async def keep() -> None:
        found.append(await _guarded(work))

    asyncio.run(keep())
    return found[0]


async def _guarded(work: Coroutine[Any, Any, Result]) -> Result:
    task = asyncio.ensure_future(work)
    received: list[int] = []

    def stop(number: int) -> None:
        # Only the first one cancels: a second would cut off the undoing, which is bounded in time by itself.
        if not received:
            terminal.say("stopping; a change that is not confirmed yet is rolled back first")
            task.cancel()
        received.append(number)

    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        raise Interrupted(received[0] if received else signal.SIGINT) from None
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
