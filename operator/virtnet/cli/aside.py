"""Does a piece of work in a process of its own while this one gets ready for what comes after it.

Only work that may be done twice: whatever the other process cannot hand over (an error, too, and its own end) is simply
done here. It prints nothing and changes nothing.
"""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def do(work: Callable[[], T], meanwhile: Callable[[], object]) -> T:
    """What `work` returns, which must be a value that pickles; `meanwhile` is done here, in any case and first."""
    if threading.active_count() > 1 or len(os.sched_getaffinity(0)) == 1:
        meanwhile()
        return work()
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(source)
        _hand_over(work, sink)
    os.close(sink)
    with open(source, "rb") as stream:
        try:
            meanwhile()
            handed = stream.read()
        finally:
            stream.close()  # the other process ends at its next word
            _, status = os.waitpid(child, 0)
    return pickle.loads(handed) if status == 0 else work()


def _hand_over(work: Callable[[], object], sink: int) -> None:
    """In the other process; never returns, and leaves nothing of this one to be flushed or unwound twice."""
    code = 1
    try:
        with open(sink, "wb") as stream:
            pickle.dump(work(), stream, pickle.HIGHEST_PROTOCOL)
        code = 0
    finally:
        os._exit(code)
