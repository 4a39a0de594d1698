"""Rings, queues, drivers, features and vlans on real drivers, read as ethtool and ip show them, and set."""

from __future__ import annotations

import json
import re
import select
import time
from collections.abc import Iterator

import pytest

from tests.lab.conftest import Module, Nics, run
from virtnet import errors
from virtnet.core import model
from virtnet.core.model import Channels, Features, Interest, Link, ModuleStatus, Ref, Rings
from virtnet.host import LinuxHost
from virtnet.host.events import Monitor

SECONDS = 120


@pytest.fixture
def host() -> Iterator[LinuxHost]:
    made = LinuxHost()
    yield made
    made.close()


def named(host: LinuxHost, name: str) -> Link:
    found = host.observe(Interest()).by_name(name)
    assert found is not None, f"no link {name}"
    return found


def ref(host: LinuxHost, name: str) -> Ref:
    return Ref(name, named(host, name).ifindex)


def halves(shown: str) -> list[dict[str, int]]:
    """`ethtool -g` and `-l`: the maximums, then what is set; what the driver does not have is left out."""
    parts = re.split("Current hardware settings:", shown)
    return [{key: int(value) for key, value in re.findall(r"^([\w ]+):\s+(\d+)$", part, re.M)} for part in parts]


# --- rings -------------------------------------------------------------------------------------------------


def test_rings_are_read_as_ethtool_shows_them(host: LinuxHost, nics: Nics) -> None:
    rings = host.observe(Interest(rings=True)).rings
    for name in (*nics.e1000e, *nics.virtio_net):
        most, now = halves(run("ethtool", "-g", name))
        expected = Rings(rx=now["RX"], tx=now["TX"], rx_max=most["RX"], tx_max=most["TX"])
        assert rings[named(host, name).ifindex] == expected


@pytest.mark.parametrize("driver", ["e1000e", "virtio_net"])
def test_rings_are_set_alone_and_together_and_twice(host: LinuxHost, nics: Nics, driver: str) -> None:
    name = getattr(nics, driver)[0]
    _, before = halves(run("ethtool", "-g", name))
    try:
        for change in (
            model.SetRings(ref(host, name), rx=128),
            model.SetRings(ref(host, name), tx=64),
            model.SetRings(ref(host, name), rx=64, tx=128),
        ):
            _, now = halves(run("ethtool", "-g", name))
            expected = change.rx or now["RX"], change.tx or now["TX"]
            for _ in range(2):
                host.apply(change)
                _, now = halves(run("ethtool", "-g", name))
                assert (now["RX"], now["TX"]) == expected
    finally:
        run("ethtool", "-G", name, "rx", str(before["RX"]), "tx", str(before["TX"]))


def test_more_descriptors_than_the_driver_has_are_refused_in_the_kernels_words(host: LinuxHost, nics: Nics) -> None:
    with pytest.raises(errors.Refused, match="requested ring size exceeds maximum"):
        host.apply(model.SetRings(ref(host, nics.e1000e[0]), rx=1 << 20))


# --- queues ------------------------------------------------------------------------------------------------


def test_queue_counts_are_read_and_set(host: LinuxHost, nics: Nics) -> None:
    name = nics.virtio_net[0]
    most, before = halves(run("ethtool", "-l", name))
    try:
        for wanted in (1, 2, 2):
            host.apply(model.SetChannels(ref(host, name), combined=wanted))
            found = host.observe(Interest(channels=True)).channels[named(host, name).ifindex]
            assert halves(run("ethtool", "-l", name))[1]["Combined"] == wanted
            assert isinstance(found, Channels)
            assert (found.combined, found.combined_max, found.rx) == (wanted, most["Combined"], None)
    finally:
        run("ethtool", "-L", name, "combined", str(before["Combined"]))


# --- drivers, buses and features ---------------------------------------------------------------------------


def test_hardware_is_told_from_what_is_not(host: LinuxHost, nics: Nics) -> None:
    run("modprobe", "dummy")
    run("ip", "link", "add", "labdummy", "type", "dummy")
    try:
        links = host.observe(Interest()).links.values()
        shown = {link["ifname"]: link.get("parentdev", "") for link in json.loads(run("ip", "-j", "-d", "link"))}
        assert {link.name: link.bus for link in links} == shown
        assert {link.name for link in links if link.physical} == {*nics.virtio_net, *nics.e1000e}
    finally:
        run("ip", "link", "delete", "labdummy")


def test_hardware_is_told_on_a_kernel_that_names_no_parents(nics: Nics) -> None:
    """Before Linux 5.14 the driver's bus is all there is; here the same kernel is read in that way."""
    host = LinuxHost(parents_named=False)
    links = host.observe(Interest()).links
    assert {link.name for link in links.values() if link.physical} == {*nics.virtio_net, *nics.e1000e}
    assert all(host.observe(Interest()).links[index] is link for index, link in links.items())
    buses = {name: re.findall(r"^bus-info: (.+)$", run("ethtool", "-i", name), re.M) for name in nics.e1000e}
    assert {name: [named(host, name).bus] for name in nics.e1000e} == buses
    host.close()


def test_drivers_are_read_as_ethtool_shows_them(host: LinuxHost, nics: Nics) -> None:
    drivers = host.observe(Interest(drivers=True)).drivers
    for name in (*nics.virtio_net, *nics.e1000e):
        shown = dict(re.findall(r"^([\w-]+): ?(.*)$", run("ethtool", "-i", name), re.M))
        found = drivers[named(host, name).ifindex]
        assert (found.name, found.bus, found.firmware) == (
            shown["driver"],
            shown["bus-info"],
            shown["firmware-version"],
        )


def test_features_of_real_drivers_are_read_and_set(host: LinuxHost, nics: Nics) -> None:
    for name in (*nics.e1000e, *nics.virtio_net):
        before = active(name)["tx-tcp-segmentation"]
        state = host.observe(Interest())
        found = state.features[named(host, name).ifindex]
        assert isinstance(found, Features)
        bit = 1 << state.feature_names.index("tx-tcp-segmentation")
        assert bool(found.active & bit) == before
        try:
            for wanted in (False, True, True):
                after = host.set_features(ref(host, name), bit, bit if wanted else 0)
                assert bool(after.active & bit) == active(name)["tx-tcp-segmentation"]
                assert bool(after.wanted & bit) == wanted or not after.changeable & bit
        finally:
            host.set_features(ref(host, name), bit, bit if before else 0)


def active(name: str) -> dict[str, bool]:
    (shown,) = json.loads(run("ethtool", "--json", "-k", name))
    return {feature: bits["active"] for feature, bits in shown.items() if isinstance(bits, dict)}


# --- links that the build machines lack --------------------------------------------------------------------


def test_a_vlan_has_its_real_device_below_and_a_slave_its_bond_above(host: LinuxHost, nics: Nics) -> None:
    run("modprobe", "--all", "bonding", "8021q")
    run("ip", "link", "add", "labbond", "type", "bond", "mode", "active-backup")
    try:
        run("ip", "link", "set", nics.e1000e[1], "down")
        run("ip", "link", "set", nics.e1000e[1], "master", "labbond")
        run("ip", "link", "add", "link", "labbond", "name", "labbond.7", "type", "vlan", "id", "7")
        bond, vlan, slave = (named(host, name) for name in ("labbond", "labbond.7", nics.e1000e[1]))
        assert (bond.kind, vlan.kind, slave.kind) == ("bond", "vlan", "")
        assert (vlan.lower, slave.master) == (bond.ifindex, bond.ifindex)
        assert (bond.lower, slave.lower, vlan.physical) == (0, 0, False)
    finally:
        run("ip", "link", "delete", "labbond")


def test_vlan_filtering_of_a_bridge_is_set_and_read(host: LinuxHost) -> None:
    host.apply(model.CreateBridge("labfilter"))
    try:
        for wanted in (True, True, False):
            host.apply(model.SetBridgeOptions(ref(host, "labfilter"), (("vlanFiltering", wanted),)))
            (shown,) = json.loads(run("ip", "-j", "-d", "link", "show", "labfilter"))
            assert bool(shown["linkinfo"]["info_data"]["vlan_filtering"]) is wanted
            options = named(host, "labfilter").bridge
            assert options is not None
            assert options.vlan_filtering is wanted
    finally:
        host.apply(model.DeleteLink(Ref("labfilter", 0)))


# --- events ------------------------------------------------------------------------------------------------


def test_changed_rings_are_heard(host: LinuxHost, nics: Nics) -> None:
    name = nics.e1000e[0]
    index = named(host, name).ifindex
    _, before = halves(run("ethtool", "-g", name))
    monitor = host.monitor()
    try:
        run("ethtool", "-G", name, "rx", "1024")
        deadline = time.monotonic() + SECONDS
        heard = set[int]()
        while index not in heard:
            assert time.monotonic() < deadline, "the kernel did not tell of the changed rings"
            if select.select(monitor.filenos(), [], [], 1)[0]:
                heard |= monitor.drain().tuning
    finally:
        monitor.close()
        run("ethtool", "-G", name, "rx", str(before["RX"]))


def test_the_module_is_loaded_and_unloaded_twice_and_each_is_heard(host: LinuxHost, module: Module) -> None:
    monitor = host.monitor()
    assert not monitor.modules_problem
    try:
        for change, status in (
            (model.LoadModule("vhost_net"), ModuleStatus.LOADED),
            (model.UnloadModule("vhost_net"), ModuleStatus.ABSENT),
        ):
            host.apply(change)
            host.apply(change)
            assert module.loaded is (status is ModuleStatus.LOADED)
            state = host.observe(Interest(module=True)).module
            assert state is not None
            assert state.status is status
            assert "vhost_net" in heard_modules(monitor)
    finally:
        monitor.close()


def heard_modules(monitor: Monitor) -> set[str]:
    heard, deadline = set[str](), time.monotonic() + SECONDS
    while "vhost_net" not in heard and time.monotonic() < deadline:
        if select.select(monitor.filenos(), [], [], 1)[0]:
            heard |= monitor.drain().modules
    return heard
