"""Features as we read and set them are features as `ethtool --json -k` shows them."""

from __future__ import annotations

import pytest

from tests.kernel.playground import Playground
from tests.kernel.test_links import as_ref, look, named
from virtnet import errors
from virtnet.core import features as names
from virtnet.core import model
from virtnet.core.model import Features, Ref, SetFeatures
from virtnet.host import LinuxHost

LINKS = (
    "link add br0 type bridge",
    "link add v0 type veth peer name v1",
    "tuntap add t0 mode tap",
    "link add ifb9 type ifb",
)


def bits(host: LinuxHost, *asked: str) -> int:
    return names.mask_of(asked, look(host).feature_names)


def assert_as_shown(playground: Playground, host: LinuxHost, name: str) -> None:
    state = look(host)
    shown = playground.ethtool(name)
    found = state.features[named(host, name).ifindex]
    assert isinstance(found, Features)
    compared = 0
    for bit, feature in enumerate(state.feature_names):
        if feature in shown:
            compared += 1
            ours = {
                "active": bool(found.active >> bit & 1),
                "fixed": not found.changeable >> bit & 1,
                "requested": bool(found.wanted >> bit & 1),
            }
            # ethtool calls a feature that is neither changeable nor wanted "requested" as it is
            if ours["fixed"]:
                ours["requested"] = shown[feature]["requested"]
            assert ours == shown[feature], f"{name} {feature}"
    assert compared > 40, "ethtool's names and the kernel's have nothing in common"


@pytest.mark.parametrize("name", ["lo", "br0", "v0", "t0", "ifb9"])
def test_features_are_read_as_ethtool_shows_them(playground: Playground, host: LinuxHost, name: str) -> None:
    playground.batch(*LINKS)
    assert_as_shown(playground, host, name)
    for feature in ("gso", "tso", "gro", "tx"):
        playground.run(f"sh -c 'ethtool -K {name} {feature} off || true'")
        assert_as_shown(playground, host, name)


def test_one_link_is_read_as_the_look_reads_it(playground: Playground, host: LinuxHost) -> None:
    playground.batch(*LINKS)
    state = look(host)
    for index, found in state.features.items():
        assert host.read_features(index) == found


def test_only_the_features_in_the_mask_are_set(playground: Playground, host: LinuxHost) -> None:
    playground.batch(*LINKS)
    before = playground.ethtool("v0")
    mask = bits(host, "rx-gro", "tx-tcp6-segmentation")
    for _ in range(2):
        host.apply(model.SetFeatures(as_ref(named(host, "v0")), mask, bits(host, "rx-gro")))
        after = playground.ethtool("v0")
        assert (after["rx-gro"]["active"], after["tx-tcp6-segmentation"]["active"]) == (True, False)
    differ = {feature for feature in before if before[feature] != after[feature]}
    assert differ <= {"rx-gro", "tx-tcp6-segmentation"}


def test_what_a_set_dragged_along_is_in_its_answer(playground: Playground, host: LinuxHost) -> None:
    playground.batch(*LINKS)
    after = host.set_features(as_ref(named(host, "v0")), bits(host, "tx-scatter-gather"), 0)
    assert not after.active & bits(host, "tx-scatter-gather", "tx-tcp-segmentation", "tx-generic-segmentation")
    assert not playground.ethtool("v0")["tx-tcp-segmentation"]["active"]
    back = host.set_features(
        as_ref(named(host, "v0")), bits(host, "tx-scatter-gather"), bits(host, "tx-scatter-gather")
    )
    assert back.active & bits(host, "tx-tcp-segmentation")


def test_a_fixed_feature_is_no_error_and_does_not_stop_the_others(playground: Playground, host: LinuxHost) -> None:
    playground.batch(*LINKS)
    assert playground.ethtool("t0")["rx-checksum"]["fixed"]
    mask = bits(host, "rx-checksum", "rx-gro")
    after = host.set_features(as_ref(named(host, "t0")), mask, bits(host, "rx-checksum"))
    assert not after.active & mask
    assert not playground.ethtool("t0")["rx-gro"]["active"]


def test_index_and_name_of_two_links_are_gone_and_neither_is_touched(playground: Playground, host: LinuxHost) -> None:
    playground.batch(*LINKS)
    before = playground.ethtool("v0"), playground.ethtool("t0")
    with pytest.raises(errors.Gone):
        host.set_features(Ref("v0", named(host, "t0").ifindex), bits(host, "rx-gro"), bits(host, "rx-gro"))
    assert (playground.ethtool("v0"), playground.ethtool("t0")) == before


def test_a_bit_that_this_kernel_does_not_have_is_refused(playground: Playground, host: LinuxHost) -> None:
    playground.batch(*LINKS)
    with pytest.raises(errors.HostError, match="cannot set offload features of v0"):
        host.set_features(as_ref(named(host, "v0")), 1 << 200, 1 << 200)


def test_an_empty_mask_changes_nothing(playground: Playground, host: LinuxHost) -> None:
    playground.batch(*LINKS)
    before = playground.ethtool("v0")
    host.apply(model.SetFeatures(as_ref(named(host, "v0")), 0, 0))
    assert playground.ethtool("v0") == before


def test_a_link_without_features_is_gone(host: LinuxHost) -> None:
    with pytest.raises(errors.Gone):
        host.read_features(4242)


def test_many_links_are_set_as_one_by_one_and_each_failure_is_told_of_its_own(
    playground: Playground, host: LinuxHost
) -> None:
    """More than go into one datagram; a gone link and a bit beyond the kernel's are among them."""
    playground.batch(*(f"link add x{number} type veth peer name y{number}" for number in range(70)))
    mask = bits(host, "rx-gro", "tx-generic-segmentation")
    found = look(host)
    before = {link.name: found.features[index] for index, link in found.links.items() if link.name[0] in "xy"}
    asked: list[model.Change] = [
        SetFeatures(as_ref(named(host, f"x{number}")), mask, mask if number % 2 else 0) for number in range(70)
    ]
    asked[3:3] = [SetFeatures(Ref("x0", 99_999), mask, 0), SetFeatures(as_ref(named(host, "y0")), 1 << 200, 0)]
    asked[10:10] = [model.SetMtu(as_ref(named(host, "y1")), 1400), SetFeatures(as_ref(named(host, "y2")), 0, 0)]
    answers = host.apply_all(asked)
    assert {place: type(error) for place, error in enumerate(answers) if error} == {3: errors.Gone, 4: errors.Refused}
    assert "x0" in str(answers[3])
    assert "y0" in str(answers[4])
    for number in range(70):
        shown = playground.ethtool(f"x{number}")
        assert {shown[name]["active"] for name in ("rx-gro", "tx-generic-segmentation")} == {number % 2 == 1}
    assert named(host, "y1").mtu == 1400
    assert look(host).features[named(host, "y2").ifindex] == before["y2"]
    assert host.apply_all(asked[5:]) == [None] * (len(asked) - 5), "made twice"


def test_a_set_that_fails_leaves_no_answer_behind(playground: Playground, host: LinuxHost) -> None:
    playground.batch(*LINKS)
    index, mask = named(host, "v0").ifindex, bits(host, "rx-gro")
    with pytest.raises(errors.Gone, match="set offload features of other"):
        host.set_features(Ref("other", index), mask, mask)
    with pytest.raises(errors.Refused, match="set offload features of v0"):
        host.set_features(Ref("v0", index), 1 << 200, 0)
    after = host.set_features(Ref("v0", index), mask, mask)
    assert after.active & mask
    assert host.read_features(named(host, "t0").ifindex) == look(host).features[named(host, "t0").ifindex]
    assert host.set_features(Ref("v0", index), 0, 0) == after
