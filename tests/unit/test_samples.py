"""What we serve as metrics, read by the library of those who read it."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from virtnet.core.model import Reason, Setting
from virtnet.engine.metrics import Metrics
from virtnet.engine.samples import Counter, Gauge, Histogram, Registry


def read(registry: Registry) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of the text as Prometheus's own parser finds it."""
    families = text_string_to_metric_families(registry.text())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def test_the_library_reads_the_engines_metrics_with_their_types() -> None:
    families = {each.name: each.type for each in text_string_to_metric_families(Metrics().registry.text())}
    assert families == {
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


def test_a_drift_is_counted_by_surface_and_setting() -> None:
    metrics = Metrics()
    for _ in range(3):
        metrics.detected(Setting(7, "feature:rx-gro"))
    labels = frozenset({("surface", "link"), ("setting", "feature:rx-gro")})
    assert read(metrics.registry)["virtnet_drift_detected_total", labels] == 3


def test_a_reason_that_is_gone_is_no_longer_served() -> None:
    metrics = Metrics()
    metrics.blocked({Reason.FIXED: 2, Reason.MISSING: 1})
    metrics.blocked({Reason.FIXED: 4})
    found = {labels: value for (name, labels), value in read(metrics.registry).items() if name == "virtnet_blocked"}
    assert found == {frozenset({("reason", "Fixed")}): 4}


def test_a_histogram_counts_an_observation_in_every_bucket_that_it_fits() -> None:
    histogram = Histogram("h", "Times", (0.5, 1.0))
    for seconds in (0.25, 0.5, 0.75, 3.0):
        histogram.observe(seconds)
    found = {(name, dict(labels).get("le")): value for (name, labels), value in read(Registry([histogram])).items()}
    assert found == {
        ("h_bucket", "0.5"): 2,
        ("h_bucket", "1.0"): 3,
        ("h_bucket", "+Inf"): 4,
        ("h_count", None): 4,
        ("h_sum", None): 4.5,
    }


def test_numbers_without_labels_are_there_before_anything_happened() -> None:
    assert read(Registry([Gauge("g", "G"), Counter("c", "C"), Counter("l", "L", ("x",))])) == {
        ("g", frozenset()): 0,
        ("c_total", frozenset()): 0,
    }


def test_label_values_and_help_texts_may_hold_anything() -> None:
    gauge = Gauge("g", 'a "help"\nof \\two lines', ("policy",))
    gauge.set(1.5, 'quoted "name"\nand \\ more')
    (family,) = text_string_to_metric_families(Registry([gauge]).text())
    assert family.documentation == 'a "help"\nof \\two lines'
    assert [(sample.labels["policy"], sample.value) for sample in family.samples] == [
        ('quoted "name"\nand \\ more', 1.5)
    ]


def test_a_sample_is_found_by_its_name_and_labels() -> None:
    gauge = Gauge("g", "G", ("a",))
    gauge.set(2, "x")
    registry = Registry([gauge])
    assert registry.get_sample_value("g", {"a": "x"}) == 2
    assert registry.get_sample_value("g", {"a": "y"}) is None
    assert registry.get_sample_value("g") is None
