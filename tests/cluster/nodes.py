"""One node of a cluster: a sandbox with its own containerd, kubelet, uplink, bridge and taps."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import addresses, assets, cgroups
from tests.cluster.control import FORWARD, ControlPlane
from tests.cluster.sandbox import Sandbox, wait_until

BRIDGE, UPLINK, TAPS = "br0", "uplink0", ("tap0", "tap1")
SPARE = "spare0"
"""A second link to the rack that is no port of anything."""
BRIDGE_OPTIONS = ("forward_delay", "ageing_time", "stp_state", "mcast_snooping", "vlan_filtering", "group_fwd_mask")
PAUSE_IMAGE = "virtnet.test/pause:1"

# What pods mount from a node must be the node's own: three agents on one machine would share one ledger otherwise. A
# fresh sysfs shows the links of this network namespace; it hides the cgroups, so they are bound back under it.
SETUP = """cd {home}
mount --bind var-lib /var/lib
mount --bind var-log /var/log
mount --bind modprobe.d /etc/modprobe.d
mount --bind modules-load.d /etc/modules-load.d
mount --rbind /sys/fs/cgroup cgroup
mount -t sysfs sysfs /sys
mount --rbind cgroup /sys/fs/cgroup
umount --lazy cgroup
mount -t tmpfs tmpfs /run
mount --make-rshared /
"""
DIRECTORIES = ("var-lib", "var-log", "modprobe.d", "modules-load.d", "cgroup", "cni")

CONTAINERD = """version = 2
root = "{home}/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
                    "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.aufs"]
[grpc]
address = "{home}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{snapshotter}"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{home}/cni"
"""

Picture = Mapping[tuple[str, str], object]


@dataclass(frozen=True, slots=True)
class Node:
    """`number` counts from 1; the name is node1, node2, …"""

    number: int
    cluster: str
    sandbox: Sandbox
    control: ControlPlane

    @property
    def name(self) -> str:
        return f"node{self.number}"

    @property
    def address(self) -> str:
        return addresses.node(self.number)

    @property
    def cgroup(self) -> str:
        return f"virtnet-{self.cluster}-{self.name}"

    def start(self, *archives: Path) -> None:
        """The machine, containerd with the images of these archives, the kubelet; Kubernetes may not see it yet."""
        home = self.sandbox.home
        for directory in DIRECTORIES:
            (home / directory).mkdir(parents=True)
        (home / "var-log/pods").mkdir()
        cgroups.create(self.cgroup)
        self.sandbox.start(SETUP.format(home=shlex.quote(str(home))))
        self.plug_in()
        self._write_files()
        self.start_containerd()
        for archive in archives:
            self.import_image(archive)
        self.start_kubelet()

    def plug_in(self) -> None:
        """The node's links: its address is on the bridge, and the uplink is a port of it."""
        self.sandbox.net(*FORWARD)
        self.sandbox.net("ip", "-batch", "-", text=self._links())
        rack = [f"{self.name}-{link}" for link in (UPLINK, SPARE)]
        self.control.sandbox.net(
            "ip", "-batch", "-",
            text="".join(f"link set {end} master rack\nlink set {end} up\n" for end in rack)
            + f"route add {addresses.pods(self.number)} via {self.address}\n",
        )  # fmt: skip

    def _links(self) -> str:
        peer = self.control.sandbox.init
        lines = ["link set lo up"]
        lines += [f"link add {link} type veth peer name {self.name}-{link} netns {peer}" for link in (UPLINK, SPARE)]
        lines += [f"link add {BRIDGE} type bridge", f"link set {BRIDGE} address 02:89:00:00:01:{self.number:02x}"]
        lines += [f"tuntap add {tap} mode tap" for tap in TAPS]
        lines += [f"link set {port} master {BRIDGE}" for port in (UPLINK, *TAPS)]
        lines += [f"link set {link} up" for link in (UPLINK, SPARE, *TAPS, BRIDGE)]
        lines += [f"addr add {self.address}/{addresses.PREFIX} dev {BRIDGE}"]
        lines += [f"route add default via {addresses.RACK}"]
        return "\n".join(lines) + "\n"

    def _write_files(self) -> None:
        home = self.sandbox.home
        config = CONTAINERD.format(home=home, pause=PAUSE_IMAGE, snapshotter=_snapshotter())
        (home / "containerd.toml").write_text(config)
        (home / "cni/10-pods.conflist").write_text(json.dumps(self._cni()))
        (home / "kubelet.json").write_text(json.dumps(self._kubelet()))

    def start_containerd(self) -> None:
        config = str(self.sandbox.home / "containerd.toml")
        self.sandbox.spawn("containerd", "containerd", "--config", config, "--log-level", "warn")
        wait_until(f"containerd of {self.name} answers", self._containerd_answers, 30)

    def _containerd_answers(self) -> bool:
        assert self.sandbox.pid("containerd") is not None, self.sandbox.tail("containerd")
        return (self.sandbox.home / "containerd.sock").exists()

    def start_kubelet(self) -> None:
        home = self.sandbox.home
        flags = {
            "config": home / "kubelet.json",
            "kubeconfig": self.control.credentials.kubeconfig(self.name),
            "hostname-override": self.name,
            "node-ip": self.address,
            "root-dir": home / "kubelet",
            "cert-dir": home / "kubelet-certificates",
        }
        command = (str(assets.path("kubelet")), *(f"--{name}={value}" for name, value in flags.items()))
        self.sandbox.spawn("kubelet", *command)

    def ctr(self, *arguments: str, seconds: float = 120) -> str:
        """containerd's own client, in the namespace of Kubernetes."""
        return self.sandbox.run(
            *("ctr", "--address", str(self.sandbox.home / "containerd.sock"), "--namespace", "k8s.io", *arguments),
            seconds=seconds,
        )

    def import_image(self, archive: Path) -> None:
        """Give containerd the image of a docker-archive; there is no registry."""
        self.ctr("images", "import", str(archive))

    def run(self, *command: str, text: str = "", seconds: float = 60) -> str:
        """Run a command of the machine in all namespaces of the node, as its administrator would."""
        return self.sandbox.run(*command, text=text, seconds=seconds)

    def feature(self, link: str, name: str) -> bool:
        """What ethtool says of one feature: the oracle of the stories."""
        features = json.loads(self.run("ethtool", "--json", "-k", link))[0]
        return bool(features[name]["active"])

    def fix(self, link: str, **features: bool) -> None:
        """What an administrator or another program sets behind the agent's back, by the names that ethtool takes."""
        words = [word for name, on in features.items() for word in (name, "on" if on else "off")]
        self.run("ethtool", "-K", link, *words)

    def picture(self) -> Picture:
        """All that the operator could have changed: of every link that is not a pod's, by name and property."""
        links = {link["ifname"]: link for link in json.loads(self.run("ip", "-json", "-details", "link", "show"))}
        names = sorted(name for name in links if name != "lo" and not name.startswith(("cni", "veth")))
        found: dict[tuple[str, str], object] = {}
        for name in names:
            found |= {(name, key): links[name].get(key) for key in ("mtu", "txqlen", "master")}
            data = links[name].get("linkinfo", {}).get("info_data", {})
            found |= {(name, key): data[key] for key in BRIDGE_OPTIONS if key in data}
            features = json.loads(self.run("ethtool", "--json", "-k", name))[0]
            found |= {(name, key): value["active"] for key, value in features.items() if key != "ifname"}
        return found

    def _cni(self) -> Mapping[str, object]:
        ranges = [[{"subnet": addresses.pods(self.number), "gateway": addresses.gateway(self.number)}]]
        ipam = {"type": "host-local", "ranges": ranges, "dataDir": str(self.sandbox.home / "cni-leases")}
        bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "isDefaultGateway": True, "ipam": ipam}
        return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge]}

    def _kubelet(self) -> Mapping[str, object]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {"x509": {"clientCAFile": self.control.credentials.file("ca.crt")}},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.cgroup}",
            "containerRuntimeEndpoint": f"unix://{self.sandbox.home}/containerd.sock",
            "enforceNodeAllocatable": [],
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "failCgroupV1": False,
            "failSwapOn": False,
            # There is no CAP_SYS_RESOURCE where a build machine is itself a container.
            "featureGates": {"KubeletInUserNamespace": True},
            "healthzPort": 0,
            "imageGCHighThresholdPercent": 100,
            "nodeLeaseDurationSeconds": 12,
            "nodeStatusUpdateFrequency": "4s",
            "resolvConf": "",
            "shutdownGracePeriod": "0s",
        }


def _snapshotter() -> str:
    """Overlayfs does not stack on itself: a build machine that is a container needs whole copies."""
    on_overlay = any(
        line.split()[2] == "overlay" and line.split()[1] == "/"
        for line in Path("/proc/mounts").read_text().splitlines()
    )
    return "native" if on_overlay else "overlayfs"
