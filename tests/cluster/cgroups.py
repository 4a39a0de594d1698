"""The cgroup below which one node keeps its pods, in every hierarchy of the machine, version 1 or 2."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
NEEDED_V2 = "+cpu +cpuset +memory +pids"


def create(name: str) -> None:
    """Make it everywhere. Without one of its own a kubelet ends the pods of the others."""
    for hierarchy in _hierarchies():
        own = hierarchy / name
        own.mkdir(exist_ok=True)
        for file in ("cpuset.cpus", "cpuset.mems"):  # version 1 leaves them empty, and then nothing can be put in
            if (hierarchy / file).exists() and _is_v1(hierarchy):
                (own / file).write_text((hierarchy / file).read_text())
        if not _is_v1(hierarchy) and hierarchy == ROOT:
            (hierarchy / "cgroup.subtree_control").write_text(NEEDED_V2)
            (own / "cgroup.subtree_control").write_text(NEEDED_V2)


def remove(name: str) -> None:
    """Remove it everywhere, innermost first; the processes have ended, the kernel may still be at it for a moment."""
    for hierarchy in _hierarchies():
        own = hierarchy / name
        for directory in [*sorted(own.rglob("*/"), reverse=True), own]:
            _remove(directory)


def _remove(directory: Path) -> None:
    end = time.monotonic() + 10
    while directory.is_dir():
        with contextlib.suppress(OSError):
            directory.rmdir()
            return
        assert time.monotonic() < end, f"{directory} is still in use"
        time.sleep(0.05)


def _is_v1(hierarchy: Path) -> bool:
    return not (hierarchy / "cgroup.controllers").exists()


def _hierarchies() -> list[Path]:
    """Version 2 is mounted on the root itself; version 1 has a directory per controller, some of them links."""
    if not _is_v1(ROOT):
        return [ROOT]
    return [path for path in sorted(ROOT.iterdir()) if path.is_dir() and not path.is_symlink()]
