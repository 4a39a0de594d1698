"""Writes the CustomResourceDefinitions from the models: structural schemas with CEL rules, no hand-written copy.

pydantic's JSON schema and a structural schema differ; `structural()` is the whole difference:
https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel

from virtnet.kube import api, status
from virtnet.kube.fields import Base

Schema = dict[str, Any]

_REPLACED = frozenset(
    {"$defs", "$ref", "additionalProperties", "anyOf", "default", "description", "items", "properties", "title", "type"}
)
_HEADER = "# Made by `virtnet crds` from the models in virtnet.kube. Do not edit.\n"


def render() -> dict[str, str]:
    """File name -> YAML text of each CRD."""
    return {f"{crd['metadata']['name']}.yaml": _HEADER + _yaml(crd) for crd in (policy_crd(), node_state_crd())}


def policy_crd() -> Schema:
    spec = structural(api.Spec)
    spec["default"] = {}
    spec["properties"]["mode"]["default"] = "Enforce"  # the column Mode shows it; no other default is written for users
    return _crd(
        kind=api.KIND,
        plural="virtionetworkpolicies",
        short="vnp",
        description=_docs(api.VirtioNetworkPolicy).own,
        properties={"spec": spec, "status": structural(status.PolicyStatus)},
        columns=[
            _column(
                "Ready", "string", '.status.conditions[?(@.type=="Ready")].status', "Whether all nodes are as asked"
            ),
            _column("Mode", "string", ".spec.mode", "Enforce or Audit"),
            _column("Nodes", "integer", ".status.nodes.matched", "Nodes that it selects"),
            _column("ReadyNodes", "integer", ".status.nodes.ready", "Nodes that are as asked"),
            _column("Blocked", "integer", ".status.nodes.blocked", "Nodes on which something cannot be as asked"),
            _AGE,
        ],
    )


def node_state_crd() -> Schema:
    kind = status.VirtioNetworkNodeState
    return _crd(
        kind=kind.KIND,
        plural="virtionetworknodestates",
        short="vnns",
        description=_docs(kind).own,
        properties={"status": structural(status.NodeStateStatus)},
        columns=[
            _column("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', "Whether all is as asked"),
            _column("Policies", "integer", ".status.counts.policies", "Policies in force on this node"),
            _column("Blocked", "integer", ".status.counts.blocked", "Settings that cannot be as asked"),
            _column("vhost", "string", ".status.vhost.module", "The vhost_net module"),
            _column("Restarts needed", "integer", ".status.counts.restartsNeeded", "Guests that must be started anew"),
            _AGE,
        ],
    )


def _column(name: str, kind: str, path: str, description: str) -> Schema:
    return {"name": name, "type": kind, "jsonPath": path, "description": description}


_AGE = _column("Age", "date", ".metadata.creationTimestamp", "Since when it exists")


def _crd(kind: str, plural: str, short: str, description: str, properties: Schema, columns: list[Schema]) -> Schema:
    texts = {
        "apiVersion": "The version of this schema: virtnet.dev/v1alpha1.",
        "kind": f"The kind of this object: {kind}.",
    }
    header: Schema = {name: {"type": "string", "description": text} for name, text in texts.items()}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{api.GROUP}"},
        "spec": {
            "group": api.GROUP,
            "scope": "Cluster",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
                "categories": ["virtnet"],
            },
            "versions": [
                {
                    "name": api.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "description": description,
                            "properties": {**header, "metadata": {"type": "object"}, **properties},
                        }
                    },
                }
            ],
        },
    }


# --- from pydantic to structural ---------------------------------------------------------------------------


def structural(model: type[BaseModel]) -> Schema:
    """The structural schema of a model: no references, no null alternatives, descriptions from the docstrings.

    Defaults are left out: they would make the API server write what the user did not.
    """
    schema = model.model_json_schema(by_alias=True)
    return _converted(schema, schema.get("$defs", {}))


def _converted(node: Schema, definitions: Mapping[str, Schema], text: str = "") -> Schema:
    """One node and all below it; `text` is what the field that holds it says of itself."""
    node = _inlined(node, definitions)
    docs = _docs(_models()[node["title"]]) if "properties" in node else _NO_DOCS
    made: Schema = {"description": text or docs.own, "type": node.get("type")}
    made |= {key: value for key, value in node.items() if key not in _REPLACED}
    if "properties" in node:
        made["properties"] = {
            name: _converted(child, definitions, docs.fields[name]) for name, child in node["properties"].items()
        }
    elif isinstance(extra := node.get("additionalProperties"), dict):
        made["additionalProperties"] = _converted(extra, definitions)
    if "items" in node:
        made["items"] = _converted(node["items"], definitions)
    return {key: value for key, value in made.items() if value not in ("", None)}


def _inlined(node: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """The node with its reference followed and its null alternative gone."""
    alternatives = [each for each in node.get("anyOf", ()) if each.get("type") != "null"]
    if alternatives:
        (only,) = alternatives
        return _inlined({**node, "anyOf": (), **only}, definitions)
    if reference := node.get("$ref"):
        rest = {key: value for key, value in node.items() if key not in {"$ref", "title"}}
        return _inlined({**rest, **definitions[reference.rpartition("/")[2]]}, definitions)
    return node


class _Docs(NamedTuple):
    """The docstrings of a model: its own, and those of its fields by alias."""

    own: str
    fields: Mapping[str, str]


_NO_DOCS = _Docs("", {})


@cache
def _docs(model: type[BaseModel]) -> _Docs:
    texts = {name: text for each in reversed(model.__mro__) for name, text in _field_texts(each)}
    fields = {field.alias or name: texts[name] for name, field in model.model_fields.items() if name in texts}
    return _Docs(inspect.cleandoc(model.__doc__ or ""), fields)


def _field_texts(model: type) -> Iterator[tuple[str, str]]:
    """The strings that stand below the fields of one class, read from the source."""
    if not issubclass(model, Base):
        return
    body = ast.parse(inspect.getsource(model)).body[0]
    statements = body.body if isinstance(body, ast.ClassDef) else []
    for field, text in pairwise(statements):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            yield field.target.id, inspect.cleandoc(ast.literal_eval(text.value))


@cache
def _models() -> Mapping[str, type[BaseModel]]:
    """Every model by its name, as pydantic titles it."""
    return {each.__name__: each for each in _below(Base)}


def _below(base: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for model in base.__subclasses__():
        yield model
        yield from _below(model)


class _Dumper(yaml.SafeDumper):
    """Lists indented below their key, nothing written as an alias."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(value: Schema) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
