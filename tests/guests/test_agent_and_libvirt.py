"""`virtnet run` beside a real libvirtd: it hears of what changes, and lives with a libvirtd that hangs or dies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lxml import etree

from tests.guests.daemon import Daemon
from tests.guests.test_definitions import DOMAIN, MAC, NAME, UUID
from tests.kernel.agent import Agent, agent_on, eventually, gro
from tests.kernel.playground import Playground, open_playground

POLICY = """
vhost: {mode: Disabled}
guest: {match: {bridge: br0}, nic: {rxQueueSize: 1024}}
tap: {match: {names: [tap0]}, offloads: {gro: false}}
"""
SUBJECT = f"guest/{NAME}/{MAC}"
PATIENT = ("--contention-repairs", "1000")


@pytest.fixture
def playground() -> Iterator[Playground]:
    with open_playground() as made:
        made.batch("tuntap add tap0 mode tap vnet_hdr", "link set tap0 up")
        yield made


@pytest.fixture
def agent(playground: Playground, libvirtd: Daemon, tmp_path: Path) -> Iterator[Agent]:
    """With the policy `p`, and not started yet."""
    with agent_on(playground, tmp_path) as made:
        made.wish("p", POLICY)
        yield made


def driver(libvirtd: Daemon) -> dict[str, str]:
    (found,) = etree.fromstring(libvirtd.definition(NAME)).xpath(f"//interface[mac/@address='{MAC}']/driver")
    return dict(found.attrib)


def is_as_asked(libvirtd: Daemon) -> bool:
    found = driver(libvirtd)
    return (found["name"], found["rx_queue_size"]) == ("qemu", "1024")


def start(agent: Agent, libvirtd: Daemon, *flags: str) -> None:
    agent.start("--libvirt-uri", libvirtd.uri, *flags)


def test_definitions_are_kept_as_asked_whenever_they_are_edited(agent: Agent, libvirtd: Daemon) -> None:
    libvirtd.define(DOMAIN)
    start(agent, libvirtd, *PATIENT)
    eventually(lambda: is_as_asked(libvirtd))
    eventually(lambda: agent.reasons() == {})
    libvirtd.define(DOMAIN)
    eventually(lambda: is_as_asked(libvirtd), seconds=5)
    eventually(lambda: agent.drifts("p") == 2)
    libvirtd.define(DOMAIN.replace(NAME, "another").replace(UUID, UUID[::-1]).replace("aa:00:01", "aa:00:09"))
    eventually(lambda: "name='qemu'" in libvirtd.definition("another"), seconds=5)


def test_a_guest_that_was_started_otherwise_is_told_until_its_next_start(agent: Agent, libvirtd: Daemon) -> None:
    libvirtd.define(DOMAIN)
    libvirtd.virsh("start", NAME)
    start(agent, libvirtd)
    waiting = {(SUBJECT, "vhost.mode"): "RestartRequired", (SUBJECT, "guest.nic.rxQueueSize"): "RestartRequired"}
    eventually(lambda: agent.reasons() == waiting)
    assert agent.status()["counts"]["restartsNeeded"] == 1
    assert agent.condition("Ready")[0] == "True"
    libvirtd.virsh("destroy", NAME)
    eventually(lambda: agent.reasons() == {}, seconds=5)
    libvirtd.virsh("start", NAME)
    time.sleep(1.0)
    assert agent.reasons() == {}


def test_a_fight_for_a_definition_is_given_up_and_told(agent: Agent, libvirtd: Daemon) -> None:
    libvirtd.define(DOMAIN)
    start(agent, libvirtd, "--contention-repairs", "3")
    eventually(lambda: is_as_asked(libvirtd))

    def is_given_up() -> bool:
        if is_as_asked(libvirtd):
            libvirtd.define(DOMAIN)
        return "Contended" in agent.reasons().values()

    eventually(is_given_up)
    assert not is_as_asked(libvirtd)


def test_who_insists_keeps_a_definition_and_tells_of_the_fight(agent: Agent, libvirtd: Daemon) -> None:
    agent.wish("p", f"onContention: Insist{POLICY}")
    libvirtd.define(DOMAIN)
    start(agent, libvirtd, "--contention-repairs", "3")
    for _ in range(6):
        eventually(lambda: is_as_asked(libvirtd))
        libvirtd.define(DOMAIN)
    eventually(lambda: is_as_asked(libvirtd))
    eventually(lambda: agent.reasons().get((SUBJECT, "vhost.mode")) == "Contended")


def test_links_are_kept_and_policies_followed_while_libvirtd_hangs(
    agent: Agent, libvirtd: Daemon, playground: Playground
) -> None:
    libvirtd.define(DOMAIN)
    start(agent, libvirtd, *PATIENT)
    eventually(lambda: is_as_asked(libvirtd))
    agent.wait_until_calm()
    with libvirtd.hanging():
        agent.wish("p", POLICY.replace("1024", "256"), generation=2)
        eventually(lambda: agent.generations() == {"p": 2}, seconds=8)
        playground.run("ethtool -K tap0 gro on")
        eventually(lambda: not gro(playground, "tap0"), seconds=1)
        eventually(lambda: agent.reasons() == {("policy/p", "guest.nic"): "Unreadable"})
        assert "does not answer" in agent.messages("Unreadable")
    eventually(lambda: driver(libvirtd)["rx_queue_size"] == "256")
    eventually(lambda: agent.reasons() == {})


def test_a_libvirtd_that_was_killed_is_found_again_and_what_was_edited_meanwhile_repaired(
    agent: Agent, libvirtd: Daemon
) -> None:
    libvirtd.define(DOMAIN)
    start(agent, libvirtd, *PATIENT)
    eventually(lambda: is_as_asked(libvirtd))
    with libvirtd.dead():
        eventually(lambda: agent.reasons() == {("policy/p", "guest.nic"): "Unreadable"}, seconds=8)
    libvirtd.define(DOMAIN)
    eventually(lambda: is_as_asked(libvirtd))
    eventually(lambda: agent.reasons() == {})


def test_an_agent_that_hangs_on_libvirtd_ends_in_time(agent: Agent, libvirtd: Daemon) -> None:
    libvirtd.define(DOMAIN)
    start(agent, libvirtd)
    eventually(lambda: is_as_asked(libvirtd))
    with libvirtd.hanging():
        agent.wish_and_wait("p", POLICY.replace("1024", "256"), generation=2)
        before = time.monotonic()
        agent.stop()
        assert time.monotonic() - before < 5


def test_what_was_there_comes_back_when_the_policy_goes_also_after_a_restart(agent: Agent, libvirtd: Daemon) -> None:
    libvirtd.define(DOMAIN)
    before = libvirtd.definition(NAME)
    start(agent, libvirtd)
    eventually(lambda: is_as_asked(libvirtd))
    agent.kill()
    start(agent, libvirtd)
    agent.unwish("p")
    eventually(lambda: libvirtd.definition(NAME) == before)
