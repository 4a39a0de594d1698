"""Storm: another process flips one feature as fast as a loop can; what the agent still does, and what it costs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from scripts.foreign import Ethtool
from tests.bench import figures, place
from tests.bench.figures import MIB, Fact, Figure, Report, Target
from tests.bench.place import Agent

FEATURE = "tx-tcp-segmentation"
STORMY, QUIET = "v0", "q0"
QUIET_POLICY = """\
---
apiVersion: virtnet.dev/v1alpha1
kind: VirtioNetworkPolicy
metadata: {name: quiet}
spec:
  onContention: Insist
  uplink: {match: {names: ["q*"]}, offloads: {tso: false}}
"""
LOOK_SECONDS = 0.0005
HOW = """\
Another process turns a feature of one of the managed links on and off by ioctl, as fast as a loop can, and ends with
the wrong value. Meanwhile a third process flips a feature of a quiet link, which another policy insists on, ten times a
second, and looks every half a millisecond until it is back: the slowest of these repairs is the longest time in which
the agent's loop did nothing else. `/healthz` is asked each time, too. Under `Yield` the agent runs with
`--contention-retry 10`, so that its next try can be waited for."""


@dataclass(frozen=True, slots=True)
class Size:
    links: int
    flips: int
    retry: float


FULL, QUICK = Size(links=1000, flips=100_001, retry=10.0), Size(links=40, flips=2_001, retry=2.0)


@dataclass(slots=True)
class Storm:
    """What was seen from the first flip to the last."""

    flips: int = 0
    started: float = 0.0
    ended: float = 0.0
    repairs: list[float] = field(default_factory=list)
    resident: list[float] = field(default_factory=list)
    asked: int = 0
    healthy: int = 0


def measure(directory: Path, *, quick: bool = False) -> Report:
    size = QUICK if quick else FULL
    place.make_links(size.links)
    place.run("ip", "link", "add", QUIET, "type", "veth", "peer", "name", "far1")
    under = [_under(name, directory / name, size) for name in ("Yield", "Insist")]
    return Report(
        "Event storm",
        HOW,
        tuple(figure for found, _, _ in under for figure in found),
        tuple(target for _, targets, _ in under for target in targets),
        tuple(fact for _, _, facts in under for fact in facts),
    )


def _under(name: str, directory: Path, size: Size) -> tuple[list[Figure], list[Target], list[Fact]]:
    """One storm on one agent, which may yield or must insist."""
    text = place.policy(name) + QUIET_POLICY
    with place.agent(directory, text, "--contention-retry", f"{size.retry:g}") as agent:
        before, memory, logged = agent.metrics(), agent.memory().resident, agent.log.stat().st_size
        storm = _storm(agent, size.flips)
        kernel = Ethtool()
        facts, targets = (
            _after_yield(agent, kernel, storm, size.retry) if name == "Yield" else _after_insist(kernel, storm)
        )
        after = agent.metrics()
        found = [
            figures.milliseconds(f"{name}: repair of a quiet link meanwhile", storm.repairs),
            Figure(f"{name}: resident before", MIB, (memory,)),
            Figure(f"{name}: resident meanwhile", MIB, tuple(storm.resident), beside=f"{name}: resident before"),
            Figure(f"{name}: resident after", MIB, (agent.memory().resident,), beside=f"{name}: resident before"),
        ]
        facts += _counts(name, storm, _difference(before, after), agent.log.stat().st_size - logged)
    return found, targets, facts


def _storm(agent: Agent, flips: int) -> Storm:
    words = [*place.DIE_WITH_US, sys.executable, str(place.FOREIGN), "--storm", str(flips), "0", f"{STORMY}:{FEATURE}"]
    storm, kernel = Storm(), Ethtool()
    with place.process(words, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        while other.poll() is None:
            storm.repairs.append(_repair(kernel))
            storm.resident.append(agent.memory().resident)
            storm.asked += 1
            storm.healthy += agent.is_healthy()
            time.sleep(0.1)
        told = json.loads(other.stdout.read())
    storm.flips, storm.started, storm.ended = told["flips"], told["started"], told["ended"]
    return storm


def _repair(kernel: Ethtool) -> float:
    """Flip the quiet link; seconds until it is back."""
    started = time.monotonic()
    kernel.turn(QUIET, FEATURE, True)
    place.wait_until(lambda: not kernel.is_on(QUIET, FEATURE), "the quiet link", every=LOOK_SECONDS)
    return time.monotonic() - started


def _after_yield(agent: Agent, kernel: Ethtool, storm: Storm, retry: float) -> tuple[list[Fact], list[Target]]:
    """Contended is said while the value is left alone; at the retry, which may have been already, it is right."""
    place.wait_until(
        lambda: "Contended" in agent.reasons() or not kernel.is_on(STORMY, FEATURE),
        "Contended to be said, or the value to be right",
    )
    said = time.monotonic() - storm.ended
    left = kernel.is_on(STORMY, FEATURE)
    place.wait_until(lambda: not kernel.is_on(STORMY, FEATURE), "the retry", seconds=20 + 4 * retry)
    right = time.monotonic() - storm.ended
    promise = f"Yield: right at the retry, {retry:g} s or twice that when the storm outlasts it"
    facts = [
        Fact("Yield: the value at the end of the storm", "left alone" if left else "right already"),
        Fact("Yield: Contended was said, seconds after the end at most", f"{max(0.0, said):.2f}"),
    ]
    return facts, [Target(promise, right, 2 * retry + 1.0, "s")]


def _after_insist(kernel: Ethtool, storm: Storm) -> tuple[list[Fact], list[Target]]:
    """Right soon after the last flip."""
    place.wait_until(lambda: not kernel.is_on(STORMY, FEATURE), "the value to be right")
    right = max(0.0, time.monotonic() - storm.ended)
    return [], [Target("Insist: right after the end of the storm", right, 1.0, "s")]


def _difference(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0.0) for name, value in after.items()}


def _counts(name: str, storm: Storm, grown: Mapping[str, float], logged: int) -> list[Fact]:
    seconds = storm.ended - storm.started
    return [
        Fact(f"{name}: flips, and flips per second", f"{storm.flips}, {storm.flips / seconds:.0f}"),
        Fact(f"{name}: foreign changes noticed", f"{grown['virtnet_drift_detected_total']:.0f}"),
        Fact(f"{name}: repairs", f"{grown['virtnet_drift_repaired_total']:.0f}"),
        Fact(f"{name}: full passes", f"{grown['virtnet_pass_seconds_count']:.0f}"),
        Fact(f"{name}: bytes logged", str(logged)),
        Fact(f"{name}: /healthz answered", f"{storm.healthy} of {storm.asked}"),
    ]
