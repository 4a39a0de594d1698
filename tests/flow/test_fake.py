"""The fake's numbers, taps, module and looks behave as Linux does, and every change can be made twice."""

from __future__ import annotations

import pytest

from tests.flow import rules, text
from tests.flow.fake import FakeHost
from virtnet import errors
from virtnet.core import model
from virtnet.core.model import (
    Channels,
    CreateBridge,
    CreateTap,
    DeleteLink,
    Guest,
    GuestNic,
    Interest,
    LeaveReplug,
    LoadModule,
    ModuleStatus,
    Process,
    RemoveModuleFile,
    ReplugGuestNic,
    Rings,
    SetBridgeOptions,
    SetChannels,
    SetGuestNic,
    SetMaster,
    SetMtu,
    SetRings,
    SetRxFrames,
    SetTapOwner,
    SetTxQueueLength,
    SetVnetHdr,
    UnloadModule,
    Unreadable,
    WriteModuleFile,
)

QEMU = Process(100, "qemu", "vm1")
EVERYTHING = Interest(True, True, True, True, True, True, True)
OURS = "# managed by virtnet\n"
RULE = "/etc/modprobe.d/virtnet-vhost_net.conf"


# --- numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "mtu", "taken"),
    [
        ("br0 bridge", 65535, True),
        ("br0 bridge", 67, False),
        ("v0 veth", 65535, True),
        ("tap0 tap", 65521, True),
        ("tap0 tap", 65535, False),
        ("eth0 e1000e", 9216, True),
        ("eth0 e1000e", 9217, False),
        ("eth0 e1000e", 68, True),
    ],
)
def test_an_mtu_is_taken_within_the_range_of_the_driver(line: str, mtu: int, taken: bool) -> None:
    host = FakeHost(line)
    change = SetMtu(host.ref(line.split(maxsplit=1)[0]), mtu)
    if taken:
        host.apply(change)
    else:
        with pytest.raises(errors.Refused):
            host.apply(change)
    assert (f"mtu={mtu}" in host.words(line.split(maxsplit=1)[0])) == taken


@pytest.mark.parametrize(
    ("driver", "asked", "rings"),
    [
        ("mlx5_core", 1000, Rings(1024, 1024, 8192, 8192)),
        ("mlx5_core", 1025, Rings(2048, 1024, 8192, 8192)),
        ("e1000e", 1001, Rings(1008, 256, 4096, 4096)),
        ("e1000e", 1, Rings(64, 256, 4096, 4096)),
        ("virtio_net", 300, Rings(300, 256, 1024, 1024)),
    ],
)
def test_drivers_round_ring_sizes_in_their_own_way(driver: str, asked: int, rings: Rings) -> None:
    host = FakeHost(f"eth0 {driver}")
    host.apply(SetRings(host.ref("eth0"), rx=asked))
    assert host.observe(EVERYTHING).rings == {1: rings}


@pytest.mark.parametrize(("driver", "error"), [("mlx5_core", errors.Refused), ("veth", errors.NotSupported)])
def test_a_ring_over_the_maximum_is_refused_and_no_rings_are_not_supported(driver: str, error: type[Exception]) -> None:
    host = FakeHost(f"eth0 {driver}")
    before = str(host)
    with pytest.raises(error):
        host.apply(SetRings(host.ref("eth0"), rx=256, tx=8193))
    assert str(host) == before


@pytest.mark.parametrize(
    ("driver", "asked", "channels"),
    [
        ("mlx5_core", {"combined": 4}, Channels(4, None, None, 8, None, None)),
        ("veth", {"rx": 2}, Channels(None, 2, 1, None, 2, 2)),
        ("mlx5_core", {"combined": 9}, errors.Refused),
        ("mlx5_core", {"combined": 0}, errors.Refused),
        ("mlx5_core", {"rx": 1}, errors.Refused),
        ("e1000e", {"combined": 1}, errors.NotSupported),
        ("tap", {"combined": 1}, errors.NotSupported),
    ],
)
def test_channels_are_set_up_to_the_maximum(driver: str, asked: dict[str, int], channels: object) -> None:
    host = FakeHost(f"l0 {driver}")
    change = SetChannels(host.ref("l0"), **asked)
    if isinstance(channels, Channels):
        host.apply(change)
        assert host.observe(EVERYTHING).channels == {1: channels}
    else:
        assert isinstance(channels, type)
        with pytest.raises(channels):
            host.apply(change)


def test_rx_frames_are_for_taps_and_cut_to_64() -> None:
    host = FakeHost("tap0 tap\neth0 mlx5_core")
    host.apply(SetRxFrames(host.ref("tap0"), 65))
    assert host.observe(EVERYTHING).rx_frames == {1: 64}
    with pytest.raises(errors.NotSupported):
        host.apply(SetRxFrames(host.ref("eth0"), 1))


def test_any_queue_length_is_taken() -> None:
    host = FakeHost("tap0 tap")
    host.apply(SetTxQueueLength(host.ref("tap0"), 0))
    assert "txqlen=0" in host.words("tap0")


# --- taps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queues", ["", "mq"])
def test_a_held_tap_is_in_use(queues: str) -> None:
    host = FakeHost(f"tap0 tap {queues} held=qemu:100:vm1")
    before = str(host)
    for change in (SetVnetHdr(host.ref("tap0"), True), SetTapOwner(host.ref("tap0"), 107)):
        with pytest.raises(errors.InUse):
            host.apply(change)
    assert str(host) == before


def test_a_free_tap_takes_flags_and_owners() -> None:
    host = FakeHost("tap0 tap group=36")
    host.apply(SetVnetHdr(host.ref("tap0"), True))
    host.apply(SetTapOwner(host.ref("tap0"), owner=107))
    assert {"vnet_hdr", "owner=107", "group=36"} <= host.words("tap0")
    host.apply(SetTapOwner(host.ref("tap0"), group=-1))
    assert "group=36" not in host.words("tap0")


def test_the_first_opener_sets_vnet_hdr_and_a_later_one_of_a_multi_queue_tap_does_not() -> None:
    host = FakeHost("tap0 tap mq vnet_hdr")
    host.foreign.hold("tap0", QEMU, vnet_hdr=False)
    host.foreign.hold("tap0", QEMU, vnet_hdr=True)
    tap = host.observe(Interest()).links[1]
    assert tap.held
    assert tap.tun is not None
    assert (tap.tun.vnet_hdr, tap.tun.queues) == (False, 2)


def test_a_second_opener_of_a_single_queue_tap_is_turned_away() -> None:
    host = FakeHost("tap0 tap held=qemu:100:vm1")
    with pytest.raises(errors.InUse):
        host.foreign.hold("tap0", QEMU)


def test_a_tap_that_is_not_persistent_goes_with_its_process() -> None:
    host = FakeHost("tap0 tap transient held=qemu:100:vm1\ntap1 tap held=qemu:101:vm2")
    host.foreign.release("tap0")
    host.foreign.release("tap1")
    assert [link.name for link in host.observe(Interest()).links.values()] == ["tap1"]


def test_creating_a_tap_never_touches_one_that_is_there() -> None:
    host = FakeHost("tap0 tap held=qemu:100:vm1")
    before = str(host)
    host.apply(CreateTap("tap0", owner=107, multi_queue=True))
    assert str(host) == before


def test_created_links_are_up_and_as_asked() -> None:
    host = FakeHost()
    host.apply(CreateTap("tap0", owner=107, multi_queue=True))
    host.apply(CreateBridge("br0"))
    assert host.line("tap0").startswith("tap0 tap mtu=1500 vnet_hdr mq owner=107 ~tx +sg ~tso")
    assert host.line("br0").startswith("br0 bridge mtu=1500 stp=off delay=15 ageing=300 snooping=on vlan=off mask=0")


@pytest.mark.parametrize("change", [CreateBridge("v0"), CreateTap("v0")])
def test_a_name_that_something_else_has_is_refused(change: model.Change) -> None:
    with pytest.raises(errors.Refused):
        FakeHost("v0 veth").apply(change)


# --- the module --------------------------------------------------------------------------------------------

MODULE = [
    ("loading the absent", "Absent", LoadModule("vhost_net"), None, "vhost_net Loaded experimental_zcopytx=0"),
    (
        "loading with a parameter",
        "Absent",
        LoadModule("vhost_net", (("experimental_zcopytx", 1),)),
        None,
        "vhost_net Loaded experimental_zcopytx=1",
    ),
    ("loading what is loaded", "Loaded", LoadModule("vhost_net", (("experimental_zcopytx", 1),)), None, "Loaded"),
    ("loading what is built in", "BuiltIn", LoadModule("vhost_net"), None, "BuiltIn"),
    ("loading what is missing", "Missing", LoadModule("vhost_net"), errors.NotSupported, "Missing"),
    ("unloading", "Loaded", UnloadModule("vhost_net"), None, "Absent"),
    ("unloading the absent", "Absent", UnloadModule("vhost_net"), None, "Absent"),
    ("unloading what is built in", "BuiltIn", UnloadModule("vhost_net"), errors.Refused, "BuiltIn"),
    ("unloading what is used", "Loaded used=qemu:100:vm1", UnloadModule("vhost_net"), errors.InUse, "Loaded used"),
]


@pytest.mark.parametrize(("start", "change", "error", "then"), [m[1:] for m in MODULE], ids=[m[0] for m in MODULE])
def test_a_module_is_loaded_and_unloaded_as_modprobe_does(
    start: str, change: model.Change, error: type[Exception] | None, then: str
) -> None:
    host = FakeHost(f"vhost_net {start}")
    if error is None:
        host.apply(change)
    else:
        with pytest.raises(error):
            host.apply(change)
    assert then in str(host)


def test_a_rule_file_keeps_the_module_out_until_it_is_removed() -> None:
    host = FakeHost("vhost_net Absent")
    host.apply(WriteModuleFile(RULE, f"{OURS}install vhost_net /bin/false\n"))
    with pytest.raises(errors.Refused):
        host.apply(LoadModule("vhost_net"))
    with pytest.raises(errors.Refused):
        host.foreign.load_module()
    host.apply(RemoveModuleFile(RULE))
    host.apply(LoadModule("vhost_net"))
    assert "vhost_net Loaded" in str(host)


def test_options_in_a_file_hold_for_every_load_and_given_ones_win() -> None:
    host = FakeHost(f'vhost_net Absent\nfile {RULE} "options vhost_net experimental_zcopytx=1\\n"')
    host.foreign.load_module()
    assert "experimental_zcopytx=1" in str(host)
    host.apply(UnloadModule("vhost_net"))
    host.apply(LoadModule("vhost_net", (("experimental_zcopytx", 0),)))
    assert "vhost_net Loaded experimental_zcopytx=0" in str(host)


def test_a_file_without_our_mark_is_neither_written_nor_removed() -> None:
    host = FakeHost(f'file {RULE} "install vhost_net /bin/false\\n"')
    before = str(host)
    for change in (WriteModuleFile(RULE, OURS), RemoveModuleFile(RULE)):
        with pytest.raises(errors.Refused, match="not ours"):
            host.apply(change)
    assert str(host) == before
    assert [why.rpartition(": ")[2] for why in host.violations] == [
        f"touches {RULE}, which does not carry our mark"
    ] * 2


def test_qemu_with_vhost_loads_the_module_and_keeps_it_in_use() -> None:
    host = FakeHost("tap0 tap\nvhost_net Absent")
    host.foreign.hold("tap0", QEMU, vhost=True)
    state = host.observe(EVERYTHING).module
    assert state is not None
    assert (state.status, state.refcount, state.users) == (ModuleStatus.LOADED, 1, (QEMU,))
    host.foreign.release("tap0")
    host.foreign.unload_module()
    assert "vhost_net Absent" in str(host)


# --- looks -------------------------------------------------------------------------------------------------


def test_a_look_reads_only_what_it_was_asked_for() -> None:
    host = FakeHost("eth0 mlx5_core carries='address 192.0.2.1/24'\ntap0 tap held=qemu:100:vm1\nvhost_net Loaded")
    state = host.observe(Interest())
    assert len(state.links) == len(state.features) == 2
    assert not any((state.drivers, state.rings, state.channels, state.rx_frames, state.carries, state.holders))
    assert state.module is None
    state = host.observe(EVERYTHING)
    assert state.carries == {1: "address 192.0.2.1/24"}
    assert state.holders == {2: (QEMU,)}
    assert set(state.rings) == {1}
    assert set(state.rx_frames) == {2}
    assert state.drivers[1].name == "mlx5_core"
    assert state.module is not None


def test_links_and_features_that_did_not_change_are_the_same_objects() -> None:
    host = FakeHost("eth0 mlx5_core\nv0 veth")
    first = host.observe(Interest())
    host.foreign.set_feature("eth0", "tso", False)
    host.foreign.set_feature("eth0", "tso", True)
    host.foreign.set_mtu("v0", 1400)
    second = host.observe(Interest())
    assert second.links[1] is first.links[1]
    assert second.features[1] is first.features[1]
    assert second.links[2] is not first.links[2]
    assert second.links[2].mtu == 1400
    assert first.links[2].mtu == 1500


def test_what_cannot_be_read_is_unreadable_and_comes_back() -> None:
    host = FakeHost("eth0 mlx5_core")
    for surface in ("features", "rings"):
        host.foreign.set_readable("eth0", surface, "Input/output error")
    state = host.observe(EVERYTHING)
    assert state.features[1] == state.rings[1] == Unreadable("Input/output error")
    host.foreign.set_readable("eth0", "features")
    assert host.observe(Interest()).features[1] == rules.PROFILES["mlx5_core"].features


def test_a_look_can_fail_and_the_next_one_sees_again() -> None:
    host = FakeHost("eth0 e1000e")
    host.fail_look(errors.Temporary("dump interrupted"))
    with pytest.raises(errors.Temporary):
        host.observe(Interest())
    assert host.observe(Interest()).by_name("eth0")


# --- changes as such ---------------------------------------------------------------------------------------


def test_a_change_the_fake_does_not_know_fails_by_name() -> None:
    with pytest.raises(AssertionError, match="does not know 'paint it black'"):
        FakeHost().apply("paint it black")  # type: ignore[arg-type]


def test_a_link_made_in_the_same_plan_is_found_by_name() -> None:
    host = FakeHost("v0 veth")
    host.apply(CreateBridge("br0"))
    host.apply(SetMaster(host.ref("v0"), model.Ref("br0", 0)))
    assert "master=br0" in host.words("v0")


def test_a_change_on_a_gone_link_says_so_and_deleting_it_is_success() -> None:
    host = FakeHost("tap0 tap")
    tap = host.ref("tap0")
    host.foreign.delete("tap0")
    host.foreign.add_tap("tap0")
    with pytest.raises(errors.Gone):
        host.apply(SetMtu(tap, 1400))
    host.apply(DeleteLink(tap))
    assert "tap0" in str(host)


def test_hardware_cannot_be_deleted() -> None:
    host = FakeHost("eth0 e1000e")
    with pytest.raises(errors.Refused):
        host.apply(DeleteLink(host.ref("eth0")))


EVERY_CHANGE = """
br0 bridge
eth0 mlx5_core +lro
tap0 tap
vhost_net Absent
"""


GUESTS = {"uuid": Guest("uuid", "db", (GuestNic("mac", configured={"guest.nic.queues": 4}, running={}),))}


def every_change(host: FakeHost) -> list[model.Change]:
    br0, eth0, tap0 = map(host.ref, ("br0", "eth0", "tap0"))
    return [
        host.ask("eth0", "-tx", "+ntuple"),
        SetRings(eth0, rx=1000),
        SetChannels(eth0, combined=3),
        SetRxFrames(tap0, 99),
        SetMtu(eth0, 9000),
        SetTxQueueLength(eth0, 10),
        SetBridgeOptions(br0, (("stp", True), ("forwardDelaySeconds", 4))),
        SetMaster(eth0, br0),
        SetMaster(eth0, None),
        CreateBridge("br1"),
        CreateTap("tap1"),
        DeleteLink(br0),
        SetVnetHdr(tap0, True),
        SetTapOwner(tap0, 1, -1),
        WriteModuleFile(RULE, OURS),
        LoadModule("vhost_net"),
        UnloadModule("vhost_net"),
        RemoveModuleFile(RULE),
        SetGuestNic("db", "uuid", "mac", "", (("vhost.mode", "Required"), ("guest.nic.queues", None)), ()),
        ReplugGuestNic("uuid/mac", "db", "uuid", "mac", "", (("guest.nic.queues", 2),), (), "p", "1/a"),
        LeaveReplug("uuid/mac"),
    ]


def test_every_change_can_be_made_twice() -> None:
    host = FakeHost(EVERY_CHANGE)
    host.twice = True
    host.guests = dict(GUESTS)
    changes = every_change(host)
    for change in changes:
        host.apply(change)
    assert host.applied == changes
    assert {type(change) for change in changes} == set(FakeHost._ACTS) == set(model.Change.__args__)


def test_a_change_that_is_not_the_same_twice_is_caught() -> None:
    host = FakeHost("br0 bridge")
    host.twice = True
    change = SetBridgeOptions(host.ref("br0"), (("stp", True), ("forwardDelaySeconds", 1)))
    with pytest.raises(errors.Refused):
        host.apply(change)


def test_a_new_look_at_the_text_of_a_host_is_that_host_after_every_change() -> None:
    host = FakeHost(EVERY_CHANGE)
    host.guests = dict(GUESTS)
    for change in every_change(host):
        host.apply(change)
        assert text.describe(text.parse(str(host))) == str(host)
