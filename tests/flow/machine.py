"""A machine on plain values that answers like Linux: links, features, bridges, taps; it knows no policy and no fault.

Errors are the `virtnet.errors` that the real host makes of the kernel's answer, which each message names; what the
fake does not know is an AssertionError that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tests.flow import rules
from tests.flow.module import FakeModule
from virtnet import errors
from virtnet.core.model import BridgeOptions, Channels, Features, Link, Process, Rings, Tun

FRESH_BRIDGE = BridgeOptions(
    stp=False,
    forward_delay=1500,
    ageing_time=30000,
    multicast_snooping=True,
    vlan_filtering=False,
    group_forward_mask=0,
)
"""net/bridge/br_device.c, `br_dev_setup()`; times in hundredths of a second."""

ENSLAVING_KINDS = frozenset({"bridge", "bond", "team"})
STP_DELAY = range(200, 3001)
"""BR_MIN_FORWARD_DELAY..BR_MAX_FORWARD_DELAY of net/bridge/br_private.h, in hundredths of a second."""


@dataclass(slots=True, eq=False)
class Device:
    """One link with what only the kernel knows of it; `profile_name` is its word in a host's text.

    `refuses` are the features the driver does not turn on now. `pinned_mtu`: a bridge whose mtu a user has set.
    `unreadable` maps features, rings, channels or rx_frames to why they cannot be read.
    """

    link: Link
    profile_name: str
    features: Features
    refuses: int
    rings: Rings | None
    channels: Channels | None
    frames: int | None
    carries: str = ""
    holders: tuple[Process, ...] = ()
    pinned_mtu: bool = False
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def profile(self) -> rules.Profile:
        return rules.PROFILES[self.profile_name]

    @property
    def tun(self) -> Tun:
        assert self.link.tun is not None, f"{self.link.name} is no tap"
        return self.link.tun

    def change(self, **values: object) -> None:
        """Change fields of the link; equal values leave the very same object."""
        changed = replace(self.link, **values)  # type: ignore[arg-type]
        if changed != self.link:
            self.link = changed

    def change_tun(self, **values: object) -> None:
        self.change(tun=replace(self.tun, **values))  # type: ignore[arg-type]


class Machine:
    """The kernel's state, and one method for each thing that a process can ask of it."""

    def __init__(self) -> None:
        self.devices: dict[int, Device] = {}
        self.module = FakeModule()
        self.has_vlan_filtering = True
        self._last_index = 0

    # --- finding -------------------------------------------------------------------------------------------

    def find(self, name: str) -> Device | None:
        return next((device for device in self.devices.values() if device.link.name == name), None)

    def named(self, name: str) -> Device:
        device = self.find(name)
        assert device is not None, f"there is no link {name}"
        return device

    def ports(self, master: Device) -> list[Device]:
        return [device for device in self.devices.values() if device.link.master == master.link.ifindex]

    def _master(self, device: Device) -> Device | None:
        return self.devices.get(device.link.master)

    # --- coming and going ----------------------------------------------------------------------------------

    def add(self, name: str, profile_name: str, *, ifindex: int = 0, tun: Tun | None = None, up: bool = True) -> Device:
        """A fresh link, as its kind or driver starts; indexes grow and are reused only when asked for."""
        assert 0 < len(name.encode()) < 16, f"{name!r} is no interface name"
        assert not set(name) & set("/ \t\n"), f"{name!r} is no interface name"
        assert self.find(name) is None, f"there is a link {name} already"
        profile = rules.PROFILES[profile_name]
        ifindex = ifindex or self._last_index + 1
        assert ifindex not in self.devices, f"ifindex {ifindex} is taken"
        self._last_index = max(self._last_index, ifindex)
        is_tun = profile.kind == "tun"
        assert is_tun == (tun is not None), f"{name}: only tun and tap links have tun attributes"
        link = Link(
            ifindex,
            name,
            kind=profile.kind,
            mac=f"02:00:00:00:{ifindex >> 8:02x}:{ifindex & 255:02x}",
            mtu=65536 if profile_name == "lo" else 1500,
            up=up,
            carrier=up and not is_tun,
            physical=profile.physical,
            loopback=profile_name == "lo",
            bus=profile.driver.bus if profile.physical else "",
            tun=tun,
            bridge=FRESH_BRIDGE if profile.kind == "bridge" else None,
        )
        device = Device(
            link,
            profile_name,
            profile.features,
            profile.refuses,
            profile.rings,
            profile.channels,
            None if profile.frames_max is None else 0,
        )
        self.devices[ifindex] = device
        return device

    def delete(self, device: Device) -> None:
        """RTM_DELLINK: ports are released, a process that holds a tap is left with a dead file descriptor."""
        if device.profile.physical or device.link.loopback:
            raise errors.Refused(f"{device.link.name}: Operation not supported")
        self.unplug(device)

    def unplug(self, device: Device) -> None:
        """The hardware goes, or a namespace takes the link: its ports are released, what is stacked on it goes too."""
        for port in self.ports(device):
            self.release(port)
        self.release(device)
        del self.devices[device.link.ifindex]
        for upper in [each for each in self.devices.values() if each.link.lower == device.link.ifindex]:
            self.unplug(upper)

    def rename(self, device: Device, name: str) -> None:
        assert self.find(name) is None, f"there is a link {name} already"
        device.change(name=name)

    # --- features ------------------------------------------------------------------------------------------

    def set_features(self, device: Device, mask: int, value: int) -> None:
        """ETHTOOL_MSG_FEATURES_SET (net/ethtool/features.c, `ethnl_set_features`).

        Fixed features are passed over in silence. When no wanted bit changes, nothing is looked at again: a feature
        that is wanted and was dropped is not revived by asking for it once more.
        """
        assert not mask & ~rules.NAMED, f"{device.link.name}: feature bits without a name in {mask:#x}"
        assert not value & ~mask, f"{device.link.name}: value {value:#x} outside of its mask {mask:#x}"
        if mask & rules.NEVER_CHANGE:
            raise errors.Refused(f"{device.link.name}: attempt to change non-ethtool features")
        features = device.features
        wanted = (features.wanted & ~mask | value) & features.hw
        if wanted != features.wanted:
            self._want(device, wanted)

    def offload(self, device: Device, mask: int) -> None:
        """TUNSETOFFLOAD (drivers/net/tun.c, `set_offload`): what the guest driver has negotiated."""
        assert not mask & ~rules.TUN_USER_FEATURES, f"{device.link.name}: {mask:#x} is not for TUNSETOFFLOAD"
        device.refuses = device.refuses & ~rules.TUN_USER_FEATURES | rules.TUN_USER_FEATURES & ~mask
        self._want(device, device.features.wanted & ~rules.TUN_USER_FEATURES | mask)

    def _want(self, device: Device, wanted: int) -> None:
        device.features = replace(device.features, wanted=wanted)
        self.update_features(device)

    def update_features(self, device: Device) -> None:
        """`__netdev_update_features()`, and the same for the bridge above when something changed."""
        active = self.settled(device)
        if active == device.features.active:
            return
        device.features = replace(device.features, active=active)
        self._update_bridge(self._master(device))

    def settled(self, device: Device) -> int:
        """What is active once the driver, the bridge and the kernel's rules have had their say."""
        features = device.features
        asked = (features.active & ~features.hw | features.wanted) & ~device.refuses
        if device.link.bridge is not None:
            asked = rules.of_bridge(asked, [port.features.active for port in self.ports(device)])
        active = rules.fix(asked)
        master = self._master(device)
        if master is not None and not master.features.wanted & rules.LRO:
            active &= ~rules.LRO  # netdev_sync_upper_features(): an upper link that does not want LRO forbids it
        return active

    def _update_bridge(self, master: Device | None) -> None:
        if master is not None and master.link.bridge is not None:
            self.update_features(master)

    # --- numbers -------------------------------------------------------------------------------------------

    def set_mtu(self, device: Device, mtu: int) -> None:
        """`dev_set_mtu()`; min_mtu is ETH_MIN_MTU, max_mtu the driver's."""
        name = device.link.name
        if not 68 <= mtu <= device.profile.mtu_max:
            raise errors.Refused(f"{name}: mtu {mtu} is outside of 68..{device.profile.mtu_max}")
        if mtu == device.link.mtu:
            return
        device.change(mtu=mtu)
        device.pinned_mtu = device.link.bridge is not None
        self._follow_mtu(self._master(device))

    def _follow_mtu(self, bridge: Device | None) -> None:
        """`br_mtu_auto_adjust()`: the smallest port's mtu, unless a user has set the bridge's own."""
        if bridge is None or bridge.link.bridge is None or bridge.pinned_mtu:
            return
        bridge.change(mtu=min((port.link.mtu for port in self.ports(bridge)), default=1500))

    def set_tx_queue_length(self, device: Device, length: int) -> None:
        assert 0 <= length < 1 << 32, f"{device.link.name}: no queue length: {length}"
        device.change(tx_queue_length=length)

    def set_rx_frames(self, device: Device, frames: int) -> None:
        """`tun_set_coalesce()`: more than NAPI_POLL_WEIGHT is cut to it; other links here have no such operation."""
        if device.frames is None or device.profile.frames_max is None:
            raise errors.NotSupported(f"{device.link.name}: coalescing: Operation not supported")
        device.frames = min(frames, device.profile.frames_max)

    def set_rings(self, device: Device, rx: int | None, tx: int | None) -> None:
        """`ethnl_set_rings()`: above the maximum is refused; what is accepted the driver may round."""
        rings = device.rings
        if rings is None:
            raise errors.NotSupported(f"{device.link.name}: rings: Operation not supported")
        for asked, highest in ((rx, rings.rx_max), (tx, rings.tx_max)):
            assert asked is None or asked > 0, f"{device.link.name}: no ring size: {asked}"
            if asked is not None and asked > (highest or 0):
                raise errors.Refused(f"{device.link.name}: requested ring size exceeds maximum")
        device.rings = replace(rings, rx=self._ring(device, rx, rings.rx), tx=self._ring(device, tx, rings.tx))

    @staticmethod
    def _ring(device: Device, asked: int | None, now: int | None) -> int | None:
        return now if asked is None else device.profile.round_ring(asked)

    def set_channels(self, device: Device, **asked: int | None) -> None:
        """`ethnl_set_channels()`; `asked` has combined, rx, tx. Taps and tuns tell their channels and set none."""
        now = device.channels
        if now is None or device.profile.kind == "tun":
            raise errors.NotSupported(f"{device.link.name}: channels: Operation not supported")
        wanted = {kind: count for kind, count in asked.items() if count is not None}
        for kind, count in wanted.items():
            if count > (getattr(now, f"{kind}_max") or 0):
                raise errors.Refused(f"{device.link.name}: requested channel count exceeds maximum")
        then = replace(now, **wanted)
        if not then.combined and not (then.rx and then.tx):
            raise errors.Refused(f"{device.link.name}: channel counts would leave no RX or TX channel")
        device.channels = then

    # --- bridges -------------------------------------------------------------------------------------------

    def enslave(self, device: Device, master: Device) -> None:
        """`do_set_master()`: an old master is left first, also when the new one then refuses."""
        if device.link.master == master.link.ifindex:
            return
        self.release(device)
        self._check_enslaving(device, master)
        device.change(master=master.link.ifindex)
        if master.link.bridge is None:
            return
        self._disable_lro(device)
        self._update_bridge(master)
        self._follow_mtu(master)

    def _check_enslaving(self, device: Device, master: Device) -> None:
        name, above = device.link.name, master.link.name
        if master.link.kind not in ENSLAVING_KINDS:
            raise errors.NotSupported(f"{name} master {above}: Operation not supported")
        if device.link.loopback or device is master:
            raise errors.Refused(f"{name} master {above}: Invalid argument")
        if device.link.bridge is not None and master.link.bridge is not None:
            raise errors.Refused(f"{name} master {above}: Can not enslave a bridge to a bridge.")

    def _disable_lro(self, device: Device) -> None:
        """`dev_disable_lro()`: also what is wanted, and on every link below."""
        self._want(device, device.features.wanted & ~rules.LRO)
        for below in self.below(device):
            self._disable_lro(below)

    def below(self, device: Device) -> list[Device]:
        """The slaves of a bond or team, a vlan's real device."""
        real = self.devices.get(device.link.lower)
        slaves = self.ports(device) if device.link.kind in {"bond", "team"} else []
        return [*([real] if real else []), *slaves]

    def release(self, device: Device) -> None:
        master = self._master(device)
        device.change(master=0)
        self._update_bridge(master)
        self._follow_mtu(master)

    def set_bridge(self, device: Device, options: Mapping[str, int]) -> None:
        """`br_changelink()`: option after option in the kernel's order, so those before a refused one stay set.

        `options` are by field of BridgeOptions, times in hundredths of a second.
        """
        name = device.link.name
        if device.link.bridge is None:
            raise errors.NotSupported(f"{name} is no bridge")
        unknown = set(options) - {field for field, _ in _BRIDGE_STEPS}
        assert not unknown, f"{name}: unknown bridge options {sorted(unknown)}"
        for option, check in _BRIDGE_STEPS:
            if option in options:
                check(self, device, options[option])

    def _set_option(self, device: Device, **values: object) -> None:
        assert device.link.bridge is not None
        device.change(bridge=replace(device.link.bridge, **values))  # type: ignore[arg-type]

    def _set_forward_delay(self, device: Device, delay: int) -> None:
        assert device.link.bridge is not None
        if device.link.bridge.stp and delay not in STP_DELAY:
            raise errors.Refused(f"{device.link.name}: forward delay {delay}: Numerical result out of range")
        self._set_option(device, forward_delay=delay)

    def _set_ageing(self, device: Device, ageing: int) -> None:
        self._set_option(device, ageing_time=ageing)

    def _set_stp(self, device: Device, stp: int) -> None:
        """`br_stp_start()` brings a forward delay that stp does not allow into range."""
        assert device.link.bridge is not None
        delay = device.link.bridge.forward_delay
        if stp and not device.link.bridge.stp:
            delay = min(max(delay, STP_DELAY[0]), STP_DELAY[-1])
        self._set_option(device, stp=bool(stp), forward_delay=delay)

    def _set_vlan_filtering(self, device: Device, filtering: int) -> None:
        if not self.has_vlan_filtering:
            raise errors.NotSupported(f"{device.link.name}: vlan_filtering: Operation not supported")
        self._set_option(device, vlan_filtering=bool(filtering))

    def _set_group_mask(self, device: Device, mask: int) -> None:
        """BR_GROUPFWD_RESTRICTED: the addresses of stp, pause and 802.3ad are never forwarded."""
        assert 0 <= mask <= 65535, f"{device.link.name}: no group forward mask: {mask}"
        if mask & 7:
            raise errors.Refused(f"{device.link.name}: group_fwd_mask {mask}: Invalid argument")
        self._set_option(device, group_forward_mask=mask)

    def _set_snooping(self, device: Device, snooping: int) -> None:
        self._set_option(device, multicast_snooping=bool(snooping))

    # --- taps ----------------------------------------------------------------------------------------------

    def add_tap(self, name: str, tun: Tun, *, ifindex: int = 0) -> Device:
        """TUNSETIFF on a name that is free; queues are told for multi-queue taps only."""
        tun = replace(tun, queues=0 if tun.multi_queue else None)
        device = self.add(name, "tap" if tun.tap else "tun", ifindex=ifindex, tun=tun)
        if tun.multi_queue and device.channels:
            device.channels = replace(device.channels, combined_max=256)
        return device

    def hold(self, device: Device, process: Process, *, vnet_hdr: bool = True) -> None:
        """A process opens a tap and keeps it open: the first opener's flags replace those that were there."""
        if device.holders and not device.tun.multi_queue:
            raise errors.InUse(f"{device.link.name}: Device or resource busy")
        if not device.holders:
            device.change_tun(vnet_hdr=vnet_hdr)
        device.holders = (*device.holders, process)
        self._show_holders(device)

    def let_go(self, device: Device) -> None:
        """The last process closes a tap: one that is not persistent is gone."""
        device.holders = ()
        self._show_holders(device)
        if not device.tun.persist:
            self.unplug(device)

    def _show_holders(self, device: Device) -> None:
        count = len(device.holders)
        device.change(carrier=bool(count))
        if device.tun.multi_queue:
            device.change_tun(queues=count)
        if device.channels:
            device.channels = replace(device.channels, combined=count)

    def reopen(self, device: Device, **tun: object) -> None:
        """Open, change and close a tap: TUNSETIFF, TUNSETOWNER, TUNSETGROUP."""
        if device.holders:
            raise errors.InUse(f"{device.link.name}: Device or resource busy")
        device.change_tun(**tun)


_BRIDGE_STEPS = (
    ("forward_delay", Machine._set_forward_delay),
    ("ageing_time", Machine._set_ageing),
    ("stp", Machine._set_stp),
    ("vlan_filtering", Machine._set_vlan_filtering),
    ("group_forward_mask", Machine._set_group_mask),
    ("multicast_snooping", Machine._set_snooping),
)
