"""A ledger in memory that outlives the killed agents of a test; it writes nothing to a disk."""

from __future__ import annotations

import types
from collections.abc import Iterable, Sequence
from dataclasses import replace

from tests.flow.boundaries import Boundaries
from virtnet import errors
from virtnet.core.model import Entry, Link, LinkRecord, Made, Recorded, Setting


class MemoryLedger:
    """`virtnet.reconcile.Ledger`: record before act, an original that is held is never overwritten.

    Every write crosses two boundaries, before and after it is kept: an agent can be killed at either. A fault comes
    before anything is kept, as a disk that is full.
    """

    def __init__(self, boundaries: Boundaries | None = None) -> None:
        self.boundaries = boundaries or Boundaries()
        self._links: dict[int, LinkRecord] = {}
        self._module: dict[str, Entry] = {}
        self._made: dict[str, Made] = {}
        self._guests: dict[Setting, Entry] = {}
        kept = (self._links, self._module, self._made, self._guests)
        self._recorded = Recorded(*map(types.MappingProxyType, kept))
        self._faults: int | None = 0

    @property
    def recorded(self) -> Recorded:
        return self._recorded

    def fail(self, times: int | None = None) -> None:
        """The next writes raise `LedgerError`: this many, or all until `heal()`."""
        self._faults = times

    def heal(self) -> None:
        self._faults = 0

    def record(self, link: Link | None, entries: Iterable[Entry]) -> None:
        with self.boundaries.around(self._write):
            for entry in entries:
                self._record_one(link, entry)

    def record_links(self, originals: Sequence[tuple[Link, Sequence[Entry]]]) -> None:
        with self.boundaries.around(self._write):
            for link, entries in originals:
                for entry in entries:
                    self._record_one(link, entry)

    def forget(self, settings: Iterable[Setting]) -> None:
        with self.boundaries.around(self._write):
            for setting in settings:
                self._forget_one(setting)

    def follow(self, link: Link) -> None:
        with self.boundaries.around(self._write):
            if link.ifindex in self._links:
                self._links[link.ifindex] = replace(self._links[link.ifindex], name=link.name)

    def drop_link(self, ifindex: int) -> None:
        with self.boundaries.around(self._write):
            self._links.pop(ifindex, None)

    def record_made(self, made: Made) -> None:
        with self.boundaries.around(self._write):
            self._made[made.name] = made

    def forget_made(self, name: str) -> None:
        with self.boundaries.around(self._write):
            self._made.pop(name, None)

    def __str__(self) -> str:
        """One line per entry and made link, in order: equal ledgers have equal texts."""
        lines = [
            f"{record.name} {_entry_text(entry)}"
            for record in self._links.values()
            for entry in record.entries.values()
        ]
        durable = (*self._module.values(), *self._guests.values())
        lines += [f"{entry.setting.target} {_entry_text(entry)}" for entry in durable]
        lines += [f"{made.name} made by {made.policy}" for made in self._made.values()]
        return "\n".join(sorted(lines))

    def _write(self) -> None:
        if self._faults == 0:
            return
        if self._faults is not None:
            self._faults -= 1
        raise errors.LedgerError("cannot record the original: No space left on device")

    def _record_one(self, link: Link | None, entry: Entry) -> None:
        if entry.setting.is_guests:
            self._guests[entry.setting] = _kept(self._guests.get(entry.setting), entry)
            return
        if link is None:
            self._module[entry.setting.key] = _kept(self._module.get(entry.setting.key), entry)
            return
        assert entry.setting.target == link.ifindex, f"{entry.setting} is not of {link.name} ({link.ifindex})"
        record = self._links.get(link.ifindex) or LinkRecord(link.ifindex, link.name, link.kind, link.mac, {})
        assert record.kind == link.kind, f"{link.name}: the entries of a gone {record.kind or 'NIC'} were not dropped"
        known = record.entries.get(entry.setting.key)
        entries = {**record.entries, entry.setting.key: _kept(known, entry)}
        self._links[link.ifindex] = replace(record, entries=types.MappingProxyType(entries))

    def _forget_one(self, setting: Setting) -> None:
        if setting.is_guests:
            self._guests.pop(setting, None)
            return
        if isinstance(setting.target, str):
            self._module.pop(setting.key, None)
            return
        record = self._links.get(setting.target)
        if record is None:
            return
        entries = {key: entry for key, entry in record.entries.items() if key != setting.key}
        if entries:
            self._links[setting.target] = replace(record, entries=types.MappingProxyType(entries))
        else:
            del self._links[setting.target]


def _kept(known: Entry | None, entry: Entry) -> Entry:
    return entry if known is None else replace(entry, original=known.original)


def _entry_text(entry: Entry) -> str:
    return f"{entry.setting.key} {entry.original} -> {entry.wanted} by {entry.policy} {entry.deletion}"
