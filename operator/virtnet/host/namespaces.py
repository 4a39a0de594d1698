"""Network namespaces: finding one, entering it for a moment, telling them apart. It never makes or removes one."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from virtnet.errors import Gone, HostError, NotPermitted, UsageError

NAMED = "/run/netns"
"""Where `ip netns add` binds its namespaces (ip-netns(8))."""

CLONE_NEWNET = 0x40000000  # sched.h
SO_NETNS_COOKIE = 71  # asm-generic/socket.h, Linux 5.14
SOL_NETLINK = 270

_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """One network namespace: `path` is a file that stands for it, None the one that this process is in.

    The namespace is the one that `path` led to when this object was made. When the file is removed, or leads
    to another namespace later, `check()` and `entered()` raise Gone: what was observed there is no longer it.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self._inode = None if path is None else _inode_of(path)
        self._identity = ""
        self._lock = threading.Lock()

    @classmethod
    def named(cls, name: str, *, directory: str = NAMED) -> Namespace:
        """The namespace that `ip netns` calls `name`; UsageError with the known names when there is none."""
        path = Path(directory, name)
        if not name or "/" in name or name in {".", ".."} or not path.exists():
            raise UsageError(f"there is no network namespace {name!r} here; {_known(directory)}")
        return cls(str(path))

    def __repr__(self) -> str:
        return f"Namespace({self.path!r})"

    def __str__(self) -> str:
        return "the current network namespace" if self.path is None else f"network namespace {self.path}"

    @property
    def identity(self) -> str:
        """Unique among the namespaces of one boot: the kernel's cookie, before Linux 5.14 the device and inode."""
        with self._lock:
            if not self._identity:
                self._identity = self._read_identity()
            return self._identity

    def check(self) -> None:
        """Raise Gone when the path no longer leads to this namespace. Costs one stat."""
        if self.path is not None and _inode_of(self.path) != self._inode:
            raise Gone(f"{self} is another one now")

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread is in the namespace while the block runs. Never await inside: the whole thread has moved.

        Meant for opening sockets and /dev/net/tun, which then stay in the namespace for ever. Costs some 10 us.
        """
        if self.path is None:
            yield
            return
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._enter(self.path)
            try:
                yield
            finally:
                _setns(home, "the namespace that this thread came from")
        finally:
            os.close(home)

    def _enter(self, path: str) -> None:
        try:
            there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _gone(path, error) from error
        try:
            found = os.fstat(there)
            if (found.st_dev, found.st_ino) != self._inode:
                raise Gone(f"{self} is another one now")
            _setns(there, str(self))
        finally:
            os.close(there)

    def _read_identity(self) -> str:
        with self.entered(), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            try:
                (cookie,) = struct.unpack("=Q", probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))
                return f"cookie:{cookie}"
            except OSError:  # ENOPROTOOPT: a kernel before 5.14
                device, inode = _inode_of("/proc/thread-self/ns/net")
                return f"inode:{device}:{inode}"


def boot_id(proc: str = "/proc") -> str:
    """The id of this boot of the machine (random(4))."""
    return Path(proc, "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def in_initial_user_namespace(proc: str = "/proc") -> bool:
    """Whether root here is the machine's root. user_namespaces(7): the initial map is the identity over all ids."""
    return Path(proc, "self/uid_map").read_text(encoding="ascii").split() == ["0", "0", "4294967295"]


def _inode_of(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise _gone(path, error) from error
    return found.st_dev, found.st_ino


def _gone(path: str, error: OSError) -> HostError:
    if error.errno in {errno.EACCES, errno.EPERM}:
        return NotPermitted(f"cannot open network namespace {path}: {error.strerror}")
    return Gone(f"network namespace {path} is gone: {error.strerror}")


def _setns(descriptor: int, where: str) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) == 0:
        return
    number = ctypes.get_errno()
    if number == errno.EPERM:
        raise NotPermitted(f"cannot enter {where}: CAP_SYS_ADMIN is needed")
    raise Gone(f"cannot enter {where}: {os.strerror(number)}")


def _known(directory: str) -> str:
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        names = []
    return "known: " + ", ".join(names) if names else "`ip netns` knows none"
