"""What a good agent never does to a host; it only writes down, it never prevents."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.flow import rules
from tests.flow.machine import Device, Machine
from virtnet.core import features, modules
from virtnet.core.model import (
    Change,
    CreateBridge,
    CreateTap,
    DeleteLink,
    LoadModule,
    Process,
    Ref,
    RemoveModuleFile,
    SetBridgeOptions,
    SetChannels,
    SetFeatures,
    SetMaster,
    SetMtu,
    SetRings,
    SetRxFrames,
    SetTapOwner,
    SetTxQueueLength,
    SetVnetHdr,
    UnloadModule,
    WriteModuleFile,
)

if TYPE_CHECKING:
    from virtnet.reconcile import Ledger


@dataclass(frozen=True, slots=True)
class Seen:
    """What the agent could know of a link since its last look; what happened after that is no fault of its own."""

    carries: str
    holders: tuple[Process, ...]
    ports: frozenset[int]


class Judge:
    """Looks at every change before it is made, and keeps the `violations`, one sentence each.

    `allowed` are globs of the link names that policies name, or have named (None: all). With a `ledger`, every setting
    that a change touches must have its original recorded before; links that the host made itself are exempt.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.allowed: Collection[str] | None = None
        self.ledger: Ledger | None = None
        self.violations: list[str] = []
        self.made: set[int] = set()
        self.enslaved: set[tuple[int, int]] = set()
        self._seen: dict[int, Seen] = {}
        self._users_seen: tuple[Process, ...] | None = None

    def note_look(self) -> None:
        self._seen = {ifindex: self._see(device) for ifindex, device in self.machine.devices.items()}
        self._users_seen = self.machine.module.users

    def consider(self, change: Change) -> None:
        self.violations += [f"{change}: {why}" for why in self._faults(change)]

    def note_done(self, change: Change) -> None:
        """Remember what the agent made and enslaved: those it may remove again."""
        if isinstance(change, SetMaster) and change.master is not None:
            port, master = self._find(change.link), self._find(change.master)
            if port and master:
                self.enslaved.add((port.link.ifindex, master.link.ifindex))

    def note_made(self, device: Device) -> None:
        self.made.add(device.link.ifindex)

    def _see(self, device: Device) -> Seen:
        ports = frozenset(port.link.ifindex for port in self.machine.ports(device))
        return Seen(device.carries, device.holders, ports)

    def _known(self, device: Device) -> Seen:
        """What the agent has seen and what is still so; a link that came after its last look is as it is."""
        now = self._see(device)
        then = self._seen.get(device.link.ifindex, now)
        holders = tuple(process for process in now.holders if process in then.holders)
        return Seen(now.carries and then.carries, holders, now.ports & then.ports)

    def _find(self, ref: Ref) -> Device | None:
        return self.machine.devices.get(ref.ifindex) if ref.ifindex else self.machine.find(ref.name)

    def _faults(self, change: Change) -> Iterator[str]:
        yield from self._not_allowed(change)
        yield from self._unrecorded(change)
        if isinstance(change, SetMaster):
            yield from self._cutting_off(change)
        if isinstance(change, DeleteLink):
            yield from self._deleting(change)
        if isinstance(change, SetVnetHdr | SetTapOwner):
            yield from self._opening(change)
        if isinstance(change, UnloadModule) and self._module_in_use():
            yield "unloads a module that is in use"
        if isinstance(change, WriteModuleFile | RemoveModuleFile):
            yield from self._foreign_file(change)

    def _not_allowed(self, change: Change) -> Iterator[str]:
        for name in self._names(change):
            if self.allowed is not None and not any(fnmatch.fnmatchcase(name, glob) for glob in self.allowed):
                yield f"no policy names {name}"

    def _names(self, change: Change) -> list[str]:
        if isinstance(change, CreateBridge | CreateTap):
            return [change.name]
        refs = [getattr(change, field, None) for field in ("link", "master")]
        return [device.link.name for ref in refs if ref is not None and (device := self._find(ref)) is not None]

    def _cutting_off(self, change: SetMaster) -> Iterator[str]:
        port, master = self._find(change.link), self._find(change.master) if change.master else None
        if port is None or master is None or port.link.master == master.link.ifindex:
            return
        carried = self._known(port).carries
        if carried:
            yield f"enslaves {port.link.name}, which carries {carried}"

    def _deleting(self, change: DeleteLink) -> Iterator[str]:
        device = self._find(change.link)
        if device is None:
            return
        name, ifindex = device.link.name, device.link.ifindex
        if ifindex not in self.made:
            yield f"deletes {name}, which it did not make"
        known = self._known(device)
        if known.holders:
            yield f"deletes {name} under {', '.join(map(str, known.holders))}"
        if device.link.bridge is not None:
            foreign = [port for port in known.ports if (port, ifindex) not in self.enslaved]
            yield from (f"deletes {name} under foreign port {self._name(port)}" for port in sorted(foreign))

    def _name(self, ifindex: int) -> str:
        return self.machine.devices[ifindex].link.name

    def _opening(self, change: SetVnetHdr | SetTapOwner) -> Iterator[str]:
        device = self._find(change.link)
        if device is not None and (holders := self._known(device).holders):
            yield f"opens {device.link.name}, held by {', '.join(map(str, holders))}"

    def _module_in_use(self) -> bool:
        users = self.machine.module.users
        return any(self._users_seen is None or user in self._users_seen for user in users)

    def _foreign_file(self, change: WriteModuleFile | RemoveModuleFile) -> Iterator[str]:
        content = self.machine.module.files.get(change.path)
        if content is not None and not modules.is_ours(content):
            yield f"touches {change.path}, which does not carry our mark"
        if isinstance(change, WriteModuleFile) and not modules.is_ours(change.content):
            yield f"writes {change.path} without our mark"

    # --- recorded before it is touched ---------------------------------------------------------------------

    def _unrecorded(self, change: Change) -> Iterator[str]:
        if self.ledger is None:
            return
        recorded = self.ledger.recorded
        if isinstance(change, CreateBridge | CreateTap):
            if change.name not in recorded.made and self.machine.find(change.name) is None:
                yield f"makes {change.name} before that is recorded"
        elif isinstance(change, LoadModule | UnloadModule | WriteModuleFile | RemoveModuleFile):
            yield from _unrecorded_module(change, recorded.module)
        elif (device := self._find(change.link)) is not None:
            yield from self._unrecorded_link(device, touched(change, device))
            if isinstance(change, SetMaster) and change.master is not None:
                yield from self._unrecorded_below(device)

    def _unrecorded_below(self, device: Device) -> Iterator[str]:
        """`dev_disable_lro()` goes down to the slaves of a bond and the real device of a vlan."""
        for lower in self.machine.below(device):
            yield from self._unrecorded_link(lower, ["feature:rx-lro"] if lower.features.wanted & rules.LRO else [])
            yield from self._unrecorded_below(lower)

    def _unrecorded_link(self, device: Device, keys: list[str]) -> Iterator[str]:
        if self.ledger is None or device.link.ifindex in self.made:
            return
        record = self.ledger.recorded.links.get(device.link.ifindex)
        missing = [key for key in keys if record is None or key not in record.entries]
        yield from (f"touches {key} of {device.link.name}, whose original is not recorded" for key in missing)


def _unrecorded_module(change: Change, recorded: Collection[str]) -> Iterator[str]:
    if isinstance(change, WriteModuleFile | RemoveModuleFile):
        if "persist" not in recorded:
            yield "touches a file of the module before that is recorded"
    elif not any(key == "state" or key.startswith("parameters.") for key in recorded):
        yield "touches the module, whose state is not recorded"


def touched(change: Change, device: Device) -> list[str]:
    """The `Setting.key`s of a link that a change sets; enslaving also clears rx-lro where it is wanted."""
    if isinstance(change, SetFeatures):
        mask = change.mask & device.features.changeable
        return [f"feature:{name}" for name in features.names_of(mask, rules.FEATURE_NAMES)]
    if isinstance(change, SetMaster):
        clears = change.master is not None and device.features.wanted & rules.LRO
        return ["master", *(["feature:rx-lro"] if clears else [])]
    if isinstance(change, SetBridgeOptions):
        return [f"bridge.{name}" for name, _ in change.options]
    for kind, prefix, fields in _FIELDS:
        if isinstance(change, kind):
            return [prefix + field for field in fields if getattr(change, field, None) is not None]
    return [key for kind, key in _SINGLE if isinstance(change, kind)]


_FIELDS: tuple[tuple[type, str, tuple[str, ...]], ...] = (
    (SetRings, "rings.", ("rx", "tx")),
    (SetChannels, "channels.", ("combined", "rx", "tx")),
    (SetTapOwner, "", ("owner", "group")),
)
_SINGLE: tuple[tuple[type, str], ...] = (
    (SetMtu, "mtu"),
    (SetTxQueueLength, "txQueueLength"),
    (SetRxFrames, "rxFrames"),
    (SetVnetHdr, "vnetHdr"),
)
