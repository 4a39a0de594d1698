"""The life of `virtnet run`: its start, what it tells, who else may work beside it, holds, and every way to end it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.kernel.agent import (
    LISTEN,
    Agent,
    boot_id,
    eventually,
    gro,
    is_root,
    lay_lan,
    option,
    snapshot,
    tso,
)
from tests.kernel.playground import Playground
from virtnet.kube.status import NodeStateStatus

LAN = """
bridge: {name: br0, ageingTimeSeconds: 60}
uplink: {match: {names: [up0]}, offloads: {tso: false}}
tap: {offloads: {gro: false}, txQueueLength: 500}
"""
LISTENER = (
    "import socket, sys; taken = socket.create_server((sys.argv[1], int(sys.argv[2]))); print(flush=True); input()"
)
NARROW = "tap: {match: {names: ['tap*']}, offloads: {gro: false}}"


@pytest.fixture
def lan(playground: Playground) -> None:
    lay_lan(playground)
    playground.run("ip link set lo up")


pytestmark = pytest.mark.usefixtures("lan")


def is_as_asked(playground: Playground) -> bool:
    links = playground.links()
    values = (option(playground, "br0", "ageing_time"), links["tap0"]["txqlen"])
    return values == (6000, 500) and not tso(playground, "up0") and not gro(playground, "tap0")


# --- what it does and what it tells ------------------------------------------------------------------------


def test_the_first_pass_puts_the_policies_in_force(agent: Agent, playground: Playground) -> None:
    agent.wish("lan", LAN)
    agent.start()
    assert is_as_asked(playground)
    assert agent.condition("Ready")[:2] == ("True", "AsAsked")
    assert agent.condition("Complete")[0] == "True"


def test_state_json_is_a_valid_node_state_that_agrees_with_the_oracles(agent: Agent, playground: Playground) -> None:
    agent.wish("lan", LAN.replace("tso: false", "tso: false, lro: true"), generation=7)
    agent.start()
    status = agent.status()
    NodeStateStatus.model_validate(status)
    assert status["agent"]["bootID"] == boot_id()
    assert agent.generations() == {"lan": 7}
    assert agent.reasons() == {("up0", "uplink.offloads.lro"): "Fixed"}
    links = {link["name"]: link for link in status["links"]}
    assert links["tap0"]["effective"] == {"gro": False, "txQueueLength": 500}
    assert (links["up0"]["role"], links["up0"]["master"], links["up0"]["driver"]) == ("uplink", "br0", "veth")
    assert links["br0"]["wanted"] == {"ageingTimeSeconds": 60}
    assert len(json.dumps(status)) < 4096


def test_the_web_site_says_that_all_is_well_and_counts(agent: Agent, playground: Playground) -> None:
    agent.wish("lan", LAN, generation=3)
    agent.start(listen=LISTEN)
    assert eventually(lambda: "serving" if answers(agent) else "") == "serving"
    assert agent.fetch("/healthz") == (200, "ok\n")
    assert agent.fetch("/readyz")[0] == 200
    assert agent.fetch("/nothing")[0] == 404
    playground.run("ethtool -K tap0 gro on")
    eventually(lambda: not gro(playground, "tap0"))
    found = metrics(agent)
    assert found['virtnet_drift_detected_total{setting="feature:rx-gro",surface="link"}'] == 1
    assert found['virtnet_drift_repaired_total{setting="feature:rx-gro",surface="link"}'] == 1
    assert (found["virtnet_repair_seconds_count"], found["virtnet_policies"], found["virtnet_contended"]) == (1, 1, 0)
    assert found['virtnet_admitted_generation{policy="lan"}'] == 3
    assert found["virtnet_pass_seconds_count"] >= 1
    assert found['virtnet_blocked{reason="Fixed"}'] == 0
    assert "tap0" not in agent.fetch("/metrics")[1]


def answers(agent: Agent) -> bool:
    try:
        return agent.fetch("/healthz")[0] == 200
    except AssertionError:
        return False


def metrics(agent: Agent) -> dict[str, float]:
    lines = [line for line in agent.fetch("/metrics")[1].splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_a_policy_that_fails_makes_the_node_not_ready_and_settled_reasons_do_not(
    agent: Agent, playground: Playground
) -> None:
    agent.wish("lan", LAN.replace("tso: false", "lro: true"))
    agent.start(listen=LISTEN)
    eventually(lambda: answers(agent))
    assert agent.fetch("/readyz")[0] == 200
    assert agent.condition("Complete")[:2] == ("False", "Fixed")
    agent.wish_and_wait("lan", "bridge: {name: br9, ports: [far0]}", generation=2)
    code, text = agent.fetch("/readyz")
    assert (code, text.partition(":")[0]) == (503, "Missing")
    assert metrics(agent)['virtnet_blocked{reason="Missing"}'] >= 1


def test_a_busy_port_is_a_warning_and_enforcing_goes_on(agent: Agent, playground: Playground) -> None:
    taken = playground.start(sys.executable, "-c", LISTENER, *LISTEN.split(":"))
    assert taken.stdout is not None
    assert taken.stdout.readline() == "\n"
    agent.wish("lan", LAN)
    agent.start(listen=LISTEN)
    eventually(lambda: f"cannot listen on {LISTEN}" in agent.log())
    assert "level=warning" in next(line for line in agent.log().splitlines() if "cannot listen" in line)
    assert is_as_asked(playground)
    playground.run("ethtool -K tap0 gro on")
    eventually(lambda: not gro(playground, "tap0"))


# --- who else works on this host ---------------------------------------------------------------------------


def test_a_second_run_ends_with_1_and_names_the_first(agent: Agent, playground: Playground) -> None:
    agent.wish("lan", LAN)
    agent.start()
    assert agent.child is not None
    second = agent.command("run", "--policies", str(agent.policies), "--listen", "")
    assert second.code == 1
    assert f"held by the virtnet process {agent.child.pid}" in second.err
    assert len(second.err.splitlines()) == 1
    assert is_as_asked(playground)


# --- its end -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_it_with_0_within_5_seconds_and_restores_nothing(
    number: signal.Signals, agent: Agent, playground: Playground
) -> None:
    agent.wish("lan", LAN)
    agent.start(listen=LISTEN)
    before = snapshot(playground)
    started = time.monotonic()
    assert agent.signal(number) == 0
    assert time.monotonic() - started < 5
    assert snapshot(playground) == before
    assert is_as_asked(playground)
    assert "Traceback" not in agent.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_changes_nothing_on_a_host_as_desired_and_still_knows_the_originals(
    number: signal.Signals, agent: Agent, playground: Playground
) -> None:
    originals = snapshot(playground)
    agent.wish("lan", LAN)
    agent.start()
    agent.signal(number)
    desired = snapshot(playground)
    watching = playground.start("ip", "monitor", "link")
    agent.start()
    playground.run("ip link add marker type bridge")
    assert watching.stdout is not None
    assert "marker" in watching.stdout.readline()
    playground.run("ip link del marker")
    assert snapshot(playground) == desired
    agent.unwish("lan")
    assert snapshot(playground) == originals


def test_drift_while_nobody_ran_is_repaired_at_the_start_and_is_no_original(
    agent: Agent, playground: Playground
) -> None:
    originals = snapshot(playground)
    agent.wish("lan", LAN)
    agent.start()
    agent.kill()
    playground.batch("link set tap0 txqueuelen 77", "link set br0 type bridge ageing_time 777")
    playground.run("ethtool -K tap0 gro on")
    agent.start()
    assert is_as_asked(playground)
    agent.unwish("lan")
    assert snapshot(playground) == originals


# --- holds -------------------------------------------------------------------------------------------------


def test_a_held_link_is_left_alone_until_the_hold_is_lifted_and_the_others_are_repaired(
    agent: Agent, playground: Playground
) -> None:
    agent.wish("lan", LAN)
    agent.start()
    assert agent.command("hold", "tap0", "--for", "1h").code == 0
    playground.run("ethtool -K tap0 gro on")
    playground.run("ip link set tap0 txqueuelen 77")
    playground.run("ethtool -K up0 tso on")
    eventually(lambda: not tso(playground, "up0"))
    eventually(lambda: len(agent.reasons()) == 2)
    assert agent.reasons() == {("tap0", "tap.offloads.gro"): "Held", ("tap0", "tap.txQueueLength"): "Held"}
    assert agent.condition("Held")[:2] == ("True", "LinksHeld")
    assert agent.condition("Ready")[0] == "True"
    assert (gro(playground, "tap0"), playground.links()["tap0"]["txqlen"]) == (True, 77)
    assert agent.command("unhold", "tap0").code == 0
    eventually(lambda: is_as_asked(playground))
    eventually(lambda: agent.condition("Held")[0] == "False")


def test_while_the_node_is_held_a_new_policy_and_the_end_of_one_change_nothing(
    agent: Agent, playground: Playground
) -> None:
    originals = snapshot(playground)
    agent.wish("lan", LAN)
    agent.start()
    assert agent.command("hold").code == 0
    held = snapshot(playground)
    agent.unwish("lan")
    agent.wish_and_wait("other", "tap: {match: {names: [tap0]}, mtu: 1400}")
    assert snapshot(playground) == held
    assert set(agent.reasons().values()) == {"Held"}
    (agent.policies / "other.yaml").unlink()
    assert agent.command("unhold").code == 0
    eventually(lambda: snapshot(playground) == originals)


def test_an_edit_while_the_link_is_held_does_not_lose_the_original(agent: Agent, playground: Playground) -> None:
    originals = snapshot(playground)
    agent.wish("lan", LAN)
    agent.start()
    assert agent.command("hold").code == 0
    agent.wish_and_wait("lan", "tap: {match: {names: [tap0]}, offloads: {gro: true}, txQueueLength: 600}", generation=2)
    agent.wish_and_wait("lan", "tap: {match: {names: [tap0]}, txQueueLength: 700}", generation=3)
    (agent.policies / "lan.yaml").unlink()
    assert agent.command("unhold").code == 0
    eventually(lambda: snapshot(playground) == originals)


def test_a_start_says_what_is_kept_and_what_is_held(agent: Agent) -> None:
    assert agent.command("hold", "tap0", "--for", "1h").code == 0
    agent.start()
    assert f"as {agent.policies} says; what was there before is kept in {agent.state}" in agent.log()
    assert re.search(r"link tap0 is held until [-0-9: ]+: reported, not changed", agent.log())


def test_a_hold_ends_by_itself(agent: Agent, playground: Playground) -> None:
    agent.wish("lan", LAN)
    agent.start()
    assert agent.command("hold", "--for", "3s").code == 0
    playground.run("ethtool -K tap0 gro on")
    eventually(lambda: agent.reasons() == {("tap0", "tap.offloads.gro"): "Held"})
    assert gro(playground, "tap0")
    eventually(lambda: not gro(playground, "tap0"))
    eventually(lambda: agent.condition("Held")[0] == "False")


def test_a_hold_outlives_a_restart(agent: Agent, playground: Playground) -> None:
    agent.wish("lan", LAN)
    agent.start()
    assert agent.command("hold").code == 0
    agent.kill()
    playground.run("ethtool -K tap0 gro on")
    agent.start()
    assert gro(playground, "tap0")
    assert agent.condition("Held")[:2] == ("True", "Held")


# --- a namespace of its own --------------------------------------------------------------------------------


def test_a_namespace_that_is_removed_and_made_again_is_enforced_anew(agent: Agent, playground: Playground) -> None:
    if not is_root():
        # A plain user cannot bind namespaces under /run/netns: the name is refused in one sentence.
        refused = agent.command("run", "--policies", str(agent.policies), "--netns", "virtnet-none")
        assert (refused.code, len(refused.err.splitlines())) == (1, 1)
        return
    agent.wish("narrow", NARROW)
    agent.start(by_name=True)
    assert not gro(playground, "tap0")
    subprocess.run(["ip", "netns", "del", str(playground.netns)], check=True, timeout=30)
    eventually(lambda: agent.condition("Ready")[1] == "Missing")
    subprocess.run(["ip", "netns", "add", str(playground.netns)], check=True, timeout=30)
    playground.run("ip tuntap add tap1 mode tap")
    eventually(lambda: not gro(playground, "tap1"))
    eventually(lambda: agent.condition("Ready")[0] == "True")
