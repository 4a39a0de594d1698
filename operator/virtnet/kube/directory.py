"""The policies of a directory: what is in force, the last good version of each file, and what could not be read.

A file that is bad keeps its last good version, also over a restart; a file that is gone takes its policies with it. A
directory that is missing or unreadable keeps everything; one that is readable and empty means no policies at all.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from virtnet.core.model import Policy
from virtnet.errors import LedgerError, PolicyError, UsageError
from virtnet.host import records
from virtnet.host.state import StateDir
from virtnet.kube import manifests

Signature = tuple[tuple[object, ...], ...]
"""What tells one state of the directory from another: its identity and mode, and each file's identity, size, times."""


class PolicyDirectory:
    """One directory that is looked at again and again; `look` says whether what is in force changed."""

    def __init__(self, path: str, state: StateDir) -> None:
        self.path, self.state = path, state
        self.policies: tuple[Policy, ...] | None = None
        """None: nothing was ever read here, and the directory cannot be read now. That is not "no policies"."""
        self.unread: tuple[str, ...] = ()
        self._known = state.read_json(records.POLICIES) is not None
        self._good: dict[str, records.CachedPolicy] = dict(records.read_policies(state))
        self._read: Signature | None = None
        self._seen: Signature | None = None

    def refuse_if_open_to_all(self) -> None:
        """Raise UsageError when others could write policies here: they would be root's."""
        try:
            mode = os.stat(self.path).st_mode
        except OSError:
            return
        if mode & stat.S_IWOTH:
            raise UsageError(
                f"{self.path} is writable by everybody (mode {stat.S_IMODE(mode):04o}): chmod o-w {self.path}"
            )

    def first_look(self) -> None:
        """Read everything at once; what cannot be read comes from the cache."""
        self._seen = self._signature()
        self._follow(self._seen)

    @property
    def unsettled(self) -> bool:
        """Whether the last look found something new, which the next one reads if it has not changed since."""
        return self._seen != self._read

    def look(self) -> bool:
        """Read again what changed since the last look and has not changed since: a file that is being written waits.

        Returns whether the policies or the complaints are other ones now.
        """
        signature = self._signature()
        settled, self._seen = signature == self._seen, signature
        if not settled or signature == self._read:
            return False
        before = (self.policies, self.unread)
        self._follow(signature)
        return before != (self.policies, self.unread)

    def _signature(self) -> Signature:
        """Follows symlinks, so that swapping one (ConfigMaps, git-sync) shows; costs one stat a file."""
        try:
            names = manifests.paths_in(self.path)
        except PolicyError as error:
            return ((str(error),),)
        return (_place(self.path), *((name, *_identity(name)) for name in names))

    # --- reading ---

    def _follow(self, signature: Signature) -> None:
        self._read = signature
        try:
            self.refuse_if_open_to_all()
            files = manifests.files_in(self.path)
        except (PolicyError, UsageError) as error:
            if self._known:
                self._take(self._cached(), [f"{error}; the policies last read there stay in force"])
            else:
                self.unread = (f"{error}; no policies were ever read there, so nothing is changed",)
            return
        readings, complaints, good = [], [], {}
        for path in files:
            name = Path(path).name
            reading, text, errors = self._read_one(path)
            complaints += errors
            readings.append(reading)
            if text is not None:
                good[name] = records.CachedPolicy(text)
        self._good, self._known = good, True
        joined = manifests.join(readings)
        known = {id(error) for reading in readings for error in reading.errors}
        complaints += [str(error) for error in joined.errors if id(error) not in known]
        self._take(joined, complaints)
        self._remember()

    def _read_one(self, path: str) -> tuple[manifests.Reading, str | None, list[str]]:
        """A file's policies, its last good text, and complaints when the file itself was not usable."""
        reading, text = _read(path)
        if not reading.errors:
            return reading, text, []
        cached = self._good.get(Path(path).name)
        complaints = [str(error) for error in reading.errors]
        if cached is None:
            return manifests.Reading(), None, complaints
        complaints[-1] += "; its last good version stays in force"
        return manifests.read(cached.text.encode(), path), cached.text, complaints

    def _cached(self) -> manifests.Reading:
        return manifests.join(
            manifests.read(cached.text.encode(), os.path.join(self.path, name))
            for name, cached in sorted(self._good.items())
        )

    def _take(self, reading: manifests.Reading, complaints: list[str]) -> None:
        self.policies, self.unread = reading.policies, tuple(complaints)

    def _remember(self) -> None:
        try:
            records.write_policies(self.state, self._good)
        except LedgerError as error:
            self.unread = (*self.unread, f"the policies are not kept for a restart: {error}")


def _place(path: str) -> tuple[object, ...]:
    """What makes a directory another one, or one that may not be trusted: not its times, which any file in it moves."""
    try:
        found = os.stat(path)
    except OSError as error:
        return (error.errno,)
    return (found.st_dev, found.st_ino, found.st_mode)


def _identity(path: str) -> tuple[object, ...]:
    try:
        found = os.stat(path)
    except OSError as error:
        return (error.errno,)
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _read(path: str) -> tuple[manifests.Reading, str]:
    """A file's policies, and the very text they were read from."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return manifests.read_file(path), ""
        with open(path, "rb") as stream:
            data = stream.read(manifests.LARGEST + 1)
    except OSError:
        return manifests.read_file(path), ""
    return manifests.read(data, path), data.decode("utf-8-sig", "replace")


def cached_policies(cached: Mapping[str, records.CachedPolicy]) -> tuple[Policy, ...]:
    """The policies that a running agent last had in force here."""
    return manifests.join(manifests.read(one.text.encode(), name) for name, one in sorted(cached.items())).policies
