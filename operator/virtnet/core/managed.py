"""What is shown of each managed link: its place, what the policies want of it, and what is in effect.

It compares nothing and decides nothing: whether a link is as asked is said by the rows of the plan.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from virtnet.core import links, offloads
from virtnet.core.model import Features, HostState, Link, Unreadable, Value
from virtnet.core.resolve import Desired, FeatureTable, LinkWant

MOST_WANTED = 64
"""Of one link: what the API allows in one map."""

Shared = tuple[LinkWant, int, int]
"""What is wanted, and which features are active and changeable: links alike in these have the same features."""


class Managed(NamedTuple):
    as_asked: bool
    name: str
    link: Link
    want: LinkWant


def of(desired: Desired, state: HostState, blocked: Container[str]) -> list[Managed]:
    """The managed links that are there: first those whose names are `blocked`, then by name."""
    found = [
        Managed(link.name not in blocked, link.name, link, want)
        for ifindex, want in desired.links.items()
        if (link := state.links.get(ifindex)) is not None
    ]
    return sorted(found, key=lambda managed: managed[:2])


def entries(state: HostState, managed: Iterable[Managed]) -> Iterator[dict[str, Any]]:
    """Made one by one: of a thousand links those that find no room are never made."""
    wanted: dict[LinkWant, dict[str, Value]] = {}
    effective: dict[Shared, dict[str, Value]] = {}
    for _, name, link, want in managed:
        if want not in wanted:
            wanted[want] = _wanted(want)
        entry: dict[str, Any] = {"name": name, "role": want.role} | _place(state, link)
        if wanted[want]:
            entry["wanted"] = wanted[want].copy()
            entry["effective"] = _effective(state, link, want, effective)
        yield entry


def _place(state: HostState, link: Link) -> dict[str, str]:
    """The driver is told by the link's kind where no driver was read: for software links they are the same."""
    driver, master = state.drivers.get(link.ifindex), state.links.get(link.master)
    place = {"driver": driver.name if driver else link.kind, "master": master.name if master else ""}
    return {name: value for name, value in place.items() if value}


def _wanted(want: LinkWant) -> dict[str, Value]:
    """What the winners want: feature names as typed, other settings by their path in the section."""
    values: dict[str, Value] = {}
    table = want.features
    for ask in table.asks if table else ():
        if ask.won:
            values.setdefault(ask.name, ask.wanted)
    for unknown in table.unknown if table else ():
        if unknown.value:
            values.setdefault(unknown.key.removeprefix("feature:"), unknown.value)
    values |= {_name(attr.key): attr.value for attr in want.attrs}
    return _bounded(values)


def _bounded(values: dict[str, Value]) -> dict[str, Value]:
    return values if len(values) <= MOST_WANTED else dict(islice(values.items(), MOST_WANTED))


def _name(key: str) -> str:
    return key.removeprefix("bridge.")


def _effective(state: HostState, link: Link, want: LinkWant, known: dict[Shared, dict[str, Value]]) -> dict[str, Value]:
    """What of the wanted is there; what is absent or unreadable is left out. `known` remembers what links share."""
    values: dict[str, Value] = {}
    features = state.features.get(link.ifindex)
    if want.features is not None and isinstance(features, Features):
        key = (want, features.active, features.changeable)
        if key not in known:
            known[key] = _features_now(want.features, features)
        values |= known[key]
    for attr in want.attrs:
        value = links.observed_value(state, link, attr.key)
        if value is not None and not isinstance(value, Unreadable):
            values[_name(attr.key)] = value
    return _bounded(values)


def _features_now(table: FeatureTable, features: Features) -> dict[str, Value]:
    """A name stands for its changeable members; without any it is as wanted, unless it is fixed otherwise."""
    values: dict[str, Value] = {}
    wish = offloads.enforced(table, features)
    for ask in table.asks:
        bits = ask.won & wish.care
        if bits:
            values.setdefault(ask.name, offloads.actual(ask, features, bits))
        elif ask.won:
            values.setdefault(ask.name, ask.wanted is not (ask in wish.fixed))
    return values
