"""A host on plain values, as strict as Linux: it refuses what the kernel refuses and fails on what it does not know.

    host = FakeHost('''
        br0  bridge
        eth0 mlx5_core master=br0
        tap0 tap master=br0 vnet_hdr held=qemu:100:vm1
        vhost_net Absent
    ''')

It never touches the machine. `str(host)` is the whole host as text (text.py has the words), `host.foreign` acts behind
the agent's back, and `host.violations` lists what a good agent must never do and this one did.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from tests.flow import rules, text
from tests.flow.boundaries import Boundaries, Killed
from tests.flow.foreign import Foreign
from tests.flow.judge import Judge
from tests.flow.ledger import MemoryLedger
from tests.flow.machine import Device
from virtnet import errors
from virtnet.core import features, modules, replugs
from virtnet.core.model import (
    Change,
    CreateBridge,
    CreateTap,
    DeleteLink,
    Features,
    Guest,
    GuestNic,
    HostState,
    Identity,
    Interest,
    LeaveReplug,
    Link,
    LoadModule,
    Process,
    Ref,
    RemoveModuleFile,
    Replug,
    ReplugGuestNic,
    SetBridgeOptions,
    SetChannels,
    SetFeatures,
    SetGuestNic,
    SetMaster,
    SetMtu,
    SetRings,
    SetRxFrames,
    SetTapOwner,
    SetTxQueueLength,
    SetVnetHdr,
    Tun,
    Unavailable,
    UnloadModule,
    Unreadable,
    Value,
    Withheld,
    WriteModuleFile,
)

__all__ = ["FakeHost", "Killed", "MemoryLedger", "Process"]

Which = type | Callable[[Change], bool]
T = TypeVar("T", Link, Features)

BRIDGE_OPTIONS: Mapping[str, tuple[str, int]] = {
    "stp": ("stp", 1),
    "forwardDelaySeconds": ("forward_delay", 100),
    "ageingTimeSeconds": ("ageing_time", 100),
    "multicastSnooping": ("multicast_snooping", 1),
    "vlanFiltering": ("vlan_filtering", 1),
    "groupForwardMask": ("group_forward_mask", 1),
}
"""API name -> field of BridgeOptions, and its units in one of the API's."""


@dataclass(slots=True, eq=False)
class Fault:
    """Changes of this kind fail; `left` counts down (None: always), `late` means after the change took effect."""

    which: Which
    error: Exception
    left: int | None
    late: bool

    def strikes(self, change: Change) -> bool:
        hit = isinstance(change, self.which) if isinstance(self.which, type) else self.which(change)
        if not hit or self.left == 0:
            return False
        if self.left is not None:
            self.left -= 1
        return True


class FakeHost:
    """`virtnet.reconcile.Host` on a `Machine`.

    `twice`: make every change a second time at once, and fail unless the host then looks the same.
    `applied`: the changes that took effect. `ledger` (settable) lets the judge see what was recorded before.
    """

    def __init__(self, lines: str = "", *, boot_id: str = "boot-1", netns: str = "netns-1") -> None:
        self.machine = text.parse(lines)
        self.foreign = Foreign(self.machine)
        self.judge = Judge(self.machine)
        self.boundaries = Boundaries()
        self.applied: list[Change] = []
        self.twice = False
        self._identity = Identity(boot_id, netns)
        self._faults: list[Fault] = []
        self._look_faults: list[Exception] = []
        self.guests: dict[str, Guest] | Unreadable | Unavailable | Withheld | None = None
        """libvirt's domains by UUID, as a test puts them there."""
        self.replugs: dict[str, Replug] = {}
        """The guests that were asked to let go of a NIC, and what became of it, by its target."""
        self._links: dict[int, Link] = {}
        self._features: dict[int, Features | Unreadable] = {}

    def __str__(self) -> str:
        return text.describe(self.machine)

    @property
    def violations(self) -> list[str]:
        return self.judge.violations

    def line(self, name: str) -> str:
        """One link as it stands in `str(host)`."""
        return text.describe_link(self.machine, self.machine.named(name))

    def ref(self, name: str) -> Ref:
        return Ref(name, self.machine.named(name).link.ifindex)

    def names(self) -> list[str]:
        return sorted(device.link.name for device in self.machine.devices.values())

    def words(self, name: str) -> set[str]:
        """The words of one link's line."""
        return set(self.line(name).split())

    def ask(self, name: str, *settings: str) -> SetFeatures:
        """The change that asks a link for "+tso", "-rx-gro" and the like."""
        mask = value = 0
        for setting in settings:
            members = features.members(setting[1:], setting[0] == "+", rules.FEATURE_NAMES)
            assert members is not None, f"no feature {setting}"
            mask |= members
            value |= members if setting[0] == "+" else 0
        return SetFeatures(self.ref(name), mask, value)

    # --- what a test can arrange ---------------------------------------------------------------------------

    def fail(self, which: Which, error: Exception, *, times: int | None = None, late: bool = False) -> None:
        """Changes of a type, or those a predicate picks, raise `error`: this many times, or until `heal()`.

        `late`: the change takes effect and only its answer is lost.
        """
        self._faults.append(Fault(which, error, times, late))

    def fail_look(self, error: Exception, *, times: int = 1) -> None:
        """The next looks raise `error`."""
        self._look_faults += [error] * times

    def heal(self) -> None:
        """Forget all faults, and everything that was to happen at a boundary."""
        self._faults.clear()
        self._look_faults.clear()
        self.boundaries.calm()

    def kill_after(self, count: int) -> None:
        """Raise `Killed` after `count` more boundaries: even counts before a change took effect, odd ones after it.

        A `MemoryLedger(host.boundaries)` has its boundaries in the same row.
        """
        self.boundaries.kill_after(count)

    # --- the protocol --------------------------------------------------------------------------------------

    def identity(self) -> Identity:
        return self._identity

    def observe(self, interest: Interest) -> HostState:
        if self._look_faults:
            raise self._look_faults.pop(0)
        self.judge.note_look()
        devices = self.machine.devices
        self._links = {i: _same(self._links.get(i), device.link) for i, device in devices.items()}
        self._features = {i: self._seen_features(i, device) for i, device in devices.items()}
        return HostState(
            links=types.MappingProxyType(self._links),
            features=types.MappingProxyType(self._features),
            feature_names=rules.FEATURE_NAMES,
            drivers=self._map(
                interest.drivers or interest.untold_drivers,
                lambda device: None if _told_by_kind(device) and not interest.drivers else device.profile.driver,
            ),
            rings=self._map(interest.rings, lambda device: _readable(device, "rings", device.rings)),
            channels=self._map(interest.channels, lambda device: _readable(device, "channels", device.channels)),
            rx_frames=self._map(interest.rx_frames, lambda device: _readable(device, "rx_frames", device.frames)),
            carries=self._map(interest.addresses, lambda device: device.carries or None),
            holders=self._map(interest.users, lambda device: device.holders or None),
            module=self.machine.module.state(with_users=interest.users) if interest.module else None,
            guests=self._guests_now() if interest.guests or self.replugs else None,
            replugs=types.MappingProxyType(dict(self.replugs)),
        )

    def _guests_now(self) -> Mapping[str, Guest] | Unreadable | Unavailable | Withheld | None:
        return types.MappingProxyType(dict(self.guests)) if isinstance(self.guests, dict) else self.guests

    def apply(self, change: Change) -> None:
        act = self._ACTS.get(type(change))
        assert act is not None, f"the fake host does not know {change!r}"
        self.boundaries.cross()
        self._strike(change, late=False)
        self.judge.consider(change)
        act(self, change)
        if self.twice:
            self._repeat(act, change)
        self.judge.note_done(change)
        self.applied.append(change)
        self._strike(change, late=True)
        self.boundaries.cross()

    def apply_all(self, changes: Sequence[Change]) -> list[errors.HostError | None]:
        return [self._attempt(change) for change in changes]

    def _attempt(self, change: Change) -> errors.HostError | None:
        try:
            self.apply(change)
        except errors.HostError as error:
            return error
        return None

    def _repeat(self, act: Callable[[FakeHost, Any], None], change: Change) -> None:
        once = str(self)
        act(self, change)
        assert str(self) == once, f"{change} made twice is not {change} made once:\n{once}\n---\n{self}"

    def _strike(self, change: Change, *, late: bool) -> None:
        for fault in self._faults:
            if fault.late == late and fault.strikes(change):
                raise fault.error

    def _seen_features(self, ifindex: int, device: Device) -> Features | Unreadable:
        now = _readable(device, "features", device.features)
        before = self._features.get(ifindex)
        return before if before == now and before is not None else now

    def _map(self, asked: bool, value: Callable[[Device], Any]) -> Mapping[int, Any]:
        if not asked:
            return types.MappingProxyType({})
        found = {ifindex: value(device) for ifindex, device in self.machine.devices.items()}
        return types.MappingProxyType({ifindex: each for ifindex, each in found.items() if each is not None})

    # --- one function per change ---------------------------------------------------------------------------

    def _find(self, ref: Ref) -> Device:
        device = self.machine.devices.get(ref.ifindex) if ref.ifindex else self.machine.find(ref.name)
        if device is None:
            raise errors.Gone(f"{ref.name}: No such device")
        return device

    def _set_features(self, change: SetFeatures) -> None:
        self.machine.set_features(self._find(change.link), change.mask, change.value)

    def _set_rings(self, change: SetRings) -> None:
        self.machine.set_rings(self._find(change.link), change.rx, change.tx)

    def _set_channels(self, change: SetChannels) -> None:
        device = self._find(change.link)
        self.machine.set_channels(device, combined=change.combined, rx=change.rx, tx=change.tx)

    def _set_rx_frames(self, change: SetRxFrames) -> None:
        self.machine.set_rx_frames(self._find(change.link), change.frames)

    def _set_mtu(self, change: SetMtu) -> None:
        self.machine.set_mtu(self._find(change.link), change.mtu)

    def _set_tx_queue_length(self, change: SetTxQueueLength) -> None:
        self.machine.set_tx_queue_length(self._find(change.link), change.length)

    def _set_bridge_options(self, change: SetBridgeOptions) -> None:
        """One message for each, stp off first and on last; what was refused is told when all were tried."""
        device = self._find(change.link)
        refused: list[errors.HostError] = []
        for name, value in sorted(change.options, key=_stp_apart):
            try:
                self.machine.set_bridge(device, dict([_kernel_option(name, value)]))
            except errors.HostError as error:
                refused.append(error)
        if refused:
            raise refused[0]

    def _set_master(self, change: SetMaster) -> None:
        device = self._find(change.link)
        if change.master is None:
            self.machine.release(device)
        else:
            self.machine.enslave(device, self._find(change.master))

    def _create_bridge(self, change: CreateBridge) -> None:
        there = self.machine.find(change.name)
        if there is None:
            self.judge.note_made(self.machine.add(change.name, "bridge"))
        elif there.link.bridge is None:
            raise errors.Refused(f"{change.name}: File exists, and is no bridge")

    def _create_tap(self, change: CreateTap) -> None:
        there = self.machine.find(change.name)
        if there is None:
            tun = Tun(True, change.owner, change.group, False, change.vnet_hdr, True, change.multi_queue)
            self.judge.note_made(self.machine.add_tap(change.name, tun))
        elif not there.link.is_tap:
            raise errors.Refused(f"{change.name}: Invalid argument, it is there and is no tap")

    def _delete_link(self, change: DeleteLink) -> None:
        try:
            device = self._find(change.link)
        except errors.Gone:
            return
        self.machine.delete(device)

    def _set_vnet_hdr(self, change: SetVnetHdr) -> None:
        self.machine.reopen(self._find(change.link), vnet_hdr=change.vnet_hdr)

    def _set_tap_owner(self, change: SetTapOwner) -> None:
        ids = {"owner": change.owner, "group": change.group}
        asked = {name: None if number == -1 else number for name, number in ids.items() if number is not None}
        self.machine.reopen(self._find(change.link), **asked)

    def _load_module(self, change: LoadModule) -> None:
        self._check_module(change.name)
        self.machine.module.load({name: str(value) for name, value in change.parameters})

    def _unload_module(self, change: UnloadModule) -> None:
        self._check_module(change.name)
        self.machine.module.unload()

    def _check_module(self, name: str) -> None:
        assert name == self.machine.module.name, f"the fake host does not know the module {name}"

    def _write_module_file(self, change: WriteModuleFile) -> None:
        self._check_ours(change.path)
        self.machine.module.write(change.path, change.content)

    def _remove_module_file(self, change: RemoveModuleFile) -> None:
        self._check_ours(change.path)
        self.machine.module.remove(change.path)

    def _check_ours(self, path: str) -> None:
        content = self.machine.module.files.get(path)
        if content is not None and not modules.is_ours(content):
            raise errors.Refused(f"{path} is not ours: its first line is not {modules.MARK!r}")

    def _set_guest_nic(self, change: SetGuestNic) -> None:
        """Into the definition alone; a guest that runs goes on as it was started."""
        nic = self._guest_nic(change.uuid, change.mac, change.address)
        if nic.configured is None:
            raise errors.Gone(f"{change.guest} is not defined")
        wanted = {path: value for path, value in change.values if value is not None}
        left = {path for path, value in change.values if value is None}
        configured = {path: value for path, value in {**nic.configured, **wanted}.items() if path not in left}
        self._put_guest_nic(change.uuid, nic, replace(nic, configured=configured))

    def _replug_guest_nic(self, change: ReplugGuestNic) -> None:
        """The guest is asked; whether it lets go is for the test to say."""
        nic = self._guest_nic(change.uuid, change.mac, change.address)
        if nic.running is None:
            raise errors.Gone(f"{change.guest} does not run")
        names = (change.guest, change.uuid, "run", change.mac, change.address, "alias", "<former/>", "<wanted/>")
        self.replugs[change.target] = Replug(*names, change.values, change.policy, change.version)

    def _leave_replug(self, change: LeaveReplug) -> None:
        left = replugs.left(self.replugs[change.target]) if change.target in self.replugs else None
        if left is None:
            self.replugs.pop(change.target, None)
        else:
            self.replugs[change.target] = left

    def let_go(self, target: str) -> None:
        """The guest does as it was asked, and the NIC is in again as wanted."""
        replug = self.replugs.pop(target)
        nic = self._guest_nic(replug.uuid, replug.mac, replug.address)
        self._put_guest_nic(replug.uuid, nic, replace(nic, running={**(nic.running or {}), **dict(replug.values)}))

    def _guest_nic(self, uuid: str, mac: str, address: str) -> GuestNic:
        assert isinstance(self.guests, dict), "a change of a guest although libvirt cannot be asked"
        nics = self.guests[uuid].nics if uuid in self.guests else ()
        for nic in nics:
            if (nic.mac, nic.address) == (mac, address):
                return nic
        raise errors.Gone(f"{uuid} has no NIC {mac}")

    def _put_guest_nic(self, uuid: str, before: GuestNic, after: GuestNic) -> None:
        assert isinstance(self.guests, dict)
        nics = tuple(after if each is before else each for each in self.guests[uuid].nics)
        self.guests[uuid] = replace(self.guests[uuid], nics=nics)

    _ACTS: Mapping[type, Callable[[FakeHost, Any], None]] = {
        SetFeatures: _set_features,
        SetRings: _set_rings,
        SetChannels: _set_channels,
        SetRxFrames: _set_rx_frames,
        SetMtu: _set_mtu,
        SetTxQueueLength: _set_tx_queue_length,
        SetBridgeOptions: _set_bridge_options,
        SetMaster: _set_master,
        CreateBridge: _create_bridge,
        CreateTap: _create_tap,
        DeleteLink: _delete_link,
        SetVnetHdr: _set_vnet_hdr,
        SetTapOwner: _set_tap_owner,
        LoadModule: _load_module,
        UnloadModule: _unload_module,
        WriteModuleFile: _write_module_file,
        RemoveModuleFile: _remove_module_file,
        SetGuestNic: _set_guest_nic,
        ReplugGuestNic: _replug_guest_nic,
        LeaveReplug: _leave_replug,
    }


def _same(before: T | None, now: T) -> T:
    """The object of the last look, when nothing changed since."""
    return before if before is not None and before == now else now


def _told_by_kind(device: Device) -> bool:
    """Their drivers call themselves as their kind is called."""
    return device.profile.kind in ("veth", "tun", "bridge")


def _readable(device: Device, surface: str, value: Any) -> Any:
    why_not = device.unreadable.get(surface)
    return value if why_not is None or value is None else Unreadable(why_not)


def _kernel_option(name: str, value: Value) -> tuple[str, int]:
    assert name in BRIDGE_OPTIONS, f"the fake host does not know the bridge option {name}"
    field, units = BRIDGE_OPTIONS[name]
    assert units > 1 or not isinstance(value, str), f"bridge option {name}: {value!r}"
    return field, round(float(value) * units)


def _stp_apart(option: tuple[str, Value]) -> int:
    name, value = option
    return 0 if name != "stp" else 1 if value else -1
