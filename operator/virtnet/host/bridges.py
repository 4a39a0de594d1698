"""Bridges: making one and setting its options. Ports are links (links.set_master).

Option layout: IFLA_BR_* in include/uapi/linux/if_link.h, br_changelink() in net/bridge/br_netlink.c.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from virtnet.core.model import Ref, Value
from virtnet.errors import Gone, HostError, Refused
from virtnet.host import links, netlink
from virtnet.host.netlink import Connection

CENTISECONDS = 100  # USER_HZ, the unit of the kernel's bridge times

_OPTIONS: Mapping[str, Callable[[Value], bytes]] = {
    "stp": lambda value: netlink.u32(links.BRIDGE_STP, int(value)),
    "forwardDelaySeconds": lambda value: netlink.u32(links.BRIDGE_FORWARD_DELAY, _centiseconds(value)),
    "ageingTimeSeconds": lambda value: netlink.u32(links.BRIDGE_AGEING_TIME, _centiseconds(value)),
    "multicastSnooping": lambda value: netlink.u8(links.BRIDGE_MULTICAST_SNOOPING, int(value)),
    "vlanFiltering": lambda value: netlink.u8(links.BRIDGE_VLAN_FILTERING, int(value)),
    "groupForwardMask": lambda value: netlink.u16(links.BRIDGE_GROUP_FORWARD_MASK, int(value)),
}


def _centiseconds(seconds: Value) -> int:
    """Originals that are no whole seconds are text, such as "0.5"."""
    return round(float(seconds) * CENTISECONDS)


def create(connection: Connection, name: str) -> None:
    """Make a bridge that is up. A bridge of that name is success and left as it is; another kind of link is Refused."""
    try:
        links.create(connection, name, "bridge")
    except Refused as refused:
        kind = _kind_of(connection, name)
        if kind is None:
            raise  # not the name was taken: it is no name, or the kernel has no bridges
        if kind != "bridge":
            raise Refused(f"cannot make bridge {name}: a link of that name exists and is no bridge") from refused


def set_options(connection: Connection, ref: Ref, options: tuple[tuple[str, Value], ...]) -> None:
    """Set options by their API name, times in seconds. Each is tried; what failed is raised together at the end."""
    ifindex = links.find(connection, ref).ifindex
    failed: list[HostError] = []
    for name, value in sorted(options, key=_order):
        try:
            _set_option(connection, ref.name, ifindex, name, value)
        except HostError as error:
            failed.append(error)
    if failed:
        raise type(failed[0])("; ".join(map(str, failed)))


def _kind_of(connection: Connection, name: str) -> str | None:
    try:
        return links.find(connection, Ref(name, 0)).kind
    except Gone:
        return None


def _order(option: tuple[str, Value]) -> int:
    """With STP on the kernel refuses a forward delay under 2 s (br_set_forward_delay): off goes first, on goes last."""
    name, value = option
    if name != "stp":
        return 1
    return 2 if value else 0


def _set_option(connection: Connection, bridge: str, ifindex: int, name: str, value: Value) -> None:
    data = netlink.nest(links.INFO_DATA, _OPTIONS[name](value))
    info = netlink.nest(links.LINK_INFO, netlink.text(links.INFO_KIND, "bridge"), data)
    body = links.HEADER.pack(0, 0, ifindex, 0, 0) + info
    connection.change(links.NEWLINK, body, f"set {name} of bridge {bridge} to {value}")
