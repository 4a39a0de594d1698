"""Which virtio network models the QEMU of this machine offers; it starts no guest and asks no running one."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable

from virtnet import errors
from virtnet.values import frozen

TIMEOUT = 5.0
"""Seconds until a QEMU that does not answer is given up: it lists its models in some tenths of a second."""


@frozen
class Qemu:
    """A QEMU binary: its path, its version ("7.2.22", "" when it does not say) and its virtio network models."""

    path: str
    version: str
    models: tuple[str, ...]


def names(machine: str = platform.machine()) -> tuple[str, ...]:
    """Where QEMU is looked for, in order: upstream's name, the one of older Debian, the one of Red Hat."""
    return (f"qemu-system-{machine}", "qemu-kvm", "/usr/libexec/qemu-kvm")


def find(candidates: Iterable[str]) -> str | None:
    """The path of the first of these programs that is there."""
    return next((path for name in candidates if (path := shutil.which(name))), None)


def look(path: str | None = None) -> Qemu:
    """Ask a QEMU, by default the first that `names` finds. Raises `NotSupported` (there is none), `HostError`."""
    asked = names()
    path = path or find(asked)
    if path is None:
        raise errors.NotSupported(f"no QEMU is installed here (looked for {', '.join(asked)})")
    version = re.search(r"version (\S+)", _run(path, "--version"))
    return Qemu(path, version[1] if version else "", models_in(_run(path, "-nic", "model=help")))


def models_in(text: str) -> tuple[str, ...]:
    """The virtio models in the output of `-nic model=help`: one model a line, a description after white space."""
    words = (line.split()[0] for line in text.splitlines() if line.strip())
    return tuple(sorted(word for word in words if word.startswith("virtio-net")))


def _run(path: str, *arguments: str) -> str:
    """What QEMU prints; without a display, so that it looks for no screen."""
    command = [path, "-display", "none", *arguments]
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    try:
        done = subprocess.run(  # noqa: PLW1510  (the exit code is looked at below)
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=TIMEOUT, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise errors.Temporary(f"{path} did not answer within {TIMEOUT:g} seconds") from error
    except OSError as error:
        raise errors.NotPermitted(f"{path} cannot be run: {error.strerror}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise errors.Refused(f"{path} {' '.join(arguments)} failed: {said[-1] if said else f'exit {done.returncode}'}")
    return done.stdout.decode(errors="replace")
