"""The programs of a Kubernetes cluster, built once from their Go modules and kept outside the work tree.

No package carries them. They are built as the tools of go.mod beside this file, into a directory named by go.sum, so a
second run builds nothing; ready ones are taken from the directory that VIRTNET_KUBE_ASSETS names.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
READY = "VIRTNET_KUBE_ASSETS"
"""Environment: a directory with ready programs; what it lacks is built."""

KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl")
HELM = {"helm": "helm.sh/helm/v4/cmd/helm@v4.3.1", "helm3": "helm.sh/helm/v3/cmd/helm@v3.22.0"}
NAMES = (*KUBERNETES, "etcd", *HELM, "pause")

NEEDS = ("go:golang-go",)
SECONDS = 3600
"""For one build: the API server takes five minutes on two processors, more where they are shared."""


def cache() -> Path:
    """Where this project keeps what is expensive to make."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "virtnet"


def path(name: str) -> Path:
    """A program that is there; `ensure` comes first."""
    given = Path(os.environ.get(READY, "/nonexistent")) / name
    return given if given.exists() else _directory() / name


def ensure() -> None:
    """Build what is missing. Several at once wait for the first one."""
    if all(path(name).exists() for name in NAMES):
        return
    with locked(_directory()):
        for name in NAMES:
            if not path(name).exists():
                print(f"building {name}; the first time takes minutes", file=sys.stderr, flush=True)
                _builder(name)(_directory() / name)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Alone among all processes that work on this directory, which is made when it is not there."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _directory() -> Path:
    key = hashlib.sha256((HERE / "go.sum").read_bytes() + "\n".join(HELM.values()).encode())
    return cache() / "kube" / key.hexdigest()[:16]


def _builder(name: str) -> Callable[[Path], None]:
    if name in KUBERNETES:
        return lambda target: _go_build(f"k8s.io/kubernetes/cmd/{name}", target, _version_flags())
    if name in HELM:
        return lambda target: _go_install(HELM[name], target)
    package = {"etcd": "go.etcd.io/etcd/server/v3", "pause": "./pause"}[name]
    return lambda target: _go_build(package, target, "")


def _version_flags() -> str:
    """Without them kubectl stumbles over its own version."""
    found = re.search(r"k8s.io/kubernetes (v(\d+)\.(\d+)\S+)", (HERE / "go.mod").read_text())
    assert found is not None, "go.mod requires k8s.io/kubernetes"
    values = {"gitVersion": found[1], "gitMajor": found[2], "gitMinor": found[3]}
    return " ".join(f"-X k8s.io/component-base/version.{key}={value}" for key, value in values.items())


def _go_build(package: str, target: Path, flags: str) -> None:
    """A build that is interrupted leaves no half program under the name."""
    partial = target.with_suffix(".partial")
    _go("build", "-trimpath", f"-ldflags=-s -w {flags}", "-o", str(partial), package)
    partial.rename(target)


def _go_install(package: str, target: Path) -> None:
    """For a module that is no requirement of ours: it may want other versions of the same things."""
    directory = target.with_suffix(".install")
    _go("install", "-trimpath", "-ldflags=-s -w", package, GOBIN=str(directory))
    (directory / "helm").rename(target)
    directory.rmdir()


def _go(*arguments: str, **environment: str) -> None:
    """Not statically linked they would not run in an image from scratch; niced, as others work on the machine too."""
    env = {**os.environ, "CGO_ENABLED": "0", **environment}
    subprocess.run(["nice", "-n", "10", "go", *arguments], cwd=HERE, check=True, timeout=SECONDS, env=env)
