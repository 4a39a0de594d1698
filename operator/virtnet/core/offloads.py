"""What differs on one link's offload features; the quick answer is two integer comparisons.

    wanted bit differs                        pending: one message sets all of them
    wanted bit is right, active is not        NeedsFeature when a prerequisite is off, else Refused
    no member of the asked name can change    Fixed, unless one has the wanted value
    the kernel has no such name               Unsupported with the nearest name; `false` is satisfied

A thousand links that are wanted alike share one `FeatureTable`; what it means for one kind of driver, and for one set
of differing bits, is worked out once and kept with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import field

from virtnet.core import features as feature_names
from virtnet.core.model import Deletion, Entry, Features, Link, Reason, Ref, Row, SetFeatures, Setting, Step, Unreadable
from virtnet.core.resolve import FeatureAsk, FeatureTable
from virtnet.core.standing import Obstacle
from virtnet.values import frozen


@frozen
class Bit:
    """One kernel feature that may be set; `key` as in `Setting.key`."""

    name: str
    key: str
    mask: int
    ask: FeatureAsk


@frozen
class Part:
    """One ask's share of a set of bits; `pending` is the sentence about setting them."""

    ask: FeatureAsk
    mask: int
    names: str
    bits: tuple[Bit, ...]
    pending: str


@frozen
class Enforced:
    """What a table means on a link with certain changeable features: what may be set, and which asks are fixed."""

    care: int
    value: int
    fixed: tuple[FeatureAsk, ...]
    bits: tuple[Bit, ...]
    keys: frozenset[str]
    resetting: int
    quiet: bool
    """Whether there is nothing to say when all bits are as asked."""
    _parts: dict[int, tuple[Part, ...]] = field(default_factory=dict, compare=False, repr=False)

    def parts(self, mask: int) -> tuple[Part, ...]:
        """The bits of `mask` by the ask that owns them, winners first."""
        found = self._parts.get(mask)
        if found is None:
            by_ask: dict[FeatureAsk, list[Bit]] = {}
            for bit in self.bits:
                if bit.mask & mask:
                    by_ask.setdefault(bit.ask, []).append(bit)
            found = self._parts[mask] = tuple(_part(ask, bits) for ask, bits in by_ask.items())
        return found


def _part(ask: FeatureAsk, bits: list[Bit]) -> Part:
    names = ", ".join(bit.name for bit in bits)
    pending = f"turn {names} {'on' if ask.wanted else 'off'}"
    return Part(ask, sum(bit.mask for bit in bits), names, tuple(bits), pending)


@frozen
class Difference:
    """`steps` set what can be set; `rows` say what cannot be had, and why; `unmet` are bits that something stops."""

    steps: tuple[Step, ...] = ()
    rows: tuple[Row, ...] = ()
    unmet: tuple[Setting, ...] = ()


NOTHING = Difference()

Obstacles = Callable[[Bit, bool, bool], Obstacle | None]
"""(bit, wanted, current) -> what stands in the way of setting it."""


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
    index = feature_names.index(table.names)
    bits = tuple(
        Bit(name, f"feature:{name}", 1 << index[name], ask)
        for ask in table.asks
        for name in feature_names.names_of(ask.won & care, table.names)
    )
    fixed = tuple(ask for ask in table.asks if ask.won and _is_fixed(ask, changeable, active))
    quiet = not (fixed or any(want.value for want in table.unknown) or any(ask.lost for ask in table.asks))
    resetting = care & feature_names.mask_of(feature_names.MAY_RESET, table.names)
    return Enforced(care, table.value & care, fixed, bits, frozenset(bit.key for bit in bits), resetting, quiet)


def _is_fixed(ask: FeatureAsk, changeable: int, active: int) -> bool:
    has_wanted_value = active & ask.mask if ask.wanted else ~active & ask.mask
    return not ask.mask & changeable and not has_wanted_value


def is_as_asked(wish: Enforced, features: Features) -> bool:
    """The quick answer, for links on which nothing has to be said either."""
    return wish.quiet and not ((features.wanted ^ wish.value) | (features.active ^ wish.value)) & wish.care


def reflex(wish: Enforced, link: Link) -> int:
    """The bits that may be repaired without a transaction: on hardware, not those whose change may reset the link."""
    return wish.care & ~wish.resetting if link.physical else wish.care


def entries(wish: Enforced, link: Link, features: Features, deletion: Callable[[str], Deletion]) -> list[Entry]:
    """The ledger's entries: the wanted bit of each asked feature that can be changed, never of dragged ones."""
    ifindex, wanted = link.ifindex, features.wanted
    return [
        Entry(
            Setting(ifindex, bit.key),
            wanted & bit.mask != 0,
            (ask := bit.ask).wanted,
            ask.policy,
            deletion(ask.policy),
        )
        for bit in wish.bits
    ]


def are_recorded(wish: Enforced, known: Mapping[str, Entry], deletion: Callable[[str], Deletion]) -> bool:
    """The quick answer whether the ledger holds what `entries` would give, for this wish and these owners, no more."""
    if len(known) != len(wish.bits):
        return False
    for bit in wish.bits:
        held, ask = known.get(bit.key), bit.ask
        if held is None or held.wanted != ask.wanted or held.policy != ask.policy:
            return False
        if held.deletion is not deletion(ask.policy):
            return False
    return True


def diff(
    link: Link,
    table: FeatureTable,
    features: Features | Unreadable,
    stands: Obstacles | None = None,
    waits: Callable[[FeatureAsk], Obstacle | None] | None = None,
) -> Difference:
    """What to set on this link, and what to say.

    `stands` says what stands in the way of a bit, `waits` what an ask waits for whose change may reset the link.
    """
    if isinstance(features, Unreadable):
        return Difference(rows=tuple(_unreadable(link, table, features)))
    return difference(link, table, enforced(table, features), features, stands, waits)


def difference(
    link: Link,
    table: FeatureTable,
    wish: Enforced,
    features: Features,
    stands: Obstacles | None = None,
    waits: Callable[[FeatureAsk], Obstacle | None] | None = None,
) -> Difference:
    """Like `diff`, for who knows already what the table means on this link."""
    mask = (features.wanted ^ wish.value) & wish.care
    wrong = (features.active ^ wish.value) & wish.care & ~mask
    rows: list[Row] = []
    if wrong or not wish.quiet:
        rows += _unknown(link, table)
        rows += [_fixed(link, ask) for ask in wish.fixed]
        rows += _overridden(link, table, features)
        rows += _not_effective(link, wish, table, features, wrong, mask & wish.value)
    elif not mask:
        return NOTHING
    stopped = _stopped(link, wish, features, mask, stands, waits)
    if not stopped and not rows:
        return Difference(_steps(link, wish, features, mask))
    for bit, (reason, text) in stopped.items():
        mask &= ~bit.mask
        rows.append(_row(link, bit.ask, bool(features.active & bit.mask), reason, text))
    unmet = tuple(Setting(link.ifindex, bit.key) for bit in stopped)
    return Difference(_steps(link, wish, features, mask), tuple(dict.fromkeys(rows)), unmet)


def _stopped(
    link: Link,
    wish: Enforced,
    features: Features,
    mask: int,
    stands: Obstacles | None,
    waits: Callable[[FeatureAsk], Obstacle | None] | None,
) -> dict[Bit, Obstacle]:
    """The bits of `mask` that must not be set now, and why."""
    found: dict[Bit, Obstacle] = {}
    resetting = wish.resetting if link.physical else 0
    if stands is None and not (resetting & mask and waits):
        return found
    for bit in wish.bits:
        if not bit.mask & mask:
            continue
        obstacle = stands(bit, bit.ask.wanted, bool(features.wanted & bit.mask)) if stands else None
        if obstacle is None and waits is not None and bit.mask & resetting:
            obstacle = waits(bit.ask)
        if obstacle:
            found[bit] = obstacle
    return found


# --- steps -------------------------------------------------------------------------------------------------


def _steps(link: Link, wish: Enforced, features: Features, mask: int) -> tuple[Step, ...]:
    """One message for the link; what may reset hardware goes apart, in a transaction of its policy."""
    resetting = wish.resetting & mask if link.physical else 0
    if not resetting:
        return (_step(link, wish, features, wish.parts(mask), False),) if mask else ()
    steps = [_step(link, wish, features, wish.parts(mask & ~resetting), False)] if mask & ~resetting else []
    by_policy: dict[str, list[Part]] = {}
    for part in wish.parts(resetting):
        by_policy.setdefault(part.ask.policy, []).append(part)
    steps += [_step(link, wish, features, tuple(parts), True) for parts in by_policy.values()]
    return tuple(steps)


def _step(link: Link, wish: Enforced, features: Features, parts: tuple[Part, ...], risky: bool) -> Step:
    ifindex, subject = link.ifindex, f"link/{link.name}"
    mask, settings, rows = 0, [], []
    for part in parts:
        ask = part.ask
        mask |= part.mask
        settings += [(Setting(ifindex, bit.key), ask.wanted) for bit in part.bits]
        rows.append(
            Row(subject, ask.path, ask.wanted, actual(ask, features, part.mask), None, part.pending, ask.policy)
        )
    change = SetFeatures(Ref(link.name, ifindex), mask, wish.value & mask)
    wait = risky and link.carrier
    return Step(change, tuple(settings), tuple(rows), parts[0].ask.policy, risky=risky, wait_carrier=wait)


def actual(ask: FeatureAsk, features: Features, mask: int) -> bool:
    """The asked name's present value: for `true` whether all of `mask` is on, for `false` whether any is."""
    on = features.active & mask
    return on == mask if ask.wanted else bool(on)


# --- what cannot be had ------------------------------------------------------------------------------------


def _row(link: Link, ask: FeatureAsk, current: bool | None, reason: Reason | None, message: str) -> Row:
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
    word = "off" if ask.wanted else "on"
    text = f"{ask.name} is fixed {word} on {link.name}: its driver lacks it"
    return _row(link, ask, not ask.wanted, Reason.FIXED, text)


def _overridden(link: Link, table: FeatureTable, features: Features) -> Iterator[Row]:
    for ask in table.asks:
        wish = -1 if ask.wanted else 0
        lost = ask.lost & (features.changeable | (features.active ^ wish))
        if not lost:
            continue
        names = ", ".join(feature_names.names_of(lost, table.names))
        opposite = "off" if ask.wanted else "on"
        text = f"{names}: policy {ask.winner} wants it {opposite}"
        if ask.because:
            text = f"{ask.because}, as policy {ask.winner} wants"
        yield _row(link, ask, bool(features.active & lost), Reason.OVERRIDDEN_BY, text)


def _not_effective(
    link: Link, wish: Enforced, table: FeatureTable, features: Features, wrong: int, turning_on: int
) -> Iterator[Row]:
    """Bits that were asked for and that the kernel or driver keeps otherwise; what this plan turns on may free them."""
    for part in wish.parts(wrong) if wrong else ():
        ask = part.ask
        names = [bit.name for bit in part.bits]
        needed = _missing(names, features.active | turning_on, table.names) if ask.wanted else None
        if needed:
            text = f"{part.names} needs {' or '.join(needed)}, which is off on {link.name}"
            yield _row(link, ask, actual(ask, features, part.mask), Reason.NEEDS_FEATURE, text)
        elif not (turning_on and ask.wanted):
            state = "off" if ask.wanted else "on"
            text = f"the driver of {link.name} keeps {part.names} {state} although it was asked otherwise"
            yield _row(link, ask, actual(ask, features, part.mask), Reason.REFUSED, text)


def _missing(names: Iterable[str], active: int, known: tuple[str, ...]) -> tuple[str, ...] | None:
    for name in names:
        missing = feature_names.missing_prerequisite(name, active, known)
        if missing:
            return missing
    return None
