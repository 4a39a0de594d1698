"""The state directory: who holds it, and whole JSON files in it; it never leaves a half-written file behind."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from virtnet.errors import LedgerError, StateBusy, UsageError

__all__ = ["DEFAULT", "StateDir", "distrust", "replace_file"]

DEFAULT = Path("/var/lib/virtnet")
VOLATILE = "volatile"
LOCK = "lock"

_LOOKS = 5
"""How often `lock` tries. There is no asking for a flock(2) without taking it, so a `holder` in another process has
it, shared, for some microseconds; that must not look like a second agent."""
_BETWEEN_LOOKS = 0.02
_SHORT_WAIT = 2.0


class StateDir:
    """One directory of files that only root (or the user it runs as) can write.

    `path` is /var/lib/virtnet, or below it for a named network namespace. `read_only`: nothing is made, written or
    moved, for commands that only look, also beside a running agent. Errors: `UsageError` when somebody else could
    write there, `StateBusy` when another process holds it, `LedgerError` for everything the disk refuses.

    Names are relative, `holds.json` or `volatile/refusals.json`. What is in `volatile` need not survive a power loss.
    """

    def __init__(self, path: str | os.PathLike[str] = DEFAULT, *, read_only: bool = False) -> None:
        self.path = Path(path)
        self.read_only = read_only
        self._problems: list[str] = []
        self._unsynced: set[str] = set()

    @property
    def volatile(self) -> Path:
        return self.path / VOLATILE

    @property
    def problems(self) -> tuple[str, ...]:
        """A sentence for each file that was found damaged or could not be used, oldest first."""
        return tuple(self._problems)

    def prepare(self) -> None:
        """Make the directory (0700) where it is absent, and refuse one that somebody else could write."""
        with _translated(self.path, "be prepared"):
            if not self.read_only:
                _make(self.path)
            self._check()
            if not self.read_only:
                _make(self.volatile)

    def _check(self) -> None:
        link, there = self.path.lstat(), self.path.stat()
        if not stat.S_ISDIR(there.st_mode):
            raise LedgerError(f"{self.path} is not a directory")
        why = distrust(link, there, os.geteuid())
        if why:
            raise UsageError(f"{self.path} {why}")

    # --- who holds it ---

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory. The kernel lets go when the process dies, whatever its end; `StateBusy` names the pid."""
        self._refuse_when_read_only(LOCK)
        self.prepare()
        with _translated(self.path / LOCK, "be locked"):
            fd, writable = self._open_lock()
        try:
            self._take(fd)
            if writable:
                _write_pid(fd, f"{os.getpid()}\n")
            try:
                yield
            finally:
                if writable:
                    _write_pid(fd, "")
        finally:
            os.close(fd)

    def _open_lock(self) -> tuple[int, bool]:
        """The lock file and whether the pid can be written to it; a read-only disk is locked all the same."""
        flags = os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | flags, 0o600), True
        except OSError as error:
            if error.errno != errno.EROFS or not (self.path / LOCK).exists():
                raise
            return os.open(self.path / LOCK, os.O_RDONLY | flags), False

    def _take(self, fd: int) -> None:
        for _ in range(_LOOKS):
            with contextlib.suppress(BlockingIOError):
                return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            time.sleep(_BETWEEN_LOOKS)
        pid = _read_pid(fd)
        who = f"the virtnet process {pid}" if pid else "another virtnet process"
        raise StateBusy(f"{self.path} is held by {who}; stop it first or name another --state-dir", pid=pid)

    def holder(self) -> int | None:
        """The pid of the process that holds the directory, None when nobody does, 0 when its pid is not known."""
        with _translated(self.path / LOCK, "be read"):
            try:
                fd = os.open(self.path / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                return None
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return None
            except BlockingIOError:
                return _read_pid(fd)
            finally:
                os.close(fd)

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Hold other short writers off while one file is read, changed and written; it does not need the lock.

        For files that a second command changes while an agent holds the directory. Waits at most two seconds.
        """
        self._refuse_when_read_only("")
        self.prepare()
        with _translated(self.path, "be locked"):
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._wait_for(fd)
            yield
        finally:
            os.close(fd)

    def _wait_for(self, fd: int) -> None:
        until = time.monotonic() + _SHORT_WAIT
        while True:
            with contextlib.suppress(BlockingIOError):
                return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.monotonic() >= until:
                raise StateBusy(f"{self.path} is being changed by another virtnet process; try again")
            time.sleep(_BETWEEN_LOOKS)

    # --- whole files ---

    def read_json(self, name: str) -> Any | None:
        """The value in a file, or None when it is absent. A damaged one is set aside, said in `problems`, and None."""
        with _translated(self.path / name, "be read"):
            try:
                data = (self.path / name).read_bytes()
            except FileNotFoundError:
                return None
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            self.set_aside(name, f"not JSON: {error}")
            return None

    def stamp(self, name: str) -> tuple[int, ...] | None:
        """Which file, how long, and when it was written: another stamp, another content. None where it is absent."""
        try:
            found = os.stat(f"{self.path}/{name}")
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def write_json(self, name: str, value: Any, *, durable: bool) -> bool:
        """Replace a file as a whole, when its content differs; whether it was written.

        `durable`: on the disk, directory included, before this returns. A reader sees the old or the new content.
        """
        self._refuse_when_read_only(name)
        data = json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"
        path = self.path / name
        if name not in self._unsynced and _content(path) == data:
            return False
        with _translated(path, "be written"):
            os.close(replace_file(path, data, durable=durable))
            if durable:
                self._unsynced.add(name)
                _sync_directory(path.parent)
        self._unsynced.discard(name)
        return True

    def remove(self, name: str, *, durable: bool) -> None:
        """Remove a file; removing one that is absent is success."""
        self._refuse_when_read_only(name)
        path = self.path / name
        with _translated(path, "be removed"):
            try:
                path.unlink()
            except FileNotFoundError:
                return
            if durable:
                _sync_directory(path.parent)

    def report(self, sentence: str) -> None:
        """Say something in `problems`."""
        self._problems.append(sentence)

    def set_aside(self, name: str, why: str, consequence: str = "") -> None:
        """Keep a damaged file as NAME.damaged for whoever looks into it, and say so in `problems`."""
        path = self.path / name
        said = f"{path} is damaged ({why}) and is not used"
        if not self.read_only:
            try:
                path.replace(f"{path}.damaged")
                said = f"{path} was damaged ({why}); it is kept as {path.name}.damaged and not used"
            except OSError as error:
                said += f"; it could not be moved aside: {error.strerror}"
        self.report(f"{said}; {consequence}" if consequence else said)

    def _refuse_when_read_only(self, name: str) -> None:
        if self.read_only:
            raise LedgerError(f"{self.path / name} is open only for reading")


def replace_file(path: Path, data: bytes, *, durable: bool = False) -> int:
    """Put a new file with this content in the place of `path`; its descriptor, open for appending, is the caller's.

    The temporary name is always the same, so that kills do not fill the directory; one writer at a time is the
    caller's duty. Raises OSError.
    """
    new = path.with_name(f".{path.name}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(new, flags, 0o600)
    try:
        _write_all(fd, data)
        if durable:
            os.fsync(fd)
        new.replace(path)
    except BaseException:
        os.close(fd)
        with contextlib.suppress(OSError):
            new.unlink()
        raise
    return fd


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _make(path: Path) -> None:
    """Make a directory and the parents it lacks, all 0700: mkdir(1) -p would leave the parents to the umask."""
    missing = [path, *path.parents]
    for parent in reversed([entry for entry in missing if not os.path.lexists(entry)]):
        parent.mkdir(mode=0o700, exist_ok=True)


def distrust(link: os.stat_result, there: os.stat_result, user: int) -> str:
    """Why `user` must not keep state in a directory, as the rest of a sentence; empty when nothing speaks against it.

    `link` is the directory itself or the symbolic link that leads to it (lstat), `there` what it leads to (stat).
    """
    if link.st_uid not in (0, user):
        what = "is a symbolic link of" if stat.S_ISLNK(link.st_mode) else "belongs to"
        return f"{what} user {link.st_uid}; use a directory of your own"
    if there.st_uid not in (0, user):
        return f"leads to a directory of user {there.st_uid}; use a directory of your own"
    if there.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"is writable by others (mode {stat.S_IMODE(there.st_mode):04o}); make it 0700"
    return ""


def _write_pid(fd: int, text: str) -> None:
    """Best effort: on a full disk the directory is held all the same, by a process whose pid is not known."""
    with contextlib.suppress(OSError):
        os.ftruncate(fd, 0)
        os.pwrite(fd, text.encode(), 0)


def _read_pid(fd: int) -> int:
    """The pid in the lock file, 0 when there is none or its process is gone (the file of a killed holder)."""
    text = os.pread(fd, 32, 0).strip()
    pid = int(text) if text.isdigit() else 0
    return pid if pid and os.path.exists(f"/proc/{pid}") else 0


@contextlib.contextmanager
def _translated(path: Path, verb: str) -> Iterator[None]:
    """The one edge where what the disk refuses becomes a `LedgerError`."""
    try:
        yield
    except OSError as error:
        raise LedgerError(f"{path} cannot {verb}: {error.strerror or error}") from error
