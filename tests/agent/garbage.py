"""Whoever leaks a connection is told so: what a test leaves open is found at its own end, not during another test."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def takes_its_garbage_away() -> Iterator[None]:
    """What is left open warns when it is collected, and a warning is an error. What was there before is not looked at
    again: it is most of the work, and not this test's."""
    gc.freeze()
    yield
    gc.collect()
    gc.unfreeze()
