"""A libvirtd of the tests' own: in its own mount and network namespaces, with all its directories in memory.

What this machine's own libvirt has is neither seen nor touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

NEEDED = ("libvirtd", "virsh", "qemu-system-x86_64", "unshare")
READY_SECONDS = 60.0
"""The first start asks QEMU what it can do, which takes about ten."""

START = """
set -e
for directory in /etc/libvirt /var/lib/libvirt /run/libvirt /var/cache/libvirt /var/log/libvirt; do
    mkdir -p $directory
    mount -t tmpfs none $directory
done
mkdir /etc/libvirt/qemu
cp "$PLACE/qemu.conf" /etc/libvirt/qemu.conf
mkdir -p "$PLACE/cache" && mount --bind "$PLACE/cache" /var/cache/libvirt
ip link set lo up
ip link add br0 up type bridge
ip link add br1 up type bridge
while true; do
    libvirtd -f "$PLACE/libvirtd.conf" -p "$PLACE/pid" || true
    test -e "$PLACE/stay" || exit 0
    touch "$PLACE/down"
    while test -e "$PLACE/stay"; do sleep 0.1; done
    rm "$PLACE/down"
done
"""
QEMU = """\
user = "root"
group = "root"
security_driver = "none"
stdio_handler = "file"
cgroup_controllers = []
namespaces = []
remember_owner = 0
"""
LIBVIRTD = """\
unix_sock_dir = "{place}/run"
auth_unix_rw = "none"
log_outputs = "3:file:{place}/log"
"""


def missing() -> list[str]:
    """What this machine lacks for it."""
    lacking = [name for name in NEEDED if shutil.which(name) is None]
    return lacking if os.geteuid() == 0 else [*lacking, "root"]


class Daemon:
    """A running libvirtd. `uri` is how to reach it."""

    def __init__(self, place: Path, unshare: int) -> None:
        self.place, self._unshare = place, unshare
        self.uri = f"qemu+unix:///system?socket={place}/run/libvirt-sock"

    @property
    def pid(self) -> int:
        """As this namespace sees it."""
        (shell,) = _children(self._unshare)
        (found,) = (pid for pid in _children(shell) if Path(f"/proc/{pid}/comm").read_text() == "libvirtd\n")
        return found

    def virsh(self, *words: str, document: str | None = None) -> str:
        """What virsh prints; `document` is what its FILE argument /dev/stdin is."""
        command = ["virsh", "--quiet", "--connect", self.uri, *words]
        done = subprocess.run(command, input=document, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"virsh {' '.join(words)}: {done.stderr}"
        return done.stdout

    def define(self, document: str) -> None:
        self.virsh("define", "/dev/stdin", document=document)

    def definition(self, name: str) -> str:
        """With its secrets."""
        return self.virsh("dumpxml", "--inactive", "--security-info", name)

    def clear(self) -> None:
        """No domain is left."""
        for name in self.virsh("list", "--name").split():
            self.virsh("destroy", name)
        for name in self.virsh("list", "--name", "--all").split():
            self.virsh("undefine", name)

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """It takes connections and answers nobody."""
        pid = self.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    @contextlib.contextmanager
    def dead(self) -> Iterator[None]:
        """Killed; it is back and ready after."""
        stay, down = self.place / "stay", self.place / "down"
        stay.touch()
        os.kill(self.pid, signal.SIGKILL)
        end = time.monotonic() + READY_SECONDS
        while not down.exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        try:
            yield
        finally:
            stay.unlink()
            self.wait()

    def wait(self) -> None:
        """Until it answers."""
        end = time.monotonic() + READY_SECONDS
        command = ["virsh", "--quiet", "--connect", self.uri, "list"]
        while subprocess.run(command, capture_output=True, timeout=READY_SECONDS, check=False).returncode:
            assert time.monotonic() < end, (self.place / "log").read_text()
            time.sleep(0.1)


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def running() -> Iterator[Daemon]:
    """A libvirtd and its guests, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="virtnet-") as directory:
        place = Path(directory)
        (place / "run").mkdir()
        (place / "qemu.conf").write_text(QEMU)
        (place / "libvirtd.conf").write_text(LIBVIRTD.format(place=place))
        command = ["unshare", "--mount", "--net", "--pid", "--mount-proc", "--fork", "--kill-child", "sh", "-c", START]
        process = subprocess.Popen(command, env={**os.environ, "PLACE": str(place)})
        try:
            daemon = Daemon(place, process.pid)
            daemon.wait()
            yield daemon
        finally:
            process.kill()
            process.wait()
