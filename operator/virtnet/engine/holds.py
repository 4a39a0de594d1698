"""Holds and permissions: what the administrator asked us to leave alone for now, and what he allowed for once."""

from __future__ import annotations

import time
from collections.abc import Mapping

from virtnet.core.model import Policy
from virtnet.host import records
from virtnet.host.state import StateDir

ALLOW_MASS_REMOVAL = "virtnet.dev/allow-mass-removal"


def active(state: StateDir) -> Mapping[str, float | None]:
    """Until when whom: link name or "*" -> seconds since the epoch, None until it is lifted."""
    return records.read_holds(state).active(time.time())


def together(
    one: Mapping[str, float | None], other: Mapping[str, float | None], now: float
) -> Mapping[str, float | None]:
    """Holds from two places: who is held twice is held until the later end. Those that are over at `now` are not."""
    found = dict(one)
    for name, end in other.items():
        if end is not None and end <= now:
            continue
        known = found.get(name, 0.0)
        found[name] = None if end is None or known is None else max(end, known)
    return found


def until(end: float | None) -> str:
    """How a hold's end is said: "until 23:15", with the day when that is not today."""
    if end is None:
        return "until it is lifted"
    moment = time.localtime(end)
    today = time.strftime("%Y-%m-%d", moment) == time.strftime("%Y-%m-%d")
    return "until " + time.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M", moment)


def sentences(held: Mapping[str, float | None]) -> tuple[str | None, dict[str, str]]:
    """What is said of the node (None: not held) and of each held link."""
    node = until(held[records.EVERYTHING]) if records.EVERYTHING in held else None
    return node, {name: until(end) for name, end in held.items() if name != records.EVERYTHING}


def allows_mass_removal(policy: Policy) -> bool:
    """Whether the policy carries the permission for its present generation."""
    return dict(policy.annotations).get(ALLOW_MASS_REMOVAL) == str(policy.generation)
