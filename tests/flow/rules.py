"""What Linux does to offload features, and what the link kinds and drivers of the fake start with; pure, no state.

Sources: net/core/dev.c (`netdev_fix_features`, `netdev_increment_features`), net/bridge/br_if.c
(`br_features_recompute`), include/linux/netdev_features.h, drivers/net/tun.c, drivers/net/veth.c; the names and the
starting values of veth, tap, bridge and lo are those of Linux 6.18, which tests/kernel/test_fake_agrees.py compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from virtnet.core.model import Channels, Driver, Features, Rings

_NAMED = """
0 tx-scatter-gather, 1 tx-checksum-ipv4, 3 tx-checksum-ip-generic, 4 tx-checksum-ipv6, 5 highdma,
6 tx-scatter-gather-fraglist, 7 tx-vlan-hw-insert, 8 rx-vlan-hw-parse, 9 rx-vlan-filter, 10 vlan-challenged,
11 tx-generic-segmentation, 14 rx-gro, 15 rx-lro, 16 tx-tcp-segmentation, 17 tx-gso-robust,
18 tx-tcp-ecn-segmentation, 19 tx-tcp-mangleid-segmentation, 20 tx-tcp6-segmentation, 21 tx-fcoe-segmentation,
22 tx-gre-segmentation, 23 tx-gre-csum-segmentation, 24 tx-ipxip4-segmentation, 25 tx-ipxip6-segmentation,
26 tx-udp_tnl-segmentation, 27 tx-udp_tnl-csum-segmentation, 28 tx-gso-partial, 29 tx-tunnel-remcsum-segmentation,
30 tx-sctp-segmentation, 31 tx-esp-segmentation, 33 tx-udp-segmentation, 34 tx-gso-list,
35 tx-tcp-accecn-segmentation, 36 tx-checksum-fcoe-crc, 37 tx-checksum-sctp, 38 rx-ntuple-filter, 39 rx-hashing,
40 rx-checksum, 41 tx-nocache-copy, 42 loopback, 43 rx-fcs, 44 rx-all, 45 tx-vlan-stag-hw-insert,
46 rx-vlan-stag-hw-parse, 47 rx-vlan-stag-filter, 48 l2-fwd-offload, 49 hw-tc-offload, 50 esp-hw-offload,
51 esp-tx-csum-hw-offload, 52 rx-udp_tunnel-port-offload, 53 tls-hw-tx-offload, 54 tls-hw-rx-offload, 55 rx-gro-hw,
56 tls-hw-record, 57 rx-gro-list, 58 macsec-hw-offload, 59 rx-udp-gro-forwarding, 60 hsr-tag-ins-offload,
61 hsr-tag-rm-offload, 62 hsr-fwd-offload, 63 hsr-dup-offload
"""


def _names() -> tuple[str, ...]:
    named = dict(entry.split() for entry in _NAMED.replace("\n", " ").split(","))
    return tuple(named.get(str(bit), "") for bit in range(64))


FEATURE_NAMES = _names()
"""Linux 6.18's feature strings by bit number; bits without a name are "", as ETHTOOL_MSG_STRSET_GET leaves them."""

NAMED = sum(1 << bit for bit, name in enumerate(FEATURE_NAMES) if name)


def mask(names: str | Iterable[str]) -> int:
    """The bits of kernel feature names (one string with blanks between, or several); unknown ones fail."""
    return _mask(names if isinstance(names, str) else " ".join(names))


@lru_cache(maxsize=1024)
def _mask(names: str) -> int:
    return sum(1 << FEATURE_NAMES.index(word) for word in names.split())


SG = mask("tx-scatter-gather")
HW_CSUM = mask("tx-checksum-ip-generic")
IP_CSUM = mask("tx-checksum-ipv4")
IPV6_CSUM = mask("tx-checksum-ipv6")
RX_CSUM = mask("rx-checksum")
TSO = mask("tx-tcp-segmentation")
TSO6 = mask("tx-tcp6-segmentation")
TSO_ECN = mask("tx-tcp-ecn-segmentation")
TSO_MANGLEID = mask("tx-tcp-mangleid-segmentation")
ALL_TSO = TSO | TSO6 | TSO_ECN | TSO_MANGLEID
ACCECN = mask("tx-tcp-accecn-segmentation")
GSO = mask("tx-generic-segmentation")
UDP_L4 = mask("tx-udp-segmentation")
LRO = mask("rx-lro")
GRO_HW = mask("rx-gro-hw")
NEVER_CHANGE = mask("vlan-challenged")
GSO_UDP = 1 << 32  # NETIF_F_GSO_UDP has lost its name, yet bridges still offer it
GSO_SOFTWARE = ALL_TSO | ACCECN | UDP_L4 | mask("tx-sctp-segmentation tx-gso-list")
ONE_FOR_ALL = GSO_SOFTWARE | SG | NEVER_CHANGE | mask("tx-gso-robust highdma tx-scatter-gather-fraglist")
ALL_FOR_ALL = mask("tx-nocache-copy tx-fcoe-segmentation")
CSUM_MASK = HW_CSUM | IP_CSUM | IPV6_CSUM
TUN_USER_FEATURES = (
    HW_CSUM | TSO_ECN | TSO | TSO6 | UDP_L4 | mask("tx-udp_tnl-segmentation tx-udp_tnl-csum-segmentation")
)
"""What only the process that holds a tap can turn on (TUNSETOFFLOAD)."""


def fix(features: int) -> int:
    """`netdev_fix_features()`: what is left of `features` once every one without its prerequisite is dropped."""
    if features & HW_CSUM:
        features &= ~(IP_CSUM | IPV6_CSUM)
    features = _fix_segmentation(features)
    if not features & RX_CSUM:
        features &= ~(GRO_HW | mask("tls-hw-rx-offload"))
    if features & mask("rx-fcs"):
        features &= ~(LRO | GRO_HW)
    if features & GRO_HW:
        features &= ~LRO
    if not _checksums_both(features):
        features &= ~(UDP_L4 | mask("tls-hw-tx-offload"))
    return features


def _fix_segmentation(features: int) -> int:
    if not features & SG:
        features &= ~(ALL_TSO | GSO)
    if features & TSO and not features & (HW_CSUM | IP_CSUM):
        features &= ~(TSO | TSO_ECN)
    if not features & (HW_CSUM | IPV6_CSUM):
        features &= ~TSO6
    if not features & TSO:
        features &= ~TSO_MANGLEID
    if features & ALL_TSO == TSO_ECN:
        features &= ~TSO_ECN
    return features


def _checksums_both(features: int) -> bool:
    both = IP_CSUM | IPV6_CSUM
    return bool(features & HW_CSUM) or features & both == both


def of_bridge(asked: int, ports: Iterable[int]) -> int:
    """`br_features_recompute()`: what a bridge that wants `asked` may have over ports with these active features."""
    actives = list(ports)
    if not actives:
        return asked
    features = asked & ~ONE_FOR_ALL
    for active in actives:
        features = _increment(features, active, asked)
    return _increment(features, ALL_TSO | ALL_FOR_ALL, asked)


def _increment(features: int, one: int, asked: int) -> int:
    allowed = asked | NEVER_CHANGE | (CSUM_MASK if asked & HW_CSUM else 0)
    features |= one & (ONE_FOR_ALL | CSUM_MASK) & allowed
    features &= one | ~ALL_FOR_ALL
    return features & ~(IP_CSUM | IPV6_CSUM) if features & HW_CSUM else features


@dataclass(frozen=True, slots=True)
class Profile:
    """How links of one kind, or of one driver, start and what they allow.

    `kind` is the kernel's IFLA_INFO_KIND. `refuses` are the features the driver never turns on, whatever is wanted.
    `round_ring` is what the driver makes of an accepted ring size. `frames_max` None: no rx-frames coalescing.
    """

    kind: str
    driver: Driver
    features: Features
    refuses: int = 0
    mtu_max: int = 65535
    rings: Rings | None = None
    round_ring: Callable[[int], int] = lambda size: size
    channels: Channels | None = None
    frames_max: int | None = None

    @property
    def physical(self) -> bool:
        return not self.kind and bool(self.driver.bus)


def start(on: str, off: str = "", fixed_on: str = "", refuses: int = 0, unnamed: int = 0) -> Features:
    """Features of a fresh link: `on` and `off` can be changed, `fixed_on` cannot."""
    soft_off = "rx-gro-list rx-udp-gro-forwarding"
    wanted = mask(on) | unnamed
    active = fix((wanted | mask(fixed_on)) & ~refuses)
    return Features(hw=wanted | mask(off) | mask(soft_off), wanted=wanted, active=active, nochange=NEVER_CHANGE)


_TSO = "tx-tcp-segmentation tx-tcp-ecn-segmentation tx-tcp6-segmentation"
_ALL_TSO = f"{_TSO} tx-tcp-mangleid-segmentation"
_TUNNELS = (
    "tx-gre-segmentation tx-gre-csum-segmentation tx-ipxip4-segmentation tx-ipxip6-segmentation "
    "tx-udp_tnl-segmentation tx-udp_tnl-csum-segmentation"
)
_SGS = "tx-scatter-gather tx-scatter-gather-fraglist"
_STACKED = (
    f"{_SGS} tx-checksum-ip-generic highdma tx-vlan-hw-insert tx-generic-segmentation rx-gro {_ALL_TSO} "
    f"tx-tcp-accecn-segmentation {_TUNNELS} tx-sctp-segmentation tx-udp-segmentation tx-gso-list "
    "tx-vlan-stag-hw-insert"
)
_BRIDGE = start(
    f"{_STACKED} tx-gso-robust tx-fcoe-segmentation tx-gso-partial tx-tunnel-remcsum-segmentation tx-esp-segmentation",
    off="tx-nocache-copy",
    unnamed=GSO_UDP,
)
_VETH = start(
    f"{_STACKED} rx-vlan-hw-parse tx-checksum-sctp rx-checksum rx-vlan-stag-hw-parse".replace(" rx-gro ", " "),
    off="rx-gro tx-nocache-copy",
)
_TAP = start(
    f"{_SGS} tx-checksum-ip-generic tx-vlan-hw-insert tx-generic-segmentation rx-gro {_TSO} tx-udp_tnl-segmentation "
    "tx-udp_tnl-csum-segmentation tx-udp-segmentation tx-vlan-stag-hw-insert",
    off="tx-tcp-mangleid-segmentation tx-nocache-copy",
    refuses=TUN_USER_FEATURES,
)
_LO = start(
    f"tx-generic-segmentation rx-gro {_ALL_TSO} tx-tcp-accecn-segmentation tx-sctp-segmentation tx-udp-segmentation "
    "tx-gso-list",
    fixed_on=f"{_SGS} tx-checksum-ip-generic highdma vlan-challenged tx-checksum-sctp rx-checksum loopback",
)
_NIC = "tx-scatter-gather tx-generic-segmentation rx-gro rx-checksum tx-tcp-segmentation tx-tcp6-segmentation"
_VLAN_TAGS = "tx-vlan-hw-insert rx-vlan-hw-parse"


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _multiple_of_eight(size: int) -> int:
    return max(64, (size + 7) // 8 * 8)


def _software(kind: str, features: Features, **more: int) -> Profile:
    return Profile(kind, Driver(kind, "1.0"), features, **more)  # type: ignore[arg-type]


_COMBINED_1 = Channels(combined=0, rx=None, tx=None, combined_max=1, rx_max=None, tx_max=None)

PROFILES: Mapping[str, Profile] = {
    "lo": Profile("", Driver(""), _LO),
    "bridge": _software("bridge", _BRIDGE),
    "bond": _software("bond", start(f"{_STACKED} rx-lro", off="tx-nocache-copy")),
    "team": _software("team", start(_STACKED, off="tx-nocache-copy")),
    "vlan": _software("vlan", start(_STACKED, off="tx-nocache-copy")),
    "macvtap": _software("macvtap", start(_STACKED, off="tx-nocache-copy")),
    "veth": Profile("veth", Driver("veth", "1.0"), _VETH, channels=Channels(None, 1, 1, None, 2, 2)),
    "tap": Profile(
        "tun", Driver("tun", "1.6", "tap"), _TAP, TUN_USER_FEATURES, 65521, channels=_COMBINED_1, frames_max=64
    ),
    "tun": Profile(
        "tun", Driver("tun", "1.6", "tun"), _TAP, TUN_USER_FEATURES, 65535, channels=_COMBINED_1, frames_max=64
    ),
    "e1000e": Profile(
        "",
        Driver("e1000e", "6.18", "0000:00:03.0"),
        start(
            f"{_NIC} {_VLAN_TAGS} tx-checksum-ip-generic rx-hashing",
            off="rx-fcs rx-all tx-nocache-copy",
            fixed_on="highdma rx-vlan-filter",
        ),
        mtu_max=9216,
        rings=Rings(256, 256, 4096, 4096),
        round_ring=_multiple_of_eight,
    ),
    "r8169": Profile(
        "",
        Driver("r8169", "6.18", "0000:00:04.0"),
        start(f"{_NIC} {_VLAN_TAGS} tx-checksum-ipv4 tx-checksum-ipv6", off="rx-fcs rx-all", fixed_on="highdma"),
        mtu_max=9194,
    ),
    "virtio_net": Profile(
        "",
        Driver("virtio_net", "1.0.0", "0000:00:05.0"),
        start(
            "tx-scatter-gather tx-generic-segmentation rx-gro tx-checksum-ip-generic rx-gro-hw tx-udp-segmentation "
            f"{_TSO}",
            off="tx-nocache-copy",
            fixed_on="highdma rx-checksum tx-gso-robust rx-vlan-filter",
        ),
        rings=Rings(256, 256, 1024, 1024),
        channels=Channels(1, None, None, 4, None, None),
    ),
    "mlx5_core": Profile(
        "",
        Driver("mlx5_core", "6.18", "0000:00:06.0"),
        start(
            f"{_NIC} {_VLAN_TAGS} tx-checksum-ip-generic tx-udp-segmentation rx-hashing rx-vlan-filter {_TUNNELS}",
            off="rx-lro rx-gro-hw rx-ntuple-filter rx-fcs rx-all hw-tc-offload tls-hw-tx-offload tls-hw-rx-offload",
            fixed_on="highdma",
        ),
        mtu_max=9978,
        rings=Rings(1024, 1024, 8192, 8192),
        round_ring=_power_of_two,
        channels=Channels(8, None, None, 8, None, None),
    ),
}
"""By the word that names them in a host's text: a kind for software links, a driver for hardware."""
