"""Decides when a running guest's NIC is taken out and put in otherwise, and what becomes of one that is on its way.

A guest is asked once for each version of a policy, one guest at a time on a node, and not before the definition is as
wanted: whatever goes wrong, its next start is right. What has happened is never remembered as a sequence: `decide`
looks at whether the NIC is in, and brings back one that is not, whoever took it out and whenever.

    the NIC is          LEAVING, INTERRUPTED, LATE        RECALLED       RETURNING          PUT_BACK
    of another run      forget                            forget         forget             keep
    in, as wanted       forget: done                      wait           it is put back     keep
    in, as it was       wait for the guest                wait           it is put back     keep
    out                 put in as wanted                  put in former  put in former      keep
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from enum import Enum, auto

from virtnet.core import domains, nics
from virtnet.core.domains import Findings, Managed
from virtnet.core.model import (
    GuestNic,
    GuestUpdate,
    HostState,
    LeaveReplug,
    Policy,
    Reason,
    Replug,
    ReplugGuestNic,
    ReplugStage,
    Row,
    Setting,
    Step,
    Value,
)
from virtnet.core.nics import Wish
from virtnet.core.standing import Obstacle, Standing
from virtnet.values import frozen

KEY = "guest.update"

ON_ITS_WAY = frozenset({ReplugStage.LEAVING, ReplugStage.RETURNING})
FORWARD = frozenset({ReplugStage.LEAVING, ReplugStage.INTERRUPTED, ReplugStage.LATE})
"""The stages in which a NIC that comes out goes in as wanted."""

ASKED = "the definition is as asked, and the running guest was asked to let go of the NIC, to get it back like that"
UNATTENDED = (
    "the definition is as asked; an agent would re-plug the running guest's NIC. A command that is run once does not: "
    "nobody would be there when the guest lets go of it late"
)
OVERDUE = "the guest did not let go of its NIC in {seconds} seconds"
REFUSED = "the guest refused to let go of its NIC"
LATER = "it gets it as asked when it does after all, or with its next start"
PENDING = (
    "the guest was asked to let go of this NIC, nobody wants that any more, and it cannot be taken back before the "
    "guest's next start: if it lets go, an agent puts the NIC in again as it was"
)


# --- one that is on its way --------------------------------------------------------------------------------


@frozen
class Seen:
    """One look at the guest. `run` is "" when it does not run; `settings` of the NIC, None when it is not in."""

    run: str
    settings: Mapping[str, Value] | None = None


class Act(Enum):
    WAIT = auto()  # nothing is to be done before something happens
    PUT_IN = auto()  # attach it as wanted
    PUT_BACK = auto()  # attach it as it was
    SETTLE = auto()  # it is in again as it was: remember that, or be done
    FORGET = auto()


def decide(replug: Replug, seen: Seen) -> Act:
    """What is to be done now."""
    if replug.stage is ReplugStage.PUT_BACK:
        return Act.WAIT
    if seen.run != replug.run:
        return Act.FORGET
    if seen.settings is None:
        return Act.PUT_IN if replug.stage in FORWARD else Act.PUT_BACK
    if replug.stage is ReplugStage.RETURNING:
        return Act.SETTLE
    if replug.stage in FORWARD and is_as_wanted(replug, seen.settings):
        return Act.FORGET
    return Act.WAIT


def is_as_wanted(replug: Replug, settings: Mapping[str, Value]) -> bool:
    return all(domains.runs_with(settings, path) == value for path, value in replug.values)


def resumed(replug: Replug) -> Replug:
    """As a new process finds it: nobody waits for an answer any more."""
    return replace(replug, stage=ReplugStage.INTERRUPTED) if replug.stage is ReplugStage.LEAVING else replug


def unanswered(replug: Replug, why: str) -> Replug:
    """The guest keeps its NIC, for now."""
    return replace(replug, stage=ReplugStage.LATE, message=why) if replug.stage is ReplugStage.LEAVING else replug


def not_put_in(replug: Replug, why: str) -> Replug:
    """It is out and was refused as wanted."""
    return replace(replug, stage=ReplugStage.RETURNING, message=f"put back as it was, because {why}")


def not_put_back(replug: Replug, why: str) -> Replug:
    """It is out and was refused even as it was."""
    return replace(replug, trouble=why)


def put_in(replug: Replug, seen: Seen) -> Replug | None:
    """libvirt took it as wanted: done (None), or it dropped a setting without a word, which it would do again."""
    if seen.run != replug.run or seen.settings is None or is_as_wanted(replug, seen.settings):
        return None
    dropped = ", ".join(path for path, _ in replug.values)
    return replace(replug, stage=ReplugStage.PUT_BACK, message=f"put in again, but not with all of {dropped}")


def settled(replug: Replug) -> Replug | None:
    """It is in again as it was; without anything to remember when nobody wanted it any more."""
    if replug.stage is ReplugStage.RECALLED:
        return None
    return replace(replug, stage=ReplugStage.PUT_BACK, trouble="")


def left(replug: Replug) -> Replug | None:
    """Nobody wants it any more: the guest may let go of the NIC all the same."""
    if replug.stage in FORWARD or replug.stage is ReplugStage.RECALLED:
        return replace(replug, stage=ReplugStage.RECALLED)
    return replug if replug.stage is ReplugStage.RETURNING else None


def forgiven(replug: Replug) -> Replug | None:
    """Somebody asked to try again."""
    if replug.stage is ReplugStage.PUT_BACK:
        return None
    return replace(replug, stage=ReplugStage.INTERRUPTED) if replug.stage is ReplugStage.LATE else replug


# --- what there is to begin, to say and to leave -----------------------------------------------------------


def find(found: Findings, policies: Mapping[str, Policy], state: HostState, standing: Standing) -> None:
    """Add to what was found of guests what follows for their re-plugs."""
    if not isinstance(state.guests, Mapping) or not (found.waiting or state.replugs):
        return
    scene = _Scene(found, policies, state.replugs, standing)
    for target, waiting in found.waiting.items():
        scene.consider(found.managed[target], waiting)
    found.rows += (row for each in state.replugs.values() if (row := _whole(each)))
    running = {
        domains.target_of(guest, nic)
        for guest in state.guests.values()
        for nic in guest.nics
        if state.replugs and nic.running is not None
    }
    if standing.held is None:
        found.steps += scene.leave(running)


class _Scene:
    """All re-plugs of the node: who is on its way, and whether one is begun in this plan."""

    def __init__(
        self, found: Findings, policies: Mapping[str, Policy], replugs: Mapping[str, Replug], standing: Standing
    ) -> None:
        self.found, self.policies, self.replugs, self.standing = found, policies, replugs, standing
        self.busy = {target: each.guest for target, each in replugs.items() if each.stage in ON_ITS_WAY}
        self.put_back = {
            each.policy: each.guest
            for each in replugs.values()
            if each.stage is ReplugStage.PUT_BACK and self.is_current(each)
        }
        self.begun: set[str] = set()

    def is_current(self, replug: Replug) -> bool:
        """Whether it belongs to the version of its policy that is in force."""
        policy = self.policies.get(replug.policy)
        return policy is not None and policy.version == replug.version

    def consider(self, managed: Managed, waiting: tuple[Wish, ...]) -> None:
        """A step for this NIC, or a row for each of the wishes that cannot be had now."""
        free = []
        for wish in waiting:
            actual = domains.running(managed.nic, wish.path)
            setting = Setting(managed.target, wish.path)
            stands = self.standing.obstacle(setting, managed.guest.name, wish.value, actual)
            if stands:
                self.found.rows.append(domains.running_row(managed, wish, *stands))
            else:
                free.append(wish)
        setting = Setting(managed.target, KEY)
        obstacle = self.obstacle(managed, free) if free else None
        if obstacle:
            self.found.rows += (domains.running_row(managed, wish, *obstacle) for wish in free)
            self.found.unmet.add(setting)
        elif free:
            self.begun.add(managed.target)
            self.busy[managed.target] = managed.guest.name
            self.found.steps.append(_step(managed, free, self.policies[free[0].policy]))

    def obstacle(self, managed: Managed, wishes: Iterable[Wish]) -> Obstacle | None:
        """Why this NIC is not re-plugged now."""
        wishes, known = tuple(wishes), self.replugs.get(managed.target)
        if known is not None and self.is_current(known) and known.values == _values(wishes):
            match known.stage:
                case ReplugStage.LEAVING | ReplugStage.RETURNING:
                    return Reason.RESTART_REQUIRED, ASKED
                case ReplugStage.LATE:
                    return Reason.RESTART_REQUIRED, f"{known.message}; {LATER}"
                case ReplugStage.PUT_BACK:
                    return Reason.ROLLED_BACK, known.message
        if any(_writes(step, managed) for step in self.found.steps):
            return Reason.RESTART_REQUIRED, "the definition is written first"
        if fight := self.standing.contended.get(Setting(managed.target, KEY)):
            return Reason.CONTENDED, fight
        if not self.standing.stays:
            return Reason.RESTART_REQUIRED, UNATTENDED
        owners = (self.put_back.get(wish.policy) for wish in wishes)
        if guest := next((owner for owner in owners if owner), ""):
            return Reason.RESTART_REQUIRED, f"not re-plugged, because that of {guest} had to be put back"
        others = (guest for target, guest in self.busy.items() if target != managed.target)
        if guest := next(others, ""):
            return Reason.RESTART_REQUIRED, f"it waits for its turn: a NIC of {guest} is being re-plugged"
        return None

    def leave(self, running: set[str]) -> Iterator[Step]:
        """Re-plugs that nobody wants any more. One whose NIC is out is brought to its end first."""
        for target, replug in self.replugs.items():
            if target in self.begun:
                continue
            over = replug.stage is ReplugStage.PUT_BACK and not self.is_current(replug)
            pointless = replug.stage in FORWARD and target in running and not self.is_wanted(target, replug)
            if over or pointless:
                yield Step(LeaveReplug(target), ((Setting(target, KEY), None),), (), replug.policy)

    def is_wanted(self, target: str, replug: Replug) -> bool:
        waiting = self.found.waiting.get(target, ())
        return replug.values == _values(waiting)


def _values(wishes: Iterable[Wish]) -> tuple[tuple[str, Value], ...]:
    return tuple((wish.path, wish.value) for wish in wishes)


def _writes(step: Step, managed: Managed) -> bool:
    """Whether a step writes into the definition of this NIC."""
    return any(setting.target == managed.target for setting, _ in step.settings)


def _step(managed: Managed, wishes: list[Wish], policy: Policy) -> Step:
    nic: GuestNic = managed.nic
    seen = tuple((wish.path, domains.running(nic, wish.path)) for wish in wishes)
    change = ReplugGuestNic(
        managed.target,
        managed.guest.name,
        managed.guest.uuid,
        nic.mac,
        nic.address,
        _values(wishes),
        seen,
        policy.name,
        policy.version,
    )
    rows = tuple(
        domains.running_row(managed, wish, None, domains.replug_sentence(wish, actual))
        for wish, (_, actual) in zip(wishes, seen, strict=True)
    )
    return Step(change, ((Setting(managed.target, KEY), str(GuestUpdate.REPLUG)),), rows, policy.name)


def _whole(replug: Replug) -> Row | None:
    """What is to be said of a NIC as a whole, whatever is wanted of it."""
    if replug.trouble:
        reason, text = Reason.FAILED, f"the NIC is out of the guest, and libvirt does not put it back: {replug.trouble}"
    elif replug.stage is ReplugStage.RECALLED:
        reason, text = Reason.RESTART_REQUIRED, PENDING
    else:
        return None
    subject = nics.Nic(replug.guest, replug.mac).subject
    return Row(subject, KEY, str(GuestUpdate.REPLUG), None, reason, text, replug.policy)
