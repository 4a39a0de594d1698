"""The test bed itself: what the stories rely on is real, and goes without a trace."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import addresses, audit, nodes, pods
from tests.cluster.cluster import Cluster, condition
from tests.cluster.commands import CommandFailed
from tests.cluster.proxy import Mode, between
from tests.cluster.sandbox import wait_until

ROOT = Path(__file__).parents[2]
CRDS = ROOT / "crds"
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))

POLICY = {"apiVersion": "virtnet.dev/v1alpha1", "kind": "VirtioNetworkPolicy", "metadata": {"name": "bad"}}


@pytest.fixture(scope="module")
def crds(cluster: Cluster) -> Iterator[None]:
    """The kinds are there; they go again, as helm installs none that it has not made."""
    cluster.kubectl("apply", "--server-side", f"--filename={CRDS}")
    cluster.wait_for("condition=Established", "crd", "--all")
    yield
    cluster.kubectl("delete", f"--filename={CRDS}")


@pytest.fixture(scope="module")
def pod(cluster: Cluster) -> Iterator[str]:
    """A pod in the network of node1, with the agent's image and capabilities; its name."""
    wanted = pods.waiting("look", "node1", ["NET_ADMIN"])
    cluster.apply(wanted)
    cluster.wait_for("condition=Ready", "pod/look")
    yield "look"
    cluster.delete(wanted)


def test_three_nodes_are_ready(cluster: Cluster) -> None:
    found = {node["metadata"]["name"]: condition(node, "Ready") for node in cluster.objects("nodes")}
    assert found == {"node1": "True", "node2": "True", "node3": "True"}


def test_a_pod_in_the_host_network_sees_the_links_of_its_node_and_no_others(cluster: Cluster, pod: str) -> None:
    links = set(cluster.kubectl("exec", pod, "--", "ls", "/sys/class/net").split())
    assert {"lo", nodes.BRIDGE, nodes.UPLINK, *nodes.TAPS} <= links
    assert links == set(os.listdir(f"/proc/{cluster.node(1).sandbox.init}/root/sys/class/net"))


def test_a_pod_has_the_capabilities_that_it_was_given_and_writes_nowhere(cluster: Cluster, pod: str) -> None:
    status = cluster.kubectl("exec", pod, "--", "grep", "CapEff", "/proc/1/status")
    assert int(status.split()[1], 16) == 1 << 12  # CAP_NET_ADMIN
    with pytest.raises(CommandFailed, match="Read-only file system"):
        cluster.kubectl("exec", pod, "--", "touch", "/file")


def test_a_pod_with_a_network_of_its_own_reaches_the_api_server(cluster: Cluster) -> None:
    wanted = pods.waiting("apart", "node2", host_network=False)
    cluster.apply(wanted)
    cluster.wait_for("condition=Ready", "pod/apart")
    answer = cluster.kubectl("exec", "apart", "--", "python3", "-c", ASK)
    cluster.delete(wanted)
    assert answer.strip() == "403"  # its certificate is trusted, and nobody is nobody


ASK = """
import os, ssl, urllib.error, urllib.request
context = ssl.create_default_context(cafile="/var/run/secrets/kubernetes.io/serviceaccount/ca.crt")
try:
    urllib.request.urlopen(f"https://{os.environ['KUBERNETES_SERVICE_HOST']}/api", context=context, timeout=10)
except urllib.error.HTTPError as error:
    print(error.code)
"""


def test_a_kubelet_may_change_its_own_node_only(cluster: Cluster) -> None:
    assert "annotated" in as_kubelet(cluster, 1, "annotate", "--overwrite", "node", "node1", "own=1")
    with pytest.raises(CommandFailed, match="only its own Node object"):
        as_kubelet(cluster, 1, "annotate", "--overwrite", "node", "node2", "foreign=1")


def test_an_account_may_do_nothing_that_no_role_gives_it(cluster: Cluster) -> None:
    with pytest.raises(CommandFailed, match='cannot list resource "secrets"'):
        cluster.kubectl("get", "secrets", "--as=system:serviceaccount:default:default")


def test_a_token_that_is_bound_to_a_pod_carries_the_name_of_its_node(cluster: Cluster, pod: str) -> None:
    token = cluster.kubectl("create", "token", "default", "--bound-object-kind=Pod", f"--bound-object-name={pod}")
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token.strip()}}
    answer = json.loads(cluster.kubectl("create", "-f-", "--output=json", text=json.dumps(review)))
    assert answer["status"]["user"]["extra"]["authentication.kubernetes.io/node-name"] == ["node1"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_accepted(cluster: Cluster, crds: None, example: Path) -> None:
    assert "dry run" in cluster.kubectl("apply", "--dry-run=server", "--server-side", f"--filename={example}")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a guest's offload asked of the tap": ({"tap": {"offloads": {"tso": True}}}, "guest.nic.guest"),
    "vhost required and its module absent": (
        {"vhost": {"mode": "Required", "module": {"state": "Absent"}}},
        "Required",
    ),
    "tso without csum": ({"guest": {"nic": {"host": {"csum": False, "tso4": True}}}}, "csum"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_policy_is_refused_with_a_sentence(cluster: Cluster, crds: None, case: str) -> None:
    spec, sentence = REFUSED[case]
    with pytest.raises(CommandFailed, match=sentence):
        cluster.apply({**POLICY, "spec": spec})


def test_the_oracle_sees_what_is_set_on_a_node_and_nothing_elsewhere(cluster: Cluster) -> None:
    one, two = cluster.node(1), cluster.node(2)
    one.fix(nodes.SPARE, gro=True)
    two.fix(nodes.SPARE, gro=False)
    assert (one.feature(nodes.SPARE, GRO), two.feature(nodes.SPARE, GRO)) == (True, False)


GRO = "generic-receive-offload"


def test_an_api_server_that_stops_refuses_and_comes_back(cluster: Cluster) -> None:
    cluster.control.stop_api()
    with pytest.raises(CommandFailed, match="refused"):
        cluster.kubectl("get", "nodes", "--request-timeout=5s")
    cluster.control.start_api()
    assert len(cluster.objects("nodes")) == 3


def test_an_api_server_that_is_frozen_answers_nobody(cluster: Cluster) -> None:
    cluster.control.freeze_api()
    try:
        with pytest.raises(CommandFailed, match=r"imeout|deadline"):
            cluster.kubectl("get", "nodes", "--request-timeout=2s")
    finally:
        cluster.control.resume_api()
    assert len(cluster.objects("nodes")) == 3


@pytest.mark.parametrize(
    ("mode", "answer"),
    [(Mode.PASS, "403"), (Mode.HANG, "timed out"), (Mode.RESET, "reset"), (Mode.REFUSE, "refused")],
)
def test_the_proxy_of_a_node_fails_as_it_is_told(cluster: Cluster, mode: Mode, answer: str) -> None:
    with between(cluster.node(3)) as proxy:
        proxy.set(mode)
        assert answer in cluster.node(3).run("python3", "-c", PROBE)


PROBE = f"""
import ssl, urllib.request
context = ssl._create_unverified_context()
try:
    urllib.request.urlopen("https://{addresses.SERVICE}/api", context=context, timeout=2)
except OSError as error:
    print(error)
"""


def test_the_audit_log_says_who_asked_for_our_kinds(cluster: Cluster, crds: None) -> None:
    cluster.kubectl("get", "virtionetworkpolicies")
    asked = [request for request in audit.read(cluster.control.audit_log) if request.verb == "list"]
    assert any(r.user == "admin" and r.resource == "virtionetworkpolicies" and r.code == 200 for r in asked)


def as_kubelet(cluster: Cluster, number: int, *arguments: str) -> str:
    return cluster.kubectl("--kubeconfig", cluster.control.credentials.kubeconfig(f"node{number}"), *arguments)


def test_a_cluster_beside_it_goes_without_a_trace_also_after_it_was_killed_halfway(cluster: Cluster) -> None:
    before = traces()
    side = Cluster("side")
    command = (sys.executable, "-m", "tests.cluster", "up", "--name=side", "--nodes=1")
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as halfway:
        wait_until("its node is on its way", (side.home / "node1/init.pid").exists, 60, 0.01)
        halfway.kill()
    side.up(nodes=1)
    try:
        assert [node["metadata"]["name"] for node in side.objects("nodes")] == ["node1"]
        assert len(cluster.objects("nodes")) == 3
    finally:
        side.down()
    wait_until("every trace is gone", lambda: traces() == before, 5)


def traces() -> tuple[list[str], ...]:
    """What the cluster `side` can leave on the machine: processes, mounts, cgroups, links."""
    processes = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().decode().split("\0")
            processes += [" ".join(words)] if any("virtnet-clusters/side" in word for word in words) else []
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if "virtnet-clusters/side" in line]
    groups = sorted(str(path) for path in Path("/sys/fs/cgroup").glob("**/virtnet-side-*"))
    links = [link for link in os.listdir("/sys/class/net") if re.match(r"rack|node\d|uplink0|spare0", link)]
    return processes, mounts, groups, sorted(links)
