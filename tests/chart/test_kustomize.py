"""config/ is what the chart makes, and kustomize can build it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from scripts import manifests
from tests.chart import tools
from tests.chart.tools import ROOT, Helm, Object

CONFIG = ROOT / "config"


def build(folder: Path) -> list[Object]:
    words = [str(tools.find("kubectl")), "kustomize", str(folder)]
    shown = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
    return [one for one in yaml.safe_load_all(shown) if one]


def test_the_files_are_what_the_chart_makes(helm: Helm) -> None:
    generated = {str(path.relative_to(CONFIG)): path.read_text() for path in CONFIG.glob("*/*.yaml")}
    written = {name for name in generated if generated[name].startswith(manifests.HEADER)}
    assert {name: generated[name] for name in written} == manifests.render(str(helm.path)), "run `make manifests`"


@pytest.mark.parametrize(
    ("folder", "kinds"),
    [
        ("crds", {"CustomResourceDefinition"}),
        ("monitoring", {"PodMonitor", "PrometheusRule", "ConfigMap"}),
        ("release", {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Job"}),
    ],
)
def test_kustomize_builds_a_folder(folder: str, kinds: set[str]) -> None:
    assert {each["kind"] for each in build(CONFIG / folder)} == kinds


def test_the_base_is_a_whole_installation_and_knows_nothing_of_helm() -> None:
    objects = build(CONFIG / "base")
    assert {"Namespace", "CustomResourceDefinition", "DaemonSet", "Deployment", "ValidatingAdmissionPolicy"} <= {
        each["kind"] for each in objects
    }
    assert "helm" not in yaml.safe_dump([each["metadata"] for each in objects]).lower()


def test_the_namespace_allows_what_the_agents_need() -> None:
    namespace = tools.one(build(CONFIG / "base"), "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"
