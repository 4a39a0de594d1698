"""Real guests whose NICs are re-plugged: kept in all that nobody asked for, put back when refused, and never lost.

These guests have no operating system. QEMU takes out what such a guest was asked for when it is reset, so a test says
when it lets go of its NIC; one with a kernel does so by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt as api
import pytest
from lxml import etree

from tests.guests import kernel
from tests.guests.daemon import Daemon
from tests.guests.test_definitions import DOMAIN, MAC, NAME, UUID
from tests.kernel.agent import Agent, agent_on, eventually
from tests.kernel.playground import open_playground
from virtnet import errors
from virtnet.core import definitions
from virtnet.core.model import LeaveReplug, ReplugGuestNic, ReplugStage, Unreadable, Value
from virtnet.host import replugs
from virtnet.host.guests import Guests
from virtnet.host.replugs import Replugs
from virtnet.host.state import StateDir

ASKED = "asked to let go of its NIC"
RX = "guest.nic.rxQueueSize"
TARGET = f"{UUID}/{MAC}"
REFUSED = 300
"""A size that libvirt takes from nobody: it is no power of two."""
POLICY = "guest: {match: {bridge: br0}, update: Replug, nic: {rxQueueSize: 1024}}"
NAMED = DOMAIN.replace("<source bridge='br0'/>", "<source bridge='br0'/><target dev='mytap'/><link state='down'/>")

Libvirt = Callable[[], Guests]


@pytest.fixture
def running(libvirtd: Daemon) -> Daemon:
    """A libvirtd with a guest that runs."""
    libvirtd.define(NAMED)
    libvirtd.virsh("start", NAME)
    return libvirtd


@pytest.fixture
def begin(libvirtd: Daemon, state: StateDir) -> Iterator[Libvirt]:
    """A process's view of libvirt, from its first look on."""
    opened = []

    def made() -> Guests:
        found = Guests(libvirtd.uri, state=state)
        opened.append(found)
        found.look()
        return found

    yield made
    for each in opened:
        each.close()


@pytest.fixture
def connection(libvirtd: Daemon) -> Iterator[Any]:
    opened = api.open(libvirtd.uri)
    yield opened
    opened.close()


def live(libvirtd: Daemon) -> list[etree._Element]:
    """The NIC in the running guest, or nothing while it is out."""
    root = etree.fromstring(libvirtd.virsh("dumpxml", NAME))
    found: list[etree._Element] = root.xpath(f"devices/interface[mac/@address='{MAC}']")
    return found


def size(libvirtd: Daemon) -> int | None:
    """The ring size that the guest has; None while its NIC is out."""
    found = live(libvirtd)
    return int(found[0].find("driver").get("rx_queue_size")) if found else None


def without_size(libvirtd: Daemon) -> str:
    """All else of the NIC."""
    (nic,) = live(libvirtd)
    del nic.find("driver").attrib["rx_queue_size"]
    return etree.tostring(nic).decode()


def lets_go(libvirtd: Daemon) -> None:
    libvirtd.virsh("reset", NAME)


def change(libvirtd: Daemon, wanted: Value = 1024) -> ReplugGuestNic:
    address = definitions.read(UUID, libvirtd.definition(NAME).encode(), None).nics[0].address
    return ReplugGuestNic(TARGET, NAME, UUID, MAC, address, ((RX, wanted),), ((RX, 512),), "p", "1/a")


def stage(guests: Guests) -> ReplugStage | None:
    known = guests.replugs.get(TARGET)
    return known.stage if known else None


# --- an agent ----------------------------------------------------------------------------------------------


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with open_playground() as playground, agent_on(playground, tmp_path) as made:
        made.wish("p", POLICY)
        yield made


def asked(agent: Agent) -> bool:
    return ASKED in agent.log()


def asks_and_is_killed(agent: Agent, running: Daemon) -> None:
    """What an agent leaves that dies before the guest lets go."""
    agent.start("--libvirt-uri", running.uri)
    eventually(lambda: asked(agent))
    agent.kill()


def test_a_running_guest_gets_its_nic_as_asked_and_all_else_of_it_stays(running: Daemon, agent: Agent) -> None:
    before = without_size(running)
    agent.start("--libvirt-uri", running.uri)
    eventually(lambda: asked(agent))
    eventually(lambda: agent.reasons() == {(f"guest/{NAME}/{MAC}", RX): "RestartRequired"})
    assert (size(running), agent.condition("Ready")[0]) == (512, "True")
    lets_go(running)
    eventually(lambda: size(running) == 1024)
    eventually(lambda: agent.reasons() == {})
    assert without_size(running) == before
    agent.unwish("p")
    eventually(lambda: "rx_queue_size='512'" in running.definition(NAME))
    agent.wait_until_calm()
    assert (size(running), agent.log().count(ASKED)) == (1024, 1)


def test_a_guest_that_lets_go_while_nobody_is_there_has_its_nic_at_the_next_start(
    running: Daemon, agent: Agent
) -> None:
    asks_and_is_killed(agent, running)
    lets_go(running)
    eventually(lambda: size(running) is None)
    agent.start("--libvirt-uri", running.uri)
    eventually(lambda: size(running) == 1024)
    eventually(lambda: agent.reasons() == {})


def test_a_command_that_is_run_once_begins_nothing_and_brings_to_its_end_what_was_begun(
    running: Daemon, agent: Agent
) -> None:
    asks_and_is_killed(agent, running)
    policy, where = str(agent.policies / "p.yaml"), ("--libvirt-uri", running.uri)
    done = agent.command("apply", policy, *where)
    assert (done.code, size(running)) == (3, 512)
    assert "RestartRequired" in done.out
    lets_go(running)
    eventually(lambda: size(running) is None)
    assert agent.command("apply", policy, *where).code == 0
    assert size(running) == 1024


@pytest.mark.timeout(500)
def test_a_guest_with_a_system_lets_go_by_itself_and_has_its_nic_again(
    libvirtd: Daemon, agent: Agent, tmp_path: Path
) -> None:
    libvirtd.define(kernel.domain(tmp_path))
    libvirtd.virsh("start", NAME)
    eventually(lambda: kernel.nics(tmp_path), seconds=kernel.BOOT_SECONDS)
    agent.start("--libvirt-uri", libvirtd.uri)
    eventually(lambda: size(libvirtd) == 1024, seconds=kernel.BOOT_SECONDS)
    eventually(lambda: agent.reasons() == {})
    eventually(lambda: len(set(kernel.nics(tmp_path))) == 2, seconds=kernel.BOOT_SECONDS)
    assert {mac for mac, _ in kernel.nics(tmp_path)} == {MAC}


# --- refused, late, ended ----------------------------------------------------------------------------------


def test_what_libvirt_refuses_is_put_back_remembered_with_its_words_and_forgiven(
    running: Daemon, begin: Libvirt
) -> None:
    before = without_size(running)
    guests = begin()
    guests.apply(change(running, REFUSED))
    lets_go(running)
    eventually(lambda: stage(guests) is ReplugStage.PUT_BACK)
    assert "rx_queue_size has to be a power of two" in guests.replugs[TARGET].message
    assert (size(running), without_size(running)) == (512, before)
    again = begin()
    assert again.replugs == guests.replugs
    again.forgive()
    assert (again.replugs, begin().replugs) == ({}, {})


def test_a_guest_that_sleeps_keeps_its_nic_and_gets_it_as_asked_when_it_lets_go_late(
    running: Daemon, begin: Libvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replugs, "LET_GO_SECONDS", 0.2)
    guests = begin()
    guests.apply(change(running))
    eventually(lambda: stage(guests) is ReplugStage.LATE)
    assert size(running) == 512
    lets_go(running)
    eventually(lambda: size(running) == 1024)
    eventually(lambda: stage(guests) is None)


def test_a_guest_that_refuses_is_told_from_others_by_its_device(
    running: Daemon, connection: Any, state: StateDir
) -> None:
    """No PCI device of QEMU's can be refused, so libvirt's word for it (DEVICE_REMOVAL_FAILED) is said here."""
    process = Replugs(state, lambda _: None)
    process.begin(connection, change(running))
    process.refused(UUID, "ua-other")
    assert stages(process) == [ReplugStage.LEAVING]
    process.refused(UUID, "ua-Capital")
    assert stages(process) == [ReplugStage.LATE]


def test_what_nobody_wants_any_more_goes_in_as_it_was_when_the_guest_lets_go_all_the_same(
    running: Daemon, begin: Libvirt
) -> None:
    guests = begin()
    guests.apply(change(running))
    guests.apply(LeaveReplug(TARGET))
    assert stage(guests) is ReplugStage.RECALLED
    lets_go(running)
    eventually(lambda: stage(guests) is None)
    assert size(running) == 512


def test_a_guest_that_ends_meanwhile_starts_with_its_definition(running: Daemon, begin: Libvirt) -> None:
    guests = begin()
    guests.apply(change(running))
    running.virsh("destroy", NAME)
    eventually(lambda: stage(guests) is None)
    running.virsh("start", NAME)
    assert size(running) == 512


def test_a_libvirtd_that_dies_meanwhile_finds_the_guest_and_its_nic_again(running: Daemon, begin: Libvirt) -> None:
    guests = begin()
    guests.apply(change(running))
    with running.dead():
        eventually(lambda: isinstance(guests.look(), Unreadable))
    lets_go(running)
    eventually(lambda: size(running) == 1024)
    eventually(lambda: stage(guests) is None)


def test_a_nic_that_somebody_changed_since_is_not_taken_out(running: Daemon, begin: Libvirt) -> None:
    guests, wanted = begin(), change(running)
    other = ReplugGuestNic(TARGET, NAME, UUID, MAC, wanted.address, ((RX, 1024),), ((RX, 256),), "p", "1/a")
    with pytest.raises(errors.Gone):
        guests.apply(other)
    assert (guests.replugs, size(running)) == ({}, 512)


def test_a_nic_where_nothing_can_be_plugged_stays_and_that_is_said(libvirtd: Daemon, begin: Libvirt) -> None:
    fixed = "<address type='pci' bus='0x00' slot='0x09'/>"
    libvirtd.define(NAMED.replace("<alias name='ua-Capital'/>", f"<alias name='ua-Capital'/>{fixed}"))
    libvirtd.virsh("start", NAME)
    guests = begin()
    guests.apply(change(libvirtd))
    assert stage(guests) is ReplugStage.LATE
    assert "does not support hotplugging" in guests.replugs[TARGET].message
    assert size(libvirtd) == 512


def test_a_nic_on_a_network_is_put_in_on_that_network(libvirtd: Daemon, begin: Libvirt) -> None:
    network = "<network><name>lan</name><forward mode='bridge'/><bridge name='br0'/></network>"
    libvirtd.virsh("net-define", "/dev/stdin", document=network)
    libvirtd.virsh("net-start", "lan")
    libvirtd.define(DOMAIN.replace("type='bridge'", "type='network'", 1).replace("bridge='br0'", "network='lan'"))
    libvirtd.virsh("start", NAME)
    guests = begin()
    guests.apply(change(libvirtd))
    lets_go(libvirtd)
    eventually(lambda: size(libvirtd) == 1024)
    assert live(libvirtd)[0].find("source").get("bridge") == "br0"
    libvirtd.virsh("destroy", NAME)
    libvirtd.virsh("net-destroy", "lan")
    libvirtd.virsh("net-undefine", "lan")


# --- killed at every step ----------------------------------------------------------------------------------


class Killed(BaseException):
    """The end of the process at this very place."""


class Mortal:
    """A connection, a domain or a store of records during whose call number `at` the process is killed.

    `late`: the call is made, and only whoever made it is gone.
    """

    def __init__(self, inner: Any, calls: Calls) -> None:
        self.inner, self.calls = inner, calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def lookupByUUIDString(self, uuid: str) -> Mortal:  # noqa: N802  (libvirt's own name)
        return Mortal(self.inner.lookupByUUIDString(uuid), self.calls)

    def detachDeviceAlias(self, *arguments: Any) -> Any:  # noqa: N802  (libvirt's own name)
        return self.calls.make(lambda: self.inner.detachDeviceAlias(*arguments))

    def attachDeviceFlags(self, *arguments: Any) -> Any:  # noqa: N802  (libvirt's own name)
        return self.calls.make(lambda: self.inner.attachDeviceFlags(*arguments))

    def write_json(self, *arguments: Any, **more: Any) -> Any:
        return self.calls.make(lambda: self.inner.write_json(*arguments, **more))


class Calls:
    """Counts down to the end of the process: after an even number before a call is made, after an odd one behind it."""

    def __init__(self, left: int) -> None:
        self.left = left

    def make(self, call: Callable[[], Any]) -> Any:
        self.cross()
        done = call()
        self.cross()
        return done

    def cross(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


@pytest.mark.parametrize(("wanted", "first", "last"), [(REFUSED, 1, 11), (1024, 5, 8)], ids=["back", "forth"])
def test_a_kill_at_any_step_loses_no_nic(
    running: Daemon, connection: Any, state: StateDir, wanted: int, first: int, last: int
) -> None:
    """Each act and each record, before and after: the process that comes next brings it to its end.

    The two ways are the same up to their fourth boundary.
    """
    before = without_size(running)
    for boundary in range(first, last + 2):
        calls = Calls(boundary)
        killed = is_killed(running, Mortal(connection, calls), Mortal(state, calls), wanted)
        assert killed == (boundary <= last), f"boundary {boundary}"
        left = Replugs(state, lambda _: None)
        left.drive(UUID, connection.lookupByUUIDString(UUID))
        if size(running) == 512 and stages(left) in ([], [ReplugStage.INTERRUPTED]):  # not asked yet: begin again
            left.begin(connection, change(running, wanted))
            let_go_now(running)
            left.drive(UUID, connection.lookupByUUIDString(UUID))
        back = wanted == REFUSED
        assert (size(running), stages(left)) == ((512, [ReplugStage.PUT_BACK]) if back else (1024, []))
        assert without_size(running) == before
        start_over(running, state)


def is_killed(libvirtd: Daemon, connection: Any, state: Any, wanted: int) -> bool:
    """One re-plug from its begin to its end, as far as the process comes."""
    try:
        process = Replugs(state, lambda _: None)
        process.begin(connection, change(libvirtd, wanted))
        let_go_now(libvirtd)
        process.drive(UUID, connection.lookupByUUIDString(UUID))
    except Killed:
        return True
    return False


def let_go_now(libvirtd: Daemon) -> None:
    """Reset it, and wait until libvirt knows what QEMU took out."""
    lets_go(libvirtd)
    eventually(lambda: size(libvirtd) is None)


def stages(process: Replugs) -> list[ReplugStage]:
    return [each.stage for each in process.known.values()]


def start_over(libvirtd: Daemon, state: StateDir) -> None:
    if size(libvirtd) != 512:
        libvirtd.virsh("destroy", NAME)
        libvirtd.virsh("start", NAME)
    state.remove("replugs.json", durable=False)
