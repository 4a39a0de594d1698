"""What we serve as metrics, and what serving it does not bring along."""

from __future__ import annotations

import subprocess
import sys

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from virtnet.core.model import Reason, Setting
from virtnet.engine import exposition
from virtnet.engine.metrics import Metrics

Labels = frozenset[tuple[str, str]]


def read(metrics: Metrics) -> dict[tuple[str, Labels], float]:
    """Every sample of the text as a reader of OpenMetrics finds it."""
    families = text_string_to_metric_families(exposition.text(metrics.registry))
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def test_the_engines_metrics_are_read_with_their_types() -> None:
    families = text_string_to_metric_families(exposition.text(Metrics().registry))
    assert {each.name: each.type for each in families} == {
        "virtnet_drift_detected": "counter",
        "virtnet_drift_repaired": "counter",
        "virtnet_repair_seconds": "histogram",
        "virtnet_pass_seconds": "histogram",
        "virtnet_blocked": "gauge",
        "virtnet_contended": "gauge",
        "virtnet_held": "gauge",
        "virtnet_policies": "gauge",
        "virtnet_admitted_generation": "gauge",
    }


def test_a_drift_is_counted_by_surface_and_setting_and_by_nothing_else() -> None:
    metrics = Metrics()
    for _ in range(3):
        metrics.detected(Setting(7, "feature:rx-gro"))
    labels = frozenset({("surface", "link"), ("setting", "feature:rx-gro")})
    drifts = {key: value for key, value in read(metrics).items() if key[0].startswith("virtnet_drift")}
    assert drifts == {("virtnet_drift_detected_total", labels): 3}


def test_a_reason_that_is_gone_is_no_longer_served() -> None:
    metrics = Metrics()
    metrics.blocked({Reason.FIXED: 2, Reason.MISSING: 1})
    metrics.blocked({Reason.FIXED: 4})
    found = {labels: value for (name, labels), value in read(metrics).items() if name == "virtnet_blocked"}
    assert found == {frozenset({("reason", "Fixed")}): 4}


def test_counting_imports_no_web_server_and_the_whole_package_can_still_be_had() -> None:
    script = """
import sys
from virtnet.engine import exposition
heavy = {"http.server", "urllib.request", "wsgiref", "ssl", "email", "prometheus_client.exposition"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
import prometheus_client
assert prometheus_client.Counter is exposition.Counter
assert prometheus_client.generate_latest
"""
    subprocess.run([sys.executable, "-c", script], check=True, env={"PYTHONPATH": ":".join(sys.path)}, timeout=60)
