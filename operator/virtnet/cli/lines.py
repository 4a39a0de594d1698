"""Changes as lines of text for pipes and files: what `tables` draws there, without the table library.

Importing that and laying out two thousand rows takes a tenth of an apply on a thousand links, and there is no terminal
to lay them out for. What has to be measured because it is not ASCII, or cut in the middle of a word, is left to the
library.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from virtnet.cli.terminal import plain
from virtnet.core.model import Row, Value

NOTHING = "–"


def changes(heading: str, rows: Sequence[Row], width: int, *, policies: bool = False) -> str | None:
    """The block of `tables.show_changes`, "" without rows; None when only the library can draw it."""
    if not rows:
        return ""
    table = [_cells(row, policies) for row in rows]
    *widths, last = (max(map(len, column)) for column in zip(*table, strict=True))
    left = width - sum(widths) - 2 * (len(widths) + 1)
    if left < min(last, max(widths) + 2):
        return None
    wrapped = {sentence: _wrapped(sentence, left) for *_, sentence in table}
    form = "  " + "".join(f"{{:{cell}}}  " for cell in widths) + "{}"
    text = "\n".join([heading, *_lines(table, form, wrapped), "", ""])
    fits = all(len(line) <= left for parts in wrapped.values() for line in parts)
    return text if fits and text.replace("→", "").replace(NOTHING, "").isascii() else None


def _lines(table: Sequence[tuple[str, ...]], form: str, wrapped: dict[str, list[str]]) -> Iterator[str]:
    for *cells, sentence in table:
        first, *others = wrapped[sentence]
        yield form.format(*cells, first).rstrip()
        for line in others:
            yield form.format("", "", "", line)


def _wrapped(sentence: str, width: int) -> list[str]:
    """At blanks only, with what does not fit on a line of its own: too long for the caller."""
    if len(sentence) <= width or "  " in sentence:
        return [sentence]
    return textwrap.wrap(sentence, width, break_long_words=False, break_on_hyphens=False)


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
