"""Boots Debian's kernel over this machine's file system, copy-on-write, and runs tests/lab in it.

The virtual machine is emulated (the kernels of build machines seldom let another one run under KVM); nested KVM works
in it all the same. Its NICs meet only each other, in a network namespace that goes with this process. What the tests
write stays in the virtual machine, but for the JUnit file.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

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
"""For everything, both starts together, and for one test with its fixtures."""

SILENT_SECONDS = TEST_SECONDS + 100
"""A machine that says nothing for longer hangs: pytest ends a test earlier, and tells every test."""

STARTS = 2
"""A machine that dies or hangs is begun once more; a failed test never is."""

CPUS, MEMORY = 2, "2G"
"""With one processor it takes twice as long."""

DEATH = ("softlockup_panic=1", "watchdog_thresh=60", "oops=panic", "panic=-1")
"""A stuck kernel ends its machine. A processor is stuck after twice the threshold, as this machine may be slow."""

TAIL_LINES = 60
INSIDE = "/run/virtnet-lab"
"""Where the virtual machine sees the directory for results; the only one of this machine that it can write to."""

EXIT_CODE, CONSOLE = "exit-code", "console.log"
"""The files in it: pytest's exit code, which a machine that died has not written, and what its kernel said."""

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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    make_taps()
    shorten_boot()
    with tempfile.TemporaryDirectory(prefix="virtnet-lab-") as results:
        command = machine(pytest_arguments, results, options)
        code = outcome(command, Path(results), options.timeout)
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
        *("--rwdir", f"{INSIDE}={results}", f"--append={' '.join(kernel_words())}"),
        f"--qemu-opts={' '.join(nics())} -cpu max -no-reboot -serial file:{Path(results, CONSOLE)}",
        *("--", f"{shlex.join(inside)}; code=$?; echo $code > {INSIDE}/{EXIT_CODE}; exit $code"),
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


def kernel_words() -> list[str]:
    """What the kernel says from a warning on goes to the second serial port too, which is kept; the first is shown."""
    return [*DEATH, "console=ttyS1,115200", "loglevel=5"]


def outcome(command: Sequence[str], results: Path, seconds: float) -> int:
    """The exit code of the first machine that lives until pytest has ended; 124 when time is over, 1 when all died.

    A machine that dies or hangs is begun again, loudly, and the last words of its console are shown.
    """
    deadline = time.monotonic() + seconds
    for start in range(1, STARTS + 1):
        reason = run(command, deadline)
        written = results / EXIT_CODE
        if written.exists() and (code := written.read_text().strip()):
            if start > 1:
                print(f"LAB: the machine was begun {start} times, see above why", file=sys.stderr, flush=True)
            return int(code)
        print(f"LAB: machine {start} of {STARTS} {reason}; its console:\n{tail(results)}", file=sys.stderr, flush=True)
        if time.monotonic() >= deadline:
            return 124
    return 1


def tail(results: Path) -> str:
    """The last lines that the kernel wrote to its console."""
    console = results / CONSOLE
    lines = console.read_text(errors="replace").splitlines() if console.exists() else []
    return "\n".join(f"  | {line}" for line in lines[-TAIL_LINES:]) or "  | (nothing)"


def run(command: Sequence[str], deadline: float) -> str:
    """Forward the output as it comes until the machine ends, or end it with all its processes; how it ended."""
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    # virtme-ng opens its standard output again, which would overwrite a file from its beginning; a pipe has none.
    process = subprocess.Popen(
        command,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        with process.stdout as output:
            return forward(output, process, deadline)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def forward(output: IO[bytes], process: subprocess.Popen[bytes], deadline: float) -> str:
    """Write what the machine says to standard output, until its end, its silence or the deadline (monotonic)."""
    heard = time.monotonic()
    while (now := time.monotonic()) < deadline:
        if now - heard > SILENT_SECONDS:
            return f"said nothing for {SILENT_SECONDS} s and was ended"
        if not select.select([output], [], [], 1)[0]:
            continue
        words = os.read(output.fileno(), 1 << 16)
        if not words:
            return f"ended by itself with {process.wait(30)} before its tests had"
        sys.stdout.buffer.write(words)
        sys.stdout.buffer.flush()
        heard = time.monotonic()
    return "was ended, as the time for everything is over"


if __name__ == "__main__":
    sys.exit(main())
