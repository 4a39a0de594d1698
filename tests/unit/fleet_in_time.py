"""A small fleet in time, for the properties of rollouts: nodes that lag, fail, die, join, leave and forget.

Every node chooses with `rollout.choose`, the controller steps with `rollout.step`. Nothing here is random: what happens
comes in, so that an example can be repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from virtnet.core import rollout, select
from virtnet.core.model import BridgeSpec, NodeSelector, Policy, Reason, Rollout
from virtnet.core.rollout import EVERYBODY, Fault, Held, Order, Published, Traveller

UID = "5b1d0a53-7d4a-4c57-8f51-5a5a3c1d8f00"
TICK = 5.0
LAG = 4
"""Ticks until a node has seen, and again until it has done: together far below the deadline."""


@dataclass(eq=False)
class Member:
    """One node. `newcomer`: it takes the newest outside the count. `trusted`: nothing happened to it so far."""

    name: str
    zone: str
    slow: int
    alive: bool = True
    agent: bool = True
    newcomer: bool = False
    trusted: bool = True
    breaks: frozenset[int] = frozenset()
    held: Held | None = None
    seen: tuple[Policy, Published | None] | None = None
    unseen: int = 0
    busy: int = 0
    entry: tuple[int, Fault | None] | None = None

    @property
    def enforced(self) -> Policy | None:
        policy = self.held.policy if self.held else None
        return policy if policy and select.selects_node(policy.node_selector, {"zone": self.zone}) else None

    def live(self, policy: Policy, published: Published | None, now: float) -> None:
        """One tick: see what there is (late), choose, work for a while, report."""
        if not (self.alive and self.agent):
            return
        self.unseen += 1
        if self.seen is None or self.unseen >= self.slow:
            self.seen, self.unseen = (policy, published), 0
        before = self.enforced
        self.held = rollout.choose(self.held, *self.seen, self.name)
        if _work(before) != _work(self.enforced):
            self.busy = self.slow
        elif self.busy:
            self.busy -= 1
        if not self.busy:
            self._report(now)

    def _report(self, now: float) -> None:
        policy = self.enforced
        if policy is None:
            self.entry = None
            return
        assert policy.bridge is not None
        assert policy.bridge.mtu is not None
        fault = None
        if policy.bridge.mtu in self.breaks:
            old = self.entry[1] if self.entry else None
            fault = old or Fault("bridge.mtu", Reason.REFUSED, "the driver says no", now)
        self.entry = (policy.generation, fault)


def _work(policy: Policy | None) -> object:
    return policy and policy.bridge


@dataclass(eq=False)
class World:
    members: dict[str, Member]
    policy: Policy
    published: Published | None = None
    waiting: dict[str, float] = field(default_factory=dict)
    now: float = 1_700_000_000.0
    resumed: int = 0
    allowed: int = 0

    @staticmethod
    def of(slowness: list[int], spec: Rollout) -> World:
        members = {}
        for number, slow in enumerate(slowness):
            members[f"n{number}"] = Member(f"n{number}", "ab"[number % 2], slow)
        return World(members, Policy("p", UID, 1, bridge=BridgeSpec("br0", mtu=1500), rollout=spec))

    # --- what happens ---

    def edit(self, **changes: object) -> None:
        self.policy = replace(self.policy, generation=self.policy.generation + 1, **changes)  # type: ignore[arg-type]

    def select(self, zone: str) -> None:
        self.edit(node_selector=NodeSelector(labels=(("zone", zone),) if zone else ()))

    def join(self, slow: int) -> None:
        name = f"n{len(self.members) + 100}"
        self.members[name] = Member(name, "ab"[len(self.members) % 2], slow, newcomer=True)

    def restart(self) -> None:
        """What the controller forgets: since when it waits, and for whom that an edit may deselect on the way."""
        self.waiting = {}
        for member in self.members.values():
            member.trusted = member.trusted and not (member.busy and member.entry is None)

    # --- time ---

    def tick(self) -> None:
        self.now += TICK
        for member in self.members.values():
            member.live(self.policy, self.published, self.now)
        self._look()
        self._judge_motion()

    def _travellers(self) -> Iterator[Traveller]:
        for member in self.members.values():
            selected = select.selects_node(self.policy.node_selector, {"zone": member.zone})
            if not selected and member.entry is None and member.name not in self.waiting:
                continue
            generation, fault = member.entry or (None, None)
            yield Traveller(
                member.name,
                rollout.rank(UID, member.name),
                generation,
                ready=member.entry is not None and fault is None and member.agent,
                selected=selected,
                alive=member.alive,
                fault=fault,
                down=None if member.agent else Fault("agent", Reason.AGENT_DOWN, "it has no agent"),
            )

    @property
    def order(self) -> Order:
        return Order(self.policy.generation, self.policy.rollout, self.resumed == self.policy.generation)

    def _look(self) -> None:
        nodes = list(self._travellers())
        step = rollout.step(self.order, nodes, self.published, self.waiting, self.now)
        self._judge_restart(nodes, step)
        self._judge_step(nodes, step.published)
        self.published, self.waiting = step.published, dict(step.waiting)

    # --- what must always hold ---

    def limit(self, total: int) -> int:
        return max(1, rollout.share(self.policy.rollout.max_unavailable, total))

    def _judge_step(self, nodes: list[Traveller], published: Published | None) -> None:
        before = self.published
        if published is None:
            assert before is None, "what is published stays"
            return
        same = before is not None and before.generation == published.generation
        floor = before.admitted if before and same else 0
        assert floor <= published.admitted <= EVERYBODY, "admitted never decreases within a generation"
        if published.admitted == floor:
            return
        limit = self.limit(len(nodes))
        self.allowed = limit
        alive = [node for node in nodes if node.alive]
        moved = [n for n in alive if floor <= n.rank < published.admitted and not n.arrived(published.generation)]
        assert len(moved) <= limit, "never more than maxUnavailable at a time"
        assert not self.policy.rollout.paused, "paused by the user"
        canary = rollout.share(self.policy.rollout.canary, len(nodes))
        inside = sum(node.rank < floor for node in alive)
        assert inside >= canary or len(moved) <= canary - inside, "the canaries first"
        waiting = [n for n in alive if n.rank < floor and not n.done(published.generation)]
        began = published.began or (before and before.began) or self.now
        if self.order.pauses:
            assert all(n.excused(began) for n in waiting), "a step waits for the one before"

    def _judge_motion(self) -> None:
        """Only nodes that nothing happened to: one that was dead moves when it wakes, whoever else does."""
        moving = [m.name for m in self.members.values() if m.busy and m.trusted and not m.newcomer]
        nodes = list(self._travellers())
        assert len(moving) <= max(self.allowed, self.limit(len(nodes))), moving

    def _judge_restart(self, nodes: list[Traveller], step: rollout.Step) -> None:
        deadline = self.policy.rollout.deadline_seconds
        if any(not node.selected and node.generation is None for node in nodes):
            return
        if any(self.now - since >= deadline for since in (*self.waiting.values(), *step.waiting.values())):
            return
        afresh = rollout.step(self.order, nodes, self.published, {}, self.now)
        assert afresh.published == step.published, "a restart changes nothing"

    @property
    def at_rest(self) -> bool:
        found = self.published
        return (
            found is not None and found.generation == self.policy.generation and (found.paused or found.began is None)
        )

    def settle(self) -> None:
        """Until nothing changes any more; fails when that takes longer than a deadline for every node."""
        patience = (len(self.members) + 3) * (self.policy.rollout.deadline_seconds / TICK + 3 * LAG)
        quiet = 0
        for _ in range(int(patience)):
            before = self.published
            self.tick()
            quiet = quiet + 1 if self.at_rest and self.published == before else 0
            if quiet > self.policy.rollout.deadline_seconds / TICK + 3 * LAG:
                return
        raise AssertionError(f"it does not end: {self.published}")
