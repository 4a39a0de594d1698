"""What the policies want of a NIC as QEMU's arguments, in three forms, and the command that prints them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from virtnet import errors
from virtnet.__main__ import main
from virtnet.core import qemu_args
from virtnet.core.model import (
    BridgeSpec,
    GuestMatch,
    GuestSpec,
    Match,
    Mode,
    Policy,
    Reason,
    TapSpec,
    Value,
    VhostMode,
    VhostSpec,
)
from virtnet.core.nics import Nic

ANY = Nic("", bridge=None)


def policy(nic: dict[str, Value] | None = None, **more: object) -> Policy:
    return Policy(
        str(more.pop("name", "p")),
        bridge=BridgeSpec("br0"),
        guest=GuestSpec(more.pop("match", None), nic=tuple((nic or {}).items())),  # type: ignore[arg-type]
        **more,  # type: ignore[arg-type]
    )


def added(*policies: Policy, nic: Nic = ANY) -> tuple[set[str], set[str]]:
    """What the policies add to -netdev and to -device."""
    asked = qemu_args.build(qemu_args.wanted(policies, nic, "tap0"), "tap0")
    usual = qemu_args.build(qemu_args.wanted([], nic, "tap0"), "tap0")
    netdev, device = set(asked.netdev) - set(usual.netdev), set(asked.device) - set(usual.device)
    return {"=".join(pair) for pair in netdev}, {"=".join(pair) for pair in device}


def test_without_wishes_it_is_a_tap_and_a_virtio_nic_on_it() -> None:
    built = qemu_args.build(qemu_args.wanted([], ANY, "tap0"), "tap0", mac="52:54:00:00:00:01")
    assert qemu_args.words(built) == (
        "-netdev",
        "tap,id=tap0-net,ifname=tap0,script=no,downscript=no",
        "-device",
        "virtio-net-pci,id=tap0-nic,netdev=tap0-net,mac=52:54:00:00:00:01",
    )


@pytest.mark.parametrize(
    ("path", "value", "netdev", "device"),
    [
        ("queues", 1, set(), set()),
        ("queues", 4, {"queues=4"}, {"mq=on", "vectors=10"}),
        ("rxQueueSize", 1024, set(), {"rx_queue_size=1024"}),
        ("txQueueSize", 256, set(), {"tx_queue_size=256"}),
        ("sndbuf", 0, {"sndbuf=0"}, set()),
        ("txMode", "iothread", set(), {"tx=bh"}),
        ("txMode", "timer", set(), {"tx=timer"}),
        ("host.csum", False, set(), {"csum=off"}),
        ("host.gso", False, set(), {"gso=off"}),
        ("host.tso4", True, set(), {"host_tso4=on"}),
        ("guest.csum", True, set(), {"guest_csum=on"}),
        ("guest.ufo", False, set(), {"guest_ufo=off"}),
        ("mergeableRxBuffers", False, set(), {"mrg_rxbuf=off"}),
        ("iommu", True, set(), {"iommu_platform=on"}),
        ("rssHashReport", True, set(), {"hash=on"}),
        ("eventIdx", False, set(), {"event_idx=off"}),
        ("model", "virtio-transitional", set(), {"driver=virtio-net-pci-transitional"}),
    ],
)
def test_a_setting_is_an_option_of_the_tap_or_a_property_of_the_device(
    path: str, value: Value, netdev: set[str], device: set[str]
) -> None:
    assert added(policy({path: value})) == (netdev, device)


@pytest.mark.parametrize(
    ("vhost", "netdev"),
    [
        (VhostSpec(VhostMode.REQUIRED), {"vhost=on"}),
        (VhostSpec(VhostMode.DISABLED), {"vhost=off"}),
        (VhostSpec(VhostMode.AUTO), set()),
        (VhostSpec(VhostMode.REQUIRED, poll_microseconds=50), {"vhost=on", "poll-us=50"}),
    ],
)
def test_the_vhost_mode_belongs_to_the_tap(vhost: VhostSpec, netdev: set[str]) -> None:
    assert added(policy(vhost=vhost)) == (netdev, set())


def test_polling_without_vhost_is_left_out_and_said() -> None:
    wanted = qemu_args.wanted([policy(vhost=VhostSpec(poll_microseconds=50))], ANY, "tap0")
    assert [(row.setting, row.reason) for row in wanted.rows] == [("vhost.pollMicroseconds", Reason.NEEDS_FEATURE)]
    assert added(policy(vhost=VhostSpec(poll_microseconds=50))) == (set(), set())


def test_the_taps_header_is_asked_of_the_tap_that_the_section_means() -> None:
    assert added(policy(tap=TapSpec(vnet_hdr=False))) == ({"vnet_hdr=off"}, set())
    assert added(policy(tap=TapSpec(Match(names=("tap*",)), vnet_hdr=True))) == ({"vnet_hdr=on"}, set())
    assert added(policy(tap=TapSpec(Match(names=("vnet*",)), vnet_hdr=True))) == (set(), set())
    assert added(policy(tap=TapSpec(vnet_hdr=False), mode=Mode.AUDIT)) == (set(), set())


@pytest.mark.parametrize(
    ("match", "nic", "meant"),
    [
        (GuestMatch(domains=("db",)), ANY, True),
        (GuestMatch(domains=("db",)), Nic("web", bridge=None), False),
        (GuestMatch(macs=("52:54:00:00:00:01",)), ANY, True),
        (GuestMatch(macs=("52:54:00:00:00:01",)), Nic("", "52:54:00:00:00:02", None), False),
        (GuestMatch(bridge="br9"), ANY, True),
        (GuestMatch(virtual_machines=True), ANY, False),
    ],
)
def test_a_match_on_what_is_not_given_is_taken_to_hold(match: GuestMatch, nic: Nic, meant: bool) -> None:
    assert added(policy({"packed": True}, match=match), nic=nic) == (set(), {"packed=on"} if meant else set())


def test_policies_merge_as_everywhere_and_audit_takes_no_part() -> None:
    low, high = policy({"queues": 2, "packed": True}, name="low"), policy({"queues": 3}, name="high", priority=1)
    audit = policy({"ats": True}, name="audit", mode=Mode.AUDIT)
    assert added(low, high, audit) == ({"queues=3"}, {"mq=on", "vectors=8", "packed=on"})


# --- forms -------------------------------------------------------------------------------------------------

ODD = "a,b';$(x)"
"""The kernel takes it for the name of a link."""


def test_a_shell_reads_exactly_the_words() -> None:
    built = qemu_args.build(qemu_args.wanted([policy({"queues": 2})], ANY, ODD), ODD)
    shown = qemu_args.shell(built)
    assert len(shown.splitlines()) == 2
    done = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {shown}"], capture_output=True, text=True, timeout=30, check=True
    )
    assert tuple(done.stdout.splitlines()) == qemu_args.words(built)


def test_a_comma_in_a_name_is_written_twice_and_an_identifier_is_plain() -> None:
    netdev = qemu_args.words(qemu_args.build(qemu_args.wanted([], ANY, ODD), ODD))[1]
    assert netdev.startswith("tap,id=a_b____x_-net,ifname=a,,b';$(x),")
    assert [qemu_args.identifier(name) for name in ("0tap", "é", "tap.1-2_3")] == ["n0tap", "n_", "tap.1-2_3"]


def test_readconfig_says_the_same_in_sections() -> None:
    built = qemu_args.build(qemu_args.wanted([policy({"queues": 2})], ANY, "tap0"), "tap0")
    assert qemu_args.readconfig(built) == (
        '[netdev "tap0-net"]\n  type = "tap"\n  ifname = "tap0"\n  script = "no"\n  downscript = "no"\n  queues = "2"\n'
        '\n[device "tap0-nic"]\n  driver = "virtio-net-pci"\n  netdev = "tap0-net"\n  mq = "on"\n  vectors = "6"\n'
    )


def test_a_value_that_readconfig_cannot_hold_is_refused() -> None:
    with pytest.raises(errors.UsageError, match="take -o shell or json"):
        qemu_args.readconfig(qemu_args.build(qemu_args.wanted([], ANY, 'a"b'), 'a"b'))


# --- the command -------------------------------------------------------------------------------------------

POLICY = """\
apiVersion: virtnet.dev/v1alpha1
kind: VirtioNetworkPolicy
metadata: {name: guests}
spec:
  bridge: {name: br0}
  vhost: {mode: Required}
  guest: {nic: {queues: vcpus, maxQueues: 4}}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "guests.yaml"
    path.write_text(POLICY)
    return str(path)


def test_json_is_one_flat_array_of_arguments(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["qemu-args", file, "--tap", "tap0", "--mac", "52:54:00:AB:00:01", "--vcpus", "8", "-o", "json"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == [
        "-netdev",
        "tap,id=tap0-net,ifname=tap0,script=no,downscript=no,queues=4,vhost=on",
        "-device",
        "virtio-net-pci,id=tap0-nic,netdev=tap0-net,mac=52:54:00:ab:00:01,mq=on,vectors=10",
    ]
    assert err == ""


def test_every_form_is_printed_and_a_missing_address_is_said(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    for form, begins in (("shell", "-netdev tap,id=n1-net"), ("readconfig", '[netdev "n1-net"]')):
        assert main(["qemu-args", file, "--tap", "tap0", "--id", "n1", "--vcpus", "1", "-o", form]) == 0
        out, err = capsys.readouterr()
        assert out.startswith(begins)
        assert "without --mac" in err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--tap", "tap0"], "write --vcpus N"),
        (["--tap", "tap0", "--vcpus", "0"], "write 1 or more"),
        (["--tap", "a/b", "--vcpus", "1"], "no interface name"),
        (["--tap", "tap0", "--vcpus", "1", "--mac", "52:54:00"], "no address of one NIC"),
        (["--tap", "tap0", "--vcpus", "1", "--mac", "01:00:5e:00:00:01"], "no address of one NIC"),
        (["--vcpus", "1"], "tap"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_printed(
    file: str, more: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["qemu-args", file, *more]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err.splitlines()[-1]
