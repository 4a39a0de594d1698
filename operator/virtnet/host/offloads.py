"""Offload features of links over ethtool netlink. It moves bit masks and never asks what a bit means.

In a reply, `hw` is what a user can change, `wanted` what was asked, `active` what is in effect, `nochange` what can
never change (net/ethtool/features.c). A set never fails for a feature that the driver does not honour: only the next
look tells.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import lru_cache

from virtnet.core.model import Change, Features, Ref, SetFeatures
from virtnet.errors import HostError, NotSupported
from virtnet.host import ethtool, netlink
from virtnet.host.dumps import RepeatedDump
from virtnet.host.netlink import Body, Connection

STRSET_GET, FEATURES_GET, FEATURES_SET = 1, 11, 12
STRSET_STRINGSETS, STRINGSETS_STRINGSET, STRINGSET_ID, STRINGSET_STRINGS = 2, 1, 1, 3
STRINGS_STRING, STRING_INDEX, STRING_VALUE = 1, 1, 2
SS_FEATURES = 4  # ETH_SS_FEATURES
HW, WANTED, ACTIVE, NOCHANGE = 2, 3, 4, 5
BITSET_SIZE, BITSET_VALUE, BITSET_MASK = 2, 4, 5

_features: dict[bytes, Features] = {}
_FEATURES_KEPT = 512


def names(connection: Connection, family: int) -> tuple[str, ...]:
    """The kernel's name of each bit, "" for a bit without one. The same for all links, until the next boot."""
    wanted = netlink.nest(STRSET_STRINGSETS, netlink.nest(STRINGSETS_STRINGSET, netlink.u32(STRINGSET_ID, SS_FEATURES)))
    answer = connection.get(family, ethtool.request(STRSET_GET) + wanted, "read the names of the offload features")
    found: dict[int, str] = {}
    for start, end in _strings(answer):
        string = {kind: (first, last) for kind, first, last in netlink.attributes(answer, start, end)}
        found[netlink.integer(answer, *string[STRING_INDEX])] = netlink.string(answer, *string[STRING_VALUE])
    return tuple(found.get(bit, "") for bit in range(max(found) + 1))


def repeated_dump(family: int) -> RepeatedDump[Features]:
    """The features of all links of a namespace, by ifindex."""
    doing = "read the offload features of all links"
    return RepeatedDump(family, ethtool.request(FEATURES_GET), ethtool.ifindex_of, _parse_with_noise, doing)


def read(connection: Connection, family: int, ref: Ref) -> Features:
    """The features of one link, `ref` with an index, a name or both."""
    body = ethtool.request(FEATURES_GET, ref=ref)
    return parse(connection.get(family, body, f"read the offload features of {ref.name or ref.ifindex}"))


def change(connection: Connection, family: int, ref: Ref, mask: int, value: int) -> None:
    """Ask for the features in `mask` to be as in `value`, in one message; bits outside `mask` are left alone.

    What comes of it, and which other features it drags along (tx-scatter-gather off takes segmentation with it), the
    next read tells.
    """
    if mask:
        connection.change(family, _request(ref, mask, value), _doing(ref))


def change_and_read(connection: Connection, family: int, ref: Ref, mask: int, value: int) -> Features:
    """Like `change`, and what came of it."""
    if not mask:
        return read(connection, family, ref)
    look = ethtool.request(FEATURES_GET, ref=ref)
    return parse(connection.change_and_get(family, _request(ref, mask, value), look, _doing(ref)))


def may_share(change: Change) -> bool:
    """Whether `change_all` makes this change."""
    return isinstance(change, SetFeatures) and change.mask != 0


def change_all(connection: Connection, family: int, changes: Iterable[Change]) -> list[HostError | None]:
    """Like `change` for each, many in one system call; for each why it failed, or None."""
    asked = [
        (_request(one.link, one.mask, one.value), _doing(one.link)) for one in changes if isinstance(one, SetFeatures)
    ]
    return connection.change_all(family, asked)


def _request(ref: Ref, mask: int, value: int) -> bytes:
    flags = ethtool.COMPACT_BITSETS | ethtool.OMIT_REPLY
    return ethtool.request(FEATURES_SET, ref=ref, flags=flags) + _wanted(mask, value & mask)


def _doing(ref: Ref) -> str:
    return f"set offload features of {ref.name}"


@lru_cache(maxsize=512)
def _wanted(mask: int, value: int) -> bytes:
    """The bitset of a set request; a thousand links are asked for the same few."""
    words = -(-mask.bit_length() // 32)
    return netlink.nest(
        WANTED,
        netlink.u32(BITSET_SIZE, mask.bit_length()),
        netlink.attribute(BITSET_VALUE, _words(value, words)),
        netlink.attribute(BITSET_MASK, _words(mask, words)),
    )


def _parse_with_noise(payload: Body) -> tuple[Features, int, int]:
    return parse(payload), len(payload), len(payload)


def parse(payload: Body) -> Features:
    """The features that a reply or a notification tells; both are the same message.

    Behind the header that names the link come only bitsets, equal on all links of a kind: they share one object.
    """
    bitsets = bytes(payload[4 + (netlink.integer(payload, 4, 6) + 3 & ~3) :])
    known = _features.get(bitsets)
    if known is None:
        if len(_features) >= _FEATURES_KEPT:
            _features.clear()
        known = _features[bitsets] = _parse_bitsets(bitsets)
    return known


def _parse_bitsets(data: bytes) -> Features:
    masks = {kind: _bits(data, start, end) for kind, start, end in netlink.attributes(data, 0, len(data))}
    if not masks.keys() >= {HW, WANTED, ACTIVE}:
        raise NotSupported("this kernel does not tell which offload features are changeable, wanted and active")
    return Features(hw=masks[HW], wanted=masks[WANTED], active=masks[ACTIVE], nochange=masks.get(NOCHANGE, 0))


def _bits(data: bytes, start: int, end: int) -> int:
    for kind, first, last in netlink.attributes(data, start, end):
        if kind == BITSET_VALUE:
            words = struct.unpack_from(f"={(last - first) // 4}I", data, first)
            return sum(word << 32 * place for place, word in enumerate(words))
    return 0


def _words(bits: int, count: int) -> bytes:
    """A bitset is an array of 32-bit words, the lowest first, each in the byte order of the machine."""
    return struct.pack(f"={count}I", *(bits >> 32 * place & 0xFFFFFFFF for place in range(count)))


def _strings(answer: bytes) -> list[tuple[int, int]]:
    """Where the STRING nests of a reply with one string set are."""
    level = [(ethtool.GENL.size, len(answer))]
    for wanted in (STRSET_STRINGSETS, STRINGSETS_STRINGSET, STRINGSET_STRINGS, STRINGS_STRING):
        level = [
            (first, last)
            for start, end in level
            for kind, first, last in netlink.attributes(answer, start, end)
            if kind == wanted
        ]
    return level
