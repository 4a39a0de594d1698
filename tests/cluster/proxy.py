"""A TCP proxy between the pods of one node and the API server, which can be made to hang, to reset and to refuse."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import enum
import os
import socket
import struct
import threading
from collections.abc import Iterator

from tests.cluster import addresses
from tests.cluster.nodes import Node

CLONE_NEWNET = 0x40000000
WITH_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: a close that discards what is unsent and answers with RST."""
PORT = 443


class Mode(enum.Enum):
    PASS = "everything is passed on"
    HANG = "connections are accepted and stay open, and nothing is passed on, in either direction"
    RESET = "every connection is reset, also a new one"
    REFUSE = "every connection is reset, and new ones are refused"


@contextlib.contextmanager
def between(node: Node) -> Iterator[Proxy]:
    """The API server as the pods of this node see it is the proxy; the kubelet goes past it."""
    node.sandbox.net("ip", "addr", "add", f"{addresses.SERVICE}/32", "dev", "lo")
    proxy = Proxy(node)
    try:
        proxy.start()
        proxy.set(Mode.PASS)
        # A quiet connection past the proxy would be noticed only when its watch is silent for too long.
        node.sandbox.net("ss", "--kill", "--tcp", "dst", addresses.SERVICE)
        yield proxy
    finally:
        proxy.end()
        node.sandbox.net("ip", "addr", "del", f"{addresses.SERVICE}/32", "dev", "lo")


class Proxy(threading.Thread):
    """Its thread has entered the network namespace of the node, so its sockets are there."""

    def __init__(self, node: Node) -> None:
        super().__init__(daemon=True, name=f"proxy of {node.name}")
        self._namespace = f"/proc/{node.sandbox.init}/ns/net"
        self._loop = asyncio.new_event_loop()
        self._passing = asyncio.Event()
        self._mode = Mode.REFUSE
        self._listener: asyncio.Server | None = None
        self._clients: set[socket.socket] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0
        """Attempts that were accepted since the start, in all modes but REFUSE."""

    def run(self) -> None:
        with open(self._namespace) as namespace:
            entered = ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET)
        assert entered == 0, os.strerror(ctypes.get_errno())
        self._loop.run_forever()
        self._loop.close()

    def set(self, mode: Mode) -> None:
        """From now on it behaves so."""
        asyncio.run_coroutine_threadsafe(self._set(mode), self._loop).result(20)

    def end(self) -> None:
        self.set(Mode.REFUSE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self.join(20)

    async def _set(self, mode: Mode) -> None:
        self._mode = mode
        if mode in (Mode.RESET, Mode.REFUSE):
            await self._reset_all()
        if mode is Mode.REFUSE and self._listener is not None:
            self._listener.close()
            self._listener = None
        elif mode is not Mode.REFUSE and self._listener is None:
            self._listener = await asyncio.start_server(self._serve, addresses.SERVICE, PORT)
        (self._passing.set if mode is Mode.PASS else self._passing.clear)()

    async def _reset_all(self) -> None:
        tasks = list(self._tasks)
        for client in self._clients:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, WITH_RESET)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        client = writer.get_extra_info("socket")
        if self._mode is Mode.RESET:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, WITH_RESET)
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(client)
        self._tasks.add(task)
        try:
            await self._join(reader, writer)
        except asyncio.CancelledError:
            pass  # asked for by us, and asyncio's server takes it for an accident
        finally:
            writer.transport.abort()
            self._clients.discard(client)
            self._tasks.discard(task)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Both directions, until either side ends; the API server not being there ends it at once."""
        await self._passing.wait()
        try:
            above, below = await asyncio.open_connection(addresses.RACK, PORT)
        except OSError:
            return
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, below))
                both.create_task(self._pump(above, writer))
        except* (ConnectionError, EOFError):
            pass
        finally:
            below.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            await self._passing.wait()
            writer.write(data)
            await writer.drain()
        raise EOFError  # ends the other direction too
