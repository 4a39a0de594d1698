"""The policies as one node sees them: the newest of each, the generation that is in force here, and what is wrong.

It reads objects and the disk, and asks no server. What is in force is what `core.rollout.choose` says; an object that
the models refuse changes nothing but the complaints, and what vanishes is forgotten only when somebody says so.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from pydantic import ValidationError

from virtnet.core import rollout
from virtnet.core.model import Policy
from virtnet.core.rollout import Held, Published
from virtnet.errors import LedgerError
from virtnet.host import remembrance
from virtnet.host.remembrance import Admitted
from virtnet.host.state import StateDir
from virtnet.kube import api, explain, places
from virtnet.values import frozen

Document = Mapping[str, Any]

MOST_FAULTS = 3
"""Faults of one object that are told: the API server's own rules let few through."""


@frozen
class Version:
    """What tells one state of an object from another as far as a node is concerned; the rest of its status is not."""

    uid: str
    generation: int
    annotations: tuple[tuple[str, str], ...]
    published: Published | None


@frozen
class Newest:
    """The newest state of a policy that was seen. `policy` is None when the models refuse it: `fault` says why."""

    version: Version
    text: str
    policy: Policy | None
    fault: str = ""


class Admission:
    """The policies of `node`. After each change ask `in_force` and `complaints`, and call `save`."""

    def __init__(self, node: str, state: StateDir) -> None:
        self.node, self.state = node, state
        self.resting = False
        """Released: nothing is in force, and nothing is taken."""
        self._newest: dict[str, Newest] = {}
        self._held: dict[str, Held] = {}
        self._kept: dict[str, Admitted] = {}
        """What is on the disk, or will be: by name, of everything that is held."""
        self._unreadable: dict[str, str] = {}
        self._unsaved = ""

    def restore(self) -> bool:
        """Put in force what was before the process ended; whether anything was ever kept here, if only "nothing"."""
        kept = remembrance.read_admitted(self.state)
        for name, admitted in (kept or {}).items():
            policy, fault = _parse(admitted.text) if admitted.text else (None, "")
            self._held[name], self._kept[name] = Held(admitted.uid, policy), admitted
            if fault:
                self._unreadable[name] = fault
        return kept is not None

    # --- what is heard ---

    def see(self, document: Document) -> bool:
        """Take notice of an object as it is now; whether it may matter here."""
        name, version = document["metadata"]["name"], _version(document)
        newest = self._newest.get(name)
        if newest is not None and newest.version == version:
            return False
        if newest is None or (newest.version.uid, newest.version.generation) != (version.uid, version.generation):
            newest = _read(document, version)
        else:
            newest = _annotated(newest, version)
        self._newest[name] = newest
        self._choose(name, newest)
        return True

    def forget(self, names: Collection[str]) -> None:
        """These policies are deleted; forgetting one that is not known is nothing."""
        for name in names:
            for known in (self._newest, self._held, self._kept, self._unreadable):
                known.pop(name, None)

    def orphan(self, names: Collection[str]) -> None:
        """The definition of their kind is gone, and these with it: they stay in force."""
        for name in names:
            self._newest.pop(name, None)
            if name in self._kept:
                self._kept[name] = replace(self._kept[name], orphaned=True)

    def rest(self) -> None:
        """Released: hold nothing until `resume`. What is seen meanwhile is remembered as the newest."""
        self.resting = True
        self._held.clear()
        self._kept.clear()
        self._unreadable.clear()

    def resume(self) -> None:
        """Take the policies anew, as a node does that has just joined."""
        self.resting = False
        for name, newest in self._newest.items():
            self._choose(name, newest)

    def _choose(self, name: str, newest: Newest) -> None:
        if self.resting:
            return
        kept = self._kept.get(name)
        if newest.policy is None:
            if kept and kept.orphaned:
                self._kept[name] = replace(kept, orphaned=False)
            return
        before = self._held.get(name)
        held = rollout.choose(before, newest.policy, newest.version.published, self.node)
        if held.policy is None:
            text = ""
        elif held.policy is newest.policy:
            text = newest.text
        else:
            text = kept.text if kept else ""
        self._held[name], self._kept[name] = held, Admitted(held.uid, text)
        self._unreadable.pop(name, None)

    # --- what follows ---

    @property
    def names(self) -> frozenset[str]:
        """All policies that are known, in force here or not."""
        return frozenset({*self._newest, *self._held})

    @property
    def orphans(self) -> frozenset[str]:
        return frozenset(name for name, kept in self._kept.items() if kept.orphaned)

    def in_force(self) -> tuple[Policy, ...]:
        """By name; those that do not select this node are among them."""
        return tuple(held.policy for _, held in sorted(self._held.items()) if held.policy)

    def complaints(self) -> tuple[str, ...]:
        """A sentence for each policy that is not in force as it should be, or is but should perhaps not be."""
        return (*self._complain(), *((self._unsaved,) if self._unsaved else ()))

    def _complain(self) -> Iterator[str]:
        for name, newest in sorted(self._newest.items()):
            if newest.fault:
                yield f"policy {name}, generation {newest.version.generation}: {newest.fault}; {self._instead(name)}"
        for name, fault in sorted(self._unreadable.items()):
            if name not in self._newest:
                yield f"policy {name}, as it was kept on this node: {fault}; nothing of it is in force"
        for name in sorted(self.orphans - self._newest.keys()):
            yield f"policy {name}: its definition is gone from the API server; it stays in force as it was"

    def _instead(self, name: str) -> str:
        held = self._held.get(name)
        if held is None or held.policy is None:
            return "nothing of it is in force"
        return f"its generation {held.policy.generation} stays in force"

    def save(self) -> None:
        """Keep what is held for the next start. A disk that refuses is said in the complaints, and nothing else."""
        try:
            remembrance.write_admitted(self.state, self._kept)
            self._unsaved = ""
        except LedgerError as error:
            self._unsaved = f"the policies are not kept for a restart: {error}"


# --- objects -----------------------------------------------------------------------------------------------


def _version(document: Document) -> Version:
    metadata = document["metadata"]
    annotations = metadata.get("annotations") or {}
    ours = ((key, value) for key, value in annotations.items() if key.startswith(f"{api.GROUP}/"))
    return Version(
        metadata.get("uid", ""),
        metadata.get("generation", 0),
        tuple(sorted(ours)),
        Published.read(document.get("status")),
    )


def _read(document: Document, version: Version) -> Newest:
    text = _text(document)
    policy, fault = _parse(text)
    return Newest(version, text, policy, fault)


def _text(document: Document) -> str:
    """The object as JSON, without what others have written into it: managers, finalizers, status."""
    wanted = ("name", "uid", "generation", "creationTimestamp", "annotations")
    metadata = {key: value for key, value in document["metadata"].items() if key in wanted}
    kept = {key: document[key] for key in ("apiVersion", "kind", "spec") if key in document}
    return json.dumps({**kept, "metadata": metadata}, sort_keys=True)


def _parse(text: str) -> tuple[Policy | None, str]:
    """The policy, or None and what is wrong with it."""
    try:
        return api.VirtioNetworkPolicy.model_validate_json(text).to_core(), ""
    except ValidationError as error:
        found = islice(explain.problems(error), MOST_FAULTS)
        return None, ", ".join(f"{places.path(problem.loc)}: {problem.sentence}" for problem in found)


def _annotated(newest: Newest, version: Version) -> Newest:
    """The same generation with other annotations, or further on its way."""
    policy = newest.policy and replace(newest.policy, annotations=version.annotations)
    return replace(newest, version=version, policy=policy)
