"""Queue counts, rx-frames and drivers on links that this kernel has without hardware; ring sizes: tests/lab."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.kernel.playground import Playground
from tests.kernel.test_links import as_ref, named
from virtnet import errors
from virtnet.core import model
from virtnet.core.model import Channels, Driver, Interest, Ref
from virtnet.host import LinuxHost

LINKS = (
    "link add v0 numtxqueues 4 numrxqueues 4 type veth peer name v1",
    "link add br0 type bridge",
    "tuntap add t0 mode tap",
    "tuntap add t1 mode tap multi_queue",
)


def counts(playground: Playground, name: str) -> list[dict[str, int]]:
    """`ethtool -l`: the maximums, then what is set. Empty where the link cannot tell (taps, on older kernels)."""
    shown = playground.run(f"sh -c 'ethtool -l {name} || true'")
    halves = re.split("Current hardware settings:", shown) if "Current" in shown else ["", ""]
    return [{key: int(value) for key, value in re.findall(r"^(\w+):\s+(\d+)$", half, re.M)} for half in halves]


def test_queue_counts_are_read_as_ethtool_shows_them(playground: Playground, host: LinuxHost) -> None:
    playground.batch(*LINKS)
    state = host.observe(Interest(channels=True))
    for name in ("v0", "v1", "t0", "t1"):
        most, now = counts(playground, name)
        found = state.channels.get(named(host, name).ifindex)
        assert (found is None) == (now == {})
        if found is not None:
            assert isinstance(found, Channels)
            ours = {"RX": found.rx, "TX": found.tx, "Combined": found.combined}
            ours_max = {"RX": found.rx_max, "TX": found.tx_max, "Combined": found.combined_max}
            assert {key: value or 0 for key, value in ours.items()} == {key: now.get(key, 0) for key in ours}
            assert {key: value or 0 for key, value in ours_max.items()} == {key: most.get(key, 0) for key in ours}
    assert named(host, "v0").ifindex in state.channels


def test_links_without_queue_counts_or_rings_are_absent(playground: Playground, host: LinuxHost) -> None:
    playground.batch(*LINKS)
    state = host.observe(Interest(channels=True, rings=True, rx_frames=True))
    bridge, veth = named(host, "br0").ifindex, named(host, "v0").ifindex
    assert bridge not in state.channels
    assert veth not in state.rings
    assert bridge not in state.rx_frames


def test_queue_counts_are_set(playground: Playground, host: LinuxHost) -> None:
    playground.batch(*LINKS)
    for _ in range(2):
        host.apply(model.SetChannels(as_ref(named(host, "v0")), rx=2, tx=3))
        _, now = counts(playground, "v0")
        assert (now["RX"], now["TX"]) == (2, 3)


def test_more_queues_than_the_link_has_are_refused_in_the_kernels_words(
    playground: Playground, host: LinuxHost
) -> None:
    playground.batch(*LINKS)
    with pytest.raises(errors.Refused, match="cannot set the queue counts of v0: requested channel count exceeds"):
        host.apply(model.SetChannels(as_ref(named(host, "v0")), rx=99))


def test_rx_frames_of_a_tap_are_set_and_read(playground: Playground, host: LinuxHost) -> None:
    playground.batch(*LINKS)
    for _ in range(2):
        host.apply(model.SetRxFrames(as_ref(named(host, "t0")), 10))
        assert re.search(r"^rx-frames:\s+10$", playground.run("ethtool -c t0"), re.M)
    state = host.observe(Interest(rx_frames=True))
    assert state.rx_frames[named(host, "t0").ifindex] == 10
    assert state.rx_frames[named(host, "t1").ifindex] == 0


def test_more_rx_frames_than_a_tap_can_gather_are_clamped_and_read_as_clamped(
    playground: Playground, host: LinuxHost
) -> None:
    playground.batch(*LINKS)
    host.apply(model.SetRxFrames(as_ref(named(host, "t0")), 100))
    assert host.observe(Interest(rx_frames=True)).rx_frames[named(host, "t0").ifindex] == 64


@pytest.mark.parametrize(
    "change",
    [
        lambda ref: model.SetRxFrames(ref, 3),
        lambda ref: model.SetRings(ref, rx=256),
        lambda ref: model.SetChannels(ref, combined=2),
    ],
)
def test_what_a_bridge_does_not_have_is_not_supported(
    playground: Playground, host: LinuxHost, change: Callable[[Ref], model.Change]
) -> None:
    playground.batch(*LINKS)
    with pytest.raises(errors.NotSupported, match="of br0"):
        host.apply(change(as_ref(named(host, "br0"))))


def test_nothing_asked_is_nothing_done(playground: Playground, host: LinuxHost) -> None:
    playground.batch(*LINKS)
    host.apply(model.SetRings(as_ref(named(host, "br0"))))


def driver_of(playground: Playground, name: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w-]+): ?(.*)$", playground.run(f"ethtool -i {name}"), re.M))


def test_drivers_are_read_as_ethtool_shows_them(playground: Playground, host: LinuxHost) -> None:
    playground.batch(*LINKS)
    state = host.observe(Interest(drivers=True))
    assert named(host, "lo").ifindex not in state.drivers
    for name in ("v0", "br0", "t0"):
        shown = driver_of(playground, name)
        found = state.drivers[named(host, name).ifindex]
        assert found == Driver(shown["driver"], shown["version"], shown["bus-info"], shown["firmware-version"])


def test_a_kind_that_tells_its_driver_is_named_as_ethtool_names_the_driver(
    playground: Playground, host: LinuxHost
) -> None:
    playground.batch(
        "link add v0 type veth peer name v1",
        "tuntap add t0 mode tap",
        "link add br0 type bridge",
        "link add ifb9 type ifb",
    )
    state = host.observe(Interest(untold_drivers=True))
    for name in ("v0", "t0", "br0"):
        assert named(host, name).kind == driver_of(playground, name)["driver"]
        assert named(host, name).ifindex not in state.drivers
    assert state.drivers[named(host, "ifb9").ifindex].name == driver_of(playground, "ifb9")["driver"]


def test_the_driver_of_a_reused_index_is_read_again(playground: Playground, host: LinuxHost) -> None:
    playground.batch(*LINKS)
    index = named(host, "v0").ifindex
    assert host.observe(Interest(drivers=True)).drivers[index].name == "veth"
    playground.batch("link del v0", f"link add other index {index} type bridge")
    assert host.observe(Interest(drivers=True)).drivers[index].name == "bridge"
