"""What somebody can do who takes an agent's token, and what the agents' pods are given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cluster.commands import CommandFailed
from tests.cluster.installation import NAMESPACE, Operator


@pytest.fixture
def token(installed: Operator) -> str:
    """The token of the agent on node1, as a thief on that node finds it."""
    return in_agent(installed, "cat", "/var/run/secrets/kubernetes.io/serviceaccount/token").strip()


def in_agent(operator: Operator, *command: str) -> str:
    """Run a command in the agent's container on node1."""
    pod = operator.agent(operator.cluster.node(1))["metadata"]["name"]
    return operator.kubectl("exec", pod, "--", *command)


def with_token(operator: Operator, token: str, *arguments: str, text: str = "") -> str:
    """kubectl with nothing but the token."""
    control = operator.cluster.control
    config = control.sandbox.home / "stolen.kubeconfig"
    whole = json.loads(Path(control.credentials.kubeconfig("admin")).read_text())
    whole["users"][0]["user"] = {"token": token}
    config.write_text(json.dumps(whole))
    return operator.cluster.kubectl(f"--kubeconfig={config}", *arguments, text=text)


FORBIDDEN = {
    "secrets": ("get", "secrets", "--all-namespaces"),
    "pods": ("get", "pods", "--all-namespaces"),
    "config maps": ("get", "configmaps", "--all-namespaces"),
    "labels of nodes": ("label", "node", "node1", "stolen=yes"),
    "policies": ("delete", "vnp", "--all"),
    "its own state's end": ("delete", "vnns", "node1"),
    "tokens": ("create", "token", "virtnet-controller", f"--namespace={NAMESPACE}"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_a_stolen_token_of_an_agent_does_not_reach(installed: Operator, token: str, what: str) -> None:
    installed.cluster.apply(
        {"apiVersion": "virtnet.dev/v1alpha1", "kind": "VirtioNetworkPolicy", "metadata": {"name": "bait"}, "spec": {}}
    )
    try:
        with pytest.raises(CommandFailed, match="orbidden"):
            with_token(installed, token, *FORBIDDEN[what])
    finally:
        installed.cluster.kubectl("delete", "vnp", "bait")


PATCH = '--patch={"metadata":{"annotations":{"stolen":"yes"}}}'


def test_a_stolen_token_writes_the_state_of_its_own_node_only(installed: Operator, token: str) -> None:
    merge = ("patch", "vnns", "--type=merge", PATCH)
    assert "node1" in with_token(installed, token, *merge, "node1")
    with pytest.raises(
        CommandFailed, match="may write the VirtioNetworkNodeState of that node only, not that of node2"
    ):
        with_token(installed, token, *merge, "node2")


def test_a_token_that_is_bound_to_no_node_writes_nothing(installed: Operator) -> None:
    loose = installed.kubectl("create", "token", "virtnet-agent").strip()
    with pytest.raises(CommandFailed, match="must be bound to a pod on a node"):
        with_token(installed, loose, "patch", "vnns", "node1", "--type=merge", PATCH)


def test_the_agents_have_one_capability_and_the_controller_none(installed: Operator) -> None:
    look = ("grep", "CapEff", "/proc/1/status")
    controller = installed.pods("controller")[0]["metadata"]["name"]
    assert int(in_agent(installed, *look).split()[1], 16) == 1 << 12  # CAP_NET_ADMIN
    assert int(installed.kubectl("exec", controller, "--", *look).split()[1], 16) == 0
