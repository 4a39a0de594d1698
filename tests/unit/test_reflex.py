"""The fast loop: one event, one link read, integers compared, the bits set back; everything else wakes a pass."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.flow.agent import NODE, Agent
from tests.flow.monitor import Heard, TellingHost
from tests.flow.policies import read
from virtnet import errors, reconcile
from virtnet.core.model import Features, Ref, Setting
from virtnet.core.standing import Standing
from virtnet.engine.fights import Fights, Thresholds
from virtnet.engine.metrics import Metrics
from virtnet.engine.reflex import Reflex

HOST = "br0 bridge\neth0 mlx5_core master=br0\ntap0 tap master=br0\ntap1 tap master=br0\nv0 veth"
GRO = "p: {bridge: {name: br0}, tap: {offloads: {gro: true}}}"
INSIST = GRO.replace("p: {", "p: {onContention: Insist, ", 1)
UPLINK = "p: {bridge: {name: br0}, uplink: {offloads: {gro: true, rxhash: true}}}"


class Loop:
    """A fast loop after one pass over a host."""

    def __init__(self, policies: str, lines: str = HOST, thresholds: Thresholds = Thresholds()) -> None:  # noqa: B008
        self.host = TellingHost(lines)
        self.policies = read(policies)
        self.agent = Agent(self.host)
        self.woken: list[str] = []
        self.metrics = Metrics()
        self.fights = Fights(thresholds)
        self.reflex = Reflex(self.host, self.host.monitor, self.fights, self.metrics, self.woken.append)
        self.install()

    def install(self, standing: Standing | None = None) -> None:
        outcome = self.agent.run(self.policies)
        look = outcome.last
        if standing is not None:
            look = reconcile.look(self.host, self.agent.ledger.recorded, reconcile.Wish(self.policies, NODE, standing))
        self.reflex.install(look, outcome.failures.keys())
        self.host.reads = self.host.repairs = 0
        self.host.applied.clear()

    def heard(self, **events: object) -> None:
        self.host.monitor.say(Heard(**events))  # type: ignore[arg-type]
        self.reflex.react()

    def flip(self, link: str, name: str, on: bool) -> None:
        self.host.flip(link, name, on)
        self.reflex.react()

    def count(self, name: str, key: str) -> float:
        labels = {"surface": "link", "setting": key}
        return self.metrics.registry.get_sample_value(f"virtnet_drift_{name}_total", labels) or 0.0


@pytest.fixture
def loop() -> Loop:
    return Loop(GRO)


# --- repairs -----------------------------------------------------------------------------------------------


def test_a_flipped_feature_is_put_back_without_a_pass(loop: Loop) -> None:
    looks = loop.host.looks
    loop.flip("tap0", "gro", False)
    assert "+gro" in loop.host.words("tap0")
    assert (loop.host.looks, loop.woken) == (looks, [])
    assert (loop.host.reads - loop.host.repairs, loop.host.repairs) == (1, 1)


def test_what_the_kernel_told_is_not_read_again(loop: Loop) -> None:
    loop.host.flip_and_show("tap0", "gro", False)
    loop.reflex.react()
    assert "+gro" in loop.host.words("tap0")
    assert (loop.host.reads - loop.host.repairs, loop.host.repairs) == (0, 1)


def test_of_two_events_that_come_together_the_last_word_counts(loop: Loop) -> None:
    loop.host.flip_and_show("tap0", "gro", False)
    loop.host.flip_and_show("tap0", "gro", True)
    loop.reflex.react()
    assert (loop.host.reads, loop.host.repairs, loop.woken) == (0, 0, [])


def test_a_repair_is_made_before_it_is_counted(loop: Loop) -> None:
    counted: list[float] = []
    act = loop.host.set_features

    def set_features(link: Ref, mask: int, value: int) -> Features:
        counted.append(loop.count("detected", "feature:rx-gro"))
        return act(link, mask, value)

    loop.host.set_features = set_features  # type: ignore[method-assign]
    loop.flip("tap0", "gro", False)
    assert (counted, loop.count("detected", "feature:rx-gro")) == ([0.0], 1.0)


def test_a_repair_that_fails_is_counted_as_a_foreign_change_all_the_same(loop: Loop) -> None:
    loop.host.fail(lambda _: True, errors.Temporary("out of memory"), times=1)
    loop.flip("tap0", "gro", False)
    assert (loop.count("detected", "feature:rx-gro"), loop.count("repaired", "feature:rx-gro")) == (1, 0)
    assert loop.woken == ["a repair failed"]


def test_a_repair_is_counted_and_timed(loop: Loop) -> None:
    loop.flip("tap0", "gro", False)
    assert (loop.count("detected", "feature:rx-gro"), loop.count("repaired", "feature:rx-gro")) == (1, 1)
    assert loop.metrics.registry.get_sample_value("virtnet_repair_seconds_count") == 1
    assert loop.reflex.drifts == {"p": 1}


def test_an_event_of_our_own_making_changes_nothing(loop: Loop) -> None:
    loop.heard(features={3})
    assert (loop.host.repairs, loop.woken) == (0, [])


def test_a_feature_that_nobody_asked_for_is_left_alone(loop: Loop) -> None:
    loop.flip("tap0", "tx-nocache-copy", True)
    assert "+tx-nocache-copy" in loop.host.words("tap0")
    assert (loop.host.repairs, loop.woken) == (0, [])


def test_a_link_that_nobody_wants_is_not_even_read(loop: Loop) -> None:
    loop.flip("v0", "gro", True)
    assert (loop.host.reads, loop.woken) == (0, [])


def test_several_links_are_repaired_from_one_drain(loop: Loop) -> None:
    loop.host.flip("tap0", "gro", False)
    loop.host.flip("tap1", "gro", False)
    loop.reflex.react()
    assert all("+gro" in loop.host.words(link) for link in ("tap0", "tap1"))


def test_only_the_bits_that_drifted_are_set() -> None:
    loop = Loop("p: {bridge: {name: br0}, uplink: {offloads: {gro: true, gso: true}}}")
    loop.flip("eth0", "gro", False)
    (change,) = loop.host.applied
    assert change == loop.host.ask("eth0", "+gro")


def test_what_may_reset_hardware_is_left_to_a_pass() -> None:
    loop = Loop(UPLINK)
    loop.flip("eth0", "rxhash", False)
    assert "-rxhash" in loop.host.words("eth0")
    assert (loop.host.repairs, loop.woken) == (0, ["a feature is not effective"])


def test_what_came_back_without_effect_wakes_a_pass() -> None:
    loop = Loop("p: {bridge: {name: br0}, uplink: {offloads: {tso: true}}}")
    loop.flip("eth0", "sg", False)
    assert loop.woken == ["a feature is not effective"]


# --- what it leaves alone ----------------------------------------------------------------------------------


def test_a_held_link_is_not_repaired(loop: Loop) -> None:
    loop.install(Standing(held_links={"tap0": "until 23:15"}))
    loop.flip("tap0", "gro", False)
    loop.flip("tap1", "gro", False)
    assert ("-gro" in loop.host.words("tap0"), "-gro" in loop.host.words("tap1")) == (True, False)


def test_a_contended_setting_is_not_repaired_and_the_others_are() -> None:
    loop = Loop("p: {bridge: {name: br0}, tap: {offloads: {gro: true, gso: true}}}")
    loop.install(Standing(contended={Setting(3, "feature:rx-gro"): "somebody else"}))
    loop.flip("tap0", "gro", False)
    loop.flip("tap0", "gso", False)
    assert {"-gro", "+gso"} <= loop.host.words("tap0")


def test_a_setting_that_failed_in_the_pass_is_left_to_the_next() -> None:
    loop = Loop(GRO)
    look = loop.agent.look(loop.policies)
    loop.reflex.install(look, [Setting(3, "feature:rx-gro")])
    loop.flip("tap0", "gro", False)
    assert "-gro" in loop.host.words("tap0")
    assert loop.woken


def test_an_audit_policy_repairs_nothing() -> None:
    loop = Loop(GRO.replace("p: {", "p: {mode: Audit, ", 1))
    loop.flip("tap0", "gro", False)
    assert (loop.host.repairs, "-gro" in loop.host.words("tap0")) == (0, True)


# --- what wakes a pass -------------------------------------------------------------------------------------


def test_lost_events_wake_a_pass(loop: Loop) -> None:
    loop.heard(lost=True)
    assert loop.woken == ["events were lost"]


def test_a_new_link_and_a_renamed_one_wake_a_pass(loop: Loop) -> None:
    loop.host.foreign.add_tap("tap7", master="br0")
    loop.host.tell_of("tap7")
    loop.reflex.react()
    assert loop.woken == ["a link changed"]
    loop.woken.clear()
    loop.host.foreign.rename("tap0", "vm0")
    loop.host.tell_of("vm0")
    loop.reflex.react()
    assert loop.woken == ["a link changed"]


def test_a_link_that_is_as_it_was_wakes_nobody(loop: Loop) -> None:
    loop.host.tell_of("tap0", "eth0")
    loop.reflex.react()
    assert loop.woken == []


def test_a_link_that_goes_wakes_a_pass_once(loop: Loop) -> None:
    loop.host.delete("tap0")
    loop.reflex.react()
    assert loop.woken == ["a link is gone"]
    loop.install()
    loop.heard(gone={3})
    assert loop.woken == ["a link is gone"]


def test_a_link_that_goes_while_it_is_repaired_wakes_a_pass(loop: Loop) -> None:
    loop.host.flip("tap0", "gro", False)
    loop.host.foreign.delete("tap0")
    loop.reflex.react()
    assert loop.woken == ["a link is gone"]


def test_a_repair_that_fails_wakes_a_pass(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    loop.host.fail(lambda _: True, errors.Temporary("out of memory"), times=1)
    loop.flip("tap0", "gro", False)
    assert loop.woken == ["a repair failed"]
    assert "tap0: cannot be repaired at once: out of memory" in caplog.text


@pytest.mark.parametrize(
    ("policies", "woken"),
    [
        ("p: {uplink: {match: {names: [eth0]}, rings: {rx: 512}}}", ["rings, channels or coalescing changed"]),
        ("p: {tap: {match: {names: [tap0]}, rxFrames: 8}}", []),
    ],
)
def test_other_ethtool_settings_of_a_managed_link_wake_a_pass(policies: str, woken: list[str]) -> None:
    loop = Loop(policies)
    loop.heard(tuning={2})
    assert loop.woken == woken


def test_a_module_that_comes_or_goes_wakes_a_pass(loop: Loop) -> None:
    loop.heard(modules={"vhost_net"})
    assert loop.woken == ["a module was loaded or removed"]


def test_an_address_that_goes_wakes_a_pass_only_when_one_is_in_the_way(loop: Loop) -> None:
    loop.heard(unaddressed={2})
    assert loop.woken == []
    blocked = Loop("p: {bridge: {name: br0, ports: [v0]}}", HOST + " carries='address 192.0.2.1/24'")
    blocked.heard(unaddressed={5})
    assert blocked.woken == ["an address was moved"]


# --- fights ------------------------------------------------------------------------------------------------


def test_after_five_repairs_in_a_minute_it_yields_and_says_so() -> None:
    loop = Loop(GRO)
    for _ in range(6):
        loop.flip("tap0", "gro", False)
    assert "-gro" in loop.host.words("tap0")
    assert (loop.host.repairs, loop.woken) == (5, ["a setting is contended"])
    assert set(loop.fights.contended(time.monotonic())) == {Setting(3, "feature:rx-gro")}


def test_a_fight_over_one_setting_does_not_stop_repairs_of_another() -> None:
    loop = Loop("p: {bridge: {name: br0}, tap: {offloads: {gro: true, gso: true}}}")
    for _ in range(6):
        loop.flip("tap0", "gro", False)
    loop.flip("tap0", "gso", False)
    loop.flip("tap1", "gro", False)
    assert {"-gro", "+gso"} <= loop.host.words("tap0")
    assert "+gro" in loop.host.words("tap1")


def test_insist_never_yields() -> None:
    loop = Loop(INSIST)
    for _ in range(50):
        loop.flip("tap0", "gro", False)
        assert "+gro" in loop.host.words("tap0")
    assert loop.woken == []
    assert set(loop.fights.disputed(time.monotonic())) == {Setting(3, "feature:rx-gro")}


def test_insist_paces_itself_above_its_burst_and_still_has_the_last_word() -> None:
    async def storm(loop: Loop) -> int:
        for _ in range(30):
            loop.flip("tap0", "gro", False)
        during = loop.host.repairs
        await asyncio.sleep(0.15)
        return during

    loop = Loop(INSIST, thresholds=Thresholds(burst=10, pause=0.05))
    during = asyncio.run(storm(loop))
    assert 10 <= during <= 12
    assert during < loop.host.repairs <= 14
    assert "+gro" in loop.host.words("tap0")


def test_a_stopped_loop_repairs_nothing_more() -> None:
    async def stopped(loop: Loop) -> None:
        running = asyncio.get_running_loop()
        loop.reflex.start(running)
        loop.host.flip("tap0", "gro", False)
        await asyncio.sleep(0.01)
        assert "+gro" in loop.host.words("tap0")
        for _ in range(3):
            loop.host.flip("tap1", "gro", False)
            loop.reflex.react()
        loop.reflex.stop(running)
        loop.host.flip("tap0", "gro", False)
        await asyncio.sleep(0.12)

    loop = Loop(INSIST, thresholds=Thresholds(burst=1, pause=0.1))
    asyncio.run(stopped(loop))
    assert "-gro" in loop.host.words("tap0")
