"""A process that holds a tap as QEMU does, for tests about taps in use."""

from __future__ import annotations

import subprocess
import sys

from tests.kernel.playground import Playground

# TUNSETIFF with IFF_TAP | IFF_NO_PI and the flags given, once for each queue; then wait to be ended.
HOLDER = """
import fcntl, os, struct, sys
name, flags, queues = sys.argv[1], int(sys.argv[2], 0), int(sys.argv[3])
held = [os.open("/dev/net/tun", os.O_RDWR) for _ in range(queues)]
for tap in held:
    fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1002 | flags))
print("held", flush=True)
sys.stdin.read()
"""

VNET_HDR, MULTI_QUEUE = 0x4000, 0x0100


def hold(
    playground: Playground, name: str, flags: int = VNET_HDR, queues: int = 1, arguments: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    """Open the tap from another process; it holds it when this returns. `arguments` only show on its command line."""
    child = playground.start(sys.executable, "-c", HOLDER, name, hex(flags), str(queues), *arguments)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n", child.communicate()
    return child


def let_go(child: subprocess.Popen[str]) -> None:
    child.communicate("")
