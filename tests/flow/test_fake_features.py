"""The fake's features and bridges behave as Linux does; tests/kernel/test_fake_agrees.py asks Linux itself."""

from __future__ import annotations

import pytest

from tests.flow import rules
from tests.flow.fake import FakeHost
from virtnet import errors
from virtnet.core import model
from virtnet.core.model import (
    DeleteLink,
    Interest,
    SetBridgeOptions,
    SetFeatures,
    SetMaster,
    SetMtu,
)

# --- features ----------------------------------------------------------------------------------------------

FEATURES = [
    ("tx off drops tso and keeps it wanted", "eth0 e1000e", ["-tx"], {"-tx", "~tso"}, set()),
    ("tx on revives tso", "eth0 e1000e -tx", ["+tx"], {"+tx", "+tso"}, {"~tso"}),
    ("tso off stays off when tx comes back", "eth0 e1000e -tx -tso", ["+tx"], {"+tx", "-tso"}, set()),
    ("sg off drops gso and tso", "eth0 e1000e", ["-sg"], {"-sg", "~gso", "~tso"}, set()),
    ("sg off leaves udp segmentation", "eth0 mlx5_core", ["-sg"], {"-sg"}, {"~tx-udp-segmentation"}),
    ("rx off drops rx-gro-hw", "eth0 mlx5_core +rx-gro-hw", ["-rx"], {"-rx", "~rx-gro-hw"}, set()),
    ("rx-gro-hw drops lro", "eth0 mlx5_core +lro", ["+rx-gro-hw"], {"~lro", "+rx-gro-hw"}, set()),
    ("rx-fcs drops lro", "eth0 mlx5_core +lro", ["+rx-fcs"], {"~lro", "+rx-fcs"}, set()),
    ("a fixed feature is passed over in silence", "eth0 e1000e", ["+lro", "-gro"], {"-gro"}, {"+lro", "~lro"}),
    ("a driver refuses without a word", "eth0 mlx5_core refuses=rx-lro", ["+lro"], {"~lro"}, {"+lro"}),
    ("tso on a tap is only wanted", "tap0 tap", ["+tso"], {"~tso"}, set()),
    ("ipv4 checksums alone keep ipv4 tso", "eth0 r8169 -tx-checksum-ipv6", ["+tso"], {"~tx-tcp6-segmentation"}, set()),
    ("both checksums serve tso too", "eth0 r8169", ["-gro"], {"+tso", "-gro"}, {"~tso"}),
]


@pytest.mark.parametrize(("line", "asked", "there", "gone"), [f[1:] for f in FEATURES], ids=[f[0] for f in FEATURES])
def test_features_follow_the_rules_of_the_kernel(line: str, asked: list[str], there: set[str], gone: set[str]) -> None:
    host = FakeHost(line)
    link = line.split(maxsplit=1)[0]
    host.apply(host.ask(link, *asked))
    assert there <= host.words(link)
    assert not gone & host.words(link)


def test_a_feature_that_never_changes_fails_the_whole_message() -> None:
    host = FakeHost("eth0 e1000e")
    before = str(host)
    with pytest.raises(errors.Refused, match="non-ethtool"):
        host.apply(host.ask("eth0", "-gro", "-vlan-challenged"))
    assert str(host) == before


def test_a_feature_bit_without_a_name_is_no_request_of_ours() -> None:
    host = FakeHost("br0 bridge")
    with pytest.raises(AssertionError, match="without a name"):
        host.apply(SetFeatures(host.ref("br0"), rules.GSO_UDP, 0))


def test_the_guest_decides_the_features_of_its_tap_and_they_outlive_it() -> None:
    host = FakeHost("tap0 tap held=qemu:100:vm1 -gro")
    host.foreign.negotiate("tap0", "tx-checksum-ip-generic tx-tcp-segmentation")
    assert {"+tx", "+tso", "-tx-tcp6-segmentation", "-gro"} <= host.words("tap0")
    host.apply(host.ask("tap0", "-tso"))
    assert "-tso" in host.words("tap0")
    host.foreign.negotiate("tap0", "tx-checksum-ip-generic tx-tcp-segmentation")
    host.foreign.release("tap0")
    assert {"+tx", "+tso"} <= host.words("tap0")


def test_a_bridge_has_what_one_of_its_ports_has_and_gets_it_back_from_a_better_port() -> None:
    host = FakeHost("br0 bridge\ntap0 tap\nv0 veth")
    host.apply(SetMaster(host.ref("tap0"), host.ref("br0")))
    assert host.observe(Interest()).features[1].active & rules.UDP_L4 == 0  # type: ignore[union-attr]
    host.apply(SetMaster(host.ref("v0"), host.ref("br0")))
    assert host.observe(Interest()).features[1].active & rules.UDP_L4  # type: ignore[union-attr]


def test_a_port_without_tso_does_not_take_it_from_the_bridge() -> None:
    host = FakeHost("br0 bridge\nv0 veth master=br0")
    host.apply(host.ask("v0", "-tso"))
    assert "+tso" in host.words("br0")


# --- bridges -----------------------------------------------------------------------------------------------


def test_enslaving_clears_lro_also_where_it_was_wanted() -> None:
    host = FakeHost("br0 bridge\neth0 mlx5_core +lro")
    host.apply(SetMaster(host.ref("eth0"), host.ref("br0")))
    assert {"master=br0", "-lro"} <= host.words("eth0")


def test_enslaving_a_bond_clears_lro_of_its_slaves() -> None:
    host = FakeHost("br0 bridge\nbond0 bond +lro\neth0 mlx5_core master=bond0 +lro")
    host.apply(SetMaster(host.ref("bond0"), host.ref("br0")))
    assert "-lro" in host.words("bond0")
    assert "-lro" in host.words("eth0")


def test_lro_on_a_port_is_wanted_and_stays_off() -> None:
    host = FakeHost("br0 bridge\neth0 mlx5_core master=br0")
    host.apply(host.ask("eth0", "+lro"))
    assert "~lro" in host.words("eth0")


def test_lro_that_was_wanted_on_a_port_is_not_revived_by_asking_again_after_release() -> None:
    host = FakeHost("br0 bridge\neth0 mlx5_core master=br0")
    host.apply(host.ask("eth0", "+lro"))
    host.apply(SetMaster(host.ref("eth0"), None))
    host.apply(host.ask("eth0", "+lro"))
    assert "~lro" in host.words("eth0")
    host.apply(host.ask("eth0", "-lro"))
    host.apply(host.ask("eth0", "+lro"))
    assert "+lro" in host.words("eth0")


def test_a_port_moves_from_bridge_to_bridge() -> None:
    host = FakeHost("br0 bridge\nbr1 bridge\nv0 veth master=br0")
    host.apply(SetMaster(host.ref("v0"), host.ref("br1")))
    assert "master=br1" in host.words("v0")


@pytest.mark.parametrize(
    ("port", "master", "error"),
    [("br1", "br0", errors.Refused), ("lo", "br0", errors.Refused), ("v0", "v1", errors.NotSupported)],
)
def test_what_cannot_be_a_port_is_refused(port: str, master: str, error: type[Exception]) -> None:
    host = FakeHost("br0 bridge\nbr1 bridge\nlo lo\nv0 veth\nv1 veth")
    before = str(host)
    with pytest.raises(error):
        host.apply(SetMaster(host.ref(port), host.ref(master)))
    assert str(host) == before


def test_a_refused_move_leaves_the_port_without_a_master() -> None:
    host = FakeHost("br0 bridge\nv0 veth master=br0\nv1 veth")
    with pytest.raises(errors.NotSupported):
        host.apply(SetMaster(host.ref("v0"), host.ref("v1")))
    assert "master=br0" not in host.words("v0")


def test_a_bridge_follows_its_smallest_port_until_its_own_mtu_is_set() -> None:
    host = FakeHost("br0 bridge\nv0 veth mtu=1300")
    host.apply(SetMaster(host.ref("v0"), host.ref("br0")))
    assert "mtu=1300" in host.words("br0")
    host.apply(SetMtu(host.ref("v0"), 1200))
    assert "mtu=1200" in host.words("br0")
    host.apply(SetMtu(host.ref("br0"), 1400))
    host.apply(SetMtu(host.ref("v0"), 1100))
    assert "mtu=1400" in host.words("br0")


def test_a_bridge_whose_mtu_was_never_set_returns_to_1500_without_ports() -> None:
    host = FakeHost("br0 bridge mtu=1300\nv0 veth mtu=1300 master=br0")
    host.apply(SetMaster(host.ref("v0"), None))
    assert "mtu=1500" in host.words("br0")


BRIDGE = [
    ("a delay under 2 s with stp", "stp=on", {"forwardDelaySeconds": 1}, errors.Refused, "stp=on delay=15"),
    ("a delay over 30 s with stp", "stp=on", {"forwardDelaySeconds": 31}, errors.Refused, "stp=on delay=15"),
    ("a delay of 0 without stp", "", {"forwardDelaySeconds": 0}, None, "stp=off delay=0"),
    ("stp lifts a delay that is too short", "delay=0", {"stp": True}, None, "stp=on delay=2"),
    ("stp cuts a delay that is too long", "delay=40", {"stp": True}, None, "stp=on delay=30"),
    ("both at once: the delay first", "", {"stp": True, "forwardDelaySeconds": 1}, None, "stp=on delay=2"),
    ("a mask with a reserved bit", "mask=8", {"groupForwardMask": 12}, errors.Refused, "mask=8"),
    ("a mask without reserved bits", "", {"groupForwardMask": 65528}, None, "mask=65528"),
    ("what stands before a refused mask stays", "", {"stp": True, "groupForwardMask": 1}, errors.Refused, "stp=on"),
    ("the rest", "", {"ageingTimeSeconds": 0, "multicastSnooping": False}, None, "ageing=0 snooping=off"),
    ("vlan filtering", "", {"vlanFiltering": True}, None, "vlan=on"),
]


@pytest.mark.parametrize(("start", "options", "error", "then"), [b[1:] for b in BRIDGE], ids=[b[0] for b in BRIDGE])
def test_bridge_options_are_taken_or_refused_as_the_kernel_does(
    start: str, options: dict[str, model.Value], error: type[Exception] | None, then: str
) -> None:
    host = FakeHost(f"br0 bridge {start}")
    change = SetBridgeOptions(host.ref("br0"), tuple(options.items()))
    if error is None:
        host.apply(change)
    else:
        with pytest.raises(error):
            host.apply(change)
    assert then in host.line("br0")


def test_a_kernel_without_vlan_filtering_says_so() -> None:
    host = FakeHost("br0 bridge")
    host.machine.has_vlan_filtering = False
    with pytest.raises(errors.NotSupported):
        host.apply(SetBridgeOptions(host.ref("br0"), (("vlanFiltering", True),)))


def test_deleting_a_bridge_releases_its_ports() -> None:
    host = FakeHost("br0 bridge\nv0 veth master=br0")
    host.apply(DeleteLink(host.ref("br0")))
    assert host.line("v0").startswith("v0 veth mtu=1500 rx-queues")
