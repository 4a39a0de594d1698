"""Rollouts: which generation a node enforces, and how the controller lets the next one out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from virtnet.core import rollout
from virtnet.core.model import Mode, Policy, Rollout, UplinkSpec
from virtnet.core.rollout import EVERYBODY, Held, Published

UID = "6f0f6a4e-6c4b-4b0e-9c37-0f3f4f3a2c11"


def policy(generation: int, *, tso: bool = True, uid: str = UID, **others: object) -> Policy:
    uplink = UplinkSpec(offloads=(("tso", tso),))
    return replace(Policy("p", uid, generation, digest=f"d{generation}", uplink=uplink), **others)  # type: ignore[arg-type]


def test_the_rank_is_the_first_52_bits_of_the_hash_of_uid_and_node() -> None:
    import hashlib

    digest = hashlib.sha256(f"{UID}/node-1".encode()).digest()
    assert rollout.rank(UID, "node-1") == int.from_bytes(digest[:7], "big") >> 4
    assert rollout.rank(UID, "node-1") != rollout.rank(UID, "node-2")
    assert 0 <= rollout.rank("", "") < EVERYBODY


# --- on a node ---------------------------------------------------------------------------------------------

PLACE = rollout.rank(UID, "n")
OLD, NEW = policy(3), policy(4, tso=False)


@pytest.mark.parametrize(
    ("held", "newest", "published", "generation"),
    [
        pytest.param(None, policy(1), None, None, id="the first generation waits for the controller"),
        pytest.param(None, policy(1), Published(1, PLACE), None, id="the first generation waits for its turn"),
        pytest.param(None, policy(1), Published(1, PLACE + 1), 1, id="the first generation is admitted"),
        pytest.param(Held(UID, OLD), NEW, Published(3, EVERYBODY), 3, id="admitted to the earlier one only"),
        pytest.param(Held(UID, OLD), NEW, Published(4, PLACE), 3, id="not admitted yet"),
        pytest.param(Held(UID, OLD), NEW, Published(4, PLACE + 1), 4, id="admitted"),
        pytest.param(Held(UID, OLD), NEW, None, 3, id="nothing published keeps what is in force"),
        pytest.param(Held(UID, OLD), policy(4), Published(3, 0), 4, id="equal content needs no admission"),
        pytest.param(
            Held(UID, OLD), policy(4, rollout=Rollout(paused=True)), None, 4, id="a pause is no content of the host"
        ),
        pytest.param(None, NEW, Published(4, 0), 4, id="a node that joins takes the newest"),
        pytest.param(None, NEW, Published(3, EVERYBODY), 4, id="a node that joins while the controller sleeps"),
        pytest.param(None, NEW, None, None, id="nobody was ever admitted, so nobody joins"),
        pytest.param(None, NEW, Published(1, PLACE), None, id="edited before its first turn came"),
        pytest.param(None, NEW, Published(1, PLACE + 1), 4, id="a node that joins where the others have it"),
        pytest.param(Held(UID, None), NEW, Published(4, PLACE), None, id="it waits since the first generation"),
        pytest.param(
            Held("other", OLD), NEW, Published(4, 0), 4, id="another policy of the name: it has never seen it"
        ),
        pytest.param(Held("other", OLD), policy(1, tso=False), Published(1, 0), None, id="made anew, of other content"),
        pytest.param(Held("other", OLD), policy(1), None, 1, id="made anew with the same content: nothing moves"),
    ],
)
def test_a_node_enforces_the_generation_that_it_may_have(
    held: Held | None, newest: Policy, published: Published | None, generation: int | None
) -> None:
    chosen = rollout.choose(held, newest, published, "n")
    assert chosen.uid == UID
    assert (chosen.policy.generation if chosen.policy else None) == generation


def test_a_waiting_node_sees_the_newest_annotations() -> None:
    annotations = (("virtnet.dev/allow-mass-removal", "3"),)
    chosen = rollout.choose(Held(UID, OLD), replace(NEW, annotations=annotations), None, "n")
    assert chosen.policy == replace(OLD, annotations=annotations)


def test_choosing_again_changes_nothing() -> None:
    for published in (None, Published(4, PLACE), Published(4, PLACE + 1)):
        chosen = rollout.choose(Held(UID, OLD), NEW, published, "n")
        assert rollout.choose(chosen, NEW, published, "n") == chosen


def test_another_mode_is_other_content() -> None:
    assert not rollout.same_content(OLD, replace(OLD, mode=Mode.AUDIT))


# --- the status --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "published", [Published(1, 0), Published(7, EVERYBODY, True, "n1: uplink: Failed: no", began=1_700_000_000.0)]
)
def test_what_is_published_reads_back(published: Published) -> None:
    assert Published.read({"rollout": published.write()}) == published


@pytest.mark.parametrize("status", [None, {}, {"rollout": None}, {"rollout": {"generation": "1", "admitted": 2}}, 7])
def test_a_status_without_a_rollout_publishes_nothing(status: object) -> None:
    assert Published.read(status) is None
