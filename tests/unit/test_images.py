"""What the images hold, against what the package needs."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
FOR_PEOPLE = {"rich", "typer"}
"""Dependencies of the commands that nobody runs in a container."""

BOOKWORM = {"extra": "", "python_version": "3.11", "python_full_version": "3.11.2"}
"""The Python of the base image."""


def pinned(file: str) -> dict[str, str]:
    """Package -> version."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[a-z0-9.]+", line) for line in lines)
    pairs = [line.split("==") for line in lines]
    found = {canonicalize_name(name): version for name, version in pairs}
    assert len(found) == len(pairs), "a package is there twice"
    return found


def names(lines: list[str]) -> set[str]:
    found = (re.split(r"[=<>\[; ]", line)[0] for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name) for name in found}


def needed(name: str) -> set[str]:
    """A package and all that it needs, as installed here."""
    found, todo = set(), {name}
    while todo:
        found |= todo
        lines = [line for package in todo for line in metadata.requires(package) or ()]
        wanted = [requirement for requirement in map(Requirement, lines) if applies(requirement)]
        todo = {canonicalize_name(requirement.name) for requirement in wanted} - found
    return found


def applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(BOOKWORM)


def test_the_images_hold_every_dependency_but_those_of_the_commands_for_people() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    held = set(pinned("requirements.txt"))
    wanted = names(project["dependencies"]) - FOR_PEOPLE
    assert held == {name for direct in wanted for name in needed(direct)}
    assert not held & (FOR_PEOPLE | {"kubernetes"})


def test_the_images_hold_the_versions_that_the_tests_run_with() -> None:
    tested = pinned("constraints.txt")
    assert pinned("requirements.txt").items() <= tested.items()
    installed = {canonicalize_name(found.name): found.version for found in metadata.distributions()}
    assert {name: installed[name] for name in tested.keys() & installed.keys()} == tested


def test_the_build_sees_nothing_but_what_the_images_are_made_of() -> None:
    copied = set(re.findall(r"^COPY (?!--from)(.*) \S+$", (ROOT / "Dockerfile").read_text(), re.M))
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {word for line in copied for word in line.split()} == let_in
