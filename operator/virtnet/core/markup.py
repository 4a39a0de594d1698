"""Reads an XML document so that single attributes and elements can be changed in its text, every other byte kept.

It takes UTF-8 and no document type definition. Namespaces are left as they are written: a name counts with its prefix.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from xml.parsers import expat

from virtnet.errors import UsageError
from virtnet.values import frozen

LARGEST = 4 << 20
"""Bytes: libvirt's protocol carries no longer text (REMOTE_STRING_MAX)."""
DEEPEST = 256
"""Elements in one another: libxml2, with which libvirt reads, takes no more (xmlParserMaxDepth)."""

Path = tuple[str, ...]
"""The names of an element and of those around it, from the root."""

_BLANK = b" \t\r\n"
_ATTRIBUTE = re.compile(rb"""[ \t\r\n]+([^ \t\r\n=/>]+)[ \t\r\n]*=[ \t\r\n]*("[^"]*"|'[^']*')""")
_NAME = re.compile(rb"<[^ \t\r\n/>]+")
_NO_TEXT = re.compile(rb"<!--.*?-->|<\?.*?\?>", re.DOTALL)


@frozen
class Element:
    """One element and where it stands: it begins at byte `start`, its start tag ends before `inside`, its end tag
    begins at `close`, and all of it ends before `end`. Of `<a/>`, `close` is `end`.

    `attributes` have their values as XML means them, `text` is all character data directly in it.
    """

    name: str
    attributes: Mapping[str, str]
    start: int
    inside: int
    close: int
    end: int
    children: tuple[Element, ...]
    text: str

    def child(self, name: str) -> Element | None:
        """The first of this name, as libvirt takes it."""
        return next((child for child in self.children if child.name == name), None)


@frozen
class Edit:
    """Put `text` where the bytes from `start` to before `end` are."""

    start: int
    end: int
    text: bytes


def parse(document: bytes, wanted: Callable[[Path], bool]) -> Element:
    """The root, and in it only the elements that `wanted` (which is asked of no element in an unwanted one).

    Raises `UsageError` for what is too large, not UTF-8, not well-formed, or declares a document type.
    """
    if len(document) > LARGEST:
        raise UsageError(f"the XML is larger than {LARGEST >> 20} MiB")
    _refuse_other_encodings(document)
    reader = _Reader(document, wanted)
    try:
        reader.parser.Parse(document, True)
    except expat.ExpatError as error:
        raise UsageError(f"this is not XML: line {error.lineno}: {expat.ErrorString(error.code)}") from error
    return reader.open[0].children[0]


def _refuse_other_encodings(document: bytes) -> None:
    try:
        text = document.decode()
    except UnicodeDecodeError as error:
        line = document.count(b"\n", 0, error.start) + 1
        raise UsageError(f"the XML is not UTF-8: line {line}") from error
    if "\0" in text:
        raise UsageError("the XML is binary, not UTF-8 text")


@dataclass(slots=True)
class _Open:
    """An element whose end has not been read yet."""

    name: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    start: int = 0
    children: list[Element] = field(default_factory=list)
    text: list[str] = field(default_factory=list)


class _Reader:
    def __init__(self, document: bytes, wanted: Callable[[Path], bool]) -> None:
        self.document, self.wanted = document, wanted
        self.open = [_Open()]
        self.path: Path = ()
        self.skipped = 0
        self.parser = parser = expat.ParserCreate("UTF-8")
        parser.buffer_text = True
        parser.XmlDeclHandler = self.declaration
        parser.StartDoctypeDeclHandler = self.document_type
        parser.StartElementHandler = self.begin
        parser.EndElementHandler = self.finish
        parser.CharacterDataHandler = self.characters

    def declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        if encoding is not None and encoding.upper() not in {"UTF-8", "US-ASCII"}:
            raise UsageError(f"the XML says that it is {encoding}: save it as UTF-8")

    def document_type(self, *declared: object) -> None:
        raise UsageError("the XML has a document type (<!DOCTYPE): no libvirt domain has one; take it out")

    def begin(self, name: str, attributes: dict[str, str]) -> None:
        if len(self.path) + self.skipped >= DEEPEST:
            raise UsageError(f"the XML has elements nested over {DEEPEST} deep")
        path = (*self.path, name)
        if self.skipped or not (len(path) == 1 or self.wanted(path)):
            self.skipped += 1
            return
        self.path = path
        self.open.append(_Open(name, attributes, self.parser.CurrentByteIndex))

    def finish(self, name: str) -> None:
        if self.skipped:
            self.skipped -= 1
            return
        opened = self.open.pop()
        self.path = self.path[:-1]
        inside, at = _after_start_tag(self.document, opened.start), self.parser.CurrentByteIndex
        if self.document[inside - 2 : inside] == b"/>":
            close = end = inside
        else:
            close, end = at, self.document.index(b">", at) + 1
        element = Element(
            name,
            opened.attributes,
            opened.start,
            inside,
            close,
            end,
            tuple(opened.children),
            "".join(opened.text),
        )
        self.open[-1].children.append(element)

    def characters(self, text: str) -> None:
        if not self.skipped:
            self.open[-1].text.append(text)


# --- changing ----------------------------------------------------------------------------------------------


def _after_start_tag(document: bytes, start: int) -> int:
    """Where the content begins; the document is known to be well-formed."""
    return document.index(b">", _after_attributes(document, start)) + 1


def _after_attributes(document: bytes, start: int) -> int:
    """Where the last attribute of the tag at `start` ends, or its name."""
    end = _after_name(document, start)
    while found := _ATTRIBUTE.match(document, end):
        end = found.end()
    return end


def _after_name(document: bytes, start: int) -> int:
    found = _NAME.match(document, start)
    assert found is not None, "no start tag here"
    return found.end()


def quote(document: bytes, element: Element, otherwise: bytes) -> bytes:
    """The quotation mark of the first attribute."""
    found = _ATTRIBUTE.match(document, _after_name(document, element.start))
    return found[2][:1] if found else otherwise


def tag(name: str, attributes: Mapping[str, str], mark: bytes, children: bytes = b"") -> bytes:
    """A new element. Values need no escapes: they are words and numbers."""
    head = f"<{name}".encode() + b"".join(_written(key, value, mark) for key, value in attributes.items())
    return head + (b">" + children + f"</{name}>".encode() if children else b"/>")


def _written(key: str, value: str, mark: bytes) -> bytes:
    return b" " + key.encode() + b"=" + mark + value.encode() + mark


def set_attributes(document: bytes, element: Element, values: Mapping[str, str], mark: bytes) -> list[Edit]:
    """Write these values: in place where the attribute is there, else behind the last one."""
    edits = []
    left = dict(values)
    end = _after_name(document, element.start)
    while found := _ATTRIBUTE.match(document, end):
        end, key = found.end(), found[1].decode()
        value = left.pop(key, None)
        if value is not None:
            edits.append(Edit(found.start(2) + 1, found.end(2) - 1, value.encode()))
    if left:
        edits.append(Edit(end, end, b"".join(_written(key, value, mark) for key, value in left.items())))
    return edits


def remove_attribute(document: bytes, element: Element, name: str) -> list[Edit]:
    """Take an attribute out, with the blanks before it. Removing the absent is success."""
    end = _after_name(document, element.start)
    while found := _ATTRIBUTE.match(document, end):
        if found[1].decode() == name:
            return [Edit(end, found.end(), b"")]
        end = found.end()
    return []


def remove(document: bytes, element: Element) -> Edit:
    """Take an element out, with the blanks before it on its line."""
    return Edit(element.start - len(indent(document, element)), element.end, b"")


def set_text(document: bytes, element: Element, text: str) -> Edit:
    """Make `text` the element's text; comments in it stay, behind the text."""
    if element.close == element.end:
        return _opened(document, element, text.encode())
    kept = b"".join(_NO_TEXT.findall(document, element.inside, element.close))
    return Edit(element.inside, element.close, text.encode() + kept)


def add_children(document: bytes, element: Element, children: Sequence[bytes], after: Element | None = None) -> Edit:
    """Put new elements into `element`, behind its child `after` or its last one, indented as those there are."""
    before = indent_in(document, element)
    content = b"".join(before + child for child in children)
    behind = after or (element.children[-1] if element.children else None)
    if behind is not None:
        return Edit(behind.end, behind.end, content)
    if element.close == element.end:
        return _opened(document, element, content + indent(document, element))
    return Edit(element.inside, element.inside, content)


def _opened(document: bytes, element: Element, content: bytes) -> Edit:
    """`<a/>` as `<a>content</a>`; what stands before the slash stays."""
    return Edit(element.inside - 2, element.inside, b">" + content + f"</{element.name}>".encode())


def indent_in(document: bytes, element: Element) -> bytes:
    """As `indent`, for a new child."""
    if element.children:
        return indent(document, element.children[-1])
    return deeper(indent(document, element))


def deeper(blank: bytes) -> bytes:
    """One level more of the same indentation."""
    return blank and blank + (b"\t" if blank.endswith(b"\t") else b"  ")


def indent(document: bytes, element: Element) -> bytes:
    """The line break and blanks before an element; nothing where it does not begin a line."""
    begin = element.start
    while begin and document[begin - 1] in _BLANK:
        begin -= 1
    blank = document[begin : element.start]
    line = blank.rfind(b"\r\n") if b"\r\n" in blank else blank.rfind(b"\n")
    return blank[line:] if line >= 0 else b""


def apply(document: bytes, edits: Sequence[Edit]) -> bytes:
    """The document with all edits made; they do not overlap."""
    parts, at = [], 0
    for edit in sorted(edits, key=lambda edit: (edit.start, edit.end)):
        parts += [document[at : edit.start], edit.text]
        at = edit.end
    return b"".join([*parts, document[at:]])
