"""Reading policy files: what is taken, what is refused and where; nothing but a `PolicyError` ever comes out."""

from __future__ import annotations

import json
import os
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.policy_cases import CASES, document
from virtnet.errors import PolicyError
from virtnet.kube import api, documents, fields, manifests
from virtnet.kube.manifests import Reading

GOOD = """\
apiVersion: virtnet.dev/v1alpha1
kind: VirtioNetworkPolicy
metadata:
  name: example
spec:
  bridge:
    name: br0
  uplink:
    offloads:
      tso: true
"""
HEADER = "apiVersion: virtnet.dev/v1alpha1\nkind: VirtioNetworkPolicy\nmetadata: {name: example}\n"
LOADERS = [yaml.SafeLoader, documents.LOADER]


def read(text: str | bytes) -> Reading:
    return manifests.read(text.encode() if isinstance(text, str) else text, "a.yaml")


def told(text: str | bytes) -> list[str]:
    return [str(error) for error in read(text).errors]


def names(reading: Reading) -> list[str]:
    assert [str(error) for error in reading.errors] == []
    return [policy.name for policy in reading.policies]


def named(name: str, text: str = GOOD) -> str:
    return text.replace("name: example", f"name: {name}")


# --- what is taken -----------------------------------------------------------------------------------------


def test_a_document_gives_a_policy_and_its_place() -> None:
    (manifest,) = read(GOOD).manifests
    assert manifest.policy == api.VirtioNetworkPolicy.model_validate(yaml.safe_load(GOOD)).to_core()
    assert (manifest.file, manifest.line) == ("a.yaml", 4)


def test_several_documents_give_several_policies_and_empty_ones_nothing() -> None:
    assert names(read(f"---\n---\n{named('one')}---\n# nothing\n---\n{named('two')}---\n")) == ["one", "two"]


def test_a_list_gives_its_items() -> None:
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [document({}, "one"), document({}, "two")]})
    assert names(read(text)) == ["one", "two"]
    assert names(read('{"apiVersion": "v1", "kind": "List", "items": []}')) == []


def test_an_error_in_a_list_names_the_item() -> None:
    items = [document({}, "one"), document({"priority": 1.5}, "two")]
    reading = read(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=1))
    (error,) = reading.errors
    assert error.field == "items[1].spec.priority"
    assert [policy.name for policy in reading.policies] == ["one"]


@pytest.mark.parametrize("indent", [None, 2, "\t"])
def test_json_is_taken_in_every_layout(indent: int | str | None) -> None:
    assert names(read(json.dumps(yaml.safe_load(GOOD), indent=indent))) == ["example"]


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm() -> None:
    assert names(read(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())) == ["example"]


def test_what_kubectl_prints_of_a_stored_policy_applies() -> None:
    text = """\
apiVersion: v1
items:
- apiVersion: virtnet.dev/v1alpha1
  kind: VirtioNetworkPolicy
  metadata:
    annotations:
      kubectl.kubernetes.io/last-applied-configuration: |
        {"apiVersion":"virtnet.dev/v1alpha1","kind":"VirtioNetworkPolicy","metadata":{"name":"stored"}}
    creationTimestamp: "2026-11-22T10:00:00Z"
    generation: 2
    name: stored
    resourceVersion: "1234"
    uid: 4c5bb5b5-7a51-4b5c-8a52-0f3c1a0e9d11
  spec:
    bridge:
      name: br0
    mode: Enforce
  status:
    conditions:
    - lastTransitionTime: "2026-11-22T10:00:01Z"
      message: all is as asked
      reason: AsAsked
      status: "True"
      type: Ready
    observedGeneration: 2
kind: List
metadata:
  resourceVersion: ""
"""
    (policy,) = read(text).policies
    assert (policy.name, policy.generation, policy.created) == ("stored", 2, "2026-11-22T10:00:00Z")


def test_an_anchor_of_a_scalar_may_be_used_again() -> None:
    reading = read(HEADER + "spec: {bridge: {name: &bridge br0}, uplink: {match: {bridge: *bridge}}}\n")
    (policy,) = reading.policies
    assert policy.uplink is not None
    assert policy.uplink.match is not None
    assert policy.uplink.match.bridge == "br0"


def test_hexadecimal_numbers_are_numbers_to_all_readers() -> None:
    (policy,) = read(HEADER + "spec: {bridge: {name: br0, groupForwardMask: 0x4000}}\n").policies
    assert policy.bridge is not None
    assert policy.bridge.group_forward_mask == 0x4000


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_file_says_of_a_policy_what_the_models_say(case: Any) -> None:
    reading = read(yaml.safe_dump(document(case.spec)))
    if case.says is None:
        assert names(reading) == ["example"]
    else:
        (error,) = reading.errors
        assert case.says in error.message
        assert error.field.startswith("spec")
        assert error.line > 0
        assert reading.policies == ()


# --- what is refused, and where ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "a.yaml: there is no policy in it: write one, or remove the file"),
        ("# only a comment\n", "a.yaml: there is no policy in it: write one, or remove the file"),
        ("---\n---\n", "a.yaml: there is no policy in it: write one, or remove the file"),
        (b"\x7fELF\x00\x01", "a.yaml: is binary, not text: write YAML or JSON in UTF-8"),
        (GOOD.encode("utf-16"), "a.yaml: is binary, not text: write YAML or JSON in UTF-8"),
        (b"a: b\nc: \xff\n", "a.yaml:2: is not UTF-8 text: save it as UTF-8"),
        (b" " * (manifests.LARGEST + 1), "a.yaml: is larger than 1 MiB: split it"),
        ("hello", "a.yaml:1: this is no object: write a VirtioNetworkPolicy with apiVersion, kind, metadata and spec"),
        ("a: b: c\n", "a.yaml:1: this is not YAML: mapping values are not allowed in this context"),
        ("a: \x07\n", "a.yaml:1: a control character stands here: take it out"),
        (GOOD + "  bridge: {name: br1}\n", "a.yaml:11: spec.bridge: 'bridge' is already on line 6: write it once"),
        (
            GOOD + "  tap: !!map {}\n",
            "a.yaml:11: spec.tap: write the value without the YAML tag 'tag:yaml.org,2002:map'",
        ),
        (GOOD + "  tap: !x {}\n", "a.yaml:11: spec.tap: write the value without the YAML tag '!x'"),
        (GOOD + "  tap: *nothing\n", "a.yaml:11: spec.tap: there is no anchor for the alias *nothing"),
        (
            GOOD.replace("bridge:", "bridge: &b") + "  tap: *b\n",
            "a.yaml:11: spec.tap: write the fields out instead of the alias *b",
        ),
        (GOOD + "  7: x\n", "a.yaml:11: spec.7: write the name 7 in quotes, as a text"),
        (
            HEADER + "spec: {priority: 123456789012345678901}\n",
            "spec.priority: the number '123456789012345678901' is too large",
        ),
        (GOOD.replace("v1alpha1", "v1"), "a.yaml:1: apiVersion: write virtnet.dev/v1alpha1 (found 'virtnet.dev/v1')"),
        ("apiVersion: v1\nkind: Pod\n", "a.yaml:2: kind: write VirtioNetworkPolicy (found 'Pod')"),
        ("kind: VirtioNetworkPolicy\n", "apiVersion: apiVersion is required: write apiVersion: virtnet.dev/v1alpha1"),
        (GOOD.replace("name: example", "labels: {}"), "a.yaml:3: metadata.name: name is required: write it"),
        (GOOD.replace("example", "Example_1"), "a.yaml:4: metadata.name: write a name of lower-case letters"),
        (GOOD.replace("tso: true", "tso: True-ish"), "a.yaml:10: spec.uplink.offloads.tso: write true or false"),
        (
            GOOD + "    ofloads: {}\n",
            "a.yaml:11: spec.uplink.ofloads: there is no field 'ofloads' here: write offloads",
        ),
        (GOOD + "    rings:\n", "a.yaml:11: spec.uplink.rings: it is empty: write a value, or leave the field out"),
        (HEADER + "spec:\n  bridge:\n    ports: []\n", "a.yaml:5: spec.bridge.name: name is required: write it"),
    ],
    ids=lambda value: repr(value[:40]),
)
def test_what_is_refused_is_told_with_file_line_and_field(text: str | bytes, error: str) -> None:
    assert error in "\n".join(told(text))
    assert read(text).policies == ()


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "y", "N", "On", "YES"])
def test_the_truth_values_of_old_yaml_are_refused_as_values_and_as_names(word: str) -> None:
    (value,) = told(GOOD.replace("tso: true", f"tso: {word}"))
    assert value.startswith(f"a.yaml:10: spec.uplink.offloads.tso: {word} is a truth value to some YAML readers")
    (name,) = told(GOOD.replace("tso: true", f"{word}: true"))
    assert name.startswith(f"a.yaml:10: spec.uplink.offloads.{word}: {word} is a truth value to some YAML readers")


@pytest.mark.parametrize("number", ["010", "08", "0o17", "0b101", "1_000", "1:30", "0x1_0", "-0x10", "1:30.5", "1_0.5"])
def test_the_numbers_of_old_yaml_are_refused(number: str) -> None:
    (error,) = told(HEADER + f"spec: {{priority: {number}}}\n")
    assert "is a number to some YAML readers and not to others" in error


def test_a_mac_address_that_yaml_takes_for_a_number_must_be_quoted() -> None:
    text = HEADER + "spec: {guest: {match: {macs: [%s]}}}\n"
    (error,) = told(text % "52:54:00:12:34:56")
    assert "spec.guest.match.macs[0]: '52:54:00:12:34:56' is a number to some YAML readers" in error
    assert names(read(text % "'52:54:00:12:34:56'")) == ["example"]


def test_quoted_words_are_texts() -> None:
    (policy,) = read(HEADER + "spec: {nodeSelector: {matchLabels: {a: 'on', b: \"010\", c: '1_0'}}}\n").policies
    assert policy.node_selector.labels == (("a", "on"), ("b", "010"), ("c", "1_0"))


@pytest.mark.parametrize("loader", LOADERS)
def test_nesting_of_64_is_read_and_of_65_is_refused(loader: type[Any]) -> None:
    for opening, closing in ("[", "]"), ("{a: ", "}"):
        deep, errors = documents.parse(opening * 64 + closing * 64, "a", loader)
        assert (len(deep), errors) == (1, [])
        _, (error,) = documents.parse(opening * 65 + closing * 65, "a", loader)
        assert "nested over 64 deep" in str(error)


@pytest.mark.parametrize("loader", LOADERS)
def test_nesting_inside_names_counts_too(loader: type[Any]) -> None:
    _, errors = documents.parse("{? " * 5000, "a", loader)
    assert "nested over 64 deep" in str(errors[-1])


def test_a_file_that_is_only_opening_brackets_is_refused_at_once() -> None:
    assert "nested over 64 deep" in told("[" * (manifests.LARGEST - 1))[0]


def test_a_flood_of_values_or_errors_is_cut_short() -> None:
    assert told("- a\n" * 100_000)[-1].endswith("more than 50000 names and values in it: split it")
    errors = told(GOOD + "".join(f"  unknown{number}: 1\n" for number in range(2000)))
    assert len(errors) == manifests.MOST_ERRORS + 1
    assert "a.yaml: there are more than 100 errors: the others are not listed" in errors


def test_a_fault_in_the_text_hides_no_fault_elsewhere_and_is_told_once() -> None:
    errors = told(GOOD.replace("tso: true", "tso: on") + "  mode: audit\n  priority: 2000\n  priority: 3\n")
    assert [error.split(" ")[1] for error in errors] == [
        "spec.uplink.offloads.tso:",
        "spec.mode:",
        "spec.priority:",
    ]


def test_documents_before_a_syntax_error_are_judged_too() -> None:
    reading = read(named("one") + "---\na: [\n")
    assert [policy.name for policy in reading.policies] == ["one"]
    assert "this is not YAML" in str(reading.errors[0])


def test_a_good_policy_beside_a_bad_one_is_read() -> None:
    reading = read(named("one") + "---\n" + named("two").replace("true", "maybe"))
    assert [policy.name for policy in reading.policies] == ["one"]
    (error,) = reading.errors
    assert (error.file, error.line, error.field) == ("a.yaml", 21, "spec.uplink.offloads.tso")


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("text", ['"\\ud800"', '{"\\ud800": 1}', '"\\UFFFFFFFF"'])
def test_escapes_that_are_no_characters_are_refused_by_both_readers(loader: type[Any], text: str) -> None:
    _, errors = documents.parse(text, "a", loader)
    assert "escape code" in str(errors[0])


def test_odd_names_stay_on_one_line() -> None:
    (error,) = told(GOOD + '  "a\\nb c": 1\n')
    assert "\n" not in error
    assert "spec.'a\\nb c': there is no field 'a\\nb c' here" in error


# --- files -------------------------------------------------------------------------------------------------


def test_a_directory_gives_its_policy_files_by_name_and_nothing_below_it(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yml", "c.json", ".hidden.yaml", "notes.txt", "d.yaml.bak"):
        (tmp_path / name).write_text(named(name.partition(".")[0] or "hidden"))
    (tmp_path / "sub.yaml").mkdir()
    (tmp_path / "sub.yaml" / "e.yaml").write_text(named("e"))
    (tmp_path / "c.json").write_text(json.dumps(document({}, "c")))
    assert names(manifests.load([str(tmp_path)])) == ["a", "b", "c"]
    assert manifests.files_in(str(tmp_path)) == [str(tmp_path / name) for name in ("a.yml", "b.yaml", "c.json")]


def test_files_directories_and_standard_input_are_read_together(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "a.yaml").write_text(named("one"))
    (tmp_path / "any-name").write_text(named("two"))
    stdin = BytesIO(named("three").encode())
    assert names(manifests.load([str(tmp_path / "any-name"), "-", str(tmp_path / "dir")], stdin)) == [
        "two",
        "three",
        "one",
    ]


def test_the_same_name_twice_names_both_places(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("\n" + GOOD)
    (tmp_path / "b.yaml").write_text(GOOD)
    reading = manifests.load([str(tmp_path)])
    assert [manifest.file for manifest in reading.manifests] == [str(tmp_path / "a.yaml")]
    assert [str(error) for error in reading.errors] == [
        f"{tmp_path}/b.yaml:4: metadata.name: example is already in {tmp_path}/a.yaml:5:"
        " write another name, or take one of them out"
    ]
    (inside,) = told(f"{GOOD}---\n{GOOD}")
    assert inside.startswith("a.yaml:15: metadata.name: example is already in a.yaml:4:")


def test_what_cannot_be_read_is_an_error_of_that_path(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "gone.yaml").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.yaml")
    reading = manifests.load([str(tmp_path), str(tmp_path / "absent.yaml"), "a\0b"])
    assert [policy.name for policy in reading.policies] == ["example"]
    assert [str(error) for error in reading.errors] == [
        f"{tmp_path}/gone.yaml: cannot be read: No such file or directory",
        f"{tmp_path}/pipe.yaml: is not a regular file",
        f"{tmp_path}/absent.yaml: cannot be read: No such file or directory",
        "'a\\x00b': cannot be read: this is no file name",
    ]


def test_a_directory_that_is_gone_is_an_error_and_no_empty_set(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot be listed: No such file or directory"):
        manifests.files_in(str(tmp_path / "gone"))


def test_a_symlink_to_a_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "data").write_text(GOOD)
    (tmp_path / "a.yaml").symlink_to("data")
    assert names(manifests.load([str(tmp_path)])) == ["example"]


# --- nothing but a PolicyError -----------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["br0", "25%", "vcpus", "Required", "010", "on", "a/b", "x" * 400, "1e999", "-.inf", "<<", "="]),
)
FIELDS = sorted(
    {field.alias or name for each in fields.Base.__subclasses__() for name, field in each.model_fields.items()}
    | {"tso", "tx", "sg", "gro", "List", "items"}
)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), inner, max_size=6)
    ),
    max_leaves=25,
)
TOKENS = st.sampled_from(
    [
        *"{}[],:-?&*!|>'\"%@`#~ \n\t=<.0x\\",
        "---\n",
        "...\n",
        "a",
        "\n  ",
        "spec: ",
        "&a ",
        "*a",
        "<<: ",
        "!!int ",
        "\ufeff",
    ]
)


def holds_together(data: bytes) -> None:
    """Whatever comes in: policies and printable one-line errors come out, and one of the two."""
    reading = manifests.read(data, "a.yaml")
    for error in reading.errors:
        assert isinstance(error, PolicyError)
        assert error.message
        assert str(error).isprintable()
        str(error).encode()
        assert 0 <= error.line <= max(1, len(data.decode(errors="replace").splitlines()))
    assert reading.errors or reading.policies or b"items" in data
    for policy in reading.policies:
        hash(policy)


@given(st.binary(max_size=300))
@example(b"\xef\xbb\xbf")
@example(b"\xe2\x80\xa8: *\xc2\x85")
def test_random_bytes_are_refused_in_order(data: bytes) -> None:
    holds_together(data)


@given(st.lists(TOKENS, max_size=60).map("".join))
def test_random_pieces_of_yaml_are_refused_in_order(text: str) -> None:
    holds_together(text.encode())
    documents.parse(text, "a", yaml.SafeLoader)


@given(TREES)
def test_random_trees_are_read_or_refused_in_order(tree: Any) -> None:
    holds_together(yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass"))
    holds_together(json.dumps(tree).encode())


@given(TREES)
def test_random_specs_are_read_or_refused_in_order(tree: Any) -> None:
    holds_together(json.dumps(document(tree)).encode())


@given(st.sampled_from(CASES), st.data())
def test_a_policy_with_a_value_changed_is_read_or_refused_in_order(case: Any, data: st.DataObject) -> None:
    changed = json.loads(json.dumps(document(case.spec)))
    here = changed
    while isinstance(here, dict) and here:
        key = data.draw(st.sampled_from(sorted(here)))
        if not isinstance(here[key], dict) or not here[key] or data.draw(st.booleans()):
            here[key] = data.draw(TREES)
            break
        here = here[key]
    holds_together(json.dumps(changed).encode())


@given(st.integers(0, len(GOOD)), st.integers(0, 8), st.lists(TOKENS, max_size=4).map("".join))
def test_a_policy_with_a_piece_of_text_changed_is_read_or_refused_in_order(at: int, cut: int, put: str) -> None:
    holds_together((GOOD[:at] + put + GOOD[at + cut :]).encode())
