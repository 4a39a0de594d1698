"""What is put back when no policy wants a setting any longer, what is left, and when the brake refuses."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from tests.unit.hosts import (
    BR0,
    Part,
    asks,
    bridge,
    entry,
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
    with_link,
    without,
)
from virtnet.core.model import (
    BridgeSpec,
    DeleteLink,
    Deletion,
    HostState,
    LinkRecord,
    Made,
    Match,
    Mode,
    Policy,
    Reason,
    Recorded,
    Setting,
    TapSpec,
    Unreadable,
    UplinkSpec,
    Value,
)
from virtnet.core.plan import Plan
from virtnet.core.standing import Standing

RETAIN = Deletion.RETAIN


def returning(
    state: HostState, name: str, deletion: Deletion = Deletion.RESTORE, /, **settings: tuple[Value | None, Value | None]
) -> Plan:
    """The plan for a host on which only the ledger knows of a link's settings."""
    return plan_of(state, recorded=ledger(record(named(state, name), deletion, **settings)))


# --- the rows of the table ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """`now` is there, `original` was before us, and we set `wanted`."""

    original: int
    wanted: int
    now: int
    todo: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    deletion: Deletion = Deletion.RESTORE

    @property
    def forgotten(self) -> bool:
        return not self.todo


CASES = {
    "a value that is the original is done": Case(1500, 9000, 1500),
    "a value that is what we set gets the original back": Case(1500, 9000, 9000, ("eth0 mtu=1500",)),
    "a value that is neither is left, and said": Case(1500, 9000, 4000, (), ("eth0 mtu Foreign",)),
    "Retain keeps what we set": Case(1500, 9000, 9000, deletion=RETAIN),
    "Retain says nothing of what somebody else set": Case(1500, 9000, 4000, deletion=RETAIN),
    "what was so before us is done": Case(9000, 9000, 9000),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_restoring_a_value(case: Case) -> None:
    state = with_link(host(nic("eth0")), "eth0", mtu=case.now)
    plan = returning(state, "eth0", case.deletion, mtu=(case.original, case.wanted))
    assert todo(plan) == list(case.todo)
    assert said(plan.skipped) == list(case.skipped)
    assert plan.forget == ((Setting(1, "mtu"),) if case.forgotten else ())
    assert all(step.restores and step.policy == "old" for step in plan.steps)


def test_an_earlier_value_of_ours_gets_the_original_back_too() -> None:
    state = with_link(host(nic("eth0")), "eth0", mtu=9000)
    link = named(state, "eth0")
    held = replace(entry(Setting(1, "mtu"), 1500, 4000), earlier=9000)
    plan = plan_of(state, recorded=ledger(LinkRecord(1, "eth0", "", link.mac, {"mtu": held})))
    assert todo(plan) == ["eth0 mtu=1500"]


def test_a_value_that_cannot_be_read_stays_in_the_ledger() -> None:
    state = host(replace(nic("eth0"), features=Unreadable("no permission")))
    plan = returning(state, "eth0", feature_rx_gro=(True, False))
    assert said(plan.blocked) == ["eth0 offloads.rx-gro Unreadable"]
    assert (plan.steps, plan.forget) == ((), ())


def test_a_row_says_what_is_put_back() -> None:
    (row,) = returning(host(nic("eth0", set_off="rx-gro")), "eth0", feature_rx_gro=(True, False)).pending
    assert (row.subject, row.setting, row.message, row.policy) == (
        "link/eth0",
        "offloads.rx-gro",
        "put back on",
        "old",
    )


# --- one link ----------------------------------------------------------------------------------------------


def test_the_features_of_a_software_link_go_back_in_one_message() -> None:
    state = host(tap("tap0", set_off="rx-gro tx-generic-segmentation"))
    plan = returning(state, "tap0", feature_rx_gro=(True, False), feature_tx_generic_segmentation=(True, False))
    assert len(plan.steps) == 1
    assert sorted(todo(plan)) == ["tap0 +rx-gro", "tap0 +tx-generic-segmentation"]


def test_those_that_may_reset_hardware_go_back_apart_and_are_risky() -> None:
    state = host(nic("eth0", set_off="rx-gro", set_on="rx-lro"))
    plan = returning(state, "eth0", feature_rx_gro=(True, False), feature_rx_lro=(False, True))
    assert [(todo_of, step.risky) for step, todo_of in zip(plan.steps, todo(plan), strict=True)] == [
        ("eth0 +rx-gro", False),
        ("eth0 -rx-lro", True),
    ]


def test_a_port_goes_back_to_no_master_before_its_features() -> None:
    state = host(bridge("br0"), nic("eth0", on="br0", set_off="rx-gro"))
    plan = returning(state, "eth0", master=(None, "br0"), feature_rx_gro=(True, False))
    assert todo(plan) == ["eth0 master=None", "eth0 +rx-gro"]
    assert plan.steps[0].risky


def test_a_master_that_is_gone_is_not_gone_back_to() -> None:
    state = host(bridge("br0"), nic("eth0", on="br0"))
    plan = returning(state, "eth0", master=("br9", "br0"))
    assert (plan.steps, said(plan.skipped)) == ((), ["eth0 master Foreign"])
    assert plan.forget == (Setting(2, "master"),)


@pytest.mark.parametrize(("key", "original", "wanted"), [("vnetHdr", True, False), ("owner", None, 107)])
def test_a_held_tap_gets_back_its_flags_when_it_is_let_go(key: str, original: Value | None, wanted: Value) -> None:
    held = host(tap("tap0", held=True, vnet_hdr=False, owner=107))
    plan = returning(held, "tap0", **{key: (original, wanted)})
    assert (said(plan.blocked), plan.steps, plan.forget) == ([f"tap0 {key} InUse"], (), ())
    free = with_link(held, "tap0", carrier=False)
    assert todo(returning(free, "tap0", **{key: (original, wanted)})) == [f"tap0 {key}={original}"]


def test_what_another_policy_still_wants_is_not_put_back() -> None:
    wish = Policy("new", bridge=BR0, uplink=UplinkSpec(offloads=asks(gro=False)))
    state = host(bridge("br0"), nic("eth0", on="br0", set_off="rx-gro tx-generic-segmentation"))
    held = record(named(state, "eth0"), feature_rx_gro=(True, False), feature_tx_generic_segmentation=(True, False))
    assert todo(plan_of(state, wish, recorded=ledger(held))) == ["eth0 +tx-generic-segmentation"]


def test_an_audit_policy_freezes_what_it_wants_and_nothing_else() -> None:
    audit = Policy("old", bridge=BR0, uplink=UplinkSpec(offloads=asks(gro=False)), mode=Mode.AUDIT)
    state = host(bridge("br0"), nic("eth0", on="br0", set_off="rx-gro tx-generic-segmentation"))
    held = record(named(state, "eth0"), feature_rx_gro=(True, False), feature_tx_generic_segmentation=(True, False))
    plan = plan_of(state, audit, recorded=ledger(held))
    assert todo(plan) == ["eth0 +tx-generic-segmentation"]
    assert Setting(2, "feature:rx-gro") not in plan.forget


def test_a_frozen_setting_is_not_repaired_either() -> None:
    audit = Policy("old", bridge=BR0, uplink=UplinkSpec(offloads=asks(gro=False)), mode=Mode.AUDIT)
    state = host(bridge("br0"), nic("eth0", on="br0"))
    held = record(named(state, "eth0"), feature_rx_gro=(True, False))
    plan = plan_of(state, audit, recorded=ledger(held))
    assert (plan.steps, plan.forget, plan.reflexes) == ((), (), {})


def test_from_audit_back_to_enforce_the_original_is_the_first_one() -> None:
    enforced = Policy("p", bridge=BR0, uplink=UplinkSpec(offloads=asks(gro=False)))
    state = host(bridge("br0"), nic("eth0", on="br0"))
    recorded = ledger_after(plan_of(state, enforced))
    after = plan_of(state, replace(enforced, mode=Mode.AUDIT), recorded=recorded)
    assert ledger_after(after, recorded).links[2].entries["feature:rx-gro"].original is True


# --- links that are gone, others, renamed ------------------------------------------------------------------

WISH = Policy("new", bridge=BR0, uplink=UplinkSpec(offloads=asks(gro=False)))


def held_by_ledger(name: str, kind: str = "", mac: str = "02:00:00:00:00:02") -> Recorded:
    setting = Setting(2, "feature:rx-gro")
    return ledger(LinkRecord(2, name, kind, mac, {"feature:rx-gro": entry(setting, True, False, "new")}))


@pytest.mark.parametrize(
    ("recorded", "gone", "renamed"),
    [
        pytest.param(held_by_ledger("eth0"), False, False, id="the same link"),
        pytest.param(held_by_ledger("eth7"), False, True, id="another name and the same address: renamed"),
        pytest.param(held_by_ledger("eth0", mac="06::1"), False, False, id="another address only: the same"),
        pytest.param(held_by_ledger("eth7", mac="06::1"), True, False, id="both another: the ifindex is used again"),
        pytest.param(held_by_ledger("eth0", kind="veth"), True, False, id="another kind: the ifindex is used again"),
    ],
)
@pytest.mark.parametrize("policies", [(WISH,), ()], ids=["that is wanted", "that nobody wants"])
def test_an_ifindex_in_the_ledger(recorded: Recorded, gone: bool, renamed: bool, policies: tuple[Policy, ...]) -> None:
    state = host(bridge("br0"), nic("eth0", on="br0", set_off="rx-gro"))
    plan = plan_of(state, *policies, recorded=recorded)
    assert plan.gone == ((2,) if gone else ())
    assert [link.name for link in plan.renamed] == (["eth0"] if renamed and policies else [])
    assert todo(plan) == ([] if gone or policies else ["eth0 +rx-gro"])


def test_a_reused_ifindex_has_its_own_original() -> None:
    state = host(bridge("br0"), nic("eth0", on="br0", set_off="rx-gro"))
    plan = plan_of(state, WISH, recorded=held_by_ledger("eth7", mac="06::1"))
    (written,) = [one for link, entries in plan.originals for one in entries if link and link.name == "eth0"]
    assert (written.setting.key, written.original) == ("feature:rx-gro", False)


def test_a_link_that_is_gone_is_forgotten() -> None:
    assert plan_of(host(bridge("br0")), recorded=held_by_ledger("eth0")).gone == (2,)


def test_a_link_that_left_the_bridge_gets_its_originals_back() -> None:
    state = host(bridge("br0"), nic("eth0", set_off="rx-gro"))
    assert todo(plan_of(state, WISH, recorded=held_by_ledger("eth0"))) == ["eth0 +rx-gro"]


# --- what stands in the way --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("standing", "reason"),
    [
        pytest.param(Standing(held="for now"), Reason.HELD, id="a held node"),
        pytest.param(Standing(held_links={"eth0": "for now"}), Reason.HELD, id="a held link"),
        pytest.param(Standing(rolled_back={("eth0", "mtu"): "cut off"}), Reason.ROLLED_BACK, id="a rollback"),
        pytest.param(Standing(contended={Setting(1, "mtu"): "fight"}), None, id="not a fight"),
        pytest.param(Standing(unrecorded={Setting(1, "mtu"): "full"}), None, id="not a full ledger"),
    ],
)
def test_what_stops_a_restore(standing: Standing, reason: Reason | None) -> None:
    state = with_link(host(nic("eth0")), "eth0", mtu=9000)
    plan = plan_of(state, recorded=ledger(record(named(state, "eth0"), mtu=(1500, 9000))), standing=standing)
    assert [row.reason for row in plan.blocked] == ([reason] if reason else [])
    assert todo(plan) == ([] if reason else ["eth0 mtu=1500"])
    assert plan.forget == ()


# --- the brake ---------------------------------------------------------------------------------------------


def mass(released: int, kept: int) -> tuple[HostState, Recorded]:
    """A host whose taps t* no policy wants any longer, beside k* that are wanted; the two policies live on."""
    parts: list[Part] = [tap(f"t{number}", set_off="rx-gro") for number in range(released)]
    parts += [tap(f"k{number}", set_off="rx-gro") for number in range(kept)]
    state = host(*parts)
    return state, ledger(
        *(record(link, Deletion.RESTORE, "p", feature_rx_gro=(True, False)) for link in state.links.values())
    )


def keeps(*names: str) -> Policy:

    return Policy("p", tap=TapSpec(Match(names=names), offloads=asks(gro=False)))


@pytest.mark.parametrize(
    ("released", "kept", "braked"),
    [
        pytest.param(10, 0, False, id="ten of eleven are not too many"),
        pytest.param(11, 0, True, id="eleven of twelve are"),
        pytest.param(11, 9, True, id="eleven of twenty-one are more than half"),
        pytest.param(11, 10, False, id="eleven of twenty-two are half, and not more"),
    ],
)
def test_the_brake(released: int, kept: int, braked: bool) -> None:
    state, recorded = mass(released, kept)
    plan = plan_of(state, keeps("k*"), recorded=recorded)
    assert said(plan.blocked) == (["p deletionPolicy TooMuchAtOnce"] if braked else [])
    assert len(plan.steps) == (0 if braked else released)
    if braked:
        assert f"{released} removals at once, of {released + kept + 1} links" in plan.blocked[0].message


def test_a_policy_that_is_gone_counts_as_a_removal() -> None:
    state, recorded = mass(10, 0)
    plan = plan_of(state, recorded=recorded)
    assert said(plan.blocked) == ["p deletionPolicy TooMuchAtOnce"]
    assert "11 removals at once, of 11 links and policies" in plan.blocked[0].message


def test_the_brake_lets_go_when_it_is_allowed() -> None:
    state, recorded = mass(30, 0)
    assert plan_of(state, recorded=recorded).steps == ()
    allowed = plan_of(state, recorded=recorded, standing=Standing(allow_mass_removal=True))
    assert (len(allowed.steps), allowed.blocked) == (30, ())


def test_setting_values_is_never_braked() -> None:
    state = host(*(tap(f"t{number}") for number in range(40)))
    assert len(plan_of(state, keeps("t*")).steps) == 40


def test_links_that_went_by_themselves_are_no_removals() -> None:
    state, recorded = mass(30, 0)
    empty = replace(state, links={})
    plan = plan_of(empty, keeps("t*"), recorded=recorded)
    assert (len(plan.gone), plan.blocked) == (30, ())


def test_the_brake_keeps_links_that_we_made() -> None:
    state = host(*(tap(f"t{number}") for number in range(11)))
    made = tuple(Made(link.name, link.ifindex, "tap", "p") for link in state.links.values())
    plan = plan_of(state, Policy("p"), recorded=ledger(made=made))
    assert (plan.steps, said(plan.blocked)) == ((), ["p deletionPolicy TooMuchAtOnce"])


# --- links that we made ------------------------------------------------------------------------------------


def made(state: HostState, *names: str, deletion: Deletion = Deletion.RESTORE) -> tuple[Made, ...]:
    links = [named(state, name) for name in names]
    return tuple(Made(link.name, link.ifindex, "tap" if link.is_tap else link.kind, "old", deletion) for link in links)


def test_what_we_made_is_removed_taps_first_and_bridges_last() -> None:
    state = host(bridge("br0"), tap("tap0", on="br0"), tap("tap1"))
    plan = plan_of(state, recorded=ledger(made=made(state, "br0", "tap0", "tap1")))
    assert todo(plan) == ["tap0 exists=None", "tap1 exists=None", "br0 exists=None"]
    assert all(isinstance(step.change, DeleteLink) and step.risky and step.restores for step in plan.steps)


def test_a_bridge_is_removed_after_its_ports_are_put_back() -> None:
    state = host(bridge("br0"), nic("eth0", on="br0"))
    recorded = ledger(record(named(state, "eth0"), master=(None, "br0")), made=made(state, "br0"))
    assert todo(plan_of(state, recorded=recorded)) == ["eth0 master=None", "br0 exists=None"]


KEPT = {
    "a bridge with a foreign port": (
        host(bridge("br0"), nic("eth0", on="br0")),
        "br0",
        "br0 bridge.create Foreign",
        "br0 has ports that are not ours: eth0",
    ),
    "a bridge that carries addresses": (
        host(bridge("br0", carries="address 192.0.2.1/24")),
        "br0",
        "br0 bridge.create CarriesAddresses",
        "br0 carries address 192.0.2.1/24; move it before br0 is removed",
    ),
    "a tap that is held": (
        host(tap("tap0", held=True)),
        "tap0",
        "tap0 tap.create InUse",
        "tap0 is held by qemu-system-x86[42] (guest web1)",
    ),
}


@pytest.mark.parametrize(("state", "name", "row", "message"), KEPT.values(), ids=KEPT)
def test_what_we_made_stays_when_it_is(state: HostState, name: str, row: str, message: str) -> None:
    plan = plan_of(state, recorded=ledger(made=made(state, name)))
    assert (todo(plan), said(plan.blocked)) == ([], [row])
    assert message in plan.blocked[0].message
    assert plan.forget_made == ()


def test_a_port_that_was_there_before_us_is_foreign_to_a_bridge_of_ours() -> None:
    state = host(bridge("br0"), nic("eth0", on="br0"))
    recorded = ledger(record(named(state, "eth0"), master=("br0", "br0")), made=made(state, "br0"))
    assert said(plan_of(state, recorded=recorded).blocked) == ["br0 bridge.create Foreign"]


def test_retain_keeps_what_we_made_and_forgets_that_we_did() -> None:
    state = host(bridge("br0"))
    plan = plan_of(state, recorded=ledger(made=made(state, "br0", deletion=RETAIN)))
    assert (plan.steps, plan.forget_made) == ((), ("br0",))


def test_what_we_made_and_somebody_removed_is_forgotten_unless_it_is_wanted() -> None:
    there = host(bridge("br0"))
    recorded = ledger(made=made(there, "br0"))
    wish = Policy("old", bridge=BridgeSpec("br0", create=True))
    assert plan_of(without(there, "br0"), recorded=recorded).forget_made == ("br0",)
    again = plan_of(without(there, "br0"), wish, recorded=recorded)
    assert (again.forget_made, todo(again)) == ((), ["br0 exists=True"])


def test_a_later_link_of_the_same_name_is_not_the_one_we_made() -> None:
    state = host(nic("eth0"), bridge("br0"))
    plan = plan_of(state, recorded=ledger(made=(Made("br0", 77, "bridge", "old"),)))
    assert (plan.steps, plan.forget_made) == ((), ("br0",))


def test_an_audit_policy_keeps_what_an_enforcing_one_made() -> None:
    state = host(bridge("br0"))
    audit = Policy("old", bridge=BridgeSpec("br0", create=True), mode=Mode.AUDIT)
    plan = plan_of(state, audit, recorded=ledger(made=made(state, "br0")))
    assert (plan.steps, plan.forget_made) == ((), ())
