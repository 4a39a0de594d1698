"""Objects as the API server sends them -> the little of them that a fleet is judged by; it keeps no object.

What is not as expected counts as absent: these objects were written by others, and one bad one must not stop the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from virtnet.core.fleet import AgentFacts, Entry, NodeFacts, StateFacts
from virtnet.core.model import FAILING, Fingerprint, Reason
from virtnet.core.report import SETTLED
from virtnet.core.rollout import Fault, seconds
from virtnet.values import frozen

MOST_FAULTS = 8
"""Of one policy on one node; the worst are kept."""
LONGEST_MESSAGE = 400

CRASHES = 2
SHORT_LIFE = 600.0
STEADY_AFTER = 60.0
"""A container that crashed at least so often, the last time after so short a life, must last this long to be there."""

_ORDER: Mapping[str, int] = {reason.value: level for level, reason in enumerate((*FAILING, *SETTLED))}

Object = Mapping[str, Any]


@frozen
class Pod:
    """An agent's pod, and on which node it is ("" before it is scheduled)."""

    node: str
    agent: AgentFacts


def node(found: Object) -> NodeFacts:
    """A Node: its name, uid, labels and whether it is Ready."""
    metadata = _map(found, "metadata")
    labels = {_shared(key): _shared(value) for key, value in _map(metadata, "labels").items()}
    return NodeFacts(str(metadata.get("name")), str(metadata.get("uid")), labels, _ready(found)[0])


def pod(found: Object) -> Pod:
    """A pod that is ending or has ended is not ready, whatever its condition still says."""
    ready, since = _ready(found)
    metadata, spec = _map(found, "metadata"), _map(found, "spec")
    there = ready and "deletionTimestamp" not in metadata
    return Pod(_shared(str(spec.get("nodeName", ""))), AgentFacts(there, since, _steady(found)))


def state(found: Object) -> StateFacts:
    """A node's state. A policy that is not Ready and tells no reason fails all the same."""
    metadata, status = _map(found, "metadata"), _map(found, "status")
    faults: dict[str, list[Fault]] = {}
    for row in _dicts(status.get("settings")):
        fault = _fault(row)
        if fault is not None:
            faults.setdefault(str(row.get("policy")), []).append(fault)
    entries = {_shared(name): entry for name, entry in _entries(status, faults)}
    bits = _map(status, "fingerprint")
    known = _fingerprint(_hexadecimal(bits.get("tun")), _hexadecimal(bits.get("vhost")))
    return StateFacts(str(metadata.get("uid")), _owner(metadata), entries, _holds(found, "Released"), known)


def _hexadecimal(text: object) -> int | None:
    try:
        return int(text, 16) if isinstance(text, str) else None
    except ValueError:
        return None


@lru_cache(maxsize=64)
def _fingerprint(tun: int | None, vhost: int | None) -> Fingerprint:
    """Thousands of nodes have the same kernel: one of each is kept."""
    return Fingerprint(tun, vhost)


def _entries(status: Object, faults: Mapping[str, list[Fault]]) -> Iterator[tuple[str, Entry]]:
    for each in _dicts(status.get("policies")):
        name, generation = str(each.get("name")), each.get("generation")
        if not isinstance(generation, int):
            continue
        ready, blocked = each.get("ready") is True, each.get("blocked")
        known = _worst(faults.get(name, []))
        reason = str(each.get("reason"))
        if not ready and reason in _ORDER and not any(fault.reason in FAILING for fault in known):
            known = (Fault("policy", Reason(reason), "the setting is not listed in the node's state"), *known)
        uid = _shared(str(each.get("uid", "")))
        yield name, Entry(generation, ready, blocked if isinstance(blocked, int) else 0, known, uid)


def _fault(row: Object) -> Fault | None:
    reason = str(row.get("reason"))
    if reason not in _ORDER:
        return None
    message = f"{row.get('subject')}: {row.get('message', '')}"[:LONGEST_MESSAGE]
    return Fault(_shared(str(row.get("setting"))), Reason(reason), _shared(message), seconds(row.get("since")))


def _worst(faults: list[Fault]) -> tuple[Fault, ...]:
    """One of each setting and reason: the newest, for an older one may have been there before a rollout."""
    newest: dict[tuple[str, Reason], Fault] = {}
    for fault in faults:
        key = fault.setting, fault.reason
        if key not in newest or (newest[key].since or 0.0) < (fault.since or float("inf")):
            newest[key] = fault
    return tuple(sorted(newest.values(), key=lambda fault: (_ORDER[fault.reason], fault.setting))[:MOST_FAULTS])


def _owner(metadata: Object) -> str:
    owners = (owner for owner in _dicts(metadata.get("ownerReferences")) if owner.get("kind") == "Node")
    return next((str(owner.get("uid")) for owner in owners), "")


def _ready(found: Object) -> tuple[bool, float | None]:
    """The condition Ready, and since when it is as it is."""
    for condition in _dicts(_map(found, "status").get("conditions")):
        if condition.get("type") == "Ready":
            return condition.get("status") == "True", seconds(condition.get("lastTransitionTime"))
    return False, None


def _holds(found: Object, kind: str) -> bool:
    conditions = _dicts(_map(found, "status").get("conditions"))
    return any(each.get("type") == kind and each.get("status") == "True" for each in conditions)


def _steady(found: Object) -> float:
    """From when on a pod that is Ready counts as there (seconds since the epoch; 0: it does)."""
    moments = [0.0]
    for container in _dicts(_map(found, "status").get("containerStatuses")):
        started = seconds(_map(_map(container, "state"), "running").get("startedAt"))
        last = _map(_map(container, "lastState"), "terminated")
        born, died = seconds(last.get("startedAt")), seconds(last.get("finishedAt"))
        restarts = container.get("restartCount")
        often = isinstance(restarts, int) and restarts >= CRASHES
        if often and started and born and died and died - born < SHORT_LIFE:
            moments.append(started + STEADY_AFTER)
    return max(moments)


def _map(found: Any, name: str) -> Object:
    value = found.get(name) if isinstance(found, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _dicts(found: Any) -> Iterator[Object]:
    return (each for each in found if isinstance(each, Mapping)) if isinstance(found, list) else iter(())


def _shared(text: str) -> str:
    """Thousands of nodes have the same labels and messages: one of each is kept."""
    return sys.intern(text)
