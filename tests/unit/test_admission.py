"""The policies as one node sees them: which generation is in force, what is said of others, what a restart keeps."""

from __future__ import annotations

from typing import Any

import pytest

from virtnet.core import rollout
from virtnet.core.rollout import EVERYBODY
from virtnet.host import remembrance
from virtnet.host.state import StateDir
from virtnet.kube.admission import Admission

NODE = "n1"


def document(name: str = "p", generation: int = 1, admitted: int | None = EVERYBODY, **spec: Any) -> dict[str, Any]:
    """A policy as the API server sends it, with what others write into it."""
    found: dict[str, Any] = {
        "apiVersion": "virtnet.dev/v1alpha1",
        "kind": "VirtioNetworkPolicy",
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "generation": generation,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "resourceVersion": "77",
            "managedFields": [{"manager": "kubectl"}],
        },
        "spec": {"bridge": {"name": "br0"}, **spec},
    }
    if admitted is not None:
        found["status"] = {"rollout": {"generation": generation, "admitted": admitted}}
    return found


@pytest.fixture
def admission(state: StateDir) -> Admission:
    return Admission(NODE, state)


def in_force(admission: Admission) -> dict[str, int]:
    return {policy.name: policy.generation for policy in admission.in_force()}


def test_the_first_generation_waits_until_it_is_admitted(admission: Admission) -> None:
    admission.see(document(admitted=None))
    assert in_force(admission) == {}
    admission.see(document(admitted=rollout.rank("uid-p", NODE)))
    assert in_force(admission) == {}
    admission.see(document(admitted=rollout.rank("uid-p", NODE) + 1))
    assert in_force(admission) == {"p": 1}


def test_a_later_generation_replaces_the_one_in_force_when_it_is_admitted(admission: Admission) -> None:
    admission.see(document())
    admission.see(document(generation=2, admitted=0, priority=5))
    assert in_force(admission) == {"p": 1}
    admission.see(document(generation=2, priority=5))
    assert in_force(admission) == {"p": 2}
    assert admission.in_force()[0].priority == 5


def test_a_generation_of_equal_content_needs_no_admission(admission: Admission) -> None:
    admission.see(document())
    admission.see(document(generation=2, admitted=0, rollout={"paused": True}))
    assert in_force(admission) == {"p": 2}


def test_what_matters_to_no_node_is_not_noticed(admission: Admission) -> None:
    assert admission.see(document())
    changed = document()
    changed["metadata"] |= {"resourceVersion": "78", "annotations": {"kubectl.kubernetes.io/x": "y"}}
    changed["status"]["nodes"] = {"ready": 3}
    assert not admission.see(changed)
    changed["metadata"]["annotations"]["virtnet.dev/allow-mass-removal"] = "1"
    assert admission.see(changed)
    assert admission.in_force()[0].annotations == (("virtnet.dev/allow-mass-removal", "1"),)


def test_annotations_are_the_newest_ones_also_of_the_generation_in_force(admission: Admission) -> None:
    admission.see(document())
    newer = document(generation=2, admitted=0, priority=5)
    newer["metadata"]["annotations"] = {"virtnet.dev/resume": "2"}
    admission.see(newer)
    held = admission.in_force()[0]
    assert (held.generation, held.annotations) == (1, (("virtnet.dev/resume", "2"),))


def test_an_object_that_the_models_refuse_changes_nothing_and_is_told(admission: Admission) -> None:
    admission.see(document())
    admission.see(document(generation=2, tap={"colour": "red"}))
    assert in_force(admission) == {"p": 1}
    (sentence,) = admission.complaints()
    assert sentence.startswith("policy p, generation 2: spec.tap.colour: there is no field 'colour' here")
    assert sentence.endswith("its generation 1 stays in force")
    admission.see(document(generation=3))
    assert (in_force(admission), admission.complaints()) == ({"p": 3}, ())


def test_a_bad_object_that_was_never_good_is_told_and_not_in_force(admission: Admission) -> None:
    admission.see(document(tap={"colour": "red"}))
    assert admission.in_force() == ()
    assert admission.complaints()[0].endswith("nothing of it is in force")


def test_a_deleted_policy_is_forgotten_also_on_the_disk(admission: Admission, state: StateDir) -> None:
    admission.see(document())
    admission.save()
    admission.forget(["p", "never-seen"])
    admission.save()
    assert in_force(admission) == {}
    assert remembrance.read_admitted(state) == {}


def test_after_a_restart_the_admitted_generation_is_in_force_without_a_server(
    admission: Admission, state: StateDir
) -> None:
    admission.see(document())
    admission.see(document(generation=2, admitted=0, priority=5))
    admission.see(document("waiting", admitted=0))
    admission.save()
    again = Admission(NODE, state)
    assert again.restore()
    assert again.in_force() == admission.in_force()
    again.see(document("waiting", generation=2, admitted=0, priority=1))
    assert in_force(again) == {"p": 1}, "a node that knew the policy and had none waits on"


def test_nothing_kept_is_not_the_same_as_no_policies(admission: Admission, state: StateDir) -> None:
    assert not Admission(NODE, state).restore()
    admission.save()
    assert Admission(NODE, state).restore()


def test_a_damaged_cache_is_set_aside_and_counts_as_none(admission: Admission, state: StateDir) -> None:
    (state.path / remembrance.ADMITTED).write_text('{"p": {"uid": 7}}')
    assert not admission.restore()
    assert any(remembrance.ADMITTED in problem for problem in state.problems)


def test_a_cached_policy_of_another_version_is_told_and_left_out(admission: Admission, state: StateDir) -> None:
    text = '{"apiVersion": "virtnet.dev/v1alpha1", "kind": "VirtioNetworkPolicy", "metadata": {"name": "p"}, "spec": 7}'
    remembrance.write_admitted(state, {"p": remembrance.Admitted("uid-p", text)})
    assert admission.restore()
    assert admission.in_force() == ()
    assert "as it was kept on this node" in admission.complaints()[0]
    admission.see(document())
    assert admission.complaints() == ()


def test_policies_whose_definition_is_gone_stay_in_force_and_it_is_told_over_a_restart(
    admission: Admission, state: StateDir
) -> None:
    admission.see(document())
    admission.orphan({"p"})
    admission.save()
    again = Admission(NODE, state)
    again.restore()
    for one in (admission, again):
        assert in_force(one) == {"p": 1}
        assert one.orphans == {"p"}
        assert "its definition is gone" in one.complaints()[0]
    back = document()
    back["metadata"]["uid"] = "another"
    again.see(back)
    assert (in_force(again), again.orphans, again.complaints()) == ({"p": 1}, frozenset(), ())


def test_who_rests_holds_nothing_and_takes_the_newest_afterwards(admission: Admission, state: StateDir) -> None:
    admission.see(document())
    admission.rest()
    admission.see(document(generation=2, priority=5))
    admission.save()
    assert (in_force(admission), remembrance.read_admitted(state)) == ({}, {})
    admission.resume()
    assert in_force(admission) == {"p": 2}


def test_a_disk_that_refuses_is_told_and_nothing_else(admission: Admission, state: StateDir) -> None:
    admission.see(document())
    read_only = Admission(NODE, StateDir(state.path, read_only=True))
    read_only.see(document())
    read_only.save()
    assert in_force(read_only) == {"p": 1}
    assert "not kept for a restart" in read_only.complaints()[0]
