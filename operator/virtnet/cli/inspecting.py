"""The command `inspect`: one look at the whole path, and per policy what differs; it changes nothing."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import virtnet
from virtnet import errors
from virtnet.cli import policies, sheet, survey, terminal
from virtnet.cli.survey import Data
from virtnet.cli.terminal import Output
from virtnet.cli.where import Where
from virtnet.core import report, running
from virtnet.core.model import HostState, Policy, Reason, Row
from virtnet.engine.workplace import Workplace
from virtnet.host import qemu
from virtnet.host.qemu import Qemu
from virtnet.reconcile import Look
from virtnet.values import frozen

ALL_WELL = 0
EVERYTHING = "*"


_REASONS = frozenset(Reason)
LISTS = ("uplinks", "bridges", "taps")


@frozen
class Found:
    """All that one call found out. `rows` None: no policy is known."""

    state: HostState
    look: Look
    policies: tuple[Policy, ...]
    rows: tuple[Row, ...] | None
    status: Data
    holds: Mapping[str, str]
    title: str


def run(files: Sequence[str], place: Where, output: Output) -> int:
    """Always 0 when it could look at all: what differs is news, not an error."""
    wanted = policies.read(files) if files else None
    policies.say_doubts(wanted or ())
    with place.open(write=False) as workplace:
        found = look(workplace, wanted)
        for notice in workplace.notices:
            terminal.say(notice)
    machine, qemu_says = _ask_qemu()
    host = _host(found, machine)
    for sentence in survey.unseen({kind: host[kind] for kind in LISTS}, found.status.get("vhost")):
        terminal.say(sentence)
    for sentence in running.hubs(found.state):
        terminal.say(sentence)
    if output is Output.TABLE:
        sheet.show(terminal.console(), _sheet(found, host, qemu_says))
    else:
        if machine is None:
            terminal.say(qemu_says)
        terminal.emit({**found.status, "host": host}, output)
    return ALL_WELL


def look(workplace: Workplace, wanted: tuple[Policy, ...] | None) -> Found:
    """With `wanted` None, compare with what the agent enforces, and believe what it says of that."""
    pid = workplace.state.holder() if workplace.state else None
    said = workplace.status() or {}
    agent = said if wanted is None and pid is not None else {}
    if wanted is None:
        cached = workplace.cached_policies()
        wanted = policies.parse({name: kept.text for name, kept in cached.items()}) if cached else None
    look = workplace.look(wanted or ())
    rows: tuple[Row, ...] | None = None
    if wanted is not None:  # without a known policy the plan would be to put everything back, which nobody asked for
        rows = tuple(report.merge(explained([*look.plan.pending, *look.plan.blocked], agent)))
    state, holds = workplace.inspect(), workplace.holds()
    status = _status(workplace, look, state, rows or (), holds, said)
    status["conditions"] = agent.get("conditions", status["conditions"])
    return Found(state, look, wanted or (), rows, status, holds, _title(workplace, pid))


def explained(rows: Iterable[Row], agent: Mapping[str, Any]) -> list[Row]:
    """Rows with what only a running agent knows: that it does not make a change because of a fight or a refusal."""
    known = {
        (each.get("subject"), each.get("setting"), each.get("policy")): (
            Reason(each["reason"]),
            each.get("message", ""),
        )
        for each in agent.get("settings", ())
        if each.get("reason") in _REASONS
    }
    return [
        replace(row, reason=known[key][0], message=known[key][1])
        if row.reason is None and (key := (row.subject, row.setting, row.policy)) in known
        else row
        for row in rows
    ]


def _status(
    workplace: Workplace,
    look: Look,
    state: HostState,
    rows: Sequence[Row],
    holds: Mapping[str, str],
    previous: Mapping[str, Any],
) -> dict[str, Any]:
    """The node state's status as of this look; times and counts go on from what an agent last wrote."""
    return report.node_state(
        look.desired,
        state,
        rows,
        now=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        agent={"version": virtnet.__version__, "bootID": workplace.host.identity().boot_id},
        previous=previous,
        held=holds.get(EVERYTHING),
        held_links={name: until for name, until in holds.items() if name != EVERYTHING},
        drifts={each["name"]: each.get("drifts", 0) for each in previous.get("policies", ())},
    )


def _title(workplace: Workplace, pid: int | None) -> str:
    parts = [workplace.node.name, f"Linux {platform.release()}", f"virtnet {virtnet.__version__}"]
    if workplace.state is not None:
        parts.append("no agent is running" if pid is None else f"agent running, pid {pid or 'unknown'}")
    return " · ".join(parts)


def _ask_qemu() -> tuple[Qemu | None, str]:
    """What QEMU says, and the same for people."""
    try:
        found = qemu.look()
    except errors.HostError as error:
        return None, str(error)
    models = " ".join(found.models) or "no virtio network model"
    return found, f"{found.path} {found.version}: {models}"


def _host(found: Found, machine: Qemu | None) -> Data:
    """`qemu` says which binary was asked; null where there is none."""
    named = {entry["name"] for entry in found.status["links"] if entry["role"] == "uplink"}
    return {
        "uplinks": survey.uplinks(found.state, named),
        "bridges": survey.bridges(found.state),
        "taps": survey.taps(found.state),
        "qemuModels": list(machine.models) if machine else [],
        "qemu": {"path": machine.path, "version": machine.version} if machine else None,
    }


def _sheet(found: Found, host: Data, qemu_says: str) -> sheet.Sheet:
    return sheet.Sheet(
        title=found.title,
        host={kind: host[kind] for kind in LISTS},
        vhost=found.status.get("vhost"),
        qemu=qemu_says,
        policies=found.policies,
        selected=frozenset(found.look.desired.policies),
        drifts={each["name"]: each["drifts"] for each in found.status["policies"]},
        rows=found.rows,
        not_ready=next(
            (
                each["message"]
                for each in found.status["conditions"]
                if (each["type"], each["status"]) == ("Ready", "False")
            ),
            "",
        ),
        holds=found.holds,
    )
