"""Turns pydantic's errors into places and plain sentences that say what to write instead."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Union

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from virtnet.kube import api
from virtnet.kube.places import Loc, shown


class Problem(NamedTuple):
    """One thing that is wrong: where in the document, and what to write instead."""

    loc: Loc
    sentence: str


def problems(error: ValidationError, root: type[BaseModel] = api.VirtioNetworkPolicy) -> Iterator[Problem]:
    """Everything that pydantic found in a document of the model `root`."""
    return (problem for detail in error.errors(include_url=False) for problem in _explain(detail, root))


def _explain(detail: ErrorDetails, root: type[BaseModel]) -> Iterator[Problem]:
    loc, context = detail["loc"], detail.get("ctx", {})
    if detail["type"] == "rule":
        yield from (Problem((*loc, *place), sentence) for place, sentence in context["breaches"])
    elif detail["type"] == "extra_forbidden":
        yield Problem(loc, unknown(str(loc[-1]), _fields_at(root, loc[:-1])))
    else:
        say = _SENTENCES.get(detail["type"])
        yield Problem(loc, say(detail) if say else detail["msg"])


def unknown(name: str, known: Iterable[str]) -> str:
    """What to say of a field that does not exist."""
    fields = list(known)
    near = difflib.get_close_matches(_folded(name), {_folded(field): field for field in fields}, n=1)
    if near:
        meant = next(field for field in fields if _folded(field) == near[0])
        return f"there is no field {shown(name)} here: write {meant}"
    return f"there is no field {shown(name)} here: write one of {', '.join(fields)}"


def _folded(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


def _fields_at(root: type[BaseModel], loc: Loc) -> list[str]:
    """The names that may stand at a place of a document."""
    here: type[BaseModel] | None = root
    for part in loc:
        if here is None or isinstance(part, int):
            continue
        field = next((field for field in here.model_fields.values() if field.alias == part), None)
        here = _model_in(field.annotation) if field else None
    return [field.alias or name for name, field in here.model_fields.items()] if here else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside `Model | None`, `list[Model]` and what is annotated around them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in {typing.Annotated, Union, types.UnionType, list}:
        return next(filter(None, map(_model_in, typing.get_args(annotation))), None)
    return None


def _found(detail: ErrorDetails) -> str:
    value = detail["input"]
    kinds: Mapping[type, str] = {str: "the text", bool: "the truth value", int: "the number", float: "the number"}
    if isinstance(value, dict | list):
        return "found a map" if isinstance(value, dict) else "found a list"
    return f"found {kinds.get(type(value), '')} {shown(value)}"


def _write(what: str) -> Callable[[ErrorDetails], str]:
    return lambda detail: f"write {what} ({_found(detail)})"


def _quoted(detail: ErrorDetails) -> str:
    value = detail["input"]
    if isinstance(value, bool | int | float):
        return f'write it in quotes: "{shown(value)}" ({_found(detail)})'
    return f"write a text ({_found(detail)})"


def _choice(detail: ErrorDetails) -> str:
    return f"write {detail['ctx']['expected'].replace(chr(39), '')} ({_found(detail)})"


_SENTENCES: Mapping[str, Callable[[ErrorDetails], str]] = {
    "missing": lambda detail: f"{detail['loc'][-1]} is required: write it",
    "bool_type": _write("true or false"),
    "int_type": _write("a whole number"),
    "string_type": _quoted,
    "dict_type": _write("a map of names to values"),
    "model_type": _write("a map of fields"),
    "list_type": _write("a list"),
    "enum": _choice,
    "literal_error": _choice,
    "too_long": lambda detail: f"write at most {detail['ctx']['max_length']}",
    "string_too_short": lambda detail: "write at least one character",
    "string_too_long": lambda detail: f"write at most {detail['ctx']['max_length']} characters",
}
"""pydantic's error types that the models can raise. A type that is not here keeps pydantic's own words."""
