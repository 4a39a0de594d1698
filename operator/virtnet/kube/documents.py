"""Reads YAML and JSON text into plain values and remembers the line of every field; it never guesses.

It takes less than YAML allows: no tags, no aliases of maps and lists, no key twice, no nesting over 64, and nothing
that YAML 1.1 and 1.2 readers understand differently: kubectl, PyYAML and editors disagree exactly there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from virtnet.errors import PolicyError
from virtnet.kube.places import Loc, path, shown
from virtnet.values import frozen

DEEPEST = 64
TOO_DEEP = f"maps and lists are nested over {DEEPEST} deep"
TOO_DEEP_FOR_LIBYAML = "exceeded maximum nesting depth"
"""What libyaml says since 0.2.6 of 1000 opening brackets in a row, before it tells of the first."""
MOST_VALUES = 50_000
"""Names and values in a file; people write a tenth of that. It bounds how long a reader can be held up."""
LONGEST_NUMBER = 20
"""Characters of the longest whole number that is read: a 64-bit one has no more."""

LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_TRUTHS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_OLD_TRUTHS = {
    spelling: truth
    for word, truth in {"y": True, "yes": True, "on": True, "n": False, "no": False, "off": False}.items()
    for spelling in (word, word.upper(), word.capitalize())
}
_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+", re.ASCII)
_OLD_NUMBER = re.compile(
    r"""[-+]?0[0-9_]+                                    # 010 is eight or ten, 08 a text or eight
    |   [-+]?0[bo][0-9_]+ | [-+]0x[0-9a-fA-F_]+ | 0x[0-9a-fA-F_]*_[0-9a-fA-F_]*
    |   [-+]?[0-9][0-9_]*_[0-9_]* (\.[0-9_]*)?           # 1_000
    |   [-+]?[1-9][0-9_]* (:[0-5]?[0-9])+ (\.[0-9_]*)?   # 1:30 is ninety or a text; so are many MAC addresses
    """,
    re.ASCII | re.VERBOSE,
)
_FRACTION = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", re.ASCII
)


@frozen
class Document:
    """One document as dicts, lists and scalars; the 1-based line of each field, and the places that have an error."""

    value: Any
    lines: Mapping[Loc, int]
    faulty: frozenset[Loc]

    def line(self, loc: Loc) -> int:
        """The line of a field, or of the nearest one around it that is there."""
        while loc not in self.lines:
            loc = loc[:-1]
        return self.lines[loc]


def parse(text: str, file: str, loader: type[Any] = LOADER) -> tuple[list[Document], list[PolicyError]]:
    """All documents before the first syntax error, and all that is wrong with them."""
    documents: list[Document] = []
    errors: list[PolicyError] = []
    try:
        for event in (events := _bounded(yaml.parse(text, Loader=loader), file)):
            if isinstance(event, yaml.DocumentStartEvent):
                documents.append(_Reader(events, file, errors).document())
    except PolicyError as error:
        errors.append(error)
    except yaml.MarkedYAMLError as error:
        line = min(_line_of(error.problem_mark), max(1, len(text.splitlines())))  # it may point behind the end
        deep = error.problem == TOO_DEEP_FOR_LIBYAML
        says = TOO_DEEP if deep else f"this is not YAML: {error.problem}"
        errors.append(PolicyError(says, file=file, line=line))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        errors.append(PolicyError("a control character stands here: take it out", file=file, line=line))
    except OverflowError:  # PyYAML's own scanner at "\UFFFFFFFF"; libyaml says it properly
        errors.append(PolicyError("this is not YAML: an escape code that is no character", file=file))
    return documents, errors


def _bounded(events: Iterator[Any], file: str) -> Iterator[Any]:
    for number, event in enumerate(events):
        if number > MOST_VALUES:
            says = f"there are more than {MOST_VALUES} names and values in it: split it"
            raise PolicyError(says, file=file, line=_line_of(event.start_mark))
        yield event


def _line_of(mark: Any) -> int:
    return mark.line + 1 if mark else 0


class _Reader:
    """Builds the value of one document from its events. Errors are gathered; only too deep nesting ends it."""

    def __init__(self, events: Iterator[Any], file: str, errors: list[PolicyError]) -> None:
        self.events, self.file, self.errors = events, file, errors
        self.lines: dict[Loc, int] = {}
        self.faulty: set[Loc] = set()
        self.scalars: dict[str | None, Any] = {}
        self.collections: set[str | None] = set()

    def document(self) -> Document:
        value = self.value(next(self.events), ())
        return Document(value, self.lines, frozenset(self.faulty))

    def value(self, event: Any, loc: Loc) -> Any:
        self.lines.setdefault(loc, _line_of(event.start_mark))
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, loc)
        if event.tag is not None:
            self.refuse(event, loc, f"write the value without the YAML tag {shown(event.tag)}")
        if isinstance(event, yaml.ScalarEvent):
            value = self.scalar(event, loc)
            self.scalars[event.anchor] = value
            return value
        return self.collection(event, loc)

    def collection(self, event: Any, loc: Loc) -> Any:
        if len(loc) >= DEEPEST:
            raise PolicyError(f"{TOO_DEEP} here", file=self.file, line=_line_of(event.start_mark))
        self.collections.add(event.anchor)
        return self.mapping(loc) if isinstance(event, yaml.MappingStartEvent) else self.sequence(loc)

    def mapping(self, loc: Loc) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self.key(event, loc)
            here = (*loc, key)
            if key in found:
                first = self.lines[here]
                self.refuse(event, here, f"{shown(key)} is already on line {first}: write it once")
                _Reader(self.events, self.file, []).value(next(self.events), here)
            else:
                self.lines[here] = _line_of(event.start_mark)
                found[key] = self.value(next(self.events), here)
        return found

    def key(self, event: Any, loc: Loc) -> str:
        text = event.value if isinstance(event, yaml.ScalarEvent) else "?"
        here = (*loc, text)
        key = self.value(event, here)
        if isinstance(key, str):
            return key
        if here not in self.faulty:
            self.refuse(event, here, f"write the name {shown(key)} in quotes, as a text")
        return str(text)

    def sequence(self, loc: Loc) -> list[Any]:
        found: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            found.append(self.value(event, (*loc, len(found))))
        return found

    def alias(self, event: Any, loc: Loc) -> Any:
        if event.anchor in self.scalars:
            return self.scalars[event.anchor]
        known = event.anchor in self.collections
        says = "write the fields out instead of the alias" if known else "there is no anchor for the alias"
        self.refuse(event, loc, f"{says} *{event.anchor}")
        return None

    def scalar(self, event: Any, loc: Loc) -> Any:
        text = event.value
        if any("\ud800" <= character <= "\udfff" for character in text):
            self.refuse(event, loc, "an escape code stands here that is no character: take it out")
            return ""
        if event.style:  # quoted or a block
            return text
        value, complaint = resolve(text)
        if complaint:
            self.refuse(event, loc, complaint)
        return value

    def refuse(self, event: Any, loc: Loc, sentence: str) -> None:
        self.faulty.add(loc)
        error = PolicyError(sentence, file=self.file, line=_line_of(event.start_mark), field=path(loc))
        self.errors.append(error)


def resolve(text: str) -> tuple[Any, str]:
    """The value of a plain scalar, and a sentence when YAML 1.1 and 1.2 disagree about it (else an empty one)."""
    if text in _NULLS:
        return None, ""
    if text in _TRUTHS:
        return _TRUTHS[text], ""
    if text in _OLD_TRUTHS:
        meant = _OLD_TRUTHS[text]
        says = f"{text} is a truth value to some YAML readers and a text to others"
        return meant, f"{says}: write {shown(meant)}, or '{text}' in quotes"
    if _OLD_NUMBER.fullmatch(text):
        return (
            text,
            f"{shown(text)} is a number to some YAML readers and not to others: quote it, or write a plain number",
        )
    if _NUMBER.fullmatch(text):
        return _whole(text)
    return _fraction(text) if _FRACTION.fullmatch(text) else text, ""


def _whole(text: str) -> tuple[int, str]:
    if len(text) > LONGEST_NUMBER:
        return 0, f"the number {shown(text)} is too large"
    return int(text, 16 if text.startswith("0x") else 10), ""


def _fraction(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
