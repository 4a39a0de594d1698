"""Another program that changes offload features, as seen from outside: ethtool's own ioctls, nothing of virtnet.

Run as a program it flips features and prints, for each flip, how long it took until the value was back:

    python scripts/foreign.py [--with-ethtool] FLIPS PAUSE LINK:FEATURE [LINK:FEATURE …]   ->  lines of JSON

--with-ethtool lets a real `ethtool -K` make each flip (by netlink), and only watches. --storm flips one feature on and
off as fast as a loop can and measures nothing but itself; an odd number of flips ends with it the other way.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import socket
import struct
import subprocess
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
        self._call(link, self._request(link, feature, on))

    def storm(self, link: str, feature: str, flips: int) -> None:
        """Turn a feature the other way and back, as fast as the kernel lets."""
        before = self.is_on(link, feature)
        requests = (self._request(link, feature, not before), self._request(link, feature, before))
        for number in range(flips):
            self._call(link, requests[number % 2])

    def _request(self, link: str, feature: str, on: bool) -> ctypes.Array[ctypes.c_char]:
        bit = self.names(link).index(feature)
        words = (len(self._names) + 31) // 32
        request = ctypes.create_string_buffer(struct.pack("=II", SFEATURES, words) + bytes(words * 8))
        mask = 1 << bit % 32
        struct.pack_into("=II", request, 8 + bit // 32 * 8, mask, mask if on else 0)
        return request

    def _call(self, link: str, data: ctypes.Array[ctypes.c_char]) -> None:
        request = ctypes.create_string_buffer(struct.pack("16sP", link.encode(), ctypes.addressof(data)) + bytes(16))
        if self._libc.ioctl(self._socket.fileno(), SIOCETHTOOL, request) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), link)


def flip(ethtool: Ethtool, link: str, feature: str) -> float | None:
    """Turn a feature the other way; seconds from the call until it was back, None when it stayed so for too long."""
    before = ethtool.is_on(link, feature)
    started = time.perf_counter()
    ethtool.turn(link, feature, not before)
    while ethtool.is_on(link, feature) != before:
        if time.perf_counter() - started > GIVE_UP:
            return None
    return time.perf_counter() - started


def flip_with_ethtool(ethtool: Ethtool, link: str, feature: str) -> float | None:
    """The same by a real `ethtool -K`: seconds from the last look that found the value right until it was right again.

    When no look found it wrong, it was wrong for less than the longest time between two looks: that is taken.
    """
    before = ethtool.is_on(link, feature)
    started = last_right = time.perf_counter()
    longest, was_wrong = 0.0, False
    with subprocess.Popen(["ethtool", "-K", link, feature, "off" if before else "on"]) as child:
        while last_right - started < GIVE_UP:
            ended = child.poll() is not None
            right, now = ethtool.is_on(link, feature) == before, time.perf_counter()
            if right and was_wrong:
                return now - last_right
            if right and ended:
                if child.returncode:
                    raise RuntimeError(f"ethtool -K {link} {feature} ended with {child.returncode}")
                return max(longest, now - last_right)
            if right:
                longest, last_right = max(longest, now - last_right), now
            elif now - last_right > GIVE_UP:
                break
            was_wrong = not right
    return None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--with-ethtool", action="store_true", help="let `ethtool -K` make the flips")
    how.add_argument("--storm", action="store_true", help="one feature, as fast as a loop can")
    parser.add_argument("flips", type=int, metavar="FLIPS")
    parser.add_argument("pause", type=float, metavar="PAUSE", help="mean seconds between flips")
    parser.add_argument("targets", nargs="+", metavar="LINK:FEATURE")
    return parser.parse_args()


def main() -> None:
    arguments, ethtool = _arguments(), Ethtool()
    if arguments.storm:
        started = time.monotonic()
        link, _, feature = arguments.targets[0].partition(":")
        ethtool.storm(link, feature, arguments.flips)
        print(json.dumps({"flips": arguments.flips, "started": started, "ended": time.monotonic()}))
        return
    change = flip_with_ethtool if arguments.with_ethtool else flip
    for number in range(arguments.flips):
        link, _, feature = arguments.targets[number % len(arguments.targets)].partition(":")
        seconds = change(ethtool, link, feature)
        print(json.dumps({"link": link, "feature": feature, "seconds": seconds}), flush=True)
        # even pauses would fall in step with whoever looks once a second
        time.sleep(arguments.pause * random.uniform(0.5, 1.5))


if __name__ == "__main__":
    main()
