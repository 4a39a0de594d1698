"""What others do to the host behind the agent's back: administrators, libvirt, QEMU, udev. Nothing here is judged."""

from __future__ import annotations

from tests.flow import rules, text
from tests.flow.machine import Machine
from virtnet.core import features
from virtnet.core.model import Process, Tun


class Foreign:
    """Every method is one act of somebody else, on links by name; an act the kernel refuses raises as it would."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def set_feature(self, link: str, name: str, on: bool) -> None:
        """`ethtool -K LINK NAME on|off`: its short names mean every member, also tx-tcp-mangleid-segmentation."""
        device = self._machine.named(link)
        mask = features.mask_of(features.SHORT.get(name, (name,)), rules.FEATURE_NAMES)
        assert mask, f"no feature {name}"
        self._machine.set_features(device, mask, mask if on else 0)

    def add(self, line: str) -> None:
        """A new link, as its line in a host's text says."""
        text.add_link(self._machine, line)

    def add_tap(self, name: str, *, master: str = "", ifindex: int = 0, multi_queue: bool = False) -> None:
        """A persistent tap, as libvirt or `ip tuntap add mode tap vnet_hdr` makes it."""
        tun = Tun(True, None, None, pi=False, vnet_hdr=True, persist=True, multi_queue=multi_queue)
        self._machine.add_tap(name, tun, ifindex=ifindex)
        if master:
            self.enslave(name, master)

    def rename(self, link: str, name: str) -> None:
        self._machine.rename(self._machine.named(link), name)

    def delete(self, link: str) -> None:
        self._machine.delete(self._machine.named(link))

    def unplug(self, link: str) -> None:
        """Hardware goes, or a link moves to another namespace."""
        self._machine.unplug(self._machine.named(link))

    def enslave(self, link: str, master: str | None) -> None:
        device = self._machine.named(link)
        if master is None:
            self._machine.release(device)
        else:
            self._machine.enslave(device, self._machine.named(master))

    def set_mtu(self, link: str, mtu: int) -> None:
        self._machine.set_mtu(self._machine.named(link), mtu)

    def set_bridge(self, link: str, **options: int) -> None:
        """By field of BridgeOptions; times in hundredths of a second."""
        self._machine.set_bridge(self._machine.named(link), options)

    def set_rings(self, link: str, *, rx: int | None = None, tx: int | None = None) -> None:
        self._machine.set_rings(self._machine.named(link), rx, tx)

    def set_carries(self, link: str, what: str) -> None:
        """An address or route comes ("address 192.0.2.1/24") or goes ("")."""
        self._machine.named(link).carries = what

    def set_readable(self, link: str, surface: str, why_not: str = "") -> None:
        """`features`, `rings`, `channels` or `rx_frames` of a link cannot be read for this reason, or can again."""
        unreadable = self._machine.named(link).unreadable
        if why_not:
            unreadable[surface] = why_not
        else:
            unreadable.pop(surface, None)

    def hold(self, tap: str, process: Process, *, vnet_hdr: bool = True, vhost: bool = False) -> None:
        """QEMU opens a tap, and /dev/vhost-net for each queue when it is to use vhost."""
        if vhost:
            self._machine.module.use(process)
        self._machine.hold(self._machine.named(tap), process, vnet_hdr=vnet_hdr)

    def negotiate(self, tap: str, names: str) -> None:
        """The guest driver takes exactly these kernel features (TUNSETOFFLOAD)."""
        self._machine.offload(self._machine.named(tap), rules.mask(names))

    def release(self, tap: str) -> None:
        """The guest ends: its processes close the tap and their vhost devices."""
        device = self._machine.named(tap)
        module = self._machine.module
        module.users = tuple(user for user in module.users if user not in device.holders)
        self._machine.let_go(device)

    def load_module(self, **parameters: int) -> None:
        self._machine.module.load({name: str(value) for name, value in parameters.items()})

    def unload_module(self) -> None:
        self._machine.module.unload()

    def write_file(self, path: str, content: str) -> None:
        self._machine.module.write(path, content)

    def remove_file(self, path: str) -> None:
        self._machine.module.remove(path)
