"""The rule for Argo CD says what kstatus says, which Flux uses without any rule."""

from __future__ import annotations

import pytest
import yaml

from tests.chart.argocd import health
from tests.chart.tools import CHART, ROOT, Object

FOLDER = ROOT / "examples" / "gitops"

# Conditions -> what Argo CD shows, and what kstatus calls it (sigs.k8s.io/cli-utils, pkg/kstatus/status/generic.go).
VERDICTS = [
    (None, "Progressing"),
    ({}, "Progressing"),
    ({"Ready": "True"}, "Healthy"),
    ({"Ready": "False"}, "Degraded"),
    ({"Ready": "Unknown"}, "Progressing"),
    ({"Ready": "False", "Reconciling": "True"}, "Progressing"),
    ({"Ready": "False", "Reconciling": "False", "Stalled": "True"}, "Degraded"),
    ({"Ready": "True", "Reconciling": "False", "Stalled": "False", "Complete": "False"}, "Healthy"),
]


def documents(name: str) -> list[Object]:
    return [one for one in yaml.safe_load_all((FOLDER / name).read_text()) if one]


def policy(conditions: dict[str, str] | None, *, observed: int = 3) -> Object:
    found = [
        {"type": kind, "status": status, "message": f"{kind} said so"} for kind, status in (conditions or {}).items()
    ]
    status = {} if conditions is None else {"status": {"observedGeneration": observed, "conditions": found}}
    return {"metadata": {"name": "lan", "generation": 3}, **status}


@pytest.mark.parametrize(("conditions", "verdict"), VERDICTS)
def test_argo_cd_shows_the_conditions_as_health(conditions: dict[str, str] | None, verdict: str) -> None:
    assert health(policy(conditions))[0] == verdict


def test_argo_cd_shows_the_sentence_of_the_condition_that_decides() -> None:
    assert health(policy({"Ready": "False", "Stalled": "True"})) == ("Degraded", "Stalled said so")
    assert health(policy({"Ready": "True"})) == ("Healthy", "Ready said so")


def test_conditions_of_an_earlier_generation_are_not_believed() -> None:
    assert health(policy({"Ready": "True"}, observed=2))[0] == "Progressing"


def test_both_tools_take_the_chart_from_where_it_is() -> None:
    (application,) = documents("argocd/operator.yaml")
    (release,) = [one for one in documents("flux/operator.yaml") if one["kind"] == "HelmRelease"]
    for path in (application["spec"]["source"]["path"], release["spec"]["chart"]["spec"]["chart"]):
        assert ROOT / path == CHART


def test_both_tools_install_into_a_namespace_that_allows_what_the_agents_need() -> None:
    (application,) = documents("argocd/operator.yaml")
    (namespace,) = [one for one in documents("flux/operator.yaml") if one["kind"] == "Namespace"]
    for labels in (
        application["spec"]["syncPolicy"]["managedNamespaceMetadata"]["labels"],
        namespace["metadata"]["labels"],
    ):
        assert labels["pod-security.kubernetes.io/enforce"] == "privileged"


def test_flux_gives_an_uninstall_the_time_that_the_chart_takes() -> None:
    (release,) = [one for one in documents("flux/operator.yaml") if one["kind"] == "HelmRelease"]
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert release["spec"]["uninstall"]["timeout"] == "6m"
    assert values["uninstall"]["timeoutSeconds"] + 30 < 360
