"""Asks a QEMU by QMP what its virtio NICs negotiated; it only queries, and only where an administrator says so.

By QEMU's own socket, or by the monitor that libvirt holds (host/monitors.py): a socket of libvirt's serves libvirt
alone, and a second client would wait for ever.
"""

from __future__ import annotations

import json
import re
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from virtnet import errors
from virtnet.core.model import Running, Told
from virtnet.host import msix
from virtnet.values import frozen

TIMEOUT = 3.0
"""Seconds until a QEMU that does not answer is given up; it answers in milliseconds, also with the guest stopped."""

LONGEST_ANSWER = 1 << 20
MOST_QUEUES = 4
"""How many virtqueues' ring sizes are asked for: those of a pair, and of the next."""

QUERIES = frozenset(
    {
        *("qmp_capabilities", "query-name", "query-pci", "qom-get"),
        *("x-query-virtio", "x-query-virtio-status", "x-query-virtio-queue-status"),
    }
)
"""All that is ever sent, beside LOOKS: none of them changes anything in a QEMU or its guest."""

LOOKS = re.compile(r"xp /1[bh]x 0x[0-9a-f]{1,16}")
"""The only words for the human monitor: one byte or two of the guest's memory, as it is addressed by hardware."""

_PEER = struct.Struct("=iII")
_RENAMED = {"IOMMU_PLATFORM": "ACCESS_PLATFORM"}


@frozen
class Answer:
    """What one QEMU told: `pid` is that of the process behind the socket, `name` its guest's."""

    pid: int
    name: str
    nics: tuple[Told, ...]


def tell(running: Iterable[Running], sockets: Iterable[str]) -> tuple[Running, ...]:
    """The processes, those behind the sockets with what they told. Raises what `ask` raises."""
    answers = [ask(path) for path in sockets]
    return tuple(_with_answer(each, answers) for each in running)


def _with_answer(each: Running, answers: Iterable[Answer]) -> Running:
    for answer in answers:
        if answer.pid == each.process.pid or (answer.name and answer.name == each.process.guest):
            return replace(each, told=answer.nics)
    return each


def ask(path: str) -> Answer:
    """Everything about the virtio NICs of the QEMU behind a socket. Raises `Temporary`, `NotPermitted`, `Refused`."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.settimeout(TIMEOUT)
            connection.connect(path)
            peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
            client = _Client(path, connection)
            client.greet()
            name = client.query("query-name").get("name", "")
            return Answer(_PEER.unpack(peer)[0], str(name), tuple(nics(client)))
    except TimeoutError as error:
        text = f"{path} did not answer within {TIMEOUT:g} seconds; a QMP socket serves one client at a time"
        raise errors.Temporary(text) from error
    except PermissionError as error:
        raise errors.NotPermitted(f"{path} may not be opened: {error.strerror}") from error
    except OSError as error:
        raise errors.Refused(f"{path} cannot be asked: {error.strerror}") from error


class Monitor(ABC):
    """A QMP conversation: one JSON object a line (docs/interop/qmp-spec in QEMU). `name` is what users know it by."""

    def __init__(self, name: str) -> None:
        self.name = name

    def query(self, command: str, **arguments: object) -> Any:
        """The answer to one of QUERIES. Raises `Refused` when QEMU does, `LookupError` for anything else."""
        line = str(arguments.get("command-line", ""))
        if command not in QUERIES and not (command == "human-monitor-command" and LOOKS.fullmatch(line)):
            raise LookupError(f"{command} is none of the queries that may be sent")
        found = self.exchange(json.dumps({"execute": command, "arguments": arguments}))
        if "error" in found:
            raise errors.Refused(f"{self.name}: {command}: {_said(found['error'])}")
        return found.get("return")

    @abstractmethod
    def exchange(self, line: str) -> Mapping[str, Any]:
        """QEMU's answer to one command, which has `return` or `error`."""

    def parse(self, line: bytes | str) -> Mapping[str, Any]:
        try:
            found = json.loads(line)
        except ValueError as error:
            raise errors.Refused(f"{self.name} does not speak QMP, or its answer is too long") from error
        return found if isinstance(found, dict) else {}


class _Client(Monitor):
    """The conversation at a socket."""

    def __init__(self, path: str, connection: socket.socket) -> None:
        super().__init__(path)
        self.connection = connection
        self.stream = connection.makefile("rb")

    def greet(self) -> None:
        if "QMP" not in self._read():
            raise errors.Refused(f"{self.name} is no QMP socket")
        self.query("qmp_capabilities")

    def exchange(self, line: str) -> Mapping[str, Any]:
        """Events in between are left out."""
        self.connection.sendall(line.encode() + b"\n")
        while True:
            found = self._read()
            if "return" in found or "error" in found:
                return found

    def _read(self) -> Mapping[str, Any]:
        return self.parse(self.stream.readline(LONGEST_ANSWER))


def _said(error: object) -> str:
    return str(error.get("desc", "no reason")) if isinstance(error, dict) else str(error)


def nics(monitor: Monitor) -> Iterator[Told]:
    """What QEMU tells of each of its virtio NICs."""
    for device in monitor.query("x-query-virtio"):
        if device.get("name") == "virtio-net":
            yield _nic(monitor, device["path"])


def _nic(monitor: Monitor, path: str) -> Told:
    """`path` is that of the virtio device; its parent is the PCI device, which has the properties that users write."""
    status = monitor.query("x-query-virtio-status", path=path)
    parent = path.removesuffix("/virtio-backend")
    queues = range(min(int(status.get("num-vqs", 0)), MOST_QUEUES))
    asked = (monitor.query("x-query-virtio-queue-status", path=path, queue=queue) for queue in queues)
    return Told(
        str(monitor.query("qom-get", path=parent, property="mac")).lower(),
        str(monitor.query("qom-get", path=parent, property="netdev")),
        started=status.get("vhost-started") is True,
        driver_ok=any("DRIVER_OK" in word for word in _words(status.get("status"), "statuses")),
        offered=_features(status.get("host-features")),
        accepted=_features(status.get("guest-features")),
        rings=tuple(int(each.get("vring-num", 0)) for each in asked),
        msix=msix.look(monitor.query, parent),
    )


def _features(found: object) -> frozenset[str]:
    """`VIRTIO_NET_F_CSUM: Device handles packets...` is CSUM."""
    return frozenset(_short(text) for part in ("transports", "dev-features") for text in _words(found, part))


def _short(text: str) -> str:
    name = text.partition(":")[0].strip().removeprefix("VIRTIO_")
    for prefix in ("NET_F_", "RING_F_", "F_"):
        name = name.removeprefix(prefix)
    return _RENAMED.get(name, name)


def _words(found: object, part: str) -> list[str]:
    words = found.get(part) if isinstance(found, dict) else None
    return [str(word) for word in words] if isinstance(words, list) else []
