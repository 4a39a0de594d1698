"""Raw netlink: request sockets, attributes, and the one edge where the kernel's errors become ours. It knows no links.

A general netlink library makes an object of every attribute; at a thousand links that is tens of times the cost of
the dump itself (docs/performance.md). Wire format: include/uapi/linux/netlink.h, attributes: man 7 netlink.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from virtnet.errors import Gone, HostError, InUse, NotPermitted, NotSupported, Refused, Temporary
from virtnet.host.namespaces import SOL_NETLINK, Namespace

ROUTE, GENERIC, KOBJECT_UEVENT = 0, 16, 15

REQUEST, ACK, DUMP, EXCL, CREATE = 0x1, 0x4, 0x300, 0x200, 0x400
DUMP_INTERRUPTED = 0x10
CAPPED, ACK_TLVS = 0x100, 0x200
NOOP, ERROR, DONE = 1, 2, 3

_ADD_MEMBERSHIP, _CAP_ACK, _EXT_ACK = 1, 10, 11
_SIOCETHTOOL = 0x8946
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h

HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
ATTRIBUTE = struct.Struct("=HH")  # length, type
NESTED = 0x8000
TYPE_MASK = 0x3FFF

DUMP_SEQUENCE = 1
"""All dumps carry this number, so that two dumps of an unchanged host are the same bytes."""

Body = bytes | bytearray
Bytes = Body | memoryview

RECEIVE_BYTES = 256 * 1024  # the kernel sends at most 32 KiB at a time; only touched pages cost memory
TIMEOUT_SECONDS = 10.0
DUMP_ATTEMPTS = 8
TOGETHER = 64
"""Requests in one datagram: should all of them fail, their answers find room in the smallest receive buffer."""

_KINDS: dict[int, type[HostError]] = {
    errno.ENODEV: Gone,
    errno.ENXIO: Gone,
    errno.ESRCH: Gone,
    errno.EBUSY: InUse,
    errno.EOPNOTSUPP: NotSupported,
    errno.EPROTONOSUPPORT: NotSupported,
    errno.EAFNOSUPPORT: NotSupported,
    errno.EPERM: NotPermitted,
    errno.EACCES: NotPermitted,
    errno.EAGAIN: Temporary,
    errno.EINTR: Temporary,
    errno.ENOMEM: Temporary,
    errno.ENOBUFS: Temporary,
    errno.ENFILE: Temporary,
    errno.EMFILE: Temporary,
}


def error(number: int, doing: str, text: str = "") -> HostError:
    """The error for errno `number`: `doing` says what was tried ("set the mtu of eth0"), `text` is the kernel's."""
    said = text or os.strerror(number)
    kind = _KINDS.get(number, Refused)
    if kind is NotPermitted:
        said += " (CAP_NET_ADMIN over this network namespace is needed)"
    return kind(f"cannot {doing}: {said}")


# --- attributes --------------------------------------------------------------------------------------------


def attribute(kind: int, data: bytes) -> bytes:
    return ATTRIBUTE.pack(4 + len(data), kind) + data + b"\0" * (-len(data) & 3)


def u8(kind: int, value: int) -> bytes:
    return attribute(kind, _integer(value, 1))


def u16(kind: int, value: int) -> bytes:
    return attribute(kind, _integer(value, 2))


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, _integer(value, 4))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode("utf-8", "surrogateescape") + b"\0")


def nest(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | NESTED, b"".join(attributes))


def attributes(data: Bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(type, start of the payload, end of the payload) for each attribute between two offsets of `data`."""
    unpack = ATTRIBUTE.unpack_from
    while start + 4 <= end:
        length, kind = unpack(data, start)
        if length < 4:
            return
        yield kind & TYPE_MASK, start + 4, start + length
        start += (length + 3) & ~3


def string(data: Bytes, start: int, end: int) -> str:
    """A NUL-terminated kernel string; bytes that are no UTF-8 survive a round trip."""
    return bytes(data[start:end]).split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def integer(data: Bytes, start: int, end: int) -> int:
    return int.from_bytes(data[start:end], sys.byteorder)


def _integer(value: int, size: int) -> bytes:
    try:
        return value.to_bytes(size, sys.byteorder)
    except OverflowError as overflow:
        raise Refused(f"{value} does not fit into the {8 * size} bits that the kernel has for it") from overflow


# --- sockets -----------------------------------------------------------------------------------------------


def open_socket(protocol: int, namespace: Namespace, *, groups: int = 0) -> socket.socket:
    """A netlink socket in the namespace, bound, with the kernel's error texts asked for."""
    try:
        with namespace.entered():
            opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    except OSError as failed:
        raise error(failed.errno or 0, f"open a netlink socket in {namespace}") from failed
    try:
        opened.setsockopt(SOL_NETLINK, _EXT_ACK, 1)
        opened.setsockopt(SOL_NETLINK, _CAP_ACK, 1)
        opened.bind((0, groups))
    except OSError as failed:
        opened.close()
        raise error(failed.errno or 0, f"listen to the kernel in {namespace}") from failed
    return opened


def join(listener: socket.socket, group: int) -> None:
    """Receive what the kernel sends to a multicast group given by number."""
    try:
        listener.setsockopt(SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except OSError as failed:
        raise error(failed.errno or 0, f"join the kernel's group {group}") from failed


def widen(listener: socket.socket, size: int) -> int:
    """Ask for a receive buffer of `size` bytes and tell what came of it (the kernel counts it double).

    SO_RCVBUFFORCE needs CAP_NET_ADMIN in the initial user namespace; else SO_RCVBUF gives up to net.core.rmem_max.
    """
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
    except PermissionError:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    return listener.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2


class Connection:
    """One request socket of one thread, opened when first used and again after a failure that left it out of step.

    The kernel works on a request while we send it, so a driver that hangs there is beyond any timeout of ours;
    waiting for the answer ends after `timeout` seconds with Temporary.
    """

    def __init__(self, protocol: int, namespace: Namespace, *, timeout: float = TIMEOUT_SECONDS) -> None:
        self._protocol = protocol
        self._namespace = namespace
        self._timeout = timeout
        self._socket: socket.socket | None = None
        self._sequence = DUMP_SEQUENCE
        self._buffer = bytearray(RECEIVE_BYTES)
        self._view = memoryview(self._buffer)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __del__(self) -> None:
        self.close()

    def get(self, kind: int, body: bytes, doing: str) -> bytes:
        """One request with one answer: the answer's payload, after the netlink header."""
        answer = self._exchange(kind, REQUEST, body, doing)
        if answer is None:
            raise Temporary(f"cannot {doing}: the kernel answered without an answer")
        return answer

    def change(self, kind: int, body: bytes, doing: str, *, flags: int = 0) -> None:
        """One request that changes something; returns when the kernel has acknowledged it."""
        self._exchange(kind, REQUEST | ACK | flags, body, doing)

    def change_and_get(self, kind: int, change: bytes, get: bytes, doing: str) -> bytes:
        """A change and a look at what came of it, in one datagram: two system calls instead of four."""
        sequence = self._next_sequence()
        self._sequence += 1
        requests = (
            HEADER.pack(16 + len(change), kind, REQUEST, sequence, 0) + change,
            HEADER.pack(16 + len(get), kind, REQUEST, sequence + 1, 0) + get,
        )
        self._send(b"".join(requests), doing)
        failed: HostError | None = None
        while True:
            datagram = self.receive(doing)
            for _, flags, start, end in messages(datagram, sequence):
                failed = failure(datagram, flags, start, end, doing)
            for got, flags, start, end in messages(datagram, sequence + 1):
                if failed is None and got == ERROR:
                    failed = failure(datagram, flags, start, end, doing)
                if failed is not None:
                    raise failed
                return bytes(datagram[start:end])

    def change_all(self, kind: int, asked: Sequence[tuple[bytes, str]]) -> list[HostError | None]:
        """Like `change` for each (body, doing), in this order whatever fails; for each why it failed, or None."""
        answers: list[HostError | None] = []
        for first in range(0, len(asked), TOGETHER):
            some = asked[first : first + TOGETHER]
            try:
                answers += self._change_together(kind, some)
            except HostError as failed:  # no answer came: any of them may have been made
                answers += [failed] * len(some)
        return answers

    @contextmanager
    def dumping(self, kind: int, body: bytes, doing: str) -> Iterator[None]:
        """Ask for a dump; the block calls `receive()` until it has seen DONE.

        A block that fails leaves the rest of the dump in the socket, where it would be taken for the next answer:
        the socket is thrown away.
        """
        self._send(HEADER.pack(16 + len(body), kind, REQUEST | DUMP, DUMP_SEQUENCE, 0) + body, doing)
        try:
            yield
        except BaseException:
            self.close()
            raise

    def receive(self, doing: str) -> memoryview:
        """The next datagram, valid until the next call."""
        return self._view[: self._receive(doing)]

    def dump(self, kind: int, body: bytes, doing: str) -> list[bytes]:
        """All payloads of a dump. Asked again while the kernel says that the list changed in between."""
        for _ in range(DUMP_ATTEMPTS):
            payloads, whole = self._dump_once(kind, body, doing)
            if whole:
                return payloads
        raise Temporary(f"cannot {doing}: the list keeps changing while it is read")

    def ethtool_ioctl(self, name: str, command: bytearray) -> None:
        """SIOCETHTOOL (linux/sockios.h) on a link, in place; raises OSError. Any socket of the namespace will do."""
        place = ctypes.addressof((ctypes.c_char * len(command)).from_buffer(command))
        request = struct.pack("@16sP16x", name.encode("utf-8", "surrogateescape"), place)
        fcntl.ioctl(self._open().fileno(), _SIOCETHTOOL, request)

    def _dump_once(self, kind: int, body: bytes, doing: str) -> tuple[list[bytes], bool]:
        payloads: list[bytes] = []
        whole = True
        with self.dumping(kind, body, doing):
            while True:
                datagram = self.receive(doing)
                for got, flags, start, end in messages(datagram):
                    whole = whole and not flags & DUMP_INTERRUPTED
                    if got in (DONE, ERROR):
                        raise_if_failed(datagram, flags, start, end, doing)
                        return payloads, whole
                    payloads.append(bytes(datagram[start:end]))

    def _change_together(self, kind: int, asked: Sequence[tuple[bytes, str]]) -> list[HostError | None]:
        """One datagram of requests. The kernel works through all of them, and answers each that failed.

        Only the last one asks to be acknowledged, which it is when all others have been answered (netlink_rcv_skb()
        in net/netlink/af_netlink.c). Bodies end where an attribute ends, so that the next header is aligned.
        """
        first, last = self._next_sequence(), len(asked) - 1
        self._sequence += last
        flags = [REQUEST] * last + [REQUEST | ACK]
        requests = [
            HEADER.pack(16 + len(body), kind, flags[place], first + place, 0) + body
            for place, (body, _) in enumerate(asked)
        ]
        doing = f"{asked[0][1]}{' and others' if last else ''}"
        self._send(b"".join(requests), doing)
        answers: list[HostError | None] = [None] * len(asked)
        while True:
            datagram = self.receive(doing)
            for got, got_flags, start, end in messages(datagram):
                place = HEADER.unpack_from(datagram, start - 16)[3] - first
                if got == ERROR and 0 <= place <= last:
                    answers[place] = failure(datagram, got_flags, start, end, asked[place][1])
                    if place == last:
                        return answers

    def _next_sequence(self) -> int:
        self._sequence = (self._sequence % 0x7FFFFFFF) + 2
        return self._sequence

    def _exchange(self, kind: int, flags: int, body: bytes, doing: str) -> bytes | None:
        sequence = self._next_sequence()
        self._send(HEADER.pack(16 + len(body), kind, flags, sequence, 0) + body, doing)
        answer: bytes | None = None
        while True:
            datagram = self.receive(doing)
            for got, got_flags, start, end in messages(datagram, sequence):
                if got == ERROR:
                    raise_if_failed(datagram, got_flags, start, end, doing)
                    return answer
                answer = bytes(datagram[start:end])
            if answer is not None and not flags & ACK:
                return answer

    def _open(self) -> socket.socket:
        if self._socket is None:
            self._socket = open_socket(self._protocol, self._namespace)
            seconds = int(self._timeout)
            limit = struct.pack("@ll", seconds, int((self._timeout - seconds) * 1e6))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            widen(self._socket, 1 << 20)
        return self._socket

    def _send(self, message: bytes, doing: str) -> None:
        try:
            self._open().send(message)
        except OSError as failed:
            self.close()
            raise error(failed.errno or 0, doing) from failed

    def _receive(self, doing: str) -> int:
        assert self._socket is not None, "nothing was sent"
        try:
            size = self._socket.recv_into(self._buffer, 0, socket.MSG_TRUNC)
        except BlockingIOError as failed:
            self.close()
            raise Temporary(f"cannot {doing}: the kernel did not answer within {self._timeout:g} s") from failed
        except OSError as failed:
            self.close()
            raise error(failed.errno or 0, doing) from failed
        except BaseException:
            self.close()  # interrupted in the middle: what follows belongs to nobody
            raise
        if size > RECEIVE_BYTES:
            self.close()
            raise Refused(f"cannot {doing}: the kernel's answer has {size} bytes, more than {RECEIVE_BYTES}")
        return size


class Connections:
    """The request sockets of one namespace: for each thread its own, for a netlink socket is not thread-safe."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._local = threading.local()
        self._all: weakref.WeakSet[Connection] = weakref.WeakSet()  # those of ended threads go
        self._lock = threading.Lock()

    @property
    def route(self) -> Connection:
        return self._mine(ROUTE)

    @property
    def generic(self) -> Connection:
        return self._mine(GENERIC)

    def close(self) -> None:
        with self._lock:
            for connection in list(self._all):
                connection.close()

    def _mine(self, protocol: int) -> Connection:
        mine: dict[int, Connection] | None = getattr(self._local, "mine", None)
        if mine is None:
            mine = self._local.mine = {}
        if protocol not in mine:
            mine[protocol] = Connection(protocol, self._namespace)
            with self._lock:
                self._all.add(mine[protocol])
        return mine[protocol]


# --- messages ----------------------------------------------------------------------------------------------


def messages(datagram: Bytes, sequence: int | None = None) -> Iterator[tuple[int, int, int, int]]:
    """(type, flags, start of the payload, end of the payload) for each message, only those with `sequence`."""
    unpack, start, size = HEADER.unpack_from, 0, len(datagram)
    while start + 16 <= size:
        length, kind, flags, number, _ = unpack(datagram, start)
        if length < 16:
            return
        if sequence is None or number == sequence:
            yield kind, flags, start + 16, start + length
        start += (length + 3) & ~3


def raise_if_failed(datagram: Bytes, flags: int, start: int, end: int, doing: str) -> None:
    """Raise what an ERROR or DONE message says."""
    failed = failure(datagram, flags, start, end, doing)
    if failed is not None:
        raise failed


def failure(datagram: Bytes, flags: int, start: int, end: int, doing: str) -> HostError | None:
    """What an ERROR or DONE message says, with the kernel's own text; None for the acknowledgement, which is 0."""
    if end - start < 4:
        return None
    number = -int.from_bytes(datagram[start : start + 4], sys.byteorder, signed=True)
    return error(number, doing, _said(datagram, flags, start, end)) if number > 0 else None


def _said(datagram: Bytes, flags: int, start: int, end: int) -> str:
    """NLMSGERR_ATTR_MSG. It follows the errno in DONE, and the errno and the capped request's header in ERROR."""
    if not flags & ACK_TLVS:
        return ""
    kind = integer(datagram, start - 12, start - 10)
    for found, first, last in attributes(datagram, start + (4 if kind == DONE else 20), end):
        if found == 1:
            return string(datagram, first, last)
    return ""
