"""`@frozen` is the frozen, slotted dataclass of the standard library, made faster: both answer everything alike."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from virtnet.values import frozen


@frozen
class Point:
    """A place."""

    x: int
    y: int = 2
    names: Mapping[str, int] = dataclasses.field(default_factory=dict)
    memo: list[int] = dataclasses.field(default_factory=list, compare=False, repr=False)

    @property
    def sum(self) -> int:
        return self.x + self.y


@dataclasses.dataclass(frozen=True, slots=True)
class Usual:
    """A place."""

    x: int
    y: int = 2
    names: Mapping[str, int] = dataclasses.field(default_factory=dict)
    memo: list[int] = dataclasses.field(default_factory=list, compare=False, repr=False)

    @property
    def sum(self) -> int:
        return self.x + self.y


@frozen
class Hashable:
    a: int
    b: str = ""


@frozen
class Single:
    only: tuple[int, ...]


@frozen
class Empty:
    pass


def outcome(act: Callable[[], Any]) -> object:
    """What came of it: the value, or the kind of error."""
    try:
        return act()
    except (TypeError, AttributeError) as error:
        return type(error)


@pytest.mark.parametrize(
    "act",
    [
        lambda cls: cls(1) == cls(1, 2, {}),
        lambda cls: cls(1) == cls(1, memo=[3]),
        lambda cls: cls(1) == cls(3),
        lambda cls: cls(1) != cls(1),
        lambda cls: cls(1) == (1, 2, {}),
        lambda cls: repr(cls(1, names={"a": 1})).replace(cls.__name__, ""),
        lambda cls: hash(cls(1)),
        lambda cls: cls(),
        lambda cls: cls(1, z=1),
        lambda cls: cls(1, 2, {}, [], 5),
        lambda cls: cls(y=1, x=5).sum,
        lambda cls: cls(1).names is cls(1).names,
        lambda cls: dataclasses.asdict(dataclasses.replace(cls(1), y=7)),
        lambda cls: [field.name for field in dataclasses.fields(cls)],
        lambda cls: cls.__match_args__,
        lambda cls: cls.__slots__,
        lambda cls: cls.__doc__,
        lambda cls: hasattr(cls(1), "__dict__"),
        lambda cls: setattr(cls(1), "x", 2),
        lambda cls: delattr(cls(1), "x"),
        lambda cls: list(inspect.signature(cls).parameters),
        lambda cls: copy.deepcopy(cls(1, names={"a": 1})) == cls(1, names={"a": 1}),
        lambda cls: pickle.loads(pickle.dumps(cls(1, 5))) == cls(1, 5),
        dataclasses.is_dataclass,
    ],
)
def test_a_frozen_value_answers_as_the_usual_dataclass_does(act: Callable[[type[Any]], Any]) -> None:
    assert outcome(lambda: act(Point)) == outcome(lambda: act(Usual))


def test_equal_values_of_one_class_have_one_hash() -> None:
    assert len({Hashable(1), Hashable(1, ""), Hashable(2), Single((1,)), Single((1,)), Empty(), Empty()}) == 4


def test_values_of_two_classes_are_never_equal() -> None:
    assert Point(1) != Usual(1)
    assert Empty() != Hashable(0)


def test_a_value_can_be_matched_by_position() -> None:
    match Hashable(1, "b"):
        case Hashable(a, b):
            assert (a, b) == (1, "b")


def test_a_class_that_the_short_way_cannot_make_is_refused() -> None:
    class Late:
        x: int = 0

        def __post_init__(self) -> None:
            raise AssertionError

    class Hidden:
        x: int = dataclasses.field(init=False, default=0)

    for cls in (Late, Hidden):
        with pytest.raises(TypeError, match="write @dataclass"):
            frozen(cls)
