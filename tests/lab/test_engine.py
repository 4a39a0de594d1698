"""`virtnet run` on the virtual machine: vhost_net, rings, queues, bonds, vlans and guests, as policies ask for them.

One agent lives through the whole file, and every test takes its policies away again: what a policy changed has to be
back by then, so each test also proves the removal of the one before.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kernel import holding
from tests.kernel.agent import Agent, agent_on, eventually, gro, master, option
from tests.kernel.playground import Playground
from tests.lab.conftest import FILES, Module, Nics, run, uevents, wait_for
from tests.lab.guest import NAME, TAP, Guest

VHOST = "vhost_net"
ADDED, REMOVED = f"add@/module/{VHOST}".encode(), f"remove@/module/{VHOST}".encode()
STATE, PARAMETER = "vhost.module.state", "vhost.module.parameters.experimental_zcopytx"
START_SECONDS = 200.0
"""An emulated processor reads and compiles the whole product first."""
BRIDGE, BOND, VLAN = "labbr", "labbond", "labvlan"
FAR = "labfar"
GATEWAY, NODE = "192.0.2.1", "192.0.2.2/24"
SAMPLE_SECONDS = 0.01
"""A NIC that resets is without carrier for some seconds."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    run("modprobe", "--all", "bonding", "8021q", "tun")
    with agent_on(Playground(None), tmp_path_factory.mktemp("agent")) as made:
        made.spawn("--contention-repairs", "1000")
        eventually(lambda: made.status() or made.has_ended(), START_SECONDS)
        assert not made.has_ended(), made.log()
        yield made


@pytest.fixture
def agent(running: Agent) -> Iterator[Agent]:
    """The agent without a policy, before and after. Asked for last, it lets go before other fixtures clean up."""
    yield running
    for path in running.policies.glob("*.yaml"):
        path.unlink()
    eventually(lambda: running.generations() == {})


@pytest.fixture
def gateway(nics: Nics) -> Iterator[None]:
    """The node's way out, on a real wire: the last NIC, in a namespace of its own, has the gateway's address."""
    far = nics.e1000e[1]
    run("ip", "netns", "add", FAR)
    try:
        run("ip", "link", "set", far, "netns", FAR)
        run("ip", "-n", FAR, "addr", "add", f"{GATEWAY}/24", "dev", far)
        run("ip", "-n", FAR, "link", "set", far, "up")
        yield
    finally:
        run("ip", "netns", "del", FAR)
        eventually(lambda: Path("/sys/class/net", far).exists())


def reaches_gateway() -> bool:
    done = subprocess.run(["busybox", "ping", "-c", "1", "-W", "1", GATEWAY], capture_output=True, check=False)
    return done.returncode == 0


def give_address(link: str) -> None:
    """The node's address and its default route, on a link that is set up."""
    run("ip", "addr", "add", NODE, "dev", link)
    run("ip", "link", "set", link, "up")
    run("ip", "route", "replace", "default", "via", GATEWAY)


@contextmanager
def links(*commands: str, remove: Sequence[str]) -> Iterator[None]:
    """Links made by `ip` for one test."""
    try:
        for command in commands:
            run("ip", *command.split())
        yield
    finally:
        for name in remove:
            run("ip", "link", "delete", name)


@contextmanager
def moving_address(*names: str) -> Iterator[None]:
    """The node's address on the first link, and on none of them afterwards."""
    give_address(names[0])
    try:
        yield
    finally:
        for name in names:
            if Path("/sys/class/net", name).exists():
                run("ip", "-4", "addr", "flush", "dev", name)


def current(option: str, link: str) -> dict[str, int]:
    """What `ethtool -g` and `-l` show as set."""
    _, shown = run("ethtool", option, link).split("Current hardware settings:")
    return {key: int(value) for key, value in re.findall(r"^([\w ]+):\s+(\d+)$", shown, re.M)}


def managed(agent: Agent) -> set[str]:
    return {link["name"] for link in agent.status().get("links", ())}


def parameter() -> str:
    return Path("/sys/module", VHOST, "parameters/experimental_zcopytx").read_text().strip()


def answer(command: Sequence[str], first: bytes, second: bytes) -> None:
    """Run a command, and wait for the kernel's word of it and then of the agent's answer; print the time between."""
    with uevents() as listener:
        child = subprocess.Popen(command)
        did = wait_for(listener, first)
        answered = wait_for(listener, second)
        assert child.wait(30) == 0
    print(f"{' '.join(command)}: answered after {answered - did:.3f} s")


# --- vhost_net ---------------------------------------------------------------------------------------------


def test_a_loaded_module_is_kept_loaded_by_uevent_and_over_a_reboot_until_its_policy_ends(
    module: Module, agent: Agent
) -> None:
    agent.wish_and_wait("vhost", "vhost: {module: {state: Loaded, parameters: {experimental_zcopytx: 1}}}")
    assert (agent.reasons(), parameter()) == ({}, "1")
    contents = [path.read_text().splitlines()[1:] for path in FILES]
    assert contents == [[VHOST], [f"options {VHOST} experimental_zcopytx=1"]]
    agent.wait_until_calm()
    for command in (["rmmod", VHOST], ["modprobe", "--remove", VHOST]):
        answer(command, REMOVED, ADDED)
        eventually(lambda: module.loaded and agent.reasons() == {})
        assert parameter() == "1"
    assert "pass (a module was loaded or removed)" in agent.log()
    assert agent.drifts("vhost") == 4, "each time the module and its parameter"
    agent.unwish("vhost")
    assert (module.loaded, [path.exists() for path in FILES]) == (False, [False, False])


def test_an_absent_module_is_unloaded_by_uevent_and_loaded_again_when_its_policy_ends(
    module: Module, agent: Agent
) -> None:
    module.load()
    agent.wish_and_wait("absent", "vhost: {module: {state: Absent}}")
    assert (module.loaded, agent.reasons()) == (False, {})
    assert subprocess.run(["modprobe", VHOST], capture_output=True, check=False).returncode != 0
    answer(["modprobe", "--ignore-install", VHOST], ADDED, REMOVED)
    eventually(lambda: not module.loaded and agent.drifts("absent") == 1)
    agent.unwish("absent")
    assert (module.loaded, [path.exists() for path in FILES]) == (True, [False, False])


def test_without_persist_no_file_is_written(module: Module, agent: Agent) -> None:
    agent.wish_and_wait("vhost", "vhost: {module: {state: Absent, persist: false}}")
    answer(["modprobe", VHOST], ADDED, REMOVED)
    assert not any(path.exists() for path in FILES)


def test_guests_that_must_have_vhost_get_the_module(module: Module, agent: Agent) -> None:
    agent.wish_and_wait("vhost", "vhost: {mode: Required}")
    assert module.loaded
    agent.unwish("vhost")
    assert (module.loaded, [path.exists() for path in FILES]) == (False, [False, False])


def test_an_absent_module_waits_for_the_guest_that_holds_it_and_names_it(paused: Guest, agent: Agent) -> None:
    agent.wish_and_wait("vhost", "vhost: {module: {state: Absent}}")
    assert agent.reasons() == {("module/vhost_net", STATE): "InUse"}
    assert f"[{paused.process.pid}] (guest {NAME})" in agent.messages("InUse")
    assert agent.condition("Ready")[0] == "True"
    assert Module().loaded
    paused.stop()
    eventually(lambda: not Module().loaded and agent.reasons() == {})


def test_a_parameter_waits_for_the_guest_and_then_comes_with_a_reload(paused: Guest, agent: Agent) -> None:
    agent.wish_and_wait("vhost", "vhost: {module: {state: Loaded, parameters: {experimental_zcopytx: 1}}}")
    assert agent.reasons() == {("module/vhost_net", PARAMETER): "InUse"}
    assert f"a change needs a reload, and {VHOST} is in use by" in agent.messages("InUse")
    assert parameter() == "0"
    paused.stop()
    eventually(lambda: agent.reasons() == {})
    assert parameter() == "1"
    agent.unwish("vhost")
    assert (Module().loaded, parameter()) == (True, "0")


def test_a_user_that_has_no_tap_is_waited_for_too(module: Module, agent: Agent) -> None:
    module.load()
    program = "import sys; node = open('/dev/vhost-net', 'rb'); print(flush=True); sys.stdin.read()"
    child = agent.playground.start(sys.executable, "-c", program)
    assert child.stdout is not None
    assert child.stdout.readline() == "\n"
    agent.wish_and_wait("waits", "vhost: {module: {state: Absent}}")
    assert agent.reasons() == {("module/vhost_net", STATE): "InUse"}
    assert f"[{child.pid}]" in agent.messages("InUse")
    holding.let_go(child)
    eventually(lambda: not module.loaded and agent.reasons() == {})
    assert agent.drifts("waits") == 0, "nobody had changed what could be had"


# --- rings and queues --------------------------------------------------------------------------------------


def test_rings_and_queues_of_real_drivers_are_set_repaired_and_put_back(nics: Nics, agent: Agent) -> None:
    virtio, intel = nics.virtio_net[0], nics.e1000e[0]
    before = current("-g", virtio), current("-l", virtio), current("-g", intel)
    queues = 1 if before[1]["Combined"] > 1 else 2
    agent.wish("intel", f"uplink: {{match: {{names: [{intel}]}}, rings: {{rx: 128, tx: 512}}}}")
    spec = f"uplink: {{match: {{names: [{virtio}]}}, rings: {{rx: 128}}, channels: {{combined: {queues}}}}}"
    agent.wish_and_wait("virtio", spec)
    eventually(lambda: agent.generations() == {"intel": 1, "virtio": 1})
    assert agent.reasons() == {}
    rings = current("-g", intel)
    assert (rings["RX"], rings["TX"]) == (128, 512)
    assert (current("-g", virtio)["RX"], current("-l", virtio)["Combined"]) == (128, queues)
    agent.wait_until_calm()
    for command, link in ((("-G", intel, "rx", "1024"), intel), (("-G", virtio, "rx", "64"), virtio)):
        run("ethtool", *command)
        began = time.monotonic()
        eventually(lambda link=link: current("-g", link)["RX"] == 128)  # type: ignore[misc]
        print(f"ethtool {' '.join(command)}: repaired after {time.monotonic() - began:.3f} s")
    eventually(lambda: (agent.drifts("intel"), agent.drifts("virtio")) == (1, 1))
    agent.unwish("intel")
    agent.unwish("virtio")
    assert (current("-g", virtio), current("-l", virtio), current("-g", intel)) == before


def test_more_than_a_driver_allows_is_refused_and_what_it_lacks_is_unsupported(nics: Nics, agent: Agent) -> None:
    intel = nics.e1000e[0]
    before = current("-g", intel)
    match = f"match: {{names: [{intel}]}}"
    agent.wish_and_wait("up", f"uplink: {{{match}, rings: {{rx: 5000, tx: 512}}, channels: {{combined: 2}}}}")
    assert agent.reasons() == {
        (intel, "uplink.rings.rx"): "Refused",
        (intel, "uplink.channels.combined"): "Unsupported",
    }
    assert f"{intel} allows rings rx up to 4096" in agent.messages("Refused")
    assert current("-g", intel) == {**before, "TX": 512}


def test_rings_of_the_nodes_only_way_out_are_set_and_its_gateway_confirms(
    nics: Nics, gateway: None, agent: Agent
) -> None:
    nic = nics.e1000e[0]
    before = current("-g", nic)["RX"]
    with moving_address(nic):
        eventually(reaches_gateway)
        agent.wish_and_wait("up", f"uplink: {{match: {{names: [{nic}]}}, rings: {{rx: 128}}}}")
        assert (agent.reasons(), current("-g", nic)["RX"]) == ({}, 128)
        assert reaches_gateway()
        agent.unwish("up")
        assert current("-g", nic)["RX"] == before


# --- a bridge on the wire ----------------------------------------------------------------------------------


def test_a_nic_with_the_nodes_address_is_no_port_until_that_is_moved_and_a_cut_wire_is_put_back(
    nics: Nics, gateway: None, agent: Agent
) -> None:
    nic, made = nics.e1000e[0], "labup"
    spec = f"bridge: {{name: {made}, create: true, ports: [{nic}]%s}}\nsafety: {{timeoutSeconds: 5}}"
    with moving_address(nic, made):
        eventually(reaches_gateway)
        agent.wish_and_wait("lan", spec % "")
        assert agent.reasons() == {(nic, "bridge.ports"): "CarriesAddresses"}
        assert NODE.partition("/")[0] in agent.messages("CarriesAddresses")
        assert reaches_gateway()

        run("ip", "addr", "del", NODE, "dev", nic)
        give_address(made)
        eventually(lambda: master(agent.playground, nic) == made)
        eventually(reaches_gateway)

        run("bridge", "vlan", "del", "vid", "1", "dev", nic)
        agent.wish_and_wait("lan", spec % ", vlanFiltering: true", generation=2)
        assert agent.reasons() == {(made, "bridge.vlanFiltering"): "RolledBack"}
        assert f"gateway {GATEWAY}%{made}" in agent.messages("RolledBack")
        assert option(agent.playground, made, "vlan_filtering") == 0
        assert reaches_gateway()

        run("bridge", "vlan", "add", "vid", "1", "pvid", "untagged", "dev", nic)
        agent.wish_and_wait("lan", spec % ", vlanFiltering: true", generation=3)
        assert (agent.reasons(), option(agent.playground, made, "vlan_filtering")) == ({}, 1)
        assert reaches_gateway()
        run("ip", "addr", "del", NODE, "dev", made)
        agent.unwish("lan")
        assert made not in agent.playground.links()
        assert master(agent.playground, nic) is None


# --- bonds and vlans ---------------------------------------------------------------------------------------


@contextmanager
def bond(slaves: Sequence[str]) -> Iterator[None]:
    """A bridge whose port is a bond of these NICs, all with carrier."""
    making = [f"link add {BOND} type bond mode active-backup miimon 100"]
    for slave in slaves:
        making += [f"link set {slave} down", f"link set {slave} master {BOND}"]
    making += [f"link add {BRIDGE} type bridge", f"link set {BOND} master {BRIDGE}"]
    making += [f"link set {name} up" for name in (BOND, BRIDGE, *slaves)]
    with links(*making, remove=(BOND, BRIDGE)):
        eventually(lambda: all(map(has_carrier, (*slaves, BOND))))
        yield


def has_carrier(link: str) -> bool:
    try:
        return Path("/sys/class/net", link, "carrier").read_text().strip() == "1"
    except OSError:  # EINVAL: the link is down
        return False


@contextmanager
def watched(*names: str) -> Iterator[set[tuple[bool, ...]]]:
    """Every combination of carriers that these links are seen to have together."""
    seen: set[tuple[bool, ...]] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(SAMPLE_SECONDS):
            seen.add(tuple(map(has_carrier, names)))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


def test_slaves_of_a_bond_are_reset_one_after_another_and_the_bond_never_loses_its_carrier(
    nics: Nics, agent: Agent
) -> None:
    slaves = nics.e1000e
    one_by_one = {(True, True, True), (False, True, True), (True, False, True)}
    with bond(slaves):
        before = {name: agent.playground.ethtool(name) for name in (*slaves, BOND)}
        spec = "uplink: {offloads: {rx: false, rxvlan: false, rxhash: false, ntuple: false, lro: false, gro: false}}"
        with watched(*slaves, BOND) as seen:
            agent.wish_and_wait("bond", f"bridge: {{name: {BRIDGE}}}\n{spec}")
        assert seen == one_by_one
        assert agent.reasons() == {}
        assert managed(agent) >= {BOND, *slaves}
        for slave in slaves:
            now = agent.playground.ethtool(slave)
            asked = ("rx-checksum", "rx-vlan-hw-parse", "rx-hashing", "rx-gro")
            assert [now[feature]["active"] for feature in asked] == [False] * 4
        assert not gro(agent.playground, BOND)
        with watched(*slaves, BOND) as seen:
            agent.unwish("bond")
        assert seen == one_by_one
        eventually(lambda: {name: agent.playground.ethtool(name) for name in (*slaves, BOND)} == before)


def test_the_uplinks_of_a_bridge_on_a_vlan_are_the_vlan_and_its_real_device(nics: Nics, agent: Agent) -> None:
    nic, other = nics.virtio_net
    making = (
        f"link set {nic} up",
        f"link add link {nic} name {VLAN} type vlan id 7",
        f"link add {BRIDGE} type bridge",
        f"link set {VLAN} master {BRIDGE} up",
    )
    with links(*making, remove=(VLAN, BRIDGE)):
        assert gro(agent.playground, nic)
        agent.wish_and_wait("lan", f"bridge: {{name: {BRIDGE}}}\nuplink: {{offloads: {{gro: false}}}}")
        assert agent.reasons() == {}
        assert [gro(agent.playground, name) for name in (nic, VLAN, other)] == [False, False, True]
        agent.unwish("lan")
        assert [gro(agent.playground, name) for name in (nic, VLAN, other)] == [True, True, True]


# --- guests ------------------------------------------------------------------------------------------------


def test_what_disrupts_an_uplink_waits_until_no_guest_uses_it(nics: Nics, agent: Agent) -> None:
    nic = nics.e1000e[0]
    making = (
        f"link add {BRIDGE} type bridge",
        f"link set {BRIDGE} up",
        f"link set {nic} master {BRIDGE} up",
        f"tuntap add {TAP} mode tap vnet_hdr",
        f"link set {TAP} master {BRIDGE} up",
    )
    uplink = "{disruption: WhenNoGuests, rings: {rx: 128}, offloads: {rxvlan: false, gro: false}}"
    with links(*making, remove=(TAP, BRIDGE)):
        before = current("-g", nic)["RX"]
        guest = holding.hold(agent.playground, TAP)
        try:
            eventually(lambda: has_carrier(TAP))
            agent.wish_and_wait("lan", f"bridge: {{name: {BRIDGE}}}\nuplink: {uplink}")
            waiting = {(nic, "uplink.rings.rx"), (nic, "uplink.offloads.rxvlan")}
            assert agent.reasons() == dict.fromkeys(waiting, "GuestsRunning")
            assert TAP in agent.messages("GuestsRunning")
            assert not gro(agent.playground, nic)
            assert current("-g", nic)["RX"] == before
        finally:
            holding.let_go(guest)
        eventually(lambda: agent.reasons() == {})
        assert current("-g", nic)["RX"] == 128
        assert not agent.playground.ethtool(nic)["rx-vlan-hw-parse"]["active"]
        agent.unwish("lan")
        assert current("-g", nic)["RX"] == before


# --- what is shown -----------------------------------------------------------------------------------------


def test_inspect_shows_the_uplinks_with_their_drivers_buses_and_rings(nics: Nics, agent: Agent) -> None:
    done = agent.command("inspect", "-o", "json", seconds=START_SECONDS)
    assert done.code == 0, done.err
    shown = {link["name"]: link for link in json.loads(done.out)["host"]["uplinks"]}
    assert shown.keys() >= {*nics.virtio_net, *nics.e1000e}
    for name in (*nics.virtio_net, *nics.e1000e):
        driver = dict(re.findall(r"^([\w-]+): ?(.*)$", run("ethtool", "-i", name), re.M))
        rings = current("-g", name)
        link = shown[name]
        assert (link["driver"], link["bus"]) == (driver["driver"], driver["bus-info"])
        assert (link["rings"]["rx"], link["rings"]["tx"]) == (rings["RX"], rings["TX"])
