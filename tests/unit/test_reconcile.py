"""One pass: what is written before it is done, what a failure leaves, and what is reported of the second look."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.flow.agent import NODE, Agent
from tests.flow.fake import FakeHost, MemoryLedger
from tests.flow.policies import read
from tests.flow.tables import row_text, said
from virtnet import errors, reconcile
from virtnet.core.model import (
    Change,
    CreateBridge,
    HostState,
    Interest,
    Link,
    Reason,
    SetFeatures,
    SetMaster,
    SetMtu,
    SetRings,
    Setting,
    SetTxQueueLength,
    Step,
)
from virtnet.core.standing import Standing
from virtnet.reconcile import Failures, Look

HOST = "br0 bridge\neth0 mlx5_core master=br0\ntap0 tap master=br0\ntap1 tap master=br0"
TAPS = "p: {bridge: {name: br0}, tap: {mtu: 1400, txQueueLength: 500}}"


def made(host: FakeHost) -> list[str]:
    """The changes that took effect, by kind and link."""
    return [f"{type(change).__name__} {_name(change)}" for change in host.applied]


def _name(change: Change) -> str:
    return change.link.name if hasattr(change, "link") else getattr(change, "name", "")


def texts(outcome: reconcile.Outcome) -> list[str]:
    return [row_text(row) for row in outcome.rows]


# --- order and rounds --------------------------------------------------------------------------------------


def test_a_bridge_its_options_and_its_ports_come_in_one_pass() -> None:
    host = FakeHost("eth0 mlx5_core")
    outcome = Agent(host).run(
        read(
            "p: {bridge: {name: br0, create: true, stp: true, ports: [eth0]}, tap: {create: [{name: vm0}], mtu: 1400}}"
        )
    )
    assert outcome.complete
    assert {"stp=on", "mtu=1400"} <= host.words("br0")
    assert "master=br0" in host.words("eth0")
    assert {"master=br0", "mtu=1400"} <= host.words("vm0")
    assert made(host)[:2] == ["CreateBridge br0", "CreateTap vm0"]


def test_a_pass_over_a_host_that_is_as_asked_does_nothing() -> None:
    agent = Agent(FakeHost(HOST))
    agent.run(read(TAPS))
    agent.host.applied.clear()
    outcome = agent.run(read(TAPS))
    assert (made(agent.host), outcome.rows, outcome.applied) == ([], (), ())


def test_what_was_applied_is_told_once_for_each_name_and_link() -> None:
    outcome = Agent(FakeHost(HOST)).run(read(TAPS))
    assert sorted(map(row_text, outcome.applied)) == [
        "tap0 tap.mtu Applied",
        "tap0 tap.txQueueLength Applied",
        "tap1 tap.mtu Applied",
        "tap1 tap.txQueueLength Applied",
    ]


def test_only_the_last_look_is_reported() -> None:
    outcome = Agent(FakeHost(HOST)).run(read(TAPS))
    assert len(outcome.first.plan.steps) == 4
    assert outcome.last.plan.steps == ()


def test_risky_steps_of_a_policy_are_handed_over_together_and_plain_ones_are_not() -> None:
    host, given = FakeHost(HOST), list[tuple[str, list[str]]]()

    async def transact(policy: str, steps: list[Step], look: Look) -> Failures:
        given.append((policy, [_name(step.change) for step in steps]))
        for step in steps:
            host.apply(step.change)
        return {}

    wish = reconcile.Wish(read(TAPS), NODE)
    asyncio.run(reconcile.run(host, MemoryLedger(), wish, transact=transact))
    assert given == [("p", ["tap0", "tap1"])]
    assert {"mtu=1400", "txqlen=500"} <= host.words("tap1")


# --- failures ----------------------------------------------------------------------------------------------

ERRORS = [
    (errors.Refused("no"), Reason.REFUSED),
    (errors.NotPermitted("no"), Reason.REFUSED),
    (errors.NotSupported("no"), Reason.UNSUPPORTED),
    (errors.InUse("no"), Reason.IN_USE),
    (errors.Temporary("no"), Reason.FAILED),
]


@pytest.mark.parametrize(("error", "reason"), ERRORS, ids=[type(error).__name__ for error, _ in ERRORS])
def test_a_change_that_fails_is_told_by_its_kind_and_stops_no_other(error: errors.HostError, reason: Reason) -> None:
    agent = Agent(FakeHost(HOST))
    agent.host.fail(SetMtu, error)
    outcome = agent.run(read(TAPS))
    assert texts(outcome) == [f"tap0 tap.mtu {reason}", f"tap1 tap.mtu {reason}"]
    assert {row.message for row in outcome.rows} == {"no"}
    assert "txqlen=500" in agent.host.words("tap1")


def test_a_change_is_tried_once_in_a_pass_and_again_in_the_next() -> None:
    agent = Agent(FakeHost(HOST))
    agent.host.fail(SetMtu, errors.Temporary("no"), times=2)
    assert [str(row.reason) for row in agent.run(read(TAPS)).rows] == ["Failed", "Failed"]
    assert agent.run(read(TAPS)).rows == ()


def test_a_final_answer_is_remembered_and_not_asked_for_again() -> None:
    agent = Agent(FakeHost(HOST))
    agent.host.fail(SetMtu, errors.Refused("the driver says no"), times=2)
    refusals = agent.run(read(TAPS)).refusals
    assert {setting.key for setting in refusals} == {"mtu"}
    outcome = agent.run(read(TAPS))
    assert [(str(row.reason), row.message) for row in outcome.rows] == [("Refused", "the driver says no")] * 2
    assert "mtu=1500" in agent.host.words("tap0")


def test_a_link_that_goes_in_the_middle_is_no_failure() -> None:
    agent = Agent(FakeHost(HOST))
    agent.host.boundaries.at(5, lambda: agent.host.foreign.delete("tap0"))
    outcome = agent.run(read(TAPS))
    assert (outcome.rows, outcome.failures) == ((), {})
    assert {"mtu=1400", "txqlen=500"} <= agent.host.words("tap1")


def test_somebody_who_changes_it_right_back_is_told_as_a_failure() -> None:
    agent = Agent(FakeHost(HOST))
    host = agent.host
    act, tap0 = host.apply, host.ref("tap0")

    def apply(change: Change) -> None:
        act(change)
        if isinstance(change, SetTxQueueLength) and change.link == tap0:
            act(SetTxQueueLength(tap0, 1000))

    host.apply = apply  # type: ignore[method-assign]
    outcome = agent.run(read(TAPS))
    assert said(outcome.rows) == ["tap0 tap.txQueueLength Failed: was changed again right after it was set"]


def test_a_value_that_the_driver_rounds_is_refused_once_and_the_original_comes_back() -> None:
    agent = Agent(FakeHost("eth0 mlx5_core"))
    policy = read("p: {uplink: {match: {names: [eth0]}, rings: {rx: 1025}}}")
    outcome = agent.run(policy)
    assert said(outcome.rows) == ["eth0 uplink.rings.rx Refused: the driver answered another value"]
    agent.host.applied.clear()
    assert texts(agent.run(policy)) == ["eth0 uplink.rings.rx Refused"]
    assert made(agent.host) == []
    agent.run(())
    assert "rx-ring=1024/8192" in agent.host.words("eth0")


def test_features_that_the_driver_keeps_off_do_not_stop_the_others() -> None:
    agent = Agent(FakeHost("eth0 mlx5_core refuses=rx-ntuple-filter"))
    outcome = agent.run(read("p: {uplink: {match: {names: [eth0]}, offloads: {ntuple: true, gro: false}}}"))
    assert texts(outcome) == ["eth0 uplink.offloads.ntuple Refused"]
    assert "-gro" in agent.host.words("eth0")


# --- the ledger --------------------------------------------------------------------------------------------


def test_what_cannot_be_recorded_is_left_alone_and_what_is_recorded_stays_enforced() -> None:
    agent = Agent(FakeHost(HOST))
    agent.run(read("p: {bridge: {name: br0}, tap: {mtu: 1400}}"))
    agent.host.foreign.set_mtu("tap0", 1300)
    agent.ledger.fail()
    outcome = agent.run(read(TAPS))
    assert "mtu=1400" in agent.host.words("tap0")
    assert [row_text(row) for row in outcome.rows] == ["tap0 tap.txQueueLength Failed", "tap1 tap.txQueueLength Failed"]
    assert "cannot record the original" in outcome.rows[0].message
    assert "No space left" in outcome.ledger_error
    agent.ledger.heal()
    assert agent.run(read(TAPS)).rows == ()


def test_what_cannot_be_written_down_as_made_is_not_made() -> None:
    agent = Agent(FakeHost(""))
    agent.ledger.fail()
    outcome = agent.run(read("p: {bridge: {name: br0, create: true}}"))
    assert texts(outcome) == ["br0 bridge.create Failed"]
    assert agent.host.names() == []


MAKING = [
    ("a plain no", errors.Refused("no"), False, []),
    ("a lost answer", errors.Temporary("no answer"), True, ["br0"]),
    ("no answer and nothing made", errors.Temporary("no answer"), False, ["br0"]),
]


@pytest.mark.parametrize(("error", "late", "known"), [row[1:] for row in MAKING], ids=[row[0] for row in MAKING])
def test_what_may_have_been_made_is_ours_until_a_look_tells(
    error: errors.HostError, late: bool, known: list[str]
) -> None:
    agent = Agent(FakeHost(""))
    agent.host.fail(CreateBridge, error, times=1, late=late)
    agent.run(read("p: {bridge: {name: br0, create: true}}"))
    assert list(agent.ledger.recorded.made) == known
    agent.host.heal()
    agent.allow_mass_removal = True
    agent.run(())
    assert agent.host.names() == []
    assert agent.ledger.recorded.made == {}


def test_a_link_of_another_kind_is_not_taken_for_the_one_we_made() -> None:
    agent = Agent(FakeHost(""))
    agent.host.fail(CreateBridge, errors.Temporary("no answer"), times=1)
    agent.run(read("p: {bridge: {name: br0, create: true}}"))
    agent.host.heal()
    agent.host.foreign.add("br0 veth")
    agent.run(())
    assert agent.host.names() == ["br0"]


def test_a_renamed_link_keeps_its_originals_and_a_gone_one_drops_them() -> None:
    agent = Agent(FakeHost(HOST))
    policies = read("p: {bridge: {name: br0}, tap: {mtu: 1400}}")
    agent.run(policies)
    agent.host.foreign.rename("tap0", "vm0")
    agent.host.foreign.delete("tap1")
    agent.run(policies)
    assert str(agent.ledger) == "vm0 mtu 1500 -> 1400 by p Restore"


def test_a_value_that_is_left_to_somebody_else_is_told_once() -> None:
    agent = Agent(FakeHost(HOST))
    agent.run(read("p: {bridge: {name: br0}, tap: {mtu: 1400}}"))
    agent.host.foreign.set_mtu("tap0", 1300)
    assert texts(agent.run(())) == ["tap0 mtu Foreign"]
    assert agent.run(()).rows == ()
    assert "mtu=1300" in agent.host.words("tap0")
    assert "mtu=1500" in agent.host.words("tap1")


# --- looking -----------------------------------------------------------------------------------------------


class Watched(FakeHost):
    """Remembers what each look was for."""

    def __init__(self, lines: str) -> None:
        super().__init__(lines)
        self.interests: list[Interest] = []

    def observe(self, interest: Interest) -> HostState:
        self.interests.append(interest)
        return super().observe(interest)


def test_processes_are_looked_for_only_when_somebody_is_in_the_way() -> None:
    policies = read("p: {bridge: {name: br0}, tap: {vnetHdr: true}}")
    calm, busy = Watched("br0 bridge\ntap0 tap master=br0"), Watched("br0 bridge\ntap0 tap master=br0 held=qemu:7:vm1")
    Agent(calm).run(policies)
    outcome = Agent(busy).run(policies)
    assert not any(interest.users for interest in calm.interests)
    assert any(interest.users for interest in busy.interests)
    assert said(outcome.rows) == [
        "tap0 tap.vnetHdr InUse: tap0 is held by qemu[7] (guest vm1); vnetHdr can change when it is let go"
    ]


def test_what_the_ledger_holds_is_looked_at_although_no_policy_asks() -> None:
    host = Watched("eth0 mlx5_core")
    agent = Agent(host)
    agent.run(read("p: {uplink: {match: {names: [eth0]}, rings: {rx: 512}}}"))
    agent.run(())
    assert host.interests[-1].rings or agent.ledger.recorded.links == {}
    assert "rx-ring=1024/8192" in host.words("eth0")


def test_a_review_may_stop_what_the_first_look_would_change() -> None:
    host = FakeHost(HOST)

    def review(look: Look, standing: Standing) -> Standing:
        settings = [setting for step in look.plan.steps for setting, _ in step.settings if setting.key == "mtu"]
        return replace(standing, contended=dict.fromkeys(settings, "somebody else wants it otherwise"))

    outcome = asyncio.run(reconcile.run(host, MemoryLedger(), reconcile.Wish(read(TAPS), NODE), review=review))
    assert texts(outcome) == ["tap0 tap.mtu Contended", "tap1 tap.mtu Contended"]
    assert {"mtu=1500", "txqlen=500"} <= host.words("tap0")


def test_a_held_node_is_looked_at_and_not_changed() -> None:
    agent = Agent(FakeHost(HOST))
    agent.held = "until 23:15"
    outcome = agent.run(read("p: {bridge: {name: br0}, tap: {mtu: 1400}}"))
    assert said(outcome.rows)[0] == "tap0 tap.mtu Held: held until 23:15: reported, not changed"
    assert made(agent.host) == []
    assert str(agent.ledger) != ""


COMPLETE = [
    (HOST, TAPS, True),
    (HOST, "p: {mode: Audit, tap: {match: {names: [tap0]}, mtu: 1400}}", True),
    (
        HOST,
        "p: {tap: {match: {names: [tap0]}, mtu: 1400}}\nq: {priority: -1, tap: {match: {names: [tap0]}, mtu: 1300}}",
        True,
    ),
    (HOST, "p: {uplink: {match: {names: [eth9]}, offloads: {tso: false}}}", False),
    ("eth0 e1000e", "p: {uplink: {match: {names: [eth0]}, offloads: {lro: true}}}", False),
]


@pytest.mark.parametrize(("host", "policies", "complete"), COMPLETE)
def test_audits_and_lost_conflicts_do_not_make_an_outcome_incomplete(host: str, policies: str, complete: bool) -> None:
    assert Agent(FakeHost(host)).run(read(policies)).complete is complete


def test_equal_links_are_the_same_objects_so_a_pass_in_peace_compares_none() -> None:
    agent = Agent(FakeHost(HOST))
    policies = read("p: {bridge: {name: br0}, tap: {mtu: 1400}}")
    agent.run(policies)
    first: dict[int, Link] = dict(agent.run(policies).last.state.links)
    second = agent.run(policies).last.state.links
    assert all(first[ifindex] is second[ifindex] for ifindex in first)
    assert set(agent.memory.plan.quiet) >= {3, 4}


def test_a_change_of_rings_and_one_of_a_port_know_their_settings() -> None:
    host = FakeHost("br0 bridge\neth0 mlx5_core")
    outcome = Agent(host).run(
        read("p: {bridge: {name: br0, ports: [eth0]}, uplink: {match: {names: [eth0]}, rings: {rx: 512, tx: 512}}}")
    )
    steps = {type(step.change): [setting for setting, _ in step.settings] for step in outcome.first.plan.steps}
    assert steps == {
        SetRings: [Setting(2, "rings.rx"), Setting(2, "rings.tx")],
        SetMaster: [Setting(2, "master")],
    }
    assert SetFeatures not in steps
