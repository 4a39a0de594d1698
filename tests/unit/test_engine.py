"""The engine: what makes it look, how often at most, what it leaves alone, and what it tells."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.flow.agent import NODE, FakeProber, MortalState
from tests.flow.fake import MemoryLedger
from tests.flow.monitor import Heard, TellingHost
from tests.flow.policies import read
from virtnet import errors
from virtnet.core.model import SetFeatures, SetMtu, SetRings, SetTxQueueLength
from virtnet.engine.engine import Engine, Options
from virtnet.engine.fights import Thresholds
from virtnet.engine.transactions import Transactions
from virtnet.host import records

HOST = "br0 bridge\neth0 mlx5_core master=br0\ntap0 tap master=br0\ntap1 tap master=br0"
GRO = "p: {bridge: {name: br0}, tap: {offloads: {gro: true}, txQueueLength: 500}}"
PATIENCE = 5.0
"""Seconds within which everything here happens, on a busy machine too."""

QUICK = Options(retries=(0.03, 0.1), settle=0.001, rate=100)


class Bench:
    """One engine on one host, and all that it has said."""

    def __init__(
        self, path: Path, lines: str = HOST, options: Options = QUICK, ledger: MemoryLedger | None = None
    ) -> None:
        self.host = TellingHost(lines)
        self.ledger = ledger or MemoryLedger()
        self.state = MortalState(path / "state", self.host.boundaries)
        self.prober = FakeProber()
        self.said: list[Mapping[str, Any]] = []
        self.options = options
        self.start()

    def start(self) -> None:
        """A new process on the same disk."""
        transactions = Transactions(self.host, self.ledger, self.state, self.prober)
        self.engine = Engine(
            self.host,
            self.ledger,
            self.state,
            transactions,
            self.host.monitor,
            NODE,
            options=self.options,
            on_status=self.said.append,
        )

    @asynccontextmanager
    async def running(self, policies: str = "") -> AsyncIterator[Engine]:
        """The engine runs with these policies, and its first pass is over."""
        self.engine.set_policies(read(policies))
        task = asyncio.create_task(self.engine.run())
        try:
            async with asyncio.timeout(PATIENCE):
                await self.engine.looked.wait()
            yield self.engine
        finally:
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled(), task.exception()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not holds():  # noqa: ASYNC110 - the fake host is asked, it tells nobody
                await asyncio.sleep(0.002)

    async def passes(self, more: int = 1) -> None:
        """So many passes later."""
        goal = self.engine.passes + more
        await self.until(lambda: self.engine.passes >= goal)

    def reasons(self) -> list[str]:
        """The settings of the last status that are not as asked."""
        return [f"{row['subject']} {row['setting']} {row['reason']}" for row in self.said[-1].get("settings", ())]

    def metric(self, name: str, **labels: str) -> float:
        return self.engine.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# --- what makes it look ------------------------------------------------------------------------------------


async def rest(bench: Bench) -> int:
    """Nothing to do for a while; how many passes there were."""
    before = bench.engine.passes
    await asyncio.sleep(0.05)
    return bench.engine.passes - before


def run(story: Callable[[], Any]) -> None:
    asyncio.run(story())


def test_it_looks_at_start_and_then_rests(bench: Bench) -> None:
    async def story() -> None:
        async with bench.running(GRO):
            assert "txqlen=500" in bench.host.words("tap0")
            assert await rest(bench) == 0

    run(story)


def test_before_there_are_policies_nothing_is_looked_at(bench: Bench) -> None:
    async def story() -> None:
        task = asyncio.create_task(bench.engine.run())
        bench.engine.wake("somebody asks")
        await asyncio.sleep(0.03)
        assert (bench.engine.passes, bench.host.looks) == (0, 0)
        task.cancel()
        await asyncio.wait([task])

    run(story)


def test_a_flipped_feature_is_put_back_without_a_pass(bench: Bench) -> None:
    async def story() -> None:
        async with bench.running(GRO):
            looks = bench.host.looks
            bench.host.flip("tap0", "gro", False)
            await bench.until(lambda: "+gro" in bench.host.words("tap0"))
            assert await rest(bench) == 0
            assert bench.host.looks == looks

    run(story)


def test_a_foreign_change_of_another_setting_is_put_back_by_a_pass(bench: Bench) -> None:
    async def story() -> None:
        async with bench.running("p: {bridge: {name: br0}, tap: {mtu: 1400}}"):
            bench.host.foreign.set_mtu("tap0", 1300)
            bench.host.tell_of("tap0")
            await bench.until(lambda: "mtu=1400" in bench.host.words("tap0"))
            assert bench.metric("virtnet_drift_detected_total", surface="link", setting="mtu") == 1
            await bench.until(lambda: bench.metric("virtnet_drift_repaired_total", surface="link", setting="mtu") == 1)

    run(story)


def test_lost_events_make_it_look_at_everything(bench: Bench) -> None:
    async def story() -> None:
        async with bench.running(GRO):
            bench.host.foreign.set_feature("tap0", "gro", False)
            bench.host.monitor.say(Heard(lost=True))
            await bench.until(lambda: "+gro" in bench.host.words("tap0"))

    run(story)


def test_a_tap_that_appears_is_managed(bench: Bench) -> None:
    async def story() -> None:
        async with bench.running(GRO):
            bench.host.foreign.add_tap("tap7", master="br0")
            bench.host.tell_of("tap7")
            await bench.until(lambda: "txqlen=500" in bench.host.words("tap7"))

    run(story)


def test_a_module_that_somebody_unloads_is_loaded_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "vhost_net Absent")

    async def story() -> None:
        async with bench.running("p: {vhost: {mode: Required}}"):
            assert "vhost_net Loaded" in str(bench.host)
            bench.host.foreign.unload_module()
            bench.host.monitor.say(Heard(modules={"vhost_net"}))
            await bench.until(lambda: "vhost_net Loaded" in str(bench.host))

    run(story)


def test_edited_policies_are_carried_out_and_the_same_ones_wake_nobody(bench: Bench) -> None:
    async def story() -> None:
        async with bench.running(GRO) as engine:
            engine.set_policies(read(GRO))
            assert await rest(bench) == 0
            engine.set_policies(read(GRO.replace("500", "600")))
            await bench.until(lambda: "txqlen=600" in bench.host.words("tap0"))
            engine.set_policies(())
            await bench.until(lambda: "txqlen=600" not in bench.host.words("tap0"))
            assert str(bench.ledger) == ""

    run(story)


def test_a_policy_edit_is_no_drift(bench: Bench) -> None:
    async def story() -> None:
        async with bench.running(GRO) as engine:
            for length in range(600, 610):
                engine.set_policies(read(GRO.replace("500", str(length))))
                await bench.until(lambda length=length: f"txqlen={length}" in bench.host.words("tap0"))  # type: ignore[misc]
            await rest(bench)
            assert engine.reflex.drifts == {}
            assert engine.fights.contended(time.monotonic()) == {}

    run(story)


def test_the_safety_pass_finds_what_nobody_told(tmp_path: Path) -> None:
    bench = Bench(tmp_path, options=replace(QUICK, resync=0.05))

    async def story() -> None:
        async with bench.running(GRO):
            bench.host.foreign.set_feature("tap0", "gro", False)
            await bench.until(lambda: "+gro" in bench.host.words("tap0"))

    run(story)


def test_stopping_restores_nothing_and_a_restart_changes_nothing(bench: Bench) -> None:
    async def story() -> None:
        async with bench.running(GRO):
            pass
        assert "txqlen=500" in bench.host.words("tap0")
        bench.host.applied.clear()
        bench.start()
        async with bench.running(GRO):
            assert await rest(bench) == 0
        assert bench.host.applied == []

    run(story)


# --- how often at most -------------------------------------------------------------------------------------


def test_passes_that_events_ask_for_are_limited(tmp_path: Path) -> None:
    bench = Bench(tmp_path, options=replace(QUICK, rate=5))

    async def story() -> None:
        async with bench.running(GRO) as engine:
            until = time.monotonic() + 0.8
            while time.monotonic() < until:
                engine.wake("a storm")
                await asyncio.sleep(0.001)
            assert 4 <= engine.passes <= 6

    run(story)


def test_events_that_come_together_make_one_pass(tmp_path: Path) -> None:
    bench = Bench(tmp_path, options=replace(QUICK, settle=0.05))

    async def story() -> None:
        async with bench.running(GRO) as engine:
            before = engine.passes
            for _ in range(10):
                bench.host.monitor.say(Heard(lost=True))
                await asyncio.sleep(0.001)
            await bench.passes()
            assert await rest(bench) == 0
            assert engine.passes == before + 1

    run(story)


def test_a_storm_of_flips_ends_contended_and_calm(bench: Bench) -> None:
    async def story() -> None:
        async with bench.running(GRO):
            for _ in range(300):
                bench.host.flip("tap0", "gro", False)
                bench.host.flip("tap1", "gso", True)
                await asyncio.sleep(0)
            await bench.until(lambda: "link/tap0 tap.offloads.gro Contended" in bench.reasons())
            assert bench.host.repairs <= 6
            assert await rest(bench) <= 2
            assert bench.metric("virtnet_contended") == 1

    run(story)


# --- fights ------------------------------------------------------------------------------------------------


def test_a_contended_setting_is_tried_again_when_its_time_comes(tmp_path: Path) -> None:
    bench = Bench(tmp_path, options=replace(QUICK, thresholds=Thresholds(repairs=2, retry=0.1)))

    async def story() -> None:
        async with bench.running(GRO):
            for _ in range(3):
                bench.host.flip("tap0", "gro", False)
                await asyncio.sleep(0.01)
            assert "-gro" in bench.host.words("tap0")
            await bench.until(lambda: "+gro" in bench.host.words("tap0"))
            await bench.until(lambda: bench.reasons() == [])

    run(story)


def test_one_more_change_after_the_retry_stops_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, options=replace(QUICK, thresholds=Thresholds(repairs=2, retry=0.1)))

    async def story() -> None:
        async with bench.running(GRO):
            for _ in range(3):
                bench.host.flip("tap0", "gro", False)
                await asyncio.sleep(0.01)
            await bench.until(lambda: "+gro" in bench.host.words("tap0"))
            bench.host.flip("tap0", "gro", False)
            await asyncio.sleep(0.05)
            assert "-gro" in bench.host.words("tap0")

    run(story)


def test_passes_count_fights_too(tmp_path: Path) -> None:
    bench = Bench(tmp_path, options=replace(QUICK, thresholds=Thresholds(repairs=3)))

    async def story() -> None:
        async with bench.running("p: {bridge: {name: br0}, tap: {mtu: 1400}}"):
            for _ in range(4):
                bench.host.foreign.set_mtu("tap0", 1300)
                bench.host.tell_of("tap0")
                await bench.passes()
            assert "mtu=1300" in bench.host.words("tap0")
            assert bench.reasons() == ["link/tap0 tap.mtu Contended"]

    run(story)


def test_insist_repairs_and_reports_the_fight_all_the_same(bench: Bench) -> None:
    async def story() -> None:
        async with bench.running(GRO.replace("p: {", "p: {onContention: Insist, ", 1)) as engine:
            for _ in range(20):
                bench.host.flip("tap0", "gro", False)
                await bench.until(lambda: "+gro" in bench.host.words("tap0"))
            engine.wake("somebody asks")
            await bench.until(lambda: bench.reasons() == ["link/tap0 tap.offloads.gro Contended"])
            assert "put back each time" in bench.said[-1]["settings"][0]["message"]

    run(story)


# --- failures, refusals, holds -----------------------------------------------------------------------------


def test_a_failure_that_may_pass_is_tried_again_with_growing_pauses(bench: Bench) -> None:
    tried: list[float] = []

    def which(change: object) -> bool:
        if isinstance(change, SetTxQueueLength) and change.link.name == "tap0":
            tried.append(time.monotonic())
            return True
        return False

    async def story() -> None:
        bench.host.fail(which, errors.Temporary("out of memory"))
        async with bench.running(GRO):
            await bench.until(lambda: len(tried) >= 4)
            bench.host.heal()
            await bench.until(lambda: "txqlen=500" in bench.host.words("tap0"))
            await bench.until(lambda: bench.reasons() == [])
            assert await rest(bench) == 0

    run(story)
    pauses = [later - sooner for sooner, later in itertools.pairwise(tried[:4])]
    assert all(pause >= least for pause, least in zip(pauses, (0.03, 0.06, 0.1), strict=True))


def test_what_the_driver_refuses_is_not_asked_for_again_also_after_a_restart(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "eth0 mlx5_core")
    policy = "p: {uplink: {match: {names: [eth0]}, rings: {rx: 1025}}}"

    async def story() -> None:
        async with bench.running(policy) as engine:
            assert bench.reasons() == ["link/eth0 uplink.rings.rx Refused"]
            engine.wake("somebody asks")
            await bench.passes()
        bench.start()
        async with bench.running(policy):
            assert bench.reasons() == ["link/eth0 uplink.rings.rx Refused"]
        assert [type(change) for change in bench.host.applied] == [SetRings]

    run(story)


def test_what_a_missing_right_refused_is_tried_again_after_a_restart(bench: Bench) -> None:
    def which(change: object) -> bool:
        return isinstance(change, SetTxQueueLength) and change.link.name == "tap0"

    async def story() -> None:
        bench.host.fail(which, errors.NotPermitted("CAP_NET_ADMIN is needed"))
        async with bench.running(GRO) as engine:
            assert bench.reasons() == ["link/tap0 tap.txQueueLength Refused"]
            engine.wake("somebody asks")
            await bench.passes()
        bench.host.heal()
        bench.start()
        async with bench.running(GRO):
            await bench.until(lambda: "txqlen=500" in bench.host.words("tap0"))
            await bench.until(lambda: bench.reasons() == [])

    run(story)


def test_a_refusal_is_forgotten_when_somebody_changes_the_value(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "eth0 mlx5_core")

    async def story() -> None:
        async with bench.running("p: {uplink: {match: {names: [eth0]}, rings: {rx: 1025}}}"):
            bench.host.foreign.set_rings("eth0", rx=512)
            bench.host.monitor.say(Heard(tuning={1}))
            await bench.until(lambda: "rx-ring=2048/8192" in bench.host.words("eth0"))

    run(story)


def test_a_hold_is_obeyed_said_and_lifted(bench: Bench) -> None:
    async def story() -> None:
        records.add_hold(bench.state, "tap0", time.time() + 600, time.time())
        async with bench.running(GRO) as engine:
            assert "txqlen=500" in bench.host.words("tap1")
            assert "txqlen=500" not in bench.host.words("tap0")
            assert "link/tap0 tap.txQueueLength Held" in bench.reasons()
            assert bench.metric("virtnet_held") == 1
            engine.check_holds()
            assert await rest(bench) == 0
            records.remove_hold(bench.state, "tap0", time.time())
            engine.check_holds()
            await bench.until(lambda: "txqlen=500" in bench.host.words("tap0"))
            await bench.until(lambda: bench.metric("virtnet_held") == 0)

    run(story)


def test_a_held_link_is_not_repaired_by_the_fast_loop(bench: Bench) -> None:
    async def story() -> None:
        async with bench.running(GRO) as engine:
            records.add_hold(bench.state, records.EVERYTHING, time.time() + 600, time.time())
            engine.check_holds()
            await bench.passes()
            bench.host.flip("tap0", "gro", False)
            await rest(bench)
            assert "-gro" in bench.host.words("tap0")

    run(story)


def test_a_hold_that_ends_is_noticed_without_being_asked(bench: Bench) -> None:
    async def story() -> None:
        records.add_hold(bench.state, "tap0", time.time() + 0.2, time.time())
        async with bench.running(GRO):
            await bench.until(lambda: "txqlen=500" in bench.host.words("tap0"))

    run(story)


def test_a_look_that_fails_is_tried_again_and_the_loop_goes_on(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        async with bench.running(GRO) as engine:
            bench.host.fail_look(errors.Temporary("links come and go"))
            engine.wake("somebody asks")
            await bench.passes()

    run(story)
    assert "pass (somebody asks) failed: links come and go" in caplog.text


def test_a_disk_that_is_full_is_tried_again(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    bench = Bench(tmp_path, ledger=ledger)

    async def story() -> None:
        ledger.fail()
        async with bench.running(GRO):
            assert "txqlen=500" not in bench.host.words("tap0")
            ledger.heal()
            await bench.until(lambda: "txqlen=500" in bench.host.words("tap0"))

    run(story)


def test_what_went_back_is_left_alone_by_later_passes_and_after_a_restart(bench: Bench) -> None:
    policy = "p: {bridge: {name: br0}, tap: {mtu: 1400}}"

    async def story() -> None:
        bench.prober.lost = True
        async with bench.running(policy) as engine:
            bench.prober.lost = False
            engine.wake("somebody asks")
            await bench.passes()
            assert set(bench.reasons()) == {"link/tap0 tap.mtu RolledBack", "link/tap1 tap.mtu RolledBack"}
        bench.start()
        async with bench.running(policy) as engine:
            assert "mtu=1500" in bench.host.words("tap0")
            engine.set_policies(read(policy.replace("p:", "p/2:", 1)))
            await bench.until(lambda: "mtu=1400" in bench.host.words("tap0"))

    run(story)


def test_an_interrupted_transaction_goes_back_at_start(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    tap0 = bench.host.ref("tap0")
    pending = records.Pending("p", "1/x", bench.host.identity(), (("tap0", "mtu"),), (SetMtu(tap0, 1500),))
    bench.host.foreign.set_mtu("tap0", 1400)
    records.write_pending(bench.state, pending)

    async def story() -> None:
        async with bench.running():
            assert "mtu=1500" in bench.host.words("tap0")

    run(story)
    assert "transaction of policy p: interrupted by the end of the process and put back" in caplog.text


# --- what it tells -----------------------------------------------------------------------------------------


def test_a_status_is_told_only_when_it_differs(bench: Bench) -> None:
    async def story() -> None:
        async with bench.running(GRO) as engine:
            told = len(bench.said)
            for _ in range(3):
                engine.wake("somebody asks")
                await bench.passes()
            assert len(bench.said) == told

    run(story)


def test_metrics_tell_what_is_in_force(bench: Bench) -> None:
    async def story() -> None:
        async with bench.running("p/3: {uplink: {match: {names: [eth0, eth9]}, offloads: {gro: false}}}"):
            assert bench.metric("virtnet_policies") == 1
            assert bench.metric("virtnet_admitted_generation", policy="p") == 3
            assert bench.metric("virtnet_blocked", reason="Missing") == 1
            assert bench.metric("virtnet_pass_seconds_count") == 1

    run(story)
    assert [type(change) for change in bench.host.applied] == [SetFeatures]


def test_it_is_overdue_only_when_two_safety_passes_are_missed(bench: Bench) -> None:
    assert bench.engine.overdue() < 0
    bench.options = replace(QUICK, resync=0.0)
    bench.start()
    time.sleep(0.005)
    assert bench.engine.overdue() > 0
