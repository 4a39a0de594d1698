"""Ring sizes, queue counts, receive coalescing and drivers of links: reading all, setting one.

Rings, channels and coalescing go over ethtool netlink (net/ethtool/{rings,channels,coalesce}.c); the driver's name has
no netlink message and comes by the ETHTOOL_GDRVINFO ioctl.
"""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TypeVar

from virtnet.core.model import Channels, Driver, Link, Ref, Rings, Unreadable
from virtnet.errors import Gone, HostError, NotSupported
from virtnet.host import ethtool, netlink
from virtnet.host.netlink import Connection

T = TypeVar("T")
Numbers = Mapping[int, int]

RINGS_GET, RINGS_SET, CHANNELS_GET, CHANNELS_SET, COALESCE_GET, COALESCE_SET = 15, 16, 17, 18, 19, 20
RINGS_RX_MAX, RINGS_TX_MAX, RINGS_RX, RINGS_TX = 2, 5, 6, 9
CHANNELS_RX_MAX, CHANNELS_TX_MAX, CHANNELS_COMBINED_MAX = 2, 3, 5
CHANNELS_RX, CHANNELS_TX, CHANNELS_COMBINED = 6, 7, 9
COALESCE_RX_MAX_FRAMES = 3

ETHTOOL_GDRVINFO = 0x3
_DRVINFO = struct.Struct("=I32s32s32s32s32s12x5I")


def _rings(numbers: Numbers) -> Rings | None:
    at = numbers.get
    found = Rings(rx=at(RINGS_RX), tx=at(RINGS_TX), rx_max=at(RINGS_RX_MAX), tx_max=at(RINGS_TX_MAX))
    return None if found == Rings(None, None, None, None) else found


def _channels(numbers: Numbers) -> Channels | None:
    at = numbers.get
    found = Channels(
        combined=at(CHANNELS_COMBINED),
        rx=at(CHANNELS_RX),
        tx=at(CHANNELS_TX),
        combined_max=at(CHANNELS_COMBINED_MAX),
        rx_max=at(CHANNELS_RX_MAX),
        tx_max=at(CHANNELS_TX_MAX),
    )
    return None if found == Channels(None, None, None, None, None, None) else found


def _rx_frames(numbers: Numbers) -> int | None:
    return numbers.get(COALESCE_RX_MAX_FRAMES)


# --- reading -----------------------------------------------------------------------------------------------


def rings(connection: Connection, family: int, links: Mapping[int, Link]) -> Mapping[int, Rings | Unreadable]:
    """Ring sizes in descriptors; a link without rings is absent."""
    return _read_all(connection, family, links, RINGS_GET, "ring sizes", _rings)


def channels(connection: Connection, family: int, links: Mapping[int, Link]) -> Mapping[int, Channels | Unreadable]:
    """Queue counts; a link that cannot tell is absent."""
    return _read_all(connection, family, links, CHANNELS_GET, "queue counts", _channels)


def rx_frames(connection: Connection, family: int, links: Mapping[int, Link]) -> Mapping[int, int | Unreadable]:
    """How many packets a link gathers before it passes them on (ethtool's rx-frames; a tap's batch)."""
    return _read_all(connection, family, links, COALESCE_GET, "rx-frames", _rx_frames)


def _read_all(
    connection: Connection,
    family: int,
    links: Mapping[int, Link],
    command: int,
    what: str,
    build: Callable[[Numbers], T | None],
) -> dict[int, T | Unreadable]:
    """One dump. It ends at the first driver that fails (ethnl_default_dumpit), so then each link is asked alone."""
    try:
        replies = connection.dump(family, ethtool.request(command), f"read the {what} of all links")
    except HostError:
        each = {ifindex: _read_one(connection, family, link, command, what, build) for ifindex, link in links.items()}
        return {ifindex: found for ifindex, found in each.items() if found is not None}
    found = {ethtool.ifindex_of(reply, 0): build(_numbers(reply)) for reply in replies}
    return {ifindex: value for ifindex, value in found.items() if value is not None and ifindex in links}


def _read_one(
    connection: Connection,
    family: int,
    link: Link,
    command: int,
    what: str,
    build: Callable[[Numbers], T | None],
) -> T | Unreadable | None:
    body = ethtool.request(command, ref=Ref(link.name, link.ifindex))
    try:
        return build(_numbers(connection.get(family, body, f"read the {what} of {link.name}")))
    except (Gone, NotSupported):
        return None
    except HostError as error:
        return Unreadable(str(error))


def _numbers(reply: bytes) -> Numbers:
    """The 32-bit attributes of a reply, by type; the header nest is longer."""
    return {
        kind: netlink.integer(reply, start, end)
        for kind, start, end in netlink.attributes(reply, ethtool.GENL.size, len(reply))
        if end - start == 4
    }


# --- changing ----------------------------------------------------------------------------------------------


def set_rings(connection: Connection, family: int, ref: Ref, *, rx: int | None, tx: int | None) -> None:
    """Ring sizes in descriptors. Most drivers take the link down for a moment, some round."""
    _set(connection, family, ref, RINGS_SET, {RINGS_RX: rx, RINGS_TX: tx}, "ring sizes")


def set_channels(
    connection: Connection, family: int, ref: Ref, *, combined: int | None, rx: int | None, tx: int | None
) -> None:
    wanted = {CHANNELS_COMBINED: combined, CHANNELS_RX: rx, CHANNELS_TX: tx}
    _set(connection, family, ref, CHANNELS_SET, wanted, "queue counts")


def set_rx_frames(connection: Connection, family: int, ref: Ref, frames: int) -> None:
    """A tap clamps to 64 (NAPI_POLL_WEIGHT in tun_set_coalesce)."""
    _set(connection, family, ref, COALESCE_SET, {COALESCE_RX_MAX_FRAMES: frames}, "rx-frames")


def _set(
    connection: Connection, family: int, ref: Ref, command: int, wanted: Mapping[int, int | None], what: str
) -> None:
    asked = b"".join(netlink.u32(kind, value) for kind, value in wanted.items() if value is not None)
    if asked:
        connection.change(family, ethtool.request(command, ref=ref) + asked, f"set the {what} of {ref.name}")


# --- drivers -----------------------------------------------------------------------------------------------


TELLING_KINDS = frozenset({"veth", "tun", "bridge"})
"""Kinds whose driver calls itself so in ETHTOOL_GDRVINFO, and of which a host may have thousands."""


def untold(links: Mapping[int, Link]) -> Mapping[int, Link]:
    """The links whose kind does not tell their driver: each costs a system call when it is first seen."""
    return {ifindex: link for ifindex, link in links.items() if link.kind not in TELLING_KINDS}


class Drivers:
    """Driver of each link, asked once for each (index, name): it does not change while a link lives."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, str], Driver | None] = {}

    def look(self, connection: Connection, links: Mapping[int, Link]) -> Mapping[int, Driver]:
        """Links without a driver of their own (loopback) are absent."""
        keys = {ifindex: (ifindex, link.name) for ifindex, link in links.items()}
        self._known = {
            key: self._known[key] if key in self._known else driver(connection, key[1]) for key in keys.values()
        }
        return {ifindex: found for ifindex, key in keys.items() if (found := self._known[key]) is not None}


def driver(connection: Connection, name: str) -> Driver | None:
    """What `ethtool -i` prints of a link; None when it has nothing to say, or is gone."""
    information = bytearray(_DRVINFO.size)
    information[:4] = ETHTOOL_GDRVINFO.to_bytes(4, sys.byteorder)
    try:
        connection.ethtool_ioctl(name, information)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENODEV):
            return None
        raise netlink.error(error.errno or 0, f"read the driver of {name}") from error
    return _driver(bytes(information))


@lru_cache(maxsize=64)
def _driver(information: bytes) -> Driver:
    """A thousand virtual links say the same: they share one object."""
    _, kind, version, firmware, bus, *_ = _DRVINFO.unpack(information)
    return Driver(_ascii(kind), _ascii(version), _ascii(bus), _ascii(firmware))


def _ascii(field: bytes) -> str:
    return netlink.string(field, 0, len(field))
