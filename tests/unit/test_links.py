"""The attributes of links: what is read, what stands in the way, and which changes give a link its values."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from tests.unit.hosts import (
    BR0,
    Part,
    bridge,
    host,
    loopback,
    named,
    nic,
    plan_of,
    said,
    soft,
    tap,
    todo,
    tun,
)
from virtnet.core import links
from virtnet.core.model import (
    BridgeSpec,
    Change,
    Match,
    Policy,
    Reason,
    Ref,
    SetBridgeOptions,
    SetChannels,
    SetMaster,
    SetMtu,
    SetRings,
    SetRxFrames,
    SetTapOwner,
    SetTxQueueLength,
    SetVnetHdr,
    TapSpec,
    TapToCreate,
    Unreadable,
    UplinkSpec,
    Value,
)

# --- reading -----------------------------------------------------------------------------------------------

HOST = host(
    bridge("br0", forward_delay=400, ageing_time=1250, group_forward_mask=8),
    nic("eth0", on="br0", set_off="rx-gro"),
    tap("tap0", owner=107, multi_queue=True),
    replace(nic("eth1", driver="r8169"), rings=Unreadable("busy")),
)

READS: dict[str, tuple[str, str, Value | Unreadable | None]] = {
    "a link's mtu": ("eth0", "mtu", 1500),
    "its transmit queue length": ("eth0", "txQueueLength", 1000),
    "its master's name": ("eth0", "master", "br0"),
    "no master": ("tap0", "master", None),
    "a tap's owner": ("tap0", "owner", 107),
    "a tap without a group": ("tap0", "group", None),
    "a tap's vnet header": ("tap0", "vnetHdr", True),
    "no vnet header on hardware": ("eth0", "vnetHdr", None),
    "a tap's rx-frames": ("tap0", "rxFrames", 0),
    "no rx-frames on a bridge": ("br0", "rxFrames", None),
    "ring sizes": ("eth0", "rings.rx", 1024),
    "their maximum": ("eth0", "rings.tx_max", 8192),
    "rings that cannot be read": ("eth1", "rings.rx", Unreadable("busy")),
    "a bridge has no rings": ("br0", "rings.rx", None),
    "channels": ("eth0", "channels.combined", 8),
    "a kind of channels that the driver lacks": ("eth0", "channels.rx", None),
    "whole seconds": ("br0", "bridge.forwardDelaySeconds", 4),
    "a time that is not whole equals no wanted value": ("br0", "bridge.ageingTimeSeconds", "12.5"),
    "a switch of a bridge": ("br0", "bridge.multicastSnooping", True),
    "a number of a bridge": ("br0", "bridge.groupForwardMask", 8),
    "hardware has no bridge options": ("eth0", "bridge.stp", None),
    "the wanted bit of a feature": ("eth0", "feature:rx-gro", False),
    "a feature that is wanted": ("eth0", "feature:rx-checksum", True),
}


@pytest.mark.parametrize(("name", "key", "value"), READS.values(), ids=READS)
def test_what_is_read(name: str, key: str, value: Value | Unreadable | None) -> None:
    assert links.current_value(HOST, named(HOST, name), key) == value


# --- values over what a driver allows ----------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    parts: tuple[Part, ...]
    policy: Policy
    todo: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    message: str = ""


def uplink(**wish: int) -> Policy:
    return Policy("p", uplink=UplinkSpec(Match(names=("eth0",)), **wish))  # type: ignore[arg-type]


VALUES = {
    "a ring size up to the maximum": Case((nic("eth0"),), uplink(rings_rx=8192), ("eth0 rings.rx=8192",)),
    "one above it is Refused": Case(
        (nic("eth0"),),
        uplink(rings_rx=8193),
        (),
        ("eth0 uplink.rings.rx Refused",),
        "eth0 allows rings rx up to 8192",
    ),
    "each ring by itself": Case(
        (nic("eth0"),), uplink(rings_rx=9000, rings_tx=512), ("eth0 rings.tx=512",), ("eth0 uplink.rings.rx Refused",)
    ),
    "channels above the maximum are Refused": Case(
        (nic("eth0"),), uplink(channels_combined=9), (), ("eth0 uplink.channels.combined Refused",), "up to 8"
    ),
    "a kind of channels that the driver lacks is Unsupported": Case(
        (nic("eth0"),), uplink(channels_rx=2), (), ("eth0 uplink.channels.rx Unsupported",), "no channels of kind rx"
    ),
    "rings that the driver lacks are Unsupported": Case(
        (nic("eth0", driver="r8169"),),
        uplink(rings_rx=512),
        (),
        ("eth0 uplink.rings.rx Unsupported",),
        "the driver of eth0 has no ring sizes",
    ),
    "rings that cannot be read are Unreadable": Case(
        (replace(nic("eth0"), rings=Unreadable("busy")),),
        uplink(rings_rx=512),
        (),
        ("eth0 uplink.rings.rx Unreadable",),
        "cannot be read: busy",
    ),
}


@pytest.mark.parametrize("case", VALUES.values(), ids=VALUES)
def test_queues(case: Case) -> None:
    assert_planned(case)


def assert_planned(case: Case) -> None:
    plan = plan_of(host(*case.parts), case.policy)
    assert tuple(todo(plan)) == case.todo
    assert tuple(said(plan.blocked)) == case.said
    assert not case.message or case.message in plan.blocked[0].message


# --- ports -------------------------------------------------------------------------------------------------


def ports(*names: str, bridge_name: str = "br0", create: bool = False) -> Policy:
    return Policy("p", bridge=BridgeSpec(bridge_name, ports=names, create=create))


TAP_OF_OURS = Policy("p", bridge=BR0, tap=TapSpec(Match(names=("no*",)), (TapToCreate("tap0"),)))

PORTS = {
    "a free link becomes a port": Case((bridge("br0"), nic("eth0")), ports("eth0"), ("eth0 master=br0",)),
    "a port that is there stays": Case((bridge("br0"), nic("eth0", on="br0")), ports("eth0")),
    "ports that are not named stay too": Case((bridge("br0"), nic("eth0", on="br0"), nic("eth1")), ports()),
    "a link that carries an address is refused": Case(
        (bridge("br0"), nic("eth0", carries="address 192.0.2.1/24")),
        ports("eth0"),
        (),
        ("eth0 bridge.ports CarriesAddresses",),
        "eth0 carries address 192.0.2.1/24; move it to br0 before eth0 becomes its port",
    ),
    "a port that carries an address already is left alone": Case(
        (bridge("br0"), nic("eth0", on="br0", carries="address 192.0.2.1/24")), ports("eth0")
    ),
    "a port of another bridge is Foreign": Case(
        (bridge("br0"), bridge("br1"), nic("eth0", on="br1")),
        ports("eth0"),
        (),
        ("eth0 bridge.ports Foreign",),
        "eth0 already belongs to br1; release it there first",
    ),
    "a slave of a bond is Foreign": Case(
        (bridge("br0"), soft("bond0", "bond"), nic("eth0", on="bond0")),
        ports("eth0"),
        (),
        ("eth0 bridge.ports Foreign",),
    ),
    "Foreign is told before the addresses": Case(
        (bridge("br0"), bridge("br1"), nic("eth0", on="br1", carries="address 192.0.2.1/24")),
        ports("eth0"),
        (),
        ("eth0 bridge.ports Foreign",),
    ),
    "a bridge is no port of itself": Case((bridge("br0"),), ports("br0"), (), ("br0 bridge.ports Refused",)),
    "the loopback is no port": Case((bridge("br0"), loopback()), ports("lo"), (), ("lo bridge.ports Refused",)),
    "a port of a bridge that this plan makes": Case(
        (nic("eth0"),), ports("eth0", create=True), ("br0 exists=True", "eth0 master=br0")
    ),
    "a port of a bridge that is not there waits for it": Case(
        (nic("eth0"),), ports("eth0"), (), ("br0 bridge.name Missing",)
    ),
    "a tap that the policy keeps in being becomes a port": Case(
        (bridge("br0"), tap("tap0")), TAP_OF_OURS, ("tap0 master=br0",)
    ),
    "unless it is a port elsewhere": Case(
        (bridge("br0"), bridge("br1"), tap("tap0", on="br1")), TAP_OF_OURS, (), ("tap0 tap.create Foreign",)
    ),
}


@pytest.mark.parametrize("case", PORTS.values(), ids=PORTS)
def test_ports(case: Case) -> None:
    assert_planned(case)


def test_a_link_chosen_by_match_is_managed_wherever_it_is_enslaved() -> None:
    state = host(bridge("br0"), bridge("br1"), nic("eth0", on="br1"))
    assert todo(plan_of(state, uplink(rings_rx=512))) == ["eth0 rings.rx=512"]


# --- taps --------------------------------------------------------------------------------------------------

NO_HEADER = Policy("p", tap=TapSpec(Match(names=("t*",)), vnet_hdr=False))
OWNED = Policy("p", bridge=BR0, tap=TapSpec(Match(names=("no*",)), (TapToCreate("tap0", owner=107, group=108),)))

TAPS = {
    "a tap that nobody holds is opened again": Case((tap("tap0"),), NO_HEADER, ("tap0 vnetHdr=False",)),
    "a held one is InUse, with who holds it": Case(
        (tap("tap0", held=True),),
        NO_HEADER,
        (),
        ("tap0 tap.vnetHdr InUse",),
        "tap0 is held by qemu-system-x86[42] (guest web1); vnetHdr can change when it is let go",
    ),
    "a holder in another namespace cannot be named": Case(
        (replace(tap("tap0", held=True), holders=()),),
        NO_HEADER,
        (),
        ("tap0 tap.vnetHdr InUse",),
        "a process that cannot be seen from here",
    ),
    "a held tap that is as asked is as asked": Case((tap("tap0", held=True, vnet_hdr=False),), NO_HEADER),
    "owner and group of a tap that we keep": Case(
        (bridge("br0"), tap("tap0", on="br0")), OWNED, ("tap0 owner=107", "tap0 group=108")
    ),
    "not while it is held": Case(
        (bridge("br0"), tap("tap0", on="br0", held=True)),
        OWNED,
        (),
        ("tap0 tap.create InUse", "tap0 tap.create InUse"),
    ),
    "a tun is not selected": Case((tun("tun0"),), NO_HEADER),
    "rx-frames, mtu and queue length": Case(
        (tap("tap0", held=True),),
        Policy("p", tap=TapSpec(Match(names=("t*",)), rx_frames=4, mtu=1400, tx_queue_length=500)),
        ("tap0 rxFrames=4", "tap0 mtu=1400", "tap0 txQueueLength=500"),
    ),
}


@pytest.mark.parametrize("case", TAPS.values(), ids=TAPS)
def test_taps(case: Case) -> None:
    assert_planned(case)


@pytest.mark.parametrize(
    ("queues", "carrier", "held"),
    [
        pytest.param(None, False, False, id="no carrier, and the kernel does not count queues"),
        pytest.param(None, True, True, id="a carrier"),
        pytest.param(0, False, False, id="no queue is open"),
        pytest.param(1, False, True, id="one queue is open although its carrier is off"),
    ],
)
def test_whether_a_tap_is_held(queues: int | None, carrier: bool, held: bool) -> None:
    link = named(host(tap("tap0")), "tap0")
    assert link.tun is not None
    assert replace(link, carrier=carrier, tun=replace(link.tun, queues=queues)).held is held


# --- changes -----------------------------------------------------------------------------------------------

ETH0 = Ref("eth0", 2)

CHANGES: dict[str, tuple[dict[str, Value | None], list[Change]]] = {
    "an mtu": ({"mtu": 9000}, [SetMtu(ETH0, 9000)]),
    "a queue length of nothing": ({"txQueueLength": 0}, [SetTxQueueLength(ETH0, 0)]),
    "rx-frames": ({"rxFrames": 0}, [SetRxFrames(ETH0, 0)]),
    "a vnet header": ({"vnetHdr": False}, [SetVnetHdr(ETH0, False)]),
    "both rings in one change": ({"rings.rx": 512, "rings.tx": 256}, [SetRings(ETH0, 512, 256)]),
    "one ring leaves the other": ({"rings.tx": 256}, [SetRings(ETH0, tx=256)]),
    "all kinds of channels in one change": (
        {"channels.combined": 1, "channels.rx": 2, "channels.tx": 3},
        [SetChannels(ETH0, 1, 2, 3)],
    ),
    "a master by its number": ({"master": "br0"}, [SetMaster(ETH0, Ref("br0", 1))]),
    "a master that is still to be made": ({"master": "br9"}, [SetMaster(ETH0, Ref("br9", 0))]),
    "no master": ({"master": None}, [SetMaster(ETH0, None)]),
    "an owner leaves the group": ({"owner": 107}, [SetTapOwner(ETH0, owner=107)]),
    "owner and group in one change, and none clears": (
        {"owner": None, "group": 108},
        [SetTapOwner(ETH0, owner=-1, group=108)],
    ),
    "bridge options in one change": (
        {"bridge.stp": False, "bridge.forwardDelaySeconds": 4},
        [SetBridgeOptions(ETH0, (("stp", False), ("forwardDelaySeconds", 4)))],
    ),
    "each group apart": ({"mtu": 9000, "rings.rx": 512}, [SetMtu(ETH0, 9000), SetRings(ETH0, 512)]),
}


@pytest.mark.parametrize(("values", "changes"), CHANGES.values(), ids=CHANGES)
def test_the_changes_that_give_a_link_values(values: dict[str, Value | None], changes: list[Change]) -> None:
    found = list(links.changes(named(HOST, "eth0"), values, {"br0": named(HOST, "br0")}))
    assert [change for change, _ in found] == changes
    assert sorted(key for _, keys in found for key in keys) == sorted(values)


@pytest.mark.parametrize(
    ("key", "risky"),
    [
        ("master", True),
        ("mtu", True),
        ("rings.rx", True),
        ("channels.combined", True),
        ("bridge.stp", True),
        ("txQueueLength", False),
        ("rxFrames", False),
        ("vnetHdr", False),
        ("owner", False),
    ],
)
def test_which_settings_can_cut_the_node_off(key: str, risky: bool) -> None:
    assert links.can_cut_off(key) is risky


def test_every_blocked_row_names_its_policy_and_says_why() -> None:
    rows = [row for case in (PORTS | TAPS | VALUES).values() for row in plan_of(host(*case.parts), case.policy).blocked]
    assert {row.reason for row in rows} >= {Reason.FOREIGN, Reason.IN_USE, Reason.REFUSED}
    assert all(row.policy == "p" and row.message for row in rows)
