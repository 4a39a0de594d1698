"""The agent's patience, shortened: what takes seconds on a node takes tenths of them here."""

from __future__ import annotations

import pytest

from tests.agent.garbage import takes_its_garbage_away
from virtnet.kube import agent, operators, pace, publishing, sessions

__all__ = ["takes_its_garbage_away"]


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "SHORTEST", 0.1)
    monkeypatch.setattr(pace, "LONGEST", 1.0)
    monkeypatch.setattr(pace, "SPREAD", 0.1)
    monkeypatch.setattr(sessions, "ANSWER_SECONDS", 1.5)
    monkeypatch.setattr(operators, "RESTART_SECONDS", (0.1, 0.2))
    monkeypatch.setattr(agent, "SETTLE_SECONDS", 0.2)
    monkeypatch.setattr(publishing, "BETWEEN_WRITES", 0.2)
    monkeypatch.setattr(publishing, "RETRY_SECONDS", (0.1, 1.0))
