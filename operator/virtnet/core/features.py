"""What offload feature names mean: ethtool's short names, the kernel's names, and what one feature needs from another.

Sources: ethtool's `off_flag_def` table (common.c) for the short names; `netdev_fix_features()` in the kernel's
net/core/dev.c for the prerequisites.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from functools import lru_cache

SHORT: Mapping[str, tuple[str, ...]] = {
    "rx": ("rx-checksum",),
    "tx": (
        "tx-checksum-ipv4",
        "tx-checksum-ip-generic",
        "tx-checksum-ipv6",
        "tx-checksum-fcoe-crc",
        "tx-checksum-sctp",
    ),
    "sg": ("tx-scatter-gather", "tx-scatter-gather-fraglist"),
    "tso": (
        "tx-tcp-segmentation",
        "tx-tcp-ecn-segmentation",
        "tx-tcp-mangleid-segmentation",
        "tx-tcp6-segmentation",
        "tx-tcp-accecn-segmentation",
    ),
    "ufo": ("tx-udp-fragmentation",),
    "gso": ("tx-generic-segmentation",),
    "gro": ("rx-gro",),
    "lro": ("rx-lro",),
    "rxvlan": ("rx-vlan-hw-parse",),
    "txvlan": ("tx-vlan-hw-insert",),
    "ntuple": ("rx-ntuple-filter",),
    "rxhash": ("rx-hashing",),
}
"""Every short name of the API and the kernel features that it means."""

NOT_ASKED_BY_TRUE: Mapping[str, frozenset[str]] = {
    "tso": frozenset({"tx-tcp-mangleid-segmentation", "tx-tcp-accecn-segmentation"})
}
"""Members that a short name's `true` leaves alone: mangling IP ids is never what "tso on" means, and AccECN is off on
every bridge with a tap, because no guest can negotiate it."""

MAY_RESET = frozenset({"rx-lro", "rx-ntuple-filter", "rx-vlan-hw-parse", "rx-hashing", "rx-gro-hw", "rx-checksum"})
"""Features whose change can make a hardware driver reset its link."""

_CHECKSUM4 = ("tx-checksum-ip-generic", "tx-checksum-ipv4")
_CHECKSUM6 = ("tx-checksum-ip-generic", "tx-checksum-ipv6")
_SG = ("tx-scatter-gather",)

NEEDS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "tx-tcp-segmentation": (_SG, _CHECKSUM4),
    "tx-tcp6-segmentation": (_SG, _CHECKSUM6),
    "tx-tcp-ecn-segmentation": (_SG, ("tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-tcp-mangleid-segmentation")),
    "tx-tcp-mangleid-segmentation": (_SG, ("tx-tcp-segmentation",)),
    "tx-generic-segmentation": (_SG,),
    "tx-udp-segmentation": (_CHECKSUM4, _CHECKSUM6),
    "tx-udp-fragmentation": (_SG, _CHECKSUM4),
    "rx-gro-hw": (("rx-checksum",),),
    "tls-hw-rx-offload": (("rx-checksum",),),
    "tls-hw-tx-offload": (_CHECKSUM4,),
}
"""For each feature the alternatives it needs: every tuple must have one member that is active."""


def names_known(kernel_names: Iterable[str]) -> frozenset[str]:
    """All names a policy may use on this kernel."""
    return frozenset(SHORT) | frozenset(name for name in kernel_names if name)


@lru_cache(maxsize=64)
def index(kernel_names: tuple[str, ...]) -> Mapping[str, int]:
    """Kernel feature name -> bit number. Unnamed bits are left out."""
    return {name: bit for bit, name in enumerate(kernel_names) if name}


def members(name: str, wanted: bool, kernel_names: tuple[str, ...]) -> int | None:
    """The kernel features that `name: wanted` asks for, as a bit mask; None when this kernel has none of them."""
    bits = index(kernel_names)
    left_alone = NOT_ASKED_BY_TRUE.get(name, frozenset()) if wanted else frozenset()
    asked = [member for member in SHORT.get(name, (name,)) if member in bits and member not in left_alone]
    return mask_of(asked, kernel_names) if asked else None


def mask_of(names: Iterable[str], kernel_names: tuple[str, ...]) -> int:
    bits = index(kernel_names)
    mask = 0
    for name in names:
        if name in bits:
            mask |= 1 << bits[name]
    return mask


def names_of(mask: int, kernel_names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the bits in `mask`, in the kernel's order."""
    return tuple([kernel_names[bit] for bit in places(mask)])


def places(mask: int) -> list[int]:
    """The numbers of the bits in `mask`, lowest first."""
    found = []
    while mask:
        lowest = mask & -mask
        found.append(lowest.bit_length() - 1)
        mask ^= lowest
    return found


def nearest(name: str, kernel_names: Iterable[str]) -> str | None:
    """The known name that a mistyped one most likely means."""
    found = difflib.get_close_matches(name, sorted(names_known(kernel_names)), n=1, cutoff=0.5)
    return found[0] if found else None


def missing_prerequisite(name: str, active: int, kernel_names: tuple[str, ...]) -> tuple[str, ...] | None:
    """The alternatives of the first prerequisite of `name` that is not active, or None when all are."""
    for alternatives in NEEDS.get(name, ()):
        if not mask_of(alternatives, kernel_names) & active:
            return alternatives
    return None


def starved(off: int, kernel_names: tuple[str, ...]) -> int:
    """`off`, and every feature that cannot be on while those are off."""
    bits = index(kernel_names)
    needs = [
        (1 << bits[name], mask)
        for name, alternatives in NEEDS.items()
        if name in bits
        for mask in (mask_of(one, kernel_names) for one in alternatives)
        if mask
    ]
    while True:
        more = off
        for bit, mask in needs:
            if not mask & ~more:
                more |= bit
        if more == off:
            return off
        off = more
