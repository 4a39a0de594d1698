"""The path of a guest's NIC and what proves it: hosts and command lines as values, and what is said of them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.unit import hosts
from virtnet.core import path as paths
from virtnet.core import plan as planning
from virtnet.core import report, resolve, running
from virtnet.core.model import (
    BridgeSpec,
    Fingerprint,
    GuestMatch,
    GuestSpec,
    HostState,
    Mode,
    ModuleState,
    ModuleStatus,
    Policy,
    Process,
    Reason,
    Running,
    Told,
    Unreadable,
    UplinkSpec,
    VhostMode,
    VhostSpec,
)
from virtnet.core.path import Path, Plans
from virtnet.core.running import Proof
from virtnet.errors import UsageError
from virtnet.kube.status import NodeStateStatus

MAC = "52:54:00:00:00:01"
QEMU = Process(4711, "qemu-system-x86", "web1")
NETDEV = "tap,id=n0,ifname=tap0,script=no,downscript=no"
DEVICE = f"virtio-net-pci,netdev=n0,mac={MAC}"
WISHES_TSO = Policy("fast", bridge=BridgeSpec("br0"), guest=GuestSpec(nic=(("host.csum", True), ("host.tso4", True))))
LEGACY = Policy("legacy", bridge=BridgeSpec("br0"), uplink=UplinkSpec(offloads=(("tso", False),)))


def qemu(netdev: str = NETDEV, device: str = DEVICE, **known: object) -> Running:
    argv = ("qemu-system-x86_64", "-name", "guest=web1", "-smp", "4", "-netdev", netdev, "-device", device)
    return replace(Running(QEMU, argv, {11: "tap0"}), **known)  # type: ignore[arg-type]


def host(*guests: Running, uplink: str = "", **tap: object) -> HostState:
    state = hosts.host(
        hosts.bridge("br0"),
        hosts.nic("eth0", on="br0", set_off=uplink),
        hosts.tap("tap0", on="br0", held=bool(guests), **tap),  # type: ignore[arg-type]
    )
    return replace(state, running=guests)


def plans(state: HostState, *policies: Policy) -> Plans:
    desired = resolve.resolve(policies, hosts.NODE, state)
    plan = planning.make_plan(desired, state, hosts.NOTHING_RECORDED)
    return Plans(tuple(desired.policies.values()), desired, (*plan.pending, *plan.blocked))


def trace(state: HostState, *policies: Policy) -> Path:
    (path,) = paths.trace(state, plans(state, *policies))
    return path


def remarks(path: Path) -> list[str]:
    return [remark for hop in path.hops for remark in hop.remarks]


# --- hops --------------------------------------------------------------------------------------------------


def test_a_path_goes_from_the_guest_to_the_uplink() -> None:
    path = trace(host(qemu()))
    assert [(hop.kind, hop.name) for hop in path.hops] == [
        ("guest", "web1"),
        ("qemu", "qemu-system-x86[4711] (guest web1)"),
        ("vhost", "QEMU's own backend"),
        ("tap", "tap0"),
        ("bridge", "br0"),
        ("uplink", "eth0"),
    ]
    assert (path.guest, path.mac, path.tap) == ("web1", MAC, "tap0")


def test_a_tap_that_nobody_holds_has_no_guest() -> None:
    path = trace(host())
    assert [hop.kind for hop in path.hops] == ["tap", "bridge", "uplink"]
    assert path.hops[0].facts == ("nobody holds it",)


def test_every_uplink_below_the_bridge_is_a_hop() -> None:
    state = hosts.host(
        hosts.bridge("br0"),
        hosts.soft("bond0", "bond", on="br0"),
        hosts.nic("eth0", on="bond0"),
        hosts.nic("eth1", on="bond0"),
        hosts.tap("tap0", on="br0"),
    )
    assert [hop.name for hop in trace(state).hops] == ["tap0", "br0", "bond0", "eth0", "eth1"]


def test_the_only_other_port_is_taken_for_the_uplink() -> None:
    state = hosts.host(hosts.bridge("br0"), hosts.soft("veth0", "veth", on="br0"), hosts.tap("tap0", on="br0"))
    assert trace(state).hops[-1].name == "veth0"


@pytest.mark.parametrize("target", ["web1", "tap0", MAC, MAC.upper()])
def test_a_path_is_found_by_guest_tap_and_address(target: str) -> None:
    state = host(qemu())
    assert [path.tap for path in paths.trace(state, target=target)] == ["tap0"]


def test_an_unknown_name_is_told_what_there_is() -> None:
    with pytest.raises(UsageError, match="is called web2; there are web1, tap0"):
        paths.trace(host(qemu()), target="web2")


# --- what breaks the wish ----------------------------------------------------------------------------------


def test_tso_that_is_asked_for_is_lost_where_the_uplink_has_no_checksum_offload() -> None:
    path = trace(host(qemu(), uplink="tx-checksum-ip-generic tx-tcp-segmentation tx-tcp6-segmentation"), WISHES_TSO)
    assert path.sentence == "TSO is lost at br0: uplink eth0 has tx-checksum off"
    assert path.first is not None
    assert path.hops[path.first].name == "br0"


def test_the_first_hop_from_the_guest_on_is_the_one_that_is_named() -> None:
    state = host(qemu(f"{NETDEV},vnet_hdr=off"), uplink="tx-tcp-segmentation tx-tcp6-segmentation", vnet_hdr=False)
    path = trace(state, WISHES_TSO)
    assert path.first == 0
    assert [hop.name for hop in path.hops if hop.breaks] == ["web1", "tap0", "br0"]


def test_what_nobody_asks_for_is_a_remark() -> None:
    path = trace(host(qemu(), uplink="tx-tcp-segmentation tx-tcp6-segmentation"))
    assert (path.first, path.sentence) == (None, "")
    assert remarks(path) == ["TSO is lost at br0: uplink eth0 has tso off"]


def test_an_offload_that_shall_be_off_is_not_lost() -> None:
    path = trace(host(qemu(), uplink="tx-tcp-segmentation tx-tcp6-segmentation tx-tcp-ecn-segmentation"), LEGACY)
    assert (path.first, remarks(path)) == (None, [])


def test_a_link_that_is_down_lets_nothing_pass() -> None:
    state = host(qemu())
    down = replace(hosts.named(state, "br0"), up=False)
    path = trace(replace(state, links={**state.links, down.ifindex: down}))
    assert path.sentence == "br0 is down: nothing passes"


def test_a_difference_at_a_link_breaks_the_wish_there() -> None:
    path = trace(host(qemu()), LEGACY)
    assert path.sentence.startswith("uplink.offloads.tso is on, not off, at eth0: turn tx-tcp-segmentation")


def test_a_file_for_the_next_boot_breaks_nothing_now() -> None:
    loaded = ModuleState("vhost_net", ModuleStatus.LOADED, 1)
    path = trace(replace(host(qemu(f"{NETDEV},vhost=on", vhost=1)), module=loaded), REQUIRED)
    assert (path.first, len(path.hops[2].remarks)) == (None, 1)
    assert path.hops[2].remarks[0].startswith("vhost.module.persist is off, not on, at vhost_net: write /etc/")


def test_a_module_that_is_not_loaded_breaks_the_wish_at_vhost() -> None:
    absent = ModuleState("vhost_net", ModuleStatus.ABSENT)
    path = trace(replace(host(qemu(f"{NETDEV},vhost=on")), module=absent), REQUIRED)
    assert path.first == 2
    assert "load vhost_net" in path.sentence


def test_a_nic_at_a_hub_is_named_with_the_fix() -> None:
    argv = ("qemu-system-x86_64", "-net", f"nic,model=virtio,macaddr={MAC}", "-net", "tap,ifname=tap0,vhost=on")
    path = trace(host(replace(qemu(), argv=argv)), WISHES_TSO)
    assert path.hops[1].facts == ("hub 0",)
    assert "start it with -netdev and -device" in path.hops[1].remarks[0]
    assert "TSO is lost at qemu-system-x86[4711] (guest web1): hub 0 has no virtio-net header" in path.hops[1].breaks


# --- which NIC is on which tap -----------------------------------------------------------------------------


def test_a_nic_is_found_by_the_number_of_its_descriptor() -> None:
    (nic,) = running.find(host(qemu('{"type":"tap","fds":"11:12","id":"n0"}', taps={11: "tap0", 12: "tap0"})))
    assert (nic.tap.name, nic.identity.mac) == ("tap0", MAC)
    assert running.configured(nic)["guest.nic.queues"] == 2


@pytest.mark.parametrize("fds", ["²", "-1", "x", "99"])
def test_a_descriptor_that_is_none_names_no_tap_and_the_last_of_both_kinds_belong_together(fds: str) -> None:
    (nic,) = running.find(host(qemu(f'{{"type":"tap","fds":"{fds}","id":"n0"}}')))
    assert nic.identity.mac == MAC


def test_a_tap_that_the_arguments_do_not_name_was_plugged_in_later() -> None:
    (nic,) = running.find(host(replace(qemu(), argv=("qemu-system-x86_64", "-name", "web1"))))
    assert (nic.configured, nic.identity.guest) == (None, "web1")
    assert "plugged in later: not on the command line" in trace(host(nic.running)).hops[0].facts


def test_a_process_that_is_no_virtual_machine_has_no_nic() -> None:
    vpn = Running(Process(9, "openvpn"), ("openvpn", "--dev", "tap0"), {4: "tap0"})
    assert running.find(host(vpn)) == ()


# --- evidence ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "netdev", "proof", "mode"),
    [
        ({}, NETDEV, Proof.NONE, "Disabled"),
        ({}, f"{NETDEV},vhost=on", Proof.NONE, "Disabled"),
        ({"vhost": 1}, f"{NETDEV},vhost=on", Proof.OPEN, None),
        ({"vhost": 1, "workers": ("vhost-4711",)}, f"{NETDEV},vhost=on", Proof.OPEN, None),
        ({"vhost": 1}, f"{NETDEV},vhost=on,queues=4", Proof.CONFIGURED, None),
        ({"vhost": 1}, NETDEV, Proof.NONE, "Disabled"),
        ({"vhost": 1, "told": (Told(MAC, "n0", started=True),)}, f"{NETDEV},vhost=on", Proof.STARTED, "Required"),
        ({"vhost": 1, "told": (Told(MAC, "n0"),)}, f"{NETDEV},vhost=on", Proof.NOT_STARTED, "Disabled"),
        ({"vhost": 1, "told": Unreadable("refused")}, f"{NETDEV},vhost=on", Proof.OPEN, None),
    ],
)
def test_vhost_is_claimed_on_qemus_own_word_alone(
    known: dict[str, object], netdev: str, proof: Proof, mode: str | None
) -> None:
    state = host(qemu(netdev, **known))
    (nic,) = running.find(state)
    assert nic.evidence.proof is proof
    assert running.effective(nic, state).get("vhost.mode") == mode


def test_the_tap_shows_what_the_guest_accepted_on_receive() -> None:
    state = host(qemu(), set_on="tx-checksum-ip-generic tx-tcp-segmentation")
    (nic,) = running.find(state)
    seen = running.effective(nic, state)
    assert {path: seen[f"guest.nic.guest.{path}"] for path in ("csum", "tso4", "tso6")} == {
        "csum": True,
        "tso4": True,
        "tso6": False,
    }


def test_qmp_shows_what_was_negotiated_once_the_driver_is_ready() -> None:
    told = Told(MAC, "n0", driver_ok=True, accepted=frozenset({"CSUM", "HOST_TSO4"}), rings=(512, 256))
    state = host(qemu(told=(told,)))
    (nic,) = running.find(state)
    seen = running.effective(nic, state)
    assert (seen["guest.nic.host.tso4"], seen["guest.nic.host.tso6"], seen["guest.nic.rxQueueSize"]) == (
        *(True, False),
        512,
    )
    early = replace(nic, told=replace(told, driver_ok=False))
    assert "guest.nic.host.tso4" not in running.effective(early, state)


# --- what is reported --------------------------------------------------------------------------------------

REQUIRED = Policy("vhost", bridge=BridgeSpec("br0"), vhost=VhostSpec(mode=VhostMode.REQUIRED))


def test_a_qemu_that_was_started_otherwise_waits_for_its_next_start() -> None:
    (row,) = running.rows([REQUIRED], host(qemu()))
    assert (row.subject, row.setting, row.wanted, row.actual, row.reason) == (
        *(f"guest/web1/{MAC}", "vhost.mode", "Required", "Disabled"),
        Reason.RESTART_REQUIRED,
    )
    assert not list(running.rows([REQUIRED], host(qemu(f"{NETDEV},vhost=on"))))


def test_a_qemu_of_libvirts_is_left_to_libvirt() -> None:
    argv = (*qemu().argv, "-object", '{"qom-type":"secret","id":"masterKey0"}')
    assert not list(running.rows([REQUIRED], host(replace(qemu(), argv=argv))))


def test_an_audit_policy_is_told_of_it_and_is_not_in_force() -> None:
    (row,) = running.rows([replace(REQUIRED, mode=Mode.AUDIT)], host(qemu()))
    assert row.reason is Reason.AUDIT_ONLY


def test_an_entry_says_wanted_configured_and_effective() -> None:
    (entry,) = running.entries([REQUIRED], host(qemu(f"{NETDEV},vhost=on", vhost=1)), ())
    assert (entry["name"], entry["mac"], entry["tap"], entry["restartRequired"]) == ("web1", MAC, "tap0", False)
    assert (entry["wanted"], entry["configured"]["vhost.mode"]) == ({"vhost.mode": "Required"}, "Required")
    assert "vhost.mode" not in entry["effective"]
    assert entry["vhostEvidence"].startswith("FdOpen: 1 descriptor of /dev/vhost-net")


def test_a_nic_of_which_nobody_asks_anything_has_no_entry() -> None:
    other = replace(REQUIRED, bridge=None, guest=GuestSpec(match=GuestMatch(macs=("52:54:00:00:00:99",))))
    assert running.entries([other], host(qemu()), ()) == []


def test_a_node_state_tells_its_guests_and_its_fingerprint() -> None:
    state = replace(host(qemu()), fingerprint=Fingerprint(0x7173, 1 << 32))
    desired = resolve.resolve([REQUIRED], hosts.NODE, state)
    plan = planning.make_plan(desired, state, hosts.NOTHING_RECORDED)
    status = report.node_state(desired, state, plan.blocked, now="2026-03-01T06:00:00Z", agent={"version": "0.1.0"})
    told = NodeStateStatus.model_validate(status)
    assert told.fingerprint is not None
    assert (told.fingerprint.tun, told.fingerprint.vhost) == ("0x7173", "0x100000000")
    assert told.guests is not None
    assert [(nic.name, nic.tap, nic.restart_required) for nic in told.guests] == [("web1", "tap0", True)]
    assert told.counts is not None
    assert told.counts.restarts_needed == 1


def test_guests_that_wait_for_no_restart_are_cut_before_settings() -> None:
    many = tuple(
        replace(qemu(), process=replace(QEMU, pid=number, guest=f"{'web' * 80}{number}")) for number in range(700)
    )
    state = replace(host(qemu()), running=many)
    desired = resolve.resolve([REQUIRED], hosts.NODE, state)
    status = report.node_state(desired, state, (), now="2026-03-01T06:00:00Z", agent={"version": "0.1.0"})
    assert len(status["guests"]) + status["omitted"]["guests"] == 700
    assert len(json.dumps(status, separators=(",", ":"))) <= report.LIMIT
