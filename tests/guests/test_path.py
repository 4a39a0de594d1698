"""A real QEMU on a real tap, seen from outside and asked by its own QMP socket; the path as the command prints it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.kernel.playground import Playground, open_playground
from virtnet import errors
from virtnet.__main__ import main
from virtnet.core import running
from virtnet.core.model import Interest, Unreadable
from virtnet.core.running import Proof
from virtnet.host import LinuxHost, evidence, fingerprint, qmp

MAC = "52:54:00:00:00:01"
BARE = (
    *("qemu-system-x86_64", "-S", "-display", "none", "-nodefaults", "-no-user-config", "-machine", "q35,accel=tcg"),
    *("-m", "64", "-name", "guest=web1,debug-threads=on"),
)
NIC = (
    *("-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no"),
    *("-device", f"virtio-net-pci,netdev=n0,mac={MAC},rx_queue_size=512,host_tso6=off"),
)
POLICY = """\
apiVersion: virtnet.dev/v1alpha1
kind: VirtioNetworkPolicy
metadata: {name: fast}
spec:
  bridge: {name: br0}
  uplink: {match: {names: [eth0]}}
  guest: {nic: {host: {csum: true, tso4: true}}}
"""
UNTIL = 30.0


@pytest.fixture
def playground() -> Iterator[Playground]:
    with open_playground() as made:
        made.batch(
            "link add br0 up type bridge",
            "link add eth0 type veth peer name far",
            "link set eth0 master br0 up",
            "link set far up",
        )
        made.run("ip tuntap add tap0 mode tap vnet_hdr")
        made.run("ip link set tap0 master br0 up")
        yield made


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def start(playground: Playground, tmp_path: Path, *nic: str, bare: Iterable[str] = BARE) -> str:
    """A QEMU whose machine is made and does not run; the path of its QMP socket."""
    monitor = tmp_path / "qmp.sock"
    child = playground.start(*bare, *nic, "-qmp", f"unix:{monitor},server=on,wait=off")
    end = time.monotonic() + UNTIL
    while not (monitor.exists() and held(playground)):
        assert child.poll() is None, child.stderr and child.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.05)
    return str(monitor)


def held(playground: Playground) -> bool:
    return bool(evidence.look(playground.namespace.path))


def look(playground: Playground, *sockets: str) -> tuple[running.RunningNic, dict[str, object]]:
    """The only NIC, and what is in effect of it."""
    host = LinuxHost(playground.namespace)
    try:
        state = host.observe(Interest(running=True))
    finally:
        host.close()
    state = replace(state, running=qmp.tell(state.running, sockets))
    (nic,) = running.find(state)
    return nic, dict(running.effective(nic, state))


def path(playground: Playground, state: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    netns = ["--netns", playground.netns] if playground.netns else []
    assert main(["path", *netns, "--state-dir", str(state), *arguments]) == 0
    return capsys.readouterr().out


def test_a_running_qemu_is_found_with_its_nic_and_its_tap(playground: Playground, tmp_path: Path) -> None:
    start(playground, tmp_path, *NIC)
    nic, effective = look(playground)
    assert (nic.identity.guest, nic.identity.mac, nic.identity.bridge, nic.tap.name) == ("web1", MAC, "br0", "tap0")
    assert nic.evidence.proof is Proof.NONE
    assert effective["vhost.mode"] == "Disabled"
    assert effective["guest.nic.guest.csum"] is False  # no driver has accepted anything
    assert running.configured(nic)["guest.nic.rxQueueSize"] == 512


def test_a_nic_whose_tap_was_opened_by_another_is_found_by_its_descriptor(
    playground: Playground, tmp_path: Path
) -> None:
    opener = (
        "import fcntl, os, struct, sys; tap = os.open('/dev/net/tun', os.O_RDWR);"
        "fcntl.ioctl(tap, 0x400454CA, struct.pack('16sH22x', b'tap0', 0x5002)); os.set_inheritable(tap, True);"
        "arguments = [word.replace('FD', str(tap)) for word in sys.argv[1:]]; os.execvp(arguments[0], arguments)"
    )
    socket = tmp_path / "qmp.sock"
    nic = ("-netdev", '{"type":"tap","fd":"FD","id":"n0"}', "-device", f"virtio-net-pci,netdev=n0,mac={MAC}")
    monitor = f"unix:{socket},server=on,wait=off"
    child = playground.start(sys.executable, "-c", opener, *BARE, *nic, "-qmp", monitor)
    end = time.monotonic() + UNTIL
    while not socket.exists():
        assert child.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    found, _ = look(playground)
    assert (found.tap.name, found.identity.mac) == ("tap0", MAC)


def test_the_arguments_in_a_file_count_too(playground: Playground, tmp_path: Path) -> None:
    file = tmp_path / "nic.cfg"
    netdev = '[netdev "n0"]\n  type = "tap"\n  ifname = "tap0"\n  script = "no"\n  downscript = "no"\n'
    file.write_text(f'{netdev}[device "nic"]\n  driver = "virtio-net-pci"\n  netdev = "n0"\n  mac = "{MAC}"\n')
    start(playground, tmp_path, "-readconfig", str(file))
    assert look(playground)[0].identity.mac == MAC


def test_qmp_tells_what_is_offered_and_that_vhost_is_not_started(playground: Playground, tmp_path: Path) -> None:
    nic, effective = look(playground, start(playground, tmp_path, *NIC))
    assert nic.told is not None
    assert (nic.told.mac, nic.told.peer, nic.told.started, nic.told.driver_ok) == (MAC, "n0", False, False)
    assert {"CSUM", "HOST_TSO4", "GUEST_TSO4", "MRG_RXBUF", "EVENT_IDX"} <= nic.told.offered
    assert "HOST_TSO6" not in nic.told.offered
    assert nic.told.rings[:2] == (512, 256)
    assert nic.evidence.proof is Proof.NOT_STARTED
    assert "guest.nic.host.tso4" not in effective  # no driver has accepted anything


@contextlib.contextmanager
def hands_on(path: Path) -> Iterator[Callable[[str], None]]:
    """Does to QEMU's hardware what firmware and a driver would (docs/devel/qtest.rst in QEMU)."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(UNTIL)
        connection.connect(str(path))
        with connection.makefile("r") as answers:

            def do(line: str) -> None:
                connection.sendall(f"{line}\n".encode())
                assert answers.readline().startswith("OK")

            yield do


WINDOW = 0xB0000000
"""Where firmware usually opens the window to PCI configurations."""


def test_msix_is_known_once_the_firmware_shows_pci_configurations(
    playground: Playground, tmp_path: Path, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = (*NIC[:3], f"{NIC[3]},id=nic0,addr=5")
    monitor = start(playground, tmp_path, *named, "-qtest", f"unix:{tmp_path / 'hands'},server=on,wait=off")

    def told() -> object:
        (nic,) = qmp.ask(monitor).nics
        return nic.msix

    assert told() == Unreadable("the firmware has not run yet")
    with hands_on(tmp_path / "hands") as do:
        do("outl 0xcf8 0x80000060")  # PCIEXBAR of the q35
        do(f"outl 0xcfc {WINDOW | 1:#x}")
        assert told() is False
        do(f"writew {WINDOW + (5 << 15) + 0x98 + 2:#x} 0x8003")  # virtio-net-pci has its MSI-X capability at 0x98
        assert told() is True
    (shown,) = json.loads(path(playground, state, capsys, "--qmp", monitor, "-o", "json"))
    assert "MSI-X in use" in shown["hops"][0]["facts"]


def test_msix_is_not_guessed_where_it_cannot_be_seen(playground: Playground, tmp_path: Path) -> None:
    older = tuple(word.replace("q35", "pc") for word in BARE)
    (nic,) = qmp.ask(start(playground, tmp_path, *NIC, bare=older)).nics
    assert nic.msix == Unreadable("only q35 machines show the configuration of their PCI devices")


def test_a_nic_without_vectors_has_no_msix(playground: Playground, tmp_path: Path) -> None:
    assert qmp.ask(start(playground, tmp_path, *NIC[:3], f"{NIC[3]},vectors=0")).nics[0].msix is False


def test_what_a_guest_does_not_fetch_is_counted(playground: Playground, tmp_path: Path) -> None:
    playground.run("ip link set tap0 txqueuelen 10")
    start(playground, tmp_path, *NIC)
    flood = (
        "import socket; raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); raw.bind(('br0', 0));"
        "[raw.send(b'\\xff' * 6 + b'\\x02\\0\\0\\0\\0\\x09' + b'\\x88\\xb5' + bytes(46)) for _ in range(500)]"
    )
    playground.python(flood)

    def told() -> int:
        return int(json.loads(playground.run("ip -j -s link show tap0"))[0]["stats64"]["tx"]["dropped"])

    before = told()
    host = LinuxHost(playground.namespace)
    try:
        state = host.observe(Interest(running=True))
    finally:
        host.close()
    (count,) = state.drops.values()
    assert 0 < before <= count <= told(), "packets of the kernel's own may be dropped meanwhile"


def test_a_hub_takes_the_offloads_away_and_is_named(
    playground: Playground, tmp_path: Path, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nic = ("-net", f"nic,model=virtio,macaddr={MAC}", "-net", "tap,ifname=tap0,script=no,downscript=no")
    found, _ = look(playground, start(playground, tmp_path, *nic))
    assert found.told is not None
    assert not {"CSUM", "HOST_TSO4", "GUEST_TSO4"} & found.told.offered
    assert "-net connects NIC and tap by hub 0" in " ".join(path(playground, state, capsys).replace("│", "").split())
    netns = ["--netns", playground.netns] if playground.netns else []
    assert main(["inspect", *netns, "--state-dir", str(state), "-o", "json"]) == 0
    assert "web1 on tap0: -net connects NIC and tap by hub 0" in capsys.readouterr().err


def test_a_socket_that_does_not_speak_qmp_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.Refused, match="cannot be asked"):
        qmp.ask(str(tmp_path / "nothing"))


def test_the_path_names_the_hop_that_takes_tso_away(
    playground: Playground, tmp_path: Path, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(playground, tmp_path, *NIC)
    policy = tmp_path / "fast.yaml"
    policy.write_text(POLICY)
    as_asked = json.loads(path(playground, state, capsys, "web1", "--policies", str(policy), "-o", "json"))
    assert [(each["broken"], each["sentence"]) for each in as_asked] == [(None, "")]
    playground.run("ethtool -K eth0 tx off")
    (broken,) = json.loads(path(playground, state, capsys, MAC, "--policies", str(policy), "-o", "json"))
    assert broken["sentence"] == "TSO is lost at br0: uplink eth0 has tx-checksum off"
    assert broken["hops"][broken["broken"]]["name"] == "br0"
    assert [hop["kind"] for hop in broken["hops"]] == ["guest", "qemu", "vhost", "tap", "bridge", "uplink"]
    shown = path(playground, state, capsys, "tap0", "--policies", str(policy))
    assert "✗ TSO is lost at br0: uplink eth0 has tx-checksum off" in shown


def test_the_picture_is_one_document_that_loads_nothing(
    playground: Playground, tmp_path: Path, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(playground, tmp_path, *NIC)
    drawn = path(playground, state, capsys, "-o", "svg")
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    assert "url(" not in drawn.replace("url(#", "")


def test_an_unknown_guest_is_an_error_that_says_who_is_there(
    playground: Playground, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    netns = ["--netns", playground.netns] if playground.netns else []
    assert main(["path", "web9", *netns, "--state-dir", str(state)]) == 1
    assert "no running guest, tap or MAC address is called web9; there are tap0" in capsys.readouterr().err


def test_the_fingerprint_is_what_the_kernel_says_and_loads_no_module() -> None:
    before = os.listdir("/sys/module")
    found = fingerprint.read()
    assert found.tun is not None
    assert found.tun & 0x4002 == 0x4002  # IFF_VNET_HDR, IFF_TAP
    assert (found.vhost is not None) == ("vhost_net" in before)
    assert os.listdir("/sys/module") == before
