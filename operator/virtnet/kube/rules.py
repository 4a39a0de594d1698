"""What a value of the API must obey: a sentence for people, a CEL expression for the API server, a predicate for us.

The same `Rule` makes the pydantic models refuse and goes into the CRD, so that both say the same. It never reads
anything but the value that it judges.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticCustomError, core_schema

from virtnet.core import features
from virtnet.kube.places import Loc
from virtnet.values import frozen


@frozen
class Rule:
    """One demand on a value.

    `message` says what to write instead. `cel` is true of a good value `self`; empty where the schema itself refuses.
    `breaches` gives the places, relative to the value, where it is broken: nothing means that it is obeyed.
    """

    message: str
    cel: str
    breaches: Callable[[Any], Iterable[Loc]]

    def as_validation(self) -> dict[str, str]:
        """The entry of x-kubernetes-validations."""
        return {"rule": self.cel, "message": self.message}


def rule(message: str, cel: str, holds: Callable[[Any], bool], field: str = "") -> Rule:
    """A rule about a value as a whole, or about one field of an object."""
    place: Loc = (field,) if field else ()
    return Rule(message, cel, lambda value: () if holds(value) else (place,))


def check(rules: Iterable[Rule], value: Any) -> None:
    """Raise one pydantic error that carries every breach, as `[(place, sentence)]` under "breaches"."""
    found = [(place, each.message) for each in rules for place in each.breaches(value)]
    if found:
        sentence = "; ".join(dict.fromkeys(message for _, message in found))
        raise PydanticCustomError("rule", "{sentence}", {"sentence": sentence, "breaches": found})


def in_schema(rules: Iterable[Rule]) -> dict[str, Any]:
    """The part of a CRD schema that says these rules."""
    validations = [each.as_validation() for each in rules if each.cel]
    return {"x-kubernetes-validations": validations} if validations else {}


class Obeys:
    """Annotation: the value obeys these rules. `schema` is added to the CRD as it is (bounds, list types)."""

    def __init__(self, *rules: Rule, **schema: Any) -> None:
        self.rules, self.schema = rules, schema

    def _checked(self, value: Any) -> Any:
        check(self.rules, value)
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        inner = handler(source)
        if longest := self.schema.get("maxItems") or self.schema.get("maxProperties"):
            inner = {**inner, "max_length": longest}  # before the items are judged: there could be very many
        return core_schema.no_info_after_validator_function(self._checked, inner)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        inner = handler(schema)
        validations = [*inner.get("x-kubernetes-validations", ()), *in_schema(self.rules).get(_VALIDATIONS, ())]
        return {**inner, **self.schema, **({_VALIDATIONS: validations} if validations else {})}


class NumberOrText(Obeys):
    """Annotation for what may be a number or a text: the rules judge the type too."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self._checked)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"x-kubernetes-int-or-string": True, **self.schema, **in_schema(self.rules)}


class Whole(Obeys):
    """Annotation: a whole number from `low` to `high`."""

    def __init__(self, low: int, high: int) -> None:
        within = rule(f"write a whole number from {low} to {high}", "", lambda value: low <= value <= high)
        super().__init__(within, format="int64", minimum=low, maximum=high)


_VALIDATIONS = "x-kubernetes-validations"


def _matches(pattern: str) -> tuple[str, Callable[[str], bool]]:
    """A regular expression that RE2 and Python read alike, as CEL and as a predicate."""
    compiled = re.compile(pattern, re.ASCII)
    escaped = pattern.replace("\\", "\\\\").replace("'", "\\'")
    return f"self.matches('^({escaped})$')", lambda value: compiled.fullmatch(value) is not None


def _text(message: str, pattern: str, longest: int) -> Obeys:
    """A text of 1 to `longest` characters that matches `pattern` as a whole."""
    cel, matches = _matches(pattern)
    shape = rule(message, cel, lambda value: len(value) <= longest and matches(value))
    return Obeys(shape, maxLength=longest)


# --- names -------------------------------------------------------------------------------------------------

_NOT_IN_NAMES = frozenset(b"/:%\0 \t\n\v\f\r\xa0")


def is_interface_name(name: str) -> bool:
    """Whether the kernel takes it for a link: dev_valid_name() in net/core/dev.c, which looks at bytes.

    Its isspace() counts 0xa0 as white space. A '%' makes a name a template (__dev_alloc_name()), so no link has one.
    """
    raw = name.encode("utf-8", "surrogatepass")
    return 0 < len(raw) < 16 and raw not in {b".", b".."} and _NOT_IN_NAMES.isdisjoint(raw)


INTERFACE_NAME = Obeys(
    rule(
        "write an interface name: 1 to 15 bytes, no '/', ':', '%' or white space, not '.' or '..'",
        "self.size() > 0 && bytes(self).size() <= 15 && !self.matches('[/:%\\\\s\\\\x0b]') && !(self in ['.', '..'])",
        is_interface_name,
    ),
    maxLength=15,
)
NAME_PATTERN = _text(
    "write a name or a pattern with * ? [ ]: 1 to 64 characters, no '/' and no white space", r"[^/\s\x0b]{1,64}", 64
)
DRIVER = _text("write a driver's name as ethtool -i prints it, like bnxt_en", r"[A-Za-z0-9_.-]{1,64}", 64)
MAC = _text("write a MAC address in quotes, like '52:54:00:12:34:56'", r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", 17)

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_QUALIFIED = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_LABEL_KEY = rf"({_LABEL}(\.{_LABEL})*/)?{_QUALIFIED}"
_LABEL_VALUE = rf"({_QUALIFIED})?"
_LABEL_KEY_SAYS = "write a label key: an optional DNS name and '/', then up to 63 letters, digits, '-', '_' or '.'"
_LABEL_VALUE_SAYS = "write a label value: up to 63 letters, digits, '-', '_' or '.', a letter or digit at both ends"

OBJECT_NAME = _text(
    "write a name of lower-case letters, digits, '-' and '.', a letter or digit at both ends",
    rf"{_LABEL}(\.{_LABEL})*",
    253,
)
NAMESPACE = _text("write a namespace: up to 63 lower-case letters, digits and '-'", _LABEL, 63)
LABEL_KEY = _text(_LABEL_KEY_SAYS, _LABEL_KEY, 317)
LABEL_VALUE = _text(_LABEL_VALUE_SAYS, _LABEL_VALUE, 63)


def keys_matching(message: str, pattern: str, longest: int, **schema: Any) -> Obeys:
    """A map whose keys all match `pattern`: CRD schemas cannot say that, CEL can."""
    cel, matches = _matches(pattern)
    over_keys = f"self.all(key, key.size() <= {longest} && {cel.replace('self', 'key', 1)})"

    def breaches(value: Mapping[str, Any]) -> Iterator[Loc]:
        return ((key,) for key in value if len(key) > longest or not matches(key))

    return Obeys(Rule(message, over_keys, breaches), **schema)


LABELS = keys_matching(_LABEL_KEY_SAYS, _LABEL_KEY, 317, maxProperties=64)


# --- lists -------------------------------------------------------------------------------------------------


def _repeated(values: Iterable[Any]) -> Iterator[Loc]:
    seen = set()
    for index, value in enumerate(values):
        if value in seen:
            yield (index,)
        seen.add(value)


def distinct(longest: int, shortest: int = 0) -> Obeys:
    """A list of at most `longest` texts, each once: a set to the API server, which refuses repetitions itself."""
    once = Rule("it stands here twice: write it once", "", _repeated)
    some = rule("write at least one, or leave the field out", "", lambda value: len(value) >= shortest)
    bounds = {"maxItems": longest, **({"minItems": shortest} if shortest else {})}
    return Obeys(once, some, **bounds, **{"x-kubernetes-list-type": "set"})


def distinct_by(key: str, longest: int) -> Obeys:
    """A list of at most `longest` objects that differ in `key`."""

    def breaches(values: list[Any]) -> Iterator[Loc]:
        return ((*place, key) for place in _repeated(getattr(value, key) for value in values))

    once = Rule("it stands here twice: write it once", "", breaches)
    merged = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}
    return Obeys(once, maxItems=longest, **merged)


def at_most(longest: int) -> Obeys:
    """A list of at most `longest` items that is replaced as a whole."""
    return Obeys(maxItems=longest, **{"x-kubernetes-list-type": "atomic"})


# --- offloads ----------------------------------------------------------------------------------------------

_SHORT_OF = {member: short for short, members in features.SHORT.items() for member in members}


def _wants(offloads: Mapping[str, bool], feature: str) -> bool | None:
    """What a map asks of one kernel feature: its own name beats the short name; None where it asks nothing."""
    if feature in offloads:
        return offloads[feature]
    short = _SHORT_OF.get(feature, feature)
    wanted = offloads.get(short)
    return None if wanted and feature in features.NOT_ASKED_BY_TRUE.get(short, ()) else wanted


def _cel_wants(feature: str, otherwise: bool) -> str:
    """`_wants` in CEL, with what to take for "asks nothing"."""
    default = str(otherwise).lower()
    short = _SHORT_OF.get(feature)
    left_alone = short is not None and feature in features.NOT_ASKED_BY_TRUE.get(short, ())
    if short is None or (left_alone and not otherwise):
        return f"self[?'{feature}'].orValue({default})"
    return f"self[?'{feature}'].orValue(self[?'{short}'].orValue({default}))"


Need = tuple[str, tuple[str, ...]]
"""A kernel feature, and the alternatives of which it needs one."""


def _needs_by_name() -> dict[tuple[str, str], list[Need]]:
    """The prerequisites of core.features, gathered by the names that users type: (tso, tx) -> what that means.

    Inside one short name (ECN segmentation needs TCP segmentation) the user's `tso: true` with one member turned off is
    an exception and no contradiction, so these are left to the kernel.
    """
    found: dict[tuple[str, str], list[Need]] = {}
    for feature, prerequisites in features.NEEDS.items():
        for alternatives in prerequisites:
            names = _SHORT_OF.get(feature, feature), _SHORT_OF.get(alternatives[0], alternatives[0])
            if names[0] != names[1]:
                found.setdefault(names, []).append((feature, alternatives))
    return found


def _contradiction(name: str, needed: str, needs: list[Need]) -> Rule:
    """`name` is asked for while all that it could use of `needed` is turned off, both in so many words."""
    cases = (
        " && ".join([_cel_wants(feature, False), *(f"!{_cel_wants(each, True)}" for each in alternatives)])
        for feature, alternatives in needs
    )
    cel = f"!({' || '.join(f'({case})' for case in cases)})"

    def breaches(offloads: Mapping[str, bool]) -> Iterator[Loc]:
        for feature, alternatives in needs:
            if _wants(offloads, feature) and all(_wants(offloads, each) is False for each in alternatives):
                yield (feature if feature in offloads else name,)
                return

    return Rule(f"{name} needs {needed}: write {needed}: true, or take one of the two out", cel, breaches)


_CONTRADICTIONS = tuple(_contradiction(*names, needs) for names, needs in _needs_by_name().items())
_FEATURE_NAME = keys_matching(
    "write a feature name as ethtool -k prints it, like tso or tx-udp-segmentation", r"[a-z0-9_-]{1,32}", 32
)
OFFLOADS = Obeys(*_FEATURE_NAME.rules, *_CONTRADICTIONS, maxProperties=64)


def _not_of_a_tap(offloads: Mapping[str, bool]) -> Iterator[Loc]:
    return ((name,) for name in offloads if name not in {"gro", "gso"})


TAP_OFFLOADS = Obeys(
    Rule(
        "a tap takes only gro and gso: the guest's driver owns the others, write them under guest.nic.guest",
        "self.all(key, key in ['gro', 'gso'])",
        _not_of_a_tap,
    ),
    maxProperties=8,
)


# --- numbers or texts --------------------------------------------------------------------------------------

_QUEUES = 256


def _is_queues(value: Any) -> bool:
    return value == "vcpus" if isinstance(value, str) else _is_whole(value) and 1 <= value <= _QUEUES


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


QUEUES = NumberOrText(
    rule(
        f"write a number from 1 to {_QUEUES}, or vcpus",
        f"type(self) == int ? self >= 1 && self <= {_QUEUES} : self == 'vcpus'",
        _is_queues,
    ),
    maxLength=8,
)

_PERCENT = r"(100|[0-9]{1,2})%"
_PERCENT_CEL, _is_percent = _matches(_PERCENT)
_MOST_NODES = 100_000

NODES = NumberOrText(
    rule(
        f"write a number of nodes from 0 to {_MOST_NODES}, or a percentage from 0% to 100%",
        f"type(self) == int ? self >= 0 && self <= {_MOST_NODES} : {_PERCENT_CEL}",
        lambda value: _is_percent(value) if isinstance(value, str) else _is_whole(value) and 0 <= value <= _MOST_NODES,
    ),
    maxLength=8,
)


# --- probes ------------------------------------------------------------------------------------------------

_PORT = r"([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_HOST = r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?"
_IPV6 = r"\[[0-9A-Fa-f]{0,4}(:[0-9A-Fa-f]{0,4}){2,7}(\.[0-9]{1,3}){0,3}(%[A-Za-z0-9_.-]{1,15})?\]"
_PROBE_CEL, _is_probe = _matches(rf"({_HOST}|{_IPV6}):{_PORT}")


def _is_endpoint(value: str) -> bool:
    """RE2 cannot judge an IPv6 address wholly; ipaddress can."""
    host = value.rpartition(":")[0]
    return _is_probe(value) and (not host.startswith("[") or _is_ipv6(host[1:-1]))


def _is_ipv6(text: str) -> bool:
    import ipaddress  # seldom needed, and every start would pay for it

    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


ENDPOINT = Obeys(
    rule(
        "write host:port, like 192.0.2.1:443; an IPv6 address in brackets: [2001:db8::1]:443", _PROBE_CEL, _is_endpoint
    ),
    maxLength=261,
)
