"""The plan: its order, what runs in a transaction, what the ledger must know first, and what stands in the way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.flow import rules
from tests.unit.hosts import (
    BR0,
    NODE,
    asks,
    bridge,
    desired_of,
    host,
    ledger,
    ledger_after,
    named,
    nic,
    plan_of,
    record,
    said,
    tap,
    todo,
    with_features,
    with_link,
    without,
)
from virtnet.core import plan as planning
from virtnet.core import resolve
from virtnet.core.model import (
    BridgeSpec,
    Deletion,
    Disruption,
    Features,
    HostState,
    Made,
    Match,
    ModuleState,
    ModuleStatus,
    ModuleWish,
    Policy,
    Reason,
    Recorded,
    Rings,
    Setting,
    Step,
    TapSpec,
    TapToCreate,
    UplinkSpec,
    VhostSpec,
)
from virtnet.core.standing import Refusal, Standing

EVERYTHING = Policy(
    "p",
    bridge=BridgeSpec("br0", create=True, ports=("eth0",), stp=True, mtu=1400, offloads=asks(gro=False)),
    uplink=UplinkSpec(Match(names=("eth0",)), asks(gso=False, rxvlan=False), rings_rx=512, channels_combined=2),
    tap=TapSpec(create=(TapToCreate("tap9", owner=107),), mtu=1400, offloads=asks(gro=False)),
    vhost=VhostSpec(state=ModuleWish.LOADED, persist=False),
)
ABSENT = ModuleState("vhost_net", ModuleStatus.ABSENT)
BEFORE = host(bridge("br0"), nic("eth0"), tap("tap0", on="br0"), tap("old0"), module=ABSENT)


# --- order -------------------------------------------------------------------------------------------------


def test_the_order_is_module_links_attributes_ports_features_what_is_put_back_and_removals() -> None:
    recorded = ledger(
        record(named(BEFORE, "old0"), txQueueLength=(500, 1000), feature_rx_gro=(False, True)),
        made=(Made("old0", 4, "tap", "gone", Deletion.RETAIN),),
    )
    assert todo(plan_of(BEFORE, EVERYTHING, recorded=recorded)) == [
        "vhost_net state=Loaded",
        "tap9 exists=True",
        "br0 bridge.stp=True",
        "br0 mtu=1400",
        "eth0 rings.rx=512",
        "eth0 channels.combined=2",
        "tap0 mtu=1400",
        "eth0 master=br0",
        "br0 -rx-gro",
        "eth0 -tx-generic-segmentation",
        "eth0 -rx-vlan-hw-parse",
        "tap0 -rx-gro",
        "old0 txQueueLength=500",
        "old0 -rx-gro",
    ]


def test_removals_come_last() -> None:
    recorded = ledger(record(named(BEFORE, "eth0"), mtu=(1400, 1500)), made=(Made("old0", 4, "tap", "gone"),))
    wish = Policy("p", bridge=BridgeSpec("br0", mtu=1400))
    assert todo(plan_of(BEFORE, wish, recorded=recorded)) == ["br0 mtu=1400", "eth0 mtu=1400", "old0 exists=None"]


def test_what_is_risky_runs_in_a_transaction() -> None:
    risky = {words for step in plan_of(BEFORE, EVERYTHING).steps if step.risky for words in todo_of(step)}
    assert risky == {
        "br0 bridge.stp=True",
        "br0 mtu=1400",
        "eth0 rings.rx=512",
        "eth0 channels.combined=2",
        "tap0 mtu=1400",
        "eth0 master=br0",
        "eth0 -rx-vlan-hw-parse",
    }


def todo_of(step: Step) -> list[str]:
    return todo(planning.Plan((step,)))


def test_only_hardware_with_a_carrier_is_waited_for() -> None:
    waits = {step.change.link.name for step in plan_of(BEFORE, EVERYTHING).steps if step.wait_carrier}  # type: ignore[union-attr]
    assert waits == {"eth0"}


def test_what_is_as_asked_has_an_empty_plan() -> None:
    wish = Policy("p", bridge=BridgeSpec("br0", mtu=1500, stp=False), tap=TapSpec(offloads=asks(gro=True)))
    plan = plan_of(BEFORE, wish)
    assert (plan.steps, plan.blocked, plan.pending, plan.unmet) == ((), (), (), frozenset())


def test_options_of_one_bridge_are_one_change_for_each_owner() -> None:
    one = Policy("a", bridge=BridgeSpec("br0", stp=True, forward_delay_seconds=4))
    two = Policy("b", bridge=BridgeSpec("br0", ageing_time_seconds=10))
    plan = plan_of(BEFORE, one, two)
    assert [(step.policy, len(step.settings)) for step in plan.steps] == [("a", 2), ("b", 1)]


def test_one_bad_setting_never_blocks_another() -> None:
    wish = Policy("p", bridge=BR0, uplink=UplinkSpec(Match(names=("eth0",)), asks(ufo=True, gro=False), rings_rx=99999))
    plan = plan_of(BEFORE, wish)
    assert todo(plan) == ["eth0 -rx-gro"]
    assert said(plan.blocked) == ["eth0 uplink.rings.rx Refused", "eth0 uplink.offloads.ufo Unsupported"]


def test_what_is_blocked_is_not_verified() -> None:
    wish = Policy("p", uplink=UplinkSpec(Match(names=("eth0",)), rings_rx=99999))
    assert plan_of(BEFORE, wish).unmet == {Setting(2, "rings.rx")}


# --- guests ------------------------------------------------------------------------------------------------


def waiting(disruption: Disruption) -> Policy:
    wish = UplinkSpec(offloads=asks(rxvlan=False, gro=False), rings_rx=512, disruption=disruption)
    return Policy("p", bridge=BR0, uplink=wish)


@pytest.mark.parametrize(
    ("disruption", "held", "waits"),
    [
        pytest.param(Disruption.WHEN_NO_GUESTS, True, True, id="while a guest uses the uplink"),
        pytest.param(Disruption.WHEN_NO_GUESTS, False, False, id="not when there is none"),
        pytest.param(Disruption.IMMEDIATE, True, False, id="not unless the policy says so"),
    ],
)
def test_what_disrupts_waits_for_the_guests(disruption: Disruption, held: bool, waits: bool) -> None:
    state = host(bridge("br0"), nic("eth0", on="br0"), tap("tap0", on="br0", held=held))
    plan = plan_of(state, waiting(disruption))
    rows = ["eth0 uplink.rings.rx GuestsRunning", "eth0 uplink.offloads.rxvlan GuestsRunning"]
    steps = ["eth0 rings.rx=512", "eth0 -rx-gro", "eth0 -rx-vlan-hw-parse"]
    assert said(plan.blocked) == (rows if waits else [])
    assert todo(plan) == (["eth0 -rx-gro"] if waits else steps)
    assert all("tap0" in row.message for row in plan.blocked)


# --- the ledger --------------------------------------------------------------------------------------------


def originals(state: HostState, *policies: Policy, recorded: Recorded | None = None) -> dict[str, tuple[object, ...]]:
    plan = plan_of(state, *policies, recorded=recorded or Recorded())
    return {
        f"{link.name if link else 'module'} {one.setting.key}": (one.original, one.wanted, one.policy)
        for link, entries in plan.originals
        for one in entries
    }


def test_originals_are_recorded_for_settings_that_are_as_asked_too() -> None:
    wish = Policy("p", bridge=BridgeSpec("br0", mtu=1500), tap=TapSpec(offloads=asks(gro=True)))
    assert plan_of(BEFORE, wish).steps == ()
    assert originals(BEFORE, wish) == {"br0 mtu": (1500, 1500, "p"), "tap0 feature:rx-gro": (True, True, "p")}


def test_the_original_of_a_feature_is_its_wanted_bit_and_dragged_features_have_none() -> None:
    state = host(bridge("br0"), nic("eth0", on="br0", stuck_off="tx-generic-segmentation"))
    wish = Policy("p", bridge=BR0, uplink=UplinkSpec(offloads=asks(tx_scatter_gather=False, gso=False)))
    assert originals(state, wish) == {
        "eth0 feature:tx-scatter-gather": (True, False, "p"),
        "eth0 feature:tx-generic-segmentation": (True, False, "p"),
    }


def test_what_is_recorded_is_no_news() -> None:
    state = replace(BEFORE, module=None)
    recorded = ledger_after(plan_of(state, EVERYTHING))
    assert originals(state, EVERYTHING, recorded=recorded) == {}


def test_a_hand_over_is_news_and_keeps_the_first_original() -> None:
    first, second = (Policy(name, bridge=BridgeSpec("br0", mtu=mtu)) for name, mtu in (("a", 1400), ("b", 1300)))
    recorded = ledger_after(plan_of(BEFORE, first))
    after = with_link(BEFORE, "br0", mtu=1400)
    assert originals(after, second, recorded=recorded) == {"br0 mtu": (1400, 1300, "b")}
    handed = ledger_after(plan_of(after, second, recorded=recorded), recorded)
    held = handed.links[1].entries["mtu"]
    assert (held.original, held.wanted, held.policy) == (1500, 1300, "b")


def test_an_edited_deletion_policy_is_news() -> None:
    wish = Policy("p", bridge=BridgeSpec("br0", mtu=1400))
    recorded = ledger_after(plan_of(BEFORE, wish))
    (found,) = plan_of(BEFORE, replace(wish, deletion=Deletion.RETAIN), recorded=recorded).originals
    assert [one.deletion for one in found[1]] == [Deletion.RETAIN]


def test_enslaving_records_the_lro_that_the_kernel_will_switch_off() -> None:
    state = host(bridge("br0"), nic("eth0", set_on="rx-lro"))
    wish = Policy("p", bridge=BridgeSpec("br0", ports=("eth0",)))
    assert originals(state, wish) == {
        "eth0 master": (None, "br0", "p"),
        "eth0 feature:rx-lro": (True, False, "p"),
    }


def test_once_enslaved_its_lro_stays_in_the_ledger() -> None:
    before = host(bridge("br0"), nic("eth0", set_on="rx-lro"))
    wish = Policy("p", bridge=BridgeSpec("br0", ports=("eth0",)))
    recorded = ledger_after(plan_of(before, wish))
    after = with_link(with_features(before, "eth0", set_off="rx-lro"), "eth0", master=1)
    plan = plan_of(after, wish, recorded=recorded)
    assert (plan.steps, plan.forget, plan.originals) == ((), (), ())


def test_what_cannot_be_read_or_is_not_there_has_no_original() -> None:
    state = host(bridge("br0"), nic("eth0", on="br0", driver="r8169"))
    wish = Policy("p", bridge=BR0, uplink=UplinkSpec(rings_rx=512, offloads=asks(tx_udp_segmentation=True)))
    assert originals(state, wish) == {}


# --- what stands in the way --------------------------------------------------------------------------------

STATE = host(bridge("br0"), nic("eth0", on="br0"), tap("tap0", on="br0"))
WISH = Policy("p", bridge=BridgeSpec("br0", mtu=1400), uplink=UplinkSpec(offloads=asks(gro=False, gso=False)))
GRO, MTU = Setting(2, "feature:rx-gro"), Setting(1, "mtu")

STANDINGS = {
    "a hold of the node": (Standing(held="on"), Reason.HELD, {"mtu", "gro", "gso"}),
    "a hold of one link": (Standing(held_links={"eth0": "on"}), Reason.HELD, {"gro", "gso"}),
    "a fight": (Standing(contended={GRO: "fight"}), Reason.CONTENDED, {"gro"}),
    "a rollback": (Standing(rolled_back={("br0", "mtu"): "cut off"}), Reason.ROLLED_BACK, {"mtu"}),
    "a full ledger": (Standing(unrecorded={MTU: "cannot record"}), Reason.FAILED, {"mtu"}),
    "a refusal": (
        Standing(refused={MTU: Refusal(1400, 1500, Reason.REFUSED, "no")}),
        Reason.REFUSED,
        {"mtu"},
    ),
    "no refusal of another value": (
        Standing(refused={MTU: Refusal(1300, 1500, Reason.REFUSED, "no")}),
        Reason.REFUSED,
        set(),
    ),
}


@pytest.mark.parametrize(("standing", "reason", "stopped"), STANDINGS.values(), ids=STANDINGS)
def test_what_stands_in_the_way_is_said_and_the_rest_is_done(
    standing: Standing, reason: Reason, stopped: set[str]
) -> None:
    plan = plan_of(STATE, WISH, standing=standing)
    last = [row.setting.rsplit(".", 1)[-1] for row in plan.blocked]
    assert set(last) == stopped
    assert all(row.reason is reason for row in plan.blocked)
    assert {row.setting.rsplit(".", 1)[-1] for row in plan.pending} == {"mtu", "gro", "gso"} - stopped
    assert len(plan.unmet) == len(stopped)


@pytest.mark.parametrize(
    ("standing", "mask"),
    [
        pytest.param(Standing(), "rx-gro tx-generic-segmentation", id="everything when nothing stands in the way"),
        pytest.param(Standing(contended={GRO: ""}), "tx-generic-segmentation", id="not what is fought for"),
        pytest.param(Standing(unrecorded={GRO: ""}), "tx-generic-segmentation", id="not what is not recorded"),
        pytest.param(Standing(held_links={"eth0": ""}), "", id="nothing of a held link"),
        pytest.param(Standing(held="on"), "", id="nothing of a held node"),
        pytest.param(Standing(held_links={"br0": ""}), "rx-gro tx-generic-segmentation", id="all beside a held link"),
    ],
)
def test_the_fast_loop_is_handed_only_what_it_may_repair(standing: Standing, mask: str) -> None:
    assert plan_of(STATE, WISH, standing=standing).reflexes[2] == (rules.mask(mask), 0)


CREATE = Policy("p", bridge=BridgeSpec("br9", create=True))


@pytest.mark.parametrize(
    "standing",
    [
        pytest.param(Standing(held="on"), id="a held node"),
        pytest.param(Standing(held_links={"br9": "on"}), id="a held name"),
        pytest.param(Standing(rolled_back={("br9", "exists"): "cut off"}), id="a rollback"),
        pytest.param(Standing(contended={Setting("br9", "exists"): "fight"}), id="a fight"),
    ],
)
def test_a_link_is_not_made_while_something_stands_in_the_way(standing: Standing) -> None:
    plan = plan_of(STATE, CREATE, standing=standing)
    assert (plan.steps, len(plan.blocked)) == ((), 1)
    assert plan.unmet == {Setting("br9", "exists")}


def test_a_held_node_keeps_what_would_be_removed() -> None:
    recorded = ledger(made=(Made("br0", 1, "bridge", "gone"),))
    plan = plan_of(host(bridge("br0")), recorded=recorded, standing=Standing(held="on"))
    assert (plan.steps, said(plan.blocked), plan.forget_made) == ((), ["br0 bridge.create Held"], ())


def test_a_held_module_is_left_alone() -> None:
    plan = plan_of(BEFORE, replace(EVERYTHING, bridge=None, uplink=None, tap=None), standing=Standing(held="on"))
    assert (plan.steps, said(plan.blocked)) == ((), ["vhost_net vhost.module.state Held"])
    assert plan.unmet == {Setting("vhost_net", "state")}


# --- a plan with memory is the same plan -------------------------------------------------------------------

FEATURES = ("rx-gro", "tx-generic-segmentation", "tx-scatter-gather", "rx-lro", "tx-tcp-segmentation")
LINKS = ("br0", "eth0", "eth1", "tap0", "tap1")
HOST = host(bridge("br0"), nic("eth0", on="br0"), nic("eth1"), tap("tap0", on="br0"), tap("tap1", on="br0", held=True))
POLICIES = (
    Policy("a", bridge=BridgeSpec("br0", mtu=1500), uplink=UplinkSpec(offloads=asks(gro=True, lro=False))),
    Policy("b", bridge=BridgeSpec("br0", ports=("eth1",)), tap=TapSpec(offloads=asks(gro=False))),
    Policy("c", bridge=BR0, tap=TapSpec(mtu=1500, rx_frames=0, offloads=asks(gso=True))),
    Policy("d", bridge=BR0, uplink=UplinkSpec(offloads=asks(tso=False, sg=True), rings_rx=1024)),
)
SETTINGS = (GRO, MTU, Setting(4, "feature:rx-gro"), Setting(5, "mtu"), Setting(3, "master"))

EDITS = st.one_of(
    st.tuples(st.just("turn"), st.sampled_from(LINKS), st.sampled_from(FEATURES), st.booleans()),
    st.tuples(st.just("mtu"), st.sampled_from(LINKS), st.sampled_from((1400, 1500))),
    st.tuples(st.just("move"), st.sampled_from(LINKS[1:]), st.sampled_from((0, 1))),
    st.tuples(st.just("carrier"), st.sampled_from(LINKS), st.booleans()),
    st.tuples(st.just("remove"), st.sampled_from(LINKS)),
    st.tuples(st.just("return"), st.just("")),
    st.tuples(st.just("rings"), st.just("eth0"), st.sampled_from((512, 1024))),
    st.tuples(st.just("policies"), st.frozensets(st.sampled_from(range(len(POLICIES))))),
    st.tuples(st.just("contended"), st.frozensets(st.sampled_from(SETTINGS), max_size=2)),
    st.tuples(st.just("hold"), st.sampled_from((None, *LINKS))),
    st.tuples(st.just("record"), st.just("")),
    st.tuples(st.just("lose"), st.just("")),
)


class World:
    """What a plan is made from, edited step by step; what an edit does not concern stays the same object."""

    def __init__(self) -> None:
        self.state, self.standing, self.recorded = HOST, Standing(), Recorded()
        self.policies: tuple[Policy, ...] = POLICIES[:2]

    def edit(self, what: str, *how: Any) -> None:
        if what in {"turn", "mtu", "move", "carrier", "remove", "return", "rings"}:
            self.state = _edited(self.state, what, *how)
        elif what == "policies":
            self.policies = tuple(POLICIES[index] for index in sorted(how[0]))
        elif what == "contended":
            self.standing = replace(self.standing, contended=dict.fromkeys(how[0], "fight"))
        elif what == "hold":
            self.standing = replace(self.standing, held_links={how[0]: "on"} if how[0] else {})
        elif what == "record":
            self.recorded = ledger_after(plan_of(self.state, *self.policies, recorded=self.recorded), self.recorded)
        else:
            self.recorded = Recorded()


def _edited(state: HostState, what: str, *how: Any) -> HostState:
    if what == "return":
        return replace(state, links=HOST.links)
    name = str(how[0])
    link = state.by_name(name)
    if link is None:
        return state
    if what == "turn":
        return with_features(state, name, **{"set_on" if how[2] else "set_off": str(how[1])})
    if what == "rings":
        return replace(state, rings={**state.rings, 2: Rings(how[1], 1024, 8192, 8192)})
    if what == "remove":
        return without(state, name)
    return with_link(state, name, **{_FIELD[what]: how[1]})


_FIELD = {"move": "master", "mtu": "mtu", "carrier": "carrier"}


@given(st.lists(EDITS, max_size=12))
def test_a_plan_with_the_memory_of_those_before_is_the_plan_without(edits: list[tuple[object, ...]]) -> None:
    world, resolution, memory = World(), resolve.Memory(), planning.Memory()
    for what, *how in [("contended", frozenset()), ("contended", frozenset()), *edits]:
        world.edit(str(what), *how)
        desired = resolve.resolve(world.policies, NODE, world.state, resolution)
        found = planning.make_plan(desired, world.state, world.recorded, world.standing, memory)
        fresh = desired_of(world.state, *world.policies)
        assert found == planning.make_plan(fresh, world.state, world.recorded, world.standing)


def test_links_with_nothing_to_say_are_remembered_and_only_they() -> None:
    wish = Policy("p", bridge=BR0, tap=TapSpec(offloads=asks(gro=True)))
    state = with_features(host(bridge("br0"), tap("tap0", on="br0"), tap("tap1", on="br0")), "tap1", set_off="rx-gro")
    recorded, memory = ledger_after(plan_of(state, wish)), planning.Memory()
    planning.make_plan(desired_of(state, wish), state, recorded, memory=memory)
    assert set(memory.quiet) == {1, 2}


def test_the_same_features_as_other_objects_are_compared_anew() -> None:
    wish = Policy("p", bridge=BR0, tap=TapSpec(offloads=asks(gro=True)))
    state = host(bridge("br0"), tap("tap0", on="br0"))
    memory, resolution = planning.Memory(), resolve.Memory()
    recorded = ledger_after(plan_of(state, wish))
    for now in (state, with_features(state, "tap0", set_off="rx-gro")):
        desired = resolve.resolve((wish,), NODE, now, resolution)
        plan = planning.make_plan(desired, now, recorded, memory=memory)
        features = now.features[2]
        assert isinstance(features, Features)
        assert bool(plan.steps) is not bool(features.wanted & rules.mask("rx-gro"))
