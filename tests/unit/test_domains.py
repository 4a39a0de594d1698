"""What is planned for the NICs in libvirt's domains, what is put back, and what is said of those that cannot be had."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.flow.fake import FakeHost, MemoryLedger
from virtnet import errors, reconcile
from virtnet.core import domains
from virtnet.core import plan as planning
from virtnet.core.model import (
    Deletion,
    Guest,
    GuestMatch,
    GuestNic,
    GuestSpec,
    GuestUpdate,
    Interest,
    Mode,
    Node,
    Policy,
    Reason,
    SetGuestNic,
    SetMaster,
    Setting,
    Unavailable,
    Unreadable,
    Value,
    VhostMode,
    VhostSpec,
    Withheld,
)
from virtnet.core.standing import Standing
from virtnet.reconcile import Outcome

MAC = "52:54:00:aa:00:01"
QUEUES, RX, TSO = "guest.nic.queues", "guest.nic.rxQueueSize", "guest.nic.host.tso4"
SUBJECT = f"guest/db/{MAC}"
Settings = Mapping[str, Value]


def nic(configured: Settings | None, running: Settings | None = None, **more: Any) -> GuestNic:
    return GuestNic(**{"mac": MAC, "bridge": "br0", "configured": configured, "running": running, **more})


def guest(*nics: GuestNic, uuid: str = "u", name: str = "db", **more: Any) -> Guest:
    return Guest(uuid, name, nics, vcpus=4, **more)


def wish(
    name: str = "p", /, bridge: str = "br0", update: GuestUpdate = GuestUpdate.NEXT_START, **asked: Value
) -> Policy:
    """`queues=4`, `host_tso4=False` and the like."""
    settings = tuple((path.replace("_", "."), value) for path, value in asked.items())
    return Policy(name, guest=GuestSpec(GuestMatch(bridge=bridge), update, settings))


def on(*guests: Guest) -> FakeHost:
    host = FakeHost("br0 bridge")
    host.guests = {each.uuid: each for each in guests}
    return host


def once(
    host: FakeHost, *policies: Policy, ledger: MemoryLedger | None = None, standing: Standing = planning.NOTHING_STANDS
) -> Outcome:
    wanted = reconcile.Wish(policies, Node("n"), standing)
    return asyncio.run(reconcile.run(host, ledger or MemoryLedger(), wanted))


def written(host: FakeHost, uuid: str = "u") -> Settings:
    assert isinstance(host.guests, dict)
    configured = host.guests[uuid].nics[0].configured
    assert configured is not None
    return configured


def said(outcome: Outcome) -> dict[tuple[str, str], Reason | None]:
    return {(row.subject, row.setting): row.reason for row in outcome.rows}


# --- the rows of the table ---------------------------------------------------------------------------------


def test_a_definition_that_is_as_wanted_is_left_alone() -> None:
    host = on(guest(nic({RX: 1024})))
    assert (once(host, wish(rxQueueSize=1024)).rows, host.applied) == ((), [])


def test_all_that_differs_of_a_nic_is_written_together() -> None:
    host = on(guest(nic({RX: 256, "guest.nic.packed": True})))
    outcome = once(host, wish(rxQueueSize=1024, host_tso4=False))
    seen = ((RX, 256), (TSO, None))
    assert host.applied == [SetGuestNic("db", "u", MAC, "", ((RX, 1024), (TSO, False)), seen)]
    assert [(row.setting, row.reason) for row in outcome.applied] == [(RX, Reason.APPLIED), (TSO, Reason.APPLIED)]
    assert (outcome.rows, written(host)) == ((), {RX: 1024, "guest.nic.packed": True, TSO: False})


def test_a_guest_that_runs_with_something_else_needs_a_restart() -> None:
    host = on(guest(nic({RX: 1024}, {RX: 512})))
    (row,) = once(host, wish(rxQueueSize=1024)).rows
    assert (row.subject, row.setting, row.wanted, row.actual) == (SUBJECT, RX, 1024, 512)
    assert row.reason is Reason.RESTART_REQUIRED


def test_what_a_guest_runs_without_has_the_value_that_qemu_gives_it() -> None:
    host = on(guest(nic({RX: 256, QUEUES: 1}, {})))
    assert once(host, wish(rxQueueSize=256, queues=1)).rows == ()


def test_a_running_guest_without_a_definition_has_nothing_to_write_into() -> None:
    host = on(guest(nic(None, {RX: 512})))
    assert said(once(host, wish(rxQueueSize=1024))) == {(SUBJECT, RX): Reason.UNSUPPORTED}
    assert once(host, wish(rxQueueSize=512)).rows == ()


def test_queues_are_counted_by_the_guests_virtual_cpus() -> None:
    host = on(guest(nic({})))
    once(host, wish(queues="vcpus"))
    assert written(host) == {QUEUES: 4}


# --- which NICs --------------------------------------------------------------------------------------------


def test_a_tap_that_libvirt_did_not_put_on_a_bridge_is_where_the_host_says() -> None:
    host = FakeHost("br0 bridge\ntap0 tap master=br0")
    host.guests = {"u": guest(nic({}, bridge=None, unknown="not known", tap="tap0"))}
    once(host, wish(rxQueueSize=1024))
    assert written(host) == {RX: 1024}


def test_a_nic_whose_bridge_nobody_knows_is_told_of_and_left_alone() -> None:
    host = on(guest(nic({}, bridge=None, unknown="the bridge is not known")))
    assert said(once(host, wish(rxQueueSize=1024))) == {(SUBJECT, "guest.match"): Reason.UNREADABLE}
    assert host.applied == []


def test_a_nic_that_is_not_virtio_is_nobodys_business_until_its_model_is_asked() -> None:
    host = on(guest(nic({}, model_unsuited="its model is e1000")))
    assert (once(host, wish(rxQueueSize=1024)).rows, host.applied) == ((), [])
    once(host, wish(rxQueueSize=1024, model="virtio"))
    assert written(host) == {RX: 1024, "guest.nic.model": "virtio"}


def test_a_guest_of_kubevirt_is_another_ones() -> None:
    host = on(guest(nic({})))
    policy = replace(wish(rxQueueSize=1024), guest=GuestSpec(GuestMatch(virtual_machines=True), nic=(("queues", 2),)))
    assert (once(host, policy).rows, host.applied) == ((), [])


def test_a_policy_without_a_match_and_a_bridge_selects_nothing_and_says_so() -> None:
    policy = Policy("p", guest=GuestSpec(nic=(("queues", 2),)))
    assert said(once(on(), policy)) == {("policy/p", "guest.match"): Reason.MISSING}


# --- several policies --------------------------------------------------------------------------------------


def test_the_higher_priority_wins_and_the_loser_is_told_who() -> None:
    host = on(guest(nic({})))
    winner, loser = replace(wish("a", rxQueueSize=1024), priority=1), wish("b", rxQueueSize=512, queues=2)
    (row,) = once(host, winner, loser).rows
    assert (row.policy, row.reason, row.message) == ("b", Reason.OVERRIDDEN_BY, "policy a wants 1024")
    assert written(host) == {RX: 1024, QUEUES: 2}


def test_an_audit_is_told_what_it_would_do_and_does_nothing() -> None:
    host = on(guest(nic({})))
    assert said(once(host, replace(wish(rxQueueSize=1024), mode=Mode.AUDIT))) == {(SUBJECT, RX): Reason.AUDIT_ONLY}
    assert host.applied == []


def test_what_an_audit_wants_is_neither_repaired_nor_put_back() -> None:
    host, ledger = on(guest(nic({RX: 256}))), MemoryLedger()
    once(host, wish(rxQueueSize=1024), ledger=ledger)
    once(host, replace(wish(rxQueueSize=1024), mode=Mode.AUDIT), ledger=ledger)
    assert written(host) == {RX: 1024}
    once(host, ledger=ledger)
    assert written(host) == {RX: 256}


# --- what cannot be had ------------------------------------------------------------------------------------


def test_vhost_required_of_an_emulated_guest_is_written_and_said_to_be_in_vain() -> None:
    host = on(guest(nic({}), emulated=True))
    policy = replace(wish(), vhost=VhostSpec(mode=VhostMode.REQUIRED))
    rows = said(once(host, policy))
    assert rows[SUBJECT, "vhost.mode"] is Reason.UNSUPPORTED
    assert written(host) == {"vhost.mode": "Required"}


def test_an_offload_that_lacks_what_it_needs_says_so() -> None:
    host = on(guest(nic({"guest.nic.host.csum": False})))
    assert said(once(host, wish(host_tso4=True)))[SUBJECT, TSO] is Reason.NEEDS_FEATURE


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        (Unreadable("it hangs"), Reason.UNREADABLE),
        (Unavailable("not installed"), Reason.UNSUPPORTED),
        (Withheld("no mount"), Reason.REFUSED),
    ],
)
def test_a_libvirt_that_cannot_be_asked_is_told_to_those_who_ask(why: domains.Silence, reason: Reason) -> None:
    host = FakeHost("br0 bridge")
    host.guests = why
    asking, other = wish("a", rxQueueSize=1024), Policy("b")
    assert said(once(host, asking, other)) == {("policy/a", "guest.nic"): reason}


def test_a_hold_leaves_a_definition_alone() -> None:
    host = on(guest(nic({})))
    outcome = once(host, wish(rxQueueSize=1024), standing=Standing(held="until noon"))
    assert (said(outcome), host.applied) == ({(SUBJECT, RX): Reason.HELD}, [])


def test_a_contended_setting_is_left_alone_and_the_others_are_not() -> None:
    host = on(guest(nic({})))
    standing = Standing(contended={Setting(f"u/{MAC}", RX): "somebody fights"})
    outcome = once(host, wish(rxQueueSize=1024, queues=2), standing=standing)
    assert (said(outcome), written(host)) == ({(SUBJECT, RX): Reason.CONTENDED}, {QUEUES: 2})


def test_a_ledger_that_cannot_be_written_leaves_definitions_alone() -> None:
    host, ledger = on(guest(nic({}))), MemoryLedger()
    ledger.fail()
    assert said(once(host, wish(rxQueueSize=1024), ledger=ledger)) == {(SUBJECT, RX): Reason.FAILED}
    assert host.applied == []


def test_a_refusal_is_told_and_not_asked_again() -> None:
    host = on(guest(nic({})))
    host.fail(SetGuestNic, errors.Refused("rss is not for you"))
    outcome = once(host, wish(rxQueueSize=1024))
    assert said(outcome) == {(SUBJECT, RX): Reason.REFUSED}
    again = once(host, wish(rxQueueSize=1024), standing=Standing(refused=outcome.refusals))
    assert [(row.reason, row.message) for row in again.rows] == [(Reason.REFUSED, "rss is not for you")]


def test_a_definition_that_somebody_edits_at_the_same_moment_is_planned_again() -> None:
    host = on(guest(nic({})))
    host.fail(SetGuestNic, errors.Gone("was changed by somebody else meanwhile"), times=1)
    assert (once(host, wish(rxQueueSize=1024)).rows, written(host)) == ((), {RX: 1024})


# --- putting back ------------------------------------------------------------------------------------------


def managed(original: Settings, **asked: Value) -> tuple[FakeHost, MemoryLedger]:
    host, ledger = on(guest(nic(original))), MemoryLedger()
    once(host, wish(**asked), ledger=ledger)
    return host, ledger


def test_what_was_there_comes_back_also_when_that_was_nothing() -> None:
    host, ledger = managed({RX: 256}, rxQueueSize=1024, queues=2)
    assert written(host) == {RX: 1024, QUEUES: 2}
    assert once(host, ledger=ledger).rows == ()
    assert (written(host), str(ledger)) == ({RX: 256}, "")


def test_two_nics_of_one_address_are_told_by_their_place() -> None:
    twins = (nic({RX: 256}, address="slot=1"), nic({RX: 512}, address="slot=2"))
    host, ledger = on(guest(*twins)), MemoryLedger()
    once(host, wish(rxQueueSize=1024), ledger=ledger)
    assert len(host.applied) == 2
    once(host, ledger=ledger)
    assert isinstance(host.guests, dict)
    assert host.guests["u"].nics == twins


def test_the_first_original_outlives_every_edit_of_the_policy() -> None:
    host, ledger = managed({RX: 256}, rxQueueSize=1024)
    once(host, wish(rxQueueSize=512), ledger=ledger)
    once(host, wish("other", rxQueueSize=1024), ledger=ledger)
    once(host, ledger=ledger)
    assert written(host) == {RX: 256}


def test_a_setting_that_a_policy_no_longer_asks_goes_back_and_the_others_stay() -> None:
    host, ledger = managed({RX: 256}, rxQueueSize=1024, queues=2)
    once(host, wish(queues=2), ledger=ledger)
    assert written(host) == {RX: 256, QUEUES: 2}


def test_what_somebody_else_wrote_since_stays_and_is_told_once() -> None:
    host, ledger = managed({RX: 256}, rxQueueSize=1024)
    host.guests = {"u": guest(nic({RX: 512}))}
    assert said(once(host, ledger=ledger)) == {(SUBJECT, RX): Reason.FOREIGN}
    assert (once(host, ledger=ledger).rows, written(host)) == ((), {RX: 512})


def test_what_is_retained_stays() -> None:
    host, ledger = on(guest(nic({}))), MemoryLedger()
    once(host, replace(wish(rxQueueSize=1024), deletion=Deletion.RETAIN), ledger=ledger)
    assert once(host, ledger=ledger).rows == ()
    assert (written(host), str(ledger)) == ({RX: 1024}, "")


def test_a_guest_that_is_gone_is_done() -> None:
    host, ledger = managed({}, rxQueueSize=1024)
    host.guests = {}
    assert (once(host, ledger=ledger).rows, str(ledger)) == ((), "")


@pytest.mark.parametrize("policies", [(), (wish(rxQueueSize=1024),), (wish("other", rxQueueSize=512),)])
@pytest.mark.parametrize("guests", [None, Unreadable("it hangs"), Unavailable("not installed"), Withheld("no mount")])
def test_nothing_is_forgotten_while_libvirt_cannot_be_asked(
    policies: tuple[Policy, ...], guests: domains.Silence | None
) -> None:
    host, ledger = managed({RX: 256}, rxQueueSize=1024)
    before, host.guests = str(ledger), guests
    once(host, *policies, ledger=ledger)
    assert str(ledger) == before


def many(count: int) -> FakeHost:
    return on(*(guest(nic({}), uuid=f"u{number}", name=f"vm{number}") for number in range(count)))


def test_the_brake_holds_when_most_guests_would_be_released() -> None:
    host, ledger = many(20), MemoryLedger()
    once(host, wish(rxQueueSize=1024), ledger=ledger)
    assert said(once(host, ledger=ledger)) == {("policy/p", "deletionPolicy"): Reason.TOO_MUCH_AT_ONCE}
    assert written(host, "u7") == {RX: 1024}
    once(host, ledger=ledger, standing=Standing(allow_mass_removal=True))
    assert (written(host, "u7"), str(ledger)) == ({}, "")


def test_the_brake_has_no_part_in_a_libvirt_that_hangs() -> None:
    host, ledger = many(20), MemoryLedger()
    once(host, wish(rxQueueSize=1024), ledger=ledger)
    host.guests = Unreadable("it hangs")
    assert said(once(host, wish(rxQueueSize=1024), ledger=ledger)) == {("policy/p", "guest.nic"): Reason.UNREADABLE}


# --- order -------------------------------------------------------------------------------------------------


def test_guests_come_after_links_and_before_what_is_put_back() -> None:
    host, ledger = on(guest(nic({}))), MemoryLedger()
    once(host, wish("old", queues=2), ledger=ledger)
    host.applied.clear()
    once(host, wish("new", rxQueueSize=1024), ledger=ledger)
    values = [change.values for change in host.applied if isinstance(change, SetGuestNic)]
    assert values == [((RX, 1024),), ((QUEUES, None),)]


def test_libvirt_is_asked_only_when_somebody_asks_something_of_guests() -> None:
    asked: list[Interest] = []

    class Watching(FakeHost):
        def observe(self, interest: Interest) -> Any:
            asked.append(interest)
            return super().observe(interest)

    once(Watching("br0 bridge"), Policy("p"), replace(wish(), vhost=VhostSpec(mode=VhostMode.AUTO)))
    assert [interest.guests for interest in asked] == [False]
    once(Watching("br0 bridge"), wish(queues=2))
    assert asked[-1].guests


def test_a_value_of_a_nic_that_is_gone_is_none() -> None:
    state = on(guest(nic({RX: 256}))).observe(Interest(guests=True))
    assert domains.value(state, Setting(f"u/{MAC}", RX)) == 256
    assert domains.value(state, Setting("other/mac", RX)) is None
    assert domains.value(replace(state, guests=None), Setting(f"u/{MAC}", RX)) is None


# --- what is remembered ------------------------------------------------------------------------------------


def test_a_plan_with_a_memory_says_what_one_without_says() -> None:
    memory, host, ledger = reconcile.Memory(), FakeHost("br0 bridge\nbr1 bridge\ntap0 tap master=br0"), MemoryLedger()
    first = {"u": guest(nic({RX: 256})), "v": guest(nic({}, bridge=None, unknown="?", tap="tap0"), uuid="v")}
    drifted = {**first, "u": guest(nic({RX: 512}))}
    held = Standing(held="until noon")
    contended = Standing(contended={Setting(f"u/{MAC}", RX): "somebody fights"})
    one, other = wish(rxQueueSize=1024), wish(rxQueueSize=1024, host_tso4=False)
    audit = replace(one, mode=Mode.AUDIT)
    for guests in (first, first, drifted, {}, drifted, Unreadable("it hangs"), first):
        for policies in ((one,), (one,), (other,), (audit,), ()):
            for standing in (planning.NOTHING_STANDS, held, contended, planning.NOTHING_STANDS):
                host.guests = dict(guests) if isinstance(guests, dict) else guests
                wanted = reconcile.Wish(policies, Node("n"), standing)
                known = reconcile.look(host, ledger.recorded, wanted, memory).plan
                assert known == reconcile.look(host, ledger.recorded, wanted).plan
    host.guests = dict(first)
    host.apply(SetMaster(host.ref("tap0"), host.ref("br1")))
    plan = reconcile.look(host, ledger.recorded, reconcile.Wish((one,), Node("n")), memory).plan
    assert [step.change for step in plan.steps if isinstance(step.change, SetGuestNic)] == [
        SetGuestNic("db", "u", MAC, "", ((RX, 1024),), ((RX, 256),))
    ]
