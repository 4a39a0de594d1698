"""A guest on vhost_net: what its outside proves, what its QEMU says by QMP, and the path that is shown of both."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.lab import guest as guests
from tests.lab.conftest import Module, run
from tests.lab.guest import BRIDGE, MAC, NAME, TAP
from virtnet import errors
from virtnet.__main__ import main
from virtnet.core import running
from virtnet.core.model import Interest
from virtnet.core.running import Proof, RunningNic
from virtnet.host import LinuxHost, fingerprint, qmp

REQUIRED = f"""\
apiVersion: virtnet.dev/v1alpha1
kind: VirtioNetworkPolicy
metadata: {{name: required}}
spec:
  bridge: {{name: {BRIDGE}}}
  vhost: {{mode: Required}}
  guest: {{nic: {{host: {{csum: true, tso4: true}}}}}}
"""


@pytest.fixture
def monitor(tmp_path: Path) -> str:
    return str(tmp_path / "qmp.sock")


@pytest.fixture
def policy(tmp_path: Path) -> str:
    file = tmp_path / "required.yaml"
    file.write_text(REQUIRED)
    return str(file)


@pytest.fixture
def network() -> Iterator[None]:
    """vhost_net, the bridge and the tap."""
    run("modprobe", "vhost_net")
    guests.network()
    try:
        yield
    finally:
        guests.remove_network()


def look(*sockets: str) -> tuple[RunningNic, dict[str, object]]:
    """The guest's NIC, and what is in effect of it."""
    host = LinuxHost()
    try:
        state = host.observe(Interest(running=True))
    finally:
        host.close()
    state = replace(state, running=qmp.tell(state.running, sockets))
    (nic,) = (nic for nic in running.find(state) if nic.identity.guest == NAME)
    return nic, dict(running.effective(nic, state))


def answers(socket: str) -> bool:
    """Whether QEMU has made its machine: it opens its sockets before that, and answers after it."""
    try:
        return bool(qmp.ask(socket).nics)
    except errors.HostError:
        return False


def path(capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: str) -> str:
    assert main(["path", *arguments, "--state-dir", str(tmp_path / "state")]) == 0
    return capsys.readouterr().out


def with_monitor(socket: str) -> tuple[str, str]:
    return "-qmp", f"unix:{socket},server=on,wait=off"


def test_the_fingerprint_has_vhosts_bits_while_the_module_is_there_and_never_loads_it(module: Module) -> None:
    assert fingerprint.read().vhost is None
    assert not module.loaded
    module.load()
    bits = fingerprint.read().vhost
    assert bits is not None
    assert bits >> 32 & 1, "VIRTIO_F_VERSION_1"
    assert bits >> 15 & 1, "VIRTIO_NET_F_MRG_RXBUF"


@pytest.mark.usefixtures("network")
def test_a_guest_that_never_ran_has_descriptor_and_worker_and_no_vhost(
    accel: str, tmp_path: Path, monitor: str
) -> None:
    with guests.started(tmp_path, accel, "-S", *with_monitor(monitor)) as guest:
        guest.wait_open()
        guest.wait_until(lambda: answers(monitor))
        nic, effective = look()
        assert (nic.identity.mac, nic.tap.name, nic.running.vhost) == (MAC, TAP, 1)
        assert nic.running.workers == (f"vhost-{guest.process.pid}",)
        assert (nic.evidence.proof, "vhost.mode" in effective) == (Proof.OPEN, False)
        nic, effective = look(monitor)
        assert (nic.evidence.proof, effective["vhost.mode"]) == (Proof.NOT_STARTED, "Disabled")


@pytest.mark.usefixtures("network")
def test_a_guest_without_vhost_is_named_as_what_breaks_the_wish(
    accel: str, tmp_path: Path, monitor: str, policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with guests.started(tmp_path, accel, "-S", "-set", "netdev.net0.vhost=off", *with_monitor(monitor)) as guest:
        guest.wait_until(lambda: answers(monitor))
        nic, effective = look(monitor)
        assert (nic.running.vhost, nic.running.workers, effective["vhost.mode"]) == (0, (), "Disabled")
        (found,) = json.loads(path(capsys, tmp_path, NAME, "--policies", policy, "-o", "json"))
        assert found["hops"][found["broken"]]["kind"] == "vhost"
        assert found["sentence"].startswith("vhost.mode is Disabled, not Required, at QEMU's own backend: ")


@pytest.mark.usefixtures("network")
def test_a_running_guest_on_vhost_is_shown_with_the_proof(
    accel: str, tmp_path: Path, monitor: str, policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with guests.started(tmp_path, accel, *with_monitor(monitor)) as guest:
        guest.wait_ready()
        assert guest.ping()
        nic, passive = look()
        assert nic.evidence.proof is Proof.OPEN, "only QMP proves it"
        nic, told = look(monitor)
        assert (nic.evidence.proof, told["vhost.mode"]) == (Proof.STARTED, "Required")
        assert told["guest.nic.rxQueueSize"] == 256
        # The tap and QMP agree about what the guest's driver took.
        for name in ("csum", "tso4", "tso6"):
            assert passive[f"guest.nic.guest.{name}"] is told[f"guest.nic.guest.{name}"] is True
        arguments = (NAME, "--policies", policy, "--qmp", monitor)
        (found,) = json.loads(path(capsys, tmp_path, *arguments, "-o", "json"))
        assert (found["broken"], found["sentence"]) == (None, "")
        assert [hop["kind"] for hop in found["hops"]] == ["guest", "qemu", "vhost", "tap", "bridge"]
        assert "Started: QEMU says vhost-started" in path(capsys, tmp_path, *arguments)
