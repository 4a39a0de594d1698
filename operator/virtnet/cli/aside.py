"""Does a piece of work in a process of its own while this one gets ready for what comes after it.

Only work that may be done twice, or in vain: whatever the other process cannot hand over (an error, too, and its own
end) is simply done here, and what nobody asks for is given up. It prints nothing and changes nothing.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def begun(work: Callable[[], T]) -> Iterator[Callable[[], T]]:
    """What this yields returns, when it is called, what `work` returns, which must be a value that pickles."""
    if threading.active_count() > 1 or len(os.sched_getaffinity(0)) == 1:
        yield work
        return
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(source)
        _hand_over(work, sink)
    os.close(sink)
    unheard = True

    def result() -> T:
        nonlocal unheard
        handed = stream.read()
        _, status = os.waitpid(child, 0)
        unheard = False
        found: T = work() if status else pickle.loads(handed)
        return found

    with open(source, "rb") as stream:
        try:
            yield result
        finally:
            if unheard:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


def _hand_over(work: Callable[[], object], sink: int) -> None:
    """In the other process; never returns, and leaves nothing of this one to be flushed or unwound twice."""
    code = 1
    try:
        with open(sink, "wb") as stream:
            pickle.dump(work(), stream, pickle.HIGHEST_PROTOCOL)
        code = 0
    finally:
        os._exit(code)
