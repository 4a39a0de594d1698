"""Takes NICs out of running guests and puts them in again, on libvirt's thread, as `core.replugs` decides.

What is to become of a NIC is on disk before its guest is asked to let go of it. After that nothing is awaited: whenever
a guest is read (it told of a removal, libvirt or this process is back, the time is up) what is there decides what is
done, so a NIC that is out is put in whoever was away when it went.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from virtnet import errors
from virtnet.core import definitions, domains, replugs
from virtnet.core.definitions import Found
from virtnet.core.model import EMPTY, Replug, ReplugGuestNic, ReplugStage
from virtnet.core.replugs import Act, Seen
from virtnet.host import libvirt, namespaces, records
from virtnet.host.state import StateDir

log = logging.getLogger(__name__)

LET_GO_SECONDS = 20.0
"""How long a guest may take before the next one's turn comes; one that takes longer gets its NIC all the same."""
PAUSES = (1.0, 60.0)
"""Seconds until a NIC that cannot be put back is tried again, doubling."""


class Replugs:
    """Those of one libvirt. Without a `state` directory that may be written nothing is begun or carried on.

    `again` has a domain, by its UUID, read soon; that is where `drive` is called.
    """

    def __init__(self, state: StateDir | None, again: Callable[[str], None]) -> None:
        self._state, self._again = state, again
        self._unreadable = "" if state is not None else "there is no state directory"
        self._lock = threading.RLock()
        self._until: dict[str, float] = {}
        self._pauses: dict[str, float] = {}
        self.known: Mapping[str, Replug] = self._read()
        """By the target of the NIC's settings. Another object whenever anything changes; read on any thread."""

    def _read(self) -> Mapping[str, Replug]:
        if self._state is None:
            return EMPTY
        try:
            found = records.read_replugs(self._state)
        except errors.LedgerError as error:
            self._unreadable = str(error)
            self._state.report(f"{error}; a guest whose NIC was being re-plugged may lack it")
            return EMPTY
        if not self.acts:
            return MappingProxyType(dict(found))
        return MappingProxyType({target: replugs.resumed(each) for target, each in found.items()})

    @property
    def acts(self) -> bool:
        return self._state is not None and not self._state.read_only

    @property
    def are_pending(self) -> bool:
        """Whether a NIC may be out, or may come out yet."""
        return self.acts and any(each.stage is not ReplugStage.PUT_BACK for each in self.known.values())

    def forgive(self) -> None:
        """Somebody asked to try again. Any thread."""
        with self._lock:
            for target, replug in self.known.items():
                self._keep(target, replugs.forgiven(replug))

    # --- on libvirt's thread ---

    def begin(self, connection: Any, change: ReplugGuestNic) -> None:
        """Write down what is to become of a NIC, and ask its guest to let go of it.

        Raises `Gone` when it is not as it was when that was decided, and `LedgerError` when it cannot be written.
        """
        with self._lock, libvirt.translated():
            domain = connection.lookupByUUIDString(change.uuid)
            run, found = _look(domain, change.mac, change.address)
            if not run or found is None:
                raise errors.Gone(f"{change.guest} does not run, or has no NIC {change.mac} any more")
            if any(domains.runs_with(found.settings, path) != value for path, value in change.seen):
                raise errors.Gone(f"the NIC {change.mac} of {change.guest} was changed by somebody else meanwhile")
            earlier = self.known.get(change.target)
            replug = _begun(change, run, found)
            self._record(change.target, replug)
            self._until[change.target] = time.monotonic() + LET_GO_SECONDS
            self._later(LET_GO_SECONDS, change.uuid)
            log.info("guest %s: asked to let go of its NIC %s (policy %s)", change.guest, change.mac, change.policy)
            if earlier is None or earlier.run != run or earlier.stage is not ReplugStage.LEAVING:
                asked_before = earlier is not None and earlier.run == run
                self._ask(domain, change.target, replug, asked_before=asked_before)

    def _ask(self, domain: Any, target: str, replug: Replug, *, asked_before: bool) -> None:
        """libvirt answers at once, and tells of the removal when the guest is done.

        Who was asked before may be letting go of it, which QEMU says with an error: the time decides.
        """
        try:
            with libvirt.translated():
                domain.detachDeviceAlias(replug.alias, libvirt.AFFECT_LIVE)
        except errors.HostError as error:
            if not domain.connect().isAlive():  # whether it was asked is not known: it is asked anew
                self._keep(target, replugs.resumed(replug))
                raise
            if not asked_before:
                self._keep(target, replugs.unanswered(replug, f"libvirt does not take the NIC out: {error}"))

    def leave(self, target: str) -> None:
        """Nobody wants it any more; leaving one that is not there is success."""
        with self._lock:
            replug = self.known.get(target)
            if replug is not None:
                self._keep(target, replugs.left(replug))

    def refused(self, uuid: str, alias: str) -> None:
        """A guest says that it keeps its device."""
        with self._lock:
            for target, replug in self.known.items():
                if (replug.uuid, replug.alias) == (uuid, alias):
                    self._keep(target, replugs.unanswered(replug, replugs.REFUSED))

    def drive(self, uuid: str, domain: Any | None) -> None:
        """Do what is to be done now for a domain; None: it is gone. What cannot be put in is tried again later."""
        if not self.acts:
            return
        with self._lock:
            for target in [target for target, each in self.known.items() if each.uuid == uuid]:
                while target in self.known and self._step(target, domain):
                    pass

    def _step(self, target: str, domain: Any | None) -> bool:
        """Whether there may be more to do."""
        if time.monotonic() >= self._until.get(target, float("inf")):
            overdue = replugs.OVERDUE.format(seconds=round(LET_GO_SECONDS))
            self._keep(target, replugs.unanswered(self.known[target], overdue))
        replug = self.known[target]
        seen = _see(domain, replug)
        match replugs.decide(replug, seen):
            case Act.PUT_IN:
                return self._put_in(target, replug, domain)
            case Act.PUT_BACK:
                return self._put_back(target, replug, domain)
            case Act.SETTLE:
                self._keep(target, replugs.settled(replug))
            case Act.FORGET:
                self._done(target, replug, seen)
        return False

    def _put_in(self, target: str, replug: Replug, domain: Any) -> bool:
        refusal = _attach(domain, replug.wanted)
        if refusal is not None:
            self._keep(target, replugs.not_put_in(replug, f"libvirt did not take it as asked: {refusal}"))
            return True
        seen = _see(domain, replug)
        left = replugs.put_in(replug, seen)
        if left is None:
            self._done(target, replug, seen)
        else:
            self._keep(target, left)
        return False

    def _put_back(self, target: str, replug: Replug, domain: Any) -> bool:
        """False: when libvirt does not take it as it was either, time has to pass."""
        refusal = _attach(domain, replug.former)
        if refusal is None:
            self._keep(target, replugs.settled(replug))
            log.warning("guest %s: NIC %s was %s", replug.guest, replug.mac, replug.message or "put in as it was")
            return False
        self._keep(target, replugs.not_put_back(replug, refusal))
        pause = self._pauses.get(target, PAUSES[0])
        self._pauses[target] = min(pause * 2, PAUSES[1])
        self._later(pause, replug.uuid)
        log.error("guest %s: its NIC %s is out and cannot be put back: %s", replug.guest, replug.mac, refusal)
        return False

    def _done(self, target: str, replug: Replug, seen: Seen) -> None:
        if seen.run == replug.run:
            log.info("guest %s: NIC %s was re-plugged (policy %s)", replug.guest, replug.mac, replug.policy)
        else:
            log.info("guest %s: ended while its NIC %s was re-plugged", replug.guest, replug.mac)
        self._keep(target, None)

    def _later(self, seconds: float, uuid: str) -> None:
        timer = threading.Timer(seconds, self._again, [uuid])
        timer.daemon = True
        timer.start()

    # --- on disk ---

    def _record(self, target: str, replug: Replug) -> None:
        """Before a guest is asked; raises `LedgerError`."""
        if self._unreadable:
            raise errors.LedgerError(self._unreadable)
        self._write({**self.known, target: replug})

    def _keep(self, target: str, replug: Replug | None) -> None:
        """After something happened. A disk that refuses this leaves the record before: it leads to the same again."""
        if self.known.get(target) == replug:
            return
        if replug is None or replug.stage is not ReplugStage.LEAVING:
            self._until.pop(target, None)
        if replug is None or not replug.trouble:
            self._pauses.pop(target, None)
        others = {other: each for other, each in self.known.items() if other != target}
        after = others if replug is None else {**others, target: replug}
        try:
            self._write(after)
        except errors.LedgerError as error:
            log.error("cannot record what became of a re-plug: %s", error)
            self.known = MappingProxyType(after)

    def _write(self, after: Mapping[str, Replug]) -> None:
        assert self._state is not None
        records.write_replugs(self._state, after)
        self.known = MappingProxyType(dict(after))


def _begun(change: ReplugGuestNic, run: str, found: Found) -> Replug:
    return Replug(
        change.guest,
        change.uuid,
        run,
        change.mac,
        change.address,
        found.alias,
        found.interface(()).decode(),
        found.interface(change.values).decode(),
        change.values,
        change.policy,
        change.version,
    )


def _attach(domain: Any, interface: str) -> str | None:
    """Why libvirt does not take it; None when it has.

    Raises `Temporary` when the connection ended, which tells nothing of the call: who is connected again looks what
    came of it.
    """
    try:
        with libvirt.translated():
            domain.attachDeviceFlags(interface, libvirt.AFFECT_LIVE)
    except errors.HostError as error:
        if not domain.connect().isAlive():
            raise errors.Temporary("the connection to libvirt ended in the middle of a re-plug") from error
        return str(error)
    return None


def _see(domain: Any | None, replug: Replug) -> Seen:
    if domain is None:
        return Seen("")
    run, found = _look(domain, replug.mac, replug.address)
    return Seen(run, found.settings if found else None)


def _look(domain: Any, mac: str, address: str) -> tuple[str, Found | None]:
    """Which run of the domain this is, "" when it does not run, and the NIC, when it is in."""
    with libvirt.translated():
        document = domain.XMLDesc(0).encode()
    number = definitions.run(document)
    run = f"{namespaces.boot_id()}/{number}" if number else ""
    try:
        return run, definitions.find(document, mac, address)
    except errors.Gone:
        return run, None
