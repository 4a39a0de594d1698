"""LinuxHost: the real machine behind `virtnet.reconcile.Host`. It reads and acts as told and decides nothing."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

from virtnet.core import model
from virtnet.core.model import Change, Features, HostState, Identity, Interest, Link, Process, Ref, Running
from virtnet.errors import Gone, HostError, NotSupported
from virtnet.host import (
    addresses,
    bridges,
    evidence,
    fingerprint,
    libvirt,
    links,
    modules,
    namespaces,
    netlink,
    offloads,
    processes,
    taps,
    tuning,
)
from virtnet.host.events import BUFFER_BYTES, Monitor
from virtnet.host.looks import Looks
from virtnet.host.namespaces import Namespace

if TYPE_CHECKING:
    from virtnet.host.guests import Guests

VHOST_NET = "vhost_net"
PARENTS_NAMED_SINCE = (5, 14)  # IFLA_PARENT_DEV_NAME, Linux 00e77ed8e64d


class LinuxHost:
    """One network namespace of this machine (None: the current one), and the machine's vhost_net module.

    May be used from several threads: each has its own request sockets, and looks are taken one at a time. `root` is
    the tree that holds /sys/module and the module files, `proc` the machine's /proc; they differ from the defaults
    where a container has them mounted elsewhere. `parents_named` None: as this kernel's version says.
    """

    def __init__(
        self,
        namespace: Namespace | None = None,
        *,
        proc: str = "/proc",
        root: str = "/",
        parents_named: bool | None = None,
    ) -> None:
        self.namespace = namespace or Namespace()
        self._proc, self._root = proc, root
        self._connections = netlink.Connections(self.namespace)
        named = _linux_version() >= PARENTS_NAMED_SINCE if parents_named is None else parents_named
        self._looks = Looks(self._connections, parents_named=named)
        self._one_look = threading.Lock()
        self._drivers = tuning.Drivers()
        self.guests: Guests | None = None
        """libvirt, set by who found it; without it there are no guests, or they are withheld."""
        self._actions = self._all_actions()

    def close(self) -> None:
        """Close the request sockets of all threads; a later use opens new ones."""
        self._connections.close()

    def identity(self) -> Identity:
        return Identity(namespaces.boot_id(self._proc), self.namespace.identity)

    def monitor(self, *, buffer_bytes: int = BUFFER_BYTES) -> Monitor:
        """Hear what the kernel tells of this namespace from now on; open it before the first look."""
        return Monitor(self.namespace, buffer_bytes=buffer_bytes, complete=self._looks.complete)

    # --- looking -------------------------------------------------------------------------------------------

    def observe(self, interest: Interest) -> HostState:
        """Links, features, and what `interest` asks; Gone when the namespace is no longer there."""
        self.namespace.check()
        with self._one_look:
            state = self._looks.look()
            extras = self._look_further(interest, state.links)
        return replace(state, **extras) if extras else state

    def read_link(self, ref: Ref) -> Link:
        """One link, freshly read; Gone unless index and name are still one link."""
        return self._looks.complete(links.find(self._connections.route, ref))

    def read_features(self, ifindex: int) -> Features:
        """One link's features, for the fast loop; Gone when no link has this index."""
        return offloads.read(self._connections.generic, self._looks.family, Ref("", ifindex))

    def set_features(self, ref: Ref, mask: int, value: int) -> Features:
        """Ask for features in one message, and read what came of it. Gone unless index and name are still one link."""
        return offloads.change_and_read(self._connections.generic, self._looks.family, ref, mask, value)

    def _look_further(self, interest: Interest, found: Mapping[int, Link]) -> dict[str, Any]:
        """The parts of HostState beyond links and features, by name."""
        extras: dict[str, Any] = {}
        generic = self._connections.generic
        if interest.drivers or interest.untold_drivers:
            asked = found if interest.drivers else tuning.untold(found)
            extras["drivers"] = self._drivers.look(generic, asked)
        if interest.rings:
            extras["rings"] = tuning.rings(generic, self._looks.family, found)
        if interest.channels:
            extras["channels"] = tuning.channels(generic, self._looks.family, found)
        if interest.rx_frames:
            extras["rx_frames"] = tuning.rx_frames(generic, self._looks.family, found)
        if interest.addresses:
            extras["carries"] = addresses.carried(self._connections.route)
        users: tuple[Process, ...] = ()
        if interest.users:
            holders = processes.look(self.namespace.path)
            users = holders.vhost
            extras["holders"] = {i: holders.taps[link.name] for i, link in found.items() if link.name in holders.taps}
        if interest.fingerprint:
            extras["fingerprint"] = fingerprint.read()
        if interest.running:
            extras["running"] = evidence.look(self.namespace.path)
            extras["drops"] = self._drops(extras["running"], found)
        if interest.guests and self.guests is None and self.namespace.path is None:
            extras["guests"] = libvirt.withheld(self._root)
        if self.guests is not None and (interest.guests or self.guests.replugs):
            extras |= {"guests": self.guests.look(), "replugs": self.guests.replugs}
        if interest.module:
            extras["module"] = modules.read(VHOST_NET, users=users, root=self._root)
        return extras

    def _drops(self, running: Sequence[Running], found: Mapping[int, Link]) -> dict[int, int]:
        held = {name for process in running for name in process.taps.values()}
        counts = {}
        for ifindex, link in found.items():
            if link.name in held:
                with suppress(Gone):
                    counts[ifindex] = links.dropped(self._connections.route, Ref(link.name, ifindex))
        return counts

    # --- changing ------------------------------------------------------------------------------------------

    def apply(self, change: Change) -> None:
        """Make one change, or raise a HostError that says why not."""
        action = self._actions.get(type(change))
        if action is None:
            raise TypeError(f"{type(change).__name__} is no change that this host knows")
        action(change)

    def apply_all(self, changes: Sequence[Change]) -> Sequence[HostError | None]:
        """Make changes in this order, many feature sets in one system call; for each the error, or None."""
        answers: list[HostError | None] = []
        for together, group in groupby(changes, offloads.may_share):
            if together:
                answers += offloads.change_all(self._connections.generic, self._looks.family, group)
            else:
                answers += map(self._attempt, group)
        return answers

    def _attempt(self, change: Change) -> HostError | None:
        try:
            self.apply(change)
        except HostError as error:
            return error
        return None

    def _all_actions(self) -> Mapping[type, Callable[[Any], None]]:
        """One action for each member of `model.Change`."""
        return {
            model.SetFeatures: self._set_features,
            model.SetRings: self._set_rings,
            model.SetChannels: self._set_channels,
            model.SetRxFrames: self._set_rx_frames,
            model.SetMtu: lambda change: links.set_mtu(self._route, change.link, change.mtu),
            model.SetTxQueueLength: lambda change: links.set_tx_queue_length(self._route, change.link, change.length),
            model.SetBridgeOptions: lambda change: bridges.set_options(self._route, change.link, change.options),
            model.SetMaster: lambda change: links.set_master(self._route, change.link, change.master),
            model.CreateBridge: lambda change: bridges.create(self._route, change.name),
            model.CreateTap: partial(taps.create, self.namespace),
            model.DeleteLink: lambda change: links.delete(self._route, change.link),
            model.SetVnetHdr: self._set_vnet_hdr,
            model.SetTapOwner: self._set_tap_owner,
            model.LoadModule: lambda change: modules.load(change.name, change.parameters, root=self._root),
            model.UnloadModule: lambda change: modules.unload(change.name, root=self._root),
            model.WriteModuleFile: lambda change: modules.write_file(change.path, change.content, root=self._root),
            model.RemoveModuleFile: lambda change: modules.remove_file(change.path, root=self._root),
            model.SetGuestNic: self._change_guest,
            model.ReplugGuestNic: self._change_guest,
            model.LeaveReplug: self._change_guest,
        }

    @property
    def _route(self) -> netlink.Connection:
        return self._connections.route

    def _set_features(self, change: model.SetFeatures) -> None:
        offloads.change(self._connections.generic, self._looks.family, change.link, change.mask, change.value)

    def _set_rings(self, change: model.SetRings) -> None:
        tuning.set_rings(self._connections.generic, self._looks.family, change.link, rx=change.rx, tx=change.tx)

    def _set_channels(self, change: model.SetChannels) -> None:
        generic, family = self._connections.generic, self._looks.family
        tuning.set_channels(generic, family, change.link, combined=change.combined, rx=change.rx, tx=change.tx)

    def _set_rx_frames(self, change: model.SetRxFrames) -> None:
        tuning.set_rx_frames(self._connections.generic, self._looks.family, change.link, change.frames)

    def _set_vnet_hdr(self, change: model.SetVnetHdr) -> None:
        taps.set_vnet_hdr(self.namespace, links.find(self._route, change.link), change.vnet_hdr)

    def _change_guest(self, change: model.GuestChange) -> None:
        if self.guests is None:
            raise NotSupported("no libvirt is here")
        self.guests.apply(change)

    def _set_tap_owner(self, change: model.SetTapOwner) -> None:
        taps.set_owner(self.namespace, links.find(self._route, change.link), change.owner, change.group)


def _linux_version() -> tuple[int, ...]:
    """The first two numbers of `uname -r`."""
    numbers = os.uname().release.split("-")[0].split(".")
    return tuple(int(number) for number in numbers[:2] if number.isdigit())
