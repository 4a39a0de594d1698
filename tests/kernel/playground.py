"""A private network namespace for one test, as root by `ip netns`, as a plain user the one that `unshare -Urn` made."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from virtnet.host import namespaces
from virtnet.host.namespaces import Namespace

SECONDS = 90  # a Python program takes half of it to start in the lab's emulated machine
KERNEL_NAMES = {
    "rx-checksumming": "rx-checksum",
    "generic-segmentation-offload": "tx-generic-segmentation",
    "generic-receive-offload": "rx-gro",
    "large-receive-offload": "rx-lro",
    "rx-vlan-offload": "rx-vlan-hw-parse",
    "tx-vlan-offload": "tx-vlan-hw-insert",
    "ntuple-filters": "rx-ntuple-filter",
    "receive-hashing": "rx-hashing",
}
"""ethtool's own names for single features (off_flag_def in its common.c); its other names are sums or the kernel's."""
_numbers = itertools.count(1)


class Playground:
    """`netns` is its name for `ip netns`, None when it is the namespace that the tests run in."""

    def __init__(self, netns: str | None) -> None:
        self.netns = netns
        self.namespace = Namespace.named(netns) if netns else Namespace()
        self._children: list[subprocess.Popen[str]] = []

    def run(self, command: str, *, text: str | None = None) -> str:
        """Run a command in the namespace, `text` on its standard input; its output. Fails when the command does."""
        done = subprocess.run(
            self._inside(shlex.split(command)),
            input=text,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stderr or done.stdout}"
        return done.stdout

    def batch(self, *commands: str) -> None:
        """Many `ip` commands in one process."""
        self.run("ip -batch -", text="\n".join(commands) + "\n")

    def python(self, program: str, *arguments: str) -> str:
        """Run a Python program in the namespace, in a process of its own; its output."""
        return self.run(shlex.join([sys.executable, "-c", program, *arguments]))

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a process in the namespace, its standard streams in pipes; it is ended with the test."""
        pipe = subprocess.PIPE
        child = subprocess.Popen(self._inside(list(words)), stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self._children.append(child)
        return child

    def ethtool(self, name: str) -> dict[str, dict[str, bool]]:
        """What `ethtool --json -k` says: feature -> {active, fixed, requested}, by kernel name."""
        (found,) = json.loads(self.run(f"ethtool --json -k {name}"))
        return {KERNEL_NAMES.get(key, key): bits for key, bits in found.items() if isinstance(bits, dict)}

    def links(self) -> dict[str, dict[str, Any]]:
        """What `ip -j -d link` says, by name."""
        return {link["ifname"]: link for link in json.loads(self.run("ip -j -d link"))}

    def end(self) -> None:
        """End the children that are left and remove what the test made."""
        for child in self._children:
            child.kill()
            child.communicate(timeout=SECONDS)
        if self.netns:
            subprocess.run(["ip", "netns", "del", self.netns], timeout=SECONDS, check=False, capture_output=True)

    def _inside(self, words: list[str]) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.netns}", "--", *words] if self.netns else words


@contextmanager
def open_playground() -> Iterator[Playground]:
    """A namespace with nothing but a loopback link that is down; everything in it goes when the block ends."""
    if namespaces.in_initial_user_namespace():
        assert os.geteuid() == 0, "run these tests as root, or as a plain user through `unshare -Urn`"
        if not os.path.exists("/dev/net/tun"):  # a module, and nobody has needed it since the boot
            subprocess.run(["modprobe", "tun"], check=True, timeout=SECONDS)
        name = f"virtnet-{os.getpid()}-{next(_numbers)}"
        subprocess.run(["ip", "netns", "add", name], check=True, timeout=SECONDS)
        playground = Playground(name)
        try:
            yield playground
        finally:
            playground.end()
        return
    playground = Playground(None)
    kept = set(playground.links())
    try:
        yield playground
    finally:
        playground.end()
        _remove_links(playground, kept)


def _remove_links(playground: Playground, kept: set[str]) -> None:
    """Remove what a test made in the shared namespace; the other end of a veth goes with its first."""
    for name in playground.links():
        if name not in kept and name in playground.links():
            playground.run(f"ip link del {name}")
    # The kernel gives lo its own addresses again when it is set up (inetdev_event, init_loopback).
    playground.batch("link set lo down", "addr flush dev lo")
