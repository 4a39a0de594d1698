"""A Kubernetes cluster on one machine: a control plane and nodes, each in namespaces of its own; several side by side.

Nothing of it is seen outside: no link, no mount, no port. `down` ends whatever `up` began, also what a killed run left.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster import addresses, assets, cgroups, commands, images
from tests.cluster.control import ControlPlane
from tests.cluster.credentials import Credentials
from tests.cluster.nodes import Node
from tests.cluster.sandbox import Sandbox, wait_until

STATE = Path("/var/cache/virtnet-clusters")
"""Not below /var/lib: nodes have one of their own over it."""

NEEDS = (
    *("containerd:containerd", "runc:runc", "/usr/lib/cni/bridge:containernetworking-plugins", "ethtool:ethtool"),
    *("ip:iproute2", "sysctl:procps", "openssl:openssl", "unshare:util-linux", "mount:mount"),
    *assets.NEEDS,
    *images.NEEDS,
)

WRAPPER = """#!/bin/sh
# Made by tests/cluster. The API server is reached only from within the network namespace of the control plane.
set -eu
export {environment}
exec nsenter --target "$(cat {home}/control/init.pid)" --net -- {program} "$@"
"""

Object = Mapping[str, Any]
"""One object of the API, as JSON gives it."""


@dataclass(frozen=True, slots=True)
class Cluster:
    name: str

    def __post_init__(self) -> None:
        assert re.fullmatch(r"[a-z0-9-]{1,20}", self.name), f"{self.name!r}: up to 20 of a-z, 0-9 and -"

    @property
    def home(self) -> Path:
        return STATE / self.name

    @property
    def control(self) -> ControlPlane:
        return ControlPlane(Sandbox(self.home / "control"), Credentials(self.home / "credentials"))

    def node(self, number: int) -> Node:
        """Node `number`, from 1, there or not."""
        assert 1 <= number <= addresses.MOST
        return Node(number, self.name, Sandbox(self.home / f"node{number}"), self.control)

    @property
    def nodes(self) -> list[Node]:
        """The nodes that have been started, in order."""
        numbers = sorted(int(path.name.removeprefix("node")) for path in self.home.glob("node*"))
        return [self.node(number) for number in numbers]

    def up(self, nodes: int = 3) -> None:
        """Bring it up, its nodes Ready; what is left of an earlier one of this name ends first."""
        assets.ensure()
        pause = images.pause()
        self.down()
        self.home.mkdir(parents=True, mode=0o700)
        self._write_wrappers()
        self.control.credentials.make()
        self.control.start()
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda number: self.node(number).start(pause), range(1, nodes + 1)))
        for member in self.nodes:
            self.wait_ready(member)

    def down(self) -> None:
        """End it: processes, namespaces, cgroups, files. Nothing when it is not there."""
        for home in [*sorted(self.home.glob("node*")), self.home / "control"]:
            Sandbox(home).end()
        for member in self.nodes:
            cgroups.remove(member.cgroup)
        if self.home.exists():
            shutil.rmtree(self.home)

    def add_node(self, number: int) -> Node:
        """One more machine, with all images, Ready."""
        member = self.node(number)
        member.start(images.pause(), *(images.build(target) for target in images.TARGETS))
        self.wait_ready(member)
        return member

    def remove_node(self, member: Node) -> None:
        """The machine is pulled out of the rack for ever, and its Node deleted."""
        member.sandbox.end()
        cgroups.remove(member.cgroup)
        shutil.rmtree(member.sandbox.home)
        self.control.sandbox.net("ip", "route", "del", addresses.pods(member.number))
        self.kubectl("delete", "node", member.name)

    def wait_ready(self, member: Node) -> None:
        def is_ready() -> bool:
            assert member.sandbox.pid("kubelet") is not None, member.sandbox.tail("kubelet")
            nodes = self.objects("nodes")
            return any(n["metadata"]["name"] == member.name and condition(n, "Ready") == "True" for n in nodes)

        wait_until(f"{member.name} is Ready: {member.sandbox.log('kubelet')}", is_ready, 120, 0.3)

    def kubectl(self, *arguments: str, text: str = "", seconds: float = 60) -> str:
        """kubectl as the cluster's administrator; `text` is what `-f -` reads."""
        return self._tool("kubectl", *arguments, text=text, seconds=seconds)

    def helm(self, *arguments: str, version: int = 4, seconds: float = 240) -> str:
        return self._tool("helm" if version == 4 else "helm3", *arguments, text="", seconds=seconds)

    def _tool(self, program: str, *arguments: str, text: str, seconds: float) -> str:
        command = self.control.sandbox.enter(str(assets.path(program)), *arguments, namespaces="--net")
        return commands.run(*command, text=text, seconds=seconds, env=os.environ | self.environment())

    def environment(self) -> dict[str, str]:
        """kubectl caches by host and port, and all clusters have the same: each has a cache of its own."""
        helm = {f"HELM_{kind}_HOME": str(self.home / "helm" / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        kubeconfig = self.control.credentials.kubeconfig("admin")
        return {"KUBECONFIG": kubeconfig, "KUBECACHEDIR": str(self.home / "kubectl-cache"), **helm}

    def _write_wrappers(self) -> None:
        """bin/kubectl and bin/helm, for people."""
        environment = " ".join(f"{key}={value}" for key, value in self.environment().items())
        (self.home / "bin").mkdir()
        for name in ("kubectl", "helm", "helm3"):
            wrapper = self.home / "bin" / name
            wrapper.write_text(WRAPPER.format(environment=environment, home=self.home, program=assets.path(name)))
            wrapper.chmod(0o755)

    def load(self, *targets: str) -> None:
        """Build images from the work tree where they have changed, and give them to every node."""
        archives = [images.build(target) for target in targets]
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda member: [member.import_image(archive) for archive in archives], self.nodes))

    def apply(self, *objects: Object, manager: str = "tests") -> str:
        """Server-side apply of whole objects; what kubectl said."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        return self.kubectl(
            "apply", "--server-side", "--force-conflicts", f"--field-manager={manager}", "-f-", text=text
        )

    def delete(self, *objects: Object, wait: bool = True) -> str:
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        return self.kubectl("delete", "--ignore-not-found", f"--wait={str(wait).lower()}", "-f-", text=text)

    def objects(self, kind: str, *arguments: str) -> list[Any]:
        """All objects of a kind; `arguments` narrow them (`--namespace`, `--selector`)."""
        return list(json.loads(self.kubectl("get", kind, *arguments, "--output=json"))["items"])

    def object(self, kind: str, name: str, *arguments: str) -> Any:
        """One object; None when it is not there."""
        text = self.kubectl("get", kind, name, *arguments, "--ignore-not-found", "--output=json")
        return json.loads(text) if text else None

    def wait_for(self, what: str, resource: str, *arguments: str, seconds: float = 60) -> str:
        """`kubectl wait --for=WHAT`, as scripts and people use it."""
        return self.kubectl(
            "wait", f"--for={what}", f"--timeout={seconds}s", resource, *arguments, seconds=seconds + 15
        )


def condition(thing: Object, kind: str, field: str = "status") -> str:
    """A field of a condition; "" when there is none."""
    conditions = thing.get("status", {}).get("conditions", [])
    return next((str(found[field]) for found in conditions if found["type"] == kind), "")
