"""Which steps of a plan undo a foreign change: those for settings that were as wanted at the end of the pass before."""

from __future__ import annotations

from collections.abc import Iterator

from virtnet.core import domains, replugs
from virtnet.core import features as feature_names
from virtnet.core.model import OnContention, Setting, Value
from virtnet.core.resolve import Desired
from virtnet.reconcile import Look, Outcome


def drifted(now: Look, before: Outcome | None) -> Iterator[tuple[Setting, str]]:
    """(setting, owning policy) for every verified setting that somebody changed since; a policy edit is none."""
    if before is None:
        return
    unverified = before.last.plan.unmet | {setting for step in before.last.plan.steps for setting, _ in step.settings}
    for step in now.plan.steps:
        if step.restores:
            continue
        for setting, value in step.settings:
            if setting not in unverified and _was_wanted(before.last, setting, value):
                yield setting, step.policy


def _was_wanted(before: Look, setting: Setting, value: Value | None) -> bool:
    target, key = setting
    desired = before.desired
    if setting.is_guests:
        managed = before.plan.guests.get(str(target))
        if key == replugs.KEY:
            return managed is not None and domains.runs_as_wanted(managed)
        wish = managed.wanted.wishes.get(key) if managed else None
        return wish is not None and wish.value == value
    if isinstance(target, str):
        if key == "exists":
            return any(creation.name == target for creation in desired.creations)
        module = desired.module
        return module is not None and (key != "state" or str(module.state) == value)
    want = desired.links.get(target)
    if want is None:
        return False
    if key.startswith("feature:"):
        table = want.features
        bit = feature_names.mask_of((key.removeprefix("feature:"),), table.names) if table else 0
        return table is not None and bool(table.care & bit) and bool(table.value & bit) == value
    attr = want.attr(key)
    return attr is not None and attr.value == value


def insists(desired: Desired, policy: str) -> bool:
    """Whether a policy goes on repairing whatever happens."""
    known = desired.policies.get(policy)
    return known is not None and known.on_contention is OnContention.INSIST


def surface(setting: Setting) -> str:
    """The metric label for where a setting is: link, module or guest."""
    if setting.is_guests:
        return "guest"
    return "link" if isinstance(setting.target, int) or setting.key == "exists" else "module"
