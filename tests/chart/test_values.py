"""A wrong value is refused by name, and every value has a type and a meaning."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.chart import tools
from tests.chart.tools import CHART, Helm, Object, Refused

SCHEMA = json.loads((CHART / "values.schema.json").read_text())

WRONG = [
    ("feature.module=true", "feature"),
    ("features.modul=true", "modul"),
    ("features.module=yes", "/features/module"),
    ("agent.updateStrategy.rollingUpdate.maxUnavailable=0", "maxUnavailable"),
    ("agent.updateStrategy.rollingUpdate.maxUnavailable=120%", "maxUnavailable"),
    ("agent.log.format=xml", "/agent/log/format"),
    ("agent.listen.address=localhost", "/agent/listen/address"),
    ("agent.listen.port=0", "/agent/listen/port"),
    ("agent.stateDir=state", "/agent/stateDir"),
    ("agent.image.digest=sha256:12", "/agent/image/digest"),
    ("agent.resyncSeconds=1", "/agent/resyncSeconds"),
    ("agent.resources=100m", "/agent/resources"),
    ("controller.replicas=many", "/controller/replicas"),
    ("controller.listen.port=80", "/controller/listen/port"),
    ("serviceAccountToken.expirationSeconds=60", "/serviceAccountToken/expirationSeconds"),
    ("fullnameOverride=Virtnet", "/fullnameOverride"),
    ("metrics.podMonitor.interval=soon", "/metrics/podMonitor/interval"),
    ("networkPolicy.egress.cidrs[0]=everywhere", "/networkPolicy/egress/cidrs/0"),
    ("uninstall.timeoutSeconds=0", "/uninstall/timeoutSeconds"),
]


def places(schema: Object, values: object, path: str = "") -> Iterator[tuple[str, Object, object]]:
    """Each place of the schema with its path and its default."""
    yield path, schema, values
    for name, child in schema.get("properties", {}).items():
        if name != "global":
            assert isinstance(values, dict)
            assert name in values, f"{path}/{name} has no default"
            yield from places(child, values[name], f"{path}/{name}")


PLACES = list(places(SCHEMA, tools.read(CHART / "values.yaml")))


@pytest.mark.parametrize(("assignment", "place"), WRONG)
def test_a_wrong_value_is_refused_with_its_place(helm: Helm, assignment: str, place: str) -> None:
    with pytest.raises(Refused) as refused:
        helm.objects("--set", assignment)
    assert place.replace("/", ".").strip(".") in str(refused.value).replace("/", ".").replace("'", "")


def test_a_cluster_that_is_too_old_is_refused(helm: Helm) -> None:
    with pytest.raises(Refused, match=r"1\.29"):
        helm.objects("--kube-version=1.29.4")
    assert helm.objects("--kube-version=v1.30.1-eks-1234")


def test_a_parent_chart_may_pass_its_globals(helm: Helm) -> None:
    assert helm.objects("--set=global.imageRegistry=example")


@pytest.mark.parametrize(("path", "schema"), [pytest.param(path, one, id=path) for path, one, _ in PLACES])
def test_a_value_says_what_it_means_and_knows_its_keys(path: str, schema: Object) -> None:
    assert len(schema["description"]) > 8
    assert "properties" not in schema or schema["additionalProperties"] is False


@pytest.mark.parametrize(("path", "schema", "value"), [pytest.param(*place, id=place[0]) for place in PLACES])
def test_every_default_is_known_to_the_schema(path: str, schema: Object, value: object) -> None:
    if isinstance(value, dict) and "properties" in schema:
        assert set(value) <= set(schema["properties"])
