"""What the kernel tells of by itself: links, their features and tuning, and modules. It never asks and never changes.

Every feature that really changes, by netlink, ioctl or the kernel itself, comes as ETHTOOL_MSG_FEATURES_NTF within some
30 us (NETDEV_FEAT_CHANGE). The same change also comes as RTM_NEWLINK, marked by IFLA_EVENT, and is left out there.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from virtnet.core.model import Features, Link
from virtnet.errors import HostError, NotSupported
from virtnet.host import ethtool, links, netlink, offloads
from virtnet.host.namespaces import Namespace, in_initial_user_namespace

RTMGRP_LINK = 1
RTMGRP_ADDRESSES = 0x10 | 0x100  # of IPv4 and of IPv6
DELADDR = 21
UEVENT_FROM_KERNEL = 1  # the group of the kernel's own uevents; udevd repeats them in group 2
FEATURES_NTF = 13
TUNING_NTF = frozenset({17, 19, 21})  # rings, channels, coalescing
BUFFER_BYTES = 8 << 20
"""Some 3,500 link events; the default buffer holds 92."""
BATCH = 512
"""Datagrams that one drain takes from each socket: a storm must leave room for the repairs."""

_DATAGRAM_BYTES = 64 * 1024

_Bodies = dict[int, bytes]
"""The latest RTM_NEWLINK payload of each link: parsed once at the end, however often the link changed."""


@dataclass(slots=True)
class Events:
    """What happened since the last drain; each link once, with its latest state.

    `gone` comes before `links`: an index in both was removed and is another link now. `lost`: the kernel dropped
    events, and only a full look tells what is. `modules` are names of modules that were loaded or removed,
    `unaddressed` are links that an address was taken from. `seen` has the features that are now of links in `features`,
    where the kernel told them and nothing that it told after that is still unheard.
    """

    features: set[int] = field(default_factory=set)
    seen: dict[int, Features] = field(default_factory=dict)
    tuning: set[int] = field(default_factory=set)
    links: dict[int, Link] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    modules: set[str] = field(default_factory=set)
    unaddressed: set[int] = field(default_factory=set)
    lost: bool = False

    def __bool__(self) -> bool:
        links_heard = self.features or self.tuning or self.links or self.gone or self.unaddressed
        return bool(links_heard or self.modules or self.lost)


class Monitor:
    """Sockets that hear the kernel; non-blocking, for an event loop to watch. Open it before the first look.

    `complete` finishes a parsed link where the kernel's message does not say all (LinuxHost.complete).
    """

    def __init__(
        self,
        namespace: Namespace,
        *,
        buffer_bytes: int = BUFFER_BYTES,
        complete: Callable[[Link], Link] | None = None,
    ) -> None:
        self._complete = complete
        self._buffer = bytearray(_DATAGRAM_BYTES)
        self._view = memoryview(self._buffer)
        self._sockets: list[tuple[socket.socket, Callable[[bytes, Events, _Bodies], None]]] = []
        self.modules_problem = ""
        self._others_wait = self._emptied = self._missed = False
        try:
            groups = RTMGRP_LINK | RTMGRP_ADDRESSES
            self._listen(_ethtool_socket(namespace), _hear_ethtool)
            self._listen(netlink.open_socket(netlink.ROUTE, namespace, groups=groups), _hear_links)
            self._listen_to_modules()
            self._buffer_bytes = min(netlink.widen(listener, buffer_bytes) for listener, _ in self._sockets)
        except BaseException:
            self.close()
            raise

    @property
    def buffer_bytes(self) -> int:
        """The receive buffer that the kernel granted: less than asked without CAP_NET_ADMIN on the machine itself."""
        return self._buffer_bytes

    def filenos(self) -> tuple[int, ...]:
        """The descriptors to watch for reading; all are served by one `drain`."""
        return tuple(listener.fileno() for listener, _ in self._sockets)

    def drain(self) -> Events:
        """Take what is there, at most BATCH datagrams from each socket; what is left keeps the descriptor readable.

        Features come first and, every other time, alone: they are repaired before the same change is read again among
        the links, which takes as long as the repair.
        """
        events, bodies = Events(), dict[int, bytes]()
        for listener, hear in self._sockets:
            for datagram in self._datagrams(listener, events):
                hear(datagram, events, bodies)
            if hear is _hear_ethtool:
                self._doubt(events)
                if events.features and not self._others_wait:
                    self._others_wait = True
                    return events
        self._others_wait = False
        for ifindex, body in bodies.items():
            link = links.parse(body)
            events.links[ifindex] = self._complete(link) if self._complete else link
        return events

    def _doubt(self, events: Events) -> None:
        """Trust what the kernel told of features only where it told all: once it has dropped an event it drops more,
        and says so no second time, until everything before has been taken (netlink_overrun() in af_netlink.c)."""
        self._missed = self._missed or events.lost
        if self._missed or not self._emptied:
            events.seen.clear()
        if self._emptied:
            self._missed = False

    def close(self) -> None:
        for listener, _ in self._sockets:
            listener.close()
        self._sockets.clear()

    def _listen(self, listener: socket.socket, hear: Callable[[bytes, Events, _Bodies], None]) -> None:
        self._sockets.append((listener, hear))
        listener.setblocking(False)

    def _listen_to_modules(self) -> None:
        """Modules are the machine's: their uevents go to the namespaces of its own root only (uevent_net_broadcast)."""
        if not in_initial_user_namespace():
            self.modules_problem = "the kernel does not tell a user namespace of modules that come and go"
            return
        try:
            opened = netlink.open_socket(netlink.KOBJECT_UEVENT, Namespace(), groups=UEVENT_FROM_KERNEL)
        except HostError as refused:
            self.modules_problem = f"modules that come and go are not noticed: {refused}"
            return
        self._listen(opened, _hear_modules)

    def _datagrams(self, listener: socket.socket, events: Events) -> Iterator[bytes]:
        self._emptied = False
        for _ in range(BATCH):
            try:
                size = listener.recv_into(self._buffer)
            except BlockingIOError:
                self._emptied = True
                return
            except OSError as failed:
                if failed.errno != errno.ENOBUFS:
                    raise netlink.error(failed.errno or 0, "hear the kernel") from failed
                events.lost = True
                continue
            yield bytes(self._view[:size])


def _ethtool_socket(namespace: Namespace) -> socket.socket:
    connection = netlink.Connection(netlink.GENERIC, namespace)
    try:
        group = ethtool.family(connection).monitor
    finally:
        connection.close()
    opened = netlink.open_socket(netlink.GENERIC, namespace)
    netlink.join(opened, group)
    return opened


def _hear_links(datagram: bytes, events: Events, bodies: _Bodies) -> None:
    for kind, _, start, end in netlink.messages(datagram):
        if kind == DELADDR:
            events.unaddressed.add(links.ifindex_of(datagram, start))  # where struct ifaddrmsg has it, too
        if kind not in (links.NEWLINK, links.DELLINK) or links.family_of(datagram, start) != socket.AF_UNSPEC:
            continue  # the bridge tells of its ports in its own family; the links themselves come as well
        ifindex = links.ifindex_of(datagram, start)
        if kind == links.DELLINK:
            events.gone.add(ifindex)
            bodies.pop(ifindex, None)
        elif links.event_of(body := datagram[start:end]) != links.EVENT_FEATURES:
            bodies[ifindex] = body


def _hear_ethtool(datagram: bytes, events: Events, _: _Bodies) -> None:
    for _kind, _flags, start, end in netlink.messages(datagram):
        if datagram[start] == FEATURES_NTF:
            ifindex = ethtool.ifindex_of(datagram, start)
            events.features.add(ifindex)
            try:
                events.seen[ifindex] = offloads.parse(datagram[start:end])
            except NotSupported:
                events.seen.pop(ifindex, None)
        elif datagram[start] in TUNING_NTF:
            events.tuning.add(ethtool.ifindex_of(datagram, start))


def _hear_modules(datagram: bytes, events: Events, _: _Bodies) -> None:
    """`add@/module/NAME` or `remove@/module/NAME`, then the variables (lib/kobject_uevent.c)."""
    action, _at, path = datagram.split(b"\0", 1)[0].decode("utf-8", "replace").partition("@")
    if action in ("add", "remove") and path.startswith("/module/"):
        events.modules.add(path.removeprefix("/module/"))
