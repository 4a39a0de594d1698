"""Both versions of helm that are in use."""

from __future__ import annotations

import pytest

from tests.chart import tools
from tests.chart.tools import Helm


@pytest.fixture(scope="session", params=["helm", "helm3"])
def helm(request: pytest.FixtureRequest) -> Helm:
    """Each test runs with helm 4 and with helm 3."""
    return Helm(tools.find(request.param))
