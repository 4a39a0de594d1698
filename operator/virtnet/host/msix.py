"""Whether a guest's driver uses MSI-X, from the device's own PCI configuration; QEMU has no query for it.

MSI-X is in use while bit 15 of its capability's control word is set (PCI Local Bus 3.0, 6.8.2.3). On a machine with PCI
Express the configuration of every device can be read in the memory window that the firmware opens (PCI Express 7.2.2,
ECAM), which QEMU shows as memory; two bytes of it are read at a time. Reading them changes nothing. Other fields are
kept away from: virtio's window into its registers (VIRTIO_PCI_CAP_PCI_CFG) has side effects when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from virtnet import errors
from virtnet.core.model import Unreadable

Query = Callable[..., Any]
"""`qmp.Monitor.query`."""

WINDOW = "/machine/q35/pcie-mmcfg-mmio[0]"
"""QEMU's object for the window of the q35 machine (hw/pci/pcie_host.c)."""

_NAMED = "/machine/peripheral/"
_VIRTIO = 0x1AF4
_VENDOR, _FIRST = 0x00, 0x34
_MSIX, _ENABLED = 0x11, 0x8000
_MOST_CAPABILITIES = 48


def look(query: Query, device: str) -> bool | Unreadable:
    """Whether MSI-X is in use, for the PCI device at this path of QEMU's object tree."""
    try:
        if query("qom-get", path=device, property="vectors") == 0:
            return False
    except errors.Refused:
        return Unreadable("it is no PCI device with vectors")
    window = _window(query)
    return window if isinstance(window, Unreadable) else _at(query, window, device)


def _window(query: Query) -> int | Unreadable:
    """Where the guest's memory has the configuration of bus 0."""
    try:
        mapped = query("qom-get", path=WINDOW, property="container")
        where = query("qom-get", path=WINDOW, property="addr")
    except errors.Refused:
        return Unreadable("only q35 machines show the configuration of their PCI devices")
    return int(where) if mapped else Unreadable("the firmware has not run yet")


def _at(query: Query, window: int, device: str) -> bool | Unreadable:
    name = device.removeprefix(_NAMED)
    if name == device:
        return Unreadable("its -device has no id")
    buses = query("query-pci")
    found = next((each for each in _devices(buses) if each.get("qdev_id") == name), None)
    if found is None:
        return Unreadable("QEMU does not list it, or the firmware has not numbered its bus yet")
    place = window + (found["bus"] << 20 | found["slot"] << 15 | found["function"] << 12)
    if _read(query, "h", place + _VENDOR) != _VIRTIO:
        return Unreadable("another device answers at its address")
    return _in_use(query, place)


def _devices(buses: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """All devices of `query-pci`; none behind a bridge whose bus has no number yet, for it would look like bus 0."""
    for bus in buses:
        yield from _below(bus["devices"])


def _below(devices: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for device in devices:
        yield device
        bridge = device.get("pci_bridge")
        if bridge and bridge["bus"]["secondary"]:
            yield from _below(bridge.get("devices", ()))


def _in_use(query: Query, place: int) -> bool | Unreadable:
    """Follow the list of capabilities; its links are dword-aligned (PCI Local Bus 3.0, 6.7)."""
    offset = _read(query, "b", place + _FIRST) & 0xFC
    for _ in range(_MOST_CAPABILITIES):
        if not offset:
            return False
        head = _read(query, "h", place + offset)
        if head & 0xFF == _MSIX:
            return bool(_read(query, "h", place + offset + 2) & _ENABLED)
        offset = head >> 8 & 0xFC
    return Unreadable("its list of capabilities has no end")


def _read(query: Query, size: str, address: int) -> int:
    """A byte or two of the guest's memory: `00000000b0008034: 0x98`. Raises `Refused` when there is no such memory."""
    said = str(query("human-monitor-command", **{"command-line": f"xp /1{size}x {address:#x}"}))
    try:
        return int(said.rpartition(":")[2].strip(), 16)
    except ValueError as error:
        raise errors.Refused(f"QEMU does not show its guest's memory: {said.strip()}") from error
