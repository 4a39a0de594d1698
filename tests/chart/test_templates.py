"""What the chart makes of its values: what each pod may do, who may do what, and what is not made."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.chart import tools
from tests.chart.tools import CHART, EXAMPLES, ROOT, Helm

STATE = "/var/lib/virtnet"
TUN = "/dev/net/tun"
NODE_STATES = "virtnet.dev/virtionetworknodestates"
POLICIES = "virtnet.dev/virtionetworkpolicies"

READ = ("get", "list", "watch")
RIGHTS = [
    ("virtnet-agent", POLICIES, READ),
    ("virtnet-agent", "/nodes", READ),
    ("virtnet-agent", NODE_STATES, (*READ, "create", "patch")),
    ("virtnet-agent", f"{NODE_STATES}/status", ("patch",)),
    ("virtnet-controller", POLICIES, READ),
    ("virtnet-controller", f"{POLICIES}/status", ("patch",)),
    ("virtnet-controller", NODE_STATES, (*READ, "delete")),
    ("virtnet-controller", "/nodes", READ),
    ("virtnet-controller", "/pods", READ),
    ("virtnet-controller", "coordination.k8s.io/leases", ("create",)),
    ("virtnet-controller", "coordination.k8s.io/leases virtnet-controller", ("get", "update")),
    ("virtnet-controller-events", "/events", ("create", "patch")),
    ("virtnet-uninstall", NODE_STATES, ("get", "list", "patch", "delete")),
]

FEATURES = [
    ("tapCreate", [], {TUN: TUN}, False),
    ("ping", ["NET_RAW"], {}, False),
    (
        "module",
        ["SYS_MODULE"],
        {path: path for path in ("/lib/modules", "/etc/modprobe.d", "/etc/modules-load.d")},
        False,
    ),
    ("vhostUsers", ["SYS_PTRACE", "DAC_READ_SEARCH"], {}, True),
    ("libvirt", [], {"/run/libvirt": "/run/libvirt"}, False),
]


def switched(**features: bool) -> list[str]:
    return [f"--set=features.{name}={str(on).lower()}" for name, on in features.items()]


NONE = switched(**{name: False for name, *_ in FEATURES})


def test_the_chart_is_clean_for_the_strict_linter(helm: Helm) -> None:
    assert "0 chart(s) failed" in helm.run("lint", "--strict", str(CHART))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_of_values_is_clean_for_the_strict_linter(helm: Helm, example: Path) -> None:
    assert "0 chart(s) failed" in helm.run("lint", "--strict", str(CHART), "--values", str(example))


# --- what the agent may do on its node ---------------------------------------------------------------------


def test_without_features_the_agent_has_one_capability_and_its_state_directory(helm: Helm) -> None:
    agent = tools.one(helm.objects(*NONE), "DaemonSet")
    assert tools.container(agent)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
    }
    assert tools.mounts(agent) == {STATE: STATE}
    assert tools.pod(agent).get("hostPID") is None
    assert tools.pod(agent)["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


@pytest.mark.parametrize(("name", "capabilities", "mounts", "host_pid"), FEATURES)
def test_a_feature_gives_what_it_needs_and_nothing_else(
    helm: Helm, name: str, capabilities: list[str], mounts: dict[str, str], host_pid: bool
) -> None:
    agent = tools.one(helm.objects(*NONE, *switched(**{name: True})), "DaemonSet")
    assert tools.container(agent)["securityContext"]["capabilities"]["add"] == ["NET_ADMIN", *capabilities]
    assert tools.mounts(agent) == {STATE: STATE, **mounts}
    assert bool(tools.pod(agent).get("hostPID")) is host_pid


def test_what_makes_an_agent_root_on_its_node_is_off_by_default() -> None:
    assert tools.read(CHART / "values.yaml")["features"] == {
        "tapCreate": True,
        "ping": False,
        "module": False,
        "vhostUsers": False,
        "libvirt": False,
    }


def test_the_modules_of_the_host_are_never_writable(helm: Helm) -> None:
    agent = tools.one(helm.objects(*switched(module=True)), "DaemonSet")
    (found,) = [each for each in tools.container(agent)["volumeMounts"] if each["mountPath"] == "/lib/modules"]
    assert found["readOnly"] is True


def test_the_agent_lives_in_the_nodes_network_and_needs_no_cluster_dns(helm: Helm) -> None:
    found = tools.pod(tools.one(helm.objects(), "DaemonSet"))
    assert (found["hostNetwork"], found["dnsPolicy"]) == (True, "Default")
    assert found["priorityClassName"] == "system-node-critical"
    assert found["tolerations"] == [{"operator": "Exists"}]


def test_updates_reach_a_tenth_of_the_nodes_at_a_time(helm: Helm) -> None:
    strategy = tools.one(helm.objects(), "DaemonSet")["spec"]["updateStrategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}}


def test_an_agent_that_listens_on_one_address_is_probed_there(helm: Helm) -> None:
    def hosts(*words: str) -> set[str | None]:
        found = tools.container(tools.one(helm.objects(*words), "DaemonSet"))
        return {found[probe]["httpGet"].get("host") for probe in ("startupProbe", "livenessProbe", "readinessProbe")}

    assert hosts() == {None}
    assert hosts("--set=agent.listen.address=127.0.0.1") == {"127.0.0.1"}


# --- all pods ----------------------------------------------------------------------------------------------


def test_every_pod_has_a_short_lived_token_and_none_that_lasts(helm: Helm) -> None:
    objects = helm.objects()
    workloads = [each for each in objects if each["kind"] in ("DaemonSet", "Deployment", "Job")]
    assert len(workloads) == 3
    for workload in workloads:
        assert tools.pod(workload)["automountServiceAccountToken"] is False
        (token,) = [each for each in tools.pod(workload)["volumes"] if each["name"] == "token"]
        assert token["projected"]["sources"][0] == {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}}
    accounts = [each for each in objects if each["kind"] == "ServiceAccount"]
    assert [each["automountServiceAccountToken"] for each in accounts] == [False, False, False]


@pytest.mark.parametrize("kind", ["Deployment", "Job"])
def test_what_needs_no_node_runs_as_nobody_without_any_capability(helm: Helm, kind: str) -> None:
    workload = tools.one(helm.objects(), kind)
    assert tools.pod(workload)["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert tools.container(workload)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert tools.mounts(workload) == {}


@pytest.mark.parametrize("kind", ["DaemonSet", "Deployment", "Job"])
def test_the_api_server_can_be_named_for_every_pod(helm: Helm, kind: str) -> None:
    words = ("--set=apiServer.host=192.0.2.10", "--set=apiServer.port=6443")
    found = tools.container(tools.one(helm.objects(*words), kind))
    named = {each["name"]: each["value"] for each in found["env"] if "value" in each}
    assert named == {"KUBERNETES_SERVICE_HOST": "192.0.2.10", "KUBERNETES_SERVICE_PORT": "6443"}


def test_images_are_named_by_registry_repository_and_tag_or_digest(helm: Helm) -> None:
    def image(*words: str) -> str:
        return str(tools.container(tools.one(helm.objects(*words), "DaemonSet"))["image"])

    digest = f"sha256:{'0' * 64}"
    assert image() == f"virtnet-agent:{tools.read(CHART / 'Chart.yaml')['appVersion']}"
    assert image("--set=image.registry=r.example/a/", "--set=agent.image.tag=v7") == "r.example/a/virtnet-agent:v7"
    assert image(f"--set=agent.image.digest={digest}") == f"virtnet-agent@{digest}"


def test_only_who_follows_libvirt_has_the_image_with_its_library_and_is_told_of_it(helm: Helm) -> None:
    def agent(*words: str) -> tuple[str, bool]:
        found = tools.container(tools.one(helm.objects("--set=agent.image.tag=v7", *words), "DaemonSet"))
        return found["image"], "--libvirt-uri=qemu:///system" in found["args"]

    assert agent() == ("virtnet-agent:v7", False)
    assert agent(*switched(libvirt=True)) == ("virtnet-agent-libvirt:v7", True)
    renamed = "--set=agent.image.libvirtRepository=team/mine"
    assert agent(*switched(libvirt=True), renamed) == ("team/mine:v7", True)


def test_a_node_without_libvirt_has_an_agent_all_the_same(helm: Helm) -> None:
    agent = tools.one(helm.objects(*switched(libvirt=True), "--set=agent.libvirtDir=/var/run/libvirt"), "DaemonSet")
    (volume,) = [each for each in tools.pod(agent)["volumes"] if each["name"] == "libvirt"]
    assert volume["hostPath"] == {"path": "/var/run/libvirt", "type": "DirectoryOrCreate"}
    (mount,) = [each for each in tools.container(agent)["volumeMounts"] if each["name"] == "libvirt"]
    assert (mount["mountPath"], mount["readOnly"]) == ("/run/libvirt", True)


def test_a_new_version_of_the_chart_alone_restarts_no_pod(helm: Helm) -> None:
    for workload in (each for each in helm.objects() if each["kind"] in ("DaemonSet", "Deployment")):
        assert "helm.sh/chart" not in workload["spec"]["template"]["metadata"]["labels"]


# --- rights ------------------------------------------------------------------------------------------------


def test_everybody_has_exactly_the_rights_that_he_needs(helm: Helm) -> None:
    assert sorted(tools.rules(helm.objects())) == sorted(RIGHTS)


def test_no_right_is_given_by_a_star(helm: Helm) -> None:
    for _, resource, verbs in tools.rules(helm.objects()):
        assert "*" not in resource
        assert "*" not in verbs


def test_each_binding_joins_a_role_to_the_account_of_its_name(helm: Helm) -> None:
    bindings = [each for each in helm.objects() if each["kind"].endswith("RoleBinding")]
    joined = {(each["roleRef"]["name"], *(subject["name"] for subject in each["subjects"])) for each in bindings}
    assert joined == {
        ("virtnet-agent", "virtnet-agent"),
        ("virtnet-controller", "virtnet-controller"),
        ("virtnet-controller-events", "virtnet-controller"),
        ("virtnet-uninstall", "virtnet-uninstall"),
    }
    assert {subject["namespace"] for each in bindings for subject in each["subjects"]} == {"virtnet-system"}


def test_the_admission_policy_speaks_of_the_account_in_the_namespace_of_the_release(helm: Helm) -> None:
    policy = tools.one(helm.objects(namespace="elsewhere"), "ValidatingAdmissionPolicy")["spec"]
    assert policy["matchConditions"][0]["expression"].endswith('"system:serviceaccount:elsewhere:virtnet-agent"')
    assert policy["failurePolicy"] == "Fail"
    assert policy["matchConstraints"]["resourceRules"] == [
        {
            "apiGroups": ["virtnet.dev"],
            "apiVersions": ["v1alpha1"],
            "resources": ["virtionetworknodestates", "virtionetworknodestates/status"],
            "operations": ["CREATE", "UPDATE", "DELETE"],
        }
    ]


# --- definitions, uninstall, switches ----------------------------------------------------------------------


def test_the_definitions_are_those_of_the_models_and_outlive_the_chart(helm: Helm) -> None:
    made = {each["metadata"]["name"]: each for each in helm.objects() if each["kind"] == "CustomResourceDefinition"}
    assert len(made) == 2
    for name, found in made.items():
        assert found["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert found["metadata"].pop("labels")["app.kubernetes.io/managed-by"] == "Helm"
        assert found == yaml.safe_load((ROOT / "crds" / f"{name}.yaml").read_text())


def test_an_uninstall_releases_the_hosts_with_an_account_that_exists_only_then(helm: Helm) -> None:
    hooks = [each for each in helm.objects() if "helm.sh/hook" in each["metadata"].get("annotations", {})]
    assert {each["metadata"]["name"] for each in hooks} == {"virtnet-uninstall"}
    assert {each["metadata"]["annotations"]["helm.sh/hook"] for each in hooks} == {"pre-delete"}
    order = sorted((int(each["metadata"]["annotations"]["helm.sh/hook-weight"]), each["kind"]) for each in hooks)
    assert [kind for _, kind in order] == ["ClusterRole", "ServiceAccount", "ClusterRoleBinding", "Job"]


def test_the_job_of_an_uninstall_outlasts_what_it_waits_for_and_believes_its_answer(helm: Helm) -> None:
    job = tools.one(helm.objects("--set=uninstall.timeoutSeconds=100"), "Job")
    assert tools.container(job)["args"] == ["release-nodes", "--timeout=100"]
    assert job["spec"]["activeDeadlineSeconds"] == 130
    assert job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [1, 3]


@pytest.mark.parametrize(
    ("switch", "gone"),
    [
        ("crds.install", {"CustomResourceDefinition"}),
        ("uninstall.release", {"Job"}),
        ("admissionPolicy.enabled", {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}),
        ("networkPolicy.enabled", {"NetworkPolicy"}),
        ("controller.podDisruptionBudget.enabled", {"PodDisruptionBudget"}),
    ],
)
def test_what_is_switched_off_is_not_made(helm: Helm, switch: str, gone: set[str]) -> None:
    kinds = {each["kind"] for each in helm.objects()}
    assert kinds - {each["kind"] for each in helm.objects(f"--set={switch}=false")} == gone


def test_a_single_replica_has_no_disruption_budget_that_would_block_a_drain(helm: Helm) -> None:
    assert "PodDisruptionBudget" not in {each["kind"] for each in helm.objects("--set=controller.replicas=1")}


def test_the_network_policy_leaves_the_agents_alone_and_can_limit_both_ways(helm: Helm) -> None:
    hardened = str(CHART / "examples" / "hardened.yaml")
    policy = tools.one(helm.objects("--values", hardened), "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchExpressions"][0]["values"] == ["controller", "uninstall"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == [
        {"ports": [{"port": 6443, "protocol": "TCP"}], "to": [{"ipBlock": {"cidr": "192.0.2.10/32"}}]}
    ]


def test_every_object_says_whose_it_is(helm: Helm) -> None:
    on = ("podMonitor", "prometheusRule", "dashboard")
    for each in helm.objects(*(f"--set=metrics.{name}.enabled=true" for name in on)):
        assert each["metadata"]["labels"]["app.kubernetes.io/name"] == "virtio-network-operator"
        assert each["metadata"]["labels"]["app.kubernetes.io/instance"] == "virtnet"
