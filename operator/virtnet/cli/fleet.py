"""What node states and policies say of a whole cluster, as tables; it judges nothing anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from virtnet.cli import remote, tables
from virtnet.cli.remote import Object
from virtnet.cli.tables import BAD, GOOD, HEADING, PENDING, QUIET, SETTLED, text
from virtnet.core import report
from virtnet.core.model import Reason, Row
from virtnet.values import frozen

EVERYBODY = 2**52
"""`status.rollout.admitted` when every node may have the generation."""
NAMED = 5
"""Nodes that are named where many have the same to say."""
_REASONS = frozenset(Reason)


@frozen
class Finding:
    """What some nodes say of one setting of a policy, each in the same words."""

    row: Row
    nodes: tuple[str, ...]


# --- reading objects ---------------------------------------------------------------------------------------


def status(one: Object) -> Mapping[str, Any]:
    found = one.get("status")
    return found if isinstance(found, Mapping) else {}


def condition(one: Object, kind: str) -> Mapping[str, str]:
    """The condition of that type; {} when nobody has spoken of it."""
    found = (each for each in status(one).get("conditions") or () if each.get("type") == kind)
    return next(found, {})


def rows(state: Object) -> list[Row]:
    """What is not as asked on a node, as `virtnet inspect` has it."""
    return [_row(each) for each in status(state).get("settings") or ()]


def _row(entry: Mapping[str, Any]) -> Row:
    """A reason that a newer agent has and this program does not know is told in the sentence."""
    word, message = entry.get("reason", ""), entry.get("message", "")
    known = word in _REASONS
    return Row(
        entry["subject"],
        entry["setting"],
        entry.get("wanted"),
        entry.get("actual"),
        Reason(word) if known else None,
        message if known or not word else f"{word}: {message}",
        entry.get("policy", ""),
    )


def on_node(state: Object, policy: str) -> Mapping[str, Any] | None:
    """What a node says of a policy; None when the policy does not concern it."""
    return next((each for each in status(state).get("policies") or () if each["name"] == policy), None)


def waiting(policy: Object, states: Iterable[Object]) -> list[str]:
    """The nodes that enforce an earlier generation of the policy."""
    newest = policy["metadata"].get("generation", 0)
    found = ((remote.name(state), on_node(state, remote.name(policy))) for state in states)
    return [node for node, entry in found if entry and entry.get("generation", newest) < newest]


def _waiting(policy: Object, behind: Sequence[str]) -> str:
    """Who waits for its turn; nodes that never had a generation of the policy report nothing, so they are counted."""
    nodes = status(policy).get("nodes") or {}
    others = nodes.get("matched", 0) - nodes.get("admitted", 0) - len(behind)
    unnamed = f"{tables.count(others, 'node')} without any generation of it" if others > 0 else ""
    return ", ".join(part for part in (few(behind), unnamed) if part)


def findings(policy: str, states: Iterable[Object]) -> list[Finding]:
    """What stands in the policy's way, failing before settled, then by the number of nodes that say the same."""
    nodes: dict[Row, list[str]] = {}
    for state in states:
        for row in rows(state):
            if row.policy == policy:
                nodes.setdefault(row, []).append(remote.name(state))
    found = [Finding(row, tuple(sorted(names))) for row, names in nodes.items()]
    return sorted(found, key=lambda one: (-report.severity(one.row), -len(one.nodes), one.row.subject, one.row.setting))


def unexplained(policy: Object, found: Iterable[Finding]) -> list[Mapping[str, Any]]:
    """The policy's problems that no node says itself: its agent is down, or it has not reported yet."""
    said = {(node, one.row.setting) for one in found for node in one.nodes}
    problems = status(policy).get("problems") or ()
    return [each for each in problems if (each["node"], each["setting"]) not in said]


def pod_trouble(pod: Object) -> str:
    """Why an agent's pod is not ready; "" when it is."""
    found = status(pod)
    containers = found.get("containerStatuses") or ()
    if containers and all(each.get("ready") for each in containers):
        return ""
    for each in containers:
        detail = (each.get("state") or {}).get("waiting") or (each.get("state") or {}).get("terminated") or {}
        if detail.get("reason"):
            restarts = each.get("restartCount", 0)
            return str(detail["reason"]) + (f", {tables.count(restarts, 'restart')}" if restarts else "")
    return str(found.get("phase", "Unknown")) + ", not ready"


def node_of(pod: Object) -> str:
    return str(pod["spec"].get("nodeName") or "no node yet")


# --- status ------------------------------------------------------------------------------------------------


def show_status(
    console: Console, policies: Sequence[Object], states: Sequence[Object], pods: Sequence[Object] | None
) -> None:
    """All policies, all nodes, and the agents that are not well. `pods` None: they may not be read."""
    _headed(console, "POLICIES", [_policy_line(one) for one in policies])
    _headed(console, "NODES", [_node_line(one) for one in states])
    if pods is not None:
        _headed(console, "AGENTS", list(_agent_lines(pods)))


def _headed(console: Console, heading: str, lines: Sequence[Sequence[Text]]) -> None:
    console.print(text(heading, HEADING))
    tables.lay_out(console, lines or [[text("none", QUIET)]])
    console.print()


def _policy_line(policy: Object) -> list[Text]:
    nodes = status(policy).get("nodes") or {}
    return [
        text(remote.name(policy), "bold"),
        verdict(policy),
        text((policy.get("spec") or {}).get("mode", "Enforce")),
        text(f"{nodes.get('ready', 0)} of {tables.count(nodes.get('matched', 0), 'node')}"),
        text(f"{nodes.get('blocked', 0)} blocked", SETTLED if nodes.get("blocked") else QUIET),
        text(rollout(policy)),
        text(_message(policy), QUIET),
    ]


def verdict(one: Object) -> Text:
    """One word for the conditions, in the order in which kstatus reads them."""
    if condition(one, "Stalled").get("status") == "True":
        return text("Stalled", BAD)
    if condition(one, "Reconciling").get("status") == "True":
        return text("Reconciling", PENDING)
    ready = condition(one, "Ready").get("status", "Unknown")
    return text(*{"True": ("Ready", GOOD), "False": ("Not ready", BAD)}.get(ready, ("Unknown", SETTLED)))


def _message(one: Object) -> str:
    """The sentence that belongs to the verdict; nothing where all is well."""
    for kind in ("Stalled", "Reconciling"):
        if condition(one, kind).get("status") == "True":
            return condition(one, kind).get("message", "")
    ready = condition(one, "Ready")
    return "" if ready.get("status") == "True" else ready.get("message", "nobody has reported yet")


def rollout(policy: Object) -> str:
    """How far the newest generation has come."""
    found, nodes = status(policy).get("rollout") or {}, status(policy).get("nodes") or {}
    if "generation" not in found:
        return ""
    everywhere = found.get("admitted", 0) >= EVERYBODY
    share = "everywhere" if everywhere else f"admitted on {nodes.get('admitted', 0)} of {nodes.get('matched', 0)}"
    return f"generation {found['generation']} {share}" + (", paused" if found.get("paused") else "")


def _node_line(state: Object) -> list[Text]:
    found = status(state)
    counts = found.get("counts") or {}
    held = condition(state, "Held")
    message = held.get("message", "") if held.get("status") == "True" else _message(state)
    return [
        text(remote.name(state), "bold"),
        verdict(state),
        text(tables.count(counts.get("policies", 0), "policy", "policies")),
        text(f"{counts.get('blocked', 0)} blocked", SETTLED if counts.get("blocked") else QUIET),
        text(_vhost(found), QUIET),
        text((found.get("agent") or {}).get("version", "")),
        text(message, SETTLED if held.get("status") == "True" else QUIET),
    ]


def _vhost(found: Mapping[str, Any]) -> str:
    """Nothing where no policy asks for the module: then nobody has looked."""
    module = (found.get("vhost") or {}).get("module")
    return f"vhost_net {module}" if module else ""


def _agent_lines(pods: Sequence[Object]) -> Iterator[list[Text]]:
    troubles = [(node_of(pod), remote.name(pod), pod_trouble(pod)) for pod in pods]
    well = sum(not why for _, _, why in troubles)
    style = GOOD if pods and well == len(pods) else BAD
    yield [text(f"{well} of {len(pods)} ready", style), text(""), text("")]
    for node, pod, why in sorted(troubles):
        if why:
            yield [text(node, "bold"), text(pod), text(why, BAD)]


# --- diff --------------------------------------------------------------------------------------------------


def show_node(console: Console, state: Object, agent: str) -> None:
    """One node as `virtnet inspect` ends: its policies, and what differs. `agent` is a sentence about its pod."""
    found = status(state)
    said = found.get("agent") or {}
    parts = [remote.name(state), f"virtnet {said['version']}" if "version" in said else "", agent]
    console.print(text(" · ".join(part for part in parts if part), QUIET))
    console.print()
    held = condition(state, "Held")
    if held.get("status") == "True":
        console.print(text(f"HELD  {held['message']}", f"bold {SETTLED}"))
        console.print()
    entries = found.get("policies") or ()
    _headed(console, "POLICIES", [[text(each["name"], "bold"), _on_node(each)] for each in entries])
    if _message(state):
        console.print(text(f"Not ready: {_message(state)}", BAD))
        console.print()
    differing = sorted(rows(state), key=report.severity, reverse=True)
    tables.show_reasons(console, "DIFFERS", differing, policies=len(entries) > 1)
    omitted = (found.get("omitted") or {}).get("settings")
    if omitted:
        console.print(text(f"{tables.count(omitted, 'more setting')} did not fit into the node state.", SETTLED))


def _on_node(entry: Mapping[str, Any]) -> Text:
    blocked, drifts = entry.get("blocked", 0), entry.get("drifts", 0)
    parts = [
        f"generation {entry['generation']}" if "generation" in entry else "",
        f"{tables.count(blocked, 'setting')} blocked" if blocked else "",
        f"drifted {tables.count(drifts, 'time')}" if drifts else "",
    ]
    ready = entry.get("ready", True)
    word = "as asked" if ready and not blocked else "Ready" if ready else f"not ready ({entry.get('reason', '')})"
    shown = ", ".join(part for part in (word, *parts) if part)
    return text(shown, (SETTLED if blocked else GOOD) if ready else BAD)


# --- why ---------------------------------------------------------------------------------------------------


def show_why(console: Console, policy: Object, states: Sequence[Object]) -> None:
    """What stands in a policy's way, from its own conditions down to the settings of single nodes."""
    console.print(Text.assemble((remote.name(policy), "bold"), "  ", verdict(policy), "  ", rollout(policy)))
    console.print()
    lines = [_condition_line(each) for each in status(policy).get("conditions") or ()]
    _headed(console, "CONDITIONS", lines or [[text("the controller has not reported yet", QUIET)]])
    reason = (status(policy).get("rollout") or {}).get("reason")
    if reason:
        _headed(console, "ROLLOUT", [[text(reason, BAD)]])
    behind = _waiting(policy, waiting(policy, states))
    if behind:
        _headed(console, "WAITS FOR ADMISSION", [[text(behind)]])
    found = findings(remote.name(policy), states)
    others = unexplained(policy, found)
    if others:
        _headed(console, "NODES THAT DO NOT SAY", [_problem_line(each) for each in others])
    for nodes, their in _by_nodes(found).items():
        tables.show_reasons(console, few(nodes), their)
    if not (found or others or behind or reason):
        console.print(text("Nothing stands in its way.", GOOD))


def _by_nodes(found: Iterable[Finding]) -> dict[tuple[str, ...], list[Row]]:
    """What the same nodes say, together; in the order of the worst."""
    together: dict[tuple[str, ...], list[Row]] = {}
    for one in found:
        together.setdefault(one.nodes, []).append(one.row)
    return together


def few(nodes: Sequence[str]) -> str:
    """The first nodes by name, and how many more."""
    more = f" and {len(nodes) - NAMED} more" if len(nodes) > NAMED else ""
    return ", ".join(nodes[:NAMED]) + more


def _condition_line(found: Mapping[str, str]) -> list[Text]:
    style = {"True": GOOD, "False": QUIET}.get(found["status"], SETTLED)
    if found["type"] == "Ready":
        style = {"True": GOOD, "False": BAD}.get(found["status"], SETTLED)
    word = text(found["status"], style)
    return [text(found["type"], "bold"), word, text(found["reason"]), text(found["message"])]


def _problem_line(found: Mapping[str, Any]) -> list[Text]:
    return [text(found["node"], "bold"), text(found["reason"], BAD), text(found["message"])]
