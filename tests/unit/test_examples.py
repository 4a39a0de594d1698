"""Every file in examples/ is a good policy that can be applied as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from virtnet.core.model import Policy
from virtnet.kube import manifests

FOLDER = Path(__file__).parents[2] / "examples"
FILES = sorted(FOLDER.glob("*.yaml"))


def policies(path: Path) -> tuple[Policy, ...]:
    reading = manifests.read_file(str(path))
    assert [str(error) for error in reading.errors] == []
    return reading.policies


def test_there_are_examples_and_nothing_else_beside_them() -> None:
    assert len(FILES) >= 8
    assert {path for path in FOLDER.iterdir() if path.name not in ("README.md", "gitops")} == set(FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_example_is_a_good_policy_without_warnings(path: Path) -> None:
    for policy in policies(path):
        assert policy.warnings == ()
        assert policy.bridge or policy.uplink or policy.tap or policy.vhost


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_example_opens_with_what_it_is_for(path: Path) -> None:
    opening = path.read_text().splitlines()[:3]
    assert all(line.startswith("#") for line in opening)
    assert len(opening[0]) > 40


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_ordinary_reader_of_yaml_sees_what_we_see(path: Path) -> None:
    seen = [document["metadata"]["name"] for document in yaml.safe_load_all(path.read_text())]
    assert seen == [policy.name for policy in policies(path)]


def test_all_examples_can_be_applied_together() -> None:
    reading = manifests.load([str(FOLDER)])
    assert reading.errors == ()
    assert len(reading.policies) > len(FILES)


def test_no_example_has_values_that_wait_for_a_later_version() -> None:
    assert {path.stem for path in FILES for policy in policies(path) if policy.unenforced} == set()
