"""A real API server takes everything that the chart and the examples make, and holds the agents to their own nodes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.chart import argocd
from tests.chart.tools import EXAMPLES, ROOT, Helm, Object
from tests.cluster.cluster import Cluster
from tests.cluster.commands import CommandFailed
from tests.cluster.sandbox import wait_until

GITOPS = sorted((ROOT / "examples" / "gitops").glob("*/*.yaml"))
DRY = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts", "--filename=-")
EVERYTHING = [f"--set=metrics.{name}.enabled=true" for name in ("podMonitor", "prometheusRule", "dashboard")]
NAMESPACE = "virtnet-system"
AGENT = f"system:serviceaccount:{NAMESPACE}:virtnet-agent"


def dry_run(server: Cluster, objects: list[Object]) -> list[str]:
    """What the server would make of these objects, a line each; it changes nothing."""
    said = server.kubectl(*DRY, text=yaml.safe_dump_all(objects))
    return [line for line in said.splitlines() if line]


@pytest.mark.parametrize("example", [None, *EXAMPLES], ids=lambda path: path.stem if path else "defaults")
def test_the_server_takes_every_object_of_the_chart(server: Cluster, helm: Helm, example: Path | None) -> None:
    objects = helm.objects(*EVERYTHING, *(["--values", str(example)] if example else []))
    lines = dry_run(server, objects)
    assert len(lines) == len(objects)
    assert not [line for line in lines if "serverside-applied" not in line]


@pytest.mark.parametrize("folder", ["base", "crds", "monitoring", "release"])
def test_the_server_takes_what_kustomize_makes(server: Cluster, folder: str) -> None:
    said = server.kubectl(*DRY[:-1], f"--kustomize={ROOT / 'config' / folder}")
    assert said
    assert not [line for line in said.splitlines() if "serverside-applied" not in line]


@pytest.mark.parametrize("path", GITOPS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_server_takes_the_gitops_examples(server: Cluster, path: Path) -> None:
    objects = [one for one in yaml.safe_load_all(path.read_text()) if one]
    assert len(dry_run(server, objects)) == len(objects)


def test_the_rule_for_argo_cd_joins_the_configuration_that_is_there(server: Cluster) -> None:
    there = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "argocd-cm", "namespace": "argocd"}}
    server.apply({**there, "data": {"url": "https://argocd.example.org"}}, manager="argocd")
    server.kubectl("apply", "--server-side", "--field-manager=virtnet", f"--filename={argocd.FILE}")
    found = server.object("configmap", "argocd-cm", "--namespace=argocd")["data"]
    assert found.keys() == {"url", argocd.KEY}


def test_the_server_understands_every_expression_of_the_admission_policy(guarded: Cluster) -> None:
    def checked() -> bool:
        found = guarded.object("validatingadmissionpolicy", "virtnet-own-node")
        return found.get("status", {}).get("observedGeneration") == found["metadata"]["generation"]

    wait_until("the expressions are checked", checked, 30)
    status = guarded.object("validatingadmissionpolicy", "virtnet-own-node")["status"]
    assert status.get("typeChecking", {}).get("expressionWarnings", []) == []


# --- who may do what ---------------------------------------------------------------------------------------


def may(server: Cluster, who: str, verb: str, what: str, *words: str) -> bool:
    """`what` may have a part behind a colon: a subresource."""
    resource, _, part = what.partition(":")
    asked = ("auth", "can-i", verb, resource, f"--subresource={part}", f"--as={who}", *words)
    try:
        return server.kubectl(*asked).strip() == "yes"
    except CommandFailed:
        return False


@pytest.mark.parametrize(
    ("account", "verb", "what", "allowed"),
    [
        ("agent", "list", "virtionetworkpolicies.virtnet.dev", True),
        ("agent", "watch", "nodes", True),
        ("agent", "patch", "virtionetworknodestates.virtnet.dev", True),
        ("agent", "patch", "virtionetworknodestates.virtnet.dev:status", True),
        ("agent", "delete", "virtionetworknodestates.virtnet.dev", False),
        ("agent", "patch", "virtionetworkpolicies.virtnet.dev", False),
        ("agent", "patch", "virtionetworkpolicies.virtnet.dev:status", False),
        ("agent", "patch", "nodes", False),
        ("agent", "get", "secrets", False),
        ("agent", "get", "pods", False),
        ("agent", "create", "pods", False),
        ("agent", "create", "serviceaccounts:token", False),
        ("controller", "patch", "virtionetworkpolicies.virtnet.dev:status", True),
        ("controller", "patch", "virtionetworkpolicies.virtnet.dev", False),
        ("controller", "delete", "virtionetworknodestates.virtnet.dev", True),
        ("controller", "patch", "virtionetworknodestates.virtnet.dev", False),
        ("controller", "watch", "pods", True),
        ("controller", "delete", "pods", False),
        ("controller", "create", "leases.coordination.k8s.io", True),
        ("controller", "get", "secrets", False),
        ("controller", "patch", "nodes", False),
        ("uninstall", "patch", "virtionetworknodestates.virtnet.dev", True),
        ("uninstall", "patch", "virtionetworknodestates.virtnet.dev:status", False),
        ("uninstall", "get", "virtionetworkpolicies.virtnet.dev", False),
    ],
)
def test_an_account_may_do_what_it_needs_and_nothing_else(
    guarded: Cluster, account: str, verb: str, what: str, allowed: bool
) -> None:
    who = f"system:serviceaccount:{NAMESPACE}:virtnet-{account}"
    assert may(guarded, who, verb, what, f"--namespace={NAMESPACE}") is allowed


def test_the_controller_sees_the_pods_of_its_own_namespace_only_and_holds_its_own_lease_only(guarded: Cluster) -> None:
    who = f"system:serviceaccount:{NAMESPACE}:virtnet-controller"
    assert not may(guarded, who, "list", "pods", "--namespace=default")
    lease = "leases.coordination.k8s.io"
    assert may(guarded, who, "update", f"{lease}/virtnet-controller", f"--namespace={NAMESPACE}")
    assert not may(guarded, who, "update", f"{lease}/another", f"--namespace={NAMESPACE}")
    assert may(guarded, who, "create", "events", "--namespace=default")


# --- the admission policy, with tokens as the API server makes them ------------------------------------------


def node(name: str) -> Object:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}


def pod(node_name: str) -> Object:
    container = {"name": "agent", "image": "none"}
    spec = {"nodeName": node_name, "serviceAccountName": "virtnet-agent", "containers": [container]}
    metadata = {"name": f"agent-{node_name}", "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def state(name: str, **metadata: object) -> Object:
    kind = {"apiVersion": "virtnet.dev/v1alpha1", "kind": "VirtioNetworkNodeState"}
    return {**kind, "metadata": {"name": name, **metadata}}


@pytest.fixture(scope="module")
def nodes(guarded: Cluster) -> Iterator[Cluster]:
    """Two nodes with an agent's pod each: names in the API server, enough to bind tokens to."""
    made = [node("one"), node("two"), pod("one"), pod("two")]
    wait_until("the account is there", lambda: bool(guarded.object("sa", "virtnet-agent", f"-n{NAMESPACE}")), 30)
    guarded.apply(*made)
    yield guarded
    guarded.kubectl("delete", "pods", "--all", f"--namespace={NAMESPACE}", "--force", "--grace-period=0")
    guarded.kubectl("delete", "nodes,virtionetworknodestates", "--all")


def kubeconfig(server: Cluster, *bound: str) -> Path:
    """A kubeconfig with nothing but a new token of the agents' account."""
    token = server.kubectl("create", "token", "virtnet-agent", f"--namespace={NAMESPACE}", *bound).strip()
    config = json.loads(Path(server.control.credentials.kubeconfig("admin")).read_text())
    config["users"][0]["user"] = {"token": token}
    path = server.home / "agent.kubeconfig"
    path.write_text(json.dumps(config))
    return path


def as_agent(server: Cluster, on: str, *words: str, text: str = "") -> str:
    config = kubeconfig(server, "--bound-object-kind=Pod", f"--bound-object-name=agent-{on}")
    return server.kubectl(f"--kubeconfig={config}", *words, text=text)


def applied(one: Object, *words: str) -> tuple[tuple[str, ...], str]:
    return ("apply", "--server-side", "--field-manager=virtnet-agent", "--filename=-", *words), json.dumps(one)


STATUS = {"status": {"agent": {"version": "0.1.0"}}}
REFUSAL = "The agent on node two may write the VirtioNetworkNodeState of that node only, not that of one"


def test_an_agent_makes_and_fills_the_state_of_its_own_node(nodes: Cluster) -> None:
    words, text = applied(state("one"))
    assert "serverside-applied" in as_agent(nodes, "one", *words, text=text)
    words, text = applied(state("one") | STATUS, "--subresource=status")
    assert "serverside-applied" in as_agent(nodes, "one", *words, text=text)
    assert nodes.object("vnns", "one")["status"]["agent"]["version"] == "0.1.0"


@pytest.mark.parametrize("exists", [False, True], ids=["create", "update"])
def test_an_agent_neither_makes_nor_changes_the_state_of_another_node(nodes: Cluster, exists: bool) -> None:
    nodes.delete(state("one"))
    if exists:
        nodes.apply(state("one"))
    words, text = applied(state("one", annotations={"a": "b"}), "--force-conflicts")
    with pytest.raises(CommandFailed, match=REFUSAL):
        as_agent(nodes, "two", *words, text=text)


def test_an_agent_does_not_fill_the_state_of_another_node(nodes: Cluster) -> None:
    nodes.apply(state("one"))
    words, text = applied(state("one") | STATUS, "--subresource=status")
    with pytest.raises(CommandFailed, match=REFUSAL):
        as_agent(nodes, "two", *words, text=text)


def test_a_token_that_is_bound_to_no_pod_writes_nothing(nodes: Cluster) -> None:
    nodes.apply(state("one"))
    words, text = applied(state("one", annotations={"a": "b"}), "--force-conflicts")
    with pytest.raises(CommandFailed, match="must be bound to a pod on a node"):
        nodes.kubectl(f"--kubeconfig={kubeconfig(nodes)}", *words, text=text)


def test_even_an_agent_that_was_given_more_rights_deletes_no_other_nodes_state(nodes: Cluster) -> None:
    """RBAC lets no agent delete; the admission policy holds also where somebody adds that."""
    role = {"name": "extra", "resource": "virtionetworknodestates.virtnet.dev"}
    nodes.kubectl("create", "clusterrole", role["name"], "--verb=delete", f"--resource={role['resource']}")
    nodes.kubectl("create", "clusterrolebinding", "extra", "--clusterrole=extra", f"--user={AGENT}")
    try:
        nodes.apply(state("one"))
        with pytest.raises(CommandFailed, match=REFUSAL):
            as_agent(nodes, "two", "delete", "vnns", "one")
        assert "deleted" in as_agent(nodes, "one", "delete", "vnns", "one")
    finally:
        nodes.kubectl("delete", "clusterrolebinding,clusterrole", "extra")


def test_others_are_not_held_by_the_policy_of_the_agents(nodes: Cluster) -> None:
    nodes.apply(state("two", annotations={"virtnet.dev/release": "true"}))
    assert nodes.object("vnns", "two")["metadata"]["annotations"] == {"virtnet.dev/release": "true"}
