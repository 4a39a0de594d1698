"""Which running guests' NICs are re-plugged and in which order, and that no NIC is lost whatever happens meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.flow.fake import FakeHost, MemoryLedger
from tests.unit.test_domains import MAC, QUEUES, RX, SUBJECT, TSO, guest, nic, on, once, said, wish, written
from virtnet import errors
from virtnet.core import replugs
from virtnet.core.model import (
    GuestUpdate,
    Mode,
    Policy,
    Reason,
    Replug,
    ReplugGuestNic,
    ReplugStage,
    Setting,
    Unreadable,
    Value,
)
from virtnet.core.replugs import Act, Seen
from virtnet.core.standing import Standing
from virtnet.engine import drift

TARGET = f"u/{MAC}"


def replug(name: str = "p", /, *, generation: int = 0, **asked: Value) -> Policy:
    return replace(wish(name, update=GuestUpdate.REPLUG, **asked), generation=generation)


def waits(host: FakeHost) -> dict[str, ReplugStage]:
    return {target: each.stage for target, each in host.replugs.items()}


def at(host: FakeHost, stage: ReplugStage, message: str = "") -> None:
    """The re-plug of the only guest has come to this."""
    host.replugs[TARGET] = replace(host.replugs[TARGET], stage=stage, message=message)


def ready() -> FakeHost:
    """A guest that runs otherwise than its definition says."""
    return on(guest(nic({RX: 1024}, {RX: 512})))


def two() -> FakeHost:
    """The same twice: db and another one, v."""
    running = {RX: 512}
    return on(guest(nic({RX: 1024}, running)), guest(nic({RX: 1024}, running), uuid="v", name="v"))


# --- what is begun -----------------------------------------------------------------------------------------


def test_a_running_guest_is_asked_for_its_nic_once_its_definition_is_as_wanted() -> None:
    host = on(guest(nic({RX: 256}, {RX: 512})))
    outcome = once(host, replug(rxQueueSize=1024))
    assert written(host) == {RX: 1024}
    values, seen = ((RX, 1024),), ((RX, 512),)
    assert host.applied[1:] == [ReplugGuestNic(TARGET, "db", "u", MAC, "", values, seen, "p", "0/")]
    assert [(row.subject, row.reason, row.message) for row in outcome.rows] == [
        (SUBJECT, Reason.RESTART_REQUIRED, replugs.ASKED)
    ]
    host.let_go(TARGET)
    assert (once(host, replug(rxQueueSize=1024)).rows, len(host.applied)) == ((), 2)


def test_a_guest_that_is_off_or_runs_as_wanted_is_not_asked() -> None:
    for running in (None, {RX: 1024}):
        host = on(guest(nic({RX: 1024}, running)))
        assert (once(host, replug(rxQueueSize=1024)).rows, host.applied) == ((), [])


def test_only_the_wishes_of_policies_that_say_replug_are_brought_to_a_running_guest() -> None:
    host = on(guest(nic({RX: 1024, TSO: False}, {})))
    outcome = once(host, replug(rxQueueSize=1024), wish("q", host_tso4=False))
    assert [change.values for change in host.applied if isinstance(change, ReplugGuestNic)] == [((RX, 1024),)]
    assert {row.policy: row.message == replugs.ASKED for row in outcome.rows} == {"p": True, "q": False}


def test_a_definition_that_cannot_be_written_does_not_keep_the_rest_from_the_guest() -> None:
    host = on(guest(nic({RX: 1024}, {})))
    standing = Standing(contended={Setting(TARGET, QUEUES): "somebody fights"})
    outcome = once(host, replug(rxQueueSize=1024, queues=2), standing=standing)
    assert waits(host) == {TARGET: ReplugStage.LEAVING}
    assert said(outcome) == {(SUBJECT, RX): Reason.RESTART_REQUIRED, (SUBJECT, QUEUES): Reason.CONTENDED}


@pytest.mark.parametrize(
    ("standing", "reason"),
    [
        (Standing(held="until noon"), Reason.HELD),
        (Standing(contended={Setting(TARGET, RX): "somebody fights"}), Reason.CONTENDED),
        (Standing(contended={Setting(TARGET, replugs.KEY): "somebody fights"}), Reason.CONTENDED),
        (Standing(stays=False), Reason.RESTART_REQUIRED),
    ],
)
def test_what_stands_in_the_way_leaves_the_nic_where_it_is(standing: Standing, reason: Reason) -> None:
    host = ready()
    outcome = once(host, replug(rxQueueSize=1024), standing=standing)
    assert (said(outcome), host.applied) == ({(SUBJECT, RX): reason}, [])


def test_an_audit_says_what_it_would_do() -> None:
    host = ready()
    (row,) = once(host, replace(replug(rxQueueSize=1024), mode=Mode.AUDIT)).rows
    assert (row.reason, host.applied) == (Reason.AUDIT_ONLY, [])
    assert row.message == "Audit: would re-plug the NIC of the running guest, with rxQueueSize 1024 (runs with 512)"


def test_a_transient_guest_keeps_its_nic() -> None:
    host = on(guest(nic(None, {RX: 512})))
    assert said(once(host, replug(rxQueueSize=1024))) == {(SUBJECT, RX): Reason.UNSUPPORTED}
    assert host.applied == []


def test_what_cannot_be_recorded_is_not_begun() -> None:
    host, ledger = ready(), MemoryLedger()
    host.fail(ReplugGuestNic, errors.LedgerError("the disk is full"))
    assert said(once(host, replug(rxQueueSize=1024), ledger=ledger)) == {(SUBJECT, RX): Reason.FAILED}


def test_one_guest_after_the_other_is_asked() -> None:
    uuids = ("u1", "u2", "u3")
    host = on(*(guest(nic({RX: 1024}, {RX: 512}), uuid=uuid, name=f"vm-{uuid}") for uuid in uuids))
    policy = replug(rxQueueSize=1024)
    for number, uuid in enumerate(uuids):
        outcome = once(host, policy)
        assert waits(host) == {f"{uuid}/{MAC}": ReplugStage.LEAVING}
        waiting = [row.message for row in outcome.rows if row.message != replugs.ASKED]
        assert waiting == [f"it waits for its turn: a NIC of vm-{uuid} is being re-plugged"] * (2 - number)
        host.let_go(f"{uuid}/{MAC}")
    assert (once(host, policy).rows, waits(host)) == ((), {})


def test_a_guest_that_does_not_let_go_keeps_nobody_waiting_and_is_not_asked_again() -> None:
    host = two()
    once(host, replug(rxQueueSize=1024))
    at(host, ReplugStage.LATE, "it sleeps")
    once(host, replug(rxQueueSize=1024))
    assert waits(host) == {TARGET: ReplugStage.LATE, f"v/{MAC}": ReplugStage.LEAVING}
    host.let_go(f"v/{MAC}")
    (row,) = once(host, replug(rxQueueSize=1024)).rows
    assert (row.reason, row.message) == (Reason.RESTART_REQUIRED, f"it sleeps; {replugs.LATER}")
    assert len(host.applied) == 2
    once(host, replug(rxQueueSize=1024, generation=2))
    assert (len(host.applied), host.replugs[TARGET].version) == (3, "2/")


def test_one_that_went_back_stops_its_policy_until_that_changes() -> None:
    host = two()
    once(host, replug(rxQueueSize=1024))
    at(host, ReplugStage.PUT_BACK, "put back as it was, because libvirt said no")
    for _ in range(2):
        outcome = once(host, replug(rxQueueSize=1024))
        assert {row.subject.split("/")[1]: (row.reason, row.message) for row in outcome.rows} == {
            "db": (Reason.ROLLED_BACK, "put back as it was, because libvirt said no"),
            "v": (Reason.RESTART_REQUIRED, "not re-plugged, because that of db had to be put back"),
        }
    once(host, replug(rxQueueSize=1024, generation=2))
    assert waits(host) == {TARGET: ReplugStage.LEAVING}


def test_one_that_a_kill_interrupted_is_begun_again_when_it_is_still_wanted() -> None:
    host = ready()
    once(host, replug(rxQueueSize=1024))
    at(host, ReplugStage.INTERRUPTED)
    once(host, replug(rxQueueSize=1024))
    assert waits(host) == {TARGET: ReplugStage.LEAVING}


@pytest.mark.parametrize("stage", [ReplugStage.LEAVING, ReplugStage.INTERRUPTED, ReplugStage.LATE])
def test_what_nobody_wants_any_more_is_recalled_and_never_begun_for_the_way_back(stage: ReplugStage) -> None:
    host, ledger = ready(), MemoryLedger()
    once(host, replug(rxQueueSize=1024), ledger=ledger)
    at(host, stage)
    outcome = once(host, ledger=ledger)
    assert waits(host) == {TARGET: ReplugStage.RECALLED}
    assert said(outcome) == {(SUBJECT, replugs.KEY): Reason.RESTART_REQUIRED}
    assert [type(change) for change in host.applied].count(ReplugGuestNic) == 1


def test_one_whose_nic_is_out_is_brought_to_its_end_whoever_wants_it() -> None:
    host = ready()
    once(host, replug(rxQueueSize=1024))
    host.guests = {"u": guest(nic({RX: 1024}))}
    once(host)
    assert waits(host) == {TARGET: ReplugStage.LEAVING}


def test_a_nic_that_cannot_be_put_back_is_failing_and_keeps_all_others_in() -> None:
    host = two()
    once(host, replug(rxQueueSize=1024))
    assert isinstance(host.guests, dict)
    host.guests["u"] = guest(nic({RX: 1024}))
    back = replugs.not_put_back(replugs.not_put_in(host.replugs[TARGET], "no"), "the bridge is gone")
    host.replugs[TARGET] = back
    rows = {row.subject: row for row in once(host, replug(rxQueueSize=1024)).rows}
    assert rows[SUBJECT].reason is Reason.FAILED
    assert "the bridge is gone" in rows[SUBJECT].message
    assert rows[f"guest/v/{MAC}"].reason is Reason.RESTART_REQUIRED
    assert len(host.applied) == 1


def test_nothing_is_begun_or_left_while_libvirt_cannot_be_asked() -> None:
    host = ready()
    once(host, replug(rxQueueSize=1024))
    host.guests = Unreadable("it hangs")
    once(host)
    assert waits(host) == {TARGET: ReplugStage.LEAVING}


def test_a_nic_that_somebody_re_plugs_as_it_was_is_a_fight_and_the_start_of_a_policy_is_none() -> None:
    host, ledger, policy = ready(), MemoryLedger(), replug(rxQueueSize=1024)
    begun = once(host, policy, ledger=ledger)
    assert list(drift.drifted(begun.first, None)) == []
    waiting = once(host, policy, ledger=ledger)
    assert list(drift.drifted(waiting.first, begun)) == []
    host.let_go(TARGET)
    done = once(host, policy, ledger=ledger)
    assert list(drift.drifted(done.first, waiting)) == []
    host.guests = {"u": guest(nic({RX: 1024}, {RX: 256}))}
    assert list(drift.drifted(once(host, policy, ledger=ledger).first, done)) == [(Setting(TARGET, replugs.KEY), "p")]


# --- what becomes of it ------------------------------------------------------------------------------------

FORMER, WANTED = {RX: 512}, {RX: 1024}
BEGUN = Replug("db", "u", "run 1", MAC, "", "net0", "<former/>", "<wanted/>", ((RX, 1024),), "p", "1/a")


@pytest.mark.parametrize(
    ("stage", "seen", "act"),
    [
        (ReplugStage.LEAVING, Seen("run 1", FORMER), Act.WAIT),
        (ReplugStage.LEAVING, Seen("run 1", WANTED), Act.FORGET),
        (ReplugStage.LEAVING, Seen("run 1"), Act.PUT_IN),
        (ReplugStage.INTERRUPTED, Seen("run 1"), Act.PUT_IN),
        (ReplugStage.LATE, Seen("run 1"), Act.PUT_IN),
        (ReplugStage.LATE, Seen("run 2", FORMER), Act.FORGET),
        (ReplugStage.LEAVING, Seen(""), Act.FORGET),
        (ReplugStage.RECALLED, Seen("run 1", FORMER), Act.WAIT),
        (ReplugStage.RECALLED, Seen("run 1"), Act.PUT_BACK),
        (ReplugStage.RETURNING, Seen("run 1"), Act.PUT_BACK),
        (ReplugStage.RETURNING, Seen("run 1", FORMER), Act.SETTLE),
        (ReplugStage.RETURNING, Seen("run 2"), Act.FORGET),
        (ReplugStage.PUT_BACK, Seen("run 1"), Act.WAIT),
        (ReplugStage.PUT_BACK, Seen(""), Act.WAIT),
    ],
)
def test_what_is_there_decides_what_is_done(stage: ReplugStage, seen: Seen, act: Act) -> None:
    assert replugs.decide(replace(BEGUN, stage=stage), seen) is act


def test_what_libvirt_drops_without_a_word_is_not_tried_for_ever() -> None:
    left = replugs.put_in(BEGUN, Seen("run 1", FORMER))
    assert left is not None
    assert (left.stage, left.message) == (ReplugStage.PUT_BACK, f"put in again, but not with all of {RX}")


@pytest.mark.parametrize(
    ("stage", "forgiven"),
    [(ReplugStage.PUT_BACK, None), (ReplugStage.LATE, ReplugStage.INTERRUPTED), *[(ReplugStage.RECALLED,) * 2]],
)
def test_who_asks_to_try_again_is_obeyed(stage: ReplugStage, forgiven: ReplugStage | None) -> None:
    after = replugs.forgiven(replace(BEGUN, stage=stage))
    assert (after and after.stage) == forgiven


@dataclass
class World:
    """A guest, its QEMU, the disk and an agent that acts as `decide` says, and may die between any two of its acts."""

    takes_wanted: bool = True
    takes_former: bool = True
    run: int = 1
    settings: Mapping[str, Value] | None = field(default_factory=lambda: FORMER)
    disk: Replug | None = BEGUN
    is_asked: bool = False

    def seen(self) -> Seen:
        return Seen(f"run {self.run}" if self.run else "", self.settings)

    def guest_lets_go(self) -> None:
        if self.is_asked and self.run:
            self.settings, self.is_asked = None, False

    def guest_restarts(self) -> None:
        self.run, self.settings, self.is_asked = self.run + 1, WANTED, False

    def act(self) -> bool:
        """One act of the agent; whether there was anything to do."""
        if self.disk is None:
            return False
        match replugs.decide(self.disk, self.seen()):
            case Act.WAIT:
                return False
            case Act.PUT_IN:
                if self.takes_wanted:
                    self.settings = WANTED
                    self.disk = replugs.put_in(self.disk, self.seen())
                else:
                    self.disk = replugs.not_put_in(self.disk, "no")
            case Act.PUT_BACK:
                if not self.takes_former:
                    self.disk = replugs.not_put_back(self.disk, "no")
                    return False
                self.settings = FORMER
                self.disk = replugs.settled(self.disk)
            case Act.SETTLE:
                self.disk = replugs.settled(self.disk)
            case Act.FORGET:
                self.disk = None
        return True

    def happen(self, event: str) -> None:
        before = self.disk
        match event:
            case "ask":
                self.is_asked = True
            case "lets go":
                self.guest_lets_go()
            case "restarts":
                self.guest_restarts()
            case "ends":
                self.run, self.settings, self.is_asked = 0, None, False
            case "acts":
                self.act()
            case "acts and is killed before it is written":
                self.act()
                self.disk = before
            case "is late" if self.disk:
                self.disk = replugs.unanswered(self.disk, "it sleeps")
            case "is unwanted" if self.disk:
                self.disk = replugs.left(self.disk)
            case "is started anew" if self.disk:
                self.disk = replugs.resumed(self.disk)
            case "is forgiven" if self.disk:
                self.disk = replugs.forgiven(self.disk)
            case "wanted is refused":
                self.takes_wanted = False
            case "former is refused":
                self.takes_former = False


EVENTS = (
    *("ask", "lets go", "restarts", "ends", "acts", "acts and is killed before it is written"),
    *("is late", "is unwanted", "is started anew", "is forgiven", "wanted is refused", "former is refused"),
)


@given(st.lists(st.sampled_from(EVENTS), max_size=30))
def test_a_nic_is_never_lost(events: list[str]) -> None:
    """At any time a NIC that is out of a running guest is on the disk; and when libvirt takes it, it is in."""
    world = World()
    for event in ("ask", *events):
        world.happen(event)
        if world.run and world.settings is None and event != "ends":
            assert world.disk is not None
            assert replugs.decide(world.disk, world.seen()) in {Act.PUT_IN, Act.PUT_BACK}
    world.takes_former = True
    acts = 0
    while world.act():
        acts += 1
    assert acts <= 4
    assert not world.run or world.settings is not None


@given(st.lists(st.sampled_from(EVENTS), max_size=30))
def test_what_went_back_is_told_why(events: list[str]) -> None:
    world = World()
    for event in ("ask", *events):
        world.happen(event)
        if world.disk is not None and world.disk.stage in {ReplugStage.PUT_BACK, ReplugStage.LATE}:
            assert world.disk.message
