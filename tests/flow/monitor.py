"""The kernel's notifications about a fake host, said by the test: what changes there makes no sound by itself."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.flow.fake import FakeHost
from virtnet import errors
from virtnet.core.model import Features, HostState, Interest, Link, Ref, SetFeatures


@dataclass
class Heard:
    """What one drain brings: `virtnet.engine.reflex.Events`."""

    features: set[int] = field(default_factory=set)
    seen: dict[int, Features] = field(default_factory=dict)
    tuning: set[int] = field(default_factory=set)
    links: dict[int, Link] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    lost: bool = False
    modules: set[str] = field(default_factory=set)
    unaddressed: set[int] = field(default_factory=set)


class FakeMonitor:
    """`virtnet.engine.reflex.Monitor`: readable while there is something to hear."""

    def __init__(self) -> None:
        self._readable, self._ring = os.pipe()
        self._heard: Heard | None = None
        for descriptor in (self._readable, self._ring):
            weakref.finalize(self, os.close, descriptor)

    def filenos(self) -> Iterable[int]:
        return (self._readable,)

    def say(self, heard: Heard) -> None:
        """Everything since the last drain is heard together."""
        if self._heard is None:
            self._heard = heard
            os.write(self._ring, b"!")
            return
        known = self._heard
        known.features |= heard.features
        known.seen = {index: now for index, now in known.seen.items() if index not in heard.features} | heard.seen
        known.tuning |= heard.tuning
        known.links |= heard.links
        known.gone |= heard.gone
        known.modules |= heard.modules
        known.unaddressed |= heard.unaddressed
        known.lost = known.lost or heard.lost

    def drain(self) -> Heard:
        heard, self._heard = self._heard or Heard(), None
        if heard != Heard():
            os.read(self._readable, 1)
        return heard


class TellingHost(FakeHost):
    """A fake host with the fast loop's two calls, whose foreign acts a monitor can tell of."""

    def __init__(self, lines: str) -> None:
        super().__init__(lines)
        self.monitor = FakeMonitor()
        self.looks = self.reads = self.repairs = 0

    def observe(self, interest: Interest) -> HostState:
        self.looks += 1
        return super().observe(interest)

    def read_features(self, ifindex: int) -> Features:
        self.reads += 1
        device = self.machine.devices.get(ifindex)
        if device is None:
            raise errors.Gone(f"{ifindex}: No such device")
        if "features" in device.unreadable:
            raise errors.NotPermitted(device.unreadable["features"])
        return device.features

    def set_features(self, link: Ref, mask: int, value: int) -> Features:
        self.repairs += 1
        self.apply(SetFeatures(link, mask, value))
        return self.read_features(link.ifindex)

    def flip(self, link: str, name: str, on: bool) -> None:
        """Somebody runs ethtool -K, and the kernel tells."""
        self.foreign.set_feature(link, name, on)
        self.monitor.say(Heard(features={self.machine.named(link).link.ifindex}))

    def flip_and_show(self, link: str, name: str, on: bool) -> None:
        """Somebody runs ethtool -K, and the kernel tells what the features are now."""
        self.foreign.set_feature(link, name, on)
        device = self.machine.named(link)
        self.monitor.say(Heard(features={device.link.ifindex}, seen={device.link.ifindex: device.features}))

    def tell_of(self, *names: str) -> None:
        """The kernel tells of these links as they are now."""
        devices = [self.machine.named(name) for name in names]
        self.monitor.say(Heard(links={device.link.ifindex: device.link for device in devices}))

    def delete(self, link: str) -> None:
        """Somebody runs ip link del, and the kernel tells."""
        ifindex = self.machine.named(link).link.ifindex
        self.foreign.delete(link)
        self.monitor.say(Heard(gone={ifindex}))
