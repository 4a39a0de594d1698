"""Reads policies from files, directories and standard input, and says of each fault its file, line and field.

Everything that is wrong is a `PolicyError` in `Reading.errors`, so that a caller can print all of them and still use
the files that are good. Nothing here decides what to do about a bad file.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, BinaryIO

from pydantic import ValidationError

from virtnet.core.model import Policy
from virtnet.errors import PolicyError, UsageError
from virtnet.kube import api, documents, explain, places
from virtnet.kube.documents import Document
from virtnet.kube.places import Loc
from virtnet.values import frozen

LARGEST = 1 << 20
"""Bytes of the largest file that is read: etcd takes no larger object either."""

MOST_ERRORS = 100
"""Errors that are told of one file."""

SUFFIXES = frozenset({".yaml", ".yml", ".json"})
STDIN = "-"


@frozen
class Manifest:
    """A policy and where it was found: the line is that of its metadata.name."""

    policy: Policy
    file: str
    line: int


@frozen
class Reading:
    """What was read: the good policies in their order, and all errors. Who wants all or nothing asks `errors` first."""

    manifests: tuple[Manifest, ...] = ()
    errors: tuple[PolicyError, ...] = ()

    @property
    def policies(self) -> tuple[Policy, ...]:
        return tuple(manifest.policy for manifest in self.manifests)


def load(paths: Sequence[str], stdin: BinaryIO | None = None) -> Reading:
    """The policies of all files; a directory stands for its files (`files_in`), "-" for standard input."""
    return join(reading for path in paths for reading in _read_path(path, stdin))


def files_in(directory: str) -> list[str]:
    """The policy files directly in a directory, by name; raises `PolicyError` when it cannot be listed."""
    return [path for path in paths_in(directory) if not os.path.isdir(path)]


def paths_in(directory: str) -> list[str]:
    """As `files_in`, without a look at what they are."""
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        raise PolicyError(f"cannot be listed: {error.strerror}", file=directory) from error
    return [
        os.path.join(directory, name)
        for name in names
        if not name.startswith(".") and os.path.splitext(name)[1] in SUFFIXES
    ]


def read_file(path: str) -> Reading:
    """The policies of one regular file (or of what its symlink leads to)."""
    return _read_open(path, only_regular=True)


def read(data: bytes, file: str) -> Reading:
    """The policies of one file's content: YAML documents or JSON, single or as `kind: List`."""
    try:
        text = _decode(data, file)
    except PolicyError as error:
        return Reading(errors=(error,))
    found, errors = documents.parse(text, file)
    manifests = []
    for document, loc, value in _objects(found):
        if len(errors) <= MOST_ERRORS:
            manifest, faults = _read_object(document, loc, value, file)
            manifests += [manifest] if manifest else []
            errors += faults
    if not errors and all(document.value is None for document in found):
        errors.append(PolicyError("there is no policy in it: write one, or remove the file", file=file))
    return join([Reading(tuple(manifests), tuple(_bounded(errors, file)))])


def _bounded(errors: list[PolicyError], file: str) -> Iterator[PolicyError]:
    yield from sorted(errors, key=lambda error: error.line)[:MOST_ERRORS]
    if len(errors) > MOST_ERRORS:
        yield PolicyError(f"there are more than {MOST_ERRORS} errors: the others are not listed", file=file)


def join(readings: Iterable[Reading]) -> Reading:
    """Several readings as one. A metadata.name that is already taken is refused, and both places are named."""
    taken: dict[str, Manifest] = {}
    errors: list[PolicyError] = []
    for reading in readings:
        errors += reading.errors
        for manifest in reading.manifests:
            first = taken.setdefault(manifest.policy.name, manifest)
            if first is not manifest:
                errors.append(_taken(manifest, first))
    return Reading(tuple(taken.values()), tuple(errors))


def _taken(manifest: Manifest, first: Manifest) -> PolicyError:
    says = (
        f"{manifest.policy.name} is already in {first.file}:{first.line}: write another name, or take one of them out"
    )
    return PolicyError(says, file=manifest.file, line=manifest.line, field="metadata.name")


# --- files -------------------------------------------------------------------------------------------------


def _read_path(path: str, stdin: BinaryIO | None) -> Iterator[Reading]:
    if path == STDIN:
        yield read((stdin or standard_input()).read(LARGEST + 1), STDIN)
    elif os.path.isdir(path):
        try:
            yield from map(read_file, files_in(path))
        except PolicyError as error:
            yield Reading(errors=(error,))
    else:
        yield _read_open(path, only_regular=False)


def standard_input() -> BinaryIO:
    """The bytes that are piped in; UsageError where nothing can be: Python has no such file for a closed descriptor."""
    if sys.stdin is None:
        raise UsageError("standard input is closed: write < FILE")
    return sys.stdin.buffer


def _read_open(path: str, only_regular: bool) -> Reading:
    """`only_regular` keeps a FIFO in a directory from blocking the reader; named by a user (`<(...)`) it is meant."""
    try:
        if only_regular and not stat.S_ISREG(os.stat(path).st_mode):
            return Reading(errors=(PolicyError("is not a regular file", file=path),))
        with open(path, "rb") as stream:
            return read(stream.read(LARGEST + 1), path)
    except OSError as error:
        return Reading(errors=(PolicyError(f"cannot be read: {error.strerror}", file=path),))
    except ValueError:  # a NUL byte in the path
        return Reading(errors=(PolicyError("cannot be read: this is no file name", file=places.shown(path)),))


def _decode(data: bytes, file: str) -> str:
    if len(data) > LARGEST:
        raise PolicyError(f"is larger than {LARGEST >> 20} MiB: split it", file=file)
    if b"\0" in data:
        raise PolicyError("is binary, not text: write YAML or JSON in UTF-8", file=file)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PolicyError("is not UTF-8 text: save it as UTF-8", file=file, line=line) from error


# --- objects -----------------------------------------------------------------------------------------------


def _objects(found: Iterable[Document]) -> Iterator[tuple[Document, Loc, Any]]:
    """Every object of the documents with its place; the items of a List one by one, empty documents not at all."""
    for document in found:
        value = document.value
        if isinstance(value, dict) and value.get("kind") == "List" and isinstance(value.get("items"), list):
            yield from ((document, ("items", at), item) for at, item in enumerate(value["items"]))
        elif value is not None:
            yield document, (), value


def _read_object(document: Document, at: Loc, value: Any, file: str) -> tuple[Manifest | None, list[PolicyError]]:
    manifest, faults = None, []
    try:
        faults = list(_wrong_kind(value))
        policy = None if faults else api.VirtioNetworkPolicy.model_validate(value).to_core()
        if policy and not any(place[: len(at)] == at for place in document.faulty):
            manifest = Manifest(policy, file, document.line((*at, "metadata", "name")))
    except ValidationError as error:
        faults = list(islice(explain.problems(error), MOST_ERRORS + 1))
    placed = ((*at, *fault.loc) for fault in faults)
    return manifest, [
        PolicyError(fault.sentence, file=file, line=document.line(loc), field=places.path(loc))
        for loc, fault in zip(placed, faults, strict=True)
        if not _inside(loc, document.faulty)
    ]


def _inside(loc: Loc, faulty: frozenset[Loc]) -> bool:
    """Whether this place, or one around it, has already been complained about by the reader of the text."""
    return any(loc[:end] in faulty for end in range(len(loc) + 1))


_HEADER: Mapping[str, str] = {"apiVersion": api.API_VERSION, "kind": api.KIND}


def _wrong_kind(value: Any) -> Iterator[explain.Problem]:
    """Another kind of object gets one sentence, not one for each of its fields."""
    if not isinstance(value, dict):
        yield explain.Problem((), f"this is no object: write a {api.KIND} with apiVersion, kind, metadata and spec")
        return
    for field, expected in _HEADER.items():
        if field not in value:
            yield explain.Problem((field,), f"{field} is required: write {field}: {expected}")
        elif value[field] != expected:
            yield explain.Problem((field,), f"write {expected} (found {places.shown(value[field])})")
