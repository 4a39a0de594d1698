"""One pass over a host: observe, plan, apply, observe again. What a host must be able to do is said here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from virtnet.core.model import Change, Entry, HostState, Identity, Interest, Link, Made, Recorded, Setting


class Host(Protocol):
    """The machine. Every change can be made twice; removing the absent is success."""

    def identity(self) -> Identity: ...

    def observe(self, interest: Interest) -> HostState:
        """Read what is there now. What cannot be read is `Unreadable`, never absent.

        Objects of links and features that did not change since the last look are the same objects (`is`).
        """

    def apply(self, change: Change) -> None:
        """Make one change, or raise a `virtnet.errors.HostError` that says why not. Never does more than was asked."""


class Ledger(Protocol):
    """What we changed and what was there before. Every method raises `LedgerError` when it cannot be written."""

    @property
    def recorded(self) -> Recorded:
        """A live read-only view."""

    def record(self, link: Link | None, entries: Iterable[Entry]) -> None:
        """Remember originals before the first change, or a new `wanted`, `policy` or `deletion` of known ones.

        An original that is already held is never overwritten. `link` is None for entries of the module.
        """

    def forget(self, settings: Iterable[Setting]) -> None:
        """These are no longer ours (restored, retained or skipped)."""

    def follow(self, link: Link) -> None:
        """A link was renamed: keep its entries under the new name."""

    def drop_link(self, ifindex: int) -> None:
        """A link is gone: so are its entries."""

    def record_made(self, made: Made) -> None:
        """We are about to make (`ifindex` 0) or have made this link. On disk, fsynced, before it returns."""

    def forget_made(self, name: str) -> None: ...
