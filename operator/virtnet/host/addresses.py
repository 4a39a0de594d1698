"""What would be cut off if a link became a port of a bridge: its addresses and the routes through it. It only reads.

Not counted: IPv6 link-local addresses, the routes that the kernel made for an address (they go with it), and multicast.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

from virtnet.host import netlink
from virtnet.host.netlink import Connection

GETADDR, GETROUTE, GETNEXTHOP = 22, 26, 106
_IFADDR = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, ifindex
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_NHMSG_BYTES = 8  # struct nhmsg
_NEXTHOP_BYTES = 8  # struct rtnexthop: length, flags, hops, ifindex
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_MULTIPATH = 1, 4, 5, 9
NHA_ID, NHA_OIF = 1, 5
RTPROT_KERNEL, RTN_UNICAST, RTM_F_CLONED = 2, 1, 0x200
"""A route of type local, broadcast or multicast belongs to an address; only unicast ones lead somewhere."""


def carried(connection: Connection) -> dict[int, str]:
    """Why a link must not be enslaved, by ifindex: "address 192.0.2.1/24", "route 10.0.0.0/8 via 192.0.2.254"."""
    found: dict[int, str] = {}
    for ifindex, text in (*_addresses(connection), *_routes(connection), *_next_hops(connection)):
        found.setdefault(ifindex, text)
    return found


def _addresses(connection: Connection) -> Iterator[tuple[int, str]]:
    for reply in connection.dump(GETADDR, _IFADDR.pack(0, 0, 0, 0, 0), "list the addresses"):
        family, prefix, _, _, ifindex = _IFADDR.unpack_from(reply)
        if family not in (socket.AF_INET, socket.AF_INET6):
            continue
        at = {kind: reply[start:end] for kind, start, end in netlink.attributes(reply, _IFADDR.size, len(reply))}
        address = at.get(IFA_LOCAL) or at[IFA_ADDRESS]
        if not _link_local(family, address):
            yield ifindex, f"address {socket.inet_ntop(family, address)}/{prefix}"


def _routes(connection: Connection) -> Iterator[tuple[int, str]]:
    for family in (socket.AF_INET, socket.AF_INET6):
        body = _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
        for reply in connection.dump(GETROUTE, body, "list the routes"):
            yield from _route(family, reply)


def _next_hops(connection: Connection) -> Iterator[tuple[int, str]]:
    """Next-hop objects: with net.ipv4.nexthop_compat_mode=0 routes name only their number (fib_dump_info)."""
    for reply in connection.dump(GETNEXTHOP, bytes(_NHMSG_BYTES), "list the next hops"):
        at = {kind: reply[start:end] for kind, start, end in netlink.attributes(reply, _NHMSG_BYTES, len(reply))}
        if NHA_OIF in at:
            yield netlink.integer(at[NHA_OIF], 0, 4), f"next hop {netlink.integer(at[NHA_ID], 0, 4)}"


def _route(family: int, reply: bytes) -> Iterator[tuple[int, str]]:
    _, prefix, _, _, _, protocol, _, kind, flags = _ROUTE.unpack_from(reply)
    if kind != RTN_UNICAST or flags & RTM_F_CLONED:
        return
    at = {kind: reply[start:end] for kind, start, end in netlink.attributes(reply, _ROUTE.size, len(reply))}
    target, gateway = at.get(RTA_DST), at.get(RTA_GATEWAY)
    if _multicast(family, target) or (protocol == RTPROT_KERNEL and gateway is None and RTA_MULTIPATH not in at):
        return
    where = f"{socket.inet_ntop(family, target)}/{prefix}" if target else "default"
    via = f" via {socket.inet_ntop(family, gateway)}" if gateway else ""
    for ifindex in _interfaces(at):
        yield ifindex, f"route {where}{via}"


def _interfaces(at: dict[int, bytes]) -> Iterator[int]:
    """The links that a route leaves by: its own, or those of its parallel next hops."""
    if RTA_OIF in at:
        yield netlink.integer(at[RTA_OIF], 0, 4)
    hops = at.get(RTA_MULTIPATH, b"")
    start = 0
    while start + _NEXTHOP_BYTES <= len(hops):
        yield netlink.integer(hops, start + 4, start + 8)
        start += max(netlink.integer(hops, start, start + 2) + 3 & ~3, _NEXTHOP_BYTES)


def _link_local(family: int, address: bytes) -> bool:
    """fe80::/10 (RFC 4291). An IPv4 link-local address is somebody's only one, and counts."""
    return family == socket.AF_INET6 and address[0] == 0xFE and address[1] & 0xC0 == 0x80


def _multicast(family: int, target: bytes | None) -> bool:
    """224.0.0.0/4 and ff00::/8."""
    if not target:
        return False
    return target[0] & 0xF0 == 0xE0 if family == socket.AF_INET else target[0] == 0xFF
