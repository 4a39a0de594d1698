"""Which nodes a policy is for, and which links each of its sections selects; it looks at names and topology only.

A section selects by its `match`; without one it means its kind of link on `bridge.name`; with neither, nothing.
Uplinks of a bridge are its ports that are hardware, bond, team or vlan, and below those a vlan's real device and the
slaves of a bond or team. Loopback, tun, tap and bridge links are never uplinks.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from functools import lru_cache

from virtnet.core.model import Driver, Link, Match, NodeSelector, Policy, Reason, Requirement, Row
from virtnet.values import frozen

AGGREGATES = frozenset({"bond", "team"})
STACKED = frozenset({"vlan", "macvlan", "macvtap", "ipvlan", "ipvtap"})
UPLINK_KINDS = AGGREGATES | {"vlan"}
OVS = frozenset({"openvswitch"})
KUBEVIRT_BRIDGE = "k6t-"


def selects_node(selector: NodeSelector, labels: Mapping[str, str]) -> bool:
    """Whether all labels and expressions hold (the rules of a Kubernetes LabelSelector)."""
    return all(labels.get(key) == value for key, value in selector.labels) and all(
        _holds(expression, labels) for expression in selector.expressions
    )


def _holds(expression: Requirement, labels: Mapping[str, str]) -> bool:
    value = labels.get(expression.key)
    match expression.operator:
        case "In":
            return value is not None and value in expression.values
        case "NotIn":
            return value is None or value not in expression.values
        case "Exists":
            return value is not None
        case _:
            return value is None


@frozen
class Topology:
    """The links of one look, indexed the ways selection needs."""

    links: Mapping[int, Link]
    drivers: Mapping[int, Driver]
    by_name: Mapping[str, Link]
    ports: Mapping[int, tuple[Link, ...]]
    stacked: Mapping[int, tuple[Link, ...]] = field(default_factory=dict)

    @staticmethod
    def of(links: Mapping[int, Link], drivers: Mapping[int, Driver]) -> Topology:
        ports: dict[int, list[Link]] = {}
        stacked: dict[int, list[Link]] = {}
        for link in links.values():
            if link.master:
                ports.setdefault(link.master, []).append(link)
            if link.lower and link.kind in STACKED:
                stacked.setdefault(link.lower, []).append(link)
        return Topology(
            links,
            drivers,
            {link.name: link for link in links.values()},
            {index: tuple(members) for index, members in ports.items()},
            {index: tuple(members) for index, members in stacked.items()},
        )

    def ports_of(self, bridge: str) -> tuple[Link, ...]:
        link = self.by_name.get(bridge)
        return self.ports.get(link.ifindex, ()) if link else ()

    def above(self, link: Link) -> Iterator[Link]:
        """Every link that traffic through `link` can belong to: its masters, and what is stacked on it or them."""
        seen: set[int] = set()
        queue = [link]
        while queue:
            current = queue.pop()
            if current.ifindex in seen:
                continue
            seen.add(current.ifindex)
            yield current
            if current.master in self.links:
                queue.append(self.links[current.master])
            queue.extend(self.stacked.get(current.ifindex, ()))

    def guests_on(self, link: Link) -> tuple[Link, ...]:
        """The taps and macvtaps in use by a guest whose traffic leaves through `link`."""
        users = []
        for upper in self.above(link):
            if upper.kind == "macvtap" and upper.up and upper.carrier:
                users.append(upper)
            users.extend(port for port in self.ports.get(upper.ifindex, ()) if port.is_tap and port.held)
        return tuple(users)


@frozen
class Selection:
    links: tuple[Link, ...] = ()
    rows: tuple[Row, ...] = ()


@lru_cache(maxsize=256)
def globs(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """What matches a name that is as one of the patterns; case counts."""
    return re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns))


def matches(match: Match, link: Link, topology: Topology) -> bool:
    """Whether a link's name and driver are as `match` says; the bridge is the caller's."""
    if match.names and not globs(match.names).match(link.name):
        return False
    if match.drivers:
        driver = topology.drivers.get(link.ifindex)
        return driver is not None and driver.name in match.drivers
    return True


def never_uplink(link: Link) -> bool:
    return link.loopback or link.tun is not None or link.kind == "bridge"


def uplinks_of_bridge(bridge: str, topology: Topology) -> tuple[Link, ...]:
    """The bridge's uplinks with everything below them, each once, uppermost first."""
    found: dict[int, Link] = {}
    queue = [port for port in topology.ports_of(bridge) if port.physical or port.kind in UPLINK_KINDS]
    while queue:
        link = queue.pop(0)
        if link.ifindex in found:
            continue
        found[link.ifindex] = link
        if link.kind in AGGREGATES:
            queue.extend(topology.ports.get(link.ifindex, ()))
        elif link.kind == "vlan" and link.lower in topology.links:
            queue.append(topology.links[link.lower])
    return tuple(found.values())


def uplinks(policy: Policy, topology: Topology) -> Selection:
    if policy.uplink is None:
        return Selection()
    match = policy.uplink.match
    bridge = match.bridge if match else (policy.bridge.name if policy.bridge else None)
    if match is None and bridge is None:
        return Selection(rows=(_selects_nothing(policy, "uplink"),))
    if bridge is not None:
        candidates: Iterable[Link] = uplinks_of_bridge(bridge, topology)
        if match is not None and match.names:
            named = {link.ifindex: link for link in candidates}
            named |= {link.ifindex: link for link in topology.ports_of(bridge) if not never_uplink(link)}
            candidates = named.values()
    else:
        candidates = (link for link in topology.links.values() if not never_uplink(link))
    chosen = tuple(link for link in candidates if match is None or matches(match, link, topology))
    return Selection(chosen, tuple(_uplinks_not_chosen(policy, chosen, topology)))


def _uplinks_not_chosen(policy: Policy, chosen: tuple[Link, ...], topology: Topology) -> Iterator[Row]:
    """A row for each name that was written out and is no uplink, or not there."""
    match = policy.uplink.match if policy.uplink else None
    names = {link.name for link in chosen}
    for name in match.names if match else ():
        if name in names or any(sign in name for sign in "*?["):
            continue
        link = topology.by_name.get(name)
        if link is None:
            yield Row(
                f"link/{name}",
                "uplink.match.names",
                name,
                None,
                Reason.MISSING,
                f"no link is named {name}",
                policy.name,
            )
        elif never_uplink(link):
            kind = "tap" if link.tun else link.kind or "loopback"
            section = {"tap": "tap", "bridge": "bridge"}.get(kind)
            advice = f"; write it under {section}" if section else ""
            text = f"{name} is a {kind} link, not an uplink{advice}"
            yield Row(f"link/{name}", "uplink.match.names", name, kind, Reason.UNSUPPORTED, text, policy.name)


def taps(policy: Policy, topology: Topology) -> Selection:
    if policy.tap is None:
        return Selection()
    match = policy.tap.match
    if match is None and policy.bridge is None:
        return Selection(rows=(_selects_nothing(policy, "tap"),))
    bridge = match.bridge if match else (policy.bridge.name if policy.bridge else None)
    candidates: Iterable[Link] = topology.ports_of(bridge) if bridge is not None else topology.links.values()
    return Selection(
        tuple(link for link in candidates if link.is_tap and (match is None or matches(match, link, topology)))
    )


def bridge(policy: Policy, topology: Topology) -> Selection:
    """The policy's bridge when it is there and one we may manage."""
    spec = policy.bridge
    if spec is None:
        return Selection()
    link = topology.by_name.get(spec.name)
    if spec.name.startswith(KUBEVIRT_BRIDGE):
        return _no_bridge(policy, link, Reason.FOREIGN, f"{spec.name} is KubeVirt's own bridge and is left alone")
    if link is None:
        if spec.create:
            return Selection()
        text = f"bridge {spec.name} does not exist; set bridge.create: true to have it made"
        return _no_bridge(policy, link, Reason.MISSING, text)
    if link.kind in OVS:
        text = f"{spec.name} is an Open vSwitch bridge; only Linux bridges are managed"
        return _no_bridge(policy, link, Reason.UNSUPPORTED, text)
    if link.kind != "bridge":
        text = f"{spec.name} exists and is not a bridge ({link.kind or 'hardware'} link); choose another bridge.name"
        return _no_bridge(policy, link, Reason.FOREIGN, text)
    return Selection((link,))


def _no_bridge(policy: Policy, link: Link | None, reason: Reason, text: str) -> Selection:
    assert policy.bridge is not None
    name = policy.bridge.name
    kind = (link.kind or "hardware") if link else None
    return Selection(rows=(Row(f"link/{name}", "bridge.name", name, kind, reason, text, policy.name),))


def _selects_nothing(policy: Policy, section: str) -> Row:
    text = f"no match and no bridge.name: {section} selects no link; add {section}.match or bridge.name"
    return Row(f"policy/{policy.name}", f"{section}.match", None, None, Reason.MISSING, text, policy.name)
