"""Asks running QEMUs by the monitor that libvirt holds; only queries, and only when an administrator asks for it.

libvirt marks a domain whose monitor it was asked to pass on as tainted (custom-monitor), until its next start.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from virtnet import errors
from virtnet.core.model import Running, Told, Unreadable
from virtnet.host import guests, libvirt, qmp

SECONDS = 10.0
"""How long one domain may take to answer all queries; each takes a few milliseconds."""


class _Passed(qmp.Monitor):
    """The monitor of a domain, one command after another through libvirt."""

    def __init__(self, domain: Any) -> None:
        super().__init__(f"the monitor of {domain.name()}")
        self._domain = domain

    def exchange(self, line: str) -> Mapping[str, Any]:
        return self.parse(libvirt.monitor_command(self._domain, line))


def tell(running: Iterable[Running], uri: str, asked: Collection[int]) -> tuple[Running, ...]:
    """The processes; those of libvirt's whose ids are in `asked` with what they told, or why they did not."""
    if not libvirt.is_installed():
        raise errors.NotSupported(guests.NOT_INSTALLED)
    thread = libvirt.Thread(uri, _nothing, _nothing, _nothing)
    thread.start()
    try:
        return tuple(_told(each, thread.call) if each.process.pid in asked else each for each in running)
    finally:
        thread.close()


def _told(running: Running, call: Callable[[Callable[[Any], Any], float], Any]) -> Running:
    """A process that is none of this libvirt's domains is as it was."""
    uuid = _uuid(running.argv)
    if not uuid:
        return running
    try:
        return replace(running, told=call(partial(_ask, uuid), SECONDS))
    except errors.Gone:
        return running
    except errors.HostError as error:
        return replace(running, told=Unreadable(str(error)))


def _ask(uuid: str, connection: Any) -> tuple[Told, ...]:
    """On libvirt's thread."""
    with libvirt.translated():
        return tuple(qmp.nics(_Passed(connection.lookupByUUIDString(uuid))))


def _uuid(argv: Iterable[str]) -> str:
    return next((value for flag, value in itertools.pairwise(argv) if flag == "-uuid"), "")


def _nothing(_: object) -> None:
    """What happens to the connection, the next call tells."""
