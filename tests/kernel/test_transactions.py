"""Changes that can cut the node off, on a node whose gateway is a real neighbour: made, proven, or all put back.

The cut: a bridge takes the lowest hardware address of its ports, so one port more gives it another address, and a
switch with port security no longer talks to the node.
"""

from __future__ import annotations

import signal
import time

import pytest

from tests.kernel.agent import Agent, eventually, manifest, master, option, replace, snapshot
from tests.kernel.neighbour import GATEWAY, OURS, Neighbour
from tests.kernel.playground import Playground

UP0, SPARE0 = "02:00:00:00:00:aa", "02:00:00:00:00:01"
SAFE = "bridge: {name: br0, ageingTimeSeconds: 60, mtu: 1400}"
CUTTING = """
bridge: {name: br0, ports: [spare0], ageingTimeSeconds: 60, mtu: 1400}
tap: {match: {names: [tap0]}, txQueueLength: 500}
"""
RISKY = {("spare0", "bridge.ports"), ("br0", "bridge.ageingTimeSeconds"), ("br0", "bridge.mtu")}
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 9), timeout=2).close()
except ConnectionRefusedError:
    print("it refuses, so it is there")
"""


@pytest.fixture(autouse=True)
def neighbour(playground: Playground) -> Neighbour:
    """br0 carries our address; its port up0 leads to the gateway. Nobody uses spare0 and tap0."""
    made = Neighbour(playground, "up0")
    made.admit(UP0)
    playground.batch(
        "link set lo up",
        "link add br0 type bridge",
        f"link set up0 address {UP0} master br0 up",
        "link set br0 up",
        f"addr add {OURS}/24 dev br0",
        f"route add default via {GATEWAY}",
        f"link add spare0 address {SPARE0} type veth peer name far1",
        "tuntap add tap0 mode tap",
    )
    eventually(lambda: reaches_the_gateway(playground))
    return made


def reaches_the_gateway(playground: Playground) -> bool:
    try:
        playground.python(CONNECT, GATEWAY)
    except AssertionError:
        return False
    return True


def safety(seconds: int = 2, more: str = "") -> str:
    return f"\nsafety: {{timeoutSeconds: {seconds}{more}}}"


def rolled_back(agent: Agent) -> set[tuple[str, str]]:
    return {row for row, reason in agent.reasons().items() if reason == "RolledBack"}


# --- made, or put back -------------------------------------------------------------------------------------


def test_changes_after_which_the_gateway_still_answers_stay(agent: Agent, playground: Playground) -> None:
    agent.wish("lan", SAFE + safety())
    agent.start()
    assert agent.reasons() == {}
    assert (option(playground, "br0", "ageing_time"), playground.links()["br0"]["mtu"]) == (6000, 1400)
    assert not (agent.state / "transaction.json").exists()


def test_changes_that_cut_the_way_to_the_gateway_are_all_put_back_and_the_others_stay(
    agent: Agent, playground: Playground
) -> None:
    before = snapshot(playground)
    agent.wish("lan", CUTTING + safety())
    agent.start()
    assert agent.reasons() == dict.fromkeys(RISKY, "RolledBack")
    assert f"put back because the node lost its way: gateway {GATEWAY}%br0" in agent.messages("RolledBack")
    assert agent.condition("Ready")[:2] == ("False", "RolledBack")
    after = snapshot(playground)
    assert after.pop("tap0")[0]["txqlen"] == 500
    assert after == {name: link for name, link in before.items() if name != "tap0"}
    assert f"default via {GATEWAY} dev br0" in playground.run("ip route")
    assert reaches_the_gateway(playground)


def test_a_tcp_target_that_is_lost_is_named(agent: Agent, playground: Playground) -> None:
    probes = f", probes: {{gateway: false, tcp: ['{GATEWAY}:9']}}"
    agent.wish("lan", CUTTING + safety(more=probes))
    agent.start()
    assert rolled_back(agent) == RISKY
    assert f"TCP {GATEWAY}:9" in agent.messages("RolledBack")
    assert reaches_the_gateway(playground)


def test_a_probe_that_failed_before_is_not_held_against_the_change_and_costs_no_waiting(
    agent: Agent, playground: Playground, neighbour: Neighbour
) -> None:
    neighbour.leave()
    probes = ", probes: {tcp: ['192.0.2.77:9']}"
    agent.wish("lan", CUTTING + safety(60, probes))
    started = time.monotonic()
    agent.start()
    assert time.monotonic() - started < 30
    assert (agent.reasons(), master(playground, "spare0")) == ({}, "br0")


def test_without_rollback_the_change_stays_whatever_it_cuts(agent: Agent, playground: Playground) -> None:
    agent.wish("lan", CUTTING + safety(more=", rollback: false"))
    agent.start()
    assert (agent.reasons(), master(playground, "spare0")) == ({}, "br0")
    assert not reaches_the_gateway(playground)


def test_one_policy_that_cuts_does_not_take_another_policys_changes_back(agent: Agent, playground: Playground) -> None:
    agent.wish("cutting", "priority: 1\nbridge: {name: br0, ports: [spare0]}" + safety())
    agent.wish("safe", SAFE + safety())
    agent.start()
    assert rolled_back(agent) == {("spare0", "bridge.ports")}
    assert (option(playground, "br0", "ageing_time"), playground.links()["br0"]["mtu"]) == (6000, 1400)


def test_the_end_of_a_policy_that_would_cut_the_node_off_is_put_back_too(agent: Agent, playground: Playground) -> None:
    playground.run("ip link set up0 nomaster")
    agent.wish("lan", "bridge: {name: br0, ports: [up0]}" + safety())
    agent.start()
    assert reaches_the_gateway(playground)
    agent.unwish("lan")
    assert master(playground, "up0") == "br0"
    assert rolled_back(agent) == {("up0", "master")}
    assert reaches_the_gateway(playground)


@pytest.mark.parametrize(
    ("carried", "said"),
    [
        ("addr add 198.51.100.7/24 dev spare0", "address 198.51.100.7/24"),
        ("addr add 2001:db8::7/64 dev spare0", "address 2001:db8::7/64"),
        ("route add 203.0.113.0/24 dev spare0", "route 203.0.113.0/24"),
    ],
)
def test_a_link_that_carries_something_is_never_made_a_port(
    carried: str, said: str, agent: Agent, playground: Playground
) -> None:
    playground.batch("link set spare0 up", carried)
    agent.wish("lan", CUTTING + safety())
    agent.start()
    assert agent.reasons() == {("spare0", "bridge.ports"): "CarriesAddresses"}
    assert f"spare0 carries {said}" in agent.messages("CarriesAddresses")
    assert master(playground, "spare0") is None
    assert option(playground, "br0", "ageing_time") == 6000


def test_a_link_local_address_is_nothing_that_a_port_must_keep(agent: Agent, playground: Playground) -> None:
    playground.batch("link set spare0 up", "link set far1 up", "addr add fe80::7/64 dev spare0")
    neighbourless = CUTTING + safety(more=", rollback: false")
    agent.wish("lan", neighbourless)
    agent.start()
    assert master(playground, "spare0") == "br0"


# --- not tried again ---------------------------------------------------------------------------------------


def test_what_went_back_is_not_tried_again_and_not_repaired_until_the_policy_changes(
    agent: Agent, playground: Playground, neighbour: Neighbour
) -> None:
    agent.wish("lan", CUTTING + safety())
    agent.start("--resync", "1")
    assert rolled_back(agent) == RISKY
    neighbour.admit(SPARE0)
    playground.run("ip link set br0 type bridge ageing_time 1200")
    agent.wait_for_passes(2)
    assert (master(playground, "spare0"), option(playground, "br0", "ageing_time")) == (None, 1200)
    agent.stop()
    agent.start()
    agent.wait_until_calm()
    assert (master(playground, "spare0"), rolled_back(agent)) == (None, RISKY)
    agent.wish_and_wait("lan", CUTTING + safety(), generation=2)
    eventually(lambda: agent.reasons() == {})
    assert (master(playground, "spare0"), option(playground, "br0", "ageing_time")) == ("br0", 6000)
    assert reaches_the_gateway(playground)


def test_apply_tries_again_what_went_back(agent: Agent, playground: Playground, neighbour: Neighbour) -> None:
    agent.wish("lan", CUTTING + safety())
    agent.start()
    assert rolled_back(agent) == RISKY
    agent.stop()
    assert agent.command("apply", str(agent.policies)).code == 3
    assert master(playground, "spare0") is None
    neighbour.admit(SPARE0)
    assert agent.command("apply", str(agent.policies)).code == 0
    assert master(playground, "spare0") == "br0"
    agent.start()
    assert agent.reasons() == {}


def test_another_content_of_the_same_generation_is_tried(agent: Agent, playground: Playground) -> None:
    agent.wish("lan", CUTTING + safety())
    agent.start()
    assert rolled_back(agent) == RISKY
    replace(agent.policies / "lan.yaml", manifest("lan", SAFE + safety()))
    eventually(lambda: agent.reasons() == {})
    assert playground.links()["br0"]["mtu"] == 1400


def test_after_an_edit_that_went_back_the_end_of_the_policy_still_finds_the_originals(
    agent: Agent, playground: Playground
) -> None:
    originals = snapshot(playground)
    agent.wish("lan", SAFE + safety())
    agent.start()
    edited = CUTTING.replace("60, mtu: 1400", "50, mtu: 1300")
    agent.wish_and_wait("lan", edited + safety(), generation=2)
    assert rolled_back(agent) == RISKY
    assert (option(playground, "br0", "ageing_time"), playground.links()["br0"]["mtu"]) == (6000, 1400)
    agent.kill()
    agent.start()
    agent.unwish("lan")
    assert snapshot(playground) == originals


# --- ended in the middle -----------------------------------------------------------------------------------


def start_and_wait_for_the_middle(agent: Agent, playground: Playground) -> None:
    """The changes are made, and the gateway is asked in vain for two minutes."""
    agent.wish("lan", CUTTING + safety(120))
    agent.spawn()
    eventually(lambda: is_in_the_middle(playground))


def is_in_the_middle(playground: Playground) -> bool:
    return master(playground, "spare0") == "br0" and option(playground, "br0", "ageing_time") == 6000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_in_the_middle_puts_everything_back_first(
    number: signal.Signals, agent: Agent, playground: Playground
) -> None:
    before = snapshot(playground)
    start_and_wait_for_the_middle(agent, playground)
    started = time.monotonic()
    assert agent.signal(number) == 0
    assert time.monotonic() - started < 5
    after = snapshot(playground)
    assert [after[name] for name in ("br0", "spare0")] == [before[name] for name in ("br0", "spare0")]
    assert reaches_the_gateway(playground)
    assert "Traceback" not in agent.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_apply_that_is_interrupted_in_the_middle_puts_everything_back_first(
    number: signal.Signals, agent: Agent, playground: Playground
) -> None:
    before = snapshot(playground)
    agent.wish("lan", CUTTING + safety(120))
    with agent.running("apply", str(agent.policies)) as child:
        eventually(lambda: is_in_the_middle(playground))
        child.send_signal(number)
        _, err = child.communicate(timeout=20)
    assert (child.returncode, "Traceback" in err) == (128 + number, False), err
    after = snapshot(playground)
    assert [after[name] for name in ("br0", "spare0")] == [before[name] for name in ("br0", "spare0")]
    assert reaches_the_gateway(playground)


def test_after_a_kill_in_the_middle_the_next_start_puts_everything_back_and_does_not_try_again(
    agent: Agent, playground: Playground
) -> None:
    before = snapshot(playground)
    start_and_wait_for_the_middle(agent, playground)
    agent.kill()
    assert not reaches_the_gateway(playground)
    agent.start()
    assert reaches_the_gateway(playground)
    after = snapshot(playground)
    assert [after[name] for name in ("br0", "spare0")] == [before[name] for name in ("br0", "spare0")]
    assert rolled_back(agent) == RISKY
    assert "interrupted" in agent.messages("RolledBack")
    assert not (agent.state / "transaction.json").exists()


def test_the_originals_are_known_after_a_kill_in_the_middle(agent: Agent, playground: Playground) -> None:
    before = snapshot(playground)
    start_and_wait_for_the_middle(agent, playground)
    agent.kill()
    (agent.policies / "lan.yaml").unlink()
    agent.start()
    eventually(lambda: snapshot(playground) == before)
    assert reaches_the_gateway(playground)
