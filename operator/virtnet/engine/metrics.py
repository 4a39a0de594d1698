"""The engine's metrics, in a registry of their own; no label ever names a link."""

from __future__ import annotations

from collections.abc import Mapping

from virtnet.core.model import Reason, Setting
from virtnet.engine import drift
from virtnet.engine.samples import Counter, Family, Gauge, Histogram, Registry

REPAIR_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0)
PASS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0)


class Metrics:
    """What `/metrics` serves. `repair_seconds` is from the agent's reading the event to the value being back."""

    def __init__(self) -> None:
        labels = ("surface", "setting")
        self._detected = Counter("virtnet_drift_detected", "Foreign changes of settings that were as wanted", labels)
        self._repaired = Counter("virtnet_drift_repaired", "Foreign changes that were put right", labels)
        self.repair_seconds = Histogram("virtnet_repair_seconds", "From reading an event to the repair", REPAIR_BUCKETS)
        self.pass_seconds = Histogram("virtnet_pass_seconds", "Full passes, looks and changes", PASS_BUCKETS)
        self._blocked = Gauge("virtnet_blocked", "Settings not as asked, by reason", ("reason",))
        self.contended = Gauge("virtnet_contended", "Settings that somebody fights for")
        self.held = Gauge("virtnet_held", "Holds: one for the whole node, one for each held link")
        self.policies = Gauge("virtnet_policies", "Policies in force on this node")
        self._admitted = Gauge("virtnet_admitted_generation", "The generation that this node enforces", ("policy",))
        self.registry = Registry([family for family in vars(self).values() if isinstance(family, Family)])

    def detected(self, setting: Setting) -> None:
        self._detected.inc(drift.surface(setting), setting.key)

    def repaired(self, setting: Setting) -> None:
        self._repaired.inc(drift.surface(setting), setting.key)

    def blocked(self, counts: Mapping[Reason, int]) -> None:
        self._blocked.replace({str(reason): count for reason, count in counts.items()})

    def admitted(self, generations: Mapping[str, int]) -> None:
        self._admitted.replace(generations)
