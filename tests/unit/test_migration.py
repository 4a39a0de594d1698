"""Which nodes a guest can move between: fingerprints as values, and what is said of their differences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.test_fleet import NOW, POLICY, a_fleet
from virtnet.core import fleet, migration
from virtnet.core.model import Fingerprint
from virtnet.kube import sightings

OLD, NEW = Fingerprint(0x7173, 0x13_3C00_8000), Fingerprint(0x71F3, 0x113_3C00_8000)


def condition(**nodes: Fingerprint) -> dict[str, Any] | None:
    found = a_fleet(**dict.fromkeys(nodes))
    states = {name: replace(found.states[name], fingerprint=bits) for name, bits in nodes.items()}
    status = fleet.judge(POLICY, replace(found, states=states), None, {}, NOW).status
    return next((each for each in status["conditions"] if each["type"] == "MigrationCompatible"), None)


def test_nodes_with_the_same_kernel_features_are_compatible() -> None:
    found = condition(n1=OLD, n2=OLD)
    assert found is not None
    assert (found["status"], found["reason"]) == ("True", "SameFeatures")


def test_the_bits_and_the_nodes_that_differ_are_named() -> None:
    found = condition(n1=OLD, n2=OLD, n3=NEW)
    assert found is not None
    assert (found["status"], found["reason"]) == ("False", "FeaturesDiffer")
    assert found["message"] == "tun bit 7: on n3, not on n1, n2; vhost RING_RESET (bit 40): on n3, not on n1, n2"


@pytest.mark.parametrize("other", [Fingerprint(), None])
def test_a_single_node_is_compared_with_nobody(other: Fingerprint | None) -> None:
    assert condition(n1=OLD, **({"n2": other} if other else {})) is None


def test_a_device_that_a_node_does_not_tell_of_takes_no_part() -> None:
    assert migration.compare({"n1": OLD, "n2": replace(OLD, vhost=None)}).alike is True


def test_of_many_nodes_and_bits_only_some_are_named() -> None:
    nodes = {f"n{number}": Fingerprint(0) for number in range(9)} | {"x": Fingerprint((1 << 9) - 1)}
    message = migration.compare(nodes).message
    assert message.startswith("tun TUN (bit 0): on x, not on n0, n1, n2 and 6 more; ")
    assert message.endswith("; and 5 more bits")


@pytest.mark.parametrize(
    ("written", "known"),
    [
        ({"tun": "0x7173", "vhost": "0x1000000"}, Fingerprint(0x7173, 1 << 24)),
        ({"tun": "0x7173"}, Fingerprint(0x7173)),
        ({"tun": "many", "vhost": 7}, Fingerprint()),
        ("nothing", Fingerprint()),
    ],
)
def test_a_fingerprint_is_read_from_a_nodes_state(written: object, known: Fingerprint) -> None:
    assert sightings.state({"status": {"fingerprint": written}}).fingerprint == known
