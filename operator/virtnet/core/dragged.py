"""What changes along with what we set: its original is kept, too, and put back with it. It plans nothing.

master          a port has no LRO, nor have the links below it     dev_disable_lro() in net/core/dev.c
bridge.stp      turning it on brings the delay into 2..30 s        br_stp_start() in net/bridge/br_stp_if.c
mtu of a port   a bridge whose mtu nobody set follows it           br_mtu_auto_adjust() in net/bridge/br_if.c
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set

from virtnet.core import features as feature_names
from virtnet.core import links, select
from virtnet.core.links import Scene
from virtnet.core.model import Deletion, Entry, Features, Link, Recorded, Setting
from virtnet.core.resolve import Desired, LinkWant

LRO = "feature:rx-lro"
DELAY = "bridge.forwardDelaySeconds"
DELAYS_WITH_STP = (2, 30)
"""BR_MIN_FORWARD_DELAY and BR_MAX_FORWARD_DELAY of net/bridge/br_private.h, in seconds."""

MTU_WITHOUT_PORTS = 1500
"""ETH_DATA_LEN: what a bridge falls back to."""


def keys(wanted: Set[str]) -> frozenset[str]:
    """The settings of the same link that change along with wanted ones."""
    dragged = (("master", LRO), ("bridge.stp", DELAY))
    return frozenset(along for key, along in dragged if key in wanted)


def entries(
    scene: Scene, link: Link, want: LinkWant, deletion: Callable[[str], Deletion]
) -> Iterator[tuple[Link, Entry]]:
    """An entry for each setting that is about to change along, of this link or of one below it."""
    master, stp = want.attr("master"), want.attr("bridge.stp")
    if master is not None and not link.master:
        for lower in (link, *below(scene.topology, link)):
            if _wants_lro(scene, lower):
                yield lower, Entry(Setting(lower.ifindex, LRO), True, False, master.policy, deletion(master.policy))
    if stp is not None and stp.value is True and link.bridge is not None and not link.bridge.stp:
        seconds = link.bridge.forward_delay / 100
        then = min(max(seconds, DELAYS_WITH_STP[0]), DELAYS_WITH_STP[1])
        if then != seconds and want.attr(DELAY) is None:
            delay = links.observed_value(scene.state, link, DELAY)
            assert isinstance(delay, int | str)
            yield link, Entry(Setting(link.ifindex, DELAY), delay, int(then), stp.policy, deletion(stp.policy))


def _wants_lro(scene: Scene, link: Link) -> bool:
    features = scene.state.features.get(link.ifindex)
    bit = feature_names.mask_of(("rx-lro",), scene.state.feature_names)
    return isinstance(features, Features) and bool(features.wanted & bit)


def below(topology: select.Topology, link: Link) -> Iterator[Link]:
    """The slaves of a bond or team and a vlan's or macvlan's real device, and what is below those."""
    lower = topology.links.get(link.lower)
    slaves = topology.ports.get(link.ifindex, ()) if link.kind in select.AGGREGATES else ()
    for each in (*slaves, *((lower,) if lower else ())):
        yield each
        yield from below(topology, each)


def kept_below(desired: Iterable[Desired], topology: select.Topology) -> Mapping[int, frozenset[str]]:
    """By ifindex, what of the links below wanted ports must not be put back while those are ports."""
    uppers = [link for members in topology.stacked.values() for link in members]
    uppers += [topology.links[index] for index in topology.ports if index in topology.links]
    return {
        lower.ifindex: frozenset({LRO})
        for wish in desired
        for upper in uppers
        if (want := wish.links.get(upper.ifindex)) is not None and want.attr("master") is not None
        for lower in below(topology, upper)
    }


def waiting(scene: Scene, recorded: Recorded, link: Link) -> frozenset[str]:
    """What is put back in a later round: LRO, when the bond above is to get its own back first.

    The kernel keeps from a slave what its bond does not want (netdev_sync_upper_features() in net/core/dev.c), and does
    not look again when the bond wants it later.
    """
    master = scene.topology.links.get(link.master)
    record = recorded.links.get(link.master)
    entry = record.entries.get(LRO) if record else None
    if master is None or master.kind not in select.AGGREGATES or entry is None or entry.original is not True:
        return frozenset()
    return frozenset() if _wants_lro(scene, master) else frozenset({LRO})


def mtu_before_us(scene: Scene, recorded: Recorded, bridge: Link) -> int:
    """What the mtu of a bridge was before we gave its ports theirs; one that does not follow its ports is as it was."""
    ports = scene.topology.ports.get(bridge.ifindex, ())
    if bridge.mtu != min((port.mtu for port in ports), default=bridge.mtu):
        return bridge.mtu
    known = {port.ifindex: recorded.links[port.ifindex].entries for port in ports if port.ifindex in recorded.links}
    if not any("mtu" in held for held in known.values()):
        return bridge.mtu
    before = [_original_mtu(port, known.get(port.ifindex, {})) for port in ports]
    return min((mtu for mtu in before if mtu is not None), default=MTU_WITHOUT_PORTS)


def _original_mtu(port: Link, held: Mapping[str, Entry]) -> int | None:
    """None for a port that was none before us."""
    if "master" in held and held["master"].original is None:
        return None
    original = held["mtu"].original if "mtu" in held else port.mtu
    return original if isinstance(original, int) else None
