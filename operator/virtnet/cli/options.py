"""What the arguments of all commands mean: where to work, for which node, for how long."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from virtnet import errors
from virtnet.cli.terminal import Output
from virtnet.values import frozen

if TYPE_CHECKING:
    from virtnet.engine.workplace import Workplace

Netns = Annotated[
    str | None, typer.Option("--netns", metavar="NAME", help="Network namespace, as `ip netns` names them.")
]
State = Annotated[
    Path | None,
    typer.Option(
        "--state-dir", metavar="DIR", readable=False, help="Where originals are kept; default /var/lib/virtnet."
    ),
]
NodeName = Annotated[
    str | None, typer.Option("--node-name", metavar="NAME", help="Name of this node; default: the host name.")
]
NodeLabels = Annotated[
    list[str] | None,
    typer.Option("--node-label", metavar="KEY=VALUE", help="A label of this node for nodeSelector; repeatable."),
]
Format = Annotated[Output, typer.Option("--output", "-o", help="Tables for people, json and yaml for programs.")]
Files = Annotated[
    list[str], typer.Argument(metavar="FILE", help="Policy files, directories of them, or - for standard input.")
]
LinkName = Annotated[str | None, typer.Argument(metavar="[LINK]", help="One link; without it the whole node.")]

SECONDS: Mapping[str, int] = {"s": 1, "m": 60, "h": 3600, "d": 86400}
LONGEST_HOLD = 30 * SECONDS["d"]


@frozen
class Where:
    """The place that a command works on; labels as typed."""

    netns: str | None = None
    state_dir: Path | None = None
    node_name: str | None = None
    node_labels: Mapping[str, str] = field(default_factory=dict)

    def open(self, *, write: bool) -> AbstractContextManager[Workplace]:
        """The engine's side of it, to be entered. Raises `UsageError` and `HostError` when entered."""
        from virtnet.engine.workplace import Workplace

        return Workplace.open(
            netns=self.netns,
            state_dir=self.state_dir,
            node_name=self.node_name,
            node_labels=self.node_labels,
            write=write,
        )


def where(
    netns: str | None, state_dir: Path | None, node_name: str | None = None, labels: Iterable[str] | None = None
) -> Where:
    return Where(netns, state_dir, node_name, dict(map(label, labels or ())))


def label(text: str) -> tuple[str, str]:
    """`KEY=VALUE`; an empty value is one."""
    key, sign, value = text.partition("=")
    if not (key and sign):
        raise errors.UsageError(f"--node-label {text} has no value: write KEY=VALUE")
    return key, value


def seconds(text: str) -> int:
    """A duration: 90s, 15m, 1h, 2d."""
    found = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", text, re.ASCII)
    if not found:
        raise errors.UsageError(f"--for {text} is no duration: write 90s, 15m, 1h or 2d")
    duration = int(found[1]) * SECONDS[found[2]]
    if duration > LONGEST_HOLD:
        raise errors.UsageError(f"--for {text} is too long: at most 30d; for longer, set mode: Audit in the policy")
    return duration
