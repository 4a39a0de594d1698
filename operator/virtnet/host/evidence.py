"""What the outside of a running QEMU proves: descriptors, threads and arguments; it never stops or traces a process.

The kernel's vhost workers come in two kinds: a kernel thread named vhost-PID before Linux 6.4 (and after it, where
fork_from_owner_default is off), else a task of the owner's own, found below /proc/PID/task.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from virtnet.core.model import Running
from virtnet.host import processes

LONGEST_FILE = 256 * 1024
"""Bytes of a -readconfig file that are read; such a file has a few hundred."""

WORKER = "vhost-"
_KTHREADD = 2


def look(netns: str | None = None) -> tuple[Running, ...]:
    """Every process that holds a tap of a network namespace (None: our own), as it looks from outside."""
    held = processes.taps_by_process(netns)
    kernel = _kernel_workers() if held else {}
    return tuple(_running(pid, taps, kernel.get(pid, ())) for pid, taps in held.items())


def _running(pid: int, taps: Mapping[int, str], kernel: Iterable[str]) -> Running:
    argv = _arguments(pid)
    return Running(
        processes.describe(pid),
        argv,
        taps,
        processes.vhost_descriptors(pid),
        (*_own_workers(pid), *kernel),
        dict(_files(pid, argv)),
    )


def _arguments(pid: int) -> tuple[str, ...]:
    with suppress(OSError):
        return tuple(Path(f"/proc/{pid}/cmdline").read_text(errors="replace").removesuffix("\0").split("\0"))
    return ()


def _files(pid: int, argv: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The -readconfig files, as the process itself would find them; one that is gone is left out."""
    for flag, path in itertools.pairwise(argv):
        if flag.lstrip("-") == "readconfig" and flag.startswith("-"):
            place = f"/proc/{pid}/root{path}" if path.startswith("/") else f"/proc/{pid}/cwd/{path}"
            with suppress(OSError), open(place, errors="replace") as file:
                yield path, file.read(LONGEST_FILE)


def _own_workers(pid: int) -> Iterator[str]:
    tasks: list[str] = []
    with suppress(OSError):
        tasks = os.listdir(f"/proc/{pid}/task")
    yield from (name for task in tasks if (name := _name(f"/proc/{pid}/task/{task}")).startswith(WORKER))


def _kernel_workers() -> dict[int, list[str]]:
    """Kernel threads named vhost-PID, by that PID; kthreadd is the parent of each of them."""
    found: dict[int, list[str]] = {}
    for pid in processes.pids():
        name = _name(f"/proc/{pid}")
        owner = name.removeprefix(WORKER)
        if name != owner and owner.isdigit() and _parent(pid) == _KTHREADD:
            found.setdefault(int(owner), []).append(name)
    return found


def _name(directory: str) -> str:
    with suppress(OSError):
        return Path(directory, "comm").read_text(errors="replace").rstrip("\n")
    return ""


def _parent(pid: int) -> int:
    """The fourth word of /proc/PID/stat, counted after the name, which may hold anything (proc(5))."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    return 0
