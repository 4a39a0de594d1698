"""What the images hold, against what the package needs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOR_PEOPLE = {"rich", "typer"}
"""Dependencies of the commands that nobody runs in a container."""


def names(lines: list[str]) -> set[str]:
    return {re.split(r"[=<>\[; ]", line)[0].lower() for line in lines if line and not line.startswith("#")}


def test_the_images_hold_every_dependency_but_those_of_the_commands_for_people() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    held = names((ROOT / "requirements.txt").read_text().splitlines())
    assert names(project["dependencies"]) - FOR_PEOPLE <= held
    assert not held & (FOR_PEOPLE | {"kubernetes"})


def test_every_version_in_an_image_is_pinned() -> None:
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9-]+==[0-9.]+", line) for line in lines)


def test_the_build_sees_nothing_but_what_the_images_are_made_of() -> None:
    copied = set(re.findall(r"^COPY (?!--from)(.*) \S+$", (ROOT / "Dockerfile").read_text(), re.M))
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {word for line in copied for word in line.split()} == let_in
