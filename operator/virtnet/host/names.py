"""Host names to addresses, in a child process: getaddrinfo(3) blocks, and a thread that is in it cannot be stopped."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import subprocess
import sys
from typing import IO

from virtnet.errors import Temporary
from virtnet.host.namespaces import Namespace

__all__ = ["resolve"]

_LOOK_UP = """
import socket, sys
for family, _, _, _, address in socket.getaddrinfo(sys.argv[1], None, type=socket.SOCK_STREAM):
    print(address[0].partition("%")[0], address[3] if family == socket.AF_INET6 else 0)
"""

Address = tuple[str, int]
"""The address as text, and the scope of an IPv6 link-local one (ifindex, else 0)."""


async def resolve(host: str, namespace: Namespace) -> list[Address]:
    """The addresses of a name, best first, as the resolver of this machine says from within the namespace.

    An address is its own. It takes as long as the resolver takes; when cancelled, nothing is left behind.
    """
    try:
        ipaddress.ip_address(host)
        return [(host, 0)]
    except ValueError:
        pass
    with _started(host, namespace) as child:
        try:
            assert child.stdout is not None
            found = [line.split() for line in (await _read(child.stdout)).decode().splitlines()]
        finally:
            child.kill()
    if not found:
        raise Temporary(f"{host} cannot be resolved")
    return [(address, int(scope)) for address, scope in found]


def _started(host: str, namespace: Namespace) -> subprocess.Popen[bytes]:
    """The child. As we are root: no environment, no site directory, nothing of the working directory (-I and -S)."""
    command = [sys.executable, "-I", "-S", "-c", _LOOK_UP, host]
    quiet = subprocess.DEVNULL
    try:
        with namespace.entered():
            return subprocess.Popen(command, stdin=quiet, stdout=subprocess.PIPE, stderr=quiet, cwd="/")
    except OSError as error:
        raise Temporary(f"{host} cannot be resolved: {error.strerror}") from error


async def _read(stream: IO[bytes]) -> bytes:
    """Everything up to the end of a pipe, without a thread."""
    os.set_blocking(stream.fileno(), False)
    data = b""
    while True:
        await _readable(stream.fileno())
        piece = os.read(stream.fileno(), 65536)
        if not piece:
            return data
        data += piece


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
