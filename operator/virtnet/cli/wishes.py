"""What the commands for single guests share: the policies that take part, and what is said of wishes in the way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from virtnet.cli import policies, terminal
from virtnet.core import nics, resolve
from virtnet.core.model import Node, Policy, Row


def read(files: Sequence[str], node: Node) -> tuple[Policy, ...]:
    """The policies of the files that select this node; others that ask something of guests are named."""
    found = policies.read(files)
    chosen = resolve.on_node(found, node)
    for policy in found:
        if policy not in chosen and nics.asks(policy):
            terminal.say(f"policy {policy.name}: its nodeSelector does not select {node.name}: left out")
    policies.say_doubts(chosen)
    return chosen


def say(rows: Iterable[Row]) -> None:
    """What is not as asked, a line each."""
    for row in rows:
        terminal.say(f"policy {row.policy}: {row.subject}: {row.setting}: {row.message} ({row.reason})")
