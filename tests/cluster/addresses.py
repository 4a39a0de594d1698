"""Who has which address in a cluster; every cluster has the same ones, as none is seen outside of its namespaces."""

from __future__ import annotations

RACK = "10.89.0.1"
"""The control plane on the bridge that all uplinks are plugged into; the gateway of every node."""
PREFIX = 24
SERVICE, SERVICES = "10.0.0.1", "10.0.0.0/24"
"""What KUBERNETES_SERVICE_HOST says in every pod. There is no kube-proxy: it is an address of the control plane."""
API = f"https://{RACK}:443"
MOST = 8
"""Nodes that have a name and a token, present or added later."""


def node(number: int) -> str:
    return f"10.89.0.{10 + number}"


def pods(number: int) -> str:
    return f"10.244.{number}.0/24"


def gateway(number: int) -> str:
    """Of the pods of a node that are not in its network namespace."""
    return f"10.244.{number}.1"
