"""Who holds taps and /dev/vhost-net: one walk over /proc, which never stops, signals or traces a process."""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from virtnet.core.model import Process
from virtnet.values import frozen

_TUN = os.makedev(10, 200)  # TUN_MINOR, include/linux/miscdevice.h
_VHOST_NET = os.makedev(10, 238)  # VHOST_NET_MINOR
_TUNGETDEVNETNS = 0x54E3
_SYS_PIDFD_GETFD = 438  # the same number on every architecture: it came after they were unified
_LIBC = ctypes.CDLL(None, use_errno=True)


@frozen
class Holders:
    """What one walk found.

    `taps` maps a tap's name in the asked network namespace to its holders, `vhost` are the processes that have
    /dev/vhost-net open, in any namespace: the module is one for all. `unreadable` counts the processes whose
    descriptors this process may not see; while it is not 0, an empty answer is no proof.
    """

    taps: Mapping[str, tuple[Process, ...]]
    vhost: tuple[Process, ...]
    unreadable: int = 0


@frozen
class _Held:
    """One interesting descriptor: `tap` is the link's name, empty for vhost-net."""

    number: int
    tap: str
    netns: tuple[int, int] | None


def look(netns: str | None = None) -> Holders:
    """Walk all processes once. `netns` is the path of the network namespace whose taps count; None: our own."""
    home = _identity(netns or "/proc/thread-self/ns/net")
    taps: dict[str, list[Process]] = {}
    vhost: list[Process] = []
    unreadable = 0
    for pid in pids():
        try:
            held = list(_held(pid))
        except PermissionError:
            unreadable += 1
            continue
        if not held:
            continue
        process = describe(pid)
        if any(not one.tap for one in held):
            vhost.append(process)
        for name in sorted({one.tap for one in held if one.tap and one.netns == home}):
            taps.setdefault(name, []).append(process)
    return Holders({name: tuple(holders) for name, holders in taps.items()}, tuple(vhost), unreadable)


def taps_by_process(netns: str | None = None) -> dict[int, dict[int, str]]:
    """By process the descriptors of taps of a network namespace (None: our own), with the taps' names."""
    home = _identity(netns or "/proc/thread-self/ns/net")
    found: dict[int, dict[int, str]] = {}
    for pid in pids():
        with suppress(PermissionError):
            taps = {one.number: one.tap for one in _held(pid) if one.tap and one.netns == home}
            if taps:
                found[pid] = taps
    return found


def vhost_descriptors(pid: int) -> int:
    """How often a process has /dev/vhost-net open; 0 when it has ended."""
    with suppress(PermissionError):
        return sum(not one.tap for one in _held(pid))
    return 0


def describe(pid: int) -> Process:
    """A process as users know it; a process that has ended in the meantime has no command ("?")."""
    command, arguments = "?", ""
    with suppress(OSError):
        command = Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
        arguments = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    return Process(pid, command, guest_name(arguments.split("\0")))


def guest_name(arguments: list[str]) -> str:
    """The virtual machine's name on a QEMU command line, "" when it has none.

    Both spellings of qemu(1): `-name foo,...` and `-name guest=foo,...`; a comma in a name is written twice there.
    """
    for option, text in itertools.pairwise(arguments):
        if option in {"-name", "--name"}:
            parts = text.replace(",,", "\0").split(",")
            named = [part.removeprefix("guest=") for part in parts if part.startswith("guest=")]
            bare = [part for part in parts[:1] if "=" not in part]
            return (named + bare + [""])[0].replace("\0", ",")
    return ""


def pids() -> list[int]:
    """All processes that are there now, lowest first."""
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def _held(pid: int) -> Iterator[_Held]:
    """The tun and vhost-net descriptors of one process; nothing when it has ended. Raises PermissionError."""
    directory = f"/proc/{pid}/fd"
    for number in _descriptors(directory):
        with suppress(FileNotFoundError, ProcessLookupError):
            link = os.readlink(f"{directory}/{number}")
            # Seen from another mount namespace the path may lack its beginning; the device number decides.
            if "/net/tun" not in link and "/vhost-net" not in link:
                continue
            device = os.stat(f"{directory}/{number}")
            if not stat.S_ISCHR(device.st_mode):
                continue
            if device.st_rdev == _VHOST_NET:
                yield _Held(int(number), "", None)
            elif device.st_rdev == _TUN and (name := _interface(pid, number)):
                yield _Held(int(number), name, _netns_of_tap(pid, int(number)))


def _descriptors(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, ProcessLookupError):
        return []


def _interface(pid: int, number: str) -> str:
    """The `iff:` line of a tun descriptor; "" while it is not attached (drivers/net/tun.c, tun_chr_show_fdinfo)."""
    for line in Path(f"/proc/{pid}/fdinfo/{number}").read_text().splitlines():
        if line.startswith("iff:"):
            return line.removeprefix("iff:").strip()
    return ""


def _netns_of_tap(pid: int, number: int) -> tuple[int, int] | None:
    """The namespace in which a descriptor's tap lives, as (device, inode).

    A process may hold a tap of a namespace that it does not live in (a helper opened it there), so the descriptor is
    asked. Where that is not allowed or not known (Linux < 5.6), the process's own namespace is the best guess.
    """
    try:
        return _ask_descriptor(pid, number)
    except OSError:
        with suppress(OSError):
            return _identity(f"/proc/{pid}/ns/net")
    return None


def _ask_descriptor(pid: int, number: int) -> tuple[int, int]:
    process = os.pidfd_open(pid)
    try:
        copy = _LIBC.syscall(_SYS_PIDFD_GETFD, process, number, 0)
        if copy < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
    finally:
        os.close(process)
    try:
        namespace = fcntl.ioctl(copy, _TUNGETDEVNETNS, 0)
    finally:
        os.close(copy)
    try:
        return _identity(namespace)
    finally:
        os.close(namespace)


def _identity(namespace: str | int) -> tuple[int, int]:
    status = os.stat(namespace)
    return status.st_dev, status.st_ino
