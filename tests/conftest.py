"""What holds for every test (a skip must be allowed, random examples are the same on every run unless asked), and a
state directory."""

from __future__ import annotations

import fnmatch
import os
import signal
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from virtnet.host.state import StateDir

# A deadline per example would measure the machine's other work. Derandomized: a red run is red again when repeated.
settings.register_profile("default", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "fuzz", deadline=None, max_examples=5000, print_blob=True, suppress_health_check=list(HealthCheck)
)
settings.load_profile("default")

# A shell's background job ignores interrupts, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

ALLOWED = "VIRTNET_ALLOW_SKIPS"
"""Environment: shell patterns of the reasons for which a test may be skipped, separated by semicolons."""


def is_allowed(reason: str) -> bool:
    patterns = os.environ.get(ALLOWED, "").split(";")
    return any(fnmatch.fnmatchcase(reason, pattern.strip()) for pattern in patterns)


def refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip whose reason is not allowed into a failure that says so."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    # pytest's own shape of a skip: (path, line, "Skipped: reason")
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not is_allowed(reason):
        report.outcome = "failed"
        report.longrepr = f"skipped: {reason}\nA skip counts as a failure; {ALLOWED}='{reason}' allows this one."


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    """A state directory that is there, and empty."""
    made = StateDir(tmp_path / "state")
    made.prepare()
    return made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    refuse_skip(report)
    return report
