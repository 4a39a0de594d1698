"""Links as rtnetlink tells them, and one function for each attribute of a link that can be changed.

Message layout: man 7 rtnetlink and include/uapi/linux/if_link.h; which attribute comes when: rtnl_fill_ifinfo() in
net/core/rtnetlink.c.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping
from typing import NamedTuple

from virtnet.core.model import BridgeOptions, Link, Ref, Tun
from virtnet.errors import Gone
from virtnet.host import netlink
from virtnet.host.dumps import RepeatedDump
from virtnet.host.netlink import Bytes, Connection

NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19
HEADER = struct.Struct("=BxHiII")  # family, device type, ifindex, flags, which flags to change
UP, LOOPBACK = 0x1, 0x8  # IFF_UP, IFF_LOOPBACK

ADDRESS, NAME, MTU, LINK, STATS, MASTER, TX_QUEUE_LENGTH, LINK_INFO, STATS64 = 1, 3, 4, 5, 7, 10, 13, 18, 23
EXT_MASK, CARRIER, LINK_NETNSID, EVENT, PARENT_DEVICE = 29, 33, 37, 44, 56
INFO_KIND, INFO_DATA = 1, 2
KIND_OF_LINK, DATA_OF_LINK = LINK_INFO << 8 | INFO_KIND, LINK_INFO << 8 | INFO_DATA
TUN_OWNER, TUN_GROUP, TUN_TYPE, TUN_PI, TUN_VNET_HDR, TUN_PERSIST, TUN_MULTI_QUEUE = 1, 2, 3, 4, 5, 6, 7
TUN_QUEUES, TUN_DISABLED_QUEUES = 8, 9
BRIDGE_FORWARD_DELAY, BRIDGE_AGEING_TIME, BRIDGE_STP, BRIDGE_VLAN_FILTERING = 1, 4, 5, 7
BRIDGE_GROUP_FORWARD_MASK, BRIDGE_MULTICAST_SNOOPING = 9, 23

SKIP_STATISTICS = 8  # RTEXT_FILTER_SKIP_STATS: leaves out the address families' counters, not the link's own
EVENT_FEATURES = 2  # IFLA_EVENT_FEATURES
TYPE_TAP = 2

ON_ANOTHER_LINK = frozenset({"vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "macsec", "ipoib"})
"""Kinds whose IFLA_LINK is the real device below; a veth's is its peer, a tunnel's its underlay."""


# --- reading -----------------------------------------------------------------------------------------------


def repeated_dump() -> RepeatedDump[Link]:
    """All links of a namespace, by ifindex."""
    return RepeatedDump(GETLINK, _request(), ifindex_of, _parse_with_noise, "list the links")


def find(connection: Connection, ref: Ref) -> Link:
    """The link that `ref` means, freshly read: by index, or by name where the index is 0. Gone when it is another one.

    rtnetlink cannot be asked for "this index if it still has this name": a setter with both renames the link.
    """
    if not ref.ifindex:
        return _get(connection, _request() + netlink.text(NAME, ref.name), ref.name)
    link = _get(connection, _request(ref.ifindex), ref.name)
    if link.name != ref.name:
        raise Gone(f"link {ref.name} is gone: index {ref.ifindex} is {link.name} now")
    return link


def parse(body: bytes) -> Link:
    """The link that the payload of an RTM_NEWLINK message tells of."""
    return _build(body, _attributes(body))


def ifindex_of(raw: Bytes, start: int) -> int:
    return int.from_bytes(raw[start + 4 : start + 8], sys.byteorder)


def family_of(raw: Bytes, start: int) -> int:
    """AF_UNSPEC for the link itself."""
    return raw[start]


def event_of(body: bytes) -> int:
    """Why the kernel tells of this link (IFLA_EVENT_*); 0 when it does not say."""
    return _number(body, _attributes(body), EVENT)


def _get(connection: Connection, body: bytes, name: str) -> Link:
    return parse(connection.get(GETLINK, body, f"read link {name}"))


def _request(ifindex: int = 0) -> bytes:
    return HEADER.pack(0, 0, ifindex, 0, 0) + netlink.u32(EXT_MASK, SKIP_STATISTICS)


def _parse_with_noise(body: bytes) -> tuple[Link, int, int]:
    """The counters (STATS64, then STATS) are in every message whatever was asked, and change with every packet."""
    at = _attributes(body)
    nowhere = (len(body), len(body))
    noise, after = at.get(STATS64, nowhere)[0], at.get(STATS, nowhere)[1]
    return _build(body, at), min(noise, after), after


def _build(body: bytes, at: Mapping[int, tuple[int, int]]) -> Link:
    _, _, ifindex, flags, _ = HEADER.unpack_from(body)
    kind = _text(body, at[KIND_OF_LINK]) if KIND_OF_LINK in at else ""
    return Link(
        ifindex=ifindex,
        name=_text(body, at[NAME]),
        kind=kind,
        mac=body[slice(*at[ADDRESS])].hex(":") if ADDRESS in at else "",
        mtu=_number(body, at, MTU),
        tx_queue_length=_number(body, at, TX_QUEUE_LENGTH),
        master=_number(body, at, MASTER),
        lower=_number(body, at, LINK) if kind in ON_ANOTHER_LINK and LINK_NETNSID not in at else 0,
        up=flags & UP != 0,
        carrier=_number(body, at, CARRIER) != 0,
        physical=PARENT_DEVICE in at,
        loopback=flags & LOOPBACK != 0,
        bus=_text(body, at[PARENT_DEVICE]) if PARENT_DEVICE in at else "",
        tun=_tun(body[slice(*at[DATA_OF_LINK])]) if kind == "tun" else None,
        bridge=_bridge(body, *at[DATA_OF_LINK]) if kind == "bridge" else None,
    )


def _number(body: bytes, at: Mapping[int, tuple[int, int]], attribute: int) -> int:
    where = at.get(attribute)
    return int.from_bytes(body[where[0] : where[1]], sys.byteorder) if where else 0


def _text(body: bytes, where: tuple[int, int]) -> str:
    return body[where[0] : where[1] - 1].decode("utf-8", "surrogateescape")


# --- the layout of a message -------------------------------------------------------------------------------


class _Layout(NamedTuple):
    """Where the attributes are in messages of one shape: their heads, all read at once, tell whether a message has it.

    The members of IFLA_LINKINFO are under `LINK_INFO << 8 | member`.
    """

    heads: struct.Struct
    expected: tuple[int, ...]
    at: Mapping[int, tuple[int, int]]


_layouts: dict[tuple[int, bytes], _Layout] = {}
_LAYOUTS_KEPT = 512


def _attributes(body: bytes) -> Mapping[int, tuple[int, int]]:
    """Start and end of each attribute's payload.

    A thousand links come in some ten shapes (a shape depends on the length of the name, too), and checking that a
    message has a known one costs a tenth of walking its forty attributes.
    """
    key = (len(body), body[16:20])
    known = _layouts.get(key)
    if known is not None and known.heads.unpack_from(body) == known.expected:
        return known.at
    if len(_layouts) >= _LAYOUTS_KEPT:
        _layouts.clear()
    _layouts[key] = found = _walk(body)
    return found.at


def _walk(body: bytes) -> _Layout:
    form, expected, at = [f"={HEADER.size}x"], list[int](), dict[int, tuple[int, int]]()

    def note(kind: int, start: int, end: int, opened: bool) -> None:
        at[kind] = (start, end)
        expected.append(netlink.integer(body, start - 4, start))
        form.append("I" if opened else f"I{(end - start + 3) & ~3}x")

    for kind, start, end in netlink.attributes(body, HEADER.size, len(body)):
        note(kind, start, end, kind == LINK_INFO)
        if kind == LINK_INFO:
            for inner, first, last in netlink.attributes(body, start, end):
                note(LINK_INFO << 8 | inner, first, last, False)
    return _Layout(struct.Struct("".join(form)), tuple(expected), at)


# --- what kind of link it is -------------------------------------------------------------------------------


_tuns: dict[bytes, Tun] = {}
_TUNS_KEPT = 512


def _tun(data: bytes) -> Tun:
    """IFLA_TUN_* of drivers/net/tun.c. Taps made by the same program say the same: they share one object."""
    known = _tuns.get(data)
    if known is None:
        if len(_tuns) >= _TUNS_KEPT:
            _tuns.clear()
        known = _tuns[data] = _parse_tun(data)
    return known


def _parse_tun(data: bytes) -> Tun:
    values = {kind: netlink.integer(data, first, last) for kind, first, last in netlink.attributes(data, 0, len(data))}
    queues = values.get(TUN_QUEUES)
    return Tun(
        tap=values.get(TUN_TYPE) == TYPE_TAP,
        owner=values.get(TUN_OWNER),
        group=values.get(TUN_GROUP),
        pi=bool(values.get(TUN_PI)),
        vnet_hdr=bool(values.get(TUN_VNET_HDR)),
        persist=bool(values.get(TUN_PERSIST)),
        multi_queue=bool(values.get(TUN_MULTI_QUEUE)),
        # a queue that the guest does not use is disabled, and open all the same
        queues=None if queues is None else queues + values.get(TUN_DISABLED_QUEUES, 0),
    )


def _bridge(raw: Bytes, start: int, end: int) -> BridgeOptions:
    """IFLA_BR_* of br_fill_info() in net/bridge/br_netlink.c."""
    values = {
        kind: netlink.integer(raw, first, last)
        for kind, first, last in netlink.attributes(raw, start, end)
        if last - first <= 4
    }
    return BridgeOptions(
        stp=bool(values.get(BRIDGE_STP)),
        forward_delay=values.get(BRIDGE_FORWARD_DELAY, 0),
        ageing_time=values.get(BRIDGE_AGEING_TIME, 0),
        multicast_snooping=bool(values.get(BRIDGE_MULTICAST_SNOOPING)),
        vlan_filtering=bool(values.get(BRIDGE_VLAN_FILTERING)),
        group_forward_mask=values.get(BRIDGE_GROUP_FORWARD_MASK, 0),
    )


# --- changing ----------------------------------------------------------------------------------------------


def set_mtu(connection: Connection, ref: Ref, mtu: int) -> None:
    """`mtu` in bytes; the driver's own limits are told by the kernel."""
    _set(connection, ref, netlink.u32(MTU, mtu), f"set the mtu of {ref.name} to {mtu}")


def set_tx_queue_length(connection: Connection, ref: Ref, length: int) -> None:
    """`length` in packets."""
    doing = f"set the transmit queue of {ref.name} to {length} packets"
    _set(connection, ref, netlink.u32(TX_QUEUE_LENGTH, length), doing)


def set_master(connection: Connection, ref: Ref, master: Ref | None) -> None:
    """Enslave the link to `master`, or release it from the one it has."""
    if master is None:
        _set(connection, ref, netlink.u32(MASTER, 0), f"release {ref.name} from its master")
        return
    ifindex = find(connection, master).ifindex
    _set(connection, ref, netlink.u32(MASTER, ifindex), f"enslave {ref.name} to {master.name}")


def set_up(connection: Connection, ref: Ref) -> None:
    ifindex = find(connection, ref).ifindex
    connection.change(SETLINK, HEADER.pack(0, 0, ifindex, UP, UP), f"set {ref.name} up")


def delete(connection: Connection, ref: Ref) -> None:
    """Remove the link; one that is gone is success, one of that index with another name is Gone and stays."""
    try:
        ifindex = find(connection, ref).ifindex
        connection.change(DELLINK, HEADER.pack(0, 0, ifindex, 0, 0), f"remove {ref.name}")
    except Gone:
        if _is_there(connection, ref):
            raise


def create(connection: Connection, name: str, kind: str) -> None:
    """Make a link of a kind that needs no further data, already up. Refused when the name is taken."""
    body = HEADER.pack(0, 0, 0, UP, UP) + netlink.text(NAME, name)
    body += netlink.nest(LINK_INFO, netlink.text(INFO_KIND, kind))
    connection.change(NEWLINK, body, f"make {kind} {name}", flags=netlink.CREATE | netlink.EXCL)


def _is_there(connection: Connection, ref: Ref) -> bool:
    """Whether the index, or the name when there is none, still means some link."""
    try:
        find_any = _request(ref.ifindex) if ref.ifindex else _request() + netlink.text(NAME, ref.name)
        _get(connection, find_any, ref.name)
    except Gone:
        return False
    return True


def _set(connection: Connection, ref: Ref, attribute: bytes, doing: str) -> None:
    ifindex = find(connection, ref).ifindex
    connection.change(SETLINK, HEADER.pack(0, 0, ifindex, 0, 0) + attribute, doing)
