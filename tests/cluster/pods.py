"""Pods that the tests themselves run: they wait, and let commands be run in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.cluster import images


def waiting(name: str, node: str, capabilities: Sequence[str] = (), *, host_network: bool = True) -> dict[str, Any]:
    """A pod of the agent's image on one node, as restricted as the agent's own, which does nothing."""
    security = {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], "add": list(capabilities)},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {
        "name": "waiting",
        "image": images.name("agent"),
        "imagePullPolicy": "Never",
        "command": ["sleep", "infinity"],
        "securityContext": security,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "nodeName": node,
            "hostNetwork": host_network,
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
        },
    }
