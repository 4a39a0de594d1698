"""The instants at which a test can kill the agent or let somebody else act; it never sleeps and has no clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Killed(BaseException):
    """The agent is gone at this instruction, as by SIGKILL: no handler of its own may catch it."""


class Boundaries:
    """Counts the boundaries that are crossed: every act has one before it and one after it took effect."""

    def __init__(self) -> None:
        self.crossed = 0
        self._dead = False
        self._actions: dict[int, list[Callable[[], object]]] = {}

    def at(self, count: int, action: Callable[[], object]) -> None:
        """Do something once, after `count` more boundaries (0: at the very next one)."""
        self._actions.setdefault(self.crossed + count, []).append(action)

    def kill_after(self, count: int) -> None:
        """Kill the agent after `count` more boundaries: even counts before an act, odd ones after it."""
        self.at(count, self._kill)

    def die_after(self, count: int) -> None:
        """Kill the agent, and whatever it still tries in its handlers, until `calm()`."""

        def die() -> None:
            self._dead = True

        self.at(count, die)

    def calm(self) -> None:
        """Forget every action that has not happened yet; who is dead lives again."""
        self._dead = False
        self._actions.clear()

    def cross(self) -> None:
        here = self.crossed
        self.crossed += 1
        for action in self._actions.pop(here, []):
            action()
        if self._dead:
            self._kill()

    @contextmanager
    def around(self, before: Callable[[], None]) -> Iterator[None]:
        """Cross one boundary, do `before` and the body, cross another."""
        self.cross()
        before()
        yield
        self.cross()

    def _kill(self) -> None:
        raise Killed(f"killed at boundary {self.crossed - 1}")
