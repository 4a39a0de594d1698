"""How a new generation of a policy travels over the nodes: which one a node enforces, and who may have it next.

    rank        a node's place in the queue of one policy: 52 bits of a hash, known to everybody, stored nowhere
    admitted    one number in the policy's status; a node may have the generation when its rank is below it

Nothing is counted up or down: `step` derives everything from what the nodes report and from the status it published
itself, so a controller that is started anew at any moment goes on as if nothing had happened. The one thing it keeps in
memory is who keeps it waiting, and since when. After a restart a silent node has its deadline once more; and one that
an edit deselects while it is on its way for the first time is not waited for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from datetime import UTC, datetime
from typing import Any

from virtnet.core.model import EMPTY, Policy, Reason, Rollout, nothing
from virtnet.values import frozen

EVERYBODY = 2**52
"""What `admitted` is when every node may have the generation, also those that join later."""

SKEW = 60.0
"""Seconds by which a node's clock may be behind: a failure that is older than the rollout by less counts as new."""

LONGEST_REASON = 1024


def rank(policy_uid: str, node: str) -> int:
    """A node's place in the rollouts of a policy: the first 52 bits of sha256("UID/NODE"), so 0 <= rank < EVERYBODY."""
    return int(hashlib.sha256(f"{policy_uid}/{node}".encode()).hexdigest()[:13], 16)


@frozen
class Published:
    """`status.rollout` of a policy, which the controller writes and every node reads.

    `began` is when the rollout began (seconds since the epoch), None when it is over. An edit in the middle of a
    rollout does not move it, so a failure that the rollout itself brought does not turn into one that was there before.
    """

    generation: int
    admitted: int
    paused: bool = False
    reason: str = ""
    began: float | None = None

    def admits(self, rank: int, generation: int) -> bool:
        return self.generation == generation and rank < self.admitted

    @staticmethod
    def read(status: Any) -> Published | None:
        """From the `status` of a policy as the API server sends it; None where no rollout is written there."""
        found = status.get("rollout") if isinstance(status, Mapping) else None
        if not isinstance(found, Mapping):
            return None
        generation, admitted = found.get("generation"), found.get("admitted")
        if not isinstance(generation, int) or not isinstance(admitted, int):
            return None
        paused, reason = found.get("paused") is True, str(found.get("reason", ""))
        return Published(generation, admitted, paused, reason, seconds(found.get("began")))

    def write(self) -> dict[str, Any]:
        """As `status.rollout`, without what does not apply."""
        found: dict[str, Any] = {"generation": self.generation, "admitted": self.admitted, "paused": self.paused}
        if self.reason:
            found["reason"] = self.reason
        if self.began is not None:
            found["began"] = timestamp(self.began)
        return found


def seconds(text: Any) -> float | None:
    """A Kubernetes time (RFC 3339) as seconds since the epoch; None when it is none."""
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return moment.timestamp() if moment.tzinfo else None


def timestamp(moment: float) -> str:
    """Seconds since the epoch as metav1.Time writes them, cut to whole seconds."""
    return datetime.fromtimestamp(int(moment), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- on a node ---------------------------------------------------------------------------------------------


@frozen
class Held:
    """What a node remembers of a policy, also over a restart: the generation in force here, or that there is none yet.

    A node remembers policies that do not select it as well: when an edit makes one select it, that edit is staged.
    """

    uid: str
    policy: Policy | None


def choose(held: Held | None, newest: Policy, published: Published | None, node: str) -> Held:
    """Which generation of a policy `node` enforces (`.policy`, None: none), and what it is to remember.

        equal in content to the one held    the newest, at once: nothing changes on the host
        its rank is admitted                the newest
        it holds an earlier one             that one, with the newest annotations
        it knew the policy and has none     none: it waits since the first generation
        it has never seen the policy        the newest, at once (it joined, or lost its memory), unless
                                            the first generation is still on its way: then it waits too

    `held` is None when the node has never seen a policy of this name. One of another uid is another policy, and the
    held one was deleted. A deletion is not staged: do not call this, forget what is held.
    """
    if held and held.policy and same_content(held.policy, newest):
        return Held(newest.uid, newest)
    if held and held.uid != newest.uid:
        held = None
    place = rank(newest.uid, node)
    if (published and published.admits(place, newest.generation)) or (
        held is None and _joins(newest, published, place)
    ):
        return Held(newest.uid, newest)
    kept = held.policy if held else None
    return Held(newest.uid, kept and replace(kept, annotations=newest.annotations))


def _joins(newest: Policy, published: Published | None, place: int) -> bool:
    """Whether a node that has never seen the policy takes it at once: not when having none is what all nodes have."""
    if newest.generation == 1 or published is None:
        return False
    return published.generation > 1 or place < published.admitted


def same_content(one: Policy, other: Policy) -> bool:
    """Whether two generations ask the same of a host. How they travel is no part of it: pausing needs no admission."""
    return _content(one) == _content(other)


def _content(policy: Policy) -> Policy:
    return replace(
        policy, uid="", generation=0, digest="", created="", rollout=Rollout(), cluster_only=(), annotations=()
    )


# --- in the controller -------------------------------------------------------------------------------------


@frozen
class Fault:
    """Why a node is not Ready. `since` (seconds since the epoch, by the node's clock) is None when nobody knows."""

    setting: str
    reason: Reason
    message: str
    since: float | None = None

    def older_than(self, moment: float) -> bool:
        return self.since is not None and self.since < moment - SKEW


@frozen
class Traveller:
    """A node as the rollout of one policy sees it: the newest selector selects it, it reports the policy, or it is
    among those that keep the rollout waiting.

    `generation` is the one that it reports to enforce, None when it reports none. `ready`: it reports the policy as
    Ready, and its agent is there. `fault` is a failing reason that it reports, `down` why its agent is not there.
    `alive`: the Node itself is Ready; nobody waits for one that is not.
    """

    node: str
    rank: int
    generation: int | None
    ready: bool
    selected: bool = True
    alive: bool = True
    fault: Fault | None = None
    down: Fault | None = None

    def arrived(self, generation: int) -> bool:
        """Whether it enforces this generation; a node that is selected no more has arrived when it enforces none."""
        return self.generation == (generation if self.selected else None)

    def done(self, generation: int) -> bool:
        return self.arrived(generation) and (self.ready or not self.selected)

    def excused(self, began: float) -> bool:
        """Whether it was not Ready before the rollout began: then nobody waits for it, and it fails no step."""
        trouble = self.down or self.fault
        return trouble is not None and trouble.older_than(began)


@frozen
class Order:
    """What the rollout of one policy is to do. `resumed`: the annotation says to go on in spite of failures."""

    generation: int
    rollout: Rollout
    resumed: bool = False

    @property
    def pauses(self) -> bool:
        return self.rollout.pause_on_failure and not self.resumed


@frozen
class Failure:
    """A node that fails its step, or is not Ready past the deadline after the rollout is over."""

    node: str
    fault: Fault

    def __str__(self) -> str:
        return f"{self.node}: {self.fault.setting}: {self.fault.reason}: {self.fault.message}"


@frozen
class Step:
    """One look. `published` is what the status is to say, `waiting` what to hand in at the next look.

    `published` is None before the first generation may begin; `failures` are by rank.
    """

    published: Published | None
    waiting: Mapping[str, float] = field(default_factory=nothing)
    failures: tuple[Failure, ...] = ()


def step(
    order: Order, nodes: Sequence[Traveller], previous: Published | None, waiting: Mapping[str, float], now: float
) -> Step:
    """The next look at a rollout; `now` and the values of `waiting` are seconds since the epoch.

    The canaries first, then `maxUnavailable` at a time, each time when all that are admitted are done. Within a
    generation `admitted` never decreases. A look takes one step at most.
    """
    alive = sorted((node for node in nodes if node.alive), key=lambda node: node.rank)
    if previous is None or previous.generation != order.generation:
        return _begin(order, alive, len(nodes), previous, waiting, now)
    return _go_on(order, alive, len(nodes), previous, waiting, now)


def _begin(
    order: Order,
    alive: Sequence[Traveller],
    total: int,
    previous: Published | None,
    waiting: Mapping[str, float],
    now: float,
) -> Step:
    """The first step of a generation, once nobody is on the way to an earlier one who would not be among the first.

    Until then the earlier rollout stays published: who was admitted to it is told by nothing else.
    """
    late = {node.node: waiting.get(node.node, now) for node in alive if _between(node, previous, waiting)}
    first = 0 if order.rollout.paused else _further(order, alive, total, 0)
    on_the_way = {node for node, since in late.items() if now - since < order.rollout.deadline_seconds}
    turn = [node for node in alive if previous and node.rank < first and not node.arrived(order.generation)]
    if on_the_way - {node.node for node in turn}:
        return Step(_held_up(order, previous), late)
    began = now if previous is None or previous.began is None else previous.began
    return _go_on(order, alive, total, Published(order.generation, first, began=began), EMPTY, now)


def _between(node: Traveller, previous: Published | None, waiting: Mapping[str, float]) -> bool:
    """Whether a node may still be on its way to the generation that was published before, or left from another policy.

    With nothing published, an entry without a uid can only be of a deleted policy of the same name.
    """
    if previous is None:
        return node.generation is not None
    if previous.began is None or node.rank >= previous.admitted:
        return False
    if node.generation is None and not node.selected:
        return node.node in waiting
    reached = node.generation is not None and node.generation >= previous.generation
    return not (reached and (node.ready or node.fault))


def _held_up(order: Order, previous: Published | None) -> Published | None:
    if previous is None or not order.rollout.paused:
        return previous
    return replace(previous, paused=True, reason=PAUSED_BY_USER)


PAUSED_BY_USER = "spec.rollout.paused is true"


def _go_on(
    order: Order, alive: Sequence[Traveller], total: int, previous: Published, waiting: Mapping[str, float], now: float
) -> Step:
    """A later look at the generation that is published."""
    admitted = [node for node in alive if node.rank < previous.admitted or node.generation == order.generation]
    undone = [node for node in admitted if not node.done(order.generation)]
    since = {node.node: waiting.get(node.node, now) for node in undone}
    failed = [Failure(node.node, fault) for node in undone if (fault := _failure(order, node, now - since[node.node]))]
    if previous.began is None:
        return Step(replace(previous, paused=False, reason=""), since, tuple(failed))
    counted = [node for node in undone if node.rank < previous.admitted and not node.excused(previous.began)]
    names = {node.node for node in counted}
    blamed = [failure for failure in failed if failure.node in names]
    published = _decide(order, alive, total, previous, counted, blamed)
    return Step(published, since, tuple(failed))


def _failure(order: Order, node: Traveller, waited: float) -> Fault | None:
    """Why an admitted node fails: what it reports of this generation at once, anything else at the deadline."""
    if node.fault and node.selected and node.arrived(order.generation):
        return node.fault
    deadline = order.rollout.deadline_seconds
    if waited < deadline:
        return None
    if node.down:
        return node.down
    goal = f"generation {order.generation}" if node.selected else "its release from the policy"
    late = f"{goal} is not done after {deadline} seconds"
    return Fault("policy", Reason.FAILED, f"{late}: {node.fault.message}" if node.fault else late)


def _decide(
    order: Order,
    alive: Sequence[Traveller],
    total: int,
    previous: Published,
    counted: Sequence[Traveller],
    blamed: Sequence[Failure],
) -> Published:
    """`counted` are admitted and not done, `blamed` those of them that fail."""
    going = replace(previous, paused=False, reason="")
    if order.rollout.paused:
        return replace(previous, paused=True, reason=PAUSED_BY_USER)
    if order.pauses and blamed:
        return replace(previous, paused=True, reason=_told(blamed))
    if order.pauses and previous.paused and counted:  # it fails no more but is not Ready either: the pause goes on
        return previous
    if len(counted) > len(blamed):
        return going
    if previous.admitted == EVERYBODY:
        return replace(going, began=None)
    return replace(going, admitted=_further(order, alive, total, previous.admitted))


def _told(blamed: Sequence[Failure]) -> str:
    more = len(blamed) - 1
    end = f" (and {more} more node{'s' * (more > 1)})" if more else ""
    text = str(blamed[0])
    room = LONGEST_REASON - len(end)
    return (text if len(text) <= room else text[: room - 1] + "…") + end


def _further(order: Order, alive: Sequence[Traveller], total: int, admitted: int) -> int:
    """Where `admitted` goes next: past as many as may move at a time, and past everybody when no others are left.

    `alive` is by rank. Those that have the generation already (equal content, joined) take no place.
    """
    limit = max(1, share(order.rollout.max_unavailable, total))
    first = share(order.rollout.canary, total) - sum(node.rank < admitted for node in alive)
    size = min(limit, first) if first > 0 else limit
    movers = [node for node in alive if node.rank >= admitted and not node.arrived(order.generation)]
    return movers[size - 1].rank + 1 if len(movers) > size else EVERYBODY


def share(wanted: int | str, total: int) -> int:
    """A number of nodes, or a percentage of `total` rounded up, as a number of nodes."""
    if isinstance(wanted, int):
        return wanted
    return -(-int(wanted.removesuffix("%")) * total // 100)
