"""Objects as an API server keeps them: resource versions, a log of events, selectors, and server-side apply.

It knows what this project asks of one and nothing more: whatever else is asked is an AssertionError, not a guess.
"""

from __future__ import annotations

import copy
import itertools
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]

LIST_KEYS: Mapping[str, str] = {
    "metadata.ownerReferences": "uid",
    "status.conditions": "type",
    "status.policies": "name",
}
"""Lists that server-side apply merges item by item; all others are taken whole."""


@dataclass(frozen=True)
class Kind:
    """A kind of objects that is served."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = False
    status: bool = True
    """Whether status is a subresource."""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version


@dataclass(frozen=True)
class Event:
    """What happened, at which resource version."""

    version: int
    type: str
    object: Object


class Missing(Exception):
    """There is no such object."""


class Taken(Exception):
    """There is one already, or it is another one by now."""


class TooOld(Exception):
    """The events since this version are no longer known."""


@dataclass
class Objects:
    """All objects of one kind, by (namespace, name), and what happened to them since `oldest`."""

    kind: Kind
    clock: Iterator[int] = field(default_factory=lambda: itertools.count(1000))
    """Gives the next resource version; one for the whole server."""
    found: dict[tuple[str, str], Object] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    version: int = 999
    oldest: int = 0
    applied: dict[tuple[str, str, str, str], Object] = field(default_factory=dict)
    """What each manager applied last: by namespace, name, manager, subresource."""

    # --- reading ---

    def get(self, name: str, namespace: str = "") -> Object:
        try:
            return self.found[namespace, name]
        except KeyError:
            raise Missing(f'{self.kind.plural}.{self.kind.group} "{name}" not found') from None

    def select(self, namespace: str = "", labels: str = "", fields: str = "") -> list[Object]:
        within = (one for (place, _), one in sorted(self.found.items()) if namespace in ("", place))
        return [one for one in within if matches(one, labels, fields)]

    def since(self, version: int) -> list[Event]:
        """What happened after a version, oldest first; raises TooOld."""
        if version < self.oldest:
            raise TooOld(f"too old resource version: {version} ({self.oldest})")
        return [event for event in self.events if event.version > version]

    def forget(self) -> None:
        """Compaction: a watch cannot be continued from before now."""
        self.oldest, self.events = self.version, []

    # --- writing ---

    def create(self, wanted: Object, namespace: str = "") -> Object:
        name = wanted["metadata"]["name"]
        if (namespace, name) in self.found:
            raise Taken(f'{self.kind.plural} "{name}" already exists')
        one = copy.deepcopy(wanted)
        one |= {"apiVersion": self.kind.api_version, "kind": self.kind.kind}
        made = {"uid": str(uuid.uuid4()), "creationTimestamp": "2026-01-01T00:00:00Z", "generation": 1}
        one["metadata"] = {**one["metadata"], **made} | ({"namespace": namespace} if namespace else {})
        if self.kind.status:
            one.pop("status", None)
        return self._store(one, namespace, "ADDED")

    def replace(self, wanted: Object, namespace: str = "", subresource: str = "") -> Object:
        """PUT: refused when the object is no longer at the version that it names."""
        before = self.get(wanted["metadata"]["name"], namespace)
        named = wanted["metadata"].get("resourceVersion")
        if named is not None and named != before["metadata"]["resourceVersion"]:
            raise Taken("the object has been modified; please apply your changes to the latest version and try again")
        return self._change(before, wanted, namespace, subresource)

    def merge(self, name: str, change: Object, namespace: str = "", subresource: str = "") -> Object:
        """A JSON merge patch."""
        before = self.get(name, namespace)
        return self._change(before, _merged(before, change), namespace, subresource)

    def apply(self, name: str, wanted: Object, manager: str, namespace: str = "", subresource: str = "") -> Object:
        """Server-side apply with force: what this manager applied before and does not any more is removed."""
        assert wanted["metadata"]["name"] == name
        assert "managedFields" not in wanted["metadata"]
        if (namespace, name) not in self.found:
            if subresource:
                raise Missing(f'{self.kind.plural} "{name}" not found')
            self.create({"metadata": {"name": name}}, namespace)
        before = self.get(name, namespace)
        for name_of in ("uid", "resourceVersion"):
            if wanted["metadata"].get(name_of, before["metadata"][name_of]) != before["metadata"][name_of]:
                raise Taken(f"the {name_of} is another one by now; please apply your changes to the latest version")
        known = (namespace, name, manager, subresource)
        kept = _without(before, self.applied.get(known, {}), wanted, "")
        after = self._change(before, _laid_over(kept, wanted, ""), namespace, subresource)
        self.applied[known] = copy.deepcopy(wanted)
        return after

    def delete(self, name: str, namespace: str = "", uid: str = "") -> Object:
        one = self.get(name, namespace)
        if uid and one["metadata"]["uid"] != uid:
            raise Taken(f"the UID in the precondition ({uid}) does not match")
        del self.found[namespace, name]
        self.applied = {known: each for known, each in self.applied.items() if known[:2] != (namespace, name)}
        self.version = next(self.clock)
        gone = _at(one, self.version)
        self.events.append(Event(self.version, "DELETED", gone))
        return gone

    def _change(self, before: Object, wanted: Object, namespace: str, subresource: str) -> Object:
        """Only status by the subresource, everything but status without; nothing happens when nothing differs."""
        assert subresource in ("", "status"), subresource
        after = copy.deepcopy(before)
        if subresource:
            after["status"] = copy.deepcopy(wanted.get("status", {}))
        else:
            own = ("uid", "creationTimestamp", "generation", "resourceVersion", "namespace")
            asked = {key: value for key, value in wanted["metadata"].items() if key not in own}
            after["metadata"] = {**{key: before["metadata"][key] for key in own if key in before["metadata"]}, **asked}
            left = ("status",) if self.kind.status else ()
            for part in {*before, *wanted} - {"apiVersion", "kind", "metadata", *left}:
                if part in wanted:
                    after[part] = copy.deepcopy(wanted[part])
                else:
                    after.pop(part, None)
        if after == before:
            return before
        if after.get("spec") != before.get("spec"):
            after["metadata"]["generation"] += 1
        return self._store(after, namespace, "MODIFIED")

    def _store(self, one: Object, namespace: str, what: str) -> Object:
        self.version = next(self.clock)
        stored = _at(one, self.version)
        self.found[namespace, one["metadata"]["name"]] = stored
        self.events.append(Event(self.version, what, stored))
        return stored


def _at(one: Object, version: int) -> Object:
    return {**one, "metadata": {**one["metadata"], "resourceVersion": str(version)}}


# --- selectors ---------------------------------------------------------------------------------------------


def matches(one: Object, labels: str, fields: str) -> bool:
    """Equality alone, and of fields only the name and the namespace: what definitions of our own can be asked."""
    has = one["metadata"].get("labels") or {}
    return all(has.get(key) == value for key, value in _equalities(labels)) and all(
        one["metadata"].get(_field(key)) == value for key, value in _equalities(fields)
    )


def _equalities(selector: str) -> Iterator[tuple[str, str]]:
    for part in filter(None, selector.split(",")):
        key, sign, value = part.partition("=")
        assert sign, f"this server knows no selector {part!r}"
        assert not key.endswith("!"), f"this server knows no selector {part!r}"
        yield key, value


def _field(key: str) -> str:
    assert key in ("metadata.name", "metadata.namespace"), f"this server knows no field selector {key!r}"
    return key.partition(".")[2]


# --- patches -----------------------------------------------------------------------------------------------


def _merged(before: Any, change: Any) -> Any:
    """RFC 7396."""
    if not isinstance(change, dict):
        return change
    after = dict(before) if isinstance(before, dict) else {}
    for key, value in change.items():
        if value is None:
            after.pop(key, None)
        else:
            after[key] = _merged(after.get(key), value)
    return after


def _without(live: Any, applied: Any, wanted: Any, path: str) -> Any:
    """`live` without what was `applied` and is not `wanted` any more."""
    if isinstance(applied, dict) and isinstance(live, dict):
        wanted = wanted if isinstance(wanted, dict) else {}
        after = {}
        for key, value in live.items():
            if key in applied and key not in wanted:
                continue
            here = f"{path}.{key}".lstrip(".")
            after[key] = _without(value, applied[key], wanted[key], here) if key in applied else value
        return after
    if isinstance(applied, list) and isinstance(live, list) and path in LIST_KEYS:
        key = LIST_KEYS[path]
        gone = {item[key] for item in applied} - {item[key] for item in wanted or ()}
        return [item for item in live if item[key] not in gone]
    return live


def _laid_over(live: Any, wanted: Any, path: str) -> Any:
    if isinstance(wanted, dict) and isinstance(live, dict):
        after = dict(live)
        for key, value in wanted.items():
            after[key] = _laid_over(after.get(key), value, f"{path}.{key}".lstrip("."))
        return after
    if isinstance(wanted, list) and isinstance(live, list) and path in LIST_KEYS:
        key = LIST_KEYS[path]
        asked = {item[key]: item for item in wanted}
        kept = [_laid_over(item, asked[item[key]], "") if item[key] in asked else item for item in live]
        there = {item[key] for item in live}
        return kept + [item for item in wanted if item[key] not in there]
    return copy.deepcopy(wanted)
