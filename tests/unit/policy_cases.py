"""Policies, good and bad, and what is said of the bad ones: by the models, and by an API server that has the CRD.

Plain data without imports from the package, so that the cluster's tests can send the same table to a real API server.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Spec = dict[str, Any]

BY_SCHEMA = "<schema>"
"""The API server's own schema check refuses it, in its own words; the models say our sentence."""


ACCEPTED = "<accepted>"
"""The API server takes it: it drops null values before it looks, a file with one is more likely a mistake."""


class Case(NamedTuple):
    """`says` is part of the sentence, None for a good policy; `server` what the API server says, if not the same."""

    name: str
    spec: Spec
    says: str | None = None
    server: str | None = None

    @property
    def server_says(self) -> str | None:
        return self.server or self.says


def offloads(**asked: bool) -> Spec:
    return {"uplink": {"offloads": {name.replace("_", "-"): wanted for name, wanted in asked.items()}}}


def nic(**fields: Any) -> Spec:
    return {"guest": {"nic": fields}}


def ports(*names: str) -> Spec:
    return {"bridge": {"name": "br0", "ports": list(names)}}


def selector(**requirement: Any) -> Spec:
    return {"nodeSelector": {"matchExpressions": [{"key": "zone", **requirement}]}}


def labels(**pairs: str) -> Spec:
    return {"nodeSelector": {"matchLabels": pairs}}


def probes(*tcp: str) -> Spec:
    return {"safety": {"probes": {"tcp": list(tcp)}}}


NAME = "write an interface name"
TWICE = "it stands here twice"
MATCH = "write at least one of"
REQUIRED = "is required"

NAMES = [
    Case("a name of fifteen bytes is a name", ports("a" * 15)),
    Case("a name may hold any other character", ports("enp1s0f0np0.10", "br-lan", "v@1", "é")),
    Case("sixteen bytes are too many", ports("a" * 16), NAME, BY_SCHEMA),
    Case("bytes are counted, not characters", ports("é" * 8), NAME),
    Case("an empty name is none", ports(""), NAME),
    Case("a dot is no name", ports("."), NAME),
    Case("two dots are no name", ports(".."), NAME),
    Case("a slash is refused", ports("a/b"), NAME),
    Case("a colon is refused", ports("eth0:1"), NAME),
    Case("a blank is refused", ports("a b"), NAME),
    Case("a tab is refused", ports("a\tb"), NAME),
    Case("a vertical tab is refused", ports("a\vb"), NAME),
    Case("a template is refused", ports("tap%d"), NAME),
    Case("the bridge's own name is checked", {"bridge": {"name": "br/0"}}, NAME),
    Case("the bridge to match is checked", {"uplink": {"match": {"bridge": "br 0"}}}, NAME),
    Case("a pattern is no interface name", {"uplink": {"match": {"names": ["enp[0-9]*s0f[01]np*-a-long-one"]}}}),
    Case("a pattern has no white space", {"tap": {"match": {"names": ["vnet *"]}}}, "write a name or a pattern"),
    Case("a pattern is bounded", {"tap": {"match": {"names": ["x" * 65]}}}, "write a name or a pattern", BY_SCHEMA),
    Case("an empty pattern is none", {"tap": {"match": {"names": [""]}}}, "write a name or a pattern"),
    Case("a driver is one word", {"uplink": {"match": {"drivers": ["bnxt en"]}}}, "write a driver's name"),
]

BRIDGES = [
    Case("an empty policy is good", {}),
    Case("a bridge has a name", {"bridge": {"create": True}}, REQUIRED, BY_SCHEMA),
    Case("a port once", ports("eth0", "eth1")),
    Case("a port twice", ports("eth0", "eth1", "eth0"), TWICE, BY_SCHEMA),
    Case("a bridge in itself", ports("eth0", "br0"), "cannot be its own port"),
    Case("stp with two seconds", {"bridge": {"name": "br0", "stp": True, "forwardDelaySeconds": 2}}),
    Case("stp with one second", {"bridge": {"name": "br0", "stp": True, "forwardDelaySeconds": 1}}, "with stp"),
    Case("stp with an unset delay", {"bridge": {"name": "br0", "stp": True}}),
    Case("no stp and no delay", {"bridge": {"name": "br0", "stp": False, "forwardDelaySeconds": 0}}),
    Case("a delay of 31", {"bridge": {"name": "br0", "forwardDelaySeconds": 31}}, "from 0 to 30", BY_SCHEMA),
    Case("a negative delay", {"bridge": {"name": "br0", "forwardDelaySeconds": -1}}, "from 0 to 30", BY_SCHEMA),
    Case("the longest ageing", {"bridge": {"name": "br0", "ageingTimeSeconds": 1000000}}),
    Case("too long an ageing", {"bridge": {"name": "br0", "ageingTimeSeconds": 1000001}}, "to 1000000", BY_SCHEMA),
    Case("the largest mask", {"bridge": {"name": "br0", "groupForwardMask": 65528}}),
    Case("a mask of reserved groups", {"bridge": {"name": "br0", "groupForwardMask": 4}}, "multiple of 8"),
    Case("too large a mask", {"bridge": {"name": "br0", "groupForwardMask": 65536}}, "to 65528", BY_SCHEMA),
    Case("the smallest mtu", {"bridge": {"name": "br0", "mtu": 68}}),
    Case("the largest mtu", {"bridge": {"name": "br0", "mtu": 65535}}),
    Case("too small an mtu", {"bridge": {"name": "br0", "mtu": 67}}, "from 68 to 65535", BY_SCHEMA),
    Case("too large an mtu", {"tap": {"mtu": 65536}}, "from 68 to 65535", BY_SCHEMA),
    Case("a truth value is no number", {"bridge": {"name": "br0", "mtu": True}}, "whole number", BY_SCHEMA),
    Case("a text is no number", {"bridge": {"name": "br0", "mtu": "1500"}}, "whole number", BY_SCHEMA),
    Case("a fraction is no whole number", {"bridge": {"name": "br0", "mtu": 1500.5}}, "whole number", BY_SCHEMA),
    Case("a text is no truth value", {"bridge": {"name": "br0", "stp": "yes"}}, "true or false", BY_SCHEMA),
    Case("one is no truth value", {"bridge": {"name": "br0", "stp": 1}}, "true or false", BY_SCHEMA),
    Case("a number is no text", {"bridge": {"name": 7}}, "in quotes", BY_SCHEMA),
    Case("an empty value is no value", {"bridge": {"name": "br0", "stp": None}}, "it is empty", ACCEPTED),
    Case("an empty section is no section", {"bridge": None}, "it is empty", ACCEPTED),
    Case("a section is a map", {"bridge": "br0"}, "a map of fields", BY_SCHEMA),
    Case("a list is a list", {"bridge": {"name": "br0", "ports": "eth0"}}, "write a list", BY_SCHEMA),
    Case("a mistyped field", {"bridge": {"name": "br0", "vlanfiltering": True}}, "write vlanFiltering", BY_SCHEMA),
    Case("a Python name", {"bridge": {"name": "br0", "group_forward_mask": 8}}, "write groupForwardMask", BY_SCHEMA),
    Case("a mistyped section", {"uplinks": {}}, "write uplink", BY_SCHEMA),
]

OFFLOADS = [
    Case("everything on", offloads(tx=True, sg=True, tso=True, gso=True, gro=True, ufo=True)),
    Case("everything off", offloads(tx=False, sg=False, tso=False, gso=False, gro=False)),
    Case("an unset prerequisite is not false", offloads(tso=True)),
    Case("tso without tx", offloads(tx=False, tso=True), "tso needs tx: write tx: true"),
    Case("tso without sg", offloads(sg=False, tso=True), "tso needs sg"),
    Case("gso without sg", offloads(sg=False, gso=True), "gso needs sg"),
    Case("gso does not need tx", offloads(tx=False, gso=True)),
    Case("ufo without tx", offloads(tx=False, ufo=True), "ufo needs tx"),
    Case("ufo without sg", offloads(sg=False, ufo=True), "ufo needs sg"),
    Case("UDP segmentation does not need sg", offloads(sg=False, tx_udp_segmentation=True)),
    Case(
        "UDP segmentation needs the checksums of both families",
        {
            "uplink": {
                "offloads": {"tx-udp-segmentation": True, "tx-checksum-ip-generic": False, "tx-checksum-ipv6": False}
            }
        },
        "tx-udp-segmentation needs tx",
    ),
    Case("a kernel name without sg", offloads(sg=False, tx_tcp6_segmentation=True), "tso needs sg"),
    Case("a kernel name without tx", offloads(tx=False, tx_udp_segmentation=True), "tx-udp-segmentation needs tx"),
    Case(
        "a kernel name beats tx", {"uplink": {"offloads": {"tx": False, "tso": True, "tx-checksum-ip-generic": True}}}
    ),
    Case("one checksum of three is not tx", {"uplink": {"offloads": {"tx-checksum-ipv4": False, "tso": True}}}),
    Case(
        "all checksums of IPv4 off",
        {"uplink": {"offloads": {"tx-checksum-ipv4": False, "tx-checksum-ip-generic": False, "tso": True}}},
        "tso needs tx",
    ),
    Case("one member of tso is left out", {"uplink": {"offloads": {"tso": True, "tx-tcp-segmentation": False}}}),
    Case(
        "tso does not ask for mangled ids",
        {"uplink": {"offloads": {"tso": True, "tx": False, "tx-checksum-ip-generic": True, "sg": True}}},
    ),
    Case(
        "mangled ids asked by name",
        {"uplink": {"offloads": {"tx-tcp-mangleid-segmentation": True, "sg": False}}},
        "tso needs sg",
    ),
    Case(
        "scatter-gather by its kernel name",
        {"uplink": {"offloads": {"tx-scatter-gather": False, "gso": True}}},
        "gso needs sg",
    ),
    Case("hardware gro without rx", offloads(rx=False, rx_gro_hw=True), "rx-gro-hw needs rx"),
    Case("gro does not need rx", offloads(rx=False, gro=True)),
    Case("receive TLS without rx", offloads(rx=False, tls_hw_rx_offload=True), "tls-hw-rx-offload needs rx"),
    Case("transmit TLS without tx", offloads(tx=False, tls_hw_tx_offload=True), "tls-hw-tx-offload needs tx"),
    Case("a name nobody knows is the kernel's to judge", offloads(tx_quantum_segmentation=True)),
    Case("a name that can be none", {"uplink": {"offloads": {"TSO": True}}}, "write a feature name"),
    Case("a name that is too long", {"uplink": {"offloads": {"x" * 33: True}}}, "write a feature name"),
    Case("an offload is true or false", {"uplink": {"offloads": {"tso": "on"}}}, "true or false", BY_SCHEMA),
    Case(
        "a bridge's offloads are checked",
        {"bridge": {"name": "br0", "offloads": {"tx": False, "tso": True}}},
        "tso needs tx",
    ),
    Case("gro and gso of a tap", {"tap": {"offloads": {"gro": True, "gso": False}}}),
    Case("tso of a tap", {"tap": {"offloads": {"tso": False}}}, "write them under guest.nic.guest"),
    Case("a kernel name of a tap", {"tap": {"offloads": {"rx-gro": True}}}, "write them under guest.nic.guest"),
]

UPLINKS = [
    Case("rings and channels", {"uplink": {"rings": {"rx": 4096, "tx": 1}, "channels": {"combined": 8}}}),
    Case("a ring of nothing", {"uplink": {"rings": {"rx": 0}}}, "from 1 to", BY_SCHEMA),
    Case("no channels", {"uplink": {"channels": {"combined": 0}}}, "from 1 to", BY_SCHEMA),
    Case("an empty match", {"uplink": {"match": {}}}, MATCH),
    Case("a match without names", {"uplink": {"match": {"names": []}}}, "write at least one", BY_SCHEMA),
    Case("a name twice", {"uplink": {"match": {"names": ["a*", "a*"]}}}, TWICE, BY_SCHEMA),
    Case("a disruption", {"uplink": {"disruption": "WhenNoGuests"}}),
    Case("no such disruption", {"uplink": {"disruption": "Never"}}, "write Immediate or WhenNoGuests", BY_SCHEMA),
]

TAPS = [
    Case("taps with their bridge", {"bridge": {"name": "br0"}, "tap": {"create": [{"name": "tap0", "owner": 107}]}}),
    Case("taps without a bridge", {"tap": {"create": [{"name": "tap0"}]}}, "write bridge.name"),
    Case("no taps need no bridge", {"tap": {"create": []}}),
    Case(
        "a tap twice",
        {"bridge": {"name": "br0"}, "tap": {"create": [{"name": "tap0"}, {"name": "tap0", "owner": 1}]}},
        TWICE,
        BY_SCHEMA,
    ),
    Case("a tap named as its bridge", {"bridge": {"name": "br0"}, "tap": {"create": [{"name": "br0"}]}}, "another one"),
    Case("a tap without a name", {"bridge": {"name": "br0"}, "tap": {"create": [{"owner": 1}]}}, REQUIRED, BY_SCHEMA),
    Case(
        "no such user",
        {"bridge": {"name": "br0"}, "tap": {"create": [{"name": "t", "owner": 2**32 - 1}]}},
        "from 0 to",
        BY_SCHEMA,
    ),
    Case("sixty-four frames", {"tap": {"rxFrames": 64}}),
    Case("too many frames", {"tap": {"rxFrames": 65}}, "from 0 to 64", BY_SCHEMA),
    Case("an empty queue", {"tap": {"txQueueLength": 0}}),
    Case("a negative queue", {"tap": {"txQueueLength": -1}}, "from 0 to", BY_SCHEMA),
    Case("an empty match of taps", {"tap": {"match": {}}}, MATCH),
    Case("taps of pods", {"tap": {"match": {"pods": True}}}),
]

VHOST = [
    Case("the module loaded", {"vhost": {"mode": "Required", "module": {"state": "Loaded"}}}),
    Case("required and absent", {"vhost": {"mode": "Required", "module": {"state": "Absent"}}}, "module.state: Loaded"),
    Case("required and unmanaged", {"vhost": {"mode": "Required", "module": {"state": "Unmanaged"}}}),
    Case("disabled and absent", {"vhost": {"mode": "Disabled", "module": {"state": "Absent"}}}),
    Case("a parameter", {"vhost": {"module": {"parameters": {"experimental_zcopytx": 1}}}}),
    Case("a parameter of two", {"vhost": {"module": {"parameters": {"experimental_zcopytx": 2}}}}, "0 to 1", BY_SCHEMA),
    Case("another parameter", {"vhost": {"module": {"parameters": {"zcopytx": 1}}}}, "no field 'zcopytx'", BY_SCHEMA),
    Case(
        "a vhost mode in small letters", {"vhost": {"mode": "required"}}, "write Auto, Required or Disabled", BY_SCHEMA
    ),
    Case("polling", {"vhost": {"pollMicroseconds": 0}}),
]

GUESTS = [
    Case("queues as a number", nic(queues=256)),
    Case("queues as vcpus", nic(queues="vcpus", maxQueues=8)),
    Case("no queues", nic(queues=0), "a number from 1 to 256, or vcpus"),
    Case("too many queues", nic(queues=257), "a number from 1 to 256, or vcpus"),
    Case("queues in words", nic(queues="many"), "a number from 1 to 256, or vcpus"),
    Case("queues in quotes", nic(queues="4"), "a number from 1 to 256, or vcpus"),
    Case("queues as a truth value", nic(queues=True), "a number from 1 to 256, or vcpus", BY_SCHEMA),
    Case("more queues than the most", nic(queues=8, maxQueues=4), "maxQueues is smaller"),
    Case("too many at most", nic(maxQueues=257), "from 1 to 256", BY_SCHEMA),
    Case("a receive queue", nic(rxQueueSize=1024)),
    Case("an odd receive queue", nic(rxQueueSize=2048), "write 256, 512 or 1024"),
    Case("a transmit queue", nic(txQueueSize=256)),
    Case("a long transmit queue", nic(txQueueSize=512), "a tap takes only 256"),
    Case("a virtio model", nic(model="virtio-non-transitional")),
    Case(
        "vhost with another model", {"vhost": {"mode": "Required"}, **nic(model="e1000")}, "write virtio, ", BY_SCHEMA
    ),
    Case("host offloads", nic(host={"csum": True, "gso": True, "tso4": True, "ecn": True})),
    Case("host tso4 without csum", nic(host={"csum": False, "tso4": True}), "tso needs csum"),
    Case("host tso6 without csum", nic(host={"csum": False, "tso6": True}), "tso needs csum"),
    Case("guest tso4 without csum", nic(guest={"csum": False, "tso4": True}), "tso needs csum"),
    Case("guest ufo without csum", nic(guest={"csum": False, "ufo": True}), "ufo needs csum"),
    Case("tso with an unset csum", nic(guest={"tso4": True})),
    Case("ecn without both tso", nic(guest={"ecn": True, "tso4": False, "tso6": False}), "ecn needs tso"),
    Case("ecn with one tso", nic(guest={"ecn": True, "tso4": False})),
    Case("gso is the host's", nic(guest={"gso": True}), "no field 'gso'", BY_SCHEMA),
    Case("a transmit mode", nic(txMode="iothread", sndbuf=0)),
    Case("a transmit mode under vhost is only warned of", {"vhost": {"mode": "Required"}, **nic(txMode="timer")}),
    Case("a MAC address", {"guest": {"match": {"macs": ["52:54:00:ab:CD:ef"]}}}),
    Case("half a MAC address", {"guest": {"match": {"macs": ["52:54:00"]}}}, "write a MAC address"),
    Case("an empty match of guests", {"guest": {"match": {}}}, MATCH),
    Case(
        "virtual machines",
        {"guest": {"match": {"virtualMachines": {"namespaces": ["db"], "selector": {"matchLabels": {"net": "fast"}}}}}},
    ),
    Case("no namespace", {"guest": {"match": {"virtualMachines": {"namespaces": ["A"]}}}}, "write a namespace"),
    Case("a profile", {"profile": "UplinkGroGsoWorkaround"}),
    Case("a feature with an underscore", {"uplink": {"offloads": {"tx-udp_tnl-segmentation": False}}}),
    Case("no such profile", {"profile": "Fast"}, "write Throughput, ", BY_SCHEMA),
]

FLEETS = [
    Case("labels", labels(**{"kubernetes.io/hostname": "n-1", "zone": ""})),
    Case("a label key with two slashes", labels(**{"a/b/c": "x"}), "write a label key"),
    Case("an empty label key", labels(**{"": "x"}), "write a label key"),
    Case("a label value with a blank", labels(zone="a b"), "write a label value"),
    Case("a label value that is a truth value", {"nodeSelector": {"matchLabels": {"x": True}}}, "in quotes", BY_SCHEMA),
    Case("one of some values", selector(operator="In", values=["a", "b"])),
    Case("one of no values", selector(operator="In", values=[]), "need values"),
    Case("none of unset values", selector(operator="NotIn"), "need values"),
    Case("exists", selector(operator="Exists")),
    Case("exists with values", selector(operator="Exists", values=["a"]), "take none"),
    Case("another operator", selector(operator="Gt", values=["1"]), "write In, NotIn", BY_SCHEMA),
    Case("the extremes of priority", {"priority": -1000}),
    Case("too high a priority", {"priority": 1001}, "from -1000 to 1000", BY_SCHEMA),
    Case("a mode in small letters", {"mode": "audit"}, "write Enforce or Audit", BY_SCHEMA),
    Case("a rollout", {"rollout": {"canary": 0, "maxUnavailable": "100%", "paused": False}}),
    Case("more than all", {"rollout": {"maxUnavailable": "101%"}}, "a percentage from 0% to 100%"),
    Case("a percentage without its sign", {"rollout": {"maxUnavailable": "25"}}, "a percentage from 0% to 100%"),
    Case("a negative number of nodes", {"rollout": {"canary": -1}}, "a number of nodes from 0"),
    Case("no deadline", {"rollout": {"deadlineSeconds": 0}}, "from 1 to", BY_SCHEMA),
    Case("probes", probes("192.0.2.1:443", "db.example.net:5432", "[2001:db8::1]:22", "[fe80::1%br0]:22")),
    Case("a probe without a port", probes("192.0.2.1"), "write host:port"),
    Case("a probe of port 0", probes("192.0.2.1:0"), "write host:port"),
    Case("a probe of port 65536", probes("192.0.2.1:65536"), "write host:port"),
    Case("a probe of bare IPv6", probes("2001:db8::1:443"), "IPv6 address in brackets"),
    Case("a probe with a scheme", probes("https://192.0.2.1:443"), "write host:port"),
    Case("a probe twice", probes("a:1", "a:1"), TWICE, BY_SCHEMA),
    Case("too many probes", probes(*(f"a:{port}" for port in range(1, 18))), "write at most 16", BY_SCHEMA),
    Case("no patience", {"safety": {"timeoutSeconds": 0}}, "from 1 to 600", BY_SCHEMA),
]

CASES = (*NAMES, *BRIDGES, *OFFLOADS, *UPLINKS, *TAPS, *VHOST, *GUESTS, *FLEETS)


def document(spec: Spec, name: str = "example") -> dict[str, Any]:
    """The whole object."""
    return {
        "apiVersion": "virtnet.dev/v1alpha1",
        "kind": "VirtioNetworkPolicy",
        "metadata": {"name": name},
        "spec": spec,
    }
