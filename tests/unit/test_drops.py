"""Taps that drop what is for their guests: counts over time, and whom that is said to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit import hosts
from tests.unit.test_path import NETDEV, REQUIRED, host, qemu
from virtnet.core import running
from virtnet.core.model import HostState, Policy, VhostMode, VhostSpec
from virtnet.engine.drops import BETWEEN, MANY, Drops

AUTO = replace(REQUIRED, name="auto", vhost=VhostSpec(mode=VhostMode.AUTO))
ENOUGH = int(BETWEEN * MANY)


def on_vhost() -> tuple[HostState, int]:
    state = host(qemu(f"{NETDEV},vhost=on", vhost=1))
    return state, hosts.named(state, "tap0").ifindex


@pytest.mark.parametrize(
    ("looks", "found"),
    [
        ([(0, 10**6)], False),  # it dropped much before, and nobody knows when
        ([(0, 5), (BETWEEN, 5 + ENOUGH)], True),
        ([(0, 5), (BETWEEN, 4 + ENOUGH)], False),
        ([(0, 5), (1, 5 + ENOUGH)], False),  # too early to say
        ([(0, 5), (1, 9), (BETWEEN, 5 + ENOUGH)], True),  # the early look moves nothing
        ([(0, 0), (BETWEEN, ENOUGH), (BETWEEN + 1, ENOUGH)], True),  # still, for the time being
        ([(0, 0), (BETWEEN, ENOUGH), (3 * BETWEEN, ENOUGH)], False),  # over
        ([(0, ENOUGH), (BETWEEN, 0), (2 * BETWEEN, 1)], False),  # another tap has the number now
    ],
)
def test_a_tap_drops_when_it_does_so_for_a_while(looks: list[tuple[float, int]], found: bool) -> None:
    drops = Drops()
    for now, count in looks:
        seen = drops.look({7: count}, now)
    assert (7 in seen) is found


def test_a_tap_that_is_gone_is_forgotten() -> None:
    drops = Drops()
    drops.look({7: 0}, 0)
    drops.look({}, BETWEEN)
    assert drops.look({7: ENOUGH}, 2 * BETWEEN) == frozenset()


def test_a_guest_whose_vhost_is_left_to_it_gets_the_advice_and_nothing_is_switched() -> None:
    state, tap = on_vhost()
    (entry,) = running.entries([AUTO], state, (), {tap})
    assert entry["vhostEvidence"].endswith("see UdpHostToGuest in docs/profiles.md")
    assert entry["wanted"] == {}
    assert not list(running.rows([AUTO], state))


@pytest.mark.parametrize("policies", [[], [REQUIRED], [AUTO, replace(REQUIRED, priority=1)]])
def test_who_has_decided_about_vhost_gets_no_advice(policies: list[Policy]) -> None:
    state, tap = on_vhost()
    assert running.overrun(policies, state, {tap}) == ()


def test_without_vhost_or_drops_there_is_no_advice() -> None:
    state, tap = on_vhost()
    assert running.overrun([AUTO], state, ()) == ()
    assert running.overrun([AUTO], host(qemu()), {tap}) == ()
