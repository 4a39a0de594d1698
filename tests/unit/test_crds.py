"""The CRDs: what lies in crds/ is what the models make, and an API server would take it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.policy_cases import BY_SCHEMA, CASES, Case
from virtnet.core import features, model
from virtnet.kube import api, crds, rules, status
from virtnet.kube.fields import Base

ROOT = Path(__file__).parents[2]
FOLDERS = ("crds", "config/crds", "charts/virtio-network-operator/files/crds")
CRDS = {name: yaml.safe_load(text) for name, text in crds.render().items()}
POLICY = CRDS["virtionetworkpolicies.virtnet.dev.yaml"]
NODE_STATE = CRDS["virtionetworknodestates.virtnet.dev.yaml"]

Node = dict[str, Any]


def root(crd: Node) -> Node:
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert isinstance(schema, dict)
    return schema


def nodes(schema: Node, place: str = "") -> Iterator[tuple[str, Node]]:
    """Every node of a schema with its path."""
    yield place, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{place}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{place}[]")
    if "additionalProperties" in schema:
        yield from nodes(schema["additionalProperties"], f"{place}{{}}")


ALL = [(f"{crd['spec']['names']['kind']}{place}", node) for crd in CRDS.values() for place, node in nodes(root(crd))]


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_files_are_what_the_models_make(folder: str) -> None:
    files = {path.name: path.read_text() for path in (ROOT / folder).iterdir() if path.name != "kustomization.yaml"}
    assert files == crds.render(), "run `make crds`"


@pytest.mark.parametrize(
    ("crd", "plural", "short", "columns"),
    [
        (POLICY, "virtionetworkpolicies", "vnp", ["Ready", "Mode", "Nodes", "ReadyNodes", "Blocked", "Age"]),
        (
            NODE_STATE,
            "virtionetworknodestates",
            "vnns",
            ["Ready", "Policies", "Blocked", "vhost", "Restarts needed", "Age"],
        ),
    ],
    ids=["policy", "node state"],
)
def test_names_scope_and_columns_are_those_of_the_api(crd: Node, plural: str, short: str, columns: list[str]) -> None:
    spec, version = crd["spec"], crd["spec"]["versions"][0]
    assert crd["metadata"]["name"] == f"{plural}.virtnet.dev"
    assert (spec["group"], spec["scope"], version["name"]) == ("virtnet.dev", "Cluster", "v1alpha1")
    assert (spec["names"]["plural"], spec["names"]["shortNames"]) == (plural, [short])
    assert spec["names"]["categories"] == ["virtnet"]
    assert version["subresources"] == {"status": {}}
    assert [column["name"] for column in version["additionalPrinterColumns"]] == columns


def test_every_column_shows_a_field_that_exists() -> None:
    for crd in CRDS.values():
        places = {place for place, _ in nodes(root(crd))}
        for column in crd["spec"]["versions"][0]["additionalPrinterColumns"]:
            field = re.sub(r"\[\?.*\]", "[]", column["jsonPath"])
            assert field in places or field == ".metadata.creationTimestamp"


# --- structural schemas: https://kubernetes.io/docs/.../#specifying-a-structural-schema --------------------


@pytest.mark.parametrize("word", ["$ref", "$defs", "anyOf", "oneOf", "allOf", "not", "const", "uniqueItems", "title"])
def test_no_node_uses_what_a_structural_schema_may_not_have(word: str) -> None:
    assert [place for place, node in ALL if word in node] == []


def test_every_node_has_a_type_or_says_why_it_has_none() -> None:
    excused = {"x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"}
    assert [place for place, node in ALL if "type" not in node and not excused & set(node)] == []
    kinds = {node.get("type") for _, node in ALL} - {None}
    assert kinds <= {"object", "array", "string", "integer", "boolean"}


def test_an_object_has_fields_or_free_names_and_never_both() -> None:
    for place, node in ALL:
        assert not {"properties", "additionalProperties"} <= set(node), place
        assert node.get("additionalProperties") is not False, place


def test_every_text_list_and_map_is_bounded() -> None:
    for place, node in ALL:
        if node.get("type") == "string" and place.count(".") > 1:  # apiVersion and kind are the server's
            assert "maxLength" in node or "enum" in node, place
        if node.get("type") == "array":
            assert node["maxItems"] <= 512, place
        if "additionalProperties" in node:
            assert node["maxProperties"] <= 64, place


def test_every_number_is_bounded_or_judged_by_a_rule() -> None:
    for place, node in ALL:
        if node.get("type") == "integer":
            assert {"minimum", "maximum"} <= set(node) or node.get("x-kubernetes-validations"), place


def test_every_list_says_how_two_writers_merge_it() -> None:
    for place, node in ALL:
        if node.get("type") == "array":
            kind = node["x-kubernetes-list-type"]
            assert kind in {"set", "map", "atomic"}, place
            if kind == "map":
                assert set(node["x-kubernetes-list-map-keys"]) <= set(node["items"]["required"]), place
            if kind == "set":
                assert node["items"]["type"] == "string", place


def test_what_is_required_is_there() -> None:
    for place, node in ALL:
        assert set(node.get("required", ())) <= set(node.get("properties", ())), place


def test_the_server_writes_no_default_but_the_mode_that_its_column_shows() -> None:
    defaults = {place: node["default"] for place, node in ALL if "default" in node}
    assert defaults == {"VirtioNetworkPolicy.spec": {}, "VirtioNetworkPolicy.spec.mode": "Enforce"}


def test_every_field_explains_itself() -> None:
    fields = [(place, node) for place, node in ALL if place.count(".") > 1 and not place.endswith(("[]", "{}"))]
    assert len(fields) > 100
    assert [place for place, node in fields if len(node.get("description", "")) < 5] == []


def test_no_choice_is_a_word_that_yaml_reads_as_a_truth_value() -> None:
    truths = {"y", "yes", "n", "no", "on", "off", "true", "false"}
    conditions = {"True", "False"}  # metav1.ConditionStatus, always quoted by programs
    for place, node in ALL:
        assert not {str(choice).lower() for choice in set(node.get("enum", ())) - conditions} & truths, place


# --- rules -------------------------------------------------------------------------------------------------


def validations(schema: Node) -> list[dict[str, str]]:
    return [each for _, node in nodes(schema) for each in node.get("x-kubernetes-validations", ())]


def test_a_rule_is_one_line_that_an_api_server_takes() -> None:
    found = validations(root(POLICY))
    assert len(found) > 40
    for each in found:
        assert set(each) == {"rule", "message"}
        assert "self" in each["rule"]
        assert "\n" not in each["rule"] + each["message"]
        assert each["rule"].count("(") == each["rule"].count(")")
        assert 10 < len(each["message"]) <= 2048


@pytest.mark.parametrize("case", [case for case in CASES if case.says and not case.server], ids=lambda case: case.name)
def test_the_sentence_of_the_models_is_the_message_of_a_rule(case: Case) -> None:
    assert any(str(case.says) in each["message"] for each in validations(root(POLICY)))


def test_every_rule_of_the_crd_has_a_case_that_breaks_it() -> None:
    said = [case.says for case in CASES if case.says and case.server != BY_SCHEMA]
    untold = {each["message"] for each in validations(root(POLICY)) if not any(say in each["message"] for say in said)}
    assert untold == set()


def test_every_rule_of_a_model_is_in_the_crd() -> None:
    messages = {each["message"] for each in validations(root(POLICY))}
    models = [each for each in Base.__subclasses__() if each.__module__ != status.__name__]
    assert {rule.message for each in models for rule in each.RULES} <= messages
    assert {rule.message for rule in (*rules.OFFLOADS.rules, *rules.TAP_OFFLOADS.rules)} <= messages


def test_every_prerequisite_that_a_short_name_can_break_has_its_rule() -> None:
    messages = " ".join(rule.message for rule in rules.OFFLOADS.rules)
    shorts = {member: short for short, members in features.SHORT.items() for member in members}
    for feature, prerequisites in features.NEEDS.items():
        for alternatives in prerequisites:
            names = shorts.get(feature, feature), shorts.get(alternatives[0], alternatives[0])
            assert names[0] == names[1] or f"{names[0]} needs {names[1]}:" in messages


# --- status ------------------------------------------------------------------------------------------------


def test_a_node_state_as_the_agent_writes_it_fits_its_model() -> None:
    status.NodeStateStatus.model_validate(
        {
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True",
                    "reason": "AsAsked",
                    "message": "all is as asked",
                    "lastTransitionTime": "2026-11-22T10:00:00Z",
                }
            ],
            "policies": [{"name": "p", "generation": 2, "ready": True, "reason": "Fixed", "blocked": 1, "drifts": 0}],
            "settings": [
                {
                    "subject": "link/eth0",
                    "setting": "uplink.offloads.lro",
                    "wanted": True,
                    "actual": None,
                    "reason": "Fixed",
                    "message": "the driver lacks it",
                    "policy": "p",
                    "since": "2026-11-22T10:00:00Z",
                }
            ],
            "links": [{"name": "eth0", "role": "uplink", "wanted": {"uplink.offloads.lro": True}, "effective": {}}],
            "vhost": {"module": "Loaded", "refcount": 1, "parameters": {"experimental_zcopytx": "0"}, "users": []},
            "agent": {"version": "0.1.0", "bootID": "b"},
            "counts": {"policies": 1, "blocked": 1, "restartsNeeded": 0},
        }
    )


def test_the_choices_of_the_status_are_those_of_the_core() -> None:
    node = dict(nodes(root(NODE_STATE)))
    assert node[".status.settings[].reason"]["enum"] == [str(reason) for reason in model.Reason]
    assert node[".status.vhost.module"]["enum"] == [str(state) for state in model.ModuleStatus]


def test_the_api_version_of_the_model_is_that_of_the_crd() -> None:
    written = api.VirtioNetworkPolicy.model_json_schema(by_alias=True)["properties"]["apiVersion"]["const"]
    assert written == api.API_VERSION == f"{POLICY['spec']['group']}/{POLICY['spec']['versions'][0]['name']}"
