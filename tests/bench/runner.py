"""Gives each benchmark a process and an empty network namespace of its own, which end with it."""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Protocol

from tests.bench import figures, first_apply, guests, idle, look, place, repair, storm
from tests.bench.figures import Report

LONGEST_SECONDS = 300.0
PR_SET_PDEATHSIG = 1
MODULES = ("virtnet.__main__", "virtnet.cli.run", "virtnet.cli.site", "virtnet.cli.applying", "tests.bench.raw")


class Bench(Protocol):
    """Measures in the network namespace of its process; `directory` is empty, and its own."""

    def __call__(self, directory: Path, *, quick: bool = False) -> Report: ...


ON_LINKS: Mapping[str, Bench] = {
    "repair": repair.measure,
    "look": look.measure,
    "first-apply": first_apply.measure,
    "idle": idle.measure,
    "storm": storm.measure,
}
"""As root in a network namespace, as a plain user in a user namespace as well."""

BENCHES: Mapping[str, Bench] = {**ON_LINKS, "guests": guests.measure}
"""The last needs root, and a libvirtd that can be started."""


def measure(name: str, *, quick: bool = False) -> Report:
    """Run one benchmark in a network namespace."""
    unshare = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    words = [*unshare, sys.executable, "-m", "tests.bench", "--inside", name, *(["--quick"] if quick else [])]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=_warm_environment(), cwd=place.ROOT)
    try:
        output, _ = child.communicate(timeout=LONGEST_SECONDS)
    finally:
        child.kill()
        child.wait()
    if child.returncode:
        raise SystemExit(f"the benchmark {name} could not be run")
    return figures.from_json(output)


@cache
def _warm_environment() -> Mapping[str, str]:
    """With a directory for bytecode, filled by starting each program once; it goes when this process ends."""
    directory = tempfile.mkdtemp(prefix="virtnet-bytecode-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    environment = {**place.environment(), "PYTHONPYCACHEPREFIX": directory}
    for words in (["-c", f"import {', '.join(MODULES)}"], ["-m", "virtnet", "apply", "--help"]):
        subprocess.run(
            [sys.executable, *words],
            env=environment,
            cwd=place.ROOT,
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=120,
        )
    return environment


def inside(name: str, *, quick: bool) -> str:
    """Run in this process, which must be in a namespace of its own; the report as JSON."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with tempfile.TemporaryDirectory(prefix="virtnet-bench-") as directory:
        return figures.to_json(BENCHES[name](Path(directory), quick=quick))
