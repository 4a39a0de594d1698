"""One look at links and their features; on a steady host it returns the state of the last look itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from virtnet.core.model import EMPTY, Features, HostState, Link, Ref, Unreadable
from virtnet.errors import Gone, HostError, Temporary
from virtnet.host import ethtool, links, offloads, tuning
from virtnet.host.dumps import RepeatedDump
from virtnet.host.netlink import Connection, Connections

_NO_BUS = ("", "N/A")  # what drivers of virtual links say (br_getinfo, tun_get_drvinfo of links without a kind)


class Looks:
    """Looks at one namespace, one at a time.

    `parents_named`: the kernel tells with each link which device stands behind it.
    """

    def __init__(self, connections: Connections, *, parents_named: bool) -> None:
        self._connections = connections
        self._parents_named = parents_named
        self._links = links.repeated_dump()
        self._features: RepeatedDump[Features] | None = None
        self._family: ethtool.Family | None = None
        self._names: tuple[str, ...] = ()
        self._seen: tuple[Mapping[int, Link], Mapping[int, Features] | None] = (EMPTY, None)
        self._state = HostState(EMPTY, EMPTY, ())

    @property
    def family(self) -> int:
        """The message type of ethtool netlink; fixed until the next boot."""
        if self._family is None:
            self._family = ethtool.family(self._connections.generic)
        return self._family.id

    def look(self) -> HostState:
        """Links and features now. Links that go while we look are left out."""
        found = self._links.look(self._connections.route)
        features = self._look_at_features()
        if features is None or found is not self._seen[0] or features is not self._seen[1]:
            self._state = self._join(found, features)
            self._seen = (found, features)
        return self._state

    def complete(self, link: Link) -> Link:
        """Fill in the device behind a link where the kernel's link message does not name it (before Linux 5.14)."""
        if self._parents_named or link.kind or link.loopback:
            return link
        found = tuning.driver(self._connections.generic, link.name)
        return replace(link, physical=True, bus=found.bus) if found and found.bus not in _NO_BUS else link

    def _look_at_features(self) -> Mapping[int, Features] | None:
        """None when they cannot be read together: one link's driver that fails ends the dump for all."""
        try:
            if self._features is None:
                self._names = offloads.names(self._connections.generic, self.family)
                self._features = offloads.repeated_dump(self.family)
            return self._features.look(self._connections.generic)
        except Temporary:
            raise
        except HostError:
            return None

    def _join(self, found: Mapping[int, Link], features: Mapping[int, Features] | None) -> HostState:
        if not self._parents_named:
            found = self._completed(found)
        if features is not None and features.keys() == found.keys():
            return HostState(found, features, self._names)
        known = features or EMPTY
        values = {index: known[index] if index in known else self._alone(link) for index, link in found.items()}
        there = {index: value for index, value in values.items() if value is not None}
        return HostState({index: found[index] for index in there}, there, self._names)

    def _completed(self, found: Mapping[int, Link]) -> Mapping[int, Link]:
        before = self._state.links
        whole = {index: self.complete(link) for index, link in found.items()}
        return {index: before[index] if before.get(index) == link else link for index, link in whole.items()}

    def _alone(self, link: Link) -> Features | Unreadable | None:
        """The features of one link; None when it is gone."""
        generic: Connection = self._connections.generic
        try:
            return offloads.read(generic, self.family, Ref(link.name, link.ifindex))
        except Gone:
            return None
        except HostError as error:
            return Unreadable(str(error))
