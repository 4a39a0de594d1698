"""What changes on the real kernel is heard, by whatever way it was changed, and what was lost is said."""

from __future__ import annotations

import contextlib
import select
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from tests.kernel.playground import Playground
from tests.kernel.test_links import as_ref, look, named
from tests.kernel.test_offloads import bits
from virtnet.core import model
from virtnet.core.model import Ref
from virtnet.host import LinuxHost, namespaces
from virtnet.host.events import BATCH, Events, Monitor

SECONDS = 10

IOCTL_FLIP = """
import fcntl, socket, struct, sys, ctypes
name, command, value = sys.argv[1], int(sys.argv[2], 0), int(sys.argv[3])
data = ctypes.create_string_buffer(struct.pack("=II", command, value))
fcntl.ioctl(socket.socket(), 0x8946, struct.pack("16sP16x", name.encode(), ctypes.addressof(data)))
"""
ETHTOOL_SGRO = 0x2C

FLIPS = """
import fcntl, socket, struct, sys, ctypes
kernel, count = socket.socket(), int(sys.argv[2])
for number in range(count):
    data = ctypes.create_string_buffer(struct.pack("=II", 0x2C, number % 2))
    fcntl.ioctl(kernel, 0x8946, struct.pack("16sP16x", sys.argv[1].encode(), ctypes.addressof(data)))
"""


@pytest.fixture
def monitor(playground: Playground, host: LinuxHost) -> Iterator[Monitor]:
    """Two veths and a tap, and a monitor that has heard all of their making."""
    playground.batch(
        "link add v0 numtxqueues 4 numrxqueues 4 type veth peer name v1",
        "tuntap add t0 mode tap",
        "link set v0 up",
        "link set v1 up",
    )
    made = host.monitor()
    settle(made)
    yield made
    made.close()


def settle(monitor: Monitor) -> None:
    """Take what the making of links still sends (IPv6 follows a moment later), until 0.1 s are quiet."""
    while select.select(monitor.filenos(), [], [], 0.1)[0]:
        monitor.drain()


def hear(monitor: Monitor, enough: Callable[[Events], bool]) -> Events:
    """All events together, until it is enough; fails after a while."""
    heard, deadline = Events(), time.monotonic() + SECONDS
    while not enough(heard):
        assert time.monotonic() < deadline, f"not heard within {SECONDS} s: {heard}"
        if select.select(monitor.filenos(), [], [], 0.5)[0]:
            merge(heard, monitor.drain())
    return heard


def merge(heard: Events, more: Events) -> None:
    heard.features |= more.features
    heard.seen |= more.seen
    heard.tuning |= more.tuning
    heard.links |= more.links
    heard.gone |= more.gone
    heard.modules |= more.modules
    heard.unaddressed |= more.unaddressed
    heard.lost = heard.lost or more.lost


def nothing_more(monitor: Monitor) -> bool:
    heard = Events()
    while select.select(monitor.filenos(), [], [], 0.2)[0]:
        merge(heard, monitor.drain())
    return not heard


def test_a_feature_flipped_by_ethtool_is_heard_once_and_not_as_a_link_change(
    playground: Playground, host: LinuxHost, monitor: Monitor
) -> None:
    index = named(host, "v0").ifindex
    playground.run("ethtool -K v0 gro on")
    heard = hear(monitor, lambda events: index in events.features)
    assert heard.features == {index}
    assert not heard.links
    assert nothing_more(monitor)


def test_a_feature_flipped_by_ioctl_is_heard(playground: Playground, host: LinuxHost, monitor: Monitor) -> None:
    index = named(host, "v0").ifindex
    playground.python(IOCTL_FLIP, "v0", str(ETHTOOL_SGRO), "1")
    assert playground.ethtool("v0")["rx-gro"]["active"], "the ioctl changed nothing: the test proves nothing"
    hear(monitor, lambda events: events.features == {index})


def test_an_event_tells_what_the_features_are_now(playground: Playground, host: LinuxHost, monitor: Monitor) -> None:
    index = named(host, "v0").ifindex
    for word in ("on", "off"):
        playground.run(f"ethtool -K v0 gro {word}")
        heard = hear(monitor, lambda events: index in events.seen)
        assert heard.seen == {index: host.read_features(index)}
        assert bool(heard.seen[index].active & bits(host, "rx-gro")) is (word == "on")


def test_features_are_told_first_and_other_events_right_after_them(
    playground: Playground, host: LinuxHost, monitor: Monitor
) -> None:
    veth, tap = named(host, "v0").ifindex, named(host, "t0").ifindex
    playground.run("ip link set t0 mtu 1300")
    playground.run("ethtool -K v0 gro on")
    first, second = monitor.drain(), monitor.drain()
    assert (first.features, first.links) == ({veth}, {})
    assert set(second.links) == {tap}


def test_what_is_told_besides_lost_events_is_not_believed(
    playground: Playground, host: LinuxHost, monitor: Monitor
) -> None:
    index = named(host, "v0").ifindex
    with contextlib.closing(host.monitor(buffer_bytes=4096)) as small:
        settle(small)
        playground.python(FLIPS, "v0", "2000")
        first = small.drain()
        assert (first.lost, first.features, first.seen) == (True, {index}, {})
        settle(small)
        playground.run("ethtool -K v0 gro off")
        playground.run("ethtool -K v0 gro on")
        assert hear(small, lambda events: index in events.seen).seen == {index: host.read_features(index)}


def test_setting_what_is_already_so_makes_no_event(host: LinuxHost, monitor: Monitor) -> None:
    """Else our own repair would wake us again, for ever."""
    mask = bits(host, "rx-gro")
    after = host.set_features(as_ref(named(host, "v0")), mask, mask)
    settle(monitor)
    assert host.set_features(as_ref(named(host, "v0")), mask, mask) == after
    assert nothing_more(monitor)


def test_a_changed_link_comes_with_its_latest_state(playground: Playground, host: LinuxHost, monitor: Monitor) -> None:
    index = named(host, "t0").ifindex
    playground.batch("link set t0 mtu 1300", "link set t0 mtu 1301", "link set t0 txqueuelen 9", "link set t0 name t9")
    heard = hear(monitor, lambda events: index in events.links and events.links[index].name == "t9")
    assert heard.links == {index: look(host).links[index]}
    assert (heard.links[index].mtu, heard.links[index].tx_queue_length) == (1301, 9)
    assert not heard.features


def test_a_new_link_and_a_removed_one_are_heard(playground: Playground, host: LinuxHost, monitor: Monitor) -> None:
    index = named(host, "t0").ifindex
    playground.batch("tuntap add t7 mode tap vnet_hdr", "link del t0")
    heard = hear(monitor, lambda events: bool(events.gone and events.links))
    assert heard.gone == {index}
    assert index not in heard.links
    assert [link.name for link in heard.links.values() if link.tun and link.tun.vnet_hdr] == ["t7"]


def test_a_reused_index_is_both_gone_and_a_new_link(playground: Playground, host: LinuxHost, monitor: Monitor) -> None:
    index = named(host, "t0").ifindex
    playground.batch("link del t0", f"link add other index {index} type bridge")
    heard = hear(monitor, lambda events: index in events.links and events.links[index].name == "other")
    assert index in heard.gone


def test_enslaving_is_heard_as_links_and_never_as_a_removal(
    playground: Playground, host: LinuxHost, monitor: Monitor
) -> None:
    """A released port sends RTM_DELLINK too, in the bridge's own family."""
    playground.batch("link add br0 type bridge", "link set t0 master br0", "link set t0 nomaster")
    index = named(host, "t0").ifindex
    time.sleep(0.1)
    heard = hear(monitor, lambda events: index in events.links and not events.links[index].master)
    assert not heard.gone
    assert "br0" in {link.name for link in heard.links.values()}


def test_changed_queue_counts_are_heard(playground: Playground, host: LinuxHost, monitor: Monitor) -> None:
    index = named(host, "v0").ifindex
    playground.run("ethtool -L v0 rx 2 tx 2")
    hear(monitor, lambda events: index in events.tuning)


def test_an_address_that_is_taken_away_is_heard(playground: Playground, host: LinuxHost, monitor: Monitor) -> None:
    index = named(host, "v0").ifindex
    for address in ("192.0.2.1/24", "2001:db8::1/64"):
        playground.batch(f"addr add {address} dev v0", f"addr del {address} dev v0")
        hear(monitor, lambda events: index in events.unaddressed)


def test_what_the_buffer_cannot_hold_is_said_to_be_lost_and_later_events_are_heard(
    playground: Playground, host: LinuxHost, monitor: Monitor
) -> None:
    index = named(host, "v0").ifindex
    with_small = host.monitor(buffer_bytes=4096)
    try:
        assert with_small.buffer_bytes < 64 * 1024
        playground.python(FLIPS, "v0", "2000")
        heard = hear(with_small, lambda events: events.lost)
        settle(with_small)
        playground.run("ethtool -K v0 gro off")
        settle(with_small)
        playground.run("ethtool -K v0 gro on")
        heard = hear(with_small, lambda events: index in events.features)
        assert not heard.lost
    finally:
        with_small.close()


def test_a_storm_is_drained_in_bounded_pieces(playground: Playground, host: LinuxHost, monitor: Monitor) -> None:
    """One drain must end while the storm goes on, so that repairs and other links get their turn."""
    index = named(host, "v0").ifindex
    storm = playground.start(*python(FLIPS, "v0", "30000"))
    longest, drains = 0.0, 0
    while storm.poll() is None or select.select(monitor.filenos(), [], [], 0.1)[0]:
        started = time.process_time()
        events = monitor.drain()
        longest, drains = max(longest, time.process_time() - started), drains + 1
        assert events.features <= {index}
    assert drains * BATCH >= 1000
    assert longest < 1.0
    playground.run("ethtool -K v0 gro off")
    playground.run("ethtool -K v0 gro on")
    hear(monitor, lambda events: index in events.features)


def python(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", program, *arguments]


def test_the_buffer_is_what_the_kernel_grants(monitor: Monitor) -> None:
    """8 MiB where the machine's own root listens; elsewhere what net.core.rmem_max allows."""
    if namespaces.in_initial_user_namespace():
        assert monitor.buffer_bytes == 8 << 20
        assert not monitor.modules_problem
        assert len(monitor.filenos()) == 3
    else:
        assert 0 < monitor.buffer_bytes <= 8 << 20
        assert "user namespace" in monitor.modules_problem
        assert len(monitor.filenos()) == 2


def test_a_drain_with_nothing_to_hear_is_empty(monitor: Monitor) -> None:
    assert not monitor.drain()


def test_the_time_from_a_foreign_change_to_its_repair_is_short(
    playground: Playground, host: LinuxHost, monitor: Monitor
) -> None:
    """The reflex of the fast loop, without the loop: hear, read, compare, set. Seen on the kernel by ethtool."""
    link = named(host, "v0")
    mask = bits(host, "rx-gro")
    assert not host.read_features(link.ifindex).active & mask
    playground.run("ethtool -K v0 gro on")
    hear(monitor, lambda events: link.ifindex in events.features)
    started = time.perf_counter()
    assert host.read_features(link.ifindex).active & mask
    assert not host.set_features(Ref("v0", link.ifindex), mask, 0).active & mask
    assert time.perf_counter() - started < 1.0
    assert not playground.ethtool("v0")["rx-gro"]["active"]


def test_a_change_through_our_own_host_is_heard_like_any_other(host: LinuxHost, monitor: Monitor) -> None:
    index = named(host, "t0").ifindex
    host.apply(model.SetMtu(Ref("t0", index), 1400))
    hear(monitor, lambda events: index in events.links and events.links[index].mtu == 1400)
