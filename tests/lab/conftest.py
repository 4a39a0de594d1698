"""Fixtures of the virtual machine: its NICs, the vhost_net module, a guest. They work nowhere else, and say so."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab import guest as guests
from virtnet.core import modules as module_rules

FILES = tuple(Path(path(module_rules.NAME)) for path in (module_rules.load_file, module_rules.rule_file))


def pytest_collection_modifyitems() -> None:
    if "virtme" not in Path("/proc/cmdline").read_text():
        pytest.exit("tests/lab loads and unloads modules: run `python -m tests.lab`, it boots a machine for them", 4)


@dataclass(frozen=True)
class Nics:
    """The machine's hardware NICs by driver; all of them are on one segment that has no other end."""

    virtio_net: tuple[str, ...]
    e1000e: tuple[str, ...]


@pytest.fixture(scope="session")
def nics() -> Nics:
    run("modprobe", "--all", "virtio_net", "e1000e")
    drivers: dict[str, list[str]] = {}
    for link in sorted(Path("/sys/class/net").iterdir()):
        driver = link / "device/driver"
        if driver.exists():
            drivers.setdefault(driver.resolve().name, []).append(link.name)
    return Nics(tuple(drivers["virtio_net"]), tuple(drivers["e1000e"]))


class Module:
    """vhost_net by hand, as an administrator outside of virtnet would handle it."""

    def load(self, *parameters: str) -> None:
        run("modprobe", module_rules.NAME, *parameters)

    def remove(self) -> None:
        run("rmmod", module_rules.NAME)

    @property
    def loaded(self) -> bool:
        done = subprocess.run(["lsmod"], capture_output=True, text=True, check=True)
        return any(line.split()[0] == module_rules.NAME for line in done.stdout.splitlines())


@pytest.fixture
def module() -> Iterator[Module]:
    """The module not loaded and no file of ours, before the test and after it."""
    _reset()
    yield Module()
    _reset()


def _reset() -> None:
    for path in FILES:
        path.unlink(missing_ok=True)
    if Module().loaded:
        Module().remove()


def uevents() -> socket.socket:
    """NETLINK_KOBJECT_UEVENT, group 1: what the kernel itself says, udev or not."""
    listener = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 15)
    listener.bind((0, 1))
    listener.settimeout(120)
    return listener


def wait_for(listener: socket.socket, begin: bytes) -> float:
    """Until the kernel says something that begins so; when that was, in monotonic seconds."""
    while True:
        if listener.recv(16384).startswith(begin):
            return time.monotonic()


@pytest.fixture(scope="session")
def accel(request: pytest.FixtureRequest) -> str:
    """What runs the guest: nested KVM, or emulation where this processor has none, which is said."""
    if os.environ.get("VIRTNET_LAB_ACCEL", "kvm") == "kvm":
        for name in ("kvm_amd", "kvm_intel"):
            subprocess.run(["modprobe", name], capture_output=True, check=False)
        if Path("/dev/kvm").exists():
            return "kvm"
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\nNO NESTED KVM: the guest is emulated in the emulated machine, which takes many minutes", flush=True)
    return "tcg"


@pytest.fixture
def paused(module: Module, tmp_path: Path) -> Iterator[guests.Guest]:
    """A guest whose QEMU has vhost_net and the tap open and never runs: in use, without the time to boot."""
    module.load()
    guests.network()
    try:
        with guests.started(tmp_path, "tcg", "-S") as stopped:
            stopped.wait_open()
            yield stopped
    finally:
        guests.remove_network()


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory, accel: str) -> Iterator[guests.Guest]:
    """A running guest on a bridge, a tap and vhost_net, ready for traffic; the module is in use meanwhile."""
    run("modprobe", module_rules.NAME)
    guests.network()
    try:
        with guests.started(tmp_path_factory.mktemp("guest"), accel) as running:
            running.wait_ready()
            yield running
    finally:
        guests.remove_network()


def run(*command: str) -> str:
    """Run a command that has to succeed; what it prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout
