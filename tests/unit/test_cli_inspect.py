"""What `inspect` makes of a host: data for programs, and one sheet for people."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from textwrap import dedent

from rich.console import Console

from virtnet.cli import inspecting, sheet, survey
from virtnet.cli.sheet import Sheet
from virtnet.core.model import (
    BridgeOptions,
    Channels,
    Driver,
    Features,
    HostState,
    Link,
    Mode,
    Policy,
    Process,
    Reason,
    Rings,
    Row,
    Tun,
    Unreadable,
)

NAMES = ("rx-checksum", "tx-checksum-ipv4", "tx-scatter-gather", "rx-gro", "rx-lro", "tx-generic-segmentation")
RX, TX, SG, GRO, LRO, GSO = (1 << bit for bit in range(6))

BRIDGE = Link(
    2, "br0", "bridge", up=True, carrier=True, bridge=BridgeOptions(True, 1500, 30000, False, True, 8), mtu=9000
)
ENO1 = Link(3, "eno1", mac="02:00:00:00:00:01", master=2, up=True, physical=True, bus="0000:3b:00.0")
TAP = Link(
    4,
    "tap0",
    "tun",
    master=2,
    up=True,
    carrier=True,
    tun=Tun(True, 107, None, pi=False, vnet_hdr=True, persist=True, multi_queue=True, queues=4),
)
HIDDEN = Link(5, "tap1", "tun", up=True, carrier=True, tun=Tun(True, None, None, False, False, False, False))
VETH = Link(6, "veth0", "veth")
VLAN = Link(7, "eno1.7", "vlan", lower=3)
LO = Link(1, "lo", loopback=True)
TUN = Link(8, "tun0", "tun", tun=Tun(False, None, None, True, False, False, False))

STATE = HostState(
    links={link.ifindex: link for link in (LO, BRIDGE, ENO1, TAP, HIDDEN, VETH, VLAN, TUN)},
    features={
        2: Features(hw=TX | SG | GRO, wanted=GRO, active=GRO),
        3: Features(hw=TX | SG | GRO | GSO, wanted=TX | GRO | LRO, active=RX | TX | GRO),
        4: Features(hw=GRO | GSO, wanted=GRO, active=GRO),
        5: Unreadable("not permitted"),
    },
    feature_names=NAMES,
    drivers={3: Driver("bnxt_en", "1.10.2", "0000:3b:00.0", "22.1")},
    rings={3: Rings(511, 511, 2047, None)},
    channels={3: Channels(8, None, None, 16, None, None)},
    rx_frames={4: 0},
    holders={4: (Process(4711, "qemu-system-x86", "web"),)},
)
HOST = {"uplinks": survey.uplinks(STATE), "bridges": survey.bridges(STATE), "taps": survey.taps(STATE)}
LAN = Policy("lan")


def drawn(
    *rows: Row,
    policies: tuple[Policy, ...] = (LAN,),
    drifts: Mapping[str, int] | None = None,
    not_ready: str = "",
    **holds: str,
) -> str:
    file = io.StringIO()
    page = Sheet(
        "node1",
        HOST,
        {"module": "Loaded", "refcount": 1, "parameters": {"experimental_zcopytx": "0"}, "users": ["qemu[4711]"]},
        "/usr/bin/qemu-kvm 9.2.1: virtio-net-pci",
        policies,
        frozenset({"lan"}),
        drifts or {},
        rows,
        not_ready,
        holds,
    )
    sheet.show(Console(file=file, width=100, markup=False, emoji=False, highlight=False), page)
    return file.getvalue()


def test_uplinks_are_hardware_vlans_and_what_a_policy_took_for_one() -> None:
    assert [link["name"] for link in survey.uplinks(STATE)] == ["eno1", "eno1.7"]
    assert [link["name"] for link in survey.uplinks(STATE, {"veth0", "tap0", "br0"})] == ["eno1", "eno1.7", "veth0"]


def test_an_uplink_tells_what_ethtool_tells() -> None:
    link = HOST["uplinks"][0]
    assert link["offloads"] == {
        "rx": {"active": True, "requested": False, "fixed": True},
        "tx": {"active": True, "requested": True, "fixed": False},
        "sg": {"active": False, "requested": False, "fixed": False},
        "gso": {"active": False, "requested": False, "fixed": False},
        "gro": {"active": True, "requested": True, "fixed": False},
        "lro": {"active": False, "requested": True, "fixed": True},
    }
    assert link["rings"] == {"rx": 511, "tx": 511, "rxMax": 2047, "txMax": None}
    assert (link["driver"], link["version"], link["bus"], link["master"]) == (
        "bnxt_en",
        "1.10.2",
        "0000:3b:00.0",
        "br0",
    )


def test_a_tap_is_no_tun_and_names_who_holds_it() -> None:
    taps = {tap["name"]: tap for tap in HOST["taps"]}
    assert sorted(taps) == ["tap0", "tap1"]
    assert taps["tap0"]["holders"] == [{"pid": 4711, "command": "qemu-system-x86", "guest": "web"}]
    assert (taps["tap0"]["vnetHdr"], taps["tap0"]["owner"], taps["tap0"]["rxFrames"]) == (True, 107, 0)


def test_what_could_not_be_read_is_never_shown_as_off() -> None:
    assert HOST["taps"][1]["offloads"] == {"unreadable": "not permitted"}
    assert list(survey.unseen(HOST, {"refcount": 2})) == [
        "not readable on tap1: not permitted",
        "who holds tap1 cannot be seen from here; root sees more",
        "who uses vhost_net cannot be seen from here; root sees more",
    ]
    assert "one queue,\n" in drawn()
    assert "offloads not readable\n" in drawn()


def test_bridge_times_are_seconds() -> None:
    assert HOST["bridges"][0]["ports"] == ["eno1", "tap0"]
    assert HOST["bridges"][0]["options"] == {
        "stp": True,
        "forwardDelaySeconds": 15.0,
        "ageingTimeSeconds": 300.0,
        "multicastSnooping": False,
        "vlanFiltering": True,
        "groupForwardMask": 8,
    }


def test_the_data_is_plain_json() -> None:
    assert json.loads(json.dumps(HOST)) == HOST


def test_the_sheet_shows_the_whole_path_and_ends_with_what_differs() -> None:
    pending = Row("link/eno1", "uplink.offloads.gso", True, False, None, "turn tx-generic-segmentation on", "lan")
    in_use = Row("link/tap0", "tap.vnetHdr", False, True, Reason.IN_USE, "qemu[4711] (guest web) holds it", "lan")
    assert drawn(pending, in_use) == dedent(
        """\
        node1

        UPLINKS
          eno1             no carrier  mtu 1500, bnxt_en 1.10.2, at 0000:3b:00.0, firmware 22.1, in br0
                                       rings rx 511/2047 tx 511/?, channels combined 8/16
                                       on        tx gro
                                       off       sg gso
                                       fixed on  rx
                                       fixed off lro
          eno1.7           down        mtu 1500, vlan, on eno1

        BRIDGES
          br0              up          ports     eno1 tap0
                                       mtu 9000, stp on, forward delay 15 s, ageing 300 s, snooping off,
                                       vlan filtering on, group forward mask 0x8
                                       on        gro
                                       off       tx sg
                                       fixed off rx gso lro

        TAPS
          tap0             held        mtu 1500, in br0, vnet_hdr on, multi-queue (4 open), owner 107,
                                       gro on, gso off
                                       held by qemu-system-x86[4711] (guest web)
          tap1             held        mtu 1500, in no bridge, vnet_hdr off, one queue,
                                       offloads not readable
                                       held by a process that cannot be seen from here

        VHOST_NET
          loaded, 1 reference
          experimental_zcopytx=0
          used by qemu[4711]

        QEMU
          /usr/bin/qemu-kvm 9.2.1: virtio-net-pci

        POLICIES
          lan  2 settings not as asked

        DIFFERS
          link/eno1  uplink.offloads.gso  off → on  pending
                     turn tx-generic-segmentation on
          link/tap0  tap.vnetHdr          on → off  InUse
                     qemu[4711] (guest web) holds it

        """
    )


def test_a_sheet_on_which_all_is_well_ends_with_as_asked() -> None:
    assert drawn().endswith("POLICIES\n  lan  as asked\n")


def test_a_policy_for_other_nodes_and_one_that_only_audits_say_so() -> None:
    text = drawn(policies=(Policy("other"), Policy("lan", mode=Mode.AUDIT)))
    assert "other  does not select this node" in text
    assert "lan    as asked, Audit only" in text


def test_a_pending_change_that_the_agent_does_not_make_has_its_reason() -> None:
    pending = Row("link/eno1", "uplink.offloads.gro", True, False, None, "turn rx-gro on", "lan")
    other = replace(pending, setting="uplink.offloads.tso")
    fixed = replace(pending, reason=Reason.FIXED)
    agent = {
        "settings": [
            {
                "subject": "link/eno1",
                "setting": "uplink.offloads.gro",
                "policy": "lan",
                "reason": "Contended",
                "message": "TuneD keeps changing it",
            },
            {"subject": "link/eno1", "setting": "uplink.offloads.tso", "policy": "lan", "reason": "OfALaterVersion"},
            {"subject": "link/eno1"},
        ]
    }
    contended = replace(pending, reason=Reason.CONTENDED, message="TuneD keeps changing it")
    assert inspecting.explained([pending, other, fixed], agent) == [contended, other, fixed]
    assert inspecting.explained([pending], {}) == [pending]


def test_drifts_and_what_is_not_ready_are_said_with_the_policies() -> None:
    text = drawn(drifts={"lan": 14}, not_ready="policies cannot be read")
    assert text.endswith("POLICIES\n  lan  as asked, drifted 14 times\n  Not ready: policies cannot be read\n")


def test_a_hold_stands_before_the_policies() -> None:
    lines = drawn(eno1="until 23:15:00").splitlines()
    at = lines.index("HELD  link eno1 is held until 23:15:00: reported, not changed")
    assert lines[at + 2] == "POLICIES"


def test_a_sheet_fits_a_hundred_columns() -> None:
    assert max(map(len, drawn(**{"*": "until 23:15:00"}).splitlines())) <= 100
