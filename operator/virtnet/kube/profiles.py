"""The profiles: named sets of values that stand under the fields of a policy; what is written always wins.

No profile is said to be faster. Each is a set of values that somebody measured or needed somewhere: docs/profiles.md
names the source of each, what it costs, and how to find out whether it helps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Written = Mapping[str, Any]
Leaf = tuple[tuple[str, ...], Any]

_ON = True
_KEPT_ON = {"tx": _ON, "sg": _ON, "tso": _ON, "gso": _ON, "gro": _ON}

PROFILES: Mapping[str, Written] = {
    "Throughput": {
        "vhost": {"mode": "Required"},
        "uplink": {"offloads": _KEPT_ON},
        "guest": {
            "nic": {
                "queues": "vcpus",
                "maxQueues": 8,
                "rxQueueSize": 1024,
                "host": {"csum": _ON, "gso": _ON, "tso4": _ON, "tso6": _ON},
                "guest": {"csum": _ON, "tso4": _ON, "tso6": _ON},
                "mergeableRxBuffers": _ON,
            }
        },
    },
    "UdpHostToGuest": {"vhost": {"mode": "Disabled"}, "guest": {"nic": {"rxQueueSize": 1024}}},
    "UplinkGroGsoWorkaround": {
        "uplink": {"match": {"drivers": ["bnxt_en"]}, "offloads": {"gro": False, "gso": False}},
    },
    "TunnelChecksumWorkaround": {
        "uplink": {
            "match": {"drivers": ["vmxnet3"]},
            "offloads": {"tx-udp_tnl-segmentation": False, "tx-udp_tnl-csum-segmentation": False},
        },
    },
    "LegacyTsoGsoDisabled": {"uplink": {"offloads": {"tso": False, "gso": False}}},
}
"""By name, in the shape of a policy's spec."""

_SELECTING = ("uplink", "guest")
"""Sections that mean links or NICs by their `match`, or those of bridge.name."""


def under(written: Written, profile: str, fault: Callable[[Written], str]) -> tuple[Written, tuple[str, ...]]:
    """The spec with the profile's values under it, and a sentence for each value that contradicts what is written.

    `fault` says what the rules of the API have against a spec, "" for nothing. A value that they refuse beside what is
    written is left out, because what is written wins.
    """
    leaves = list(_leaves(_selecting(written, PROFILES[profile])))
    whole = _merged(written, leaves)
    if not fault(whole):
        return whole, ()
    merged, said = copy.deepcopy(dict(written)), []
    for path, value in leaves:
        tried = _merged(merged, [(path, value)])
        refused = fault(tried)
        if refused:
            said.append(
                f"profile {profile}: {'.'.join(path)} is left out, for what is written contradicts it: {refused}"
            )
        else:
            merged = tried
    return merged, tuple(said)


def _selecting(written: Written, values: Written) -> Written:
    """Without the sections that would select nothing, unless all would: a profile shall not ask in vain.

    A match on drivers that comes with a profile is one on the uplinks of the bridge, where the policy has one.
    """
    bridge = written["bridge"]["name"] if "bridge" in written else None
    found = copy.deepcopy(dict(values))
    match = found.get("uplink", {}).get("match")
    if match is not None:
        if written.get("uplink", {}).get("match"):
            del found["uplink"]["match"]
        elif bridge:
            match["bridge"] = bridge
    idle = [
        name
        for name in _SELECTING
        if name in found and not (bridge or written.get(name, {}).get("match") or found[name].get("match"))
    ]
    return found if len(idle) == len(found.keys() & set(_SELECTING)) else {k: found[k] for k in found if k not in idle}


def _leaves(values: Written, path: tuple[str, ...] = ()) -> Iterator[Leaf]:
    for name, value in values.items():
        if isinstance(value, dict) and (*path, name) != ("uplink", "match"):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _merged(written: Written, leaves: list[Leaf]) -> dict[str, Any]:
    """A copy with these values wherever nothing is written. `maxQueues` bounds only the queues that it came with."""
    found = copy.deepcopy(dict(written))
    own_queues = "queues" in found.get("guest", {}).get("nic", {})
    for path, value in leaves:
        if path == ("guest", "nic", "maxQueues") and own_queues and written["guest"]["nic"]["queues"] != "vcpus":
            continue
        section = found
        for name in path[:-1]:
            section = section.setdefault(name, {})
        section.setdefault(path[-1], copy.deepcopy(value))
    return found
