"""A real QEMU, started with what `virtnet qemu-args` prints, says that the NIC is as the policy wants it."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.playground import Playground, open_playground
from virtnet.__main__ import main

QEMU = (
    *("qemu-system-x86_64", "-S", "-display", "none", "-nodefaults", "-no-user-config", "-machine", "q35,accel=tcg"),
    *("-m", "64", "-qmp", "stdio"),
)
POLICY = """\
apiVersion: virtnet.dev/v1alpha1
kind: VirtioNetworkPolicy
metadata: {name: guests}
spec:
  bridge: {name: br0}
  vhost: {mode: Disabled}
  tap: {vnetHdr: true}
  guest:
    nic:
      model: virtio-non-transitional
      queues: 2
      rxQueueSize: 1024
      txQueueSize: 256
      host: {csum: true, gso: false, tso4: false, tso6: true, ecn: false, ufo: false}
      guest: {csum: true, tso4: true, tso6: false, ecn: false, ufo: false}
      mergeableRxBuffers: false
      packed: true
      eventIdx: false
      ioeventfd: false
      iommu: true
      ats: true
      rss: true
      rssHashReport: true
      sndbuf: 1048576
      txMode: timer
"""
PROPERTIES = {
    "type": "virtio-net-pci-non-transitional",
    "rx_queue_size": 1024,
    "tx_queue_size": 256,
    "mq": True,
    "vectors": 6,
    "tx": "timer",
    **dict.fromkeys(
        ("csum", "host_tso6", "guest_csum", "guest_tso4", "packed", "iommu_platform", "ats", "rss", "hash"), True
    ),
    **dict.fromkeys(("gso", "host_tso4", "host_ecn", "host_ufo", "guest_tso6", "guest_ecn", "guest_ufo"), False),
    **dict.fromkeys(("mrg_rxbuf", "event_idx", "ioeventfd"), False),
}


@pytest.fixture
def playground() -> Iterator[Playground]:
    with open_playground() as made:
        made.run("ip tuntap add tap0 mode tap multi_queue vnet_hdr")
        yield made


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "guests.yaml"
    path.write_text(POLICY)
    return str(path)


class Monitor:
    """QEMU's own protocol on the standard streams of a process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.answer()
        self.ask("qmp_capabilities")

    def answer(self) -> Any:
        """The next message that is no event."""
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            message = json.loads(line)
            if "event" not in message:
                return message
        raise AssertionError(self.process.communicate(timeout=30)[1])

    def ask(self, command: str, **arguments: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.process.stdin.flush()
        return self.answer()["return"]

    def properties(self, device: str, names: dict[str, Any]) -> dict[str, Any]:
        path = f"/machine/peripheral/{device}"
        return {name: self.ask("qom-get", path=path, property=name) for name in names}

    def networks(self) -> str:
        shown: str = self.ask("human-monitor-command", **{"command-line": "info network"})
        return shown


@contextmanager
def started(playground: Playground, *arguments: str) -> Iterator[Monitor]:
    process = playground.start(*QEMU, *arguments)
    try:
        yield Monitor(process)
    finally:
        process.kill()
        process.wait(30)


def printed(file: str, form: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["qemu-args", file, "--tap", "tap0", "--mac", "52:54:00:00:00:01", "-o", form]) == 0
    return capsys.readouterr().out


def arguments(file: str, form: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> list[str]:
    """What a user makes of each form."""
    text = printed(file, form, capsys)
    if form == "json":
        words: list[str] = json.loads(text)
        return words
    if form == "readconfig":
        (tmp_path / "nic.cfg").write_text(text)
        return ["-readconfig", str(tmp_path / "nic.cfg")]
    done = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {text}"], capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("form", ["shell", "json", "readconfig"])
def test_qemu_has_every_property_that_the_policy_asks(
    form: str, playground: Playground, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with started(playground, *arguments(file, form, capsys, tmp_path)) as monitor:
        assert monitor.properties("tap0-nic", PROPERTIES) == PROPERTIES
        assert "hub" not in monitor.networks()
        assert monitor.networks().count("ifname=tap0") == 2
        tap = playground.links()["tap0"]["linkinfo"]["info_data"]
        assert tap["numqueues"] + tap["numdisabled"] == 2  # the guest enables the second one
        assert tap["vnet_hdr"] is True


def offered(monitor: Monitor) -> set[str]:
    """The features that the device offers a guest: what counts, where properties only repeat what was asked."""
    (device,) = monitor.ask("x-query-virtio")
    status = monitor.ask("x-query-virtio-status", path=device["path"])
    return {text.partition(":")[0].removeprefix("VIRTIO_NET_F_") for text in status["host-features"]["dev-features"]}


def test_the_form_of_old_guides_loses_offloads_that_ours_keeps(
    playground: Playground, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plain.yaml"
    path.write_text(POLICY.partition("spec:")[0] + "spec: {bridge: {name: br0}}\n")
    playground.run("ip tuntap add tap1 mode tap vnet_hdr")
    old = shlex.split("-net nic,model=virtio -net tap,ifname=tap1,script=no,downscript=no,vnet_hdr=on")
    with started(playground, *old) as monitor:
        assert "hub 0" in monitor.networks()
        assert not {"CSUM", "HOST_TSO4", "GUEST_TSO4"} & offered(monitor)
    playground.run("ip link del tap0")
    playground.run("ip tuntap add tap0 mode tap vnet_hdr")
    with started(playground, *json.loads(printed(str(path), "json", capsys))) as monitor:
        assert {"CSUM", "HOST_TSO4", "GUEST_TSO4"} <= offered(monitor)
