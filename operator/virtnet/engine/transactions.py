"""Changes that can cut the node off: made together, proven by probes, and all put back when a probe fails.

    baseline    the probes that work before; the others are not held against the change and cost no waiting
    written     what undoes the transaction is on disk before its first change
    confirmed   every baseline probe works within safety.timeoutSeconds, or everything goes back
    stopped     cancelled in the middle: put back at once; killed: put back at the next start

A policy whose transaction went back is left alone until its version changes or somebody calls `forgive`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from virtnet import errors
from virtnet.core import inverse
from virtnet.core.model import Change, CreateBridge, CreateTap, Interest, Link, Policy, Reason, Safety, Step
from virtnet.host import records
from virtnet.host.probes import Probe
from virtnet.host.state import StateDir
from virtnet.reconcile import Failures, Host, Ledger, Look, carry_out, obstacle_of

log = logging.getLogger(__name__)

BASELINE_SECONDS = 1.0
CARRIER_POLL_SECONDS = 0.05
REMOVED = "removed"
"""The version of a policy that is gone, for what is put back after its end."""


class Prober(Protocol):
    """Asks whether the node is still reachable."""

    def probes(self, safety: Safety) -> tuple[Probe, ...]: ...

    async def working(self, probes: Iterable[Probe], within: float) -> frozenset[Probe]: ...

    async def confirm(self, probes: Iterable[Probe], within: float) -> Mapping[Probe, str]: ...


@dataclass
class Transactions:
    """Runs the risky steps of one policy at a time (`reconcile.Transact`), and remembers which went back."""

    host: Host
    ledger: Ledger
    state: StateDir
    prober: Prober

    def __post_init__(self) -> None:
        self.rolled_back: dict[str, records.RolledBack] = dict(records.read_rolled_back(self.state))

    # --- what went back before ---

    def standing(self, policies: Iterable[Policy]) -> dict[tuple[str, str], str]:
        """(link name, key) -> why it is not tried again, for the versions of the policies that are in force.

        What another version did is forgotten: whoever comes back to the earlier one asks for it anew.
        """
        versions = {policy.name: policy.version for policy in policies}
        self.rolled_back = {
            name: went_back
            for name, went_back in self.rolled_back.items()
            if versions.get(name, REMOVED) == went_back.version
        }
        found: dict[tuple[str, str], str] = {}
        for went_back in self.rolled_back.values():
            found |= dict.fromkeys(went_back.settings, went_back.message)
        return found

    def forgive(self) -> None:
        """Somebody asked to try again: `virtnet apply`."""
        if self.rolled_back:
            self.rolled_back.clear()
            records.write_rolled_back(self.state, {})

    def recover(self) -> str | None:
        """Undo a transaction that a kill interrupted; the sentence about it, or None when there was none."""
        pending = records.read_pending(self.state)
        if pending is None:
            return None
        if pending.identity == self.host.identity():
            failed = self._undo(pending.inverse)
            text = f"interrupted by the end of the process and put back{failed}"
            self._remember(pending, text)
        else:
            text = "interrupted by a reboot: nothing of it is left"
        self._forget(pending)
        return f"transaction of policy {pending.policy}: {text}"

    # --- one transaction ---

    async def __call__(self, policy: str, steps: list[Step], look: Look) -> Failures:
        known = look.desired.policies.get(policy)
        safety = known.safety if known else Safety()
        if not safety.rollback:
            return await self._make_all(steps, safety, None)
        pending = self._pending(policy, known.version if known else REMOVED, steps, look)
        try:
            probes = self.prober.probes(safety)
            baseline = await self.prober.working(probes, min(BASELINE_SECONDS, safety.timeout_seconds))
            records.write_pending(self.state, pending)
        except errors.LedgerError as error:
            return _not_begun(steps, f"what would undo it cannot be recorded: {error}")
        except errors.HostError as error:
            return _not_begun(steps, f"what the node can reach cannot be known: {error}")
        return await self._guarded(steps, safety, pending, baseline)

    async def _guarded(
        self, steps: list[Step], safety: Safety, pending: records.Pending, baseline: frozenset[Probe]
    ) -> Failures:
        started = time.monotonic()
        try:
            failures = await self._make_all(steps, safety, started + safety.timeout_seconds)
            left = max(0.0, started + safety.timeout_seconds - time.monotonic())
            lost = await self.prober.confirm(baseline, left) if baseline else {}
        except asyncio.CancelledError:
            self._roll_back(pending, "interrupted by a stop and put back")
            raise
        except BaseException:
            self._roll_back(pending, "interrupted by an error and put back")
            raise
        if not lost:
            self._forget(pending)
            return failures
        text = "; ".join(f"{probe}: {why}" for probe, why in lost.items())
        message = f"put back because the node lost its way: {text}"
        self._roll_back(pending, message)
        return {setting: (Reason.ROLLED_BACK, message) for step in steps for setting, _ in step.settings}

    def _pending(self, policy: str, version: str, steps: list[Step], look: Look) -> records.Pending:
        undo: list[Change] = []
        settings = []
        for step in steps:
            undo[:0] = inverse.inverse(step.change, look.state)
            name = step.change.link.name if hasattr(step.change, "link") else step.rows[0].subject.partition("/")[2]
            settings += [(name, setting.key) for setting, _ in step.settings]
        return records.Pending(policy, version, self.host.identity(), tuple(settings), tuple(undo))

    async def _make_all(self, steps: list[Step], safety: Safety, deadline: float | None) -> Failures:
        """Makes every step; one that fails does not stop the others."""
        failures = {}
        for step in steps:
            try:
                await carry_out(self.host, step.change)
            except errors.Gone:
                continue
            except errors.HostError as error:
                failures.update(dict.fromkeys((setting for setting, _ in step.settings), obstacle_of(error)))
                continue
            if step.wait_carrier:
                await self._carrier(step, deadline or time.monotonic() + safety.timeout_seconds)
        return failures

    async def _carrier(self, step: Step, deadline: float) -> None:
        """Wait until the changed link has its carrier again, so that a bond never loses two slaves at once."""
        target = step.settings[0][0].target
        while time.monotonic() < deadline:
            link: Link | None = self.host.observe(Interest()).links.get(target) if isinstance(target, int) else None
            if link is None or link.carrier:
                return
            await asyncio.sleep(CARRIER_POLL_SECONDS)

    # --- going back ---

    def _roll_back(self, pending: records.Pending, message: str) -> None:
        """Everything goes back, and it is on disk that it did before the transaction is forgotten."""
        failed = self._undo(pending.inverse)
        self._remember(pending, message + failed)
        self._forget(pending)
        log.warning("transaction of policy %s: %s%s", pending.policy, message, failed)

    def _forget(self, pending: records.Pending) -> None:
        """On a disk that refuses this, the next start puts a transaction back that was good: it is said, no more."""
        try:
            records.forget_pending(self.state)
        except errors.LedgerError as error:
            log.error("cannot record that the transaction of policy %s is over: %s", pending.policy, error)

    def _undo(self, changes: Iterable[Change]) -> str:
        """Makes the inverse changes; what could not be made, as the end of a sentence."""
        failed = []
        for change in changes:
            try:
                self.host.apply(change)
                self._made_again(change)
            except errors.Gone:
                continue
            except errors.VirtnetError as error:
                failed.append(str(error))
        return f" (not put back: {'; '.join(failed)})" if failed else ""

    def _made_again(self, change: Change) -> None:
        """A link of ours that was removed and made again has another ifindex: it is still ours."""
        if isinstance(change, CreateBridge | CreateTap):
            made = self.ledger.recorded.made.get(change.name)
            if made is not None:
                self.ledger.record_made(replace(made, ifindex=0))

    def _remember(self, pending: records.Pending, message: str) -> None:
        known = self.rolled_back.get(pending.policy)
        earlier = known.settings if known is not None and known.version == pending.version else ()
        settings = tuple(dict.fromkeys((*earlier, *pending.settings)))
        boot = pending.identity.boot_id
        self.rolled_back[pending.policy] = records.RolledBack(pending.version, message, settings, boot)
        try:
            records.write_rolled_back(self.state, self.rolled_back)
        except errors.LedgerError as error:
            log.error("cannot record that the transaction of policy %s was put back: %s", pending.policy, error)


def _not_begun(steps: Iterable[Step], why: str) -> Failures:
    return {setting: (Reason.FAILED, f"not begun: {why}") for step in steps for setting, _ in step.settings}
