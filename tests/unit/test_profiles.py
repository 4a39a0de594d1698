"""Profiles as sets of values under the fields of a policy: what is written wins, and nothing is asked in vain."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from virtnet.core.model import Match, ModuleWish, Policy, VhostMode
from virtnet.kube import api, profiles

ROOT = Path(__file__).parents[2]
NAMES = tuple(profiles.PROFILES)


def policy(**spec: Any) -> Policy:
    written = {"apiVersion": api.API_VERSION, "kind": api.KIND, "metadata": {"name": "p"}, "spec": spec}
    return api.VirtioNetworkPolicy.model_validate(written).to_core()


def nic(found: Policy) -> dict[str, Any]:
    assert found.guest is not None
    return dict(found.guest.nic)


def test_the_profiles_are_those_of_the_api() -> None:
    assert get_args(api.PROFILES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_profile_is_enforced_as_fields_are(name: str) -> None:
    found = policy(profile=name, bridge={"name": "br0"})
    assert (found.unenforced, found.warnings) == ((), ())
    assert any((found.vhost, found.uplink, found.guest))


@pytest.mark.parametrize("name", NAMES)
def test_every_profile_is_documented_with_its_evidence(name: str) -> None:
    text = (ROOT / "docs" / "profiles.md").read_text().partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    assert "**Evidence.**" in text
    assert "**How to find out.**" in text
    assert "faster" not in text


def test_throughput_asks_for_vhost_queues_and_offloads() -> None:
    found = policy(profile="Throughput", bridge={"name": "br0"})
    assert found.vhost is not None
    assert found.vhost.mode is VhostMode.REQUIRED
    assert nic(found) | {"queues": "vcpus", "maxQueues": 8, "rxQueueSize": 1024, "host.tso4": True} == nic(found)
    assert found.uplink is not None
    assert dict(found.uplink.offloads) == dict.fromkeys(("tx", "sg", "tso", "gso", "gro"), True)


def test_what_is_written_wins() -> None:
    found = policy(
        profile="Throughput",
        bridge={"name": "br0"},
        vhost={"mode": "Auto"},
        uplink={"offloads": {"gro": False}},
        guest={"nic": {"queues": 16}},
    )
    assert found.vhost is not None
    assert found.vhost.mode is VhostMode.AUTO
    assert found.uplink is not None
    assert dict(found.uplink.offloads)["gro"] is False
    assert (nic(found)["queues"], "maxQueues" in nic(found)) == (16, False)


def test_a_value_that_contradicts_what_is_written_is_left_out_and_named() -> None:
    found = policy(profile="Throughput", bridge={"name": "br0"}, vhost={"module": {"state": "Absent"}})
    assert found.vhost is not None
    assert (found.vhost.mode, found.vhost.state) == (None, ModuleWish.ABSENT)
    assert nic(found)["rxQueueSize"] == 1024
    (said,) = found.warnings
    assert said.startswith("profile Throughput: vhost.mode is left out, for what is written contradicts it: ")


def test_a_section_that_would_select_nothing_is_left_out() -> None:
    found = policy(profile="Throughput", guest={"match": {"domains": ["web*"]}})
    assert (found.uplink, nic(found)["rxQueueSize"]) == (None, 1024)


def test_a_workaround_for_a_driver_is_for_the_uplinks_of_the_bridge_that_have_it() -> None:
    found = policy(profile="UplinkGroGsoWorkaround", bridge={"name": "br0"})
    assert found.uplink is not None
    assert found.uplink.match == Match(drivers=("bnxt_en",), bridge="br0")
    assert dict(found.uplink.offloads) == {"gro": False, "gso": False}


def test_a_workaround_is_for_other_uplinks_when_they_are_written() -> None:
    found = policy(profile="TunnelChecksumWorkaround", uplink={"match": {"names": ["eth0"]}})
    assert found.uplink is not None
    assert found.uplink.match == Match(names=("eth0",))
    assert set(dict(found.uplink.offloads).values()) == {False}


def test_a_profile_belongs_to_what_was_written_and_changes_no_digest_beside() -> None:
    spec = api.Spec.model_validate({"profile": "Throughput", "bridge": {"name": "br0"}})
    assert policy(profile="Throughput", bridge={"name": "br0"}).digest == spec.digest
    assert policy(bridge={"name": "br0"}).digest != spec.digest
