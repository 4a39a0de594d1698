"""Frozen dataclasses to JSON values and back; a value that does not fit exactly is refused, never guessed at."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any

from virtnet.core.model import Change

__all__ = ["DecodeError", "decode", "encode"]

TAG = "type"
"""The key that names the class of a `Change`, the one union of dataclasses that is stored."""

_CHANGES = {change.__name__: change for change in typing.get_args(Change)}
_PLAIN = (bool, int, float, str, types.NoneType)


class DecodeError(ValueError):
    """The JSON value is not what the type says; the text names the place, as in `inverse[0].link.ifindex`."""


def encode(value: Any) -> Any:
    """The JSON value of a dataclass, enum, named tuple, mapping, sequence or plain value.

    A dataclass is an object of all its fields, one that is a `Change` has its class name as `type` beside them.
    """
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, _PLAIN):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _encode_fields(value)
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no JSON form here")


def _encode_fields(value: Any) -> dict[str, Any]:
    fields = {name: encode(getattr(value, name)) for name in _fields(type(value))}
    return {TAG: type(value).__name__, **fields} if type(value).__name__ in _CHANGES else fields


def decode(hint: Any, raw: Any, place: str = "") -> Any:
    """The value of type `hint` that `encode` turned into `raw`, or `DecodeError`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(arguments, raw, place)
    if origin is tuple:
        return _decode_tuple(arguments, raw, place)
    if origin is Mapping:
        return _decode_mapping(arguments[1], raw, place)
    if dataclasses.is_dataclass(hint):
        return _decode_fields(typing.cast(type, hint), raw, place)
    return _decode_class(hint, raw, place)


def _decode_class(hint: Any, raw: Any, place: str) -> Any:
    if hint in _PLAIN:
        # bool is an int to Python; in these files the two are different values.
        return raw if type(raw) is hint else _refuse(place, hint.__name__, raw)
    if issubclass(hint, enum.Enum):
        known = {member.value: member for member in hint}
        return known[raw] if isinstance(raw, str) and raw in known else _refuse(place, hint.__name__, raw)
    if issubclass(hint, tuple):
        return hint(*_decode_tuple(tuple(_hints(hint).values()), raw, place))
    raise TypeError(f"{hint!r} has no JSON form here")


def _decode_union(arms: tuple[Any, ...], raw: Any, place: str) -> Any:
    if all(dataclasses.is_dataclass(arm) for arm in arms):
        return _decode_tagged(arms, raw, place)
    for arm in arms:
        try:
            return decode(arm, raw, place)
        except DecodeError:
            continue
    return _refuse(place, " or ".join(getattr(arm, "__name__", str(arm)) for arm in arms), raw)


def _decode_tagged(arms: tuple[Any, ...], raw: Any, place: str) -> Any:
    name = raw.get(TAG) if isinstance(raw, dict) else None
    arm = next((arm for arm in arms if arm.__name__ == name), None)
    if arm is None:
        return _refuse(place, "a known change", name if isinstance(raw, dict) else raw)
    return _decode_fields(arm, {key: item for key, item in raw.items() if key != TAG}, place)


def _decode_fields(hint: type, raw: Any, place: str) -> Any:
    hints = _fields(hint)
    if not isinstance(raw, dict) or raw.keys() != hints.keys():
        return _refuse(place, f"an object of {', '.join(hints)}", raw)
    return hint(**{name: decode(hints[name], item, f"{place}.{name}" if place else name) for name, item in raw.items()})


def _decode_tuple(arguments: tuple[Any, ...], raw: Any, place: str) -> tuple[Any, ...]:
    if not isinstance(raw, list):
        return _refuse(place, "a list", raw)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(raw)
    if len(arguments) != len(raw):
        return _refuse(place, f"{len(arguments)} items", raw)
    return tuple(decode(hint, item, f"{place}[{i}]") for i, (hint, item) in enumerate(zip(arguments, raw, strict=True)))


def _decode_mapping(hint: Any, raw: Any, place: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        return _refuse(place, "an object", raw)
    return {key: decode(hint, item, f"{place}[{key!r}]") for key, item in raw.items()}


def _fields(of: type) -> dict[str, Any]:
    """The fields of a dataclass and their types, in order."""
    hints = _hints(of)
    return {field.name: hints[field.name] for field in dataclasses.fields(of)}


@cache
def _hints(of: type) -> dict[str, Any]:
    return typing.get_type_hints(of)


def _refuse(place: str, wanted: str, raw: Any) -> typing.NoReturn:
    shown = repr(raw)
    raise DecodeError(
        f"{place or 'the value'} must be {wanted}, not {shown if len(shown) <= 60 else shown[:57] + '...'}"
    )
