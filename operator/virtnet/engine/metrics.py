"""The engine's metrics, in a registry of their own; no label ever names a link."""

from __future__ import annotations

from collections.abc import Mapping

from virtnet.core.model import Reason, Setting
from virtnet.engine import drift
from virtnet.engine.exposition import Counter, Gauge, Histogram, Registry

REPAIR_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0)
PASS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0)


class Metrics:
    """What `/metrics` serves. `repair_seconds` is from the agent's reading the event to the value being back."""

    def __init__(self) -> None:
        self.registry = Registry(auto_describe=False)
        labels = ("surface", "setting")
        self._detected = Counter(
            "virtnet_drift_detected_total",
            "Foreign changes of settings that were as wanted",
            labels,
            registry=self.registry,
        )
        self._repaired = Counter(
            "virtnet_drift_repaired_total", "Foreign changes that were put right", labels, registry=self.registry
        )
        self.repair_seconds = Histogram(
            "virtnet_repair_seconds",
            "From reading an event to the repair",
            buckets=REPAIR_BUCKETS,
            registry=self.registry,
        )
        self.pass_seconds = Histogram(
            "virtnet_pass_seconds", "Full passes, looks and changes", buckets=PASS_BUCKETS, registry=self.registry
        )
        self._blocked = Gauge(
            "virtnet_blocked", "Settings not as asked, by reason", ("reason",), registry=self.registry
        )
        self.contended = Gauge("virtnet_contended", "Settings that somebody fights for", registry=self.registry)
        self.held = Gauge(
            "virtnet_held", "Holds: one for the whole node, one for each held link", registry=self.registry
        )
        self.policies = Gauge("virtnet_policies", "Policies in force on this node", registry=self.registry)
        self._admitted = Gauge(
            "virtnet_admitted_generation", "The generation that this node enforces", ("policy",), registry=self.registry
        )

    def detected(self, setting: Setting) -> None:
        self._detected.labels(drift.surface(setting), setting.key).inc()

    def repaired(self, setting: Setting) -> None:
        self._repaired.labels(drift.surface(setting), setting.key).inc()

    def blocked(self, counts: Mapping[Reason, int]) -> None:
        self._blocked.clear()
        for reason, count in counts.items():
            self._blocked.labels(str(reason)).set(count)

    def admitted(self, generations: Mapping[str, int]) -> None:
        self._admitted.clear()
        for policy, generation in generations.items():
            self._admitted.labels(policy).set(generation)
