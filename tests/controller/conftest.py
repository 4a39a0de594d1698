"""What holds for every test of the controller."""

from __future__ import annotations

from tests.agent.garbage import takes_its_garbage_away

__all__ = ["takes_its_garbage_away"]
