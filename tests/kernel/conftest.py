"""Fixtures for tests on the real kernel."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.agent import Agent, agent_on
from tests.kernel.playground import Playground, open_playground
from virtnet.host import LinuxHost, namespaces

CLONE_NEWNET = 0x40000000


def pytest_sessionstart(session: pytest.Session) -> None:
    """As a plain user there is one namespace for all tests, so each of several workers needs one of its own."""
    if hasattr(session.config, "workerinput") and not namespaces.in_initial_user_namespace():
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare")


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
