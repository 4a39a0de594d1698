"""Changes that can cut the node off: all of a policy or none, on disk before they begin, and not tried twice."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from tests.flow.agent import GATEWAY, Agent, FakeProber, MortalState
from tests.flow.fake import FakeHost, Killed
from tests.flow.policies import read
from tests.flow.tables import row_text, said
from virtnet import errors
from virtnet.core.model import CreateTap, Policy, Reason, Safety, SetBridgeOptions, SetMaster, SetMtu
from virtnet.engine.transactions import Transactions
from virtnet.host import records
from virtnet.host.probes import Probe

HOST = "br0 bridge\neth0 mlx5_core +lro\ntap0 tap master=br0"
POLICY = "p: {bridge: {name: br0, ports: [eth0], stp: true}, tap: {mtu: 1400, txQueueLength: 500}}"
LOST = "put back because the node lost its way: gateway 192.0.2.1%br0: no answer"
RISKY = ["br0 bridge.stp RolledBack", "eth0 bridge.ports RolledBack", "tap0 tap.mtu RolledBack"]


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    return Agent(FakeHost(HOST), tmp_path / "state")


def written(agent: Agent, name: str) -> object:
    assert agent.state is not None
    return agent.state.read_json(name)


# --- confirmed or put back ---------------------------------------------------------------------------------


def test_a_transaction_whose_probes_still_work_stays_and_leaves_nothing_on_disk(agent: Agent) -> None:
    outcome = agent.run(read(POLICY))
    assert outcome.rows == ()
    assert "master=br0" in agent.host.words("eth0")
    assert written(agent, records.TRANSACTION) is None


def test_a_lost_probe_puts_everything_risky_back_and_nothing_else(agent: Agent) -> None:
    agent.prober.lost = True
    outcome = agent.run(read(POLICY))
    assert sorted(map(row_text, outcome.rows)) == RISKY
    assert {row.message for row in outcome.rows} == {LOST}
    assert "stp=off" in agent.host.words("br0")
    assert {"mtu=1500", "master=br0", "txqlen=500"} <= agent.host.words("tap0")
    assert "+lro" in agent.host.words("eth0")


def test_it_is_put_back_in_the_opposite_order(agent: Agent) -> None:
    agent.prober.lost = True
    agent.run(read(POLICY))
    risky = [change for change in agent.host.applied if isinstance(change, SetBridgeOptions | SetMaster | SetMtu)]
    there, back = risky[: len(risky) // 2], risky[len(risky) // 2 :]
    assert [type(change) for change in back] == [type(change) for change in reversed(there)]


def test_what_went_back_is_not_tried_again_also_over_a_restart(agent: Agent) -> None:
    agent.prober.lost = True
    agent.run(read(POLICY))
    agent.prober.lost = False
    agent.host.applied.clear()
    assert sorted(map(row_text, agent.run(read(POLICY)).rows)) == RISKY
    agent.restart()
    assert sorted(map(row_text, agent.run(read(POLICY)).rows)) == RISKY
    assert agent.host.applied == []


AGAIN = [
    ("another generation", POLICY.replace("p:", "p/2:", 1)),
    ("another content", POLICY.replace("stp: true", "stp: true, ageingTimeSeconds: 0")),
]


@pytest.mark.parametrize("policy", [row[1] for row in AGAIN], ids=[row[0] for row in AGAIN])
def test_another_version_of_the_policy_is_tried(agent: Agent, policy: str) -> None:
    agent.prober.lost = True
    agent.run(read(POLICY))
    agent.prober.lost = False
    assert agent.run(read(policy)).rows == ()


def test_the_earlier_version_is_tried_again_when_somebody_comes_back_to_it(agent: Agent) -> None:
    agent.prober.lost = True
    agent.run(read(POLICY))
    agent.prober.lost = False
    agent.run(read("p: {bridge: {name: br0}}"))
    assert agent.run(read(POLICY)).rows == ()


def test_forgiving_tries_again(agent: Agent) -> None:
    agent.prober.lost = True
    agent.run(read(POLICY))
    agent.prober.lost = False
    agent.forgive()
    assert agent.run(read(POLICY)).rows == ()
    assert written(agent, records.ROLLED_BACK) == {}


def test_one_policy_that_lost_its_way_does_not_stop_another(agent: Agent) -> None:
    class OnlyEth0(FakeProber):
        async def confirm(self, probes: Iterable[Probe], within: float) -> Mapping[Probe, str]:
            lost = "master=br0" in agent.host.words("eth0")
            return dict.fromkeys(probes, "no answer") if lost else {}

    assert agent.transactions is not None
    agent.transactions.prober = OnlyEth0()
    outcome = agent.run(read("p: {bridge: {name: br0, ports: [eth0]}}\nq: {tap: {match: {names: [tap0]}, mtu: 1400}}"))
    assert [(row_text(row), row.policy) for row in outcome.rows] == [("eth0 bridge.ports RolledBack", "p")]
    assert "mtu=1400" in agent.host.words("tap0")


def test_restores_after_the_end_of_a_policy_are_a_transaction_too(agent: Agent) -> None:
    agent.run(read(POLICY))
    agent.prober.lost = True
    outcome = agent.run(())
    assert {row.reason for row in outcome.rows} == {Reason.ROLLED_BACK}
    assert {"stp=on", "mtu=1400"} <= agent.host.words("br0")
    agent.prober.lost = False
    agent.forgive()
    agent.run(())
    assert str(agent.host) == str(FakeHost(HOST))


def test_a_change_that_fails_does_not_undo_the_others(agent: Agent) -> None:
    agent.host.fail(SetMtu, errors.Refused("no"))
    outcome = agent.run(read(POLICY))
    assert said(outcome.rows) == ["tap0 tap.mtu Refused: no"]
    assert "stp=on" in agent.host.words("br0")


def test_what_cannot_be_put_back_is_said(agent: Agent) -> None:
    agent.prober.lost = True
    agent.host.fail(lambda change: isinstance(change, SetMtu) and change.mtu == 1500, errors.Temporary("no memory"))
    outcome = agent.run(read(POLICY))
    assert "mtu=1400" in agent.host.words("tap0")
    assert agent.transactions is not None
    assert agent.transactions.rolled_back["p"].message == f"{LOST} (not put back: no memory)"
    assert {row.reason for row in outcome.rows} == {Reason.ROLLED_BACK}


def test_a_tap_of_ours_that_is_put_back_is_still_ours(agent: Agent) -> None:
    policy = "p: {bridge: {name: br0}, tap: {create: [{name: vm0}]}}"
    agent.run(read(policy))
    agent.prober.lost = True
    agent.run(read(policy.replace("vm0", "vm1")))
    assert "master=br0" in agent.host.words("vm0")
    agent.prober.lost = False
    agent.forgive()
    agent.run(())
    assert str(agent.host) == str(FakeHost(HOST))


# --- what the policy says of safety ------------------------------------------------------------------------


def test_without_rollback_nothing_is_probed_and_nothing_put_back(agent: Agent) -> None:
    agent.prober.lost = True
    assert agent.run(read(POLICY.replace("p: {", "p: {safety: {rollback: false}, ", 1))).rows == ()


class Counting(FakeProber):
    """Remembers what it was asked; only `good` probes work at first."""

    def __init__(self, *good: Probe) -> None:
        super().__init__()
        self.good, self.asked = frozenset(good), list[tuple[str, frozenset[Probe], float]]()

    def probes(self, safety: Safety) -> tuple[Probe, ...]:
        return (GATEWAY, *(Probe("tcp", target) for target in safety.tcp))

    async def working(self, probes: Iterable[Probe], within: float) -> frozenset[Probe]:
        self.asked.append(("before", frozenset(probes), within))
        return self.good

    async def confirm(self, probes: Iterable[Probe], within: float) -> Mapping[Probe, str]:
        self.asked.append(("after", frozenset(probes), within))
        return {}


def test_a_probe_that_failed_before_is_not_asked_after(agent: Agent) -> None:
    assert agent.transactions is not None
    agent.transactions.prober = prober = Counting(GATEWAY)
    agent.run(read(POLICY.replace("p: {", "p: {safety: {timeoutSeconds: 7, probes: {tcp: ['192.0.2.9:22']}}, ", 1)))
    assert [(when, len(probes)) for when, probes, _ in prober.asked] == [("before", 2), ("after", 1)]
    before, after = (within for _, _, within in prober.asked)
    assert before == 1.0
    assert 6 < after <= 7


def test_where_nothing_works_before_nothing_is_waited_for(agent: Agent) -> None:
    assert agent.transactions is not None
    agent.transactions.prober = prober = Counting()
    assert agent.run(read(POLICY)).rows == ()
    assert [when for when, _, _ in prober.asked] == ["before"]


def test_it_is_not_begun_when_the_probes_cannot_be_known(agent: Agent) -> None:
    class Blind(FakeProber):
        def probes(self, safety: Safety) -> tuple[Probe, ...]:
            raise errors.Temporary("the routes keep changing")

    assert agent.transactions is not None
    agent.transactions.prober = Blind()
    outcome = agent.run(read("p: {bridge: {name: br0, stp: true}}"))
    text = "not begun: what the node can reach cannot be known: the routes keep changing"
    assert said(outcome.rows) == [f"br0 bridge.stp Failed: {text}"]
    assert "stp=off" in agent.host.words("br0")


# --- the disk ----------------------------------------------------------------------------------------------


class FullState(MortalState):
    """A disk that refuses to write some names, or to remove them."""

    refuses: frozenset[str] = frozenset()
    keeps: frozenset[str] = frozenset()

    def write_json(self, name: str, value: object, *, durable: bool) -> None:  # type: ignore[override]
        if name in self.refuses:
            raise errors.LedgerError("No space left on device")
        super().write_json(name, value, durable=durable)

    def remove(self, name: str, *, durable: bool) -> None:
        if name in self.keeps:
            raise errors.LedgerError("Read-only file system")
        super().remove(name, durable=durable)


@pytest.fixture
def full(tmp_path: Path) -> Agent:
    agent = Agent(FakeHost(HOST), tmp_path / "state")
    agent.state = FullState(tmp_path / "state", agent.host.boundaries)
    agent.restart()
    return agent


def test_it_is_not_begun_when_what_undoes_it_cannot_be_written(full: Agent) -> None:
    assert isinstance(full.state, FullState)
    full.state.refuses = frozenset({records.TRANSACTION})
    outcome = full.run(read("p: {bridge: {name: br0, stp: true}}"))
    text = "not begun: what would undo it cannot be recorded: No space left on device"
    assert said(outcome.rows) == [f"br0 bridge.stp Failed: {text}"]


def test_a_rollback_that_cannot_be_written_down_is_made_all_the_same(
    full: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(full.state, FullState)
    full.state.refuses = frozenset({records.ROLLED_BACK})
    full.prober.lost = True
    full.run(read("p: {bridge: {name: br0, stp: true}}"))
    assert "stp=off" in full.host.words("br0")
    assert "cannot record that the transaction of policy p was put back" in caplog.text


def test_an_end_that_cannot_be_written_down_is_said_and_fails_no_pass(
    full: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(full.state, FullState)
    full.state.keeps = frozenset({records.TRANSACTION})
    assert full.run(read("p: {bridge: {name: br0, stp: true}}")).rows == ()
    assert "cannot record that the transaction of policy p is over: Read-only file system" in caplog.text


# --- stops and kills ---------------------------------------------------------------------------------------


class Never(FakeProber):
    """Its answer never comes."""

    async def confirm(self, probes: Iterable[Probe], within: float) -> Mapping[Probe, str]:
        await asyncio.sleep(3600)
        return {}


def test_a_stop_in_the_middle_puts_it_back_at_once(agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
    assert agent.transactions is not None
    agent.transactions.prober = Never()
    with caplog.at_level(logging.WARNING), pytest.raises(TimeoutError):
        asyncio.run(_stopped(agent, read("p: {bridge: {name: br0, stp: true}}")))
    assert "stp=off" in agent.host.words("br0")
    assert "interrupted by a stop and put back" in caplog.text
    assert written(agent, records.TRANSACTION) is None


async def _stopped(agent: Agent, policies: tuple[Policy, ...]) -> None:
    async with asyncio.timeout(0.05):
        await agent.start(policies)


def test_a_kill_in_the_middle_is_put_back_at_the_next_start(agent: Agent) -> None:
    policy = read("p: {bridge: {name: br0, stp: true, ageingTimeSeconds: 0}}")
    with pytest.raises(Killed):
        _run_until_killed(agent, policy)
    agent.host.heal()
    assert {"stp=on", "ageing=0"} <= agent.host.words("br0")
    assert written(agent, records.TRANSACTION) is not None
    agent.restart()
    assert "stp=off" in agent.host.words("br0")
    assert {str(row.reason) for row in agent.run(policy).rows} == {"RolledBack"}
    assert "interrupted by the end of the process and put back" in agent.run(policy).rows[0].message


def _run_until_killed(agent: Agent, policies: tuple[Policy, ...]) -> None:
    """Kill right after the first change took effect."""
    act = agent.host.apply

    def apply(change: object) -> None:
        act(change)  # type: ignore[arg-type]
        agent.host.boundaries.die_after(0)

    agent.host.apply = apply  # type: ignore[method-assign]
    try:
        agent.run(policies)
    finally:
        agent.host.apply = act  # type: ignore[method-assign]


def test_after_a_reboot_nothing_is_put_back(agent: Agent, tmp_path: Path) -> None:
    policy = read("p: {bridge: {name: br0, stp: true}}")
    with pytest.raises(Killed):
        _run_until_killed(agent, policy)
    agent.host.heal()
    rebooted = FakeHost(HOST, boot_id="boot-2")
    assert agent.state is not None
    transactions = Transactions(rebooted, agent.ledger, agent.state, agent.prober)
    assert transactions.recover() == "transaction of policy p: interrupted by a reboot: nothing of it is left"
    assert (rebooted.applied, transactions.rolled_back) == ([], {})
    assert transactions.recover() is None


def test_what_is_on_disk_undoes_the_transaction_and_can_be_read_by_people(agent: Agent) -> None:
    with pytest.raises(Killed):
        _run_until_killed(agent, read("p: {bridge: {name: br0, stp: true}}"))
    agent.host.heal()
    text = json.dumps(written(agent, records.TRANSACTION))
    assert all(word in text for word in ("br0", "bridge.stp", "SetBridgeOptions", "boot-1"))


# --- carrier -----------------------------------------------------------------------------------------------


def test_slaves_of_a_bond_are_changed_one_after_another(tmp_path: Path) -> None:
    host = FakeHost("bond0 bond\neth0 mlx5_core master=bond0\neth1 mlx5_core master=bond0")
    agent = Agent(host, tmp_path / "state")
    act, down = host.apply, list[list[str]]()

    def apply(change: object) -> None:
        act(change)  # type: ignore[arg-type]
        name = change.link.name  # type: ignore[attr-defined]
        device = host.machine.named(name)
        device.change(carrier=False)
        down.append([each.link.name for each in host.machine.devices.values() if not each.link.carrier])
        asyncio.get_running_loop().call_later(0.02, lambda: device.change(carrier=True))

    host.apply = apply  # type: ignore[method-assign]
    outcome = agent.run(read("p: {uplink: {match: {names: [eth*]}, rings: {rx: 512}}}"))
    assert outcome.rows == ()
    assert down == [["eth0"], ["eth1"]]


def test_a_tap_is_made_plainly_outside_of_the_transaction(agent: Agent) -> None:
    agent.prober.lost = True
    outcome = agent.run(read("p: {bridge: {name: br0}, tap: {create: [{name: vm0}]}}"))
    assert isinstance(agent.host.applied[0], CreateTap)
    assert sorted(map(row_text, outcome.rows)) == ["vm0 tap.create RolledBack"]
    assert "vm0" in agent.host.names()
