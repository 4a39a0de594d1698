"""Container images without a registry: a base made from Debian's packages, the Dockerfile's targets, a pause image.

Everything is kept as archives outside the work tree and made again only when what goes into it differs. The Dockerfile
knows nothing of this: that a build machine may see the world through a proxy with certificates of its own is told to
pip by what is mounted here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import ssl
import sys
import tempfile
from pathlib import Path

from tests.cluster import assets, commands
from tests.cluster.nodes import PAUSE_IMAGE

ROOT = Path(__file__).parents[2]
NEEDS = ("buildah:buildah", "debootstrap:debootstrap")

BASE = "docker.io/library/debian:bookworm-slim"
TARGETS = ("agent", "agent-libvirt", "controller")
CONTEXT = ("Dockerfile", ".dockerignore", "pyproject.toml", "README.md", "LICENSE", "requirements.txt", "operator")

# What the public slim image leaves out as well.
SLIM = (
    *("var/lib/apt/lists/*", "var/cache/apt/*", "var/log/*", "usr/share/doc/*", "usr/share/man/*"),
    *("usr/share/locale/*", "usr/share/info/*", "usr/share/lintian/*"),
)
SECONDS = 1200
MOST_STEPS = 150
KEPT = 4


def directory() -> Path:
    return assets.cache() / "images"


def name(target: str) -> str:
    """The name under which nodes know the image: containerd wants a registry's in front."""
    return f"virtnet.test/virtnet-{target}:test"


def pause() -> Path:
    """The archive of the image that holds a pod's namespaces."""
    archive = directory() / "pause.tar"
    program = assets.path("pause")
    with assets.locked(directory()):
        if not archive.exists() or archive.stat().st_mtime < program.stat().st_mtime:
            container = _buildah("from", "scratch").strip()
            _buildah("copy", container, str(program), "/pause")
            _buildah("config", "--entrypoint", '["/pause"]', container)
            _buildah("commit", "--rm", container, PAUSE_IMAGE)
            _save(PAUSE_IMAGE, archive)
    return archive


def build(target: str) -> Path:
    """The archive of one target of the Dockerfile, as the work tree is now."""
    archive = directory() / f"virtnet-{target}-{_fingerprint()}.tar"
    with assets.locked(directory()):
        if not archive.exists():
            _ensure_base()
            _forget_old_steps()
            print(f"building the image of the {target}", file=sys.stderr, flush=True)
            _bud(target)
            _save(name(target), archive)
            _forget_old_archives(target)
    return archive


def _bud(target: str) -> None:
    with tempfile.TemporaryDirectory() as extra:
        bundle = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().openssl_cafile
        configuration = Path(extra, "pip.conf")
        configuration.write_text("[global]\ncert = /run/build-certificates.crt\n")
        _buildah(
            *("bud", "--pull-never", "--layers", "--target", target, "--tag", name(target)),
            *("--volume", f"{Path(bundle).resolve()}:/run/build-certificates.crt:ro"),
            *("--volume", f"{configuration}:/etc/pip.conf:ro"),
            str(ROOT),
        )


def _forget_old_archives(target: str) -> None:
    """But for the newest ones: another cluster may be about to take one."""
    archives = sorted(directory().glob(f"virtnet-{target}-*.tar"), key=lambda path: path.stat().st_mtime)
    for old in archives[:-KEPT]:
        old.unlink()


def _forget_old_steps() -> None:
    """The store keeps every step of every build, so that the next one is quick: now and then it begins anew."""
    known = set(_buildah("images", "--all", "--quiet", "--no-trunc").split())
    if len(known) > MOST_STEPS:
        known -= {_buildah("images", "--quiet", "--no-trunc", BASE).strip()}
        _buildah("rmi", "--force", *known)


def _fingerprint() -> str:
    """Of everything that the Dockerfile can copy."""
    total = hashlib.sha256()
    for top in CONTEXT:
        path = ROOT / top
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                total.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return total.hexdigest()[:16]


def _ensure_base() -> None:
    """Debian's own slim image under its public name, made from the packages, as there is no registry to ask."""
    if BASE in _buildah("images", "--format", "{{.Name}}:{{.Tag}}").splitlines():
        return
    print("making the base image from Debian's packages", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=directory()) as root:
        commands.run("debootstrap", "--variant=minbase", "bookworm", root, seconds=SECONDS)
        for pattern in SLIM:
            for path in Path(root).glob(pattern):
                _remove(path)
        container = _buildah("from", "scratch").strip()
        _buildah("copy", container, root, "/")
        _buildah("config", "--cmd", '["bash"]', container)
        _buildah("commit", "--rm", container, BASE)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _save(image: str, archive: Path) -> None:
    partial = archive.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    _buildah("push", image, f"docker-archive:{partial}:{image}")
    partial.rename(archive)


def _buildah(*arguments: str) -> str:
    """In a store of our own, which no other user of buildah on this machine sees."""
    store = ("--root", str(directory() / "store"), "--runroot", str(directory() / "run"))
    env = {**os.environ, "STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot"}
    return commands.run("buildah", *store, *arguments, seconds=SECONDS, env=env)
