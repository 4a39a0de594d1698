"""A cluster for whoever works on the project: `up`, `down`, and `load`, which gives it the images of the work tree.

`prepare` makes all that the tests take longest for, once: Kubernetes' programs and the images.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from tests.cluster import addresses, assets, cluster, images

ROOT = Path(__file__).parents[2]
HELP = """{name} is up, with {nodes} nodes, after {seconds:.0f} s.

    export PATH={home}/bin:$PATH       # its kubectl, helm and helm3, each in the network namespace of its control plane
    kubectl get nodes
    make cluster-load{suffix}                  # build the images from the work tree and give them to every node
    make cluster-down{suffix}

The kubeconfig of its administrator is {kubeconfig}; it holds within the control plane's network namespace only:
    nsenter --target $(cat {home}/control/init.pid) --net
A node is entered with
    nsenter --target $(cat {home}/node1/init.pid) --net --mount --pid
Logs of its processes are in {home}/*/log.
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.add_argument("action", choices=("up", "down", "load", "prepare"))
    parser.add_argument("--name", default="dev", help="of several clusters side by side (%(default)s)")
    parser.add_argument("--nodes", type=int, default=3, help=f"0..{addresses.MOST} (%(default)s)")
    options = parser.parse_args()
    if not 0 <= options.nodes <= addresses.MOST:
        parser.error(f"--nodes is 0..{addresses.MOST}")
    subprocess.run([ROOT / "scripts/need", *cluster.NEEDS], check=True)
    try:
        {"up": up, "down": down, "load": load, "prepare": prepare}[options.action](
            cluster.Cluster(options.name), options.nodes
        )
    except AssertionError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


def up(wanted: cluster.Cluster, nodes: int) -> None:
    began = time.monotonic()
    wanted.up(nodes)
    suffix = "" if wanted.name == "dev" else f" CLUSTER={wanted.name}"
    print(
        HELP.format(
            name=wanted.name, nodes=nodes, seconds=time.monotonic() - began, home=wanted.home, suffix=suffix,
            kubeconfig=wanted.control.credentials.kubeconfig("admin"),
        )
    )  # fmt: skip


def down(wanted: cluster.Cluster, nodes: int) -> None:
    wanted.down()


def load(wanted: cluster.Cluster, nodes: int) -> None:
    wanted.load(*images.TARGETS)


def prepare(wanted: cluster.Cluster, nodes: int) -> None:
    assets.ensure()
    for target in images.TARGETS:
        images.build(target)


if __name__ == "__main__":
    sys.exit(main())
