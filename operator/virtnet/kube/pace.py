"""How often the API server may be asked the same thing: whoever asks again soon waits, longer each time, at random.

kopf asks again at once when a watch ends, and ten times a second when a list was too old. One agent would not be
noticed; a thousand that do so together keep an API server from coming back.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable

SHORTEST = 0.5
LONGEST = 8.0
"""Seconds between two attempts; also how late a recovery can be noticed."""
SPREAD = 1.0
"""All watches end together when an API server does: each begins anew within so many seconds."""


class Pace:
    """Remembers when each request was last made. `clock` is in seconds and only goes forward."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[Hashable, float] = {}
        self._delay: dict[Hashable, float] = {}

    def wait(self, request: Hashable, *, spread: float = 0.0) -> float:
        """Seconds to wait before this request may be made; counts it as made then.

        The first one waits for nothing. A later one waits for the rest of its delay, which doubles while requests come
        sooner than twice the longest delay after one another, and for up to `spread` seconds in any case.
        """
        now = self._clock()
        last = self._last.get(request)
        if last is None or now - last > 2 * LONGEST:
            self._delay[request] = 0.0
        else:
            self._delay[request] = min(max(SHORTEST, self._delay[request] * 2), LONGEST)
        delay = self._delay[request]
        due = (last or now) + random.uniform(delay / 2, delay)
        if last is not None:
            due = max(due, now + random.uniform(0.0, spread))
        self._last[request] = max(now, due)
        return max(0.0, due - now)
