"""The machine itself is what the other tests count on."""

from __future__ import annotations

from pathlib import Path

from tests.lab.conftest import Nics, run


def test_the_kernel_is_a_stock_one_with_vhost_net_as_a_module() -> None:
    release = run("uname", "-r").strip()
    assert Path("/boot", f"config-{release}").read_text().count("CONFIG_VHOST_NET=m") == 1


def test_there_are_virtio_and_e1000e_nics_with_queues_and_rings_to_change(nics: Nics) -> None:
    assert len(nics.virtio_net) == len(nics.e1000e) == 2
    run("ethtool", "--set-channels", nics.virtio_net[0], "combined", "1")
    run("ethtool", "--set-channels", nics.virtio_net[0], "combined", "2")
    run("ethtool", "--set-ring", nics.e1000e[0], "rx", "512")
    assert "RX:\t\t512" in run("ethtool", "--show-ring", nics.e1000e[0]).split("Current")[1]


def test_bonds_vlans_and_dummies_can_be_made(nics: Nics) -> None:
    run("modprobe", "--all", "bonding", "8021q", "dummy")
    run("ip", "link", "add", "labbond", "type", "bond", "mode", "active-backup")
    try:
        run("ip", "link", "set", nics.e1000e[1], "down")
        run("ip", "link", "set", nics.e1000e[1], "master", "labbond")
        run("ip", "link", "add", "link", "labbond", "name", "labbond.7", "type", "vlan", "id", "7")
        assert "labbond.7@labbond" in run("ip", "-brief", "link")
    finally:
        run("ip", "link", "delete", "labbond")
