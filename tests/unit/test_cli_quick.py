"""The quick way of `plan` and `apply` knows what the command-line library knows, and leaves the rest to it."""

from __future__ import annotations

import pytest
import typer.main

from tests.unit.test_cli import python
from virtnet.cli import policies, quick
from virtnet.cli.app import app
from virtnet.cli.terminal import Output


@pytest.mark.parametrize("name", ["plan", "apply"])
def test_both_ways_know_the_same_arguments(name: str) -> None:
    library = typer.main.get_command(app).commands[name].params  # type: ignore[attr-defined]
    quickly = quick.parser(name)._actions
    assert {parameter.name for parameter in library} == {action.dest for action in quickly}
    assert {option for parameter in library for option in parameter.opts if option.startswith("-")} == {
        option for action in quickly for option in action.option_strings
    }


@pytest.mark.parametrize("name", ["plan", "apply"])
def test_both_ways_have_the_same_defaults(name: str) -> None:
    given = vars(quick.parser(name).parse_args(["lan.yaml"]))
    library = typer.main.get_command(app).commands[name].params  # type: ignore[attr-defined]
    usual = {parameter.name: parameter.default for parameter in library}
    assert {**given, "files": None, "output": str(given["output"])} == {**usual, "files": None, "output": "table"}


def test_what_is_given_is_taken() -> None:
    words = "a.yaml - --netns blue -o json --state-dir /s --node-label a=b --node-label c=d --allow-mass-removal"
    given = quick.parser("apply").parse_args(words.split())
    assert (given.files, given.netns, given.output, str(given.state_dir)) == (
        ["a.yaml", "-"],
        "blue",
        Output.JSON,
        "/s",
    )
    assert (given.node_label, given.allow_mass_removal) == (["a=b", "c=d"], True)


@pytest.mark.parametrize(
    "words",
    ["apply", "apply --help", "plan -h", "apply a --net x", "apply a --nonsense", "plan a -o xml", "plan --netns"],
)
def test_help_and_everything_that_is_not_plain_is_for_the_library(words: str) -> None:
    assert quick.command(words.split(), policies.read) is None


def test_a_plain_apply_imports_no_command_line_library() -> None:
    program = (
        "import sys; from virtnet.__main__ import main; code = main(['plan', '/nowhere.yaml']);"
        "print(code, sorted({'typer', 'rich'} & set(sys.modules)))"
    )
    assert python(program).stdout == "1 []\n"


def test_a_bad_file_ends_it_with_its_error_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    from virtnet.__main__ import main

    assert main(["apply", "/nowhere.yaml"]) == 1
    assert "/nowhere.yaml" in capsys.readouterr().err
