"""What people read: rows, plans and outcomes as text of a hundred columns, without colour."""

from __future__ import annotations

import io
from textwrap import dedent

import pytest
from rich.console import Console
from rich.text import Text

from virtnet.cli import applying, planning, tables, terminal
from virtnet.core.model import HostState, Reason, Ref, Row, SetMtu, Setting, Step
from virtnet.core.plan import Plan
from virtnet.core.resolve import Desired
from virtnet.reconcile import Look, Outcome

TO_SET = Row("link/eno1", "uplink.offloads.gro", True, False, None, "turn rx-gro on", "lan")
FIXED = Row("link/eno1", "uplink.offloads.lro", True, False, Reason.FIXED, "lro is fixed off on eno1", "lan")
FAILED = Row("link/tap0", "tap.mtu", 9000, 1500, Reason.REFUSED, "the driver said no", "wan")
ABSENT = Row("link/br9", "bridge.name", "br9", None, Reason.MISSING, "bridge br9 does not exist", "lan")


def console(width: int = 100) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=width, markup=False, emoji=False, highlight=False), file


def plan_of(*rows: Row, blocked: tuple[Row, ...] = ()) -> Plan:
    steps = (Step(SetMtu(Ref("eno1", 2), 9000), ((Setting(2, "mtu"), 9000),), rows, "lan"),) if rows else ()
    return Plan(steps=steps, blocked=blocked)


def outcome_of(*rows: Row, applied: tuple[Row, ...] = ()) -> Outcome:
    look = Look(HostState({}, {}, ()), Desired({}, {}), Plan())
    return Outcome(look, look, rows, applied)


def shown(plan: Plan, *, width: int = 100, policies: bool = False, **holds: str) -> str:
    out, file = console(width)
    planning.show(out, plan, holds, policies=policies)
    return file.getvalue()


def test_a_plan_says_what_would_change_and_what_is_blocked_and_why() -> None:
    assert shown(plan_of(TO_SET, blocked=(FIXED, FAILED, ABSENT))) == dedent(
        """\
        WOULD CHANGE
          link/eno1  uplink.offloads.gro  off → on  turn rx-gro on

        BLOCKED
          link/br9   bridge.name          – → br9      Missing
                     bridge br9 does not exist
          link/tap0  tap.mtu              1500 → 9000  Refused
                     the driver said no
          link/eno1  uplink.offloads.lro  off → on     Fixed
                     lro is fixed off on eno1

        1 change pending, 3 blocked.
        """
    )


def test_a_plan_without_changes_says_so_in_one_line() -> None:
    assert shown(plan_of()) == "Nothing to change.\n"


def test_with_several_policies_every_sentence_names_its_own() -> None:
    text = shown(plan_of(TO_SET, blocked=(FAILED,)), policies=True)
    assert "turn rx-gro on (lan)\n" in text
    assert "the driver said no (wan)\n" in text


def test_a_hold_is_the_first_thing_that_a_table_says() -> None:
    out, file = console()
    planning.show(out, plan_of(TO_SET), {"*": "until 23:15:00", "eno1": "until 22:00:00"}, policies=False)
    assert file.getvalue().splitlines()[:3] == [
        "HELD  this whole node is held until 23:15:00: reported, not changed",
        "HELD  link eno1 is held until 22:00:00: reported, not changed",
        "",
    ]


@pytest.mark.parametrize("width", [80, 100, 200])
def test_a_table_keeps_to_its_width_and_loses_no_word(width: int) -> None:
    words = " ".join(f"tx-word{number}-segmentation" for number in range(12))
    long = Row("link/enp59s0f0np0", "uplink.offloads.gro", True, False, Reason.FAILED, words, "lan")
    text = shown(plan_of(long, blocked=(long,)), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("tx-word11-segmentation") == 2


def test_no_line_ends_in_blanks() -> None:
    text = shown(plan_of(TO_SET, blocked=(FIXED, FAILED)))
    assert [line for line in text.splitlines() if line != line.rstrip()] == []


def test_markup_and_escape_sequences_in_names_are_printed_and_not_obeyed() -> None:
    row = Row("link/[red]\x1b[2J", "mtu", 1, 2, Reason.FAILED, "held by \x1b]0;gotcha\x07[bold]sh", "lan")
    text = shown(plan_of(blocked=(row,)))
    assert "\x1b" not in text
    assert "link/[red]" in text
    assert "[bold]sh" in text


def test_an_outcome_says_what_was_changed_and_what_is_left() -> None:
    out, file = console()
    applied = Row("link/eno1", "uplink.offloads.gro", True, False, Reason.APPLIED, "turn rx-gro on", "lan")
    applying.show(out, outcome_of(FIXED, applied=(applied,)), {}, done="All as asked", policies=False)
    assert file.getvalue() == dedent(
        """\
        CHANGED
          link/eno1  uplink.offloads.gro  off → on  turn rx-gro on

        LEFT
          link/eno1  uplink.offloads.lro  off → on  Fixed
                     lro is fixed off on eno1

        1 change made, 1 left.
        """
    )


def test_an_outcome_with_nothing_left_says_that_all_is_as_asked() -> None:
    assert applying.summary(outcome_of(), "All as asked") == "All as asked; nothing was changed."
    assert applying.summary(outcome_of(applied=(TO_SET,)), "All as asked") == "All as asked; 1 change made."


@pytest.mark.parametrize(
    ("reason", "done"),
    [
        (Reason.FIXED, False),
        (Reason.HELD, False),
        (Reason.FAILED, False),
        (Reason.ROLLED_BACK, False),
        (Reason.AUDIT_ONLY, True),
        (Reason.OVERRIDDEN_BY, True),
    ],
)
def test_what_an_audit_or_a_lost_conflict_leaves_is_no_failure(reason: Reason, done: bool) -> None:
    assert applying.is_done(outcome_of(Row("link/eno1", "mtu", 1, 2, reason, "", "lan"))) is done


def test_a_change_that_failed_counts_even_when_nothing_is_left() -> None:
    look = Look(HostState({}, {}, ()), Desired({}, {}), Plan())
    failed = Outcome(look, look, (), failures={Setting(2, "mtu"): (Reason.FAILED, "no")})
    assert not applying.is_done(failed)
    assert not applying.is_done(Outcome(look, look, (), ledger_error="the disk is full"))


def test_programs_get_rows_and_no_reason_for_a_change() -> None:
    change, blocked = (planning.as_json(plan_of(TO_SET, blocked=(FIXED,)))[key] for key in ("changes", "blocked"))
    assert change == [
        {
            "subject": "link/eno1",
            "setting": "uplink.offloads.gro",
            "wanted": True,
            "actual": False,
            "reason": "",
            "message": "turn rx-gro on",
            "policy": "lan",
        }
    ]
    assert isinstance(blocked, list)
    assert blocked[0]["reason"] == "Fixed"


@pytest.mark.parametrize(
    ("value", "word"), [(True, "on"), (False, "off"), (None, "–"), (0, "0"), (1500, "1500"), ("br0", "br0")]
)
def test_values_are_shown_as_an_administrator_says_them(value: bool | int | str | None, word: str) -> None:
    assert tables.value_word(value) == word


@pytest.mark.parametrize(
    ("text", "plain"),
    [("eno1", "eno1"), ("a\nb", "a b"), ("a\x1b[1mb", "a�[1mb"), ("\udce9", "�"), ("é→", "é→"), (5, "5")],
)
def test_text_of_others_is_made_printable(text: object, plain: str) -> None:
    assert terminal.plain(text) == plain


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100])
def test_lines_laid_out_without_a_table_are_those_of_the_table(width: int) -> None:
    long = "turn tx-tcp-segmentation, tx-tcp-ecn-segmentation, tx-tcp6-segmentation off"
    rows = [
        tuple(map(tables.text, cells))
        for cells in (("link/eno1", "tso", "on → off", long), ("link/漢字", "gro", "off → on", "turn rx-gro on"))
    ]
    laid_out, lines = console(width)
    tables.lay_out(laid_out, rows)
    drawn, table_lines = console(width)
    table = tables.grid("", "", "", "")
    for row in rows:
        table.add_row("", *row)
    tables.draw(drawn, table)
    assert lines.getvalue() == table_lines.getvalue()


def test_lines_laid_out_on_a_terminal_keep_their_colours() -> None:
    file = io.StringIO()
    tables.lay_out(
        Console(file=file, width=100, color_system="standard", force_terminal=True), [(_bold("a"), _bold("b"))]
    )
    assert file.getvalue() == "  \x1b[1ma\x1b[0m  \x1b[1mb\x1b[0m\n"


def _bold(word: str) -> Text:
    return tables.text(word, "bold")
