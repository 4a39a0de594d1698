"""Another program that changes offload features, as seen from outside: ethtool's own ioctls, nothing of virtnet.

Run as a program it flips features and prints, for each flip, how long the value stayed wrong:

    python scripts/foreign.py FLIPS PAUSE LINK:FEATURE [LINK:FEATURE …]   ->  lines of JSON
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
import sys
import time

SIOCETHTOOL = 0x8946
GSTRINGS, GSSET_INFO, GFEATURES, SFEATURES = 0x1B, 0x37, 0x3A, 0x3B  # linux/ethtool.h
FEATURE_STRINGS = 4  # ETH_SS_FEATURES
STRING = 32
GIVE_UP = 5.0


class Ethtool:
    """The feature ioctls of one network namespace: the one this process is in."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._names: list[str] = []

    def names(self, link: str) -> list[str]:
        """The kernel's feature names, by bit."""
        if not self._names:
            count = ctypes.create_string_buffer(struct.pack("=IIQI", GSSET_INFO, 0, 1 << FEATURE_STRINGS, 0))
            self._call(link, count)
            (number,) = struct.unpack_from("=I", count, 16)
            strings = ctypes.create_string_buffer(
                struct.pack("=III", GSTRINGS, FEATURE_STRINGS, number) + bytes(number * STRING)
            )
            self._call(link, strings)
            found = strings.raw[12 : 12 + number * STRING]
            self._names = [found[at : at + STRING].split(b"\0")[0].decode() for at in range(0, len(found), STRING)]
        return self._names

    def is_on(self, link: str, feature: str) -> bool:
        """Whether a feature is in effect."""
        bit = self.names(link).index(feature)
        words = (len(self._names) + 31) // 32
        answer = ctypes.create_string_buffer(struct.pack("=II", GFEATURES, words) + bytes(words * 16))
        self._call(link, answer)
        (active,) = struct.unpack_from("=I", answer, 8 + bit // 32 * 16 + 8)
        return bool(active >> bit % 32 & 1)

    def turn(self, link: str, feature: str, on: bool) -> None:
        """Ask for a feature as `ethtool -K` did before it spoke netlink."""
        bit = self.names(link).index(feature)
        words = (len(self._names) + 31) // 32
        request = ctypes.create_string_buffer(struct.pack("=II", SFEATURES, words) + bytes(words * 8))
        mask = 1 << bit % 32
        struct.pack_into("=II", request, 8 + bit // 32 * 8, mask, mask if on else 0)
        self._call(link, request)

    def _call(self, link: str, data: ctypes.Array[ctypes.c_char]) -> None:
        request = ctypes.create_string_buffer(struct.pack("16sP", link.encode(), ctypes.addressof(data)) + bytes(16))
        if self._libc.ioctl(self._socket.fileno(), SIOCETHTOOL, request) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), link)


def flip(ethtool: Ethtool, link: str, feature: str) -> float | None:
    """Turn a feature the other way; seconds until it was back, None when it stayed so for too long."""
    before = ethtool.is_on(link, feature)
    ethtool.turn(link, feature, not before)
    started = time.perf_counter()
    while ethtool.is_on(link, feature) != before:
        if time.perf_counter() - started > GIVE_UP:
            return None
    return time.perf_counter() - started


def main(flips: int, pause: float, targets: list[str]) -> None:
    ethtool = Ethtool()
    for number in range(flips):
        link, _, feature = targets[number % len(targets)].partition(":")
        seconds = flip(ethtool, link, feature)
        print(json.dumps({"link": link, "feature": feature, "seconds": seconds}), flush=True)
        time.sleep(pause)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
