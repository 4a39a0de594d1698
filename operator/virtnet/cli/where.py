"""What the arguments of all commands mean: where to work, for which node, for how long."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from virtnet import errors
from virtnet.values import frozen

if TYPE_CHECKING:
    from virtnet.core.model import Node
    from virtnet.engine.workplace import Workplace
    from virtnet.host import LinuxHost

SECONDS: Mapping[str, int] = {"s": 1, "m": 60, "h": 3600, "d": 86400}
LONGEST_HOLD = 30 * SECONDS["d"]


@frozen
class Where:
    """The place that a command works on; labels as typed."""

    netns: str | None = None
    state_dir: Path | None = None
    node_name: str | None = None
    node_labels: Mapping[str, str] = field(default_factory=dict)
    libvirt_uri: str | None = None
    host: LinuxHost | None = None
    """The machine there, where it is open already."""

    def open(self, *, write: bool) -> AbstractContextManager[Workplace]:
        """The engine's side of it, to be entered. Raises `UsageError` and `HostError` when entered."""
        from virtnet.engine.workplace import Workplace

        return Workplace.open(
            netns=self.netns,
            state_dir=self.state_dir,
            node_name=self.node_name,
            node_labels=self.node_labels,
            libvirt_uri=self.libvirt_uri,
            host=self.host,
            write=write,
        )

    @contextmanager
    def seen_once(self) -> Iterator[Where]:
        """The same place after a first look at its links, which takes twice as long as any later one.

        What stands in the way of that is left to be told by `open`.
        """
        from virtnet.engine import workplace

        try:
            host = workplace.seen_host(self.netns)
        except errors.VirtnetError:
            yield self
            return
        with closing(host):
            yield replace(self, host=host)


def where(
    netns: str | None,
    state_dir: Path | None,
    node_name: str | None = None,
    labels: Iterable[str] | None = None,
    libvirt_uri: str | None = None,
) -> Where:
    return Where(netns, state_dir, node_name, dict(map(label, labels or ())), libvirt_uri)


def node(name: str | None, labels: Iterable[str] | None) -> Node:
    """The node that policies are chosen for; nothing of the host is read but its name."""
    from virtnet.engine import workplace

    return workplace.this_node(name, dict(map(label, labels or ())))


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
