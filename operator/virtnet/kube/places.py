"""Places in a document and values from it, and how both are written in a sentence."""

from __future__ import annotations

Loc = tuple[str | int, ...]
"""Where in a document: field names and list indexes, as pydantic and YAML both speak of them."""


def path(loc: Loc) -> str:
    """The place as people write it: spec.tap.create[0].name."""
    text = ""
    for part in loc:
        name = part if isinstance(part, int) or _is_plain(part) else shown(part)
        text += f"[{name}]" if isinstance(part, int) else f".{name}" if text else str(name)
    return text


def shown(value: object) -> str:
    """A value in a sentence: short, on one line, and printable."""
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 40 else f"{text[:36]}...{text[-1]}"


def _is_plain(name: str) -> bool:
    return 0 < len(name) <= 80 and name.isprintable() and " " not in name
