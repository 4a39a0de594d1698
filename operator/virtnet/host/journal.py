"""An append-only file of JSON lines that a kill at any instruction leaves readable; it never waits for the disk."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

from virtnet.core.model import Identity
from virtnet.errors import LedgerError, UsageError
from virtnet.host.state import StateDir, replace_file

__all__ = ["Journal"]

VERSION = 1
_GROWTH = 10
_SMALL = 64 * 1024

encode = json.JSONEncoder(separators=(",", ":")).encode
"""A JSON value as the text of a line."""


class Journal:
    """Lines for one boot and one network namespace, told by the first line; lines of another one are not read.

    `read` comes first, then `resume` or a `rewrite` with the whole content, then `append`. Each append is one
    write(2), so a kill tears at most the last line, and `read` drops that one: whoever wrote it had not been told
    that it was written. Nothing is fsynced: what a power loss takes from this file it takes from the kernel,
    too.
    """

    def __init__(self, state: StateDir, name: str, identity: Identity) -> None:
        self._state, self._name, self._path = state, name, state.path / name
        self._header: dict[str, Any] = {"journal": VERSION, "boot_id": identity.boot_id, "netns": identity.netns}
        self._fd = -1
        self._length = self._size = self._base = self._count = 0
        self._unreadable = ""

    def read(self) -> list[Any]:
        """The lines, without the header. Raises `LedgerError` when they cannot be read, ValueError on damage."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            # Writing now would replace originals that are there and that we merely cannot see.
            self._unreadable = f"{self._path} cannot be read: {error.strerror}"
            raise LedgerError(self._unreadable) from error
        return self._lines(data)

    def _lines(self, data: bytes) -> list[Any]:
        # An empty file is what a power loss makes of one that was never synced.
        complete = data.split(b"\n")[:-1]
        if not complete:
            if data:
                raise _damage(1, "no header")
            return []
        header = _parse(1, complete[0])
        if not isinstance(header, dict) or header.keys() != self._header.keys():
            raise _damage(1, "no header")
        if header["journal"] != VERSION:
            raise _damage(1, f"version {header['journal']!r} is not {VERSION}")
        if header != self._header:
            return []
        lines = _parse_all(complete[1:])
        self._length, self._count = sum(map(len, complete)) + len(complete), len(lines)
        return lines

    @property
    def rewrite_needed(self) -> bool:
        """Whether there is no file to append to: before the first rewrite, or someone removed it."""
        return self._fd < 0 or os.fstat(self._fd).st_nlink == 0

    def is_grown(self, needed: int) -> bool:
        """Whether a rewrite with `needed` lines would make the file a tenth of its size, and the last is long ago."""
        return self._count > _GROWTH * needed and self._size > max(_SMALL, _GROWTH * self._base)

    def resume(self) -> bool:
        """Go on with the file that was read, without the torn end it may have; whether that is possible."""
        with contextlib.suppress(OSError):
            self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
            self._size = self._base = self._length
            self._cut()
        return self._fd >= 0

    def rewrite(self, lines: Iterable[str]) -> None:
        """Replace the file by these lines of JSON, all or nothing."""
        if self._unreadable or self._state.read_only:
            raise LedgerError(self._unreadable or f"{self._path} is open only for reading")
        content = list(lines)
        data = _join([encode(self._header), *content])
        self._base = max(self._size, len(data))  # stays so when this fails: the next attempt is far off
        try:
            self._state.prepare()
            fd = replace_file(self._path, data)
        except UsageError as error:
            raise LedgerError(str(error)) from error
        except OSError as error:
            raise LedgerError(f"{self._path} cannot be written: {error.strerror}") from error
        self.close()
        self._fd, self._size, self._base, self._count = fd, len(data), len(data), len(content)

    def append(self, lines: Sequence[str]) -> None:
        """Add lines of JSON in one write. On `LedgerError` none of them is in the file."""
        data = _join(lines)
        try:
            written = os.write(self._fd, data)
        except OSError as error:
            self._cut()
            raise LedgerError(f"{self._path} cannot be written: {error.strerror}") from error
        if written < len(data):
            self._cut()
            raise LedgerError(f"{self._path} cannot be written: the disk is full")
        self._size += written
        self._count += len(lines)

    def _cut(self) -> None:
        """Cut off what a failed write left; where that fails too, nothing is appended before a rewrite."""
        try:
            os.ftruncate(self._fd, self._size)
        except OSError:
            self.close()

    def close(self) -> None:
        """Let go of the file; what was appended stays."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1


def _join(lines: Sequence[str]) -> bytes:
    return "\n".join([*lines, ""]).encode()


def _parse_all(lines: Sequence[bytes]) -> list[Any]:
    """All lines; as one JSON list, which is more than twice as fast, then one by one to name the damaged one."""
    with contextlib.suppress(ValueError, RecursionError):
        parsed: list[Any] = json.loads(b"[" + b",".join(lines) + b"]")
        if len(parsed) == len(lines):
            return parsed
    return [_parse(number, line) for number, line in enumerate(lines, start=2)]


def _parse(number: int, line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _damage(number, "not JSON") from error


def _damage(number: int, why: str) -> ValueError:
    return ValueError(f"line {number}: {why}")
