"""The benchmarks run and give plausible rows; how fast anything was is never asserted."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.bench import page, place, runner
from tests.bench.figures import Fact, Figure, Report, Target, check_plausible, from_json, to_json

SECONDS = 110


@pytest.mark.parametrize("name", runner.ON_LINKS)
def test_a_benchmark_runs_and_every_figure_and_target_is_a_number(name: str) -> None:
    report = runner.measure(name, quick=True)
    assert report.targets
    check_plausible(report)


def test_an_unknown_benchmark_is_refused_by_name() -> None:
    words = [sys.executable, "-m", "tests.bench", "speed"]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=SECONDS, check=False, env=place.environment(), cwd=place.ROOT
    )
    assert done.returncode == 2
    assert "no such benchmark: speed" in done.stderr


REPORT = Report(
    "Repair",
    "How it was measured.",
    (
        Figure("ours", "ms", (1.0, 2.0, 3.0)),
        Figure("a | b", "ms", tuple(float(number) for number in range(1, 201)), beside="ours"),
    ),
    (Target("median", 2.0, 1.0, "ms"), Target("times faster", 12.0, 10.0, "×", at_least=True)),
    (Fact("lost", "0"),),
)


def test_the_page_holds_every_figure_target_and_fact_and_the_machine() -> None:
    text = page.render([REPORT], [Fact("Kernel", "Linux 6.18")])
    assert "| ours | 3 | 2.00 | 3.00 | 3.00 | ms |  |" in text
    assert "| a \\| b | 200 | 100 | 198 | 200 | ms | 50.2 |" in text
    assert "| median | 2.00 ms | ≤ 1 ms | MISSED |" in text
    assert "| times faster | 12.0 × | ≥ 10 × | yes |" in text
    assert "| lost | 0 |" in text
    assert "| Kernel | Linux 6.18 |" in text


def test_a_report_is_the_same_after_its_way_through_a_pipe() -> None:
    assert from_json(to_json(REPORT)) == REPORT


def test_a_process_that_a_benchmark_starts_dies_with_it() -> None:
    """Killed in the middle, it leaves neither processes nor, with them, its network namespace."""
    program = (
        "import os, signal, subprocess\n"
        "from tests.bench import place\n"
        "words = [*place.DIE_WITH_US, 'sh', '-c', 'echo ready; exec sleep 60']\n"
        "with place.process(words, stdout=subprocess.PIPE) as child:\n"
        "    assert child.stdout.readline()\n"
        "    print(child.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    words = [sys.executable, "-c", program]
    done = subprocess.run(
        words, stdout=subprocess.PIPE, text=True, timeout=SECONDS, check=False, env=place.environment()
    )
    place.wait_until(lambda: not _is_alive(int(done.stdout)), "the child to die", seconds=10)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
