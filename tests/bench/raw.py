"""The floors: what the kernel takes by itself, with no parsing, no deciding and no remembering. Needs no state.

Run as a program it is the least that repairs a feature: on every ethtool notification, whatever it says, one message
that was built beforehand sets the feature of the link it was told of:

    python -m tests.bench.raw LINK FEATURE
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterable

from tests.bench.place import Links
from virtnet.core.model import Ref
from virtnet.host import ethtool, links, netlink, offloads
from virtnet.host.namespaces import Namespace

_HERE = Namespace()
_DONE = struct.Struct("=IH")


class Dump:
    """One dump, received into one buffer and not looked at but for its end."""

    def __init__(self, protocol: int, kind: int, body: bytes) -> None:
        self._socket = netlink.open_socket(protocol, _HERE)
        self._socket.settimeout(netlink.TIMEOUT_SECONDS)
        netlink.widen(self._socket, 1 << 20)
        flags = netlink.REQUEST | netlink.DUMP
        self._request = netlink.HEADER.pack(16 + len(body), kind, flags, netlink.DUMP_SEQUENCE, 0) + body
        self._buffer = bytearray(netlink.RECEIVE_BYTES)

    @classmethod
    def of_links(cls) -> Dump:
        """With the same filter as the product: without the address families' counters."""
        body = links.HEADER.pack(0, 0, 0, 0, 0) + netlink.u32(links.EXT_MASK, links.SKIP_STATISTICS)
        return cls(netlink.ROUTE, links.GETLINK, body)

    @classmethod
    def of_features(cls) -> Dump:
        """With compact bitsets, as the product asks for them."""
        return cls(netlink.GENERIC, Features().family.id, ethtool.request(offloads.FEATURES_GET))

    def receive(self) -> int:
        """Ask, and take all that comes; how many bytes that was."""
        self._socket.send(self._request)
        total = 0
        while True:
            size = self._socket.recv_into(self._buffer)
            total += size
            if _DONE.unpack_from(self._buffer, size - 20) == (20, netlink.DONE):
                return total

    def close(self) -> None:
        self._socket.close()


class Features:
    """The kernel's numbers for its ethtool family and its features, and messages made of them."""

    def __init__(self) -> None:
        connection = netlink.Connection(netlink.GENERIC, _HERE)
        try:
            self.family = ethtool.family(connection)
            self.names = offloads.names(connection, self.family.id)
        finally:
            connection.close()

    def turn(self, link: str, names: Iterable[str], on: bool) -> bytes:
        """The whole message that turns features of a link on or off; `names` are the kernel's."""
        mask = sum(1 << self.names.index(name) for name in names)
        count = -(-mask.bit_length() // 32)
        words = struct.pack(f"={count}I", *(mask >> 32 * place & 0xFFFFFFFF for place in range(count)))
        bitset = netlink.nest(
            offloads.WANTED,
            netlink.u32(offloads.BITSET_SIZE, mask.bit_length()),
            netlink.attribute(offloads.BITSET_VALUE, words if on else bytes(len(words))),
            netlink.attribute(offloads.BITSET_MASK, words),
        )
        flags = ethtool.COMPACT_BITSETS | ethtool.OMIT_REPLY
        body = ethtool.request(offloads.FEATURES_SET, ref=Ref(link, 0), flags=flags) + bitset
        return netlink.HEADER.pack(16 + len(body), self.family.id, netlink.REQUEST | netlink.ACK, 2, 0) + body


class Sender:
    """Sends ready messages and waits for the acknowledgement of each."""

    def __init__(self) -> None:
        self._socket = netlink.open_socket(netlink.GENERIC, _HERE)
        self._socket.settimeout(netlink.TIMEOUT_SECONDS)

    def send(self, message: bytes) -> None:
        self._socket.send(message)
        answer = self._socket.recv(4096)
        netlink.raise_if_failed(answer, 0, 16, len(answer), "set a feature")

    def close(self) -> None:
        self._socket.close()


def messages(links: Links, *, on: bool) -> list[bytes]:
    """One for each link, with the features that the benchmarks' policy keeps off."""
    features = Features()
    segmentation = [name for name in features.names if name.startswith("tx-tcp")]
    veths = (features.turn(name, [*segmentation, "tx-generic-segmentation"], on) for name in links.veths)
    return [*veths, *(features.turn(name, ["rx-gro", "tx-generic-segmentation"], on) for name in links.taps)]


def send(ready: Iterable[bytes]) -> None:
    """All of them, one after another."""
    sender = Sender()
    try:
        for message in ready:
            sender.send(message)
    finally:
        sender.close()


def react(link: str, feature: str) -> None:
    """Until killed: turn the feature off whenever the kernel tells of any change; a set of what is so tells nothing."""
    features, sender = Features(), Sender()
    listener = netlink.open_socket(netlink.GENERIC, _HERE)
    netlink.join(listener, features.family.monitor)
    message = features.turn(link, [feature], on=False)
    print("listening", flush=True)
    while True:
        listener.recv(65536, socket.MSG_TRUNC)
        sender.send(message)


if __name__ == "__main__":
    react(sys.argv[1], sys.argv[2])
