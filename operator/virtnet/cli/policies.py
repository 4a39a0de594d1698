"""Reads the policies that a command is given, and says what is wrong or questionable with them on standard error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from virtnet.cli import terminal
from virtnet.core.model import Policy
from virtnet.kube import manifests
from virtnet.kube.manifests import Reading


def read(files: Sequence[str]) -> tuple[Policy, ...]:
    """The policies of all files; every fault is said and ends the command with exit code 1: nothing is half read."""
    reading = manifests.load(files)
    _say_errors(reading)
    if reading.errors:
        raise terminal.Ended(1)
    return reading.policies


def parse(texts: Mapping[str, str]) -> tuple[Policy, ...]:
    """The policies that an agent has kept, by source; one that this version cannot read is said and left out."""
    reading = manifests.join(manifests.read(text.encode(), source) for source, text in sorted(texts.items()))
    _say_errors(reading)
    return reading.policies


def say_doubts(policies: Iterable[Policy]) -> None:
    """What is accepted and yet worth a word: questionable values, and fields that only a cluster can obey."""
    for policy in policies:
        for warning in policy.warnings:
            terminal.say(f"policy {policy.name}: {warning}")
        for field in policy.cluster_only:
            terminal.say(f"policy {policy.name}: {field} has no effect without Kubernetes")


def _say_errors(reading: Reading) -> None:
    for error in reading.errors:
        terminal.say(error)
