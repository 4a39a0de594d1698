"""One pass over a host: observe, plan, apply, observe again; only the last look is reported.

It says what a host and a ledger must be able to do, and holds the order of things: what the ledger must know is written
before anything is changed, a change that fails never stops the others, and a plan is carried out in rounds because a
bridge has to exist before it can have ports. It keeps nothing between passes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Protocol

from virtnet import errors
from virtnet.core import domains, links, modules, resolve, running
from virtnet.core import plan as planning
from virtnet.core.model import (
    DONE,
    Change,
    CreateBridge,
    CreateTap,
    Deletion,
    Entry,
    GuestChange,
    HostState,
    Identity,
    Interest,
    Link,
    LoadModule,
    Made,
    Node,
    Policy,
    Reason,
    Recorded,
    Row,
    Setting,
    Step,
    UnloadModule,
    Unreadable,
    Value,
)
from virtnet.core.plan import Plan
from virtnet.core.resolve import Desired
from virtnet.core.standing import Obstacle, Refusal, Standing
from virtnet.values import frozen

ROUNDS = 5
"""A bridge, its options, its ports, what their arrival changed, and one to spare."""


class Host(Protocol):
    """The machine. Every change can be made twice; removing the absent is success."""

    def identity(self) -> Identity: ...

    def observe(self, interest: Interest) -> HostState:
        """Read what is there now. What cannot be read is `Unreadable`, never absent.

        Objects of links and features that did not change since the last look are the same objects (`is`).
        """

    def apply(self, change: Change) -> None:
        """Make one change, or raise a `virtnet.errors.HostError` that says why not. Never does more than was asked."""

    def apply_all(self, changes: Sequence[Change]) -> Sequence[errors.HostError | None]:
        """Make changes in this order as `apply` does, whatever fails in between; for each, why not, or None."""


class Ledger(Protocol):
    """What we changed and what was there before. Every method raises `LedgerError` when it cannot be written."""

    @property
    def recorded(self) -> Recorded:
        """A live read-only view."""

    def record(self, link: Link | None, entries: Iterable[Entry]) -> None:
        """Remember originals before the first change, or a new `wanted`, `policy` or `deletion` of known ones.

        An original that is already held is never overwritten. `link` is None for entries of the module and of guests.
        """

    def record_links(self, originals: Sequence[tuple[Link, Sequence[Entry]]]) -> None:
        """Like `record` for each of them, but all or nothing. A link may come more than once."""

    def forget(self, settings: Iterable[Setting]) -> None:
        """These are no longer ours (restored, retained or skipped)."""

    def follow(self, link: Link) -> None:
        """A link was renamed: keep its entries under the new name."""

    def drop_link(self, ifindex: int) -> None:
        """A link is gone: so are its entries."""

    def record_made(self, made: Made) -> None:
        """We are about to make (`ifindex` 0) or have made this link. On disk, fsynced, before it returns."""

    def forget_made(self, name: str) -> None: ...


Failures = Mapping[Setting, Obstacle]
"""Why settings could not be set, as (reason, sentence)."""


@frozen
class Look:
    """One look and what follows from it."""

    state: HostState
    desired: Desired
    plan: Plan


Transact = Callable[[str, list[Step], Look], Awaitable[Failures]]
"""Carries out the risky steps of one policy, all or nothing, and says what failed."""

Review = Callable[[Look, Standing], Standing]
"""Sees the first look of a pass before anything is changed; may say that more stands in the way."""


@frozen
class Wish:
    """What a pass is for."""

    policies: tuple[Policy, ...]
    node: Node
    standing: Standing = planning.NOTHING_STANDS


@frozen
class Outcome:
    """What a pass found and did. `rows` is everything that is not as asked, from the second look.

    `applied` are the rows of steps that were carried out and are as asked now. `failures` are errors of this pass;
    `refusals` are values that the driver answered differently. `first` is the look before any change.
    """

    first: Look
    last: Look
    rows: tuple[Row, ...]
    applied: tuple[Row, ...] = ()
    failures: Failures = field(default_factory=dict)
    refusals: Mapping[Setting, Refusal] = field(default_factory=dict)
    ledger_error: str = ""

    @property
    def complete(self) -> bool:
        """Whether everything is as asked; what only an Audit or a lost conflict leaves does not count."""
        return all(row.reason in DONE | {Reason.AUDIT_ONLY, Reason.OVERRIDDEN_BY} for row in self.rows)


@dataclass
class Memory:
    """What lets a look at a host that did not change be quick; it may be thrown away at any time."""

    resolution: resolve.Memory = field(default_factory=resolve.Memory)
    plan: planning.Memory = field(default_factory=planning.Memory)


def look(host: Host, recorded: Recorded, wish: Wish, memory: Memory | None = None) -> Look:
    """Observe, resolve and plan; walks /proc only when the plan has to name who is in the way."""
    memory = memory or Memory()
    interest = _interest(wish.policies, recorded)
    found = _look(host, recorded, wish, interest, memory)
    if any(row.reason is Reason.IN_USE for row in found.plan.blocked):
        found = _look(host, recorded, wish, replace(interest, users=True), memory)
    return found


def _look(host: Host, recorded: Recorded, wish: Wish, interest: Interest, memory: Memory) -> Look:
    state = host.observe(interest)
    desired = resolve.resolve(wish.policies, wish.node, state, memory.resolution)
    return Look(state, desired, planning.make_plan(desired, state, recorded, wish.standing, memory.plan))


def _interest(policies: tuple[Policy, ...], recorded: Recorded) -> Interest:
    """What the policies need, and what putting back what the ledger holds needs."""
    asked = resolve.interest(policies)
    held = {key.partition(".")[0] for record in recorded.links.values() for key in record.entries}
    return replace(
        asked,
        rings=asked.rings or "rings" in held,
        channels=asked.channels or "channels" in held,
        rx_frames=asked.rx_frames or "rxFrames" in held,
        addresses=asked.addresses or any(made.kind == "bridge" for made in recorded.made.values()),
        module=asked.module or bool(recorded.module),
        guests=any(map(domains.asks, policies)) or bool(recorded.guests),
        running=any(map(running.asks, policies)),
        fingerprint=True,
    )


async def run(
    host: Host,
    ledger: Ledger,
    wish: Wish,
    *,
    transact: Transact | None = None,
    review: Review | None = None,
    memory: Memory | None = None,
) -> Outcome:
    """One pass. Raises nothing of the host's: what cannot be done is in the outcome."""
    work = _Pass(host, ledger, wish, transact, memory or Memory())
    return await work.run(review)


class _Pass:
    """The state of one pass: what was tried, and what came of it."""

    def __init__(self, host: Host, ledger: Ledger, wish: Wish, transact: Transact | None, memory: Memory) -> None:
        self.host, self.ledger, self.wish, self.memory = host, ledger, wish, memory
        self.transact = transact or self._without_transaction
        self.tried: dict[Setting, Value | None] = {}
        self.rows: list[Row] = []
        self.skipped: dict[Row, None] = {}
        self.failures: dict[Setting, Obstacle] = {}
        self.ledger_error = ""

    async def run(self, review: Review | None) -> Outcome:
        first = self._look()
        if review is not None:
            standing = review(first, self.wish.standing)
            if standing is not self.wish.standing:
                self.wish = replace(self.wish, standing=standing)
                first = self._look()
        last = first
        for _ in range(ROUNDS):
            last = self._keep_books(last)
            fresh = [step for step in last.plan.steps if not self._was_tried(step)]
            if not fresh:
                break
            await self._carry_out(fresh, last)
            last = self._look()
        else:
            last = self._keep_books(last)
        return self._outcome(first, last)

    def _look(self) -> Look:
        return look(self.host, self.ledger.recorded, self.wish, self.memory)

    def _was_tried(self, step: Step) -> bool:
        return all(setting in self.tried and self.tried[setting] == value for setting, value in step.settings)

    # --- the ledger ---

    def _keep_books(self, now: Look) -> Look:
        """Write down what the plan needs written; plans again when something could not be."""
        plan = now.plan
        self.skipped |= dict.fromkeys(plan.skipped)
        try:
            self._forget(plan)
        except errors.LedgerError as error:
            self.ledger_error = str(error)
        unrecorded = self._record(plan)
        self._adopt(now.state)
        missing = {setting: text for setting, text in unrecorded.items() if not self._is_recorded(setting)}
        if missing.keys() <= self.wish.standing.unrecorded.keys():
            return now
        self.wish = replace(self.wish, standing=replace(self.wish.standing, unrecorded=missing))
        return self._look()

    def _record(self, plan: Plan) -> Mapping[Setting, str]:
        """Write the plan's originals down, those of all links at once; what could not be written, and why."""
        durable = [entry for link, entries in plan.originals if link is None for entry in entries]
        on_links = [(link, entries) for link, entries in plan.originals if link is not None]
        unwritten: list[tuple[Entry, errors.LedgerError]] = []
        try:
            if durable:
                self.ledger.record(None, durable)
        except errors.LedgerError as error:
            unwritten += [(entry, error) for entry in durable]
        try:
            if on_links:
                self.ledger.record_links(on_links)
        except errors.LedgerError as error:
            unwritten += [(entry, error) for _, entries in on_links for entry in entries]
        if unwritten:
            self.ledger_error = str(unwritten[-1][1])
        return {entry.setting: f"cannot record the original: {error}" for entry, error in unwritten}

    def _forget(self, plan: Plan) -> None:
        for ifindex in plan.gone:
            self.ledger.drop_link(ifindex)
        for link in plan.renamed:
            self.ledger.follow(link)
        if plan.forget:
            self.ledger.forget(plan.forget)
        for name in plan.forget_made:
            self.ledger.forget_made(name)

    def _is_recorded(self, setting: Setting) -> bool:
        recorded = self.ledger.recorded
        if isinstance(setting.target, int):
            record = recorded.links.get(setting.target)
            return record is not None and setting.key in record.entries
        return setting in recorded.guests if setting.is_guests else setting.key in recorded.module

    def _adopt(self, state: HostState) -> None:
        """Write down the ifindex of what we made since the last look."""
        unknown = [made for made in self.ledger.recorded.made.values() if not made.ifindex]
        for made in unknown:
            link = state.by_name(made.name)
            if link is not None and made.is_it(link):
                try:
                    self.ledger.record_made(replace(made, ifindex=link.ifindex))
                except errors.LedgerError as error:
                    self.ledger_error = str(error)

    # --- changes ---

    async def _carry_out(self, steps: list[Step], now: Look) -> None:
        for policy, risky, group in _groups(steps):
            for step in group:
                self.tried.update(step.settings)
            failures = await (self.transact(policy, group, now) if risky else self._plainly(group, now))
            self.failures.update(failures)
            self.rows += [row for step in group for row in step.rows]

    async def _without_transaction(self, _: str, steps: list[Step], now: Look) -> Failures:
        return await self._plainly(steps, now)

    async def _plainly(self, steps: list[Step], now: Look) -> Failures:
        failures: dict[Setting, Obstacle] = {}
        for alone, group in groupby(steps, _is_made_alone):
            some = list(group)
            for step, error in zip(some, await self._make_some(some, now.desired, alone=alone), strict=True):
                if isinstance(error, errors.Gone):
                    self._try_again(step)
                elif error is not None:
                    failures |= dict.fromkeys((setting for setting, _ in step.settings), obstacle_of(error))
        return failures

    async def _make_some(
        self, steps: list[Step], desired: Desired, *, alone: bool
    ) -> Sequence[errors.VirtnetError | None]:
        if alone:
            return [await self._make(step, desired) for step in steps]
        return self.host.apply_all([step.change for step in steps])

    def _try_again(self, step: Step) -> None:
        """What a step named is gone or has another name: the next look says which, and may plan it anew."""
        for setting, _ in step.settings:
            self.tried.pop(setting, None)

    async def _make(self, step: Step, desired: Desired) -> errors.VirtnetError | None:
        try:
            if isinstance(step.change, CreateBridge | CreateTap):
                self._announce(step.change, step.policy, desired)
            await carry_out(self.host, step.change)
        except errors.LedgerError as error:
            self.ledger_error = str(error)
            return error
        except errors.HostError as error:
            if isinstance(step.change, CreateBridge | CreateTap) and not error.retry:
                self._was_not_made(step.change.name)
            return error
        return None

    def _announce(self, change: CreateBridge | CreateTap, owner: str, desired: Desired) -> None:
        policy = desired.policies.get(owner)
        deletion = policy.deletion if policy else Deletion.RESTORE
        kind = "bridge" if isinstance(change, CreateBridge) else "tap"
        self.ledger.record_made(Made(change.name, 0, kind, owner, deletion))

    def _was_not_made(self, name: str) -> None:
        """Only after a plain no: when the answer was lost the link may be there, and the next look will tell."""
        try:
            self.ledger.forget_made(name)
        except errors.LedgerError as error:
            self.ledger_error = str(error)

    # --- what came of it ---

    def _outcome(self, first: Look, last: Look) -> Outcome:
        rows = [*last.plan.blocked, *self.skipped]
        refusals: dict[Setting, Refusal] = {}
        for step in last.plan.steps:
            rows += self._leftover(step, last.state, refusals)
        self._note_answers(refusals, last.state)
        left = {(row.subject, row.setting, row.policy) for row in rows}
        applied = tuple(
            dict.fromkeys(
                _applied(row) for row in self.rows if not left or (row.subject, row.setting, row.policy) not in left
            )
        )
        return Outcome(first, last, tuple(rows), applied, self.failures, refusals, self.ledger_error)

    def _note_answers(self, refusals: Mapping[Setting, Refusal], state: HostState) -> None:
        """What the driver made of a value is what we set: else nobody would put the original back in its place."""
        for setting, refusal in refusals.items():
            record = self.ledger.recorded.links.get(setting.target) if isinstance(setting.target, int) else None
            entry = record.entries.get(setting.key) if record else None
            if record is None or entry is None or refusal.answered in (None, entry.wanted):
                continue
            try:
                self.ledger.record(state.links[record.ifindex], (replace(entry, wanted=refusal.answered),))
            except errors.LedgerError as error:
                self.ledger_error = str(error)

    def _leftover(self, step: Step, state: HostState, refusals: dict[Setting, Refusal]) -> list[Row]:
        """The rows of a step that is still to be made after it was tried."""
        failure = next((self.failures[setting] for setting, _ in step.settings if setting in self.failures), None)
        if failure is None and not self._was_tried(step):
            failure = (Reason.FAILED, f"not settled after {ROUNDS} rounds; it is tried again at the next pass")
        if failure is None and all(setting.key.startswith(ROUNDED) for setting, _ in step.settings):
            failure = (Reason.REFUSED, "the driver answered another value")
        if failure is None:
            failure = (Reason.FAILED, "was changed again right after it was set")
        reason, text = failure
        if reason in FINAL:
            for setting, wanted in step.settings:
                refused = setting in self.failures
                refusals[setting] = Refusal(wanted, _current(state, setting), reason, text, by_error=refused)
        return [replace(row, reason=reason, message=text) for row in step.rows]


FINAL = frozenset({Reason.REFUSED, Reason.UNSUPPORTED})
"""Failures that the same request would meet again."""

ROUNDED = ("rings.", "channels.", "rxFrames", "bridge.forwardDelaySeconds", "bridge.ageingTimeSeconds")
"""Keys whose value drivers and kernel may round without an error."""


def _applied(row: Row) -> Row:
    """Spelled out: dataclasses.replace costs five times as much, and a first apply has thousands."""
    return Row(row.subject, row.setting, row.wanted, row.actual, Reason.APPLIED, row.message, row.policy)


def _current(state: HostState, setting: Setting) -> Value | None:
    """What a setting is in this look; None also where it cannot be read."""
    if setting.is_guests:
        return domains.value(state, setting)
    if isinstance(setting.target, str):
        return modules.value(state.module, setting.key) if state.module else None
    link = state.links.get(setting.target)
    value = links.current_value(state, link, setting.key) if link else None
    return None if isinstance(value, Unreadable) else value


def _groups(steps: list[Step]) -> list[tuple[str, bool, list[Step]]]:
    """Runs of plain steps, and one transaction for each policy (what it puts back apart), in order of first mention."""
    groups: list[tuple[str, bool, list[Step]]] = []
    transactions: dict[tuple[str, bool], list[Step]] = {}
    for step in steps:
        if step.risky:
            key = (step.policy, step.restores)
            if key not in transactions:
                transactions[key] = []
                groups.append((step.policy, True, transactions[key]))
            transactions[key].append(step)
        elif groups and not groups[-1][1]:
            groups[-1][2].append(step)
        else:
            groups.append((step.policy, False, [step]))
    return groups


def _is_made_alone(step: Step) -> bool:
    """Whether more belongs to this change than to make it: the ledger's announcement, or somebody who is waited for."""
    return isinstance(step.change, CreateBridge | CreateTap | LoadModule | UnloadModule | GuestChange)


async def carry_out(host: Host, change: Change) -> None:
    """Make one change; those that wait for a program or for libvirt do so off the loop's thread."""
    if isinstance(change, LoadModule | UnloadModule | GuestChange):
        await asyncio.to_thread(host.apply, change)
    else:
        host.apply(change)


_REASONS: Mapping[type[errors.VirtnetError], Reason] = {
    errors.Refused: Reason.REFUSED,
    errors.NotPermitted: Reason.REFUSED,
    errors.NotSupported: Reason.UNSUPPORTED,
    errors.InUse: Reason.IN_USE,
}


def obstacle_of(error: errors.VirtnetError) -> Obstacle:
    """The reason that a user is told for an error."""
    return _REASONS.get(type(error), Reason.FAILED), str(error)
