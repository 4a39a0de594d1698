"""Watches how fast taps drop packets that are on their way to a guest; it recommends nothing and changes nothing."""

from __future__ import annotations

from collections.abc import Mapping

BETWEEN = 10.0
"""Seconds between two counts that are compared: a burst of less is no trouble."""

MANY = 10.0
"""Dropped packets in a second, on average between two counts, from which on a tap counts as dropping."""


class Drops:
    """The counts of the look before, by ifindex, and which taps were dropping then."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[float, int]] = {}
        self._dropping: frozenset[int] = frozenset()

    def look(self, counts: Mapping[int, int], now: float) -> frozenset[int]:
        """The taps that drop. `counts` is how many each has dropped so far, `now` monotonic seconds."""
        dropping = {ifindex for ifindex, count in counts.items() if self._drops(ifindex, count, now)}
        for ifindex, count in counts.items():
            since, before = self._seen.get(ifindex, (now, count))
            if now - since >= BETWEEN or count < before or ifindex not in self._seen:
                self._seen[ifindex] = (now, count)
        self._seen = {ifindex: self._seen[ifindex] for ifindex in counts}
        self._dropping = frozenset(dropping)
        return self._dropping

    def _drops(self, ifindex: int, count: int, now: float) -> bool:
        """As before, while too little time has passed to say."""
        since, before = self._seen.get(ifindex, (now, count))
        if now - since < BETWEEN:
            return ifindex in self._dropping
        return (count - before) / (now - since) >= MANY
