"""Alerts and panels speak of metrics that exist, and of every reason that is a failure."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from prometheus_client.metrics_core import Metric

from tests.chart import tools
from tests.chart.tools import Helm, Object
from virtnet.core import model
from virtnet.core.model import Reason
from virtnet.engine.metrics import Metrics
from virtnet.kube import controller

ON = [f"--set=metrics.{name}.enabled=true" for name in ("podMonitor", "prometheusRule", "dashboard")]
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
ALERTS = {
    "VirtnetDrift",
    "VirtnetContended",
    "VirtnetBlocked",
    "VirtnetHeld",
    "VirtnetAgentDown",
    "VirtnetControllerDown",
    "VirtnetRolloutPaused",
    "VirtnetPassOverdue",
}
OF_NO_NODE = {"VirtnetAgentDown", "VirtnetControllerDown", "VirtnetRolloutPaused"}


def families() -> Iterator[Metric]:
    """All that an agent serves, and all that a controller does."""
    yield from Metrics().registry.collect()
    yield from controller.Metrics().registry.collect()


def known() -> set[str]:
    """The names of all samples."""
    return {family.name + suffix for family in families() for suffix in SUFFIXES[family.type]}


def alerts(objects: list[Object]) -> dict[str, Object]:
    (group,) = tools.one(objects, "PrometheusRule")["spec"]["groups"]
    return {each["alert"]: each for each in group["rules"]}


def expressions(objects: list[Object]) -> Iterator[str]:
    yield from (each["expr"] for each in alerts(objects).values())
    for panel in tools.dashboard(objects)["panels"]:
        yield from (target["expr"] for target in panel["targets"])


def test_every_metric_that_is_spoken_of_exists(helm: Helm) -> None:
    spoken = {name for text in expressions(helm.objects(*ON)) for name in re.findall(r"\bvirtnet_\w+", text)}
    assert spoken
    assert spoken <= known()


def test_every_metric_is_on_the_dashboard(helm: Helm) -> None:
    text = " ".join(
        target["expr"] for panel in tools.dashboard(helm.objects(*ON))["panels"] for target in panel["targets"]
    )
    assert {family.name for family in families() if family.name not in text} == set()


def test_there_is_an_alert_for_each_thing_that_somebody_has_to_look_at(helm: Helm) -> None:
    found = alerts(helm.objects(*ON))
    assert set(found) == ALERTS
    for alert in found.values():
        assert alert["labels"]["severity"] in ("info", "warning")
        assert set(alert["annotations"]) == {"summary", "description"}
        assert "{{ $labels.node }}" in alert["annotations"]["summary"] or alert["alert"] in OF_NO_NODE


def test_every_failing_reason_is_an_alert(helm: Helm) -> None:
    listed = re.search(r'reason=~"([^"]*)"', alerts(helm.objects(*ON))["VirtnetBlocked"]["expr"])
    assert listed is not None
    have_their_own = {Reason.CONTENDED, Reason.AGENT_DOWN}
    assert set(listed[1].split("|")) == {str(reason) for reason in model.FAILING if reason not in have_their_own}


def test_the_dashboard_counts_every_failing_reason_as_failing(helm: Helm) -> None:
    variables = {each["name"]: each for each in tools.dashboard(helm.objects(*ON))["templating"]["list"]}
    assert set(variables["failing"]["query"].split("|")) == {str(reason) for reason in model.FAILING}


def test_the_panels_neither_overlap_nor_lack_a_description(helm: Helm) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in tools.dashboard(helm.objects(*ON))["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        assert panel["description"]
        taken |= cells


@pytest.mark.parametrize(("resync", "window"), [(300, "900s"), (3600, "10800s")])
def test_a_pass_is_overdue_after_three_that_did_not_come(helm: Helm, resync: int, window: str) -> None:
    expression = alerts(helm.objects(*ON, f"--set=agent.resyncSeconds={resync}"))["VirtnetPassOverdue"]["expr"]
    assert f"[{window}]" in expression


def test_the_monitor_selects_agents_and_controllers_and_names_the_node(helm: Helm) -> None:
    words = (*ON, "--set=metrics.podMonitor.labels.release=monitoring")
    monitor = tools.one(helm.objects(*words), "PodMonitor")
    assert monitor["metadata"]["labels"]["release"] == "monitoring"
    assert monitor["spec"]["selector"]["matchExpressions"][0]["values"] == ["agent", "controller"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert [each["targetLabel"] for each in endpoint["relabelings"]] == ["node", "component"]
    for kind in ("DaemonSet", "Deployment"):
        (port,) = tools.container(tools.one(helm.objects(), kind))["ports"]
        assert port["name"] == endpoint["port"]
