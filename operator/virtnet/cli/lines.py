"""Changes as lines of text for pipes and files: what `tables` draws there, without the table library.

Importing that and laying out two thousand rows takes a tenth of an apply on a thousand links, and there is no terminal
to lay them out for. What has to be wrapped, or measured because it is not ASCII, is left to the library.
"""

from __future__ import annotations

from collections.abc import Sequence

from virtnet.cli.terminal import plain
from virtnet.core.model import Row, Value

NOTHING = "–"


def changes(heading: str, rows: Sequence[Row], width: int, *, policies: bool = False) -> str | None:
    """The block of `tables.show_changes`, "" without rows; None when only the library can draw it."""
    if not rows:
        return ""
    table = [_cells(row, policies) for row in rows]
    *widths, last = (max(map(len, column)) for column in zip(*table, strict=True))
    if 2 + sum(widths) + 2 * len(widths) + last > width:
        return None
    form = "  " + "".join(f"{{:{cell}}}  " for cell in widths) + "{}"
    lines = [form.format(*cells).rstrip() for cells in table]
    text = "\n".join([heading, *lines, "", ""])
    return text if text.replace("→", "").replace(NOTHING, "").isascii() else None


def _cells(row: Row, policies: bool) -> tuple[str, str, str, str]:
    whose = f" ({plain(row.policy)})" if policies and row.policy else ""
    values = f"{plain(value_word(row.actual))} → {plain(value_word(row.wanted))}"
    return plain(row.subject), plain(row.setting), values, plain(row.message) + whose


def value_word(value: Value | None) -> str:
    """A value as people read it; a setting that nobody asks for any more wants nothing."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return NOTHING if value is None else str(value)


def count(number: int, one: str, many: str = "") -> str:
    """A number with its noun: 1 change, 2 changes."""
    return f"{number} {one if number == 1 else many or one + 's'}"
