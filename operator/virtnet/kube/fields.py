"""What all models of the API are made of: the strict base, the field types with their bounds, and the label selector.

Docstrings are what `kubectl explain` shows.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, GetJsonSchemaHandler, StringConstraints, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import CoreSchema

from virtnet.core import model
from virtnet.kube import rules
from virtnet.kube.rules import Rule, Whole

T = TypeVar("T")


def _refuse_null(value: Any) -> Any:
    if value is None:
        raise PydanticCustomError("null", "it is empty: write a value, or leave the field out")
    return value


Maybe = Annotated[T | None, BeforeValidator(_refuse_null)]
"""A field that may be left out; an empty value is no way to leave it out (the API server refuses it too)."""

Name = Annotated[str, rules.INTERFACE_NAME]
NamePattern = Annotated[str, rules.NAME_PATTERN]
Word = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Offloads = Annotated[dict[str, bool], rules.OFFLOADS]
Mtu = Annotated[int, Whole(68, 65535)]
Count = Annotated[int, Whole(1, 2**31 - 1)]
Id = Annotated[int, Whole(0, 2**32 - 2)]
Nodes = Annotated[int | str, rules.NODES]
Names = Annotated[list[Name], rules.distinct(64)]
NamePatterns = Annotated[list[NamePattern], rules.distinct(64, shortest=1)]


class Base(BaseModel):
    """Strict, closed and frozen; field names in camelCase only. `RULES` speak of several fields of one object."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, alias_generator=to_camel, defer_build=True)

    RULES: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _obeys(self) -> Self:
        rules.check(self.RULES, self)
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        inner = handler.resolve_ref_schema(handler(schema))
        inner.update(rules.in_schema(cls.RULES))
        return inner

    def written(self) -> dict[str, Any]:
        """Exactly the fields that were written, as JSON values."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


def leaves(written: Mapping[str, Any], path: str) -> Iterator[tuple[str, model.Value]]:
    """Every value in a written object with its path; a list is one value, its items joined by commas."""
    for name, value in written.items():
        here = f"{path}.{name}"
        if isinstance(value, dict):
            yield from leaves(value, here)
        else:
            yield here, ", ".join(map(str, value)) if isinstance(value, list) else value


def not_both(yes: str, no: str, message: str) -> Rule:
    """`yes: true` with `no: false`, both written."""
    cel = f"!(has(self.{yes}) && self.{yes} && has(self.{no}) && !self.{no})"
    return rules.rule(message, cel, lambda it: not (getattr(it, yes) and getattr(it, no) is False), yes)


def one_of(names: str) -> Rule:
    fields = names.split()
    cel = " || ".join(f"has(self.{to_camel(name)})" for name in fields)
    says = f"write at least one of {', '.join(map(to_camel, fields))}, or leave match out"
    return rules.rule(says, cel, lambda it: any(getattr(it, name) is not None for name in fields))


class LabelRequirement(Base):
    """One demand on a label."""

    RULES = (
        rules.rule(
            "In and NotIn need values; Exists and DoesNotExist take none",
            "(self.operator in ['In', 'NotIn']) == (has(self.values) && self.values.size() > 0)",
            lambda it: (it.operator in {"In", "NotIn"}) == bool(it.values),
            "values",
        ),
    )

    key: Annotated[str, rules.LABEL_KEY]
    """The label's key."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How the label's value relates to `values`."""
    values: Maybe[Annotated[list[Annotated[str, rules.LABEL_VALUE]], rules.at_most(64)]] = None
    """The values for In and NotIn."""

    def to_core(self) -> model.Requirement:
        return model.Requirement(self.key, self.operator, tuple(self.values or ()))


class LabelSelector(Base):
    """Which objects, by their labels; all that is written must hold. Empty selects all."""

    match_labels: Maybe[Annotated[dict[str, Annotated[str, rules.LABEL_VALUE]], rules.LABELS]] = None
    """Labels and the values that they must have."""
    match_expressions: Maybe[Annotated[list[LabelRequirement], rules.at_most(64)]] = None
    """Further demands on labels."""

    def to_core(self) -> model.NodeSelector:
        expressions = tuple(each.to_core() for each in self.match_expressions or ())
        return model.NodeSelector(tuple((self.match_labels or {}).items()), expressions)
