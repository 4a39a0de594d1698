"""Links as rtnetlink tells them, and one function for each attribute of a link that can be changed.

Message layout: man 7 rtnetlink and include/uapi/linux/if_link.h; which attribute comes when: rtnl_fill_ifinfo() in
net/core/rtnetlink.c.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from virtnet.core.model import BridgeOptions, Link, Ref, Tun
from virtnet.errors import Gone
from virtnet.host import netlink
from virtnet.host.dumps import RepeatedDump
from virtnet.host.netlink import Body, Bytes, Connection

NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19
HEADER = struct.Struct("=BxHiII")  # family, device type, ifindex, flags, which flags to change
_IFINDEX = struct.Struct("=i")
UP, LOOPBACK = 0x1, 0x8  # IFF_UP, IFF_LOOPBACK

ADDRESS, NAME, MTU, LINK, STATS, MASTER, TX_QUEUE_LENGTH, LINK_INFO, STATS64 = 1, 3, 4, 5, 7, 10, 13, 18, 23
EXT_MASK, CARRIER, LINK_NETNSID, EVENT, PARENT_DEVICE = 29, 33, 37, 44, 56
INFO_KIND, INFO_DATA = 1, 2
KIND_OF_LINK, DATA_OF_LINK = LINK_INFO << 8 | INFO_KIND, LINK_INFO << 8 | INFO_DATA
TUN_OWNER, TUN_GROUP, TUN_TYPE, TUN_PI, TUN_VNET_HDR, TUN_PERSIST, TUN_MULTI_QUEUE = 1, 2, 3, 4, 5, 6, 7
TUN_QUEUES, TUN_DISABLED_QUEUES = 8, 9
BRIDGE_FORWARD_DELAY, BRIDGE_AGEING_TIME, BRIDGE_STP, BRIDGE_VLAN_FILTERING = 1, 4, 5, 7
BRIDGE_GROUP_FORWARD_MASK, BRIDGE_MULTICAST_SNOOPING = 9, 23

TX_DROPPED = 56  # in struct rtnl_link_stats64
SKIP_STATISTICS = 8  # RTEXT_FILTER_SKIP_STATS: leaves out the address families' counters, not the link's own
EVENT_FEATURES = 2  # IFLA_EVENT_FEATURES
TYPE_TAP = 2

_NUMBERS = ("I", "B")
VALUES = {
    MTU: "I",
    TX_QUEUE_LENGTH: "I",
    MASTER: "I",
    LINK: "I",
    CARRIER: "B",
    ADDRESS: "{0}s",
    NAME: "{1}s",
    KIND_OF_LINK: "{1}s",
    PARENT_DEVICE: "{1}s",
    DATA_OF_LINK: "{0}s",
}
"""What is read of a link and how struct reads it; {0} is the length of the attribute, {1} that without the last NUL."""

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


def dropped(connection: Connection, ref: Ref) -> int:
    """How many packets a link could not send since it was made: of a tap, those that its guest did not fetch in time.

    Gone when there is no such link.
    """
    body = connection.get(GETLINK, _request(ref.ifindex), f"read the counters of {ref.name}")
    for kind, start, end in netlink.attributes(body, HEADER.size, len(body)):
        if kind == STATS64:
            return netlink.integer(body, start + TX_DROPPED, min(start + TX_DROPPED + 8, end))
    return 0


def parse(body: Body) -> Link:
    """The link that the payload of an RTM_NEWLINK message tells of."""
    return _build(body, _layout_of(body))


def ifindex_of(raw: Bytes, start: int) -> int:
    return int(_IFINDEX.unpack_from(raw, start + 4)[0])


def family_of(raw: Bytes, start: int) -> int:
    """AF_UNSPEC for the link itself."""
    return raw[start]


def event_of(body: Body) -> int:
    """Why the kernel tells of this link (IFLA_EVENT_*); 0 when it does not say."""
    return netlink.integer(body, *_layout_of(body).event)


def _get(connection: Connection, body: bytes, name: str) -> Link:
    return parse(connection.get(GETLINK, body, f"read link {name}"))


def _request(ifindex: int = 0) -> bytes:
    return HEADER.pack(0, 0, ifindex, 0, 0) + netlink.u32(EXT_MASK, SKIP_STATISTICS)


def _parse_with_noise(body: Body) -> tuple[Link, int, int]:
    layout = _layout_of(body)
    return _build(body, layout), *layout.noise


def _build(body: Body, layout: _Layout) -> Link:
    """Positional, in the order of the fields: keywords cost a third of it, and this runs a thousand times a look."""
    values = (*layout.values.unpack_from(body), 0, b"")
    ifindex, flags, mtu, queue, master, lower, carrier, mac, name, kind_name, parent, data = layout.pick(values)
    kind = kind_name.decode()
    return Link(
        ifindex,
        name.decode("utf-8", "surrogateescape"),
        kind,
        mac.hex(":"),
        mtu,
        queue,
        master,
        lower if layout.lower_is_here and kind in ON_ANOTHER_LINK else 0,
        flags & UP != 0,
        carrier != 0,
        parent != b"",
        flags & LOOPBACK != 0,
        parent.decode("utf-8", "surrogateescape"),
        _tun(data) if kind == "tun" else None,
        _bridge(data) if kind == "bridge" else None,
    )


# --- the layout of a message -------------------------------------------------------------------------------


class _Layout(NamedTuple):
    """Where things are in messages of one shape. The heads of all attributes, read at once, tell whether it is that.

    `pick` brings what `values` reads, with a 0 and an empty text behind it for what is absent, into the order ifindex,
    flags, then VALUES. `noise` is where the counters are (STATS64, then STATS), which come in every message whatever
    was asked, and change with every packet.
    """

    heads: struct.Struct
    expected: tuple[int, ...]
    values: struct.Struct
    pick: Callable[[tuple[Any, ...]], tuple[Any, ...]]
    lower_is_here: bool
    event: tuple[int, int]
    noise: tuple[int, int]


_layouts: dict[tuple[int, int], _Layout] = {}
_LAYOUTS_KEPT = 512


def _layout_of(body: Body) -> _Layout:
    """A thousand links come in some ten shapes (the length of the name is part of it).

    To check that a message has a known one costs a tenth of walking its forty attributes.
    """
    key = (len(body), body[HEADER.size])
    known = _layouts.get(key)
    if known is not None and known.heads.unpack_from(body) == known.expected:
        return known
    if len(_layouts) >= _LAYOUTS_KEPT:
        _layouts.clear()
    _layouts[key] = found = _walk(body)
    return found


def _walk(body: Body) -> _Layout:
    form, expected, at = [f"={HEADER.size}x"], list[int](), dict[int, tuple[int, int]]()
    for kind, start, end in netlink.attributes(body, HEADER.size, len(body)):
        at[kind] = (start, end)
        expected.append(netlink.integer(body, start - 4, start))
        if kind != LINK_INFO:
            form.append(f"I{(end - start + 3) & ~3}x")
            continue
        form.append("I")
        for inner, first, last in netlink.attributes(body, start, end):
            at[LINK_INFO << 8 | inner] = (first, last)
            expected.append(netlink.integer(body, first - 4, first))
            form.append(f"I{(last - first + 3) & ~3}x")
    return _layout(struct.Struct("".join(form)), tuple(expected), at, len(body))


def _layout(heads: struct.Struct, expected: tuple[int, ...], at: Mapping[int, tuple[int, int]], size: int) -> _Layout:
    form, order, place = ["=4xiI4x"], dict[int, int](), HEADER.size
    for number, (start, kind) in enumerate(sorted((at[kind][0], kind) for kind in VALUES if kind in at)):
        field = VALUES[kind].format(at[kind][1] - start, at[kind][1] - start - 1)
        form.append(f"{start - place}x{field}")
        order[kind], place = number + 2, start + struct.calcsize(field)
    zero, empty = len(order) + 2, len(order) + 3
    absent = {kind: zero if field in _NUMBERS else empty for kind, field in VALUES.items()}
    return _Layout(
        heads=heads,
        expected=expected,
        values=struct.Struct("".join(form)),
        pick=operator.itemgetter(0, 1, *(order.get(kind, absent[kind]) for kind in VALUES)),
        lower_is_here=LINK_NETNSID not in at,
        event=at.get(EVENT, (0, 0)),
        noise=_counters(at) or (size, size),
    )


def _counters(at: Mapping[int, tuple[int, int]]) -> tuple[int, int] | None:
    """From STATS64 to the end of STATS, which rtnl_fill_stats() puts one behind the other; None where it does not."""
    first, second = at.get(STATS64), at.get(STATS)
    if first is None or second is None or second[0] != (first[1] + 3 & ~3) + netlink.ATTRIBUTE.size:
        return None
    return first[0], second[1]


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


def _bridge(data: bytes) -> BridgeOptions:
    """IFLA_BR_* of br_fill_info() in net/bridge/br_netlink.c."""
    values = {
        kind: netlink.integer(data, start, end)
        for kind, start, end in netlink.attributes(data, 0, len(data))
        if end - start <= 4
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
