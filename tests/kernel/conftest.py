"""Fixtures for tests on the real kernel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.playground import Playground, open_playground
from virtnet.host import LinuxHost


@pytest.fixture
def playground() -> Iterator[Playground]:
    """A private, empty network namespace: .run("ip …"), .ethtool(NAME), .links(), .namespace, .netns."""
    with open_playground() as made:
        yield made


@pytest.fixture
def host(playground: Playground) -> Iterator[LinuxHost]:
    """The host as the product sees it, in the playground."""
    made = LinuxHost(playground.namespace)
    yield made
    made.close()
