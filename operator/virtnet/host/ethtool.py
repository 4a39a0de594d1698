"""The ethtool netlink family: finding it, its message header and its device names. It knows no single feature.

Layout: include/uapi/linux/ethtool_netlink.h; meaning: Documentation/networking/ethtool-netlink.rst. Features, rings,
channels and coalescing are all there since Linux 5.8, so the older ioctls are not needed for them.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import NamedTuple

from virtnet.core.model import Ref
from virtnet.errors import NotSupported, Refused
from virtnet.host import netlink
from virtnet.host.netlink import Bytes, Connection

GENL_ID_CTRL, CTRL_CMD_GETFAMILY = 16, 3
CTRL_FAMILY_ID, CTRL_FAMILY_NAME, CTRL_MCAST_GROUPS = 1, 2, 7
CTRL_GROUP_NAME, CTRL_GROUP_ID = 1, 2

GENL = struct.Struct("=BBH")
DEVICE_INDEX, DEVICE_NAME, FLAGS = 1, 2, 3
COMPACT_BITSETS, OMIT_REPLY = 1, 2

_HEADER = struct.Struct("=BBHHH")  # the generic header and the head of the header nest
_NUMBER = struct.Struct("=HHI")
# before the first attribute's data: the generic header, the head of the header nest, the head of the index
_INDEX_FIRST = struct.Struct("=4xHHHHI")


class Family(NamedTuple):
    """What the kernel calls the family since its boot: its message type, and the group that tells of changes."""

    id: int
    monitor: int


def family(connection: Connection) -> Family:
    body = GENL.pack(CTRL_CMD_GETFAMILY, 1, 0) + netlink.text(CTRL_FAMILY_NAME, "ethtool")
    try:
        answer = connection.get(GENL_ID_CTRL, body, "find the kernel's ethtool interface")
    except Refused as refused:  # ENOENT
        raise NotSupported(f"{refused}; Linux 5.10 or later is needed") from refused
    found = {kind: (start, end) for kind, start, end in netlink.attributes(answer, GENL.size, len(answer))}
    return Family(netlink.integer(answer, *found[CTRL_FAMILY_ID]), _monitor(answer, *found[CTRL_MCAST_GROUPS]))


def request(command: int, *, ref: Ref | None = None, flags: int = COMPACT_BITSETS) -> bytes:
    """The body of a request about one link, or all. With index and name the kernel answers ENODEV unless both fit."""
    if ref is not None and ref.ifindex and ref.name:
        return _about_one(command, ref, flags)
    names = b""
    if ref is not None and ref.ifindex:
        names = _NUMBER.pack(8, DEVICE_INDEX, ref.ifindex)
    if ref is not None and ref.name:
        names += netlink.text(DEVICE_NAME, ref.name)
    header = _HEADER.pack(command, 1, 0, 12 + len(names), 1 | netlink.NESTED)
    return header + names + _NUMBER.pack(8, FLAGS, flags)


def _about_one(command: int, ref: Ref, flags: int) -> bytes:
    """The same with index and name, packed at once: a first apply asks for a thousand of them."""
    name = ref.name.encode("utf-8", "surrogateescape")
    size = 5 + len(name)  # with the attribute's head and the final NUL
    form = _form(size + 3 & ~3)
    nest = (1 | netlink.NESTED, 8, DEVICE_INDEX, ref.ifindex, size, DEVICE_NAME, name, 8, FLAGS, flags)
    return form.pack(command, 1, 0, form.size - 4, *nest)


@cache
def _form(size: int) -> struct.Struct:
    """The generic header, and the header nest with an index, a name that takes `size` bytes, and flags."""
    return struct.Struct(f"=BBHHHHHIHH{size - 4}sHHI")


def ifindex_of(raw: Bytes, start: int) -> int:
    """The link that a reply or notification is about; its header comes first, and in it the index."""
    _, header, _, kind, ifindex = _INDEX_FIRST.unpack_from(raw, start)
    if header & netlink.TYPE_MASK != 1 or kind != DEVICE_INDEX:
        raise NotSupported("this kernel's ethtool messages do not begin with the index of the link")
    return int(ifindex)


def _monitor(answer: bytes, start: int, end: int) -> int:
    for _, first, last in netlink.attributes(answer, start, end):
        group = {kind: (at, to) for kind, at, to in netlink.attributes(answer, first, last)}
        if netlink.string(answer, *group[CTRL_GROUP_NAME]) == "monitor":
            return netlink.integer(answer, *group[CTRL_GROUP_ID])
    raise NotSupported("this kernel does not tell of ethtool changes")
