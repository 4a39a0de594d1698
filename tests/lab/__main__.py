"""Boots Debian's kernel over this machine's file system, copy-on-write, and runs tests/lab in it.

The virtual machine is emulated (the kernels of build machines seldom let another one run under KVM); nested KVM works
in it all the same. Its NICs meet only each other, in a network namespace that goes with this process. What the tests
write stays in the virtual machine, but for the JUnit file.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
NEEDS = (
    "qemu-system-x86_64:qemu-system-x86",
    "/usr/bin/busybox:busybox-static",
    "file:file",
    "modprobe:kmod",
    "ethtool:ethtool",
    "ip:iproute2",
    "unshare:util-linux",
    "/boot/vmlinuz-*:linux-image-amd64",
)
SECONDS, TEST_SECONDS = 1500, 400
"""For the whole machine and for one test with its fixtures; idle, all takes about five minutes."""

CPUS, MEMORY = 2, "2G"
INSIDE = "/run/virtnet-lab"
"""Where the virtual machine sees the directory for results; the only one of this machine that it can write to."""

TMPFILES, UDEV_RULES = Path("/usr/bin/systemd-tmpfiles"), Path("/usr/lib/udev/rules.d")
PORTS = 'SUBSYSTEM=="virtio-ports", ATTR{name}=="?*", SYMLINK+="virtio-ports/$attr{name}"\n'

NICS = {"virtio": 2, "e1000e": 2}
QUEUES = 4


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    parser.add_argument("--junitxml", type=Path, help="write JUnit results to this file")
    parser.add_argument("--timeout", type=int, default=SECONDS, help="seconds until the machine is ended (%(default)s)")
    parser.add_argument("--console", action="store_true", help="show the kernel's messages too")
    parser.add_argument("--accel", choices=("kvm", "tcg"), default="kvm", help="of the guest in it (%(default)s)")
    parser.add_argument("--in-namespace", action="store_true", help=argparse.SUPPRESS)
    options, pytest_arguments = parser.parse_known_args()
    if not options.in_namespace:
        subprocess.run([ROOT / "scripts/need", *NEEDS], check=True)
        return enter_namespace()
    make_taps()
    shorten_boot()
    with tempfile.TemporaryDirectory(prefix="virtnet-lab-") as results:
        command = machine(pytest_arguments, results, options)
        code = run(command, options.timeout)
        written = Path(results, "junit.xml")
        if options.junitxml and written.exists():
            options.junitxml.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(written, options.junitxml)
        return code


def enter_namespace() -> int:
    """Start again in network and mount namespaces of our own, as root of a user namespace where we are not root."""
    unshare = ["unshare", "--net", "--mount"]
    unshare += [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    again = [sys.executable, "-m", "tests.lab", *sys.argv[1:], "--in-namespace"]
    os.execvp(unshare[0], [*unshare, "--", *again])


def make_taps() -> None:
    """One bridge, and a tap for each NIC of the virtual machine on it."""
    lines = ["link set lo up", "link add lab type bridge", "link set lab up"]
    for name in names():
        queues = "multi_queue" if name.startswith("virtio") else ""
        lines += [f"tuntap add {name} mode tap vnet_hdr {queues}", f"link set {name} master lab up"]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)


def shorten_boot() -> None:
    """Hide the slow steps of the virtual machine's start, half a minute that no test needs.

    Device nodes come from devtmpfs and the tests load their modules themselves: of udev only the links to the ports
    are needed by which virtme-ng forwards output and exit code.
    """
    if TMPFILES.exists():
        subprocess.run(["mount", "--bind", "/usr/bin/true", TMPFILES], check=True)
    if UDEV_RULES.is_dir():
        subprocess.run(["mount", "-t", "tmpfs", "none", UDEV_RULES], check=True)
        (UDEV_RULES / "50-ports.rules").write_text(PORTS)


def names() -> list[str]:
    return [f"{model}{number}" for model, count in NICS.items() for number in range(count)]


def newest_kernel() -> Path:
    """The newest installed kernel whose modules are there."""
    kernels = [path for path in Path("/boot").glob("vmlinuz-*") if Path("/lib/modules", release(path)).is_dir()]
    if not kernels:
        raise SystemExit("no kernel in /boot has its modules in /lib/modules; install linux-image-amd64")
    return max(
        kernels, key=lambda path: [int(part) for part in release(path).replace("-", ".").split(".") if part.isdigit()]
    )


def release(kernel: Path) -> str:
    return kernel.name.removeprefix("vmlinuz-")


def machine(pytest_arguments: Sequence[str], results: str, options: argparse.Namespace) -> list[str]:
    """The command that boots, runs pytest and ends with its exit code."""
    suite = (
        pytest_arguments
        if any(not word.startswith("-") for word in pytest_arguments)
        else ["tests/lab", *pytest_arguments]
    )
    inside = [
        *(
            "env",
            f"VIRTNET_LAB_ACCEL={options.accel}",
            "PYTHONUNBUFFERED=1",
            "PYTHONDONTWRITEBYTECODE=1",
            "HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
        ),
        *(
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            f"--timeout={TEST_SECONDS}",
            f"--junitxml={INSIDE}/junit.xml",
            *suite,
        ),
    ]
    vng = Path(sys.executable).with_name("vng")
    if not vng.exists():
        raise SystemExit(f"{vng} is missing: pip install virtme-ng")
    return [
        *(str(vng), "--run", str(newest_kernel()), "--disable-kvm", "--user", "root"),
        *(["--verbose"] if options.console else []),
        *("--cpus", str(CPUS), "--memory", MEMORY, "--cwd", str(ROOT)),
        *("--rwdir", f"{INSIDE}={results}", f"--qemu-opts={' '.join(nics())} -cpu max"),
        *("--", shlex.join(inside)),
    ]


def nics() -> list[str]:
    words = []
    for number, name in enumerate(names()):
        virtio = name.startswith("virtio")
        queues = f",queues={QUEUES}" if virtio else ""
        device = f"virtio-net-pci,mq=on,vectors={2 * QUEUES + 2}" if virtio else "e1000e"
        words += ["-netdev", f"tap,id={name},ifname={name},script=no,downscript=no,vhost=off{queues}"]
        words += ["-device", f"{device},netdev={name},mac=52:54:00:1a:b0:{number:02x}"]
    return words


def run(command: list[str], seconds: int) -> int:
    """Forward the output as it comes; end the machine with all its processes when the time is over."""
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # virtme-ng opens its standard output again, which would overwrite a file from its beginning; a pipe has none.
    forward = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    process = subprocess.Popen(
        command,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=forward.stdin,
        stderr=forward.stdin,
        start_new_session=True,
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        print(f"the virtual machine was ended after {seconds} s", file=sys.stderr)
        return 124
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        forward.communicate()


if __name__ == "__main__":
    sys.exit(main())
