"""What is put back at the end: by `virtnet release`, by the end of a policy, and when somebody still holds a tap."""

from __future__ import annotations

import pytest

from tests.kernel import holding
from tests.kernel.agent import Agent, eventually, lay_lan, master, snapshot
from tests.kernel.playground import Playground

EVERYTHING = """
bridge: {name: brx, create: true, ports: [spare0], ageingTimeSeconds: 60, offloads: {tso: false}}
uplink: {match: {names: ['up*']}, offloads: {tx: false, gro: true}}
tap: {match: {names: ['*tap*']}, create: [{name: vm0}], offloads: {gro: false, gso: false}, txQueueLength: 500}
"""


@pytest.fixture(autouse=True)
def lan(playground: Playground) -> None:
    lay_lan(playground)
    playground.run("ip link add spare0 type veth peer name far1")
    playground.run("ethtool -K up0 tso off")
    playground.batch(*(f"tuntap add tap{number} mode tap" for number in range(1, 13)))


def test_release_puts_everything_back_however_much_it_is(agent: Agent, playground: Playground) -> None:
    originals = snapshot(playground)
    agent.wish("all", EVERYTHING)
    agent.start()
    assert agent.reasons() == {}
    assert master(playground, "spare0") == "brx"
    agent.stop()
    assert snapshot(playground) != originals
    released = agent.command("release")
    assert (released.code, released.err) == (0, "")
    assert snapshot(playground) == originals
    again = agent.command("release")
    assert (again.code, again.out) == (0, "Everything is put back; nothing was changed.\n")


def test_after_a_release_the_policies_are_in_force_again_at_the_next_start(
    agent: Agent, playground: Playground
) -> None:
    agent.wish("all", EVERYTHING)
    agent.start()
    enforced = without_made(playground)
    agent.kill()
    assert agent.command("release").code == 0
    agent.start()
    assert without_made(playground) == enforced


def without_made(playground: Playground) -> dict[str, object]:
    """The links that are the same ones before and after: what is made again has another ifindex."""
    return {name: link for name, link in snapshot(playground).items() if name not in ("brx", "vm0")}


def test_a_tap_of_ours_that_a_guest_holds_is_removed_when_it_lets_go(agent: Agent, playground: Playground) -> None:
    agent.wish("all", EVERYTHING)
    agent.start("--allow-mass-removal")
    guest = holding.hold(playground, "vm0", flags=0)
    agent.unwish("all")
    assert agent.reasons()["vm0", "tap.create"] == "InUse"
    assert str(guest.pid) in agent.messages("InUse")
    assert "vm0" in playground.links()
    holding.let_go(guest)
    eventually(lambda: "vm0" not in playground.links())
    eventually(lambda: "brx" not in playground.links())
