"""The chart comes, is upgraded and goes, on an API server without nodes; with pods see tests/cluster."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.chart.tools import CHART, ROOT
from tests.cluster.cluster import Cluster

CRD = "virtionetworkpolicies.virtnet.dev"
NAMESPACE = "--namespace=chart-life"
NO_PODS = ("--set=uninstall.release=false", "--set=controller.replicas=0")


def an_earlier_version(folder: Path) -> Path:
    """The chart with a definition that lacks a column and says another word."""
    chart = shutil.copytree(CHART, folder / "chart")
    definition = chart / "files" / "crds" / f"{CRD}.yaml"
    definition.write_text(definition.read_text().replace("Whether all nodes are as asked", "An earlier sentence"))
    return chart


def sentence(server: Cluster) -> str:
    (version,) = server.object("crd", CRD)["spec"]["versions"]
    return str(version["additionalPrinterColumns"][0]["description"])


@pytest.mark.parametrize("version", [4, 3])
def test_the_definitions_are_installed_upgraded_and_outlive_the_chart(
    server: Cluster, tmp_path: Path, version: int
) -> None:
    old = str(an_earlier_version(tmp_path))
    install = ("install", "virtnet", old, NAMESPACE, "--create-namespace", "--take-ownership", *NO_PODS)
    server.kubectl("delete", f"--filename={ROOT / 'crds'}")
    server.helm(*install, version=version)
    assert sentence(server) == "An earlier sentence"
    server.helm("upgrade", "virtnet", str(CHART), NAMESPACE, *NO_PODS, version=version)
    assert sentence(server) == "Whether all nodes are as asked"
    server.helm("uninstall", "virtnet", NAMESPACE, version=version)
    assert sentence(server) == "Whether all nodes are as asked"
    assert server.object("clusterrole", "virtnet-agent") is None


@pytest.mark.parametrize("version", [4, 3])
def test_the_notes_say_what_is_off_and_what_is_dangerous(server: Cluster, version: int) -> None:
    def notes(*words: str) -> str:
        install = ("install", "noted", str(CHART), NAMESPACE, "--dry-run=client", "--take-ownership")
        return server.helm(*install, *words, version=version).partition("NOTES:\n")[2]

    plain, powerful = notes(), notes("--set=features.module=true", "--set=uninstall.release=false")
    assert "module      off  vhost.module (CAP_SYS_MODULE, /lib/modules)" in plain
    assert "root on its node" not in plain
    assert "helm uninstall --no-hooks" in plain
    assert "module      on   vhost.module" in powerful
    assert "root on its node" in powerful
    assert "leaves the hosts as they are" in powerful
