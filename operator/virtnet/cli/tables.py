"""Rows of a plan or an outcome as a table for people; it draws, and leaves judging to the rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from virtnet.cli import lines
from virtnet.cli.terminal import plain
from virtnet.core import report
from virtnet.core.model import DONE, Row

HEADING = "bold"
QUIET = "dim"
PENDING = "cyan"
GOOD = "green"
SETTLED = "yellow"
BAD = "red"
NOTHING = lines.NOTHING

value_word = lines.value_word
count = lines.count

GLUE = "\ue000"
"""A blank at which no line is broken, until it is drawn: rich breaks at Unicode's own. Text of others never has it."""


def text(shown: object, style: str = "") -> Text:
    """Printable text; it never wraps in the middle of a word where it can wrap elsewhere."""
    return Text(plain(shown), style, overflow="fold")


def listed(parts: Iterable[str], style: str = "") -> Text:
    """`a, b, c` without the empty parts, broken only after a comma."""
    glued = (plain(part).replace(" ", GLUE) for part in parts if part)
    return Text(", ".join(glued), style, overflow="fold")


def grid(*styles: str, indent: int = 2) -> Table:
    """A table without lines, two blanks between its columns; the last column takes what is left and wraps."""
    table = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(width=max(indent - 2, 0))
    for style in styles[:-1]:
        table.add_column(style=style, overflow="fold")
    table.add_column(style=styles[-1], overflow="fold", ratio=1)
    return table


def draw(console: Console, table: Table) -> None:
    """Print a table without the blanks that fill its last column up: they would be in every copy of it."""
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        console.file.write(line.rstrip().replace(GLUE, " ") + "\n")


def lay_out(console: Console, rows: Sequence[Sequence[Text]]) -> None:
    """The lines that `draw` makes of a grid of these cells, for thousands of rows: a table takes a millisecond a row.

    Only the last column wraps here. Where the console is so narrow that others would have to, it is left to the table.
    """
    *widths, last = (max(cell.cell_len for cell in column) for column in zip(*rows, strict=True))
    left = console.width - sum(widths) - 2 * (len(widths) + 1)
    if left < min(last, max(widths, default=0) + 2):
        table = grid(*("" for _ in rows[0]))
        for row in rows:
            table.add_row("", *row)
        draw(console, table)
        return
    blank, wrapped = [Text(" " * width) for width in widths], dict[str, list[Text]]()
    for *cells, sentence in rows:
        if sentence.cell_len <= left:
            _write(console, widths, cells, sentence)
            continue
        if sentence.plain not in wrapped:
            wrapped[sentence.plain] = list(sentence.wrap(console, left))
        for number, line in enumerate(wrapped[sentence.plain]):
            _write(console, widths, blank if number else cells, line)


def _write(console: Console, widths: Sequence[int], cells: Sequence[Text], last: Text) -> None:
    """One line, every cell filled up to its column's width; text alone is joined at once where no style is shown."""
    gaps = [" " * (width - cell.cell_len + 2) for width, cell in zip(widths, cells, strict=True)]
    if console.color_system is None:
        line = "".join([cell.plain + gap for cell, gap in zip(cells, gaps, strict=True)])
        console.file.write(f"  {line}{last.plain}".rstrip() + "\n")
        return
    parts = [part for pair in zip(cells, gaps, strict=True) for part in pair]
    line_of_text = Text.assemble("  ", *parts, last)
    line_of_text.rstrip()
    console.print(line_of_text, soft_wrap=True)


def show_holds(console: Console, holds: Mapping[str, str]) -> None:
    """The first thing that is said wherever something is held: `holds` is until when, by link, "*" for the node."""
    for name, until in sorted(holds.items()):
        console.print(text(f"HELD  {report.hold(None if name == '*' else name, until)}", f"bold {SETTLED}"))
    if holds:
        console.print()


def show_changes(console: Console, heading: str, rows: Sequence[Row], *, policies: bool = False) -> None:
    """A headed table of changes, a line each; nothing when there are none. `policies`: also whose each is."""
    if not rows:
        return
    console.print(text(heading, HEADING))
    lay_out(console, [(text(row.subject), text(row.setting), _values(row), _sentence(row, policies)) for row in rows])
    console.print()


def show_reasons(console: Console, heading: str, rows: Sequence[Row], *, policies: bool = False) -> None:
    """As `show_changes`, for rows whose sentence says why: it has lines of its own."""
    if not rows:
        return
    console.print(text(heading, HEADING))
    settings = max(len(plain(row.setting)) for row in rows)
    values = max(_values(row).cell_len for row in rows)
    table = grid("", "")
    for row in rows:
        head = Text.assemble(f"{plain(row.setting):<{settings}}  ", _values(row), overflow="fold")
        head.append(" " * (settings + 2 + values - head.cell_len) + "  ")
        head.append(str(row.reason or "pending"), style_of(row))
        table.add_row("", text(row.subject), Group(head, _sentence(row, policies)))
    draw(console, table)
    console.print()


def style_of(row: Row) -> str:
    if row.reason is None:
        return PENDING
    if row.reason in DONE:
        return GOOD
    return BAD if report.failing(row) else SETTLED


def _values(row: Row) -> Text:
    """`actual → wanted`; a setting that nobody asks for any more wants nothing."""
    return Text.assemble(
        (plain(value_word(row.actual)), QUIET), (" → ", QUIET), (plain(value_word(row.wanted)), "bold"), overflow="fold"
    )


def _sentence(row: Row, policies: bool) -> Text:
    shown = text(row.message)
    if policies and row.policy:
        shown.append(f" ({plain(row.policy)})", QUIET)
    return shown
