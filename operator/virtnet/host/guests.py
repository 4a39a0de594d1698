"""The domains of libvirt as they are now, kept up to date by its events, and the settings of their NICs written.

Whoever looks never waits for libvirt: he gets what is known, or why nothing is. A definition is changed NIC by NIC:
libvirt has no compare-and-set, so what was decided on is compared again immediately before, and looked at after.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from virtnet import errors
from virtnet.core import definitions
from virtnet.core.definitions import Found
from virtnet.core.model import Guest, GuestChange, LeaveReplug, Replug, SetGuestNic, Unavailable, Unreadable, Withheld
from virtnet.host import libvirt
from virtnet.host.replugs import Replugs
from virtnet.host.state import StateDir

CHANGE_SECONDS = 4.0
"""How long a change may take; an engine that is stopped meanwhile ends within 5."""
FIRST_SECONDS = 10.0
"""How long a command that is run once waits for the first look."""
STALE_SECONDS = 240.0
"""A change of a definition's devices has no event (`virsh attach-device --config`): look again when it is this long."""

NOT_INSTALLED = (
    "libvirt is here, and its Python module is not: pip install 'virtio-network-operator[libvirt]' (it is built from "
    "source, with libvirt-dev, pkg-config and gcc); of the images, that of agent-libvirt has it"
)
NOT_HERE = f"no libvirt listens here, neither at {' nor at '.join(libvirt.SOCKETS)}"

Known = Mapping[str, Guest] | Unreadable | Unavailable | Withheld | None


class Guests:
    """The domains of the libvirt at `uri`. `told` is called, on another thread, when there is something new to see."""

    def __init__(self, uri: str, *, patience: float = FIRST_SECONDS, state: StateDir | None = None) -> None:
        """`patience`: seconds that the first look waits for an answer; 0 for who is told when it is there.

        `state` keeps what is on its way out of a guest; one that is open only for reading is shown and left alone.
        """
        self.uri, self.patience = uri, patience
        self.told: Callable[[], None] = _nobody
        self._thread = libvirt.Thread(uri, self._opened, self._lost, self._hangs)
        self._guests: dict[str, Guest] | None = None
        self._why_not: errors.HostError | None = None
        self._slow = False
        self._answered = threading.Event()
        self._lock = threading.Lock()
        self._looked = 0.0
        self._started = False
        self._replugs = Replugs(state, self._read_soon)
        self._shown = self._replugs.known

    @property
    def _hanging(self) -> str:
        return f"libvirt at {self.uri} does not answer"

    def close(self) -> None:
        self._thread.close()

    @property
    def replugs(self) -> Mapping[str, Replug]:
        """The re-plugs on their way, and those that went back, by the target of the NIC's settings."""
        return self._replugs.known

    def recover(self) -> None:
        """See at once to the NICs that an earlier process took out of guests, whoever asks for guests now or not."""
        if self._replugs.are_pending:
            self._start()

    def forgive(self) -> None:
        """Somebody asked to try again what went back."""
        self._replugs.forgive()

    def _start(self) -> bool:
        """Whether there is anything to talk to libvirt with."""
        if not self._started and libvirt.is_installed():
            self._started = True
            self._thread.start()
        return self._started

    def look(self) -> Known:
        """What is known; None before anything is."""
        if not self._start():
            return Unavailable(NOT_INSTALLED)
        came = self._answered.wait(self.patience) if self.patience else True
        with self._lock:
            if self._why_not:
                return self._silence(self._why_not)
            if self._slow or not came:
                return Unreadable(self._hanging)
            if self._guests is None:
                return None
            known = MappingProxyType(dict(self._guests))
        if time.monotonic() - self._looked > STALE_SECONDS:
            self._looked = time.monotonic()
            self._refresh(self._read_all)
        return known

    def _silence(self, why_not: errors.HostError) -> Known:
        """A system's libvirt that nobody has seen here since we began is simply not there."""
        if self.uri == libvirt.SYSTEM and self._guests is None and libvirt.default_uri() is None:
            return libvirt.withheld() or Unavailable(NOT_HERE)
        return (Withheld if isinstance(why_not, errors.NotPermitted) else Unreadable)(str(why_not))

    def apply(self, change: GuestChange) -> None:
        """Make a change of a guest; raises a `HostError`, `Gone` when it is no longer what was decided on.

        Who is known to hang is not asked: with many definitions to write, one pass would wait for each of them.
        """
        if self._slow or self._why_not:
            raise errors.Temporary(str(self._why_not or self._hanging))

        def work(connection: Any) -> None:
            try:
                self._change(connection, change)
            finally:
                self._read(connection, _uuid(change))

        self._thread.call(work, CHANGE_SECONDS)

    # --- on libvirt's thread ---

    def _change(self, connection: Any, change: GuestChange) -> None:
        if isinstance(change, SetGuestNic):
            write(connection, change)
        elif isinstance(change, LeaveReplug):
            self._replugs.leave(change.target)
        else:
            self._replugs.begin(connection, change)

    def _opened(self, connection: Any) -> None:
        for event in (libvirt.LIFECYCLE, libvirt.DEVICE_ADDED, libvirt.DEVICE_REMOVED):
            connection.domainEventRegisterAny(None, event, self._heard, None)
        connection.domainEventRegisterAny(None, libvirt.DEVICE_REMOVAL_FAILED, self._heard_refusal, None)
        self._read_all(connection)

    def _heard(self, _: Any, domain: Any, *about: object) -> None:
        """On the thread of events, which must make no call: libvirt would wait for itself."""
        self._read_soon(domain.UUIDString())

    def _heard_refusal(self, _: Any, domain: Any, alias: str, *about: object) -> None:
        """As `_heard`: a guest keeps a device that it was asked to let go of."""
        uuid = domain.UUIDString()

        def work(connection: Any) -> None:
            self._replugs.refused(uuid, alias)
            self._read(connection, uuid)

        self._refresh(work)

    def _read_soon(self, uuid: str) -> None:
        self._refresh(lambda connection: self._read(connection, uuid))

    def _refresh(self, read: Callable[[Any], None]) -> None:
        """Read again when there is time for it; what cannot be read is said."""

        def work(connection: Any) -> None:
            try:
                with libvirt.translated():
                    read(connection)
            except errors.HostError as error:
                self._lost(type(error)(f"libvirt at {self.uri} cannot be read: {error}"))

        self._thread.submit(work)

    def _lost(self, why: errors.HostError) -> None:
        with self._lock:
            changed, self._why_not = str(why) != str(self._why_not), why
        self._answered.set()
        if changed:
            self.told()

    def _hangs(self, slow: bool) -> None:
        with self._lock:
            self._slow = slow
        self._answered.set()
        self.told()

    def _read_all(self, connection: Any) -> None:
        networks: dict[str, str] = {}
        found = {}
        for domain in connection.listAllDomains():
            self._thread.breathe()
            self._replugs.drive(domain.UUIDString(), domain)
            guest = _guest(connection, domain, networks)
            if guest is not None:
                found[guest.uuid] = guest
        for gone in {replug.uuid for replug in self.replugs.values()} - found.keys():
            self._replugs.drive(gone, None)
        self._looked = time.monotonic()
        self._show(found)

    def _read(self, connection: Any, uuid: str) -> None:
        try:
            with libvirt.translated():
                domain = connection.lookupByUUIDString(uuid)
            self._replugs.drive(uuid, domain)
            guest = _guest(connection, domain, {})
        except errors.Gone:
            self._replugs.drive(uuid, None)
            guest = None
        others = {known: each for known, each in (self._guests or {}).items() if known != uuid}
        self._show({**others, uuid: guest} if guest else others)

    def _show(self, found: Mapping[str, Guest]) -> None:
        """The same objects for what is the same."""
        before = self._guests or {}
        kept = {uuid: old if (old := before.get(uuid)) == guest else guest for uuid, guest in found.items()}
        with self._lock:
            changed = bool(self._why_not) or kept != self._guests or self.replugs is not self._shown
            self._guests, self._why_not, self._shown = kept, None, self.replugs
        self._answered.set()
        if changed:
            self.told()


def _uuid(change: GuestChange) -> str:
    return change.target.partition("/")[0] if isinstance(change, LeaveReplug) else change.uuid


def _nobody() -> None:
    """Who runs once asks by himself."""


def _guest(connection: Any, domain: Any, networks: dict[str, str]) -> Guest | None:
    """One domain; None when it went meanwhile."""
    try:
        with libvirt.translated():
            definition = domain.XMLDesc(libvirt.XML_INACTIVE).encode() if domain.isPersistent() else None
            live = domain.XMLDesc(0).encode() if domain.isActive() else None
    except errors.Gone:
        return None
    if definition is None and live is None:
        return None
    try:
        for name in definitions.networks(definition or live or b"") - networks.keys():
            networks[name] = _bridge(connection, name)
        known = {name: bridge for name, bridge in networks.items() if bridge}
        return definitions.read(domain.UUIDString(), definition, live, known)
    except errors.UsageError as error:
        raise errors.Refused(f"the definition of {domain.name()} cannot be read: {error}") from error


def _bridge(connection: Any, network: str) -> str:
    """The bridge of a libvirt network, "" when there is none or it is not known."""
    try:
        with libvirt.translated():
            return str(connection.networkLookupByName(network).bridgeName())
    except errors.HostError:
        return ""


# --- writing -----------------------------------------------------------------------------------------------


def write(connection: Any, change: SetGuestNic) -> None:
    """Write the settings of one NIC, together, or each alone when libvirt refuses them together."""
    try:
        _write(connection, change)
    except (errors.Refused, errors.NotSupported):
        if len(change.values) == 1:
            raise
        _write_each(connection, change)


def _write_each(connection: Any, change: SetGuestNic) -> None:
    """One bad setting never blocks the others; the last refusal is raised."""
    refused: errors.HostError | None = None
    for value, seen in zip(change.values, change.seen, strict=True):
        one = SetGuestNic(change.guest, change.uuid, change.mac, change.address, (value,), (seen,))
        try:
            _write(connection, one)
        except (errors.Refused, errors.NotSupported) as error:
            refused = error
    if refused is not None:
        raise refused


def _write(connection: Any, change: SetGuestNic) -> None:
    with libvirt.translated():
        domain = connection.lookupByUUIDString(change.uuid)
        found = _find(domain.XMLDesc(libvirt.XML_INACTIVE), change)
        if _is_made(found, change):
            return
        _check_seen(found, change)
        if found.alone:
            domain.updateDeviceFlags(found.interface(change.values).decode(), libvirt.AFFECT_CONFIG)
        else:
            _define(connection, domain, change)
        after = _find(domain.XMLDesc(libvirt.XML_INACTIVE), change)
    _check_made(found, after, change)


def _define(connection: Any, domain: Any, change: SetGuestNic) -> None:
    """The whole definition, where libvirt cannot tell the NIC by its address: with its secrets, or they were lost."""
    flags = libvirt.XML_INACTIVE | libvirt.XML_SECURE
    document = domain.XMLDesc(flags)
    found = _find(document, change)
    _check_seen(found, change)
    wanted = found.written(change.values).decode()
    if domain.XMLDesc(flags) != document:
        raise errors.Gone(f"the definition of {change.guest} was changed by somebody else at the same moment")
    connection.defineXML(wanted)


def _find(document: str, change: SetGuestNic) -> Found:
    return definitions.find(document.encode(), change.mac, change.address)


def _is_made(found: Found, change: SetGuestNic) -> bool:
    return all(found.settings.get(path) == value for path, value in change.values)


def _check_seen(found: Found, change: SetGuestNic) -> None:
    """A concurrent edit wins: what is there now is planned anew."""
    if any(found.settings.get(path) != value for path, value in change.seen):
        raise errors.Gone(f"the definition of {change.guest} was changed by somebody else meanwhile")


def _check_made(before: Found, after: Found, change: SetGuestNic) -> None:
    """libvirt takes what it does not know, and drops it without a word."""
    dropped = [path for path, value in change.values if after.settings.get(path) == before.settings.get(path) != value]
    if dropped:
        raise errors.NotSupported(f"this libvirt does not know {', '.join(dropped)}")
