"""The fake host of tests/flow and Linux answer the same commands the same way; `ip` and `ethtool` are the oracles.

The fake speaks for Linux 6.18: on another kernel a difference here says what that kernel does otherwise.
"""

from __future__ import annotations

import json
import random
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.flow import rules
from tests.flow.fake import FakeHost
from tests.flow.machine import Device
from tests.kernel.playground import Playground
from virtnet import errors
from virtnet.core import features

LINKS = ("br0", "br1", "v0", "v1", "t0", "t1")
START = """
br0 bridge down
br1 bridge down
v0 veth down
v1 veth down
t0 tap vnet_hdr down
t1 tap mq down
"""
START_ON_LINUX = (
    "link add br0 type bridge",
    "link add br1 type bridge",
    "link add v0 type veth peer name v1",
    "tuntap add t0 mode tap vnet_hdr",
    "tuntap add t1 mode tap multi_queue",
)
OPTIONS = {
    "stp_state": "stp",
    "forward_delay": "forward_delay",
    "ageing_time": "ageing_time",
    "group_fwd_mask": "group_forward_mask",
    "mcast_snooping": "multicast_snooping",
}
"""ip-link(8)'s name of a bridge option -> field of BridgeOptions."""

TUN_FLAGS = ("vnet_hdr", "multi_queue", "pi", "persist")
LONG_NAMES = {
    "rx-checksum": "rx-checksumming",
    "tx-generic-segmentation": "generic-segmentation-offload",
    "rx-gro": "generic-receive-offload",
    "rx-lro": "large-receive-offload",
    "rx-vlan-hw-parse": "rx-vlan-offload",
    "tx-vlan-hw-insert": "tx-vlan-offload",
    "rx-ntuple-filter": "ntuple-filters",
    "rx-hashing": "receive-hashing",
}
"""Kernel name -> what `ethtool -k` prints for it (`off_flag_def` in common.c)."""

KNOWN = tuple(name for name in rules.FEATURE_NAMES if name)


class Both:
    """A fake host and a namespace of Linux with the same links, given the same commands."""

    def __init__(self, playground: Playground) -> None:
        self._playground = playground
        self.fake = FakeHost(START)
        playground.batch(*START_ON_LINUX)

    def run(self, command: str) -> None:
        """One command on both; a difference in what it leaves, or in whether it is refused, fails."""
        code = self._linux(command)
        taken = self._fake(command)
        if not command.startswith("ethtool -K"):  # which fails when nothing changed
            assert (code == 0) == taken, f"{command}: Linux says {code}, the fake {'yes' if taken else 'no'}"
        assert self.differences() == {}, command

    def _linux(self, command: str) -> int:
        """The exit code: nothing else of a refusal is compared."""
        return int(self.print(f"sh -c '{command} >/dev/null 2>&1; echo $?'"))

    def print(self, command: str) -> str:
        """What a command prints on Linux."""
        return self._playground.run(command)

    def _fake(self, command: str) -> bool:
        try:
            self._act(command.split())
        except (errors.Refused, errors.NotSupported):
            return False
        return True

    def _act(self, words: list[str]) -> None:
        foreign, machine = self.fake.foreign, self.fake.machine
        match words:
            case ["ethtool", "-K", link, *pairs]:
                for name, word in zip(pairs[::2], pairs[1::2], strict=True):
                    foreign.set_feature(link, name, word == "on")
            case ["ethtool", "-C", link, "rx-frames", frames]:
                machine.set_rx_frames(machine.named(link), int(frames))
            case ["ethtool", "-G", link, ring, size]:
                foreign.set_rings(link, **{ring: int(size)})
            case ["ethtool", "-L", link, kind, count]:
                machine.set_channels(machine.named(link), **{kind: int(count)})
            case ["ip", "link", "set", link, "mtu", mtu]:
                foreign.set_mtu(link, int(mtu))
            case ["ip", "link", "set", link, "master", master]:
                foreign.enslave(link, master)
            case ["ip", "link", "set", link, "nomaster"]:
                foreign.enslave(link, None)
            case ["ip", "link", "set", link, "type", "bridge", *pairs]:
                options = zip(pairs[::2], map(int, pairs[1::2]), strict=True)
                foreign.set_bridge(link, **{OPTIONS[name]: value for name, value in options})
            case ["ip", "link", "del", link]:
                foreign.delete(link)
            case _:
                raise AssertionError(f"unknown command {words}")

    def linux_state(self) -> Mapping[str, Any]:
        """Every fact by "LINK FACT"."""
        links, *shown = self._look()
        features_of = {each["ifname"]: each for (each,) in shown}
        seen = [link for link in links if link["ifname"] != "lo"]
        return dict(fact for link in seen for fact in self._linux_facts(link, features_of[link["ifname"]]))

    def _linux_facts(self, link: Mapping[str, Any], shown: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        name = link["ifname"]
        info = link.get("linkinfo", {}).get("info_data", {})
        yield f"{name} mtu", link["mtu"]
        yield f"{name} txqlen", link.get("txqlen", 0)
        yield f"{name} master", link.get("master", "")
        yield from ((f"{name} {field}", int(str(info[word]), 0)) for word, field in OPTIONS.items() if word in info)
        yield from ((f"{name} {flag}", info[flag]) for flag in TUN_FLAGS if flag in info)
        for feature in KNOWN:
            bits = shown[LONG_NAMES.get(feature, feature)]
            yield f"{name} {feature}", (bits["active"], None if bits["fixed"] else bits["requested"])

    def _look(self) -> list[Any]:
        """What `ip` and, for each link that the fake has, `ethtool` print, in one shell."""
        commands = ["ip -j -d link show", *(f"ethtool --json -k {name}" for name in self.fake.names())]
        return list(json.loads(f"[{self.print(shlex.join(['sh', '-ec', '; echo ,;'.join(commands)]))}]"))

    def fake_state(self) -> Mapping[str, Any]:
        return dict(fact for device in self.fake.machine.devices.values() for fact in self._fake_facts(device))

    def _fake_facts(self, device: Device) -> Iterator[tuple[str, Any]]:
        link, now = device.link, device.features
        master = self.fake.machine.devices.get(link.master)
        yield f"{link.name} mtu", link.mtu
        yield f"{link.name} txqlen", link.tx_queue_length
        yield f"{link.name} master", master.link.name if master else ""
        if link.bridge:
            yield from ((f"{link.name} {field}", int(getattr(link.bridge, field))) for field in OPTIONS.values())
        if link.tun:
            yield from ((f"{link.name} {flag}", getattr(link.tun, flag)) for flag in TUN_FLAGS)
        for feature in KNOWN:
            bit = rules.mask(feature)
            wanted = bool(now.wanted & bit) if now.changeable & bit else None
            yield f"{link.name} {feature}", (bool(now.active & bit), wanted)

    def differences(self) -> Mapping[str, tuple[Any, Any]]:
        """Fact -> what the fake and what Linux says."""
        fake, linux = self.fake_state(), self.linux_state()
        facts = sorted(set(fake) | set(linux))
        return {fact: (fake.get(fact), linux.get(fact)) for fact in facts if fake.get(fact) != linux.get(fact)}


@pytest.fixture
def both(playground: Playground) -> Both:
    return Both(playground)


def test_fresh_links_start_alike(both: Both) -> None:
    assert both.differences() == {}


def test_tx_off_drops_tso_and_keeps_it_wanted(both: Both) -> None:
    both.run("ethtool -K v0 tx off")
    assert both.linux_state()["v0 tx-tcp-segmentation"] == (False, True)
    both.run("ethtool -K v0 tx on")
    assert both.linux_state()["v0 tx-tcp-segmentation"] == (True, True)


def test_sg_off_drops_gso(both: Both) -> None:
    both.run("ethtool -K v0 sg off")
    assert both.linux_state()["v0 tx-generic-segmentation"] == (False, True)


def test_ports_come_move_and_go(both: Both) -> None:
    for command in ("set v0 master br0", "set v0 master br1", "set v0 master br1", "set t0 master br1"):
        both.run(f"ip link {command}")
    assert both.linux_state()["v0 master"] == "br1"
    for command in ("set br0 master br1", "set v0 master v1", "set t0 nomaster", "set t0 nomaster", "del br1"):
        both.run(f"ip link {command}")


@pytest.mark.parametrize(
    "commands",
    [
        ["stp_state 1", "forward_delay 100", "forward_delay 3100", "forward_delay 400"],
        ["forward_delay 0", "stp_state 1"],
        ["forward_delay 4000", "stp_state 1"],
        ["stp_state 1 forward_delay 100"],
        ["group_fwd_mask 1", "group_fwd_mask 2", "group_fwd_mask 4", "group_fwd_mask 8", "group_fwd_mask 65528"],
        ["ageing_time 10000 stp_state 1 group_fwd_mask 7"],
        ["ageing_time 0", "mcast_snooping 0", "mcast_snooping 1"],
    ],
    ids=lambda commands: commands[0],
)
def test_bridge_options_are_taken_and_refused_alike(both: Both, commands: list[str]) -> None:
    for command in commands:
        both.run(f"ip link set br0 type bridge {command}")


def test_an_mtu_is_taken_and_refused_alike_and_a_bridge_follows_its_ports(both: Both) -> None:
    for link in LINKS:
        for mtu in (67, 68, 65521, 65522, 65535, 65536, 1400):
            both.run(f"ip link set {link} mtu {mtu}")
    for command in ("v0 master br0", "v0 mtu 1300", "br0 mtu 1500", "v0 mtu 1200", "v0 nomaster"):
        both.run(f"ip link set {command}")


def test_a_bridge_that_was_never_told_its_mtu_follows_its_smallest_port(both: Both) -> None:
    for command in ("v0 mtu 1300", "v0 master br0", "t0 master br0", "t0 mtu 1200", "t0 nomaster", "v0 nomaster"):
        both.run(f"ip link set {command}")


def test_rx_frames_are_for_taps_and_cut_to_64(both: Both) -> None:
    for link in LINKS:
        both.run(f"ethtool -C {link} rx-frames 65")
    assert both.fake.machine.named("t0").frames == 64
    assert "rx-frames: 64\n" in both.print("ethtool -c t0")


def test_rings_and_channels_are_taken_and_refused_alike(both: Both) -> None:
    for command in (
        "-L v0 rx 2",
        "-L v0 rx 1000",
        "-L t0 combined 1",
        "-L br0 combined 1",
        "-G v0 rx 256",
        "-G t0 rx 1",
    ):
        both.run(f"ethtool {command}")


FEATURES = (
    *(name for name in features.SHORT if name not in {"ufo", "ntuple", "rxhash"}),
    "tx-checksum-ip-generic",
    "tx-tcp-segmentation",
    "tx-tcp6-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-udp-segmentation",
    "tx-scatter-gather",
    "tx-nocache-copy",
    "rx-gro-list",
    "highdma",
)
OPTION_WALK = (
    "stp_state 0",
    "stp_state 1",
    "mcast_snooping 0",
    "forward_delay 100",
    "forward_delay 500",
    "group_fwd_mask 1",
)


def any_command(choose: random.Random) -> str:
    """Mostly features, on any link, also where it makes no sense."""
    link = choose.choice(LINKS)
    bridge = choose.choice(["br0", "br1"])
    features_twice = [f"ethtool -K {link} {choose.choice(FEATURES)} {choose.choice(['on', 'off'])}" for _ in range(2)]
    return choose.choice(
        [
            *features_twice,
            f"ip link set {link} master {bridge}",
            f"ip link set {link} nomaster",
            f"ip link set {link} mtu {choose.choice([1280, 1400, 1500, 9000, 65530])}",
            f"ip link set {bridge} type bridge {choose.choice(OPTION_WALK)}",
        ]
    )


@pytest.mark.parametrize("seed", range(4))
def test_any_walk_leaves_both_alike(both: Both, seed: int) -> None:
    choose = random.Random(seed)
    for _ in range(30):
        both.run(any_command(choose))
