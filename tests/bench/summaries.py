"""What 5000 nodes cost the controller: memory for the summaries of all objects, and time for a look. Prints JSON.

In a process of its own, which has imported what the controller imports and nothing else.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from virtnet.core.fleet import AgentFacts, Fleet, NodeFacts, StateFacts
from virtnet.kube import controller, sightings
from virtnet.kube.following import Followed

NODES = 5000
POLICIES = 10
SETTINGS = 20
LABELS = 20
LOOKS = 20
EARLIER = "2026-01-01T00:00:00Z"
READY = {"type": "Ready", "status": "True", "lastTransitionTime": EARLIER}


def sent(found: Any) -> Any:
    """As it comes from the network: no text is shared with another object's."""
    return json.loads(json.dumps(found))


def node(name: str) -> Any:
    labels = {f"feature.node.kubernetes.io/cpu-{number}": "true" for number in range(LABELS)}
    labels["kubernetes.io/hostname"] = name
    return {"metadata": {"name": name, "uid": f"uid-{name}", "labels": labels}, "status": {"conditions": [READY]}}


def state(name: str) -> Any:
    policies = [
        {"name": f"p{number}", "generation": 3, "admitted": True, "ready": True, "blocked": 2}
        for number in range(POLICIES)
    ]
    settings = [
        {
            "subject": "link/eth0",
            "setting": f"uplink.offloads.f{number}",
            "reason": "Fixed",
            "message": "the driver lacks it",
            "policy": f"p{number % POLICIES}",
            "since": EARLIER,
        }
        for number in range(SETTINGS)
    ]
    metadata = {"name": name, "uid": f"s-{name}", "ownerReferences": [{"kind": "Node", "uid": f"uid-{name}"}]}
    return {"metadata": metadata, "status": {"policies": policies, "settings": settings}}


def pod(name: str) -> Any:
    return {"metadata": {"name": f"a-{name}"}, "spec": {"nodeName": name}, "status": {"conditions": [READY]}}


def memory() -> float:
    """MiB that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def fleet() -> Fleet:
    nodes: dict[str, NodeFacts] = {}
    states: dict[str, StateFacts] = {}
    agents: dict[str, AgentFacts] = {}
    for number in range(NODES):
        name = f"n{number:04}"
        nodes[name] = sightings.node(sent(node(name)))
        states[name] = sightings.state(sent(state(name)))
        agents[name] = sightings.pod(sent(pod(name))).agent
    return Fleet(nodes, states, agents)


def main() -> None:
    assert controller.MANAGER
    before, found = memory(), fleet()
    metadata = {"name": "p1", "uid": "u", "generation": 3, "resourceVersion": "5"}
    kind = {"apiVersion": "virtnet.dev/v1alpha1", "kind": "VirtioNetworkPolicy"}
    followed = Followed({**kind, "metadata": metadata, "spec": {"bridge": {"name": "br0"}}})
    looks = []
    for _ in range(LOOKS):
        began = time.perf_counter()
        verdict = followed.look(found, time.time())
        looks.append(time.perf_counter() - began)
        followed.status = verdict.status
        followed.accept(verdict)
    print(json.dumps({"before": before, "after": memory(), "looks": looks}))


if __name__ == "__main__":
    main()
