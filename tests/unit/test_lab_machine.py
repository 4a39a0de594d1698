"""What becomes of the lab's results when its virtual machine dies or hangs; shells stand in for the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.__main__ import outcome

LIVES = "echo 3 passed; echo {code} > exit-code"
DIES_FIRST = "if [ -e died ]; then {lives}; else touch died; echo 'soft lockup - CPU#0' > console.log; exit 9; fi"


def begin(directory: Path, script: str, seconds: float = 60) -> int:
    return outcome(["sh", "-c", f"cd {directory}; {script}"], directory, seconds)


@pytest.mark.parametrize("code", [0, 1])
def test_the_exit_code_of_the_tests_is_the_machines_and_no_failure_is_tried_again(
    code: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert begin(tmp_path, LIVES.format(code=code)) == code
    assert capfd.readouterr() == ("3 passed\n", "")


def test_a_machine_that_dies_is_begun_once_more_and_its_console_is_shown(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert begin(tmp_path, DIES_FIRST.format(lives=LIVES.format(code=0))) == 0
    out, err = capfd.readouterr()
    assert out == "3 passed\n"
    assert err.splitlines() == [
        "LAB: machine 1 of 2 ended by itself with 9 before its tests had; its console:",
        "  | soft lockup - CPU#0",
        "LAB: the machine was begun 2 times, see above why",
    ]


def test_a_second_death_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert begin(tmp_path, "exit 0") == 1
    assert capfd.readouterr().err.count("before its tests had; its console:\n  | (nothing)") == 2


def test_a_machine_that_hangs_is_ended_with_all_its_processes_when_time_is_over(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert begin(tmp_path, "sleep 1000 & sleep 1000", seconds=0.5) == 124
    assert "machine 1 of 2 was ended, as the time for everything is over" in capfd.readouterr().err
