"""Whether guests can move between nodes without a feature going away under them: the kernels' feature bits, compared.

A guest keeps across a live migration what it negotiated at its start. A node whose tun or vhost lacks one of those bits
refuses it (QEMU: "Features 0x... unsupported"), so only nodes with the same bits are compatible both ways. It knows
nothing of QEMU's version or the CPU, which libvirt compares itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from virtnet.core.model import Fingerprint
from virtnet.values import frozen

TUN_BITS: Mapping[int, str] = {
    0: "TUN",
    1: "TAP",
    4: "NAPI",
    5: "NAPI_FRAGS",
    6: "NO_CARRIER",
    8: "MULTI_QUEUE",
    12: "NO_PI",
    13: "ONE_QUEUE",
    14: "VNET_HDR",
}
"""IFF_* of include/uapi/linux/if_tun.h, as tun_chr_ioctl() answers TUNGETFEATURES."""

VHOST_BITS: Mapping[int, str] = {
    15: "MRG_RXBUF",
    24: "NOTIFY_ON_EMPTY",
    26: "LOG_ALL",
    27: "VIRTIO_NET_HDR",
    28: "RING_INDIRECT_DESC",
    29: "RING_EVENT_IDX",
    32: "VERSION_1",
    33: "ACCESS_PLATFORM",
    34: "RING_PACKED",
    35: "IN_ORDER",
    40: "RING_RESET",
    46: "HOST_UDP_TUNNEL_GSO",
    47: "GUEST_UDP_TUNNEL_GSO",
    48: "HOST_UDP_TUNNEL_GSO_CSUM",
    49: "GUEST_UDP_TUNNEL_GSO_CSUM",
}
"""VHOST_NET_FEATURES of drivers/vhost/net.c, the numbers of virtio 1.2 and of vhost itself."""

MOST_BITS = 4
MOST_NODES = 3


@frozen
class Compared:
    """`alike` None: fewer than two nodes tell anything."""

    alike: bool | None
    message: str = ""


def compare(nodes: Mapping[str, Fingerprint]) -> Compared:
    """Compare the nodes that share a policy. A device that a node does not tell of takes no part."""
    distinct = set(nodes.values())
    telling = sum(1 for found in nodes.values() if found != Fingerprint())
    if telling < 2:
        return Compared(None)
    if len(distinct) == 1:
        return Compared(True, f"tun and vhost have the same features on all {telling} nodes")
    said = [
        *_differences("tun", TUN_BITS, {name: found.tun for name, found in nodes.items()}),
        *_differences("vhost", VHOST_BITS, {name: found.vhost for name, found in nodes.items()}),
    ]
    if not said:
        return Compared(True, "tun and vhost have the same features on all nodes that tell them")
    more = len(said) - MOST_BITS
    return Compared(False, "; ".join(said[:MOST_BITS]) + (f"; and {more} more bits" if more > 0 else ""))


def _differences(device: str, names: Mapping[int, str], values: Mapping[str, int | None]) -> Iterator[str]:
    """A sentence for each bit that is not the same everywhere."""
    told = {node: value for node, value in values.items() if value is not None}
    for bit in _differing(told.values()):
        has = sorted(node for node, value in told.items() if value >> bit & 1)
        lacks = sorted(told.keys() - set(has))
        name = f"{names[bit]} (bit {bit})" if bit in names else f"bit {bit}"
        yield f"{device} {name}: on {_some(has)}, not on {_some(lacks)}"


def _differing(values: Iterable[int]) -> Iterator[int]:
    every, some = -1, 0
    for value in values:
        every, some = every & value, some | value
    different = some & ~every
    return (bit for bit in range(different.bit_length()) if different >> bit & 1)


def _some(nodes: list[str]) -> str:
    more = len(nodes) - MOST_NODES
    return ", ".join(nodes[:MOST_NODES]) + (f" and {more} more" if more > 0 else "")
