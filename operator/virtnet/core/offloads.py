"""What differs on one link's offload features; the quick answer is two integer comparisons.

wanted bit differs                        pending: one message sets all of them
wanted bit is right, active is not        NeedsFeature when a prerequisite is off, else Refused
no member of the asked name can change    Fixed, unless one has the wanted value
the kernel has no such name               Unsupported with the nearest name; `false` is satisfied
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from virtnet.core import features as feature_names
from virtnet.core.model import Features, Link, Reason, Row, Unreadable
from virtnet.core.resolve import FeatureAsk, FeatureTable


@dataclass(frozen=True, slots=True)
class Enforced:
    """What a table means on a link with certain changeable features: what may be set, and which asks are fixed."""

    care: int
    value: int
    fixed: tuple[FeatureAsk, ...]
    keys: frozenset[str]


@dataclass(frozen=True, slots=True)
class Difference:
    """`mask` and `value` are what to set; `pending` are the asks behind it; `rows` are what cannot be had, and why."""

    mask: int = 0
    value: int = 0
    pending: tuple[FeatureAsk, ...] = ()
    rows: tuple[Row, ...] = ()


NOTHING = Difference()


def enforced(table: FeatureTable, features: Features) -> Enforced:
    changeable = features.changeable
    key = (changeable, features.active & ~changeable & table.care)
    known = table.compiled.get(key)
    if known is None:
        known = table.compiled[key] = _enforced(table, changeable, features.active)
    assert isinstance(known, Enforced)
    return known


def _enforced(table: FeatureTable, changeable: int, active: int) -> Enforced:
    care = table.care & changeable
    fixed = tuple(ask for ask in table.asks if ask.won and _is_fixed(ask, changeable, active))
    keys = frozenset(f"feature:{name}" for name in feature_names.names_of(care, table.names))
    return Enforced(care, table.value & care, fixed, keys)


def _is_fixed(ask: FeatureAsk, changeable: int, active: int) -> bool:
    has_wanted_value = active & ask.mask if ask.wanted else ~active & ask.mask
    return not ask.mask & changeable and not has_wanted_value


def is_as_asked(table: FeatureTable, features: Features) -> bool:
    """The quick answer, for links on which nothing has to be said either."""
    wish = enforced(table, features)
    wrong = ((features.wanted ^ wish.value) | (features.active ^ wish.value)) & wish.care
    return not (wrong or wish.fixed)


def diff(link: Link, table: FeatureTable, features: Features | Unreadable) -> Difference:
    """What to set on this link, and what to say."""
    if isinstance(features, Unreadable):
        return Difference(rows=tuple(_unreadable(link, table, features)))
    wish = enforced(table, features)
    mask = (features.wanted ^ wish.value) & wish.care
    wrong = (features.active ^ wish.value) & wish.care & ~mask
    if not (mask or wrong or wish.fixed or table.unknown or any(ask.lost for ask in table.asks)):
        return NOTHING
    rows = [
        *_unknown(link, table),
        *(_fixed(link, ask) for ask in wish.fixed),
        *_overridden(link, table, features),
        *_not_effective(link, table, features, wrong, mask & wish.value),
    ]
    pending = tuple(ask for ask in table.asks if ask.won & mask)
    return Difference(mask, wish.value & mask, pending, tuple(rows))


def actual(ask: FeatureAsk, features: Features, mask: int) -> bool:
    """The asked name's present value: for `true` whether all of `mask` is on, for `false` whether any is."""
    on = features.active & mask
    return on == mask if ask.wanted else bool(on)


def pending_row(link: Link, ask: FeatureAsk, table: FeatureTable, features: Features, mask: int) -> Row:
    """The row of an ask whose bits in `mask` will be set."""
    names = ", ".join(feature_names.names_of(ask.won & mask, table.names))
    word = "on" if ask.wanted else "off"
    return Row(
        f"link/{link.name}",
        ask.path,
        ask.wanted,
        actual(ask, features, ask.won & mask),
        None,
        f"turn {names} {word}",
        ask.policy,
    )


def _row(link: Link, ask: FeatureAsk, current: bool | None, reason: Reason, message: str) -> Row:
    return Row(f"link/{link.name}", ask.path, ask.wanted, current, reason, message, ask.policy)


def _unreadable(link: Link, table: FeatureTable, features: Unreadable) -> Iterator[Row]:
    for ask in table.asks:
        yield _row(link, ask, None, Reason.UNREADABLE, f"the features of {link.name} cannot be read: {features.reason}")


def _unknown(link: Link, table: FeatureTable) -> Iterator[Row]:
    for want in table.unknown:
        if want.value is False:
            continue
        name = want.key.removeprefix("feature:")
        close = feature_names.nearest(name, table.names)
        advice = f"; did you mean {close}?" if close and close != name else ""
        text = f"this kernel has no feature {name}{advice}"
        yield Row(f"link/{link.name}", want.path, want.value, None, Reason.UNSUPPORTED, text, want.policy)


def _fixed(link: Link, ask: FeatureAsk) -> Row:
    word = "on" if not ask.wanted else "off"
    return _row(
        link, ask, not ask.wanted, Reason.FIXED, f"{ask.name} is fixed {word} on {link.name}: its driver lacks it"
    )


def _overridden(link: Link, table: FeatureTable, features: Features) -> Iterator[Row]:
    for ask in table.asks:
        wish = -1 if ask.wanted else 0
        lost = ask.lost & (features.changeable | (features.active ^ wish))
        if not lost:
            continue
        names = ", ".join(feature_names.names_of(lost, table.names))
        why = ask.because or f"policy {ask.winner} wants it {'off' if ask.wanted else 'on'}"
        text = f"{names}: {why}" if not ask.because else f"{why}, as policy {ask.winner} wants"
        yield _row(link, ask, bool(features.active & lost), Reason.OVERRIDDEN_BY, text)


def _not_effective(link: Link, table: FeatureTable, features: Features, wrong: int, turning_on: int) -> Iterator[Row]:
    """Bits that were asked for and that the kernel or driver keeps otherwise."""
    for ask in table.asks:
        bits = ask.won & wrong
        if not bits:
            continue
        names = feature_names.names_of(bits, table.names)
        needed = _missing(names, features.active | turning_on, table.names) if ask.wanted else None
        current = actual(ask, features, bits)
        if needed:
            text = f"{', '.join(names)} needs {' or '.join(needed)}, which is off on {link.name}"
            yield _row(link, ask, current, Reason.NEEDS_FEATURE, text)
        elif not turning_on or not ask.wanted:
            state = "off" if ask.wanted else "on"
            text = f"the driver of {link.name} keeps {', '.join(names)} {state} although it was asked otherwise"
            yield _row(link, ask, current, Reason.REFUSED, text)


def _missing(names: Iterable[str], active: int, known: tuple[str, ...]) -> tuple[str, ...] | None:
    for name in names:
        missing = feature_names.missing_prerequisite(name, active, known)
        if missing:
            return missing
    return None
