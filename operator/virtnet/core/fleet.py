"""What all nodes together make of a policy: its status, from the Nodes, their agents and what these report.

It has no clock and keeps nothing: the time, and what was published before, are arguments. Equal fleets give an equal
status, so a status is written only when something happened. Who else reports nothing is unknown, never Ready.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any, NamedTuple

from virtnet.core import migration, rollout, select
from virtnet.core.model import FAILING, Fingerprint, Policy, Reason, nothing
from virtnet.core.report import SETTLED
from virtnet.core.rollout import Failure, Fault, Order, Published, Traveller
from virtnet.values import frozen

RESUME = "virtnet.dev/resume"
"""The annotation of a policy with the generation that is to go on in spite of failures."""

MOST_PROBLEMS = 3
LONGEST_MESSAGE = 1024
NO_NODES = "NoNodes"
ROLLING_OUT = "RollingOut"
PAUSED = "Paused"
INVALID = "Invalid"

_SEVERITY: Mapping[Reason, int] = {reason: level for level, reason in enumerate((*FAILING, *SETTLED))}


# --- what is known of a node -------------------------------------------------------------------------------


@frozen
class NodeFacts:
    """A Node: all that is kept of it. `ready` is its condition Ready."""

    name: str
    uid: str
    labels: Mapping[str, str]
    ready: bool


@frozen
class Entry:
    """One policy in a node's state. `faults` are what is not as asked: one for each setting and reason, worst first.

    `uid` is the policy's, "" when the node does not tell it.
    """

    generation: int
    ready: bool
    blocked: int = 0
    faults: tuple[Fault, ...] = ()
    uid: str = ""

    @property
    def failing(self) -> Fault | None:
        """The newest failing reason: an older one may have been there before a rollout. None when it does not fail."""
        if not self.faults:
            return None
        return max((fault for fault in self.faults if fault.reason in FAILING), key=_newest, default=None)


@frozen
class StateFacts:
    """A node's state. `owner` is the uid of the Node that owns it ("" for none), `entries` are by policy name."""

    uid: str
    owner: str
    entries: Mapping[str, Entry] = field(default_factory=nothing)
    released: bool = False
    fingerprint: Fingerprint = Fingerprint()

    def of(self, policy: Policy) -> Entry | None:
        """What is said of this policy, and not of an earlier one of the same name that was deleted."""
        entry = self.entries.get(policy.name)
        return None if entry is None or entry.uid not in {"", policy.uid} else entry


@frozen
class AgentFacts:
    """An agent's pod. `since` is when it last became Ready or stopped being so (seconds since the epoch).

    It counts as there only from `steady` on: one that crashes again and again is Ready for a moment in between.
    """

    ready: bool
    since: float | None = None
    steady: float = 0.0


@frozen
class Fleet:
    """Everything by node name."""

    nodes: Mapping[str, NodeFacts] = field(default_factory=nothing)
    states: Mapping[str, StateFacts] = field(default_factory=nothing)
    agents: Mapping[str, AgentFacts] = field(default_factory=nothing)


def _newest(fault: Fault) -> tuple[float, int]:
    return (float("inf") if fault.since is None else fault.since, -_SEVERITY[fault.reason])


# --- the verdict -------------------------------------------------------------------------------------------


@frozen
class Verdict:
    """The whole status of a policy, and what is to be handed in as `waiting` at the next look.

    `again`: when time alone will change something (seconds since the epoch), None when only an event can.
    """

    status: dict[str, Any]
    waiting: Mapping[str, float]
    again: float | None = None


def judge(
    policy: Policy, fleet: Fleet, previous: Mapping[str, Any] | None, waiting: Mapping[str, float], now: float
) -> Verdict:
    """The status of a policy and the next step of its rollout.

    `previous` is the status that is stored now, `now` and the values of `waiting` are seconds since the epoch.
    """
    before = Published.read(previous)
    members = list(_members(policy, fleet, waiting, now))
    order = Order(policy.generation, policy.rollout, dict(policy.annotations).get(RESUME) == str(policy.generation))
    step = rollout.step(order, [member.traveller for member in members], before, waiting, now)
    late = [failure for failure in step.failures if now - step.waiting[failure.node] >= policy.rollout.deadline_seconds]
    view = _View(policy.generation, [member for member in members if member.selected], members, step.published, late)
    conditions = (
        *(view.ready(), view.reconciling(), view.stalled(), view.conflicted(), view.complete()),
        *_migration(view.matched, fleet),
    )
    status: dict[str, Any] = {
        "observedGeneration": policy.generation,
        "conditions": _dated(conditions, policy.generation, previous, now),
        "nodes": view.counts(),
    }
    if step.published is not None:
        status["rollout"] = step.published.write()
    status["problems"] = list(view.problems())
    moments = [since + policy.rollout.deadline_seconds for since in step.waiting.values()]
    moments += [agent.steady for agent in fleet.agents.values()]
    moments += [now + 1] if step.published != before else []
    return Verdict(status, step.waiting, min((moment for moment in moments if moment > now), default=None))


def refuse(generation: int, message: str, previous: Mapping[str, Any] | None, now: float) -> dict[str, Any]:
    """The status of a policy that cannot be understood: the nodes keep what they have."""
    text = _clipped(message)
    conditions = (
        _Condition("Ready", "False", INVALID, text),
        _Condition("Reconciling", "False", INVALID, text),
        _Condition("Stalled", "True", INVALID, text),
    )
    kept = {name: (previous or {})[name] for name in ("nodes", "rollout", "problems") if name in (previous or {})}
    dated = _dated(conditions, generation, previous, now)
    return {"observedGeneration": generation, "conditions": dated, **kept}


class _Member(NamedTuple):
    """A node, as the rollout sees it and with what it reports.

    `unknown`: nothing is known of it now. `done`: it is as the newest generation asks, and that is known.
    """

    node: str
    traveller: Traveller
    selected: bool
    unknown: bool
    done: bool
    faults: tuple[Fault, ...]
    blocked: int

    @property
    def fails(self) -> bool:
        return self.traveller.fault is not None and not self.unknown


def _members(policy: Policy, fleet: Fleet, waiting: Mapping[str, float], now: float) -> Iterator[_Member]:
    for name, node in fleet.nodes.items():
        state = fleet.states.get(name)
        if state and state.owner not in {"", node.uid}:  # of an earlier Node of this name
            state = None
        entry = state.of(policy) if state else None
        selected = select.selects_node(policy.node_selector, node.labels)
        if not selected and entry is None and name not in waiting:
            continue
        down = _down(node, state, fleet.agents.get(name), now)
        traveller = Traveller(
            name,
            rollout.rank(policy.uid, name),
            entry.generation if entry else None,
            ready=entry is not None and entry.ready and down is None,
            selected=selected,
            alive=node.ready and not (state and state.released),
            fault=entry.failing if entry else None,
            down=down,
        )
        unknown = down is not None
        done = traveller.done(policy.generation) and not (selected and unknown)
        yield _Member(name, traveller, selected, unknown, done, *((entry.faults, entry.blocked) if entry else ((), 0)))


def _down(node: NodeFacts, state: StateFacts | None, agent: AgentFacts | None, now: float) -> Fault | None:
    """Why nothing is known of a node now; the Node itself first, because its pods cannot be Ready either."""
    since = agent.since if agent else None
    if not node.ready:
        return _agent_down("the Node is not Ready", since)
    if state and state.released:
        return _agent_down("it was released: nothing is enforced there", None)
    if agent is None:
        return _agent_down("no agent runs there", None)
    if not agent.ready:
        return _agent_down("its agent is not ready", since)
    if now < agent.steady:
        return _agent_down("its agent crashes again and again", None)
    if state is None:
        return _agent_down("its agent has not reported yet", None)
    return None


def _agent_down(message: str, since: float | None) -> Fault:
    return Fault("agent", Reason.AGENT_DOWN, message, since)


# --- conditions --------------------------------------------------------------------------------------------


class _Condition(NamedTuple):
    type: str
    status: str
    reason: str
    message: str


class _View(NamedTuple):
    """One look at a policy. `matched` are the nodes that the selector selects, `members` those that leave as well,
    `late` those that are not done past the deadline.
    """

    generation: int
    matched: Sequence[_Member]
    members: Sequence[_Member]
    published: Published | None
    late: Sequence[Failure]

    @property
    def _undone(self) -> list[_Member]:
        """Those that can be expected to be done some time: not a dead Node."""
        return [member for member in self.members if member.traveller.alive and not member.done]

    @property
    def travels(self) -> bool:
        """Whether the generation is still on its way to somebody."""
        found = self.published
        return found is None or found.generation != self.generation or found.began is not None

    @property
    def _stopped(self) -> bool:
        """Paused, and somebody would still have to move."""
        return self.published is not None and self.published.paused and bool(self._undone)

    def ready(self) -> _Condition:
        if not self.matched:
            return _Condition("Ready", "True", NO_NODES, "no node matches the selector")
        failing = [member for member in self.matched if member.fails]
        if failing:
            return _Condition("Ready", "False", *self._worst(failing))
        done = sum(member.done for member in self.matched)
        progress = f"{done} of {_nodes(len(self.matched))} as asked"
        if self._stopped:
            return _Condition("Ready", "False", PAUSED, _clipped(f"{progress}; {self._why_paused}"))
        if any(not member.unknown and not member.done for member in self.matched):
            return _Condition("Ready", "False", ROLLING_OUT, progress)
        unknown = [member for member in self.matched if member.unknown]
        if unknown:
            return _Condition("Ready", "Unknown", Reason.AGENT_DOWN.value, f"{progress}; {_unheard(unknown)}")
        return _Condition("Ready", "True", Reason.AS_ASKED.value, progress)

    def reconciling(self) -> _Condition:
        is_stalled = self.stalled().status == "True"
        if not is_stalled and (self.travels or self._undone):
            done = sum(member.done for member in self.members if member.selected)
            message = f"generation {self.generation} is in force on {done} of {_nodes(len(self.matched))}"
            return _Condition("Reconciling", "True", ROLLING_OUT, message)
        return _Condition("Reconciling", "False", "Stalled" if is_stalled else "Settled", "nothing is on its way")

    def stalled(self) -> _Condition:
        if self._stopped:
            return _Condition("Stalled", "True", PAUSED, _clipped(f"the rollout is paused: {self._why_paused}"))
        if self.late and not self.travels:
            first, more = self.late[0], len(self.late) - 1
            message = f"{first}{f' (and {_nodes(more)} more)' if more else ''}"
            return _Condition("Stalled", "True", first.fault.reason.value, _clipped(message))
        return _Condition("Stalled", "False", "NotStalled", "nothing keeps it from going on")

    def conflicted(self) -> _Condition:
        found = [
            (member.node, fault)
            for member in self.matched
            for fault in member.faults
            if fault.reason is Reason.OVERRIDDEN_BY
        ]
        if not found:
            return _Condition("Conflicted", "False", "NoConflict", "no other policy wants anything else")
        node, fault = min(found, key=lambda pair: pair[0])
        count = _nodes(len({node for node, _ in found}))
        message = _clipped(f"on {count}; {node}: {fault.setting}: {fault.message}")
        return _Condition("Conflicted", "True", Reason.OVERRIDDEN_BY.value, message)

    def complete(self) -> _Condition:
        ready = self.ready()
        faulty = [member for member in self.matched if member.faults and not member.unknown]
        if faulty and ready.reason not in {ROLLING_OUT, PAUSED}:
            return _Condition("Complete", "False", *self._worst(faulty))
        return ready._replace(type="Complete")

    @property
    def _why_paused(self) -> str:
        return self.published.reason if self.published else ""

    def _worst(self, members: Sequence[_Member]) -> tuple[str, str]:
        """The reason and the message about nodes of which each has a fault."""
        pairs = ((member.node, fault) for member in members for fault in member.faults)
        node, fault = min(pairs, key=lambda pair: (_SEVERITY[pair[1].reason], pair[0], pair[1].setting))
        said = f"{node}: {fault.setting}: {fault.message}"
        what = "fails" if fault.reason in FAILING else "is not as asked"
        return fault.reason.value, _clipped(f"{_nodes(len(members), what)}; {said}")

    # --- counts and problems ---

    def counts(self) -> dict[str, int]:
        found = self.published
        return {
            "matched": len(self.matched),
            "admitted": sum(
                member.traveller.generation == self.generation
                or (found is not None and found.admits(member.traveller.rank, self.generation))
                for member in self.matched
            ),
            "ready": sum(member.done for member in self.matched),
            "blocked": sum(member.blocked > 0 for member in self.matched),
            "unknown": sum(member.unknown for member in self.matched),
        }

    def problems(self) -> Iterator[dict[str, str]]:
        """The three worst: failing before settled, then those of most nodes."""
        groups: dict[tuple[Reason, str], list[tuple[str, Fault]]] = {}
        for node, fault in self._faults():
            groups.setdefault((fault.reason, fault.setting), []).append((node, fault))
        worst = sorted(groups.items(), key=lambda group: (group[0][0] not in FAILING, -len(group[1]), group[0]))
        for (reason, setting), same in worst[:MOST_PROBLEMS]:
            node, fault = min(same, key=lambda pair: pair[0])
            more = len({node for node, _ in same}) - 1
            message = fault.message + (f" (and on {_nodes(more)} more)" if more else "")
            yield {"node": node, "setting": setting[:253], "reason": reason.value, "message": _clipped(message)}

    def _faults(self) -> Iterator[tuple[str, Fault]]:
        reported = set()
        for member in self.matched:
            if member.traveller.down is not None:
                yield member.node, member.traveller.down
                reported.add(member.node)
                continue
            yield from ((member.node, fault) for fault in member.faults)
            if member.fails:
                reported.add(member.node)
        yield from ((failure.node, failure.fault) for failure in self.late if failure.node not in reported)


def _migration(matched: Iterable[_Member], fleet: Fleet) -> Iterator[_Condition]:
    """Whether guests can move between the nodes of a policy; nothing while fewer than two of them tell."""
    found = migration.compare(
        {member.node: fleet.states[member.node].fingerprint for member in matched if not member.unknown}
    )
    if found.alike is not None:
        reason = "SameFeatures" if found.alike else "FeaturesDiffer"
        yield _Condition("MigrationCompatible", str(found.alike), reason, _clipped(found.message))


def _unheard(unknown: Sequence[_Member]) -> str:
    first = min(unknown, key=lambda member: member.node)
    down = first.traveller.down
    said = f": {down.message}" if down else ""
    more = len(unknown) - 1
    return _clipped(f"nothing is known of {first.node}{f' and {_nodes(more)} more' if more else ''}{said}")


def _nodes(count: int, verb: str = "") -> str:
    noun = "node" if count == 1 else "nodes"
    if verb and count != 1:
        verb = {"fails": "fail", "is not as asked": "are not as asked"}[verb]
    return f"{count} {noun} {verb}".rstrip()


def _clipped(text: str) -> str:
    return text if len(text) <= LONGEST_MESSAGE else text[: LONGEST_MESSAGE - 1] + "…"


def _dated(
    conditions: Iterable[_Condition], generation: int, previous: Mapping[str, Any] | None, now: float
) -> list[dict[str, Any]]:
    """As metav1.Condition: the time is that of the last change of `status`."""
    known = {
        (entry.get("type"), entry.get("status")): entry.get("lastTransitionTime")
        for entry in (previous or {}).get("conditions") or ()
    }
    return [
        {
            "type": found.type,
            "status": found.status,
            "reason": found.reason,
            "message": found.message,
            "lastTransitionTime": known.get((found.type, found.status)) or rollout.timestamp(now),
            "observedGeneration": generation,
        }
        for found in conditions
    ]
