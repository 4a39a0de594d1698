"""The control plane of a cluster: etcd, API server, controller manager and scheduler, in a sandbox of their own."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import addresses, assets, commands
from tests.cluster.credentials import Credentials
from tests.cluster.sandbox import Sandbox, wait_until

API = "kube-apiserver"

# No token of a service account and no body: who asked for what, and the answer's code.
AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "Metadata", "userGroups": ["system:serviceaccounts:virtnet-system"]},
        {"level": "Metadata", "resources": [{"group": "virtnet.dev"}]},
        {"level": "None"},
    ],
}
FORWARD = ("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.disable_ipv6=1")
NETWORK = f"""link set lo up
addr add {addresses.SERVICE}/32 dev lo
link add rack type bridge
link set rack address 02:89:00:00:00:01
addr add {addresses.RACK}/{addresses.PREFIX} dev rack
link set rack up
"""


@dataclass(frozen=True, slots=True)
class ControlPlane:
    sandbox: Sandbox
    credentials: Credentials

    @property
    def audit_log(self) -> Path:
        return self.sandbox.home / "audit.log"

    def start(self) -> None:
        """All of it, ready to be asked."""
        self.sandbox.start()
        self.sandbox.net(*FORWARD)
        self.sandbox.net("ip", "-batch", "-", text=NETWORK)
        self.sandbox.spawn("etcd", str(assets.path("etcd")), *_flags(self._etcd()))
        (self.sandbox.home / "audit.json").write_text(json.dumps(AUDIT))
        self.start_api()
        kubeconfigs = {name: self.credentials.kubeconfig(name) for name in ("manager", "scheduler")}
        self.sandbox.spawn(
            *("manager", str(assets.path("kube-controller-manager")), *_flags(self._manager(kubeconfigs["manager"])))
        )
        scheduler = _flags({"kubeconfig": kubeconfigs["scheduler"], "leader-elect": "false"})
        self.sandbox.spawn("scheduler", str(assets.path("kube-scheduler")), *scheduler)

    def start_api(self) -> None:
        """Start the API server and wait until it is ready."""
        self.sandbox.spawn(API, str(assets.path(API)), *_flags(self._api()))
        self.wait_ready()

    def stop_api(self) -> None:
        """From then on connections are refused. It would wait a minute for watches to end: it is killed."""
        self.sandbox.stop(API, 1)

    def freeze_api(self) -> None:
        """From then on connections are accepted by the kernel, and nobody answers."""
        self.sandbox.signal(API, signal.SIGSTOP)

    def resume_api(self) -> None:
        self.sandbox.signal(API, signal.SIGCONT)

    def wait_ready(self, seconds: float = 90) -> None:
        wait_until("the API server is ready", self._is_ready, seconds, 0.2)

    def _is_ready(self) -> bool:
        assert self.sandbox.pid(API) is not None, f"the API server has ended: {self.sandbox.tail(API)}"
        command = (
            "--kubeconfig",
            self.credentials.kubeconfig("admin"),
            "get",
            "--raw",
            "/readyz",
            "--request-timeout=2",
        )
        try:
            return self.sandbox.net(str(assets.path("kubectl")), *command, seconds=10) == "ok"
        except commands.CommandFailed:
            return False

    def _etcd(self) -> dict[str, str]:
        return {
            "data-dir": str(self.sandbox.home / "etcd"),
            "listen-client-urls": "http://127.0.0.1:2379",
            "advertise-client-urls": "http://127.0.0.1:2379",
            "listen-peer-urls": "http://127.0.0.1:2380",
            "unsafe-no-fsync": "true",
            "log-level": "warn",
        }

    def _api(self) -> dict[str, str]:
        file = self.credentials.file
        return {
            "etcd-servers": "http://127.0.0.1:2379",
            "secure-port": "443",
            "advertise-address": addresses.RACK,
            "service-cluster-ip-range": addresses.SERVICES,
            "authorization-mode": "Node,RBAC",
            "enable-admission-plugins": "NodeRestriction",
            "token-auth-file": file("tokens.csv"),
            "client-ca-file": file("ca.crt"),
            "tls-cert-file": file("server.crt"),
            "tls-private-key-file": file("server.key"),
            "kubelet-client-certificate": file("client.crt"),
            "kubelet-client-key": file("client.key"),
            "kubelet-preferred-address-types": "InternalIP",
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-signing-key-file": file("accounts.key"),
            "service-account-key-file": file("accounts.pub"),
            "allow-privileged": "true",
            "audit-policy-file": str(self.sandbox.home / "audit.json"),
            "audit-log-path": str(self.audit_log),
            "profiling": "false",
            "shutdown-delay-duration": "0s",
        }

    def _manager(self, kubeconfig: str) -> dict[str, str]:
        """A node counts as gone after 16 s instead of 50: stories about dead nodes shall not take minutes."""
        return {
            "kubeconfig": kubeconfig,
            "leader-elect": "false",
            "use-service-account-credentials": "true",
            "service-account-private-key-file": self.credentials.file("accounts.key"),
            "root-ca-file": self.credentials.file("ca.crt"),
            "node-monitor-grace-period": "16s",
            "node-monitor-period": "2s",
        }


def _flags(options: dict[str, str]) -> tuple[str, ...]:
    return tuple(f"--{name}={value}" for name, value in options.items())
