"""Both versions of helm that are in use, and a real API server without nodes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chart import tools
from tests.chart.tools import ROOT, Helm
from tests.cluster.cluster import Cluster


@pytest.fixture(scope="session", params=["helm", "helm3"])
def helm(request: pytest.FixtureRequest) -> Helm:
    """Each test runs with helm 4 and with helm 3."""
    return Helm(tools.find(request.param))


@pytest.fixture(scope="session")
def server() -> Iterator[Cluster]:
    """A control plane that knows our definitions and those of everybody whose objects we write."""
    found = Cluster("chart")
    try:
        found.up(nodes=0)
        for folder in (ROOT / "crds", ROOT / "tests" / "chart" / "crds"):
            found.kubectl("apply", "--server-side", f"--filename={folder}")
        found.wait_for("condition=Established", "crd", "--all")
        for namespace in ("virtnet-system", "argocd", "flux-system"):
            found.kubectl("create", "namespace", namespace)
        yield found
    finally:
        found.down()


@pytest.fixture(scope="session")
def guarded(server: Cluster) -> Cluster:
    """The same with the chart's accounts, roles and admission policy in force; there are no nodes for its pods."""
    objects = Helm(tools.find("helm")).objects("--set=crds.install=false")
    wanted = [one for one in objects if one["kind"] not in ("DaemonSet", "Deployment", "Job")]
    server.apply(*wanted)
    return server
