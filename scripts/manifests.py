"""Writes config/ from the chart, so that kustomize and helm install the same: `make manifests`.

What belongs to helm alone is left out: its labels and its hooks. The CRDs in config/crds are copies that
`make crds` writes.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "virtio-network-operator"
NAMESPACE = "virtnet-system"
ON = ("metrics.podMonitor.enabled", "metrics.prometheusRule.enabled", "metrics.dashboard.enabled")
OPTIONS = (
    "--namespace",
    NAMESPACE,
    "--kube-version=v1.36.0",
    "--set",
    "crds.install=false",
    *(f"--set={key}=true" for key in ON),
)

PLACES: Mapping[str, str] = {
    "agent": "base",
    "controller": "base",
    "rbac-agent": "base",
    "rbac-controller": "base",
    "admission": "base",
    "networkpolicy": "base",
    "podmonitor": "monitoring",
    "prometheusrule": "monitoring",
    "dashboard": "monitoring",
    "uninstall": "release",
}
"""In which folder of config/ the objects of a template go, in a file of the template's name."""
HEADER = "# Made from the chart by `make manifests`. Do not edit.\n"
OF_HELM = ("app.kubernetes.io/managed-by", "helm.sh/chart")

Object = dict[str, Any]


def render(helm: str) -> dict[str, str]:
    """File below config/ -> its text, for every generated file."""
    words = [helm, "template", "virtnet", str(CHART), *OPTIONS]
    shown = subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout
    files: dict[str, list[Object]] = {}
    for template, one in documents(shown):
        files.setdefault(f"{PLACES[template]}/{template}.yaml", []).append(_plain(one))
    return {name: HEADER + yaml.safe_dump_all(ones, sort_keys=False, width=120) for name, ones in files.items()}


def documents(rendered: str) -> Iterator[tuple[str, Object]]:
    """(template's name, object) for what `helm template` printed."""
    for text in rendered.split("\n---\n"):
        one = yaml.safe_load(text)
        if one:
            source = next(line for line in text.splitlines() if line.startswith("# Source: "))
            yield Path(source).stem, one


def _plain(one: Object) -> Object:
    for metadata in _metadatas(one):
        for key in OF_HELM:
            metadata["labels"].pop(key, None)
    annotations = one["metadata"].get("annotations", {})
    kept = {key: value for key, value in annotations.items() if not key.startswith("helm.sh/")}
    one["metadata"].pop("annotations", None)
    if kept:
        one["metadata"]["annotations"] = kept
    return one


def _metadatas(one: Object) -> Iterator[Object]:
    yield one["metadata"]
    template = one.get("spec", {}).get("template")
    if template:
        yield template["metadata"]


def main(arguments: Sequence[str]) -> int:
    """The first argument is the helm to use; without it, the one that the tests of the chart use."""
    from tests.chart import tools

    for name, text in render(arguments[0] if arguments else str(tools.find("helm"))).items():
        (ROOT / "config" / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
