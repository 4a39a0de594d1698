"""Makes persistent taps and re-opens those that nobody holds; it never opens a tap that a process holds.

The rules of drivers/net/tun.c behind every line here: any opener's TUNSETIFF replaces a tap's NO_PI and VNET_HDR, a
second opener of a multi-queue tap adds a queue (the flows steered to it are lost) for as long as it is open, a second
opener of a single-queue tap gets EBUSY, and a name that does not exist is made.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from virtnet.core.model import CreateTap, Link
from virtnet.errors import Gone, HostError, InUse, NotPermitted, NotSupported, Refused
from virtnet.host import processes
from virtnet.host.namespaces import Namespace

TUN = "/dev/net/tun"

# include/uapi/linux/if_tun.h
TUNSETIFF = 0x400454CA
TUNSETPERSIST = 0x400454CB
TUNSETOWNER = 0x400454CC
TUNSETGROUP = 0x400454CE
TUNGETIFF = 0x800454D2
IFF_TAP = 0x0002
IFF_MULTI_QUEUE = 0x0100
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_TUN_EXCL = 0x8000

# include/uapi/linux/sockios.h, if.h and ethtool.h
SIOCGIFNAME = 0x8910
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
SIOCGIFINDEX = 0x8933
SIOCETHTOOL = 0x8946
IFF_UP = 0x1
ETHTOOL_GDRVINFO = 0x3
_DRVINFO = struct.Struct("=I32s32s32s32s32s12sIIIII")

_IFREQ_FLAGS = struct.Struct("=16sH22x")
_IFREQ_INDEX = struct.Struct("=16si20x")
_UNSET = -1


def create(namespace: Namespace, change: CreateTap) -> None:
    """Make a persistent tap without packet information, and set it up.

    A tap of that name that is there is left alone, whatever its flags: success. Something else of that name is
    `Refused`. The tap outlives us only from the last call on, so a kill in the middle leaves nothing behind.
    """
    flags = IFF_TAP | IFF_NO_PI | IFF_TUN_EXCL
    flags |= IFF_VNET_HDR if change.vnet_hdr else 0
    flags |= IFF_MULTI_QUEUE if change.multi_queue else 0
    with _opened(namespace) as (tap, kernel):
        try:
            _attach(tap, change.name, flags)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise _refusal(error, change.name) from error
            if not _is_tap(kernel, change.name):
                raise Refused(f"{change.name} is there and is not a tap") from error
            return
        with _translated(change.name):
            _set_ids(tap, change.owner, change.group)
            _set_up(kernel, change.name)
            fcntl.ioctl(tap, TUNSETPERSIST, 1)


def set_vnet_hdr(namespace: Namespace, link: Link, on: bool) -> None:
    """Re-open a tap that nobody holds with or without IFF_VNET_HDR, its other flags kept.

    `link` must be a fresh look: its queues, its carrier and /proc all have to say that nobody holds it, else `InUse`.
    NAPI flags are not kept: no later look can tell them, and the next opener sets its own.
    """

    def confirm(tap: int, _kernel: socket.socket) -> None:
        if bool(_flags(tap) & IFF_VNET_HDR) != on:
            raise Refused(f"the kernel kept vnet_hdr of {link.name} {'off' if on else 'on'}")

    _reopen(namespace, link, on, confirm)


def set_owner(namespace: Namespace, link: Link, owner: int | None, group: int | None) -> None:
    """Change the owner and group (numeric ids) of a tap that nobody holds; None leaves that one.

    Clearing one (-1) is `NotSupported`: TUNSETOWNER and TUNSETGROUP refuse an invalid id.
    """
    if _UNSET in {owner, group}:
        raise NotSupported(f"the kernel cannot clear the owner or group of a tap: {link.name} has to be made anew")
    tun = link.tun
    _reopen(namespace, link, tun is not None and tun.vnet_hdr, lambda tap, _: _set_ids(tap, owner, group))


def _reopen(namespace: Namespace, link: Link, vnet_hdr: bool, then: Callable[[int, socket.socket], None]) -> None:
    tun = link.tun
    if tun is None or not tun.tap:
        raise Refused(f"{link.name} is not a tap")
    _refuse_when_held(namespace, link)
    flags = IFF_TAP | (0 if tun.pi else IFF_NO_PI) | (IFF_VNET_HDR if vnet_hdr else 0)
    flags |= IFF_MULTI_QUEUE if tun.multi_queue else 0
    with _opened(namespace) as (tap, kernel), _translated(link.name):
        _check_index(kernel, link)
        _attach(tap, link.name, flags)
        # Renamed in between: what was just made is not persistent and goes with the descriptor.
        _check_index(kernel, link)
        then(tap, kernel)


def _refuse_when_held(namespace: Namespace, link: Link) -> None:
    holders = processes.look(namespace.path).taps.get(link.name, ())
    if holders:
        raise InUse(f"{link.name} is held by {', '.join(str(holder) for holder in holders)}")
    if link.held:
        raise InUse(f"{link.name} is held by a process that cannot be seen from here")


@contextmanager
def _opened(namespace: Namespace) -> Iterator[tuple[int, socket.socket]]:
    """A fresh tun descriptor and an ioctl socket of the namespace; both stay in it after the thread is back."""
    with namespace.entered():
        tap = _open_tun()
        try:
            kernel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        except OSError:
            os.close(tap)
            raise
    try:
        with kernel:
            yield tap, kernel
    finally:
        os.close(tap)


def _open_tun() -> int:
    try:
        return os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError) as error:
        text = f"{TUN} cannot be opened: {error.strerror} (in a container: the host's {TUN} must be mounted)"
        raise NotPermitted(text) from error
    except OSError as error:
        raise NotSupported(f"{TUN} cannot be opened: {error.strerror}") from error


def _attach(tap: int, name: str, flags: int) -> None:
    fcntl.ioctl(tap, TUNSETIFF, _IFREQ_FLAGS.pack(name.encode(), flags))


def _flags(tap: int) -> int:
    reply = fcntl.ioctl(tap, TUNGETIFF, bytes(_IFREQ_FLAGS.size))
    return int(_IFREQ_FLAGS.unpack(reply)[1])


def _set_ids(tap: int, owner: int | None, group: int | None) -> None:
    for request, number in ((TUNSETOWNER, owner), (TUNSETGROUP, group)):
        if number is not None:
            fcntl.ioctl(tap, request, _id(number))


def _id(number: int) -> int:
    """A user or group id as the C int that fcntl passes on; the largest means "none" to the kernel."""
    if not 0 <= number < 0xFFFFFFFF:
        raise Refused(f"{number} is no user or group id")
    return ctypes.c_int(number).value


def _set_up(kernel: socket.socket, name: str) -> None:
    reply = fcntl.ioctl(kernel, SIOCGIFFLAGS, _IFREQ_FLAGS.pack(name.encode(), 0))
    flags = _IFREQ_FLAGS.unpack(reply)[1]
    fcntl.ioctl(kernel, SIOCSIFFLAGS, _IFREQ_FLAGS.pack(name.encode(), flags | IFF_UP))


def _check_index(kernel: socket.socket, link: Link) -> None:
    try:
        reply = fcntl.ioctl(kernel, SIOCGIFINDEX, _IFREQ_INDEX.pack(link.name.encode(), 0))
    except OSError as error:
        raise Gone(f"{link.name} is gone or has another name") from error
    if _IFREQ_INDEX.unpack(reply)[1] != link.ifindex:
        raise Gone(f"{link.name} is another link now")


def _is_tap(kernel: socket.socket, name: str) -> bool:
    """Whether the link is a tap: tun_get_drvinfo() says driver "tun" and bus "tap"; a tun device says "tun" twice."""
    answer = array.array("B", _DRVINFO.pack(ETHTOOL_GDRVINFO, b"", b"", b"", b"", b"", b"", 0, 0, 0, 0, 0))
    address, _ = answer.buffer_info()
    try:
        fcntl.ioctl(kernel, SIOCETHTOOL, struct.pack("16sP16x", name.encode(), address))
    except OSError:
        return False
    _, driver, _, _, bus, *_ = _DRVINFO.unpack(answer.tobytes())
    return bool(driver.rstrip(b"\0") == b"tun" and bus.rstrip(b"\0") == b"tap")


@contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _refusal(error, name) from error


def _refusal(error: OSError, name: str) -> HostError:
    """tun_set_iff()'s errors: EPERM without rights, EBUSY when held or there, EINVAL for other flags than it has."""
    if error.errno in {errno.EPERM, errno.EACCES}:
        return NotPermitted(f"{name}: CAP_NET_ADMIN is needed in its network namespace")
    if error.errno == errno.EBUSY:
        return InUse(f"{name} is held by a process")
    if error.errno in {errno.ENODEV, errno.ENXIO, errno.EBADFD}:
        return Gone(f"{name} went away")
    return Refused(f"{name}: the kernel says {error.strerror}")
