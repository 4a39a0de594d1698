"""The operator on a cluster: installed by its chart, asked with kubectl, and told what to do by policies."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import nodes
from tests.cluster.cluster import Cluster, condition
from tests.cluster.nodes import Node
from tests.cluster.sandbox import wait_until

ROOT = Path(__file__).parents[2]
CHART = str(ROOT / "charts/virtio-network-operator")
NAMESPACE, RELEASE = "virtnet-system", "virtnet"
# The images are on the nodes, under names that no registry knows.
IMAGES = (
    "--set=image.registry=virtnet.test,image.pullPolicy=Never",
    "--set=agent.image.tag=test,controller.image.tag=test",
)
AGENT_PORT = 9571


Policy = dict[str, Any]


def uplink(name: str = "lan", spec: Policy | None = None, /, **features: bool) -> Policy:
    """A policy that asks for offloads of every node's uplink, by the names that ethtool takes."""
    section = {"match": {"names": [nodes.UPLINK]}, "offloads": features}
    return policy(name, uplink=section, **(spec or {}))


def policy(name: str, **spec: Any) -> Policy:
    """A policy of this name."""
    return {
        "apiVersion": "virtnet.dev/v1alpha1",
        "kind": "VirtioNetworkPolicy",
        "metadata": {"name": name},
        "spec": spec,
    }


@dataclass(frozen=True, slots=True)
class Operator:
    cluster: Cluster

    def install(self, *words: str, version: int = 4) -> str:
        """`helm install --wait`, as the README says."""
        return self.cluster.helm(
            *("install", RELEASE, CHART, f"--namespace={NAMESPACE}", "--create-namespace", "--wait"),
            *("--timeout=60s", *IMAGES, *words),
            version=version,
        )

    def is_installed(self, version: int = 4) -> bool:
        return bool(self.cluster.helm("list", f"--namespace={NAMESPACE}", "--short", version=version).strip())

    def upgrade(self, *words: str, version: int = 4) -> str:
        return self.cluster.helm(
            *("upgrade", RELEASE, CHART, f"--namespace={NAMESPACE}", "--wait", "--timeout=180s", *IMAGES, *words),
            version=version,
        )

    def kubectl(self, *arguments: str) -> str:
        """In the namespace of the operator."""
        return self.cluster.kubectl(f"--namespace={NAMESPACE}", *arguments)

    def pods(self, component: str) -> list[Any]:
        selector = f"--selector=app.kubernetes.io/component={component}"
        return self.cluster.objects("pods", f"--namespace={NAMESPACE}", selector)

    def agent(self, node: Node) -> Any:
        """The agent's pod of a node."""
        (pod,) = (pod for pod in self.pods("agent") if pod["spec"]["nodeName"] == node.name)
        return pod

    def wait_agents(self) -> None:
        self.kubectl("rollout", "status", "daemonset/virtnet-agent", "--timeout=60s")

    def apply(self, *policies: Policy) -> None:
        self.cluster.apply(*policies)

    def ready(self, *names: str, seconds: float = 90) -> None:
        """Wait until the policies are Ready, for the generation that is there now.

        An agent that was killed twice counts as one that crashes until it has run for a minute.
        """
        for name in names:
            self.cluster.wait_for("condition=Ready", f"vnp/{name}", seconds=seconds)

    def get(self, name: str) -> Any:
        return self.cluster.object("vnp", name)

    def state(self, node: Node) -> Any:
        """The VirtioNetworkNodeState of a node; None when there is none."""
        return self.cluster.object("vnns", node.name)

    def wait_condition(self, name: str, kind: str, status: str, reason: str = "", seconds: float = 30) -> Any:
        """The policy, once its condition is so (for this reason, where one is given) for its newest generation."""

        def is_so(found: Any) -> bool:
            return condition(found, kind) == status and reason in ("", condition(found, kind, "reason"))

        return self.wait_status(name, f"{kind}={status} {reason}", is_so, seconds)

    def wait_status(self, name: str, what: str, is_so: Callable[[Any], bool], seconds: float = 30) -> Any:
        """The policy, once it is so, as its controller sees its newest generation."""
        found: dict[str, Any] = {}

        def holds() -> bool:
            found.update(self.get(name))
            newest = found.get("status", {}).get("observedGeneration") == found["metadata"]["generation"]
            return newest and is_so(found)

        try:
            wait_until(f"{name} is {what}", holds, seconds, 0.3)
        except AssertionError as error:
            raise AssertionError(f"{error}: {found.get('status')}") from error
        return found

    def metrics(self, node: Node) -> dict[str, float]:
        """The samples of the agent's page, by name with labels."""
        page = node.run("python3", "-c", FETCH, f"http://127.0.0.1:{AGENT_PORT}/metrics")
        lines = (line.rpartition(" ") for line in page.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def alert(self, name: str) -> str:
        """The expression of an alert, as the chart gives it to Prometheus."""
        words = ("--show-only=templates/prometheusrule.yaml", "--set=metrics.prometheusRule.enabled=true")
        rule = yaml.safe_load(self.cluster.helm("template", RELEASE, CHART, f"--namespace={NAMESPACE}", *words))
        rules = (each for group in rule["spec"]["groups"] for each in group["rules"])
        return next(str(each["expr"]) for each in rules if each["alert"] == name)

    def plugin(self, *words: str) -> str:
        """`kubectl virtnet`, as kubectl calls it."""
        program = ("-c", "import sys; from virtnet.cli import kubectl; sys.exit(kubectl.main())")
        kubeconfig = self.cluster.control.credentials.kubeconfig("admin")
        return self.cluster.control.sandbox.net(sys.executable, *program, *words, f"--kubeconfig={kubeconfig}")


FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"


def on_all(members: list[Node], is_so: Callable[[Node], bool], what: str, seconds: float = 15) -> None:
    """Wait until it is so on every node."""
    wait_until(f"{what} on every node", lambda: all(is_so(node) for node in members), seconds, 0.2)
