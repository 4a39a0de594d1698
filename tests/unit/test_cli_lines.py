"""Changes in a pipe are what the table library would have drawn there, letter by letter, or are left to it."""

from __future__ import annotations

import io
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from virtnet.cli import lines, tables
from virtnet.core.model import Row

WORDS = st.text(string.ascii_letters + string.digits + " ./-[]\\:\x1b\t", min_size=1, max_size=12)
VALUES = st.one_of(st.none(), st.booleans(), st.integers(0, 9999), WORDS)
SENTENCES = st.lists(WORDS, max_size=12).map(" ".join)
ROWS = st.builds(Row, WORDS, WORDS, VALUES, VALUES, st.none(), SENTENCES, st.sampled_from(["", "lan"]))


def drawn(rows: list[Row], width: int, *, policies: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, markup=False, emoji=False, highlight=False)
    tables.show_changes(console, "CHANGED", rows, policies=policies)
    return file.getvalue()


@given(st.lists(ROWS, max_size=5), st.sampled_from([60, 80, 100, 140]), st.booleans())
def test_lines_are_what_the_library_draws(rows: list[Row], width: int, policies: bool) -> None:
    text = lines.changes("CHANGED", rows, width, policies=policies)
    assert text is None or text == drawn(rows, width, policies=policies)


def row(message: str = "turn rx-gro on", subject: str = "link/eno1") -> Row:
    return Row(subject, "uplink.offloads.gro", True, False, None, message, "lan")


def test_a_usual_change_is_a_line() -> None:
    assert lines.changes("CHANGED", [row()], 100, policies=True) == (
        "CHANGED\n  link/eno1  uplink.offloads.gro  off → on  turn rx-gro on (lan)\n\n"
    )


def test_a_long_sentence_goes_on_below_itself() -> None:
    text = lines.changes("CHANGED", [row(message="turn off " + ", ".join(["rx-gro"] * 9))], 80)
    assert text is not None
    assert text.splitlines()[2:] == [" " * 44 + "rx-gro, rx-gro, rx-gro, rx-gro,", " " * 44 + "rx-gro, rx-gro", ""]


@pytest.mark.parametrize("rows", [[row("word" * 30)], [row(subject="link/münchen")], [row(), row("日本")]])
def test_what_must_be_wrapped_or_measured_is_left_to_the_library(rows: list[Row]) -> None:
    assert lines.changes("CHANGED", rows, 100) is None


def test_without_changes_there_is_nothing_to_say() -> None:
    assert lines.changes("CHANGED", [], 100) == ""
