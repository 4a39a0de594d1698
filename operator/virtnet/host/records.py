"""What an agent remembers between two lives, as typed records over the state directory; it never decides with them."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any

from virtnet.core.model import Change, Identity, Replug, Setting, Value
from virtnet.host import codec
from virtnet.host.state import StateDir
from virtnet.values import frozen

__all__ = [
    "EVERYTHING",
    "CachedPolicy",
    "Holds",
    "Pending",
    "Refusal",
    "RolledBack",
    "add_hold",
    "forget_pending",
    "holds_stamp",
    "read_holds",
    "read_pending",
    "read_policies",
    "read_refusals",
    "read_replugs",
    "read_rolled_back",
    "remove_hold",
    "write_pending",
    "write_policies",
    "write_refusals",
    "write_replugs",
    "write_rolled_back",
]

POLICIES = "policies.json"
HOLDS = "holds.json"
ROLLED_BACK = "rolledback.json"
TRANSACTION = "transaction.json"
REPLUGS = "replugs.json"
REFUSALS = "volatile/refusals.json"

EVERYTHING = "*"
"""The name a hold has when it is not for one link."""


@frozen
class CachedPolicy:
    """The last good text (YAML or JSON) of one source, so that a bad file or a restart does not lose the policy."""

    text: str


def read_policies(state: StateDir) -> Mapping[str, CachedPolicy]:
    """The last good version of every source, by file name."""
    return _read(state, POLICIES, Mapping[str, CachedPolicy]) or {}


def write_policies(state: StateDir, policies: Mapping[str, CachedPolicy]) -> None:
    """Durable: a node that boots without the API server enforces these."""
    state.write_json(POLICIES, codec.encode(policies), durable=True)


# --- holds: report, change nothing -------------------------------------------------------------------------


@frozen
class Holds:
    """Until when whom to leave alone: link name or `EVERYTHING` -> seconds since the epoch, None until it is lifted."""

    until: Mapping[str, float | None] = field(default_factory=dict)

    def active(self, now: float) -> Mapping[str, float | None]:
        """The holds that are not over at `now` (seconds since the epoch)."""
        return {name: end for name, end in self.until.items() if end is None or end > now}

    def covers(self, link: str, now: float) -> bool:
        """Whether this link must be left alone at `now`."""
        active = self.active(now)
        return link in active or EVERYTHING in active


def read_holds(state: StateDir) -> Holds:
    raw = _read(state, HOLDS, Mapping[str, str | None]) or {}
    try:
        return Holds({name: None if end is None else _epoch(end) for name, end in raw.items()})
    except ValueError as error:
        state.set_aside(HOLDS, str(error))
        return Holds()


def holds_stamp(state: StateDir) -> tuple[int, ...] | None:
    """What tells one content of the holds' file from another, for a single stat; None while there is none."""
    return state.stamp(HOLDS)


def add_hold(state: StateDir, name: str, until: float | None, now: float) -> Holds:
    """Hold a link or `EVERYTHING`, also while an agent holds the directory; holds that are over are cleared away."""
    with state.changing():
        return _write_holds(state, {**read_holds(state).active(now), name: until})


def remove_hold(state: StateDir, name: str, now: float) -> Holds:
    """Lift a hold; lifting one that is not there is success."""
    with state.changing():
        kept = {held: end for held, end in read_holds(state).active(now).items() if held != name}
        return _write_holds(state, kept)


def _write_holds(state: StateDir, until: Mapping[str, float | None]) -> Holds:
    shown = {name: None if end is None else _iso(end) for name, end in until.items()}
    state.write_json(HOLDS, shown, durable=True)
    return Holds(until)


def _iso(seconds: float) -> str:
    """Rounded up to a second: a hold never ends before its time. Text, because people read this file at night."""
    return datetime.datetime.fromtimestamp(math.ceil(seconds), datetime.UTC).isoformat()


def _epoch(text: str) -> float:
    moment = datetime.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return moment.timestamp()


# --- transactions ------------------------------------------------------------------------------------------


@frozen
class RolledBack:
    """A version of a policy whose risky changes were undone; not tried again until the version changes.

    `settings` are (link name, key) pairs, `message` is the sentence of the probe that failed.
    """

    version: str
    message: str
    settings: tuple[tuple[str, str], ...]
    boot_id: str


def read_rolled_back(state: StateDir) -> Mapping[str, RolledBack]:
    """By policy name."""
    return _read(state, ROLLED_BACK, Mapping[str, RolledBack]) or {}


def write_rolled_back(state: StateDir, rolled_back: Mapping[str, RolledBack]) -> None:
    state.write_json(ROLLED_BACK, codec.encode(rolled_back), durable=True)


@frozen
class Pending:
    """A transaction that has begun and is not confirmed: what undoes it, in the order in which it is to be done.

    Whoever finds one at start undoes it first, when the identity is still this one: after a reboot its links are
    gone and its feature bits may mean other features.
    """

    policy: str
    version: str
    identity: Identity
    settings: tuple[tuple[str, str], ...]
    inverse: tuple[Change, ...]


def read_pending(state: StateDir) -> Pending | None:
    found: Pending | None = _read(state, TRANSACTION, Pending)
    return found


def write_pending(state: StateDir, pending: Pending) -> None:
    """On the disk before it returns; the first change of the transaction comes after it."""
    state.write_json(TRANSACTION, codec.encode(pending), durable=True)


def forget_pending(state: StateDir) -> None:
    """The transaction is confirmed or undone."""
    state.remove(TRANSACTION, durable=True)


# --- re-plugs ----------------------------------------------------------------------------------------------


def read_replugs(state: StateDir) -> Mapping[str, Replug]:
    """Those on their way and those that went back, by the target of the NIC's settings."""
    return _read(state, REPLUGS, Mapping[str, Replug]) or {}


def write_replugs(state: StateDir, replugs: Mapping[str, Replug]) -> None:
    """On the disk before it returns; a guest is asked to let go of its NIC after it."""
    state.write_json(REPLUGS, codec.encode(replugs), durable=True)


# --- refusals ----------------------------------------------------------------------------------------------


@frozen
class Refusal:
    """A driver accepted a request and did something else; asking again gives the same answer.

    `link` is the name the link had: an ifindex may be another link's by now.
    """

    setting: Setting
    link: str
    wanted: Value
    observed: Value | None


@frozen
class _Refusals:
    identity: Identity
    refusals: tuple[Refusal, ...]


def read_refusals(state: StateDir, identity: Identity) -> tuple[Refusal, ...]:
    """Those of this boot and namespace; a new boot may have a new driver, so the others are as good as none."""
    found: _Refusals | None = _read(state, REFUSALS, _Refusals)
    return found.refusals if found and found.identity == identity else ()


def write_refusals(state: StateDir, identity: Identity, refusals: Iterable[Refusal]) -> None:
    state.write_json(REFUSALS, codec.encode(_Refusals(identity, tuple(refusals))), durable=False)


def _read(state: StateDir, name: str, hint: Any) -> Any | None:
    raw = state.read_json(name)
    if raw is None:
        return None
    try:
        return codec.decode(hint, raw)
    except codec.DecodeError as error:
        state.set_aside(name, str(error))
        return None
