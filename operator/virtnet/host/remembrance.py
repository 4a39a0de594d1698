"""What an agent remembers of its cluster between two lives: the policies admitted here, and its Node; it never decides.

Kept apart from what `virtnet run` keeps of a directory: one host can have had both, at different times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from virtnet.host import codec
from virtnet.host.state import StateDir
from virtnet.values import frozen

__all__ = ["Admitted", "NodeFacts", "read_admitted", "read_node", "write_admitted", "write_node"]

ADMITTED = "admitted.json"
NODE = "node.json"


@frozen
class Admitted:
    """What a node holds of one policy. `text` is the object as JSON in the generation in force, "" while there is none.

    `orphaned`: it vanished together with the definition of its kind, which is no deletion.
    """

    uid: str
    text: str = ""
    orphaned: bool = False


@frozen
class NodeFacts:
    """What an agent needs to know of its Node. `hold` is the annotation's value, "" when there is none."""

    uid: str
    labels: Mapping[str, str] = field(default_factory=dict)
    hold: str = ""


def read_admitted(state: StateDir) -> Mapping[str, Admitted] | None:
    """By the policy's name; None when nothing was ever kept here, which is not "no policies"."""
    found: Mapping[str, Admitted] | None = _read(state, ADMITTED, Mapping[str, Admitted])
    return found


def write_admitted(state: StateDir, admitted: Mapping[str, Admitted]) -> None:
    """Durable: a node that boots without the API server enforces these."""
    state.write_json(ADMITTED, codec.encode(admitted), durable=True)


def read_node(state: StateDir) -> NodeFacts | None:
    """None when this node was never seen."""
    found: NodeFacts | None = _read(state, NODE, NodeFacts)
    return found


def write_node(state: StateDir, facts: NodeFacts) -> None:
    """Durable: a policy that selects this node by its labels must do so after a boot without the API server."""
    state.write_json(NODE, codec.encode(facts), durable=True)


def _read(state: StateDir, name: str, hint: Any) -> Any | None:
    raw = state.read_json(name)
    if raw is None:
        return None
    try:
        return codec.decode(hint, raw)
    except codec.DecodeError as error:
        state.set_aside(name, str(error))
        return None
