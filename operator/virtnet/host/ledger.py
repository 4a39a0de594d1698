"""What we changed and what was there before, on disk before the change; it never overwrites an original it holds.

Two files. `volatile/links.journal` has one line for each write of a link, the whole record of that link, so the last
line counts and reading needs no rules. `ledger.json` has what outlives a boot (the module, guests) or must not be
forgotten (what we made), and is fsynced; links never wait for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any, TypeVar, overload

from virtnet.core.model import EMPTY, Deletion, Entry, Identity, Link, LinkRecord, Made, Recorded, Setting, Value
from virtnet.errors import LedgerError, UsageError
from virtnet.host import codec, journal
from virtnet.host.journal import Journal
from virtnet.host.state import StateDir
from virtnet.values import frozen

__all__ = ["Ledger"]

JOURNAL = "volatile/links.journal"
KEPT = "ledger.json"
_UNKNOWN = "what was there before us is not known for the settings it held: they will be left as they are"

_DELETIONS = {deletion.value: deletion for deletion in Deletion}
_VALUES = (bool, int, str, type(None))

K = TypeVar("K")


@frozen
class _MadeHere:
    identity: Identity
    made: Made


@frozen
class _Kept:
    """The content of ledger.json."""

    module: tuple[Entry, ...] = ()
    made: tuple[_MadeHere, ...] = ()
    guests: tuple[Entry, ...] = ()


class Ledger:
    """`virtnet.reconcile.Ledger` on a state directory that the caller has locked, or opened `read_only`.

    The view in memory is what the files say at any time: a method that raises `LedgerError` changed neither. A ledger
    that cannot be read is empty and refuses to write, so that originals which are merely out of sight are not lost.
    """

    def __init__(self, state: StateDir, identity: Identity) -> None:
        self._state, self._identity = state, identity
        self._links: dict[int, LinkRecord] = {}
        self._module: dict[str, Entry] = {}
        self._made: dict[str, Made] = {}
        self._guests: dict[Setting, Entry] = {}
        self._recorded = Recorded(
            MappingProxyType(self._links),
            MappingProxyType(self._module),
            MappingProxyType(self._made),
            MappingProxyType(self._guests),
        )
        self._journal = Journal(state, JOURNAL, identity)
        self._unreadable = ""
        said = len(state.problems)
        self._open_links()
        self._open_kept()
        self._problems = state.problems[said:]

    @property
    def recorded(self) -> Recorded:
        """A live read-only view. Records are replaced, never changed; walk over a copy of a map while recording."""
        return self._recorded

    @property
    def problems(self) -> tuple[str, ...]:
        """What was wrong when the ledger was opened, one sentence each; they are in `StateDir.problems`, too."""
        return self._problems

    def close(self) -> None:
        """Let go of the journal. Nothing is restored or forgotten."""
        self._journal.close()

    # --- links ---

    def record(self, link: Link | None, entries: Iterable[Entry]) -> None:
        """See `virtnet.reconcile.Ledger`. A link on a reused ifindex starts afresh: its predecessor is gone."""
        if link is None:
            self._record_durably(tuple(entries))
            return
        self.record_links([(link, tuple(entries))])

    def _record_durably(self, entries: Sequence[Entry]) -> None:
        module = _merge(self._module, (entry for entry in entries if not entry.setting.is_guests))
        guests = _merge(self._guests, (entry for entry in entries if entry.setting.is_guests), lambda setting: setting)
        if (module, guests) != (self._module, self._guests):
            self._keep(module, self._made, guests)

    def record_links(self, originals: Sequence[tuple[Link, Sequence[Entry]]]) -> None:
        """See `virtnet.reconcile.Ledger`. One write for all of them."""
        records: dict[int, LinkRecord] = {}
        for link, entries in originals:
            held = records.get(link.ifindex) or self._links.get(link.ifindex)
            known = held.entries if held is not None and _is_same_link(held, link) else EMPTY
            records[link.ifindex] = LinkRecord(link.ifindex, link.name, link.kind, link.mac, _merge(known, entries))
        self._put(list(records.values()))

    def follow(self, link: Link) -> None:
        held = self._links.get(link.ifindex)
        if held is not None:
            self._put([LinkRecord(link.ifindex, link.name, link.kind, link.mac, held.entries)])

    def drop_link(self, ifindex: int) -> None:
        held = self._links.get(ifindex)
        if held is not None:
            self._put([LinkRecord(ifindex, held.name, held.kind, held.mac, EMPTY)])

    def forget(self, settings: Iterable[Setting]) -> None:
        """See `virtnet.reconcile.Ledger`. Forgetting what is not held is success."""
        gone = set(settings)
        module = {key: entry for key, entry in self._module.items() if entry.setting not in gone}
        guests = {setting: entry for setting, entry in self._guests.items() if setting not in gone}
        if len(module) < len(self._module) or len(guests) < len(self._guests):
            self._keep(module, self._made, guests)
        touched = {setting.target for setting in gone}
        self._put([_without(held, gone) for ifindex, held in self._links.items() if ifindex in touched])

    def _put(self, records: Sequence[LinkRecord]) -> None:
        """Write these records in the place of those of the same links; one without entries is no record."""
        changed = [record for record in records if _differs(self._links.get(record.ifindex), record)]
        if not changed:
            return
        if self._journal.rewrite_needed:
            self._journal.rewrite(map(_line, self._links.values()))
        self._journal.append([_line(record) for record in changed])
        for record in changed:
            _replace(self._links, record)
        if self._journal.is_grown(len(self._links)):
            self._compact()

    def _compact(self) -> None:
        try:
            self._journal.rewrite(map(_line, self._links.values()))
        except LedgerError:
            # The long file is as good as the short one: everything is in it, and the next attempt will come.
            return

    # --- the module, guests, and what we made ---

    def record_made(self, made: Made) -> None:
        if self._made.get(made.name) != made:
            self._keep(self._module, {**self._made, made.name: made})

    def forget_made(self, name: str) -> None:
        if name in self._made:
            self._keep(self._module, {other: made for other, made in self._made.items() if other != name})

    def _keep(
        self, module: Mapping[str, Entry], made: Mapping[str, Made], guests: Mapping[Setting, Entry] | None = None
    ) -> None:
        """Write ledger.json. What was made on an earlier boot is gone from the kernel, and here with this."""
        if self._unreadable:
            raise LedgerError(self._unreadable)
        try:
            self._state.prepare()
        except UsageError as error:
            raise LedgerError(str(error)) from error
        guests = self._guests if guests is None else guests
        here = tuple(_MadeHere(self._identity, one) for one in made.values())
        kept = _Kept(tuple(module.values()), here, tuple(guests.values()))
        self._state.write_json(KEPT, codec.encode(kept), durable=True)
        self._show(kept)

    # --- opening ---

    def _open_links(self) -> None:
        lines: list[Any] = []
        try:
            lines = self._journal.read()
            for number, line in enumerate(lines, start=2):
                _replace(self._links, _read_line(number, line))
        except LedgerError as error:
            self._state.report(f"{error}; {_UNKNOWN}")
            return
        except ValueError as error:
            self._links.clear()
            self._state.set_aside(JOURNAL, str(error), _UNKNOWN)
        if not self._state.read_only:
            self._start_journal(compact=bool(lines) and len(lines) == len(self._links))

    def _start_journal(self, *, compact: bool) -> None:
        if compact and self._journal.resume():
            return
        try:
            self._journal.rewrite(map(_line, self._links.values()))
        except LedgerError as error:
            self._state.report(f"{error}; settings whose original is not recorded yet will be left alone")

    def _open_kept(self) -> None:
        try:
            raw = self._state.read_json(KEPT)
            self._show(_Kept() if raw is None else codec.decode(_Kept, _with_guests(raw)))
        except LedgerError as error:
            self._unreadable = str(error)
            self._state.report(f"{error}; {_UNKNOWN}")
        except codec.DecodeError as error:
            self._state.set_aside(KEPT, str(error), _UNKNOWN)

    def _show(self, kept: _Kept) -> None:
        """Make the view in memory what the file says."""
        guests = {entry.setting: entry for entry in kept.guests}
        self._guests.clear()
        self._guests.update(guests)
        self._module.clear()
        self._module.update((entry.setting.key, entry) for entry in kept.module)
        self._made.clear()
        self._made.update((one.made.name, one.made) for one in kept.made if one.identity == self._identity)


def _is_same_link(held: LinkRecord, link: Link) -> bool:
    """The kernel reuses an ifindex only for another link; a rename or a new address alone makes no other link."""
    return held.kind == link.kind and (held.name == link.name or (bool(link.mac) and held.mac == link.mac))


def _with_guests(raw: Any) -> Any:
    """A file from before there were guests lacks them."""
    return {"guests": [], **raw} if isinstance(raw, dict) else raw


def _key(setting: Setting) -> str:
    return setting.key


@overload
def _merge(known: Mapping[str, Entry], entries: Iterable[Entry]) -> dict[str, Entry]: ...
@overload
def _merge(known: Mapping[K, Entry], entries: Iterable[Entry], key: Callable[[Setting], K]) -> dict[K, Entry]: ...
def _merge(known: Mapping[Any, Entry], entries: Iterable[Entry], key: Callable[[Setting], Any] = _key) -> Any:
    """The entries by `key`, each with the original that is held already."""
    merged = dict(known)
    for entry in entries:
        held = merged.get(key(entry.setting))
        if held is not None:
            entry = replace(entry, original=held.original)  # noqa: PLW2901
        merged[key(entry.setting)] = entry
    return merged


def _without(held: LinkRecord, gone: set[Setting]) -> LinkRecord:
    entries = {key: entry for key, entry in held.entries.items() if entry.setting not in gone}
    return LinkRecord(held.ifindex, held.name, held.kind, held.mac, entries)


def _differs(held: LinkRecord | None, record: LinkRecord) -> bool:
    return bool(record.entries) if held is None else held != record


def _replace(links: dict[int, LinkRecord], record: LinkRecord) -> None:
    if record.entries:
        links[record.ifindex] = record
    else:
        links.pop(record.ifindex, None)


# --- the lines of the journal: [ifindex, name, kind, mac, [[key, original, wanted, policy, deletion, earlier], ...]] --


def _line(record: LinkRecord) -> str:
    entries = ",".join(
        [
            _entry(entry.setting.key, entry.original, entry.wanted, entry.policy, entry.deletion, entry.earlier)
            for entry in record.entries.values()
        ]
    )
    name, kind, mac = map(journal.encode, (record.name, record.kind, record.mac))
    return f"[{record.ifindex},{name},{kind},{mac},[{entries}]]"


@lru_cache(maxsize=512, typed=True)
def _entry(*fields: Value | None) -> str:
    """A thousand links have the same few. `typed`, because True and 1 are equal and not the same in JSON."""
    return journal.encode(fields if fields[-1] is not None else fields[:-1])


def _read_line(number: int, line: Any) -> LinkRecord:
    try:
        ifindex, name, kind, mac, entries = line
        if type(ifindex) is not int or type(name) is not str or type(mac) is not str:
            raise ValueError("not a link")
        read = {sys.intern(entry[0]): _read_entry(ifindex, entry) for entry in entries}
        return LinkRecord(ifindex, name, sys.intern(kind), mac, read)
    except (TypeError, ValueError, LookupError) as error:
        raise ValueError(f"line {number}: not a record of a link") from error


def _read_entry(ifindex: int, fields: Sequence[Any]) -> Entry:
    key, original, wanted, policy, deletion, *more = fields
    if type(original) not in _VALUES or type(wanted) not in _VALUES or (more and type(more[0]) not in _VALUES):
        raise ValueError("not a value")
    # A thousand links have the same few keys and policies. intern raises TypeError on what is not text.
    return Entry(Setting(ifindex, sys.intern(key)), original, wanted, sys.intern(policy), _DELETIONS[deletion], *more)
