"""Runs the benchmarks, prints what they found, and writes docs/performance.md after a full run of all of them.

    python -m tests.bench [--quick] [NAME…]

Each runs in a process and a network namespace of its own, as root or, but for that of guests, through a user namespace
as anybody. The exit code says whether they ran, never whether they were fast.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from tests.bench import machine, page, runner

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"


def main() -> int:
    arguments = _arguments()
    if arguments.inside:
        print(runner.inside(arguments.inside, quick=arguments.quick))
        return 0
    console, reports = Console(), []
    setting = machine.describe()
    for name in arguments.names or runner.BENCHES:
        console.print(f"[dim]{name} …")
        reports.append(runner.measure(name, quick=arguments.quick))
        page.show(console, reports[-1])
    if arguments.quick or arguments.names:
        console.print(f"[dim]{PAGE.name} is written by a full run of all benchmarks only")
    else:
        PAGE.write_text(page.render(reports, setting))
        console.print(f"written to {PAGE}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure what virtnet promises.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(runner.BENCHES)}; default: all")
    parser.add_argument("--quick", action="store_true", help="small counts: shows that they run, no figures to quote")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = set(arguments.names) - runner.BENCHES.keys()
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
