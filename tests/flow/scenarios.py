"""Random hosts, policies and acts, as the text that tests.flow.walk reads; it runs nothing."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import strategies as st

from tests.flow import text
from tests.flow.policies import read_line
from virtnet.errors import PolicyError
from virtnet.kube import rules

Strategy = st.SearchStrategy

BRIDGES = ("br0", "br1")
LINKS = ("eth0", "eth1", "v0", "bond0", "vlan5", "tap0", "tap1")
TAPS = ("tap0", "tap1", "vm0")
FEATURES = ("rx", "tx", "sg", "tso", "gso", "gro", "lro", "rxvlan", "rxhash", "ntuple")
KERNEL_NAMES = ("tx-udp-segmentation", "rx-gro-hw", "tx-tcp6-segmentation", "tx-nocache-copy", "no-such-feature")
NAMES = ("p", "q", "r")
STRANGER = "idle0 veth -gro"
"""A link that no policy here can mean: whatever happens, it stays as it is."""


# --- hosts -------------------------------------------------------------------------------------------------


def hosts() -> Strategy[str]:
    """One to ten links and a module; what no kernel could show (lro on a port) is left out."""
    return _hosts().filter(_stands)


def _stands(lines: str) -> bool:
    try:
        text.parse(lines)
    except AssertionError:
        return False
    return True


@st.composite
def _hosts(draw: st.DrawFn) -> str:
    bridges = draw(st.sampled_from((("br0",), ("br0", "br1"), ())))
    lines = [f"{name} bridge {draw(_words(_BRIDGE_WORDS))}" for name in bridges]
    bond = draw(st.booleans())
    if bond:
        lines.append(f"bond0 bond {_master(draw, bridges)} {draw(st.sampled_from(('', '+lro', '-lro', '-tso')))}")
    masters = [*bridges, *(["bond0"] if bond else [])]
    for name in draw(st.sampled_from((("eth0",), ("eth0", "eth1"), ()))):
        driver = draw(st.sampled_from(("mlx5_core", "e1000e", "r8169", "virtio_net")))
        lines.append(f"{name} {driver} {_master(draw, masters)} {draw(_words(_nic_words(driver)))}")
        if name == "eth0" and draw(st.booleans()):
            lines.append(f"vlan5 vlan lower=eth0 {_master(draw, bridges)}")
    if draw(st.booleans()):
        lines.append(f"v0 veth {_master(draw, bridges)} {draw(_words(('-gro', '+gro', '-tso', 'mtu=1400', 'down')))}")
    for name in draw(st.sampled_from((("tap0",), ("tap0", "tap1"), ()))):
        lines.append(f"{name} tap {_master(draw, bridges)} {draw(_words(_TAP_WORDS))}")
    lines += [STRANGER, draw(st.sampled_from(_MODULES))]
    return "\n".join(line.replace("  ", " ").rstrip() for line in lines)


_BRIDGE_WORDS = (
    "mtu=1400",
    "stp=on",
    "delay=4",
    "delay=0.5",
    "delay=40",
    "ageing=0",
    "snooping=off",
    "vlan=on",
    "mask=8",
    "-tso",
    "-gro",
)
_TAP_WORDS = (
    "vnet_hdr",
    "mq",
    "owner=107",
    "group=36",
    "frames=8",
    "mtu=1400",
    "txqlen=500",
    "-gro",
    "held=qemu:7:vm1",
)
_MODULES = (
    "vhost_net Absent",
    "vhost_net Loaded experimental_zcopytx=0",
    "vhost_net Loaded experimental_zcopytx=1",
    "vhost_net Loaded experimental_zcopytx=0 used=qemu:7:vm1",
    "vhost_net BuiltIn experimental_zcopytx=0",
    "vhost_net Missing",
    'vhost_net Absent\nfile /etc/modprobe.d/virtnet-vhost_net.conf "options vhost_net experimental_zcopytx=1\\n"',
)


def _nic_words(driver: str) -> tuple[str, ...]:
    words = ("-tso", "-gro", "-sg", "mtu=1400", "carries='address 192.0.2.1/24'", "no-carrier")
    if driver == "mlx5_core":
        return (*words, "+lro", "+rx-gro-hw", "refuses=rx-ntuple-filter", "rx-ring=512/8192", "combined=4/8")
    return (*words, "-tx") if driver != "r8169" else words


def _words(choices: tuple[str, ...]) -> Strategy[str]:
    return st.lists(st.sampled_from(choices), unique=True, max_size=3).filter(_is_a_line).map(" ".join)


def _is_a_line(words: list[str]) -> bool:
    """One feature at most: -sg also turns off what needs it, and another word might say otherwise."""
    return sum(word[0] in "+-" for word in words) < 2


def _master(draw: st.DrawFn, masters: list[str]) -> str:
    master = draw(st.sampled_from(["", *masters]))
    return f"master={master}" if master else ""


# --- policies ----------------------------------------------------------------------------------------------


def _some(**fields: Strategy[Any]) -> Strategy[dict[str, Any]]:
    """Any of these fields, or none."""
    return st.fixed_dictionaries({}, optional=fields)


def _names(*choices: str) -> Strategy[list[str]]:
    return st.lists(st.sampled_from(choices), unique=True, min_size=1, max_size=3)


def _agrees(offloads: dict[str, bool]) -> bool:
    return not any(list(rule.breaches(offloads)) for rule in rules.OFFLOADS.rules)


OFFLOADS = st.dictionaries(st.sampled_from(FEATURES + KERNEL_NAMES), st.booleans(), min_size=1, max_size=4).filter(
    _agrees
)
MTUS = st.sampled_from((1300, 1400, 1500, 9000))
BRIDGE = st.fixed_dictionaries(
    {"name": st.sampled_from(BRIDGES)},
    optional={
        "create": st.booleans(),
        "ports": _names(*LINKS),
        "stp": st.booleans(),
        "forwardDelaySeconds": st.sampled_from((0, 2, 4, 15)),
        "ageingTimeSeconds": st.sampled_from((0, 300)),
        "multicastSnooping": st.booleans(),
        "vlanFiltering": st.booleans(),
        "groupForwardMask": st.sampled_from((0, 8)),
        "mtu": MTUS,
        "offloads": OFFLOADS,
    },
)
UPLINK = _some(
    match=st.sampled_from(
        (
            {"names": ["eth*"]},
            {"names": ["eth1", "v0"]},
            {"names": ["bond0", "eth9"]},
            {"drivers": ["mlx5_core"]},
            {"bridge": "br0"},
            {"bridge": "br0", "names": ["v*", "eth*"]},
        )
    ),
    offloads=OFFLOADS,
    rings=_some(rx=st.sampled_from((256, 500, 9000)), tx=st.sampled_from((256, 1024))),
    channels=_some(combined=st.sampled_from((1, 4, 99))),
    disruption=st.sampled_from(("Immediate", "WhenNoGuests")),
)
TAP = _some(
    match=st.sampled_from(({"names": ["tap*"]}, {"bridge": "br1"}, {"names": ["vm*", "tap0"]})),
    create=st.lists(
        st.fixed_dictionaries(
            {"name": st.sampled_from(TAPS)},
            optional={
                "owner": st.sampled_from((0, 107)),
                "group": st.sampled_from((36,)),
                "multiQueue": st.booleans(),
            },
        ),
        unique_by=lambda tap: tap["name"],
        min_size=1,
        max_size=2,
    ),
    vnetHdr=st.booleans(),
    offloads=_some(gro=st.booleans(), gso=st.booleans()),
    rxFrames=st.sampled_from((0, 16, 64)),
    mtu=MTUS,
    txQueueLength=st.sampled_from((0, 1000, 2000)),
)
VHOST = _some(
    mode=st.sampled_from(("Auto", "Required")),
    module=_some(
        state=st.sampled_from(("Loaded", "Absent", "Unmanaged")),
        parameters=st.sampled_from(({"experimental_zcopytx": 0}, {"experimental_zcopytx": 1})),
        persist=st.booleans(),
    ),
)


def specs(*, deletion: tuple[str, ...], modes: tuple[str, ...]) -> Strategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {"mode": st.sampled_from(modes), "deletionPolicy": st.sampled_from(deletion)},
        optional={
            "bridge": BRIDGE,
            "uplink": UPLINK,
            "tap": TAP,
            "vhost": VHOST,
            "priority": st.sampled_from((-1, 1)),
        },
    )


def _line(name: str, spec: dict[str, Any]) -> str:
    body = re.sub(r'"([A-Za-z][\w-]*)"', r"\1", json.dumps(spec))
    return f"{name}: {body}"


def _is_accepted(line: str) -> bool:
    try:
        read_line(line)
    except (PolicyError, AssertionError):
        return False
    return True


def policies(
    *, deletion: tuple[str, ...] = ("Restore",), modes: tuple[str, ...] = ("Enforce", "Enforce", "Audit")
) -> Strategy[str]:
    """One policy as a line of tests.flow.policies."""
    spec = specs(deletion=deletion, modes=modes)
    return st.builds(_line, st.sampled_from(NAMES), spec).filter(_is_accepted)


# --- acts --------------------------------------------------------------------------------------------------


def edits(**how: Any) -> Strategy[str]:
    """What an administrator does with policies."""
    return policies(**how).map("policy {}".format) | st.sampled_from(NAMES).map("remove {}".format)


_ANY = (*LINKS, *BRIDGES, "vm0")
FOREIGN: Strategy[str] = st.one_of(
    st.builds("flip {} {} {}".format, st.sampled_from(_ANY), st.sampled_from(FEATURES), st.sampled_from(("on", "off"))),
    st.builds("mtu {} {}".format, st.sampled_from(_ANY), st.sampled_from((1200, 1400, 1500))),
    st.builds("rings {} {}".format, st.sampled_from(("eth0", "eth1")), st.sampled_from((128, 256, 1024))),
    st.builds("rename {} {}".format, st.sampled_from(_ANY), st.sampled_from((*_ANY, "tap9", "eth9", "old0"))),
    st.builds("{} {}".format, st.sampled_from(("delete", "unplug", "hold", "let-go")), st.sampled_from(_ANY)),
    st.builds("enslave {} {}".format, st.sampled_from(LINKS), st.sampled_from((*BRIDGES, "none"))),
    st.builds(
        "bridge {} {}".format,
        st.sampled_from(BRIDGES),
        st.sampled_from(("stp=1", "stp=0", "forward_delay=400", "ageing_time=0", "group_forward_mask=16")),
    ),
    st.builds("carries {} {}".format, st.sampled_from(LINKS), st.sampled_from(("address 192.0.2.9/24", ""))),
    st.builds(
        "{} {} {}".format,
        st.sampled_from(("unreadable", "readable")),
        st.sampled_from(_ANY),
        st.sampled_from(("features", "rings", "channels", "rx_frames")),
    ),
    st.sampled_from(
        (
            "add vm0 tap vnet_hdr master=br0",
            "add tap1 tap mq",
            "add eth1 mlx5_core +lro",
            "add v0 veth mtu=1300 master=br0",
            "load",
            "unload",
            "remove-file /etc/modprobe.d/virtnet-vhost_net.conf",
        )
    ),
)
DURING_A_PASS: Strategy[str] = FOREIGN.filter(lambda act: not act.startswith(("add", "rename")))
"""Who takes the name of a link while it is being made has made it, as far as anybody can tell afterwards."""

OF_THE_AGENT: Strategy[str] = st.sampled_from(("restart", "held", "unheld", "release"))


def scripts(act: Strategy[str], *, longest: int = 6) -> Strategy[list[str]]:
    return st.lists(act, min_size=1, max_size=longest)


def shown(host: str, acts: list[str]) -> str:
    """A scenario as the text that runs it again."""
    return "\n".join(["", host, "", *acts])
