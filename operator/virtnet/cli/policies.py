"""Reads the policies that a command is given, and says what is wrong or questionable with them on standard error."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from virtnet.cli import aside, terminal
from virtnet.core.model import Policy

if TYPE_CHECKING:
    from virtnet.errors import PolicyError


def read(files: Sequence[str]) -> tuple[Policy, ...]:
    """The policies of all files; every fault is said and ends the command with exit code 1: nothing is half read."""
    if all(map(os.path.isfile, files)):  # nothing else can be read twice
        policies, errors = aside.do(lambda: _load(files), _import_the_engine)
    else:
        policies, errors = _load(files)
    _say(errors)
    if errors:
        raise terminal.Ended(1)
    return policies


def _load(files: Sequence[str]) -> tuple[tuple[Policy, ...], tuple[PolicyError, ...]]:
    """Most of the time of a start: the library that judges policies, and what it makes of our models."""
    from virtnet.kube import manifests

    reading = manifests.load(files)
    return reading.policies, tuple(reading.errors)


def _import_the_engine() -> None:
    """The other part of it, which every command that is given policies needs next."""
    importlib.import_module("virtnet.engine.workplace")


def parse(texts: Mapping[str, str]) -> tuple[Policy, ...]:
    """The policies that an agent has kept, by source; one that this version cannot read is said and left out."""
    from virtnet.kube import manifests

    reading = manifests.join(manifests.read(text.encode(), source) for source, text in sorted(texts.items()))
    _say(reading.errors)
    return reading.policies


def say_doubts(policies: Iterable[Policy]) -> None:
    """What is accepted and yet worth a word: questionable values, and fields that only a cluster can obey."""
    for policy in policies:
        for warning in policy.warnings:
            terminal.say(f"policy {policy.name}: {warning}")
        for field in policy.cluster_only:
            terminal.say(f"policy {policy.name}: {field} has no effect without Kubernetes")


def _say(errors: Iterable[PolicyError]) -> None:
    for error in errors:
        terminal.say(error)
