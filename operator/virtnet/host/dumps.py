"""A dump that is asked again and again: what did not change since the last time costs a comparison of bytes.

A steady host sends the same datagrams each time, apart from counters, so that a look at a thousand links is a
thousand short comparisons. Only messages that differ are parsed, and a value that is equal to the last one is the
last object itself.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Generic, NamedTuple, TypeVar

from virtnet.errors import Temporary
from virtnet.host import netlink

T = TypeVar("T")
Key = Callable[[bytearray, int], int]
"""(datagram, start of a payload) -> ifindex of the link it is about."""
Parse = Callable[[bytearray], tuple[T, int, int]]
"""A payload -> the value, and from where to where the payload's bytes do not matter to it."""


_Piece = tuple[bytearray, int, int, T, int, int]
"""One message: its datagram, start and end of its payload there, what it means, start and end of the noise in it.

A plain tuple: a thousand are made in a look, and a named one costs ten times as much.
"""


class _Datagram(NamedTuple, Generic[T]):
    """`stable` covers everything but the noise; `last`: the dump ends here; `whole`: no link came or went meanwhile."""

    raw: bytearray
    pieces: Mapping[int, _Piece[T]]
    stable: tuple[slice, ...]
    last: bool
    whole: bool

    def means(self, raw: memoryview) -> bool:
        """Whether `raw` says the same. Compares bytearray with memoryview: that is memcmp, two memoryviews are not."""
        known = self.raw
        return all(known[part] == raw[part] for part in self.stable)


class RepeatedDump(Generic[T]):
    """One kind of dump, keyed by ifindex.

    Not thread-safe; any connection of the same namespace may be used for each look.
    """

    def __init__(self, kind: int, body: bytes, key: Key, parse: Parse[T], doing: str) -> None:
        self._kind, self._body, self._key, self._parse, self._doing = kind, body, key, parse, doing
        self._datagrams: list[_Datagram[T]] = []
        self._pieces: dict[int, _Piece[T]] = {}
        self._values: dict[int, T] = {}

    def look(self, connection: netlink.Connection) -> Mapping[int, T]:
        """What is there now; the same mapping object when every value is the same object as before."""
        for _ in range(netlink.DUMP_ATTEMPTS):
            found = self._read(connection)
            if all(datagram.whole for datagram in found):
                return self._take(found)
        raise Temporary(f"cannot {self._doing}: links come and go faster than they can be listed")

    def _read(self, connection: netlink.Connection) -> list[_Datagram[T]]:
        known, found = self._datagrams, list[_Datagram[T]]()
        with connection.dumping(self._kind, self._body, self._doing):
            while True:
                raw, at = connection.receive(self._doing), len(found)
                same = at < len(known) and known[at].means(raw)
                found.append(known[at] if same else self._open(bytearray(raw)))
                if found[-1].last:
                    return found

    def _open(self, raw: bytearray) -> _Datagram[T]:
        pieces: dict[int, _Piece[T]] = {}
        last, whole = False, True
        for kind, flags, start, end in netlink.messages(raw, netlink.DUMP_SEQUENCE):
            whole = whole and not flags & netlink.DUMP_INTERRUPTED
            if kind in (netlink.DONE, netlink.ERROR):
                netlink.raise_if_failed(raw, flags, start, end, self._doing)
                last = True
                break
            ifindex = self._key(raw, start)
            pieces[ifindex] = self._piece(self._pieces.get(ifindex), raw, start, end)
        return _Datagram(raw, pieces, _stable(pieces), last, whole)

    def _piece(self, known: _Piece[T] | None, raw: bytearray, start: int, end: int) -> _Piece[T]:
        if known is not None:
            known_raw, known_start, known_end, last, noise, after = known
            moved = start - known_start
            same_head = known_raw[known_start:noise] == raw[start : noise + moved]
            if same_head and known_raw[after:known_end] == raw[after + moved : end]:
                return raw, start, end, last, noise + moved, after + moved
        value, noise, after = self._parse(raw[start:end])
        if known is not None and value == last:
            value = last
        return raw, start, end, value, start + noise, start + after

    def _take(self, found: list[_Datagram[T]]) -> Mapping[int, T]:
        if len(found) == len(self._datagrams) and all(map(operator.is_, found, self._datagrams)):
            return self._values
        self._datagrams = found
        self._pieces = {ifindex: piece for datagram in found for ifindex, piece in datagram.pieces.items()}
        values = {ifindex: piece[3] for ifindex, piece in self._pieces.items()}
        if values.keys() != self._values.keys() or not all(map(operator.is_, values.values(), self._values.values())):
            self._values = values
        return self._values


def _stable(pieces: Mapping[int, _Piece[T]]) -> tuple[slice, ...]:
    """The parts of a datagram between the noise of its messages."""
    cuts = [(noise, after) for *_, noise, after in pieces.values() if noise < after]
    starts = [0, *(end for _, end in cuts)]
    ends = [*(start for start, _ in cuts), None]
    return tuple(map(slice, starts, ends))
