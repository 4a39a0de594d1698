"""QEMU command lines as people, libvirt and old guides write them: what they configure, and how that differs."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtnet.core import guests, nics, qemu_args
from virtnet.core.guests import Configured
from virtnet.core.model import BridgeSpec, GuestSpec, Policy, Reason, Value, VhostMode, VhostSpec
from virtnet.core.nics import Nic, Wanted, Wish

NIC = Nic("db", "52:54:00:00:00:01", "br0", vcpus=2)
PAIR = "-netdev tap,id=n0,ifname=tap0,{} -device virtio-net-pci,netdev=n0,{}"
MAC = "52:54:00:aa:00:01"
SEED = "-net nic,model=virtio -net tap,ifname=tap0,vnet_hdr=on,vhost=on,vhostforce=on"


def read(command: str) -> Configured:
    """The one NIC of a command line."""
    (nic,) = guests.read(["qemu-system-x86_64", *shlex.split(command)]).nics
    return nic


def wishes(**values: Value) -> Wanted:
    """Wishes by the last part of their path, `host__csum` for host.csum; `vhost` is vhost.mode."""
    paths = {name: nics.MODE if name == "vhost" else nics.NIC + name.replace("__", ".") for name in values}
    return Wanted({paths[name]: Wish(paths[name], value, "p") for name, value in values.items()})


def deviations(command: str, wanted: Wanted) -> dict[str, tuple[Value | None, str]]:
    rows = list(guests.compare(read(command), NIC, wanted))
    assert {row.reason for row in rows} <= {Reason.RESTART_REQUIRED}
    assert {row.subject for row in rows} <= {"guest/db/52:54:00:00:00:01"}
    return {row.setting: (row.actual, row.message) for row in rows}


# --- what was configured -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "model", "mac", "tap"),
    [
        ("-netdev tap,id=a,ifname=tap0 -device virtio-net-pci,netdev=a,mac=52:54:00:AA:00:01", "virtio", MAC, "tap0"),
        ("-device virtio-net-pci,netdev=a -netdev tap,id=a,ifname=tap0", "virtio", "", "tap0"),
        ("--netdev type=tap,id=a,ifname=tap0 --device driver=virtio-net,netdev=a", "virtio", "", "tap0"),
        ("-nic tap,model=virtio-net-pci,ifname=tap0,mac=52:54:00:aa:00:01", "virtio", MAC, "tap0"),
        ("-netdev tap,id=a,ifname=t,,0 -device virtio-net-pci-transitional,netdev=a", "virtio-transitional", "", "t,0"),
        ("-netdev tap,id=a,ifname=tap0 -device e1000,netdev=a", "e1000", "", "tap0"),
        (f"-netdev tap,id=a,ifname=tap0 -net nic,model=virtio,netdev=a,macaddr={MAC}", "virtio", MAC, "tap0"),
        ("-device virtio-net-pci", "virtio", "", ""),
        (SEED, "virtio", "", "tap0"),
    ],
)  # fmt: skip
def test_a_nic_is_found_in_every_way_to_write_it(command: str, model: str, mac: str, tap: str) -> None:
    nic = read(command)
    assert (nic.model, nic.mac, nic.tap) == (model, mac, tap)


def test_what_is_no_nic_is_none() -> None:
    command = "-nic none -net none -device virtio-blk-pci,drive=d -netdev tap,id=a -append netdev=x"
    assert guests.read(shlex.split(command)).nics == ()
    assert guests.read([]).nics == ()
    assert guests.read(["qemu", "-netdev"]).nics == ()


def test_libvirts_json_is_read() -> None:
    nic = read(
        """-netdev '{"type":"tap","fds":"11:13","vhost":true,"vhostfds":"14:15","sndbuf":0,"id":"hostua-default"}'
        -device '{"driver":"virtio-net-pci-non-transitional","packed":true,"host_tso4":false,"mq":true,"vectors":6,
        "rx_queue_size":1024,"netdev":"hostua-default","id":"ua-default","mac":"52:54:00:AA:00:01"}'"""
    )
    assert (nic.model, nic.mac, nic.tap, nic.fds) == ("virtio-non-transitional", "52:54:00:aa:00:01", "", ("11", "13"))
    paths = {"queues": 2, "packed": True, "host.tso4": False, "host.tso6": True, "rxQueueSize": 1024, "sndbuf": 0}
    assert {path: guests.actual(nic, nics.NIC + path) for path in paths} == paths
    assert guests.asks_vhost(nic)


def test_a_file_for_readconfig_is_read_when_its_text_is_given() -> None:
    text = '# ours\n[netdev "n"]\n  type = "tap"\n  ifname = "tap0"\n\n[device "d"]\ndriver = "virtio-net-pci"\n'
    text += '  netdev = "n"\n  packed = "on"\n[machine]\n  type = "q35"\n'
    argv = ["qemu", "-readconfig", "/etc/nic.cfg", "-set", "device.d.mrg_rxbuf=off", "-set", "netdev.n.sndbuf=7"]
    (nic,) = guests.read(argv, {"/etc/nic.cfg": text}).nics
    assert (nic.tap, nic.properties["packed"], nic.properties["mrg_rxbuf"]) == ("tap0", "on", "off")
    assert nic.options["sndbuf"] == "7"
    assert guests.read(argv) == guests.Read((), 1, ("/etc/nic.cfg",))


def test_a_property_preset_for_all_devices_holds_where_the_device_says_nothing() -> None:
    command = "-global virtio-net-pci.mrg_rxbuf=off -global driver=virtio-net-pci,property=packed,value=on "
    nic = read(command + "-device virtio-net-pci,packed=off")
    assert guests.actual(nic, "guest.nic.mergeableRxBuffers") is False
    assert guests.actual(nic, "guest.nic.packed") is False


@pytest.mark.parametrize(
    ("smp", "vcpus"),
    [
        ("", 1),
        ("-smp 4", 4),
        ("-smp cpus=2,maxcpus=8", 2),
        ("-smp 2,sockets=4", 2),
        ("-smp sockets=2,cores=3", 6),
        ("-smp maxcpus=8", 8),
        ("-smp many", None),
    ],
)
def test_virtual_cpus_are_those_at_the_start(smp: str, vcpus: int | None) -> None:
    assert guests.read(["qemu", *smp.split()]).vcpus == vcpus


# --- vhost, old words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "vhost"),
    [
        ("vhost=on", True),
        ("vhost=off", False),
        ("script=no", False),
        ("vhostforce=on", True),
        ("vhostforce=off", False),
        ("vhost=off,vhostforce=on", False),
        ("vhost=on,vhostforce=off", True),
        ("vhostfd=9", True),
        ("fds=3:4,vhostfds=9:10", True),
    ],
)
def test_vhost_is_asked_as_qemu_understands_it(options: str, vhost: bool) -> None:
    assert guests.asks_vhost(read(PAIR.format(options, "mac="))) is vhost


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("vhost=on", []),
        ("vhostforce=on", ["vhostforce=on means vhost=on: since QEMU 2.4"]),
        ("vhost=off,vhostforce=on", ["vhostforce=on beside vhost=off has no effect"]),
        ("vhostfd=9", ["vhostfd=9 means vhost=on"]),
        ("fds=3:4,vhostfds=9:10", ["vhostfds=9:10 means vhost=on"]),
    ],
)
def test_an_old_word_is_explained_in_todays(options: str, says: list[str]) -> None:
    sentences = list(guests.explain(read(PAIR.format(options, "mac="))))
    assert [sentence.startswith(begin) for sentence, begin in zip(sentences, says, strict=True)] == [True] * len(says)


def test_a_hub_is_named_with_its_fix() -> None:
    nic = read(SEED)
    assert nic.hub
    assert not guests.asks_vhost(nic)
    hub, force = guests.explain(nic)
    assert "hub 0" in hub
    assert "-netdev and -device" in hub
    assert force.startswith("vhostforce=on beside vhost=on has no effect")


@pytest.mark.parametrize(
    "command",
    [
        "-netdev tap,id=a,ifname=tap0 -device virtio-net-pci,netdev=a",
        "-nic tap,model=virtio-net-pci,ifname=tap0",
        "-netdev tap,id=a,ifname=tap0 -net nic,model=virtio,netdev=a",
    ],
)
def test_a_nic_that_has_its_tap_to_itself_is_on_no_hub(command: str) -> None:
    assert not read(command).hub
    assert list(guests.explain(read(command))) == []


def test_a_port_of_a_hub_is_one_by_its_new_name_too() -> None:
    command = "-netdev tap,id=t -netdev hubport,id=h,hubid=0,netdev=t -device virtio-net-pci,netdev=h"
    assert read(command).hub


# --- wanted and configured ---------------------------------------------------------------------------------


def test_what_is_as_wanted_is_no_row() -> None:
    wanted = wishes(vhost="Required", queues=2, host__tso4=False, guest__csum=True, model="virtio", txMode="iothread")
    assert deviations(PAIR.format("vhost=on,queues=2", "mq=yes,host_tso4=no"), wanted) == {}


def test_each_deviation_says_what_to_start_the_guest_with() -> None:
    wanted = wishes(
        vhost="Disabled", queues=4, sndbuf=65536, packed=True, model="virtio-transitional", rxQueueSize=1024
    )
    begin = "QEMU was started otherwise; start it with "
    assert deviations(PAIR.format("vhost=on", "rx_queue_size=0x200"), wanted) == {
        "vhost.mode": ("Required", begin + "vhost=off"),
        "guest.nic.queues": (1, begin + "queues=4 in -netdev and mq=on in -device"),
        "guest.nic.sndbuf": (0, begin + "sndbuf=65536"),
        "guest.nic.packed": (False, begin + "packed=on"),
        "guest.nic.model": ("virtio", begin + "-device virtio-net-pci-transitional"),
        "guest.nic.rxQueueSize": (512, begin + "rx_queue_size=1024"),
    }
    assert deviations(PAIR.format("queues=2", "mq=on"), wishes(queues=1)) == {
        "guest.nic.queues": (2, begin + "no queues= and no mq=")
    }


def test_a_hub_takes_offloads_and_vhost_away_whatever_is_written() -> None:
    wanted = wishes(vhost="Required", host__tso4=True, guest__csum=True, mergeableRxBuffers=True, host__csum=False)
    assert deviations(SEED, wanted) == {
        "vhost.mode": ("Disabled", guests.HUB),
        "guest.nic.host.tso4": (False, guests.HUB),
        "guest.nic.guest.csum": (False, guests.HUB),
    }


def test_without_its_header_a_tap_takes_offloads_away() -> None:
    found = deviations(PAIR.format("vnet_hdr=off", "host_tso4=on"), wishes(host__tso4=True, packed=False))
    assert found == {"guest.nic.host.tso4": (False, guests.NO_HEADER)}


def test_a_value_that_qemu_alone_understands_is_a_deviation_and_no_crash() -> None:
    found = deviations(PAIR.format("queues=x", "packed=maybe,rx_queue_size=1k"), wishes(queues=2, packed=True))
    assert {path: actual for path, (actual, _) in found.items()} == {"guest.nic.queues": None, "guest.nic.packed": None}


def test_how_qemu_sends_is_nobodys_business_under_vhost() -> None:
    assert deviations(PAIR.format("vhost=on", "mac="), wishes(txMode="timer")) == {}
    assert list(deviations(PAIR.format("vhost=off", "mac="), wishes(txMode="timer"))) == ["guest.nic.txMode"]


def test_another_kind_of_nic_is_left_alone_unless_a_model_is_wanted() -> None:
    command = "-netdev tap,id=a -device e1000,netdev=a"
    assert deviations(command, wishes(queues=4)) == {}
    assert deviations(command, wishes(model="virtio"))["guest.nic.model"][0] == "e1000"


def test_what_qemu_args_prints_is_read_back_as_wanted() -> None:
    nic: dict[str, Value] = {
        "queues": 2,
        "packed": True,
        "host.tso4": False,
        "txMode": "timer",
        "sndbuf": 9,
        "rss": True,
    }
    policy = Policy(
        "p",
        bridge=BridgeSpec("br0"),
        vhost=VhostSpec(VhostMode.REQUIRED, poll_microseconds=50),
        guest=GuestSpec(nic=tuple(nic.items())),
    )
    wanted = qemu_args.wanted([policy], NIC, "tap,0")
    built = qemu_args.build(wanted, "tap,0", mac=NIC.mac)
    for argv, files in (
        (["qemu", *qemu_args.words(built)], {}),
        (["qemu", "-readconfig", "f"], {"f": qemu_args.readconfig(built)}),
    ):
        (configured,) = guests.read(argv, files).nics
        assert (configured.mac, configured.tap) == (NIC.mac, "tap,0")
        assert list(guests.compare(configured, NIC, wanted)) == []


WORDS = [
    *("-netdev", "-device", "-nic", "-net", "-set", "-global", "-readconfig", "-smp", "tap,id=a", "nic,netdev=a", "{"),
    *(
        "f",
        "=",
        "virtio-net-pci,netdev=a",
        '{"driver":"virtio-net-pci","netdev":["a"]}',
        "device.a.b=c",
        "netdev.a.fds=3:4",
    ),
]
ARGUMENTS = st.lists(st.sampled_from(WORDS) | st.text("=,.:{}[]\"'\0a1", max_size=8), max_size=14)


@given(ARGUMENTS, st.text('[]"= \nnetdevi', max_size=40))
def test_whatever_a_process_was_started_with_is_no_crash(argv: list[str], text: str) -> None:
    found = guests.read(argv, {"f": text})
    for nic in found.nics:
        list(guests.explain(nic))
        list(guests.compare(nic, NIC, wishes(vhost="Required", queues=2, packed=True, sndbuf=1, txMode="timer")))
