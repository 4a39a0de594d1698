"""The fight detector: counts foreign changes of settings that we had verified, and says when to let go.

    Yield    after `repairs` in `window` seconds stop; try again after `retry`, doubling to `longest`;
             one more foreign change then stops at once; forgotten after `quiet` seconds without one
    Insist   never stops; above `burst` repairs a second on one link only one each `pause` seconds

Time is an argument (seconds on any monotonic clock). It changes nothing and remembers nothing beyond the fights.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from virtnet.core.model import Setting
from virtnet.values import frozen


@frozen
class Thresholds:
    repairs: int = 5
    window: float = 60.0
    retry: float = 60.0
    longest: float = 1800.0
    quiet: float = 600.0
    burst: int = 100
    pause: float = 0.1


@dataclass(slots=True)
class _Fight:
    """One setting that somebody else changes, too."""

    times: deque[float]
    last: float
    insist: bool = False
    contended: bool = False
    delay: float = 0.0
    resumes: float = 0.0
    total: int = 0


@dataclass(slots=True)
class _Pace:
    """Repairs of one link under Insist: a window of one second, and when the next one may be."""

    started: float
    count: int = 0
    next: float = 0.0


@dataclass
class Fights:
    thresholds: Thresholds = field(default_factory=Thresholds)
    _fights: dict[Setting, _Fight] = field(default_factory=dict)
    _paces: dict[int | str, _Pace] = field(default_factory=dict)

    def foreign_change(self, setting: Setting, now: float, *, insist: bool) -> bool:
        """Somebody changed a setting away from a verified value; whether it may be repaired now."""
        fight = self._fights.get(setting)
        if fight is None or self._is_over(fight, now):
            fight = self._fights[setting] = _Fight(deque(maxlen=self.thresholds.repairs), now)
        fight.last, fight.insist = now, insist
        fight.total += 1
        in_window = self._in_window(fight, now)
        fight.times.append(now)
        if insist:
            fight.contended = fight.contended or in_window
            return True
        if fight.contended and now < fight.resumes:
            return False
        if in_window or fight.delay:
            self._stop(fight, now)
            return False
        return True

    def _in_window(self, fight: _Fight, now: float) -> bool:
        full = len(fight.times) == self.thresholds.repairs
        return full and now - fight.times[0] <= self.thresholds.window

    def _stop(self, fight: _Fight, now: float) -> None:
        limits = self.thresholds
        fight.contended = True
        fight.delay = min(fight.delay * 2, limits.longest) if fight.delay else limits.retry
        fight.resumes = now + fight.delay

    def may_repair_at(self, link: int, now: float) -> float:
        """When a repair of this link may be made under Insist: `now`, or later. Counts it as made then."""
        pace = self._paces.get(link)
        if pace is None or now - pace.started >= 1.0:
            previous = pace.next if pace else 0.0
            pace = self._paces[link] = _Pace(now, next=previous)
        pace.count += 1
        if pace.count <= self.thresholds.burst:
            return now
        at = max(now, pace.next)
        pace.next = at + self.thresholds.pause
        return at

    def contended(self, now: float) -> dict[Setting, str]:
        """The settings to leave alone now, and what to say about each."""
        return {setting: self._sentence(fight, now) for setting, fight in self._active(now) if now < fight.resumes}

    def disputed(self, now: float) -> dict[Setting, str]:
        """The settings that are repaired under Insist although somebody keeps changing them."""
        return {
            setting: f"changed {fight.total} times by somebody else, and put back each time"
            for setting, fight in self._active(now)
            if fight.insist
        }

    def _active(self, now: float) -> Iterator[tuple[Setting, _Fight]]:
        self._forget(now)
        return ((setting, fight) for setting, fight in self._fights.items() if fight.contended)

    def _sentence(self, fight: _Fight, now: float) -> str:
        minutes = max(1, round((fight.resumes - now) / 60))
        return f"changed {fight.total} times by somebody else; left alone, tried again in {minutes} min"

    def _forget(self, now: float) -> None:
        for setting in [setting for setting, fight in self._fights.items() if self._is_over(fight, now)]:
            del self._fights[setting]
        for link in [link for link, pace in self._paces.items() if now - pace.started > self.thresholds.window]:
            del self._paces[link]

    def _is_over(self, fight: _Fight, now: float) -> bool:
        """Quiet for long enough; while a setting is left alone there is nothing to hear."""
        return now - max(fight.last, fight.resumes) > self.thresholds.quiet

    def next_attempt(self, now: float) -> float | None:
        """When the next setting that was let go may be tried again; None when there is none."""
        return min((fight.resumes for _, fight in self._active(now) if fight.resumes > now), default=None)

    def drop(self, ifindex: int) -> None:
        """A link is gone, and its fights with it."""
        for setting in [setting for setting in self._fights if setting.target == ifindex]:
            del self._fights[setting]
        self._paces.pop(ifindex, None)
