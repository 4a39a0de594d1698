"""What tables of tests are made of: a host and policies as text in, what is wanted, planned and said as text out."""

from __future__ import annotations

from collections.abc import Iterable

from tests.flow.agent import NODE
from tests.flow.fake import FakeHost
from tests.flow.policies import read
from virtnet.core import plan as planning
from virtnet.core import resolve
from virtnet.core.model import HostState, Interest, Recorded, Row
from virtnet.core.plan import Plan
from virtnet.core.standing import Standing

NOTHING_RECORDED = Recorded()
EVERYTHING = Interest(True, True, True, True, True, True, True)


def lines(text: str) -> list[str]:
    """The lines of a block, without indentation and empty lines."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def state_of(host: str) -> HostState:
    return FakeHost(host).observe(EVERYTHING)


def desired_of(host: str | HostState, policies: str) -> resolve.Desired:
    state = state_of(host) if isinstance(host, str) else host
    return resolve.resolve(read(policies), NODE, state)


def plan_of(
    host: str | HostState,
    policies: str,
    recorded: Recorded = NOTHING_RECORDED,
    standing: Standing = planning.NOTHING_STANDS,
) -> Plan:
    state = state_of(host) if isinstance(host, str) else host
    return planning.make_plan(desired_of(state, policies), state, recorded, standing)


def row_text(row: Row) -> str:
    """`eth0 uplink.offloads.lro Fixed`, or `would` in the place of the reason for a pending change."""
    return f"{row.subject.removeprefix('link/')} {row.setting} {row.reason or 'would'}"


def said(rows: Iterable[Row]) -> list[str]:
    """One line for each row, with its message."""
    return [f"{row_text(row)}: {row.message}" for row in rows]


def summary(plan: Plan) -> list[str]:
    """Everything that a plan would do and cannot do, in order, without messages."""
    return [row_text(row) for row in (*plan.pending, *plan.blocked)]
