"""Fixtures for tests on the real kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.agent import Agent, agent_on
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


@pytest.fixture
def agent(playground: Playground, tmp_path: Path) -> Iterator[Agent]:
    """`virtnet run` in the playground, not started yet."""
    with agent_on(playground, tmp_path) as made:
        yield made
