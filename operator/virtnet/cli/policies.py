"""Reads the policies that a command is given, and says what is wrong or questionable with them on standard error."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from virtnet.cli import aside, terminal

if TYPE_CHECKING:
    from virtnet.core.model import Policy
    from virtnet.errors import PolicyError

Read = Callable[[Sequence[str]], "tuple[Policy, ...]"]
"""From the names of files to the policies in them, as `read` does it."""


def read(files: Sequence[str]) -> tuple[Policy, ...]:
    """The policies of all files; every fault is said and ends the command with exit code 1: nothing is half read."""
    return _judged(*_load(files))


@contextmanager
def begun(words: Iterable[str]) -> Iterator[Read]:
    """`read`, begun already in another process for those words of a command line that name files.

    Nothing but a regular file can be read twice, and what turns out to be no policy has been read in vain.
    """
    likely = [word for word in words if os.path.isfile(word)]
    if not likely:
        yield read
        return
    with aside.begun(lambda: _load(likely)) as loaded:
        yield lambda files: _judged(*(loaded() if list(files) == likely else _load(files)))


def _load(files: Sequence[str]) -> tuple[tuple[Policy, ...], tuple[PolicyError, ...]]:
    """Most of the time of a start: the library that judges policies, and what it makes of our models."""
    from virtnet.kube import manifests

    reading = manifests.load(files)
    return reading.policies, tuple(reading.errors)


def _judged(policies: tuple[Policy, ...], errors: Sequence[PolicyError]) -> tuple[Policy, ...]:
    _say(errors)
    if errors:
        raise terminal.Ended(1)
    return policies


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
