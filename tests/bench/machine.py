"""What the figures were measured on: processor, memory, kernel, versions, the date, and what else was running."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from pathlib import Path

from tests.bench import place
from tests.bench.figures import Fact
from virtnet import __version__


def describe() -> tuple[Fact, ...]:
    """To be asked before the run: its own load is none of it."""
    load = os.getloadavg()
    return (
        Fact("Command", shlex.join(["python", "-m", "tests.bench", *sys.argv[1:]])),
        Fact("Date", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())),
        Fact("virtnet", __version__),
        Fact("Machine", f"{os.cpu_count()} × {_value('/proc/cpuinfo', 'model name')}, {_memory()} of memory"),
        Fact("Kernel", f"{platform.system()} {platform.release()} {platform.machine()}"),
        Fact("Python", platform.python_version()),
        Fact("ethtool", place.run("ethtool", "--version").split()[-1]),
        Fact("Load before the run", f"{load[0]:.2f} (1 min), {load[1]:.2f} (5 min)"),
    )


def _memory() -> str:
    return f"{int(_value('/proc/meminfo', 'MemTotal').split()[0]) / (1 << 20):.0f} GiB"


def _value(path: str, name: str) -> str:
    """The first `name: value` line of a file in /proc; "unknown" where this architecture has no such line."""
    lines = (line.partition(":") for line in Path(path).read_text().splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "unknown")
