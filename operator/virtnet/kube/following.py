"""One policy as the controller follows it: the newest object, what is stored as its status, and when to look again.

It asks nobody and writes nothing; the controller does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from typing import Any

from pydantic import ValidationError

from virtnet.core import fleet
from virtnet.core.fleet import Fleet, Verdict
from virtnet.core.model import Policy
from virtnet.kube import api, explain, places

Object = Mapping[str, Any]

BETWEEN_LOOKS = 1.0
"""Seconds between two looks at a policy, so also between two writes."""
SHARE = 20
"""A look that takes long is followed by a pause of so many times that."""
RETRY_SECONDS = (1.0, 8.0)
MOST_FAULTS = 3


class Followed:
    """`status` is the one that the API server has, `version` its resource version."""

    def __init__(self, found: Object) -> None:
        self.name: str = found["metadata"]["name"]
        self.uid = self.version = ""
        self.generation = 0
        self.status: Object | None = None
        self.policy: Policy | None = None
        self.fault = ""
        self.waiting: Mapping[str, float] = {}
        self.dirty = True
        self._again: float | None = None
        self._not_before = 0.0
        self._failures = 0
        self._written: tuple[Object | None, Object | None] = (None, None)
        """What was last sent, and what the API server made of it."""
        self.see(found)

    # --- the object ---

    def see(self, found: Object) -> None:
        """Take over an object, unless what we know is as new: our own writes come back late."""
        metadata = found["metadata"]
        if metadata["uid"] == self.uid and _number(metadata["resourceVersion"]) <= _number(self.version):
            return
        if metadata["uid"] != self.uid:
            self.waiting = {}
        self.uid, self.generation = metadata["uid"], metadata["generation"]
        self.stored(found)
        self.policy, self.fault = _read(found)
        self.dirty = True

    def stored(self, found: Object) -> None:
        """What the API server has by now, from an event or as the answer to a write."""
        self.version, self.status = found["metadata"]["resourceVersion"], found.get("status")

    # --- looks ---

    def due(self) -> float | None:
        """When to look (seconds since the epoch), None: when something changes."""
        if self.dirty:
            return self._not_before
        return None if self._again is None else max(self._again, self._not_before)

    def look(self, found: Fleet, now: float) -> Verdict:
        """Judge the fleet as it is now. Nothing is taken over before `written` or `unchanged`."""
        self.dirty = False
        self._not_before = now + BETWEEN_LOOKS
        if self.policy is None:
            return Verdict(fleet.refuse(self.generation, self.fault, self.status, now), self.waiting)
        return fleet.judge(self.policy, found, self.status, self.waiting, now)

    def took(self, seconds: float, now: float) -> None:
        """A look at thousands of nodes is not repeated all the time."""
        self._not_before = max(self._not_before, now + SHARE * seconds)

    def differs(self, wanted: Object) -> bool:
        """Whether writing would change anything: what the API server drops of a status it drops again."""
        return wanted != self.status and (wanted, self.status) != self._written

    def accept(self, verdict: Verdict) -> None:
        """What the verdict says is what the API server has."""
        self.waiting, self._again, self._failures = verdict.waiting, verdict.again, 0

    def written(self, verdict: Verdict, answer: Object) -> None:
        self.stored(answer)
        self._written = verdict.status, self.status
        self.accept(verdict)

    def failed(self, now: float) -> None:
        """The verdict could not be written: look again, each time later."""
        shortest, longest = RETRY_SECONDS
        self._not_before = now + min(longest, shortest * 2**self._failures)
        self._failures += 1
        self.dirty = True

    def forget_waiting(self) -> None:
        """Nobody could report for a while: all have their time once more."""
        self.waiting, self.dirty = {}, True


def _read(found: Object) -> tuple[Policy | None, str]:
    """The policy, or None and what is wrong with it; the API server's own rules let few bad ones through."""
    text = json.dumps({key: found[key] for key in ("apiVersion", "kind", "metadata", "spec") if key in found})
    try:
        return api.VirtioNetworkPolicy.model_validate_json(text).to_core(), ""
    except ValidationError as error:
        faults = islice(explain.problems(error), MOST_FAULTS)
        return None, ", ".join(f"{places.path(problem.loc)}: {problem.sentence}" for problem in faults)


def _number(version: str) -> int:
    """Resource versions of one kind can be compared as numbers (KEP-5504, and in effect always)."""
    return int(version) if version.isdecimal() else 0
