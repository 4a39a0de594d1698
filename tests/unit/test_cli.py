"""Arguments, errors and exit codes of the commands, as far as no host is needed; help is quick."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import virtnet
from virtnet.__main__ import main

SOURCES = Path(__file__).parents[2] / "operator"
COMMANDS = (
    *("inspect", "path", "plan", "apply", "run", "agent", "controller", "release-nodes", "release", "hold", "unhold"),
    *("domain-xml", "qemu-args", "crds", "version"),
)
TOUCHES_A_HOST = ("inspect", "path", "plan", "apply", "release", "hold", "unhold")
GOOD = """\
apiVersion: virtnet.dev/v1alpha1
kind: VirtioNetworkPolicy
metadata: {name: lan}
spec: {bridge: {name: br0}}
"""
BAD = """\
apiVersion: virtnet.dev/v1alpha1
kind: VirtioNetworkPolicy
metadata: {name: wan}
spec:
  priority: high
  bridge:
    nam: br0
"""


def python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment, check=False)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.partition("Commands:\n")[2].splitlines()] == list(COMMANDS)
    assert "..." not in shown.partition("Commands:\n")[2]


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Commands:" in capsys.readouterr().out


@pytest.mark.parametrize("command", TOUCHES_A_HOST)
def test_every_command_that_touches_the_host_says_where_it_looks(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert {"--netns", "--state-dir", "--output"} <= set(shown.replace(",", " ").split())


def test_the_version_is_shown_either_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"virtnet {virtnet.__version__}\n" * 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan"],
        ["plan", "--fast", "x.yaml"],
        ["plan", "-o", "xml", "x.yaml"],
        ["destroy"],
        ["hold", "--for", "soon"],
        ["hold", "--for", "90d"],
        ["hold", ""],
        ["unhold", "*"],
        ["plan", "/nonexistent/policy.yaml"],
        ["inspect", "--node-label", "zone"],
        ["inspect", "--policies", "/nonexistent"],
    ],
)
def test_a_mistake_of_the_user_is_one_line_and_exit_code_1(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1


def test_every_fault_of_every_file_is_said_with_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad, worse = tmp_path / "good.yaml", tmp_path / "bad.yaml", tmp_path / "worse.yaml"
    good.write_text(GOOD)
    bad.write_text(BAD)
    worse.write_bytes(b"\0\1\2")
    assert main(["apply", str(good), str(bad), str(worse)]) == 1
    out, err = capsys.readouterr()
    places = [line.split(": ")[:2] for line in err.splitlines()]
    assert [f"{bad}:5", "spec.priority"] in places
    assert [f"{bad}:7", "spec.bridge.nam"] in places
    assert any(place[0] == str(worse) for place in places)
    assert out == ""


def test_the_definitions_are_written_or_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crds", "--output", str(tmp_path / "new" / "crds")]) == 0
    files = sorted((tmp_path / "new" / "crds").iterdir())
    assert [file.name for file in files] == [
        "virtionetworknodestates.virtnet.dev.yaml",
        "virtionetworkpolicies.virtnet.dev.yaml",
    ]
    assert capsys.readouterr().out == ""
    assert main(["crds"]) == 0
    assert capsys.readouterr().out.count("kind: CustomResourceDefinition\n") == 2


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["crds", "--output", str(tmp_path / "file")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_help_needs_neither_tables_nor_models_nor_the_engine() -> None:
    program = "import sys; from virtnet.__main__ import main; main(['--help']); print(*sys.modules)"
    loaded = python(program).stdout.splitlines()[-1].split()
    heavy = {"rich", "pydantic", "yaml", "kopf", "kubernetes", "pyroute2", "prometheus_client", "virtnet.engine"}
    assert heavy & set(loaded) == set()


def test_run_comes_near_neither_the_command_line_nor_the_table_library() -> None:
    program = (
        "import sys; from virtnet.__main__ import main\n"
        "try: main(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "print(*sys.modules)"
    )
    done = python(program)
    assert "--policies" in done.stdout
    assert {"typer", "rich", "click"} & set(done.stdout.splitlines()[-1].split()) == set()


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["crds", "version", "--help"])
def test_a_reader_that_leaves_early_gets_silence_and_the_code_of_a_broken_pipe(command: str, unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "PYTHONUNBUFFERED": unbuffered}
    arguments = [sys.executable, "-m", "virtnet", *command.split()]
    with open(writing, "wb") as gone:
        done = subprocess.run(
            arguments, stdout=gone, stderr=subprocess.PIPE, text=True, timeout=30, env=environment, check=False
        )
    assert (done.stderr, done.returncode) == ("", 128 + signal.SIGPIPE)


def test_a_terminal_without_the_characters_gets_question_marks() -> None:
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "virtnet", "plan", "/nonexistent/→"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("/nonexistent/?")


def test_an_interrupt_of_a_command_that_only_looks_is_exit_code_130_and_silent(tmp_path: Path) -> None:
    fifo = tmp_path / "policy"
    os.mkfifo(fifo)
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "virtnet", "plan", str(fifo)]
    child = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)
    with child, fifo.open("wb"):  # opens when the command has opened it too, and waits for what will be written
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=10)
    assert (child.returncode, out, err) == (130, "", "")


WORK = """
import asyncio, sys
from virtnet.cli import interrupts

async def work():
    try:
        print('working', flush=True)
        await asyncio.sleep(20)
    finally:
        await asyncio.sleep(0.3)
        print('undone', flush=True)

try:
    interrupts.run(work())
except interrupts.Interrupted as interrupted:
    sys.exit(interrupted.code)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_work_undo_itself_and_a_second_one_does_not_cut_that_short(number: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", WORK], stdout=pipe, stderr=pipe, text=True, env=environment) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "working\n"
        child.send_signal(number)
        time.sleep(0.1)
        child.send_signal(number)
        out, err = child.communicate(timeout=10)
    assert out == "undone\n"
    assert child.returncode == 128 + number
    assert err == "stopping; a change that is not confirmed yet is rolled back first\n"
