"""The fast loop: a kernel event tells or names a link's features, which are compared as integers and set back.

No Kubernetes, no fsync, no subprocess, no await. It repairs only what a pass has verified and may change without a
transaction; everything else wakes the full pass.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple, Protocol

from virtnet import errors
from virtnet.core import features as feature_names
from virtnet.core.model import Features, Link, Reason, Ref, Setting
from virtnet.core.resolve import FeatureTable
from virtnet.engine import drift
from virtnet.engine.fights import Fights
from virtnet.engine.metrics import Metrics
from virtnet.reconcile import Look
from virtnet.values import frozen

log = logging.getLogger(__name__)


class Events(Protocol):
    """What one drain of the kernel's notifications brought; `seen` as far as it told what the features are now."""

    @property
    def features(self) -> Collection[int]: ...
    @property
    def seen(self) -> Mapping[int, Features]: ...
    @property
    def tuning(self) -> Collection[int]: ...
    @property
    def links(self) -> Mapping[int, Link]: ...
    @property
    def gone(self) -> Collection[int]: ...
    @property
    def lost(self) -> bool: ...
    @property
    def modules(self) -> Collection[str]: ...
    @property
    def unaddressed(self) -> Collection[int]: ...


class Monitor(Protocol):
    """The kernel's notifications; `drain` is bounded, and what it left makes the descriptor readable again."""

    def filenos(self) -> Iterable[int]: ...

    def drain(self) -> Events: ...


class FastHost(Protocol):
    def read_features(self, ifindex: int) -> Features: ...

    def set_features(self, link: Ref, mask: int, value: int) -> Features: ...


Wake = Callable[[str], None]
"""Asks for a full pass, with the reason."""


@frozen
class _Entry:
    """What the fast loop keeps of one link."""

    link: Ref
    mask: int
    value: int
    table: FeatureTable


class _Drift(NamedTuple):
    """One managed feature that somebody changed, and the policy that wants it otherwise."""

    bit: int
    setting: Setting
    policy: str


def _drifts(entry: _Entry, wrong: int) -> list[_Drift]:
    return [
        _Drift(1 << bit, Setting(entry.link.ifindex, f"feature:{entry.table.names[bit]}"), ask.policy)
        for ask in entry.table.asks
        for bit in feature_names.places(ask.won & wrong)
    ]


class Reflex:
    """Repairs the features of links as events name them."""

    def __init__(self, host: FastHost, monitor: Monitor, fights: Fights, metrics: Metrics, wake: Wake) -> None:
        self.host, self.monitor, self.fights, self.metrics, self.wake = host, monitor, fights, metrics, wake
        self.drifts: Counter[str] = Counter()
        """Foreign changes by policy, since the process started."""
        self._entries: dict[int, _Entry] = {}
        self._look: Look | None = None
        self._later: dict[int, asyncio.TimerHandle] = {}

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        for descriptor in self.monitor.filenos():
            loop.add_reader(descriptor, self.react)

    def stop(self, loop: asyncio.AbstractEventLoop) -> None:
        for descriptor in self.monitor.filenos():
            loop.remove_reader(descriptor)
        for timer in self._later.values():
            timer.cancel()
        self._later.clear()

    def install(self, look: Look, without: Collection[Setting]) -> None:
        """From now on repair what this look's plan allows, except the settings in `without`."""
        excluded: dict[int, set[str]] = {}
        for setting in without:
            if isinstance(setting.target, int) and setting.key.startswith("feature:"):
                excluded.setdefault(setting.target, set()).add(setting.key.removeprefix("feature:"))
        entries = {}
        for ifindex, (mask, value) in look.plan.reflexes.items():
            table, link = look.desired.links[ifindex].features, look.state.links[ifindex]
            if ifindex in excluded and table is not None:
                mask &= ~feature_names.mask_of(excluded[ifindex], table.names)  # noqa: PLW2901
            if mask and table is not None:
                entries[ifindex] = self._entry(link, mask, value & mask, table)
        self._entries, self._look = entries, look

    def _entry(self, link: Link, mask: int, value: int, table: FeatureTable) -> _Entry:
        """The entry that is there already when nothing changed: a pass over a thousand links makes none."""
        known = self._entries.get(link.ifindex)
        if known and (known.mask, known.value, known.link.name) == (mask, value, link.name) and known.table is table:
            return known
        return _Entry(Ref(link.name, link.ifindex), mask, value, table)

    # --- events ---

    def react(self) -> None:
        """Called when the kernel has something to say."""
        started = time.perf_counter()
        events = self.monitor.drain()
        if events.lost:
            self.wake("events were lost")
        for ifindex in events.features:
            self._check(ifindex, events.seen.get(ifindex), started)
        for ifindex in events.gone:
            self._drop(ifindex)
        if events.links:
            self._look_at_links(events.links)
        if self._look is not None and not self._look.desired.links.keys().isdisjoint(events.tuning):
            self.wake("rings, channels or coalescing changed")
        if events.modules:
            self.wake("a module was loaded or removed")
        if events.unaddressed and self._waits_for_addresses():
            self.wake("an address was moved")

    def _waits_for_addresses(self) -> bool:
        rows = self._look.plan.blocked if self._look else ()
        return any(row.reason is Reason.CARRIES_ADDRESSES for row in rows)

    def _drop(self, ifindex: int) -> None:
        self._entries.pop(ifindex, None)
        self.fights.drop(ifindex)
        if self._look is None or ifindex in self._look.state.links:
            self.wake("a link is gone")

    def _look_at_links(self, links: Mapping[int, Link]) -> None:
        known = self._look.state.links if self._look else {}
        if any(known.get(ifindex) != link for ifindex, link in links.items()):
            self.wake("a link changed")

    def _check(self, ifindex: int, seen: Features | None, started: float) -> None:
        """Look at one link, unless the kernel told what there is to see, and put right what drifted."""
        entry = self._entries.get(ifindex)
        if entry is None:
            want = self._look.desired.links.get(ifindex) if self._look else None
            if want is not None and want.features is not None:
                self.wake("a feature changed")
            return
        try:
            features = seen or self.host.read_features(ifindex)
            wrong = (features.wanted ^ entry.value) & entry.mask
            if wrong:
                self._repair(entry, wrong, started)
            elif (features.active ^ entry.value) & entry.mask or self._is_news(ifindex, features):
                self.wake("a feature is not effective")
        except errors.Gone:
            self.wake("a link is gone")
        except errors.HostError as error:
            log.warning("%s: cannot be repaired at once: %s", entry.link.name, error)
            self.wake("a repair failed")

    def _is_news(self, ifindex: int, features: Features) -> bool:
        """Whether what can be changed, or a managed bit outside the reflex, is other than the last pass saw."""
        known = self._look.state.features.get(ifindex) if self._look else None
        want = self._look.desired.links.get(ifindex) if self._look else None
        if not isinstance(known, Features) or want is None or want.features is None:
            return True
        care = want.features.care & ~self._entries[ifindex].mask
        changed = (known.wanted ^ features.wanted) | (known.active ^ features.active)
        return known.changeable != features.changeable or bool(changed & care)

    # --- repairs ---

    def _repair(self, entry: _Entry, wrong: int, started: float) -> None:
        """What may be put right at once is; what has to be counted is counted after it."""
        now = time.monotonic()
        drifts = _drifts(entry, wrong)
        allowed, insisted = self._allowed(drifts, now)
        at = self.fights.may_repair_at(entry.link.ifindex, now) if insisted else now
        try:
            if allowed and at <= now:
                self._set(entry, allowed, started)
        finally:
            self._count(drifts)
        if allowed != wrong:
            self._entries[entry.link.ifindex] = self._without(entry, wrong & ~allowed)
            self.wake("a setting is contended")
        if at > now:
            self._repair_later(entry.link.ifindex, at - now)

    def _allowed(self, drifts: Iterable[_Drift], now: float) -> tuple[int, bool]:
        """The bits that may be repaired, and whether a policy insists on one of them."""
        allowed, insisted = 0, False
        for bit, setting, policy in drifts:
            insist = self._look is not None and drift.insists(self._look.desired, policy)
            if self.fights.foreign_change(setting, now, insist=insist):
                allowed |= bit
                insisted = insisted or insist
        return allowed, insisted

    def _count(self, drifts: Iterable[_Drift]) -> None:
        for _, setting, policy in drifts:
            self.metrics.detected(setting)
            self.drifts[policy] += 1

    def _without(self, entry: _Entry, bits: int) -> _Entry:
        mask = entry.mask & ~bits
        return _Entry(entry.link, mask, entry.value & mask, entry.table)

    def _set(self, entry: _Entry, bits: int, started: float) -> None:
        features = self.host.set_features(entry.link, bits, entry.value & bits)
        for name in feature_names.names_of(bits & ~(features.active ^ entry.value), entry.table.names):
            self.metrics.repaired(Setting(entry.link.ifindex, f"feature:{name}"))
        self.metrics.repair_seconds.observe(time.perf_counter() - started)
        if (features.active ^ entry.value) & entry.mask:
            self.wake("a feature is not effective")

    def _repair_later(self, ifindex: int, delay: float) -> None:
        """One repair for all that happens until then."""
        if ifindex not in self._later:
            self._later[ifindex] = asyncio.get_running_loop().call_later(delay, self._repair_now, ifindex)

    def _repair_now(self, ifindex: int) -> None:
        """The paced repair under Insist; it counts as no foreign change of its own."""
        self._later.pop(ifindex, None)
        entry = self._entries.get(ifindex)
        if entry is None:
            return
        started = time.perf_counter()
        try:
            features = self.host.read_features(ifindex)
            wrong = (features.wanted ^ entry.value) & entry.mask
            if wrong:
                self._set(entry, wrong, started)
        except errors.HostError:
            self.wake("a repair failed")
