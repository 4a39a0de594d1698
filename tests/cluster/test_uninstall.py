"""The chart through its life, after all other stories: upgraded, rolled back, uninstalled, and the same with helm 3."""

from __future__ import annotations

import pytest

from tests.cluster.installation import NAMESPACE, RELEASE, Operator, uplink
from tests.cluster.test_nodes import unmoved

TSO = "tcp-segmentation-offload"


@pytest.mark.parametrize("version", [4, 3])
def test_the_chart_lives_and_dies_and_leaves_every_host_as_it_was(installed: Operator, version: int) -> None:
    cluster = installed.cluster
    if not installed.is_installed(version):
        installed.install(version=version)
    before = [node.picture() for node in cluster.nodes]
    installed.apply(uplink("lan", tso=False))
    installed.ready("lan")
    kept = [node.picture() for node in cluster.nodes]
    with unmoved(*cluster.nodes):
        installed.upgrade("--set=agent.updateStrategy.rollingUpdate.maxUnavailable=100%", version=version)
        installed.upgrade("--set=agent.podAnnotations.try=new", version=version)
        installed.wait_agents()
        cluster.helm("rollback", RELEASE, f"--namespace={NAMESPACE}", "--wait", version=version)
        installed.wait_agents()
        installed.ready("lan")
    assert [node.picture() for node in cluster.nodes] == kept
    cluster.helm("uninstall", RELEASE, f"--namespace={NAMESPACE}", "--wait", "--timeout=120s", version=version)
    assert [node.picture() for node in cluster.nodes] == before
    assert cluster.object("vnp", "lan") is not None
    assert cluster.objects("vnns") == []
    cluster.kubectl("delete", "vnp", "lan")


def test_nothing_but_the_definitions_outlives_an_uninstall(installed: Operator) -> None:
    found = installed.cluster.kubectl(
        "get", "clusterrole,clusterrolebinding,crd,validatingadmissionpolicy,daemonset,deployment,job,serviceaccount",
        "--all-namespaces", "--selector=app.kubernetes.io/name=virtio-network-operator", "--output=name",
    )  # fmt: skip
    assert {line.partition("/")[0] for line in found.splitlines()} <= {"customresourcedefinition.apiextensions.k8s.io"}
