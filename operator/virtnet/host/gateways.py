"""The default gateways of a namespace, and whether one of them answers now; it changes no route and no address.

Neighbour discovery answers where a firewall drops echo requests, so it is asked first: the kernel is told to look the
neighbour up again (NUD_PROBE, or NTF_USE where it knows none), and only an answer to that makes it REACHABLE
(net/core/neighbour.c, neigh_timer_handler). An echo is sent where the neighbour entry can tell nothing: it is
permanent, or the link has no neighbour discovery.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator

from virtnet.errors import Refused, Temporary
from virtnet.host import netlink
from virtnet.host.namespaces import Namespace
from virtnet.host.netlink import Connection
from virtnet.values import frozen

__all__ = ["Gateway", "ask", "find"]

GETROUTE, NEWNEIGH, GETNEIGH = 26, 28, 30
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_NEIGHBOUR = struct.Struct("=BBHiHBB")  # family, pad, pad, ifindex, state, flags, type
_NEXTHOP = struct.Struct("=HBBi")  # length, flags, hops, ifindex
RTA_OIF, RTA_GATEWAY, RTA_MULTIPATH, RTA_VIA = 4, 5, 9, 18
RT_TABLE_MAIN, RTN_UNICAST = 254, 1
NDA_DST = 1
NTF_USE, NTF_ROUTER = 0x01, 0x80
INCOMPLETE, REACHABLE, STALE, DELAY, PROBE, FAILED, NOARP, PERMANENT = (1 << bit for bit in range(8))
_KNOWN = REACHABLE | STALE | DELAY | PROBE
_SILENT = NOARP | PERMANENT

_POLL_SECONDS = (0.002, 0.005, 0.01, 0.02)
_ECHO_SECONDS = 1.0
_ECHO: dict[int, tuple[int, int, int]] = {
    socket.AF_INET: (socket.IPPROTO_ICMP, 8, 0),
    socket.AF_INET6: (socket.IPPROTO_ICMPV6, 128, 129),
}
"""Protocol, type of a request, type of its reply (RFC 792, RFC 4443)."""


@frozen
class Gateway:
    """The next hop of a default route. `address` is packed, 4 or 16 bytes."""

    address: bytes
    ifindex: int
    name: str

    @property
    def family(self) -> int:
        return socket.AF_INET if len(self.address) == 4 else socket.AF_INET6

    @property
    def host(self) -> str:
        return str(ipaddress.ip_address(self.address))

    def __str__(self) -> str:
        """As a target is written: "192.0.2.1%eth0"."""
        return f"{self.host}%{self.name}"


def find(connection: Connection, namespace: Namespace) -> list[Gateway]:
    """The gateways of all default routes in the main table, IPv4 first. One without a gateway (a tunnel) has none."""
    found: list[tuple[bytes, int]] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        body = _ROUTE.pack(family, 0, 0, 0, RT_TABLE_MAIN, 0, 0, 0, 0)
        for reply in connection.dump(GETROUTE, body, "list the default routes"):
            found += _next_hops(reply)
    with namespace.entered():
        named = {ifindex: _name(ifindex) for _, ifindex in found}
    return [Gateway(address, ifindex, named[ifindex]) for address, ifindex in dict.fromkeys(found) if named[ifindex]]


def _next_hops(reply: bytes) -> Iterator[tuple[bytes, int]]:
    """(address, ifindex) of each gateway of one route, if it is a default route of the main table."""
    _, prefix, _, _, table, _, _, kind, _ = _ROUTE.unpack_from(reply)
    if prefix or table != RT_TABLE_MAIN or kind != RTN_UNICAST:
        return
    at = _attributes(reply, _ROUTE.size)
    address = _gateway(at)
    if address and RTA_OIF in at:
        yield address, int.from_bytes(at[RTA_OIF], "little")
    hops, start = at.get(RTA_MULTIPATH, b""), 0
    while start + _NEXTHOP.size <= len(hops):
        length, _, _, ifindex = _NEXTHOP.unpack_from(hops, start)
        if length < _NEXTHOP.size:
            return
        address = _gateway(_attributes(hops[start : start + length], _NEXTHOP.size))
        if address:
            yield address, ifindex
        start += (length + 3) & ~3


def _gateway(at: dict[int, bytes]) -> bytes:
    """RTA_VIA is a gateway of the other family: struct rtvia, two bytes of family and the address."""
    return at.get(RTA_GATEWAY) or at.get(RTA_VIA, b"")[2:]


def _attributes(data: bytes, start: int) -> dict[int, bytes]:
    return {kind: data[first:last] for kind, first, last in netlink.attributes(data, start, len(data))}


def _name(ifindex: int) -> str:
    try:
        return socket.if_indextoname(ifindex)
    except OSError:  # the link went since the dump, and its routes with it
        return ""


# --- asking one --------------------------------------------------------------------------------------------


async def ask(target: str, connection: Connection, namespace: Namespace) -> None:
    """Return when the gateway "ADDRESS%LINK" answers and is the next hop of a default route; else `HostError`.

    An attempt ends by itself after some seconds; the caller's patience may be shorter.
    """
    gateway = next((known for known in find(connection, namespace) if str(known) == target), None)
    if gateway is None:
        raise Temporary("there is no default route through it")
    if not await _discover(gateway, connection):
        await _ping(gateway, namespace)


async def _discover(gateway: Gateway, connection: Connection) -> bool:
    """True when the neighbour has just answered, False when neighbour discovery cannot tell; else `HostError`."""
    if not _start_discovery(gateway, connection):
        return False
    for pause in _pauses():
        state, _ = _neighbour(gateway, connection)
        if state & REACHABLE:
            return True
        if state & _SILENT:
            return False
        if state & (STALE | DELAY):  # it spoke to us meanwhile: its address is known, whether it hears us is not
            _start_discovery(gateway, connection)
        elif not state & (INCOMPLETE | PROBE):
            raise Temporary("it does not answer neighbour discovery")
        await asyncio.sleep(pause)
    raise AssertionError("the pauses never end")


def _start_discovery(gateway: Gateway, connection: Connection) -> bool:
    state, flags = _neighbour(gateway, connection)
    if state & _SILENT:
        return False
    # The router flag is passed on: without it the kernel would drop an IPv6 default route that it learnt.
    wanted = (PROBE, flags & NTF_ROUTER) if state & _KNOWN else (0, NTF_USE)
    body = _NEIGHBOUR.pack(gateway.family, 0, 0, gateway.ifindex, *wanted, 0)
    body += netlink.attribute(NDA_DST, gateway.address)
    connection.change(NEWNEIGH, body, "look the neighbour up", flags=netlink.CREATE)
    return True


def _neighbour(gateway: Gateway, connection: Connection) -> tuple[int, int]:
    """State and flags of the neighbour entry, (0, 0) when there is none."""
    body = _NEIGHBOUR.pack(gateway.family, 0, 0, gateway.ifindex, 0, 0, 0)
    try:
        reply = connection.get(GETNEIGH, body + netlink.attribute(NDA_DST, gateway.address), "read the neighbour")
    except Refused:  # ENOENT; a link that went is Gone
        return 0, 0
    _, _, _, _, state, flags, _ = _NEIGHBOUR.unpack_from(reply)
    return state, flags


def _pauses() -> Iterator[float]:
    yield from _POLL_SECONDS
    while True:
        yield _POLL_SECONDS[-1]


# --- ping --------------------------------------------------------------------------------------------------


async def _ping(gateway: Gateway, namespace: Namespace) -> None:
    """One echo request; returns when its reply comes."""
    token = os.urandom(16)
    try:
        with _echo_socket(gateway, namespace) as echo:
            async with asyncio.timeout(_ECHO_SECONDS):
                await asyncio.get_running_loop().sock_sendall(echo, _request(gateway.family, token))
                await _reply(echo, gateway.family, token)
    except TimeoutError:
        raise Temporary("it does not answer to ping, and neighbour discovery cannot tell") from None
    except OSError as error:
        raise Temporary(f"it cannot be pinged, and neighbour discovery cannot tell: {error.strerror}") from error


def _echo_socket(gateway: Gateway, namespace: Namespace) -> socket.socket:
    """Connected, so that only the gateway's packets arrive."""
    with namespace.entered():
        echo = _open_echo(gateway.family)
    try:
        with contextlib.suppress(
            PermissionError
        ):  # before Linux 5.7 only with CAP_NET_RAW; the route leads there anyway
            echo.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, os.fsencode(gateway.name) + b"\0")
        echo.connect((gateway.host, 0) if gateway.family == socket.AF_INET else (gateway.host, 0, 0, gateway.ifindex))
    except BaseException:
        echo.close()
        raise
    return echo


def _open_echo(family: int) -> socket.socket:
    """An unprivileged echo socket (net.ipv4.ping_group_range, icmp(7)), or a raw one (CAP_NET_RAW)."""
    protocol = _ECHO[family][0]
    with contextlib.suppress(PermissionError):
        return socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, protocol)
    return socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)


def _request(family: int, token: bytes) -> bytes:
    """An echo request. The kernel sums it up, except on a raw IPv4 socket, where it is ours to do (RFC 1071)."""
    kind, identifier = _ECHO[family][1], os.getpid() & 0xFFFF
    message = struct.pack("!BBHHH", kind, 0, 0, identifier, 1) + token
    total = sum(struct.unpack(f"!{len(message) // 2}H", message))
    total = (total & 0xFFFF) + (total >> 16)
    return message[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + message[4:]


async def _reply(echo: socket.socket, family: int, token: bytes) -> None:
    while True:
        packet = await asyncio.get_running_loop().sock_recv(echo, 2048)
        if family == socket.AF_INET and echo.type == socket.SOCK_RAW:
            packet = packet[4 * (packet[0] & 0xF) :]  # raw(7): the IP header comes along
        if packet[:1] == bytes([_ECHO[family][2]]) and token in packet:
            return
