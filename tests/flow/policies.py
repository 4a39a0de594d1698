"""Policies as text, one a line, read by the same models that read a user's file; a line that they refuse fails.

    p: {bridge: {name: br0, create: true}, uplink: {offloads: {tso: false}}}
    q/3: {priority: 10, mode: Audit}

What stands behind a slash is the generation, 1 where nothing is said. `generation`, `created` and `annotations` beside
the fields of the spec go to the metadata.
"""

from __future__ import annotations

import json
from functools import lru_cache

import yaml

from virtnet.core.model import Policy
from virtnet.kube import documents, manifests

METADATA = {"created": "creationTimestamp", "annotations": "annotations"}


def read(text: str) -> tuple[Policy, ...]:
    """The policies of all lines, in their order."""
    return tuple(read_line(line.strip()) for line in text.splitlines() if line.strip())


@lru_cache(maxsize=4096)
def read_line(line: str) -> Policy:
    head, _, body = line.partition(": ")
    name, _, generation = head.partition("/")
    spec = yaml.load(body, Loader=documents.LOADER)
    metadata = {"name": name, "generation": int(generation or 1)}
    metadata |= {field: spec.pop(word) for word, field in METADATA.items() if word in spec}
    document = {
        "apiVersion": "virtnet.dev/v1alpha1",
        "kind": "VirtioNetworkPolicy",
        "metadata": metadata,
        "spec": spec,
    }
    reading = manifests.read(json.dumps(document).encode(), line)
    assert not reading.errors, "\n".join(map(str, reading.errors))
    return reading.policies[0]
