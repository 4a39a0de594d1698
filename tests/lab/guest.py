"""A busybox guest on a bridge, a tap and vhost_net, started by the command line that administrators type."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

NAME = "lab-guest"
BRIDGE, TAP = "labbr", "labtap"
HOST, GUEST = "10.99.0.1", "10.99.0.2"
MAC = "52:54:00:9e:57:01"
BOOT_SECONDS = 300
SINK, WEB = 5001, 80
MEGABYTES = 8

# The order matters: insmod does not look for what a module needs.
MODULES = (
    *("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci"),
    *("failover", "net_failover", "virtio_net"),
)

SET_UP = f"""#!/bin/busybox sh
/bin/busybox mkdir -p /sbin /usr/bin /usr/sbin /proc /sys /dev
/bin/busybox --install -s
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in {" ".join(MODULES)}; do insmod /modules/$module.ko; done
"""
INIT = f"""{SET_UP}
mkdir /www
ip addr add {GUEST}/24 dev eth0; ip link set lo up; ip link set eth0 up
dd if=/dev/zero of=/www/bulk bs=1M count={MEGABYTES} 2>/dev/null
httpd -h /www
touch /www/received
(while true; do count=$(nc -l -p {SINK} | wc -c); echo $count >> /www/received; done) &
grep -q MSI /proc/interrupts && echo "guest: has MSI-X" > /dev/console
echo "guest: ready" > /dev/console
while true; do sleep 3600; done
"""


class Guest:
    """A running guest; `process` is its QEMU, `accel` what runs it ("kvm" or "tcg")."""

    def __init__(self, directory: Path, accel: str, *more: str) -> None:
        self.accel = accel
        self.log = directory / "console.log"
        initramfs = directory / "initramfs.cpio"
        initramfs.write_bytes(archive())
        self.command = [*command_line(initramfs, self.log, accel), *more]
        self._errors = directory / "qemu.log"
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)

    @property
    def output(self) -> str:
        """What the guest and its QEMU have said."""
        files = (path for path in (self.log, self._errors) if path.exists())
        return "\n".join(path.read_text(errors="replace") for path in files)

    def wait_ready(self) -> None:
        """Until the guest has an address and serves."""
        self.wait_until(lambda: "guest: ready" in self.output)

    def wait_open(self) -> None:
        """Until QEMU has opened vhost-net, which it does before the guest runs."""
        self.wait_until(lambda: self.vhost_threads() != [])

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Until this holds, while its QEMU runs."""
        deadline = time.monotonic() + BOOT_SECONDS
        while not done():
            assert self.process.poll() is None, f"the guest's QEMU ended:\n{self.output}"
            assert time.monotonic() < deadline, f"the guest is not up after {BOOT_SECONDS} s:\n{self.output}"
            time.sleep(0.2)

    def ping(self, count: int = 3) -> bool:
        """Whether every one of `count` echo requests is answered; Debian's ping may be missing, busybox is not."""
        command = ["busybox", "ping", "-c", str(count), "-W", "10", GUEST]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30 + 10 * count)
        return f"{count} packets received" in done.stdout

    def send(self, megabytes: int = MEGABYTES) -> int:
        """Stream bytes into the guest; how many it says that it has received."""
        known = self._get("received").split()
        with socket.create_connection((GUEST, SINK), timeout=60) as stream:
            for _ in range(megabytes):
                stream.sendall(bytes(1 << 20))
        deadline = time.monotonic() + 60
        while (counts := self._get("received").split()) == known:
            assert time.monotonic() < deadline, "the guest has not said what it received"
            time.sleep(0.2)
        return int(counts[-1])

    def fetch(self) -> int:
        """Stream bytes out of the guest; how many arrived."""
        return len(self._get("bulk"))

    def vhost_threads(self) -> list[str]:
        """The kernel's worker of this QEMU: `vhost-PID`, a kernel thread before Linux 6.4, then one of QEMU's."""
        name = f"vhost-{self.process.pid}"
        found = []
        for pattern in ("/proc/[0-9]*/comm", f"/proc/{self.process.pid}/task/*/comm"):
            found += [str(path) for path in Path("/").glob(pattern[1:]) if _comm(path) == name]
        return found

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(30)

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{GUEST}:{WEB}/{path}", timeout=60) as answer:
            body: bytes = answer.read()
        return body.decode("latin-1")


@contextmanager
def started(directory: Path, accel: str, *more: str) -> Iterator[Guest]:
    """A guest whose QEMU gets `more` arguments and ends with the block."""
    guest = Guest(directory, accel, *more)
    try:
        yield guest
    finally:
        guest.stop()


def _comm(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def command_line(initramfs: Path, log: Path, accel: str) -> list[str]:
    cpu = "host" if accel == "kvm" else "max"
    release = os.uname().release
    return [
        *("qemu-system-x86_64", "-name", f"guest={NAME}", "-machine", "q35", "-accel", accel, "-cpu", cpu),
        *("-m", "256", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", f"/boot/vmlinuz-{release}", "-initrd", str(initramfs)),
        *("-append", "console=ttyS0 quiet panic=-1 nokaslr mitigations=off no_timer_check tsc=reliable"),
        *("-serial", f"file:{log}"),
        *("-netdev", f"tap,id=net0,ifname={TAP},script=no,downscript=no,vnet_hdr=on,vhost=on"),
        *("-device", f"virtio-net-pci,netdev=net0,mac={MAC},romfile="),
    ]


def network() -> None:
    """The bridge with the host's address, and the guest's tap on it."""
    batch = f"""
        link add {BRIDGE} type bridge
        addr add {HOST}/24 dev {BRIDGE}
        link set {BRIDGE} up
        tuntap add {TAP} mode tap vnet_hdr
        link set {TAP} master {BRIDGE} up
    """
    subprocess.run(["ip", "-batch", "-"], input=batch, text=True, check=True)


def remove_network() -> None:
    for name in (TAP, BRIDGE):
        subprocess.run(["ip", "link", "delete", name], capture_output=True, check=False)


def archive(init: str = INIT, release: str | None = None) -> bytes:
    """A guest's root file system, as Documentation/driver-api/early-userspace/buffer-format.rst describes it.

    `init` begins with SET_UP. `release` is that of the kernel which it is for; None: the one that runs.
    """
    busybox = shutil.which("busybox")
    assert busybox is not None, "busybox is missing: install busybox-static"
    entries: list[tuple[str, int, bytes]] = [
        ("bin", stat.S_IFDIR | 0o755, b""),
        ("modules", stat.S_IFDIR | 0o755, b""),
        ("dev", stat.S_IFDIR | 0o755, b""),
        ("bin/busybox", stat.S_IFREG | 0o755, Path(busybox).read_bytes()),
        ("init", stat.S_IFREG | 0o755, init.encode()),
        *((f"modules/{name}.ko", stat.S_IFREG | 0o644, _module(name, release)) for name in MODULES),
        ("TRAILER!!!", 0, b""),
    ]
    return b"".join(_member(number, *entry) for number, entry in enumerate(entries, 1))


def _module(name: str, release: str | None) -> bytes:
    """A module's file; the kernel unpacks none, so modinfo's path must not be a compressed one."""
    of_kernel = ["-k", release] if release else []
    done = subprocess.run(["modinfo", *of_kernel, "-n", name], capture_output=True, text=True, check=True)
    path = Path(done.stdout.strip())
    assert path.suffix == ".ko", f"{path} is compressed: the guest has only insmod"
    return path.read_bytes()


def _member(inode: int, name: str, mode: int, data: bytes) -> bytes:
    fields: Sequence[int] = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name.encode() + b"\0") + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
