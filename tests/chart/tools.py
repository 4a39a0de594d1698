"""helm and kubectl for the tests of the chart: the ones of the test cluster, built when they are not there."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scripts import manifests
from tests.cluster import assets

Object = dict[str, Any]

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "virtio-network-operator"
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
SECONDS = 120
SERVER = "--kube-version=v1.36.0"
"""A helm that is built from its module, not by its makers, takes a cluster that it cannot ask for a very old one."""


class Refused(Exception):
    """helm said no; the text is what it said."""


@dataclass(frozen=True)
class Helm:
    """One version of helm."""

    path: Path

    def run(self, *words: str) -> str:
        return _run(self.path, *words)

    def objects(self, *words: str, namespace: str = "virtnet-system") -> list[Object]:
        """What `helm template` makes of the chart; a later word wins over an earlier one."""
        shown = self.run("template", "virtnet", str(CHART), "--namespace", namespace, SERVER, *words)
        return [one for _, one in manifests.documents(shown)]


@functools.cache
def _run(path: Path, *words: str) -> str:
    """What is asked here has one answer: the chart does not change while its tests run."""
    done = subprocess.run([path, *words], capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode:
        raise Refused(done.stderr)
    return done.stdout


def find(name: str) -> Path:
    """A program of the test cluster; what is missing is built first."""
    if not assets.path(name).exists():
        assets.ensure()
    return assets.path(name)


def one(objects: list[Object], kind: str, name: str = "") -> Object:
    """The object of this kind, and name; there must be exactly one."""
    (found,) = [each for each in objects if each["kind"] == kind and name in ("", each["metadata"]["name"])]
    return found


def pod(workload: Object) -> Object:
    spec = workload["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


def container(workload: Object) -> Object:
    (found,) = pod(workload)["containers"]
    assert isinstance(found, dict)
    return found


def mounts(workload: Object) -> Mapping[str, str]:
    """Path in the container -> path on the node, for what comes from the node."""
    sources = {each["name"]: each["hostPath"]["path"] for each in pod(workload)["volumes"] if "hostPath" in each}
    return {
        each["mountPath"]: sources[each["name"]]
        for each in container(workload)["volumeMounts"]
        if each["name"] in sources
    }


def rules(objects: list[Object]) -> list[tuple[str, str, tuple[str, ...]]]:
    """(role, "group/resource [name]", verbs) for every right that any role here gives."""
    found = []
    for role in (each for each in objects if each["kind"] in ("Role", "ClusterRole")):
        for rule in role["rules"]:
            named = "".join(f" {name}" for name in rule.get("resourceNames", ()))
            found += [
                (role["metadata"]["name"], f"{group}/{resource}{named}", tuple(rule["verbs"]))
                for group in rule["apiGroups"]
                for resource in rule["resources"]
            ]
    return found


def dashboard(objects: list[Object]) -> Object:
    text = one(objects, "ConfigMap", "virtnet-dashboard")["data"]["virtnet.json"]
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


def read(path: Path) -> Object:
    found = yaml.safe_load(path.read_text())
    assert isinstance(found, dict)
    return found
