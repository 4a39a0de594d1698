"""Rollouts: which generation a node enforces, and how the controller lets the next one out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.fleet_in_time import LAG, Member, World
from virtnet.core import rollout
from virtnet.core.model import BridgeSpec, Mode, Policy, Reason, Rollout, UplinkSpec
from virtnet.core.rollout import EVERYBODY, Fault, Held, Order, Published, Step, Traveller

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


# --- the controller, look by look --------------------------------------------------------------------------

NOW = 1_700_000_000.0


def travellers(count: int, **of_all: object) -> list[Traveller]:
    """Nodes n0, n1, ... in the order of their ranks."""
    made = {"generation": 1, "ready": True, **of_all}
    return [Traveller(f"n{number}", (number + 1) * 1000, **made) for number in range(count)]  # type: ignore[arg-type]


def look(
    nodes: list[Traveller], previous: Published | None, waiting: dict[str, float] | None = None, **spec: object
) -> Step:
    order = Order(2, Rollout(**spec))  # type: ignore[arg-type]
    return rollout.step(order, nodes, previous, waiting or {}, NOW)


def published(step: Step) -> Published:
    assert step.published is not None
    return step.published


def names(nodes: list[Traveller], found: Published) -> str:
    return " ".join(node.node for node in nodes if node.rank < found.admitted)


def arrive(nodes: list[Traveller], count: int, **changes: object) -> list[Traveller]:
    return [replace(node, generation=2, **changes) for node in nodes[:count]] + nodes[count:]  # type: ignore[arg-type]


BEFORE = Published(1, EVERYBODY)
FAULT = Fault("uplink.mtu", Reason.REFUSED, "the driver says no", NOW)


def test_one_canary_goes_first_and_then_a_quarter_of_the_nodes_rounded_up() -> None:
    nodes, found, seen = travellers(9), BEFORE, []
    for _ in range(5):
        found = published(look(nodes, found))
        seen.append(names(nodes, found))
        nodes = arrive(nodes, len(seen[-1].split()))
    assert [len(each.split()) for each in seen] == [1, 4, 7, 9, 9]
    assert seen[0] == "n0"
    assert found == Published(2, EVERYBODY)


def test_more_canaries_than_may_move_at_a_time_go_one_after_another() -> None:
    nodes = travellers(8)
    first = published(look(nodes, BEFORE, canary=3, max_unavailable=2))
    assert names(nodes, first) == "n0 n1"
    nodes = arrive(nodes, 2)
    assert names(nodes, published(look(nodes, first, canary=3, max_unavailable=2))) == "n0 n1 n2"


def test_no_canary_and_nobody_unavailable_still_moves_one_node_at_a_time() -> None:
    nodes = travellers(3)
    assert names(nodes, published(look(nodes, BEFORE, canary=0, max_unavailable=0))) == "n0"


def test_a_step_waits_for_the_one_before() -> None:
    nodes = travellers(4)
    first = published(look(nodes, BEFORE))
    assert look(nodes, first).published == first
    assert look(arrive(nodes, 1, ready=False), first).published == first


def test_a_failing_node_pauses_at_once_and_its_recovery_ends_the_pause() -> None:
    nodes = travellers(4)
    first = published(look(nodes, BEFORE))
    failing = arrive(nodes, 1, ready=False, fault=FAULT)
    paused = published(look(failing, first))
    assert (paused.paused, paused.admitted) == (True, first.admitted)
    assert paused.reason == "n0: uplink.mtu: Refused: the driver says no"
    assert published(look(arrive(nodes, 1, ready=False), paused)) == paused, "it is not Ready yet"
    healed = published(look(arrive(nodes, 1), paused))
    assert (healed.paused, healed.reason, names(nodes, healed)) == (False, "", "n0 n1")


def test_a_failing_node_that_dies_ends_the_pause_too() -> None:
    nodes = travellers(4)
    paused = replace(published(look(nodes, BEFORE)), paused=True, reason="n0 fails")
    nodes[0] = replace(nodes[0], generation=2, alive=False, ready=False, fault=FAULT)
    assert not published(look(nodes, paused)).paused


def test_the_annotation_goes_on_in_spite_of_the_failure() -> None:
    nodes = travellers(4)
    first = published(look(nodes, BEFORE))
    failing = arrive(nodes, 1, ready=False, fault=FAULT)
    paused = published(look(failing, first))
    step = rollout.step(Order(2, Rollout(), resumed=True), failing, paused, {}, NOW)
    assert names(nodes, published(step)) == "n0 n1"


def test_a_failure_does_not_pause_where_the_policy_says_so() -> None:
    nodes = travellers(2)
    first = published(look(nodes, BEFORE, pause_on_failure=False))
    failing = arrive(nodes, 1, ready=False, fault=FAULT)
    assert published(look(failing, first, pause_on_failure=False)).admitted == EVERYBODY


def test_a_silent_node_fails_at_the_deadline() -> None:
    nodes = travellers(4)
    first = published(look(nodes, BEFORE))
    assert not published(look(nodes, first, {"n0": NOW - 119})).paused
    late = published(look(nodes, first, {"n0": NOW - 120}))
    assert late.reason == "n0: policy: Failed: generation 2 is not done after 120 seconds"


def test_a_node_without_an_agent_fails_at_the_deadline_and_says_so() -> None:
    nodes = travellers(4)
    nodes[0] = replace(nodes[0], ready=False, down=Fault("agent", Reason.AGENT_DOWN, "no agent runs there"))
    first = published(look(nodes, BEFORE))
    late = published(look(nodes, first, {"n0": NOW - 120}))
    assert late.reason == "n0: agent: AgentDown: no agent runs there"


def test_a_node_that_failed_before_the_rollout_does_not_count() -> None:
    nodes = travellers(4)
    old = Fault("uplink.mtu", Reason.REFUSED, "the driver says no", NOW - 3600)
    nodes[0] = replace(nodes[0], ready=False, fault=old)
    first = published(look(nodes, BEFORE))
    nodes = arrive(nodes, 1)
    assert names(nodes, published(look(nodes, first))) == "n0 n1"


def test_a_failure_that_the_rollout_brought_counts_after_an_edit_too() -> None:
    nodes = arrive(travellers(4), 1, ready=False, fault=FAULT)
    paused = Published(2, nodes[0].rank + 1, True, "n0 fails", began=NOW - 600)
    nodes[0] = replace(nodes[0], generation=3)
    step = rollout.step(Order(3, Rollout()), nodes, paused, {}, NOW)
    assert (published(step).paused, published(step).began) == (True, NOW - 600)


def test_dead_nodes_take_no_place_and_block_nothing() -> None:
    nodes = travellers(8)
    nodes[0] = replace(nodes[0], alive=False, ready=False)
    first = published(look(nodes, BEFORE))
    assert names(nodes, first) == "n0 n1", "n0 is passed over, n1 is the canary"


def test_a_deselected_node_waits_for_its_turn_and_is_done_when_it_reports_nothing() -> None:
    nodes = travellers(4, selected=False)
    first = published(look(nodes, BEFORE))
    assert names(nodes, first) == "n0"
    assert names(nodes, published(look(nodes[1:], first))) == "n0 n1"


def test_nodes_with_equal_content_take_no_place() -> None:
    nodes = arrive(travellers(8), 6)
    assert names(nodes, published(look(nodes, BEFORE))) == "n0 n1 n2 n3 n4 n5 n6"


def test_the_user_stops_it_and_nobody_else_is_admitted() -> None:
    nodes = travellers(4)
    found = published(look(nodes, BEFORE, paused=True))
    assert (found.admitted, found.paused, found.reason) == (0, True, rollout.PAUSED_BY_USER)
    assert published(look(arrive(nodes, 4), found, paused=True)).admitted == 0


def test_an_edit_waits_for_those_on_their_way_to_the_generation_before() -> None:
    nodes = travellers(8)
    halfway = Published(2, nodes[3].rank, began=NOW)
    order, moving = Order(3, Rollout()), arrive(nodes, 1)
    assert rollout.step(order, moving, halfway, {}, NOW).published == halfway
    arrived = published(rollout.step(order, arrive(nodes, 3), halfway, {}, NOW))
    assert (arrived.generation, names(nodes, arrived)) == (3, "n0")
    overdue = rollout.step(order, moving, halfway, {"n1": NOW - 120, "n2": NOW - 120}, NOW)
    assert published(overdue).generation == 3


def test_an_edit_that_deselects_a_node_on_its_way_waits_for_it() -> None:
    nodes = travellers(8, generation=None, ready=False)
    nodes[1] = replace(nodes[1], selected=False)
    halfway = Published(2, nodes[2].rank, began=NOW)
    order = Order(3, Rollout())
    assert rollout.step(order, nodes, halfway, {"n1": NOW - 1}, NOW).published == halfway
    assert published(rollout.step(order, nodes, halfway, {}, NOW)).generation == 3, "it was not on its way"


def test_an_edit_right_after_the_first_step_waits_for_nobody() -> None:
    nodes = travellers(8)
    first = Published(2, nodes[0].rank + 1, began=NOW)
    assert published(rollout.step(Order(3, Rollout()), nodes, first, {}, NOW)).generation == 3


def test_what_a_deleted_policy_of_the_same_name_left_is_waited_for() -> None:
    nodes = travellers(4)
    order = Order(1, Rollout())
    assert rollout.step(order, nodes, None, {}, NOW).published is None
    fresh = travellers(4, generation=None, ready=False)
    assert names(fresh, published(rollout.step(order, fresh, None, {}, NOW))) == "n0"


def test_after_the_rollout_a_failure_is_told_and_pauses_nothing() -> None:
    nodes = arrive(travellers(2), 2)
    nodes[1] = replace(nodes[1], ready=False, fault=FAULT)
    step = look(nodes, Published(2, EVERYBODY))
    assert step.published == Published(2, EVERYBODY)
    assert [str(failure) for failure in step.failures] == ["n1: uplink.mtu: Refused: the driver says no"]


def test_a_policy_without_nodes_is_rolled_out() -> None:
    assert look([], None).published == Published(2, EVERYBODY)


def test_a_long_reason_keeps_how_many_more_nodes_fail() -> None:
    long = replace(FAULT, message="x" * 2000)
    nodes = arrive(travellers(3), 3, ready=False, fault=long)
    found = published(look(nodes, Published(2, EVERYBODY, began=NOW)))
    assert len(found.reason) == rollout.LONGEST_REASON
    assert found.reason.endswith("… (and 2 more nodes)")


# --- in time -----------------------------------------------------------------------------------------------

SHARES = st.sampled_from([0, 1, 2, 5, "0%", "10%", "25%", "34%", "100%"])
SPECS = st.builds(
    Rollout, canary=SHARES, max_unavailable=SHARES, pause_on_failure=st.booleans(), deadline_seconds=st.just(120)
)
TO_A_NODE = ["break", "heal", "die", "wake", "crash", "recover", "leave", "forget"]
EVENTS = st.sampled_from(
    ["quiet", "quiet", "quiet", *TO_A_NODE, "join", "edit", "edit-spec", "pause", "resume", "zone", "restart"]
)


def happen(world: World, event: str, number: int, slow: int, spec: Rollout) -> None:
    """One thing that happens; to a node, to the one of this number."""
    members = sorted(world.members)
    name = members[number % len(members)] if members else ""
    member = world.members.get(name)
    match event:
        case "join":
            world.join(slow)
        case "edit":
            world.edit(bridge=BridgeSpec("br0", mtu=1500 + number))
        case "edit-spec":
            world.edit(rollout=spec)
        case "pause":
            world.edit(rollout=replace(world.policy.rollout, paused=not world.policy.rollout.paused))
        case "resume":
            world.resumed = world.policy.generation
        case "zone":
            world.select(("", "a", "b")[number % 3])
        case "restart":
            world.restart()
        case _ if member is not None:
            happen_to(world, member, event, number)


def happen_to(world: World, member: Member, event: str, number: int) -> None:
    member.trusted = member.trusted and event not in {"die", "crash", "forget"}
    match event:
        case "break":
            member.breaks = frozenset({1500 + number, *member.breaks, 1500})
        case "heal":
            member.breaks = frozenset()
        case "die" | "wake":
            member.alive = event == "wake"
        case "crash" | "recover":
            member.agent = event == "recover"
        case "leave":
            del world.members[member.name]
        case "forget":
            member.held, member.newcomer = None, True


HAPPENINGS = st.lists(st.tuples(EVENTS, st.integers(0, 11), st.integers(1, LAG), SPECS), max_size=40)


@given(slowness=st.lists(st.integers(1, LAG), max_size=12), spec=SPECS, happenings=HAPPENINGS)
def test_whatever_happens_a_rollout_keeps_its_promises_and_ends(
    slowness: list[int], spec: Rollout, happenings: list[tuple[str, int, int, Rollout]]
) -> None:
    world = World.of(slowness, spec)
    for event, number, slow, other in happenings:
        happen(world, event, number, slow, other)
        world.tick()
    world.settle()
    assert world.published is not None
    if world.published.paused:
        assert world.published.reason
        assert world.policy.rollout.paused or any(unwell(member) for member in world.members.values())


def unwell(member: Member) -> bool:
    return bool(member.breaks) or not member.agent


@given(slowness=st.lists(st.integers(1, LAG), max_size=12), spec=SPECS, happenings=HAPPENINGS)
def test_when_everything_heals_every_node_has_the_newest_generation(
    slowness: list[int], spec: Rollout, happenings: list[tuple[str, int, int, Rollout]]
) -> None:
    world = World.of(slowness, spec)
    for event, number, slow, other in happenings:
        happen(world, event, number, slow, other)
        world.tick()
    for member in world.members.values():
        member.alive, member.agent, member.breaks = True, True, frozenset()
    if world.policy.rollout.paused:
        world.edit(rollout=spec)
    world.settle()
    assert world.published == Published(world.policy.generation, EVERYBODY)
    assert {member.held and member.held.policy for member in world.members.values()} <= {world.policy}
