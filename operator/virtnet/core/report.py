"""What a pass left behind, told as the status of a node: conditions, policies, settings and links.

It decides nothing about the host and has no clock: the time, and what was reported before, are arguments. Everything is
plain JSON (dict, list, str, int, bool), in an order that depends on the content alone, so equal hosts give equal text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

from virtnet.core import managed, running
from virtnet.core.model import (
    DONE,
    EMPTY,
    FAILING,
    Fingerprint,
    HostState,
    ModuleState,
    Policy,
    Reason,
    Recorded,
    Row,
    Value,
)
from virtnet.core.resolve import Desired

LIMIT = 64 * 1024
"""Bytes of a whole status as compact JSON; etcd refuses objects of 1.5 MiB, and every node has one of these."""

MOST_ENTRIES = 512
"""Of settings, and of links: what the API allows in one list."""

MOST_NAMES = 32
"""How many processes or held links are listed by name; more of them are said as a number."""

LONGEST_MESSAGE = 512
LONGEST_TEXT = 253
PENDING = "Pending"
"""The reason of a condition when nothing but a change is still to be made: there it may not be empty."""

UNREAD = "policies cannot be read"

NEWS = ("subject", "setting", "policy", "reason")
"""What tells one row from another over time: the same setting with another reason is news."""

Identity = tuple[str, ...]

SETTLED = (
    Reason.FOREIGN,
    Reason.IN_USE,
    Reason.GUESTS_RUNNING,
    Reason.RESTART_REQUIRED,
    Reason.OVERRIDDEN_BY,
    Reason.UNSUPPORTED,
    Reason.BUILT_IN,
    Reason.FIXED,
    Reason.HELD,
    Reason.NOT_ADMITTED,
    Reason.AUDIT_ONLY,
)
"""The settled reasons, first those about which somebody can do something."""

_SEVERITY: Mapping[Reason | None, int] = {
    **dict.fromkeys(DONE, 0),
    **{reason: level for level, reason in enumerate((None, *reversed(SETTLED), *reversed(FAILING)), start=1)},
}
_LEAST_FAILING = _SEVERITY[FAILING[-1]]

# As ASCII, which is never shorter than what is sent as UTF-8.
_encode = json.JSONEncoder(separators=(",", ":")).encode
_ROOM_FOR_OMITTED = len(_encode({"omitted": {"links": LIMIT, "guests": LIMIT, "settings": LIMIT}}))


# --- rows --------------------------------------------------------------------------------------------------


def severity(row: Row) -> int:
    """How bad a row is, to compare with another's: done, a pending change, settled, failing."""
    return _SEVERITY[row.reason]


def failing(row: Row) -> bool:
    """Whether this row makes its policy not Ready."""
    return _SEVERITY[row.reason] >= _LEAST_FAILING


def merge(rows: Iterable[Row]) -> list[Row]:
    """What is not as asked, one row for each asked name, subject and policy: failing before settled, then by subject.

    Several rows of one name (its members are blocked for different reasons) become the worst one, with all messages.
    """
    asked: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.reason not in DONE:
            asked.setdefault((row.subject, row.setting, row.policy), []).append(row)
    return sorted((_worst(same) for same in asked.values()), key=_order)


def _worst(same: list[Row]) -> Row:
    if len(same) == 1:
        return same[0]
    same = sorted(same, key=severity, reverse=True)
    return replace(same[0], message="; ".join(dict.fromkeys(row.message for row in same)))


def _order(row: Row) -> tuple[bool, str, str, str]:
    return not failing(row), row.subject, row.setting, row.policy


def summary(rows: Iterable[Row]) -> dict[Reason, int]:
    """How many asked names are blocked, for every reason that blocks: zeros too, so that a gauge falls back."""
    counts = dict.fromkeys((*FAILING, *SETTLED), 0)
    for row in merge(rows):
        if row.reason is not None:
            counts[row.reason] += 1
    return counts


def row_json(row: Row) -> dict[str, Value | None]:
    """A row as `plan -o json` shows it; the reason of a pending change is empty."""
    return {
        "subject": row.subject,
        "setting": row.setting,
        "wanted": _plain(row.wanted),
        "actual": _plain(row.actual),
        "reason": str(row.reason or ""),
        "message": row.message,
        "policy": row.policy,
    }


def _plain(value: Value | None) -> Value | None:
    """An enum's text as a plain str, which every writer of YAML knows."""
    return str(value) if isinstance(value, str) else value


# --- the whole status --------------------------------------------------------------------------------------


def node_state(
    desired: Desired,
    state: HostState,
    rows: Iterable[Row],
    *,
    now: str,
    agent: Mapping[str, str],
    previous: Mapping[str, Any] | None = None,
    held: str | None = None,
    held_links: Mapping[str, str] = EMPTY,
    drifts: Mapping[str, int] = EMPTY,
    released: bool | None = None,
    policies_unread: Sequence[str] = (),
    dropping: Collection[int] = (),
) -> dict[str, Any]:
    """The status of this node's VirtioNetworkNodeState, at most `LIMIT` bytes of compact JSON.

    `rows` come from the last look of a pass. `now` is RFC 3339, `previous` the status reported before: what did not
    change keeps its time, so an unchanged host gives an equal status. `held` and `held_links` are as in `Standing`,
    `drifts` counts foreign changes by policy, `policies_unread` are sentences about policies that could not be read:
    then nobody knows what is asked, and the node is not Ready. `released`: nobody asked for that (None), nothing is
    left to be put back, or something still is. `dropping` are the ifindexes of taps that drop packets to their guests.

    What is too much is left out, and counted in `omitted`: links that are as asked, then other links (their settings
    say more), guests' NICs, first those that wait for no restart, then settings from the least severe. Conditions,
    policies and the fingerprint are never left out.
    """
    found = merge(rows)
    conditions = (
        _ready(desired, found, policies_unread),
        _complete(desired, found, policies_unread),
        _held(held, held_links),
        _released(released),
    )
    status: dict[str, Any] = {
        "conditions": _dated(conditions, now, previous),
        "policies": list(_policies(desired.policies, found, drifts)),
        "settings": [],
        "links": [],
    }
    if state.module is not None:
        status["vhost"] = _vhost(state.module)
    if state.fingerprint is not None and (bits := _fingerprint(state.fingerprint)):
        status["fingerprint"] = bits
    status["agent"] = dict(agent)
    status["counts"] = _counts(desired, found)
    since = _times(previous, "settings", NEWS, "since")
    worst_first = sorted(found, key=severity, reverse=True)
    _fill(status, "settings", len(found), (_setting(row, since, now) for row in worst_first))
    waiting = {row.subject for row in found if row.reason is Reason.RESTART_REQUIRED}
    guests = running.entries(desired.policies.values(), state, waiting, dropping)
    if guests:
        status["guests"] = []
        _fill(status, "guests", len(guests), iter(guests))
    links = managed.of(desired, state, {row.subject.removeprefix("link/") for row in found})
    _fill(status, "links", len(links), managed.entries(state, links))
    status["settings"].sort(key=_display)
    return status


def _fill(status: dict[str, Any], name: str, total: int, entries: Iterator[dict[str, Any]]) -> None:
    """Add entries, the most worth first, while there is room, and count the rest. What was cut before leaves none."""
    room = 0 if "omitted" in status else LIMIT - _ROOM_FOR_OMITTED - len(_encode(status))
    kept = status[name]
    for entry in islice(entries, MOST_ENTRIES):
        room -= len(_encode(entry)) + 1
        if room < 0:
            break
        kept.append(entry)
    if len(kept) < total:
        status.setdefault("omitted", {})[name] = total - len(kept)


def _counts(desired: Desired, rows: list[Row]) -> dict[str, int]:
    """What the columns of a table show."""
    restarts = {row.subject for row in rows if row.reason is Reason.RESTART_REQUIRED}
    return {"policies": len(desired.policies), "blocked": _blocked(rows), "restartsNeeded": len(restarts)}


def _times(previous: Mapping[str, Any] | None, name: str, key: tuple[str, ...], time: str) -> Mapping[Identity, str]:
    """The times in a list of the status reported before, by `key`; it may be of another version, or of nobody."""
    entries = previous.get(name) if previous else None
    found = [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []
    return {_identity(entry, key): entry[time] for entry in found if isinstance(entry.get(time), str)}


def _identity(entry: Mapping[str, Any], key: tuple[str, ...]) -> Identity:
    return tuple(str(entry.get(name)) for name in key)


# --- conditions --------------------------------------------------------------------------------------------


class _Condition(NamedTuple):
    type: str
    status: bool
    reason: str
    message: str


def _ready(desired: Desired, rows: Iterable[Row], unread: Sequence[str]) -> _Condition:
    rows = [row for row in rows if failing(row)]
    if not (rows or unread):
        return _satisfied("Ready", desired, "nothing fails")
    reason, sentences = Reason.UNREADABLE, []
    if rows:
        worst = max(rows, key=severity)
        reason = worst.reason or reason
        count = f"{len(rows)} settings fail, the worst" if len(rows) > 1 else "1 setting fails"
        sentences.append(f"{count}: {worst.subject} {worst.setting}: {worst.message}")
    if unread:
        sentences.append(f"{UNREAD}, the last good ones stay in force: {'; '.join(unread)}")
    return _Condition("Ready", False, str(reason), "; ".join(sentences))


def _complete(desired: Desired, rows: Iterable[Row], unread: Sequence[str]) -> _Condition:
    counts = Counter(str(row.reason or PENDING) for row in sorted(rows, key=severity, reverse=True))
    if not (counts or unread):
        return _satisfied("Complete", desired, "every setting is as asked")
    words = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    sentences = [f"not as asked: {words}"] if words else []
    sentences += [UNREAD] if unread else []
    return _Condition("Complete", False, next(iter(counts), str(Reason.UNREADABLE)), "; ".join(sentences))


def _satisfied(kind: str, desired: Desired, message: str) -> _Condition:
    if not desired.policies:
        return _Condition(kind, True, "NoPolicies", "no policy selects this node")
    return _Condition(kind, True, str(Reason.AS_ASKED), message)


def whom(link: str | None) -> str:
    """Who is held: a link, or with None the node that this is said on."""
    return "this whole node" if link is None else f"link {link}"


def hold(link: str | None, until: str) -> str:
    """A hold as people are told of it."""
    return f"{whom(link)} is held {until}: reported, not changed"


def _held(held: str | None, held_links: Mapping[str, str]) -> _Condition:
    if held is not None:
        return _Condition("Held", True, "Held", f"the node is held {held}".strip() + ": reported, not changed")
    if held_links:
        names = _listed([f"{name} {until}".strip() for name, until in sorted(held_links.items())])
        return _Condition("Held", True, "LinksHeld", f"reported, not changed: {', '.join(names)}")
    return _Condition("Held", False, "NotHeld", "nothing is held")


def _released(released: bool | None) -> _Condition:
    if released:
        return _Condition("Released", True, "Released", "everything was put back, and nothing is enforced")
    if released is None:
        return _Condition("Released", False, "NotReleased", "the policies are in force")
    return _Condition("Released", False, "Releasing", "nothing is enforced; what was there before is being put back")


def is_empty(recorded: Recorded) -> bool:
    """Whether a ledger holds nothing that would have to be put back."""
    return not (
        recorded.made or recorded.module or recorded.guests or any(record.entries for record in recorded.links.values())
    )


def lost(previous: Mapping[str, Any], sentence: str, now: str) -> dict[str, Any]:
    """The status reported before, now that the host it speaks of cannot be reached any more."""
    ready = _Condition("Ready", False, str(Reason.MISSING), sentence)
    others = [entry for entry in previous.get("conditions", ()) if entry.get("type") != "Ready"]
    return {**previous, "conditions": [*_dated([ready], now, previous), *others]}


def _dated(conditions: Iterable[_Condition], now: str, previous: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """As metav1.Condition: the time is that of the last change of `status`."""
    times = _times(previous, "conditions", ("type", "status"), "lastTransitionTime")
    return [
        {
            "type": condition.type,
            "status": str(condition.status),
            "reason": condition.reason,
            "message": _clipped(condition.message, 2 * LONGEST_MESSAGE),
            "lastTransitionTime": times.get((condition.type, str(condition.status)), now),
        }
        for condition in conditions
    ]


# --- policies and settings ---------------------------------------------------------------------------------


def _policies(
    policies: Mapping[str, Policy], rows: Iterable[Row], drifts: Mapping[str, int]
) -> Iterator[dict[str, Any]]:
    """One entry for each policy that selects this node, winners first."""
    by_policy: dict[str, list[Row]] = {}
    for row in rows:
        by_policy.setdefault(row.policy, []).append(row)
    for name, policy in policies.items():
        mine = by_policy.get(name, [])
        worst = max(mine, key=severity, default=None)
        reason = worst.reason if worst else Reason.AS_ASKED
        yield {
            "name": name,
            **({"uid": policy.uid} if policy.uid else {}),
            "generation": policy.generation,
            "admitted": not any(row.reason is Reason.NOT_ADMITTED for row in mine),
            "ready": worst is None or not failing(worst),
            **({"reason": str(reason)} if reason else {}),
            "blocked": _blocked(mine),
            "drifts": drifts.get(name, 0),
        }


def _blocked(rows: Iterable[Row]) -> int:
    return sum(row.reason is not None for row in rows)


def _setting(row: Row, since: Mapping[Identity, str], now: str) -> dict[str, Any]:
    """Without what is not there: a null is no value of the API, and a pending change has no reason."""
    entry = {name: _short(value) for name, value in row_json(row).items() if value is not None}
    entry["message"] = _clipped(row.message, LONGEST_MESSAGE)
    if row.reason is None:
        del entry["reason"]
    return entry | {"since": since.get(_identity(entry, NEWS), now)}


def _display(entry: Mapping[str, Any]) -> tuple[bool, str, str, str]:
    return entry.get("reason") not in FAILING, entry["subject"], entry["setting"], entry["policy"]


def _short(value: Value) -> Value:
    return _clipped(value, LONGEST_TEXT) if isinstance(value, str) else value


def _clipped(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _listed(names: list[str]) -> list[str]:
    more = len(names) - MOST_NAMES
    return [*names[:MOST_NAMES], f"and {more} more"] if more > 0 else names


def _fingerprint(found: Fingerprint) -> dict[str, str]:
    bits = {"tun": found.tun, "vhost": found.vhost}
    return {name: f"{value:#x}" for name, value in bits.items() if value is not None}


def _vhost(module: ModuleState) -> dict[str, Any]:
    status: dict[str, Any] = {"module": str(module.status)}
    if module.refcount is not None:
        status["refcount"] = module.refcount
    if module.parameters:
        status["parameters"] = dict(sorted(module.parameters.items()))
    if module.users:
        status["users"] = _listed([_clipped(str(user), LONGEST_TEXT) for user in module.users])
    return status


__all__ = [
    "LIMIT",
    "LONGEST_MESSAGE",
    "LONGEST_TEXT",
    "MOST_NAMES",
    "SETTLED",
    "failing",
    "hold",
    "is_empty",
    "lost",
    "merge",
    "node_state",
    "row_json",
    "severity",
    "summary",
    "whom",
]
