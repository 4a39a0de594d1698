"""The engine of one network namespace: when a full pass runs, what stands in its way, and what is reported of it.

A pass runs at start, when policies or holds change, when an event asks for one, when a hold or a contention ends, after
a failure that may pass, and every five minutes. It reads no policy files and talks to nobody: `set_policies` and
`on_status` are its two sides.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import field, replace
from typing import Any, Protocol

from virtnet import errors, reconcile
from virtnet.core import links as link_rules
from virtnet.core import report, running
from virtnet.core.model import DONE, Node, Policy, Reason, Row, Setting, Value
from virtnet.core.standing import Refusal, Standing
from virtnet.engine import drift, heap, holds
from virtnet.engine.drops import Drops
from virtnet.engine.fights import Fights, Thresholds
from virtnet.engine.metrics import Metrics
from virtnet.engine.reflex import FastHost, Monitor, Reflex
from virtnet.engine.transactions import Transactions
from virtnet.host import records, suspects
from virtnet.host.state import StateDir
from virtnet.values import frozen

log = logging.getLogger(__name__)


SETTLED_SECONDS = 2.0
"""After the first pass: by then what it left behind is garbage."""


@frozen
class Options:
    """`resync` is the safety pass in seconds, ± 10 %; `retries` bounds the wait after a failure that may pass.

    Passes that events ask for wait `settle` seconds for more of them, and run at most `rate` times a second for long.
    """

    thresholds: Thresholds = field(default_factory=Thresholds)
    resync: float = 300.0
    retries: tuple[float, float] = (5.0, 300.0)
    settle: float = 0.002
    rate: int = 5
    allow_mass_removal: bool = False


USUAL = Options()


class EngineHost(reconcile.Host, FastHost, Protocol):
    """What the engine needs of the machine."""


OnStatus = Callable[[Mapping[str, Any]], None]


class Watch(Protocol):
    """Wakes the engine when one of these processes ends (`host.exits.Exits`)."""

    def watch(self, pids: Collection[int]) -> None: ...


class Engine:
    """Keeps one host as the policies say, until it is cancelled. Stopping restores nothing."""

    def __init__(
        self,
        host: EngineHost,
        ledger: reconcile.Ledger,
        state: StateDir,
        transactions: Transactions,
        monitor: Monitor,
        node: Node,
        *,
        options: Options = USUAL,
        agent: Mapping[str, str] | None = None,
        on_status: OnStatus | None = None,
        earlier: Mapping[str, Any] | None = None,
    ) -> None:
        """`earlier` is the status that was reported before this process began: its times go on."""
        self.host, self.ledger, self.state, self.transactions = host, ledger, state, transactions
        self.node, self.options, self.agent, self.on_status = node, options, agent or {}, on_status
        self.exits: Watch | None = None
        """Set by who can watch processes; without it, a module that was in use waits for the next pass."""
        self.metrics = Metrics()
        self.fights = Fights(options.thresholds)
        self.reflex = Reflex(host, monitor, self.fights, self.metrics, self.wake)
        self.policies: tuple[Policy, ...] | None = None
        self.last: reconcile.Outcome | None = None
        self.status: Mapping[str, Any] | None = None
        self._earlier = earlier
        self.passes = 0
        self.looked = asyncio.Event()
        """Set when the first pass has been reported."""
        self._finished = time.monotonic()
        self._unread: tuple[str, ...] = ()
        self._refusals: dict[Setting, Refusal] = self._read_refusals()
        self._memory = reconcile.Memory()
        self._suspects: dict[Setting, str] = {}
        self._drops, self._advised = Drops(), set[int]()
        self._wake = asyncio.Event()
        self._why: dict[str, None] = {}
        self._recent: deque[float] = deque(maxlen=options.rate)
        self._retry = 0.0
        """Seconds until what failed is tried again, when it failed in the last pass."""
        self._held: Mapping[str, float | None] = {}
        self._held_elsewhere: Mapping[str, float | None] = {}
        self._releasing = False
        self._holds_stamp: tuple[int, ...] | None = None

    # --- from outside ---

    def set_policies(self, policies: tuple[Policy, ...], unread: tuple[str, ...] = ()) -> None:
        """The whole desired state from now on; `unread` are sentences about sources that could not be read."""
        if policies != self.policies or unread != self._unread:
            self.policies, self._unread = policies, unread
            self.wake("policies changed")

    def set_node(self, node: Node) -> None:
        """The node has these labels from now on."""
        if node != self.node:
            self.node = node
            self.wake("the node's labels changed")

    def set_holds(self, until: Mapping[str, float | None]) -> None:
        """Holds beside those in the state directory, in the shape of `holds.active`."""
        if until != self._held_elsewhere:
            self._held_elsewhere = until
            self.wake("holds changed")

    def release(self, asked: bool) -> None:
        """Put back everything, whatever the policies ask and exempt from the brake, until it is not asked any more."""
        if asked != self._releasing:
            self._releasing = asked
            self.wake("release asked" if asked else "release ended")

    def wake(self, why: str) -> None:
        """Ask for a full pass soon."""
        self._why[why] = None
        self._wake.set()

    def overdue(self) -> float:
        """Seconds by which the safety pass is late, counted from two resync times; 0 or less when all is well."""
        return time.monotonic() - self._finished - 2 * self.options.resync

    def check_holds(self) -> None:
        """Notice holds that were set or lifted; a pass is due by itself when one ends."""
        if records.holds_stamp(self.state) != self._holds_stamp:
            self.wake("holds changed")

    async def run(self) -> None:
        """Until cancelled: recover, then a pass whenever there is a reason for one."""
        interrupted = self.transactions.recover()
        if interrupted:
            log.warning(interrupted)
        loop = asyncio.get_running_loop()
        self.reflex.start(loop)
        try:
            while True:
                await self._wait()
                if self._wished is not None:
                    await self._pass_safely()
        finally:
            self.reflex.stop(loop)

    # --- when ---

    async def _wait(self) -> None:
        """Until there is a reason for a pass, and no sooner than the rate allows."""
        try:
            async with asyncio.timeout(self._patience()):
                await self._wake.wait()
        except TimeoutError:
            self._why["it is time"] = None
        if self.last is not None:
            await asyncio.sleep(self._pause())
        self._wake.clear()

    def _pause(self) -> float:
        now = time.monotonic()
        if len(self._recent) == self._recent.maxlen and now - self._recent[0] < 1.0:
            return max(self.options.settle, self._recent[0] + 1.0 - now)
        return self.options.settle

    def _patience(self) -> float | None:
        """Seconds until a pass is due by itself; None before there are policies."""
        if self._wished is None:
            return None
        now, today = time.monotonic(), time.time()
        due = [self.options.resync * random.uniform(0.9, 1.1)]
        attempt = self.fights.next_attempt(now)
        if attempt is not None:
            due.append(attempt - now)
        due += [end - today for end in self._held.values() if end is not None]
        if self.last is not None and _may_pass(self.last):
            due.append(self._retry)
        return max(0.0, min(due))

    # --- one pass ---

    async def _pass_safely(self) -> None:
        why = ", ".join(self._why)
        self._why.clear()
        started = time.perf_counter()
        self._recent.append(time.monotonic())
        try:
            outcome = await self._pass()
        except errors.VirtnetError as error:
            log.error("pass (%s) failed: %s", why, error)
            await asyncio.sleep(self.options.retries[0])
            self.wake("the last pass failed")
            return
        self.passes += 1
        self._finished = time.monotonic()
        self.metrics.pass_seconds.observe(time.perf_counter() - started)
        self._log(outcome, why, time.perf_counter() - started)
        self._after(outcome)
        if not self.looked.is_set():
            self.looked.set()
            asyncio.get_running_loop().call_later(SETTLED_SECONDS, heap.trim)

    async def _pass(self) -> reconcile.Outcome:
        assert self._wished is not None
        wish = reconcile.Wish(self._wished, self.node, self._standing())
        return await reconcile.run(
            self.host, self.ledger, wish, transact=self.transactions, review=self._review, memory=self._memory
        )

    @property
    def _wished(self) -> tuple[Policy, ...] | None:
        """What the host is to be like; None: nobody knows yet."""
        return () if self._releasing else self.policies

    def _standing(self) -> Standing:
        policies = self._wished or ()
        self._holds_stamp = records.holds_stamp(self.state)
        self._held = holds.together(holds.active(self.state), self._held_elsewhere, time.time())
        node, by_link = holds.sentences(self._held)
        allowed = self._releasing or self.options.allow_mass_removal or any(map(holds.allows_mass_removal, policies))
        return Standing(
            held=node,
            held_links=by_link,
            contended=self._named(self.fights.contended(time.monotonic())),
            rolled_back=self.transactions.standing(policies),
            refused=self._refusals,
            allow_mass_removal=allowed,
        )

    def _review(self, look: reconcile.Look, standing: Standing) -> Standing:
        """Count what drifted since the last pass, and let the fast loop go on with what is right already."""
        now = time.monotonic()
        stopped = False
        for setting, policy in drift.drifted(look, self.last):
            self.metrics.detected(setting)
            self.reflex.drifts[policy] += 1
            insist = drift.insists(look.desired, policy)
            stopped |= not self.fights.foreign_change(setting, now, insist=insist)
        self.reflex.install(look, [setting for step in look.plan.steps for setting, _ in step.settings])
        return replace(standing, contended=self._named(self.fights.contended(now))) if stopped else standing

    def _named(self, fights: Mapping[Setting, str]) -> dict[Setting, str]:
        """The sentences about fights, with who the other side may be."""
        self._suspects = {setting: who for setting, who in self._suspects.items() if setting in fights}
        for setting in fights.keys() - self._suspects.keys():
            self._suspects[setting] = ", ".join(self._who(setting))
        return {
            setting: f"{text}; perhaps by {self._suspects[setting]}" if self._suspects[setting] else text
            for setting, text in fights.items()
        }

    def _who(self, setting: Setting) -> tuple[str, ...]:
        links = self.last.last.state.links if self.last else {}
        link = links.get(setting.target) if isinstance(setting.target, int) else None
        return suspects.suspects(link) if link else ()

    # --- after it ---

    def _after(self, outcome: reconcile.Outcome) -> None:
        self._count_repairs(outcome)
        self.reflex.install(outcome.last, outcome.failures.keys())
        self._remember_refusals(outcome)
        first, longest = self.options.retries
        self._retry = min(max(first, self._retry * 2), longest) if _may_pass(outcome) else 0.0
        self.last = replace(outcome, first=outcome.last, applied=())
        self._wait_for_users(outcome)
        self._report(outcome)

    def _wait_for_users(self, outcome: reconcile.Outcome) -> None:
        """Taps tell of their holders' end by an event; the module says nothing when it is let go."""
        if self.exits is None:
            return
        module = outcome.last.state.module
        waits = any(row.reason is Reason.IN_USE and row.subject.startswith("module/") for row in outcome.rows)
        self.exits.watch([user.pid for user in module.users] if module and waits else [])

    def _count_repairs(self, outcome: reconcile.Outcome) -> None:
        left = {setting for step in outcome.last.plan.steps for setting, _ in step.settings} | outcome.last.plan.unmet
        for setting, _ in drift.drifted(outcome.first, self.last):
            if setting not in left:
                self.metrics.repaired(setting)

    def _remember_refusals(self, outcome: reconcile.Outcome) -> None:
        there = outcome.last.state.links
        kept = {
            setting: refusal
            for setting, refusal in {**self._refusals, **outcome.refusals}.items()
            if (setting.target in there or isinstance(setting.target, str)) and _still_wanted(setting, refusal, outcome)
        }
        if kept == self._refusals:
            return
        self._refusals = kept
        known = [
            records.Refusal(setting, there[setting.target].name, refusal.wanted, refusal.answered)
            for setting, refusal in kept.items()
            if isinstance(setting.target, int) and refusal.wanted is not None and not refusal.by_error
        ]
        try:
            records.write_refusals(self.state, self.host.identity(), known)
        except errors.LedgerError as error:
            log.warning("refusals are not kept over a restart: %s", error)

    def _read_refusals(self) -> dict[Setting, Refusal]:
        text = "the driver answered another value when this was set"
        return {
            known.setting: Refusal(known.wanted, known.observed, Reason.REFUSED, text)
            for known in records.read_refusals(self.state, self.host.identity())
        }

    def rows(self, outcome: reconcile.Outcome) -> tuple[Row, ...]:
        """Everything that is not as asked, with what is repaired again and again."""
        return (*outcome.rows, *_disputed(outcome, self._named(self.fights.disputed(time.monotonic()))))

    def _report(self, outcome: reconcile.Outcome) -> None:
        rows = self.rows(outcome)
        self.metrics.blocked(report.summary(rows))
        self.metrics.contended.set(sum(row.reason is Reason.CONTENDED for row in rows))
        self.metrics.policies.set(len(outcome.last.desired.policies))
        self.metrics.admitted({name: policy.generation for name, policy in outcome.last.desired.policies.items()})
        held, held_links = holds.sentences(self._held)
        self.metrics.held.set(len(self._held))
        status = report.node_state(
            outcome.last.desired,
            outcome.last.state,
            rows,
            now=timestamp(),
            previous=self.status or self._earlier,
            agent=self.agent,
            held=held,
            held_links=held_links,
            drifts=self.reflex.drifts,
            released=report.is_empty(self.ledger.recorded) if self._releasing else None,
            policies_unread=() if self._releasing else self._unread,
            dropping=self._watch_drops(outcome.last),
        )
        if status != self.status:
            self.status = status
            if self.on_status is not None:
                self.on_status(status)

    def _watch_drops(self, look: reconcile.Look) -> frozenset[int]:
        """Which taps drop what is for their guests; a guest whose vhost may be the reason is named once."""
        dropping = self._drops.look(look.state.drops, time.monotonic())
        overrun = running.overrun(look.desired.policies.values(), look.state, dropping)
        for nic in overrun:
            if nic.tap.ifindex not in self._advised:
                log.warning("%s (%s): %s", nic.identity.subject, nic.tap.name, nic.evidence.sentence + running.OVERRUN)
        self._advised = {nic.tap.ifindex for nic in overrun}
        return dropping

    def _log(self, outcome: reconcile.Outcome, why: str, seconds: float) -> None:
        for row in outcome.applied:
            log.info("%s %s: %s (policy %s)", row.subject, row.setting, row.message, row.policy)
        before = set(self.last.rows) if self.last else set()
        for row in outcome.rows:
            if row not in before and row.reason not in DONE:
                level = logging.WARNING if report.failing(row) else logging.INFO
                log.log(
                    level, "%s %s: %s: %s (policy %s)", row.subject, row.setting, row.reason, row.message, row.policy
                )
        log.debug(
            "pass (%s): %d applied, %d not as asked, %.1f ms",
            why,
            len(outcome.applied),
            len(outcome.rows),
            seconds * 1000,
        )


def timestamp() -> str:
    """The present time as RFC 3339, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _may_pass(outcome: reconcile.Outcome) -> bool:
    """Whether something failed that may work when it is simply tried again."""
    return bool(outcome.ledger_error) or any(reason is Reason.FAILED for reason, _ in outcome.failures.values())


def _still_wanted(setting: Setting, refusal: Refusal, outcome: reconcile.Outcome) -> bool:
    """A refusal is forgotten as soon as the setting is no longer as the driver left it."""
    if isinstance(setting.target, str):
        return setting in outcome.refusals or setting in outcome.last.plan.unmet
    current: object = link_rules.current_value(
        outcome.last.state, outcome.last.state.links[setting.target], setting.key
    )
    return current == refusal.answered and refusal.wanted != refusal.answered


def _disputed(outcome: reconcile.Outcome, disputed: Mapping[Setting, str]) -> tuple[Row, ...]:
    """Rows for settings that are as asked only because they are put back all the time."""
    rows = []
    for setting, text in disputed.items():
        managed = outcome.last.plan.guests.get(str(setting.target)) if setting.is_guests else None
        wish = managed.wanted.wishes.get(setting.key) if managed else None
        if managed is not None and wish is not None:
            subject = managed.identity.subject
            rows.append(Row(subject, wish.path, wish.value, wish.value, Reason.CONTENDED, text, wish.policy))
        link = outcome.last.state.links.get(setting.target) if isinstance(setting.target, int) else None
        want = outcome.last.desired.links.get(setting.target) if isinstance(setting.target, int) else None
        if link is None or want is None:
            continue
        for policy, path, wanted in _asked(want, setting):
            rows.append(Row(f"link/{link.name}", path, wanted, wanted, Reason.CONTENDED, text, policy))
    return tuple(rows)


def _asked(want: Any, setting: Setting) -> list[tuple[str, str, Value]]:
    attr = want.attr(setting.key)
    if attr is not None:
        return [(attr.policy, attr.path, attr.value)]
    table = want.features
    if table is None:
        return []
    name = setting.key.removeprefix("feature:")
    bit = 1 << table.names.index(name) if name in table.names else 0
    return [(ask.policy, ask.path, ask.wanted) for ask in table.asks if ask.won & bit]
