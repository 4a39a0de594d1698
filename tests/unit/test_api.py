"""The models: what they refuse and what they say, and the policy that they give to the core."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from tests.unit.policy_cases import CASES, Case, Spec, document
from virtnet.core import model
from virtnet.kube import api, explain, rules


def core(spec: Spec, **metadata: Any) -> model.Policy:
    written = document(spec)
    written["metadata"].update(metadata)
    return api.VirtioNetworkPolicy.model_validate(written).to_core()


def problems(spec: Spec) -> list[explain.Problem]:
    with pytest.raises(ValidationError) as raised:
        core(spec)
    return list(explain.problems(raised.value))


def sentences(spec: Spec) -> list[str]:
    return [problem.sentence for problem in problems(spec)]


@pytest.mark.parametrize("case", [case for case in CASES if case.says is None], ids=lambda case: case.name)
def test_a_good_policy_becomes_a_policy_of_the_core(case: Case) -> None:
    assert core(case.spec).name == "example"


@pytest.mark.parametrize("case", [case for case in CASES if case.says], ids=lambda case: case.name)
def test_a_bad_policy_is_refused_with_one_plain_sentence(case: Case) -> None:
    (sentence,) = sentences(case.spec)
    assert case.says is not None
    assert case.says in sentence
    assert "\n" not in sentence


def test_the_names_of_the_cases_are_their_own() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))


# --- interface names ---------------------------------------------------------------------------------------


def test_a_byte_that_the_kernel_takes_for_white_space_makes_a_bad_name() -> None:
    assert rules.is_interface_name("é")  # c3 a9
    assert not rules.is_interface_name("à")  # c3 a0: isspace(0xa0) in the kernel's ctype table


def test_a_name_with_a_nul_or_half_a_character_is_bad_and_no_crash() -> None:
    assert not rules.is_interface_name("a\0b")
    assert rules.is_interface_name("a\udc80")


# --- several faults ----------------------------------------------------------------------------------------


def test_all_faults_are_told_at_once_each_with_its_place() -> None:
    found = problems(
        {
            "bridge": {"name": "br/0", "mtu": 1, "ports": ["a", "a", "b", "b"]},
            "uplink": {"offloads": {"tx": False, "sg": False, "tso": True}},
            "tap": {"offloads": {"tso": True, "gro": True, "sg": True}},
        }
    )
    assert [problem.loc for problem in found] == [
        ("spec", "bridge", "name"),
        ("spec", "bridge", "ports", 1),
        ("spec", "bridge", "ports", 3),
        ("spec", "bridge", "mtu"),
        ("spec", "uplink", "offloads", "tso"),
        ("spec", "uplink", "offloads", "tso"),
        ("spec", "tap", "offloads", "tso"),
        ("spec", "tap", "offloads", "sg"),
    ]


def test_a_contradiction_points_at_the_name_that_was_typed() -> None:
    (problem,) = problems({"uplink": {"offloads": {"sg": False, "tx-tcp6-segmentation": True}}})
    assert problem.loc[-1] == "tx-tcp6-segmentation"


def test_an_unknown_field_gets_the_nearest_name_or_all_of_them() -> None:
    assert sentences({"uplink": {"rings": {"rxx": 1}}}) == ["there is no field 'rxx' here: write rx"]
    assert sentences({"uplink": {"rings": {"size": 1}}}) == ["there is no field 'size' here: write one of rx, tx"]
    (deep,) = sentences({"guest": {"match": {"virtualMachines": {"selector": {"matchlabels": {}}}}}})
    assert deep.endswith("write matchLabels")
    bridge = {"name": "br0"}
    assert sentences({"bridge": bridge, "tap": {"create": [{"name": "a", "multiqueue": True}]}}) == [
        "there is no field 'multiqueue' here: write multiQueue"
    ]


def test_a_sentence_shows_what_was_found() -> None:
    assert sentences({"priority": "high"}) == ["write a whole number (found the text 'high')"]
    assert sentences({"priority": 1.0}) == ["write a whole number (found the number 1.0)"]
    assert sentences({"profile": 3}) == [
        "write Throughput, UdpHostToGuest, UplinkGroGsoWorkaround, TunnelChecksumWorkaround or LegacyTsoGsoDisabled"
        " (found the number 3)"
    ]
    assert sentences({"bridge": {"name": True}}) == ['write it in quotes: "true" (found the truth value true)']
    assert sentences({"bridge": {"name": ["br0"]}}) == ["write a text (found a list)"]
    assert sentences({"guest": {"match": {"domains": [""]}}}) == ["write at least one character"]
    assert sentences({"guest": {"match": {"domains": ["x" * 65]}}}) == ["write at most 64 characters"]
    assert sentences({"uplink": {"offloads": True}}) == ["write a map of names to values (found the truth value true)"]


def test_too_long_a_list_is_one_fault_however_bad_its_items_are() -> None:
    assert sentences({"bridge": {"name": "br0", "ports": ["a/b"] * 100_000}}) == ["write at most 64"]
    assert sentences({"uplink": {"offloads": {f"f{number}": True for number in range(65)}}}) == ["write at most 64"]


# --- what the core gets ------------------------------------------------------------------------------------


def test_what_is_not_written_is_not_asked() -> None:
    policy = core({})
    assert (policy.bridge, policy.uplink, policy.tap, policy.vhost) == (None, None, None, None)
    assert (policy.mode, policy.on_contention, policy.deletion) == ("Enforce", "Yield", "Restore")
    assert policy.priority == 0
    assert policy.safety == model.Safety()
    assert (policy.unenforced, policy.cluster_only, policy.warnings) == ((), (), ())


def test_the_host_side_of_a_policy_reaches_the_core_whole() -> None:
    policy = core(
        {
            "nodeSelector": {
                "matchLabels": {"zone": "a"},
                "matchExpressions": [{"key": "nic", "operator": "In", "values": ["x", "y"]}],
            },
            "priority": 7,
            "mode": "Audit",
            "onContention": "Insist",
            "deletionPolicy": "Retain",
            "bridge": {
                "name": "br0",
                "create": True,
                "ports": ["eth0"],
                "stp": False,
                "forwardDelaySeconds": 0,
                "ageingTimeSeconds": 1,
                "multicastSnooping": False,
                "vlanFiltering": True,
                "groupForwardMask": 8,
                "mtu": 9000,
                "offloads": {"tso": True},
            },
            "uplink": {
                "match": {"names": ["e*"], "drivers": ["ice"], "bridge": "br0"},
                "offloads": {"gro": False},
                "rings": {"rx": 1, "tx": 2},
                "channels": {"combined": 3, "rx": 4, "tx": 5},
                "disruption": "WhenNoGuests",
            },
            "tap": {
                "match": {"names": ["vnet*"], "bridge": "br0", "pods": False},
                "create": [{"name": "tap0", "owner": 0, "group": 1, "multiQueue": True}],
                "vnetHdr": True,
                "offloads": {"gso": True},
                "rxFrames": 0,
                "mtu": 1500,
                "txQueueLength": 500,
            },
            "vhost": {
                "mode": "Auto",
                "module": {"state": "Loaded", "parameters": {"experimental_zcopytx": 0}, "persist": False},
            },
            "safety": {
                "probes": {"apiServer": False, "gateway": False, "tcp": ["a:1"]},
                "timeoutSeconds": 3,
                "rollback": False,
            },
        }
    )
    assert policy.node_selector == model.NodeSelector((("zone", "a"),), (model.Requirement("nic", "In", ("x", "y")),))
    assert (policy.priority, policy.mode) == (7, model.Mode.AUDIT)
    assert (policy.on_contention, policy.deletion) == (model.OnContention.INSIST, model.Deletion.RETAIN)
    assert policy.bridge == model.BridgeSpec(
        "br0", True, ("eth0",), False, 0, 1, False, True, 8, 9000, (("tso", True),)
    )
    assert policy.uplink == model.UplinkSpec(
        model.Match(("e*",), ("ice",), "br0"), (("gro", False),), 1, 2, 3, 4, 5, model.Disruption.WHEN_NO_GUESTS
    )
    assert policy.tap == model.TapSpec(
        model.Match(("vnet*",), bridge="br0", pods=False),
        (model.TapToCreate("tap0", 0, 1, True),),
        True,
        (("gso", True),),
        0,
        1500,
        500,
    )
    assert policy.vhost == model.VhostSpec(
        model.VhostMode.AUTO, model.ModuleWish.LOADED, (("experimental_zcopytx", 0),), False
    )
    assert policy.safety == model.Safety(False, False, ("a:1",), 3, False)
    assert (policy.unenforced, policy.cluster_only) == ((), ())


def test_a_policy_of_the_core_is_frozen_and_can_be_a_key() -> None:
    assert len({core({"bridge": {"name": "br0", "offloads": {"tso": True}}}), core({})}) == 2


def test_metadata_of_the_server_is_taken_and_the_rest_of_it_ignored() -> None:
    policy = core(
        {},
        uid="u-1",
        generation=3,
        creationTimestamp="2026-11-22T10:00:00Z",
        resourceVersion="17",
        managedFields=[{"manager": "kubectl"}],
        annotations={"virtnet.dev/resume": "3", "kubectl.kubernetes.io/last-applied-configuration": "{}"},
    )
    assert (policy.uid, policy.generation, policy.created) == ("u-1", 3, "2026-11-22T10:00:00Z")
    assert policy.annotations == (("virtnet.dev/resume", "3"),)


def test_a_status_of_the_server_is_ignored() -> None:
    written = document({}) | {"status": {"anything": ["at all"]}}
    assert api.VirtioNetworkPolicy.model_validate(written).to_core() == core({})


def test_a_policy_without_a_spec_asks_nothing() -> None:
    written = document({})
    del written["spec"]
    assert api.VirtioNetworkPolicy.model_validate(written).to_core() == core({})


# --- the digest --------------------------------------------------------------------------------------------


def test_the_digest_is_of_what_was_written_in_any_order() -> None:
    one = core({"bridge": {"name": "br0", "mtu": 1500}, "priority": 0})
    other = core({"priority": 0, "bridge": {"mtu": 1500, "name": "br0"}})
    assert one.digest == other.digest
    # sha256 of {"bridge":{"mtu":1500,"name":"br0"},"priority":0}
    assert one.digest == "381b8ff4ccbc5eaed93536a0e1db43c72f62e7b2fa2d5195aae84f0dd44c802f"


def test_writing_a_default_is_another_content_than_leaving_it_out() -> None:
    assert core({"priority": 0}).digest != core({}).digest


def test_metadata_does_not_change_the_digest() -> None:
    assert core({}, generation=1).digest == core({}, generation=2).digest


# --- accepted and not enforced -----------------------------------------------------------------------------


def test_all_that_is_asked_of_guests_is_enforced() -> None:
    guest = {
        "match": {"domains": ["a", "b*"], "bridge": "br0"},
        "update": "Replug",
        "nic": {"queues": "vcpus", "host": {"csum": True, "tso4": False}},
    }
    assert core({"guest": guest, "vhost": {"mode": "Disabled", "pollMicroseconds": 0}}).unenforced == ()


def test_pods_are_not_enforced_and_say_why() -> None:
    rows = core({"tap": {"match": {"names": ["*"], "pods": True}}}).unenforced
    assert [(row.path, row.wanted) for row in rows] == [("tap.match.pods", True)]
    assert all(row.why for row in rows)


def test_what_needs_a_cluster_is_named_as_it_was_typed() -> None:
    policy = core(
        {
            "rollout": {"canary": 2, "maxUnavailable": "50%"},
            "guest": {"match": {"virtualMachines": {"namespaces": ["db"]}}},
            "safety": {"probes": {"apiServer": True}},
        }
    )
    assert policy.cluster_only == (
        "rollout.canary",
        "rollout.maxUnavailable",
        "guest.match.virtualMachines",
        "safety.probes.apiServer",
    )
    assert policy.unenforced == ()


def test_a_probe_that_is_not_written_needs_no_cluster() -> None:
    assert core({"safety": {"probes": {"apiServer": False}}}).cluster_only == ()
    assert core({"safety": {"rollback": True}}).cluster_only == ()


def test_what_vhost_ignores_or_suffers_from_is_warned_of() -> None:
    (mode,) = core({"vhost": {"mode": "Required"}, "guest": {"nic": {"txMode": "timer"}}}).warnings
    assert "guest.nic.txMode has no effect" in mode
    assert core({"vhost": {"mode": "Disabled"}, "guest": {"nic": {"txMode": "timer"}}}).warnings == ()
    (sndbuf,) = core({"guest": {"nic": {"sndbuf": 65536}}}).warnings
    assert "transmit batching" in sndbuf


# --- cost --------------------------------------------------------------------------------------------------


def test_reading_policies_loads_neither_the_status_models_nor_the_clients_of_a_cluster() -> None:
    heavy = "{'virtnet.kube.status', 'virtnet.kube.crds', 'kopf', 'kubernetes', 'typer', 'rich'}"
    code = f"import sys; import virtnet.kube.manifests; print({heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "set()"
