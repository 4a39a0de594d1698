"""Policies beside each other, their modes, their edits and their ends, under a running `virtnet run`."""

from __future__ import annotations

import pytest

from tests.kernel.agent import (
    Agent,
    eventually,
    gro,
    lay_lan,
    manifest,
    master,
    option,
    snapshot,
    tso,
)
from tests.kernel.playground import Playground

TAP = "tap: {match: {names: [tap0]}, offloads: {gro: false}, txQueueLength: %d}"


@pytest.fixture(autouse=True)
def lan(playground: Playground) -> None:
    lay_lan(playground)


def queue(playground: Playground, link: str = "tap0") -> int:
    return int(playground.links()[link]["txqlen"])


# --- several policies --------------------------------------------------------------------------------------


def test_settings_of_two_policies_merge_and_the_higher_priority_wins_what_both_want(
    agent: Agent, playground: Playground
) -> None:
    agent.wish("low", TAP % 100)
    agent.wish("high", "priority: 5\ntap: {match: {names: [tap0]}, txQueueLength: 200, mtu: 1400}")
    agent.start()
    links = playground.links()
    assert (links["tap0"]["txqlen"], links["tap0"]["mtu"], gro(playground, "tap0")) == (200, 1400, False)
    assert agent.reasons() == {("tap0", "tap.txQueueLength"): "OverriddenBy"}
    assert "high" in agent.messages("OverriddenBy")
    assert agent.condition("Ready")[0] == "True"
    playground.run("ip link set tap0 txqueuelen 300")
    eventually(lambda: queue(playground) == 200)
    agent.unwish("high")
    assert (queue(playground), playground.links()["tap0"]["mtu"]) == (100, 1500)
    assert agent.reasons() == {}


def test_of_equal_priorities_the_older_wins_and_then_the_name(agent: Agent, playground: Playground) -> None:
    young = manifest("aaa", TAP % 100).replace("{name: aaa,", "{name: aaa, creationTimestamp: '2026-02-01T00:00:00Z',")
    old = manifest("zzz", TAP % 200).replace("{name: zzz,", "{name: zzz, creationTimestamp: '2026-01-01T00:00:00Z',")
    (agent.policies / "aaa.yaml").write_text(young)
    (agent.policies / "zzz.yaml").write_text(old)
    agent.start()
    assert queue(playground) == 200
    agent.wish("zzz", TAP % 200, generation=2)
    agent.wish_and_wait("aaa", TAP % 100, generation=2)
    eventually(lambda: queue(playground) == 100)


def test_a_contradiction_that_only_arises_from_merging_is_told_to_the_loser_and_never_alternates(
    agent: Agent, playground: Playground
) -> None:
    agent.wish("winner", "priority: 5\nuplink: {match: {names: [up0]}, offloads: {tx: false}}")
    agent.wish("loser", "uplink: {match: {names: [up0]}, offloads: {tso: true, gro: true}}")
    agent.start()
    agent.wait_until_calm()
    assert (tso(playground, "up0"), gro(playground, "up0")) == (False, True)
    assert agent.reasons() == {("up0", "uplink.offloads.tso"): "OverriddenBy"}
    assert "winner" in agent.messages("OverriddenBy")
    assert (agent.drifts("winner"), agent.drifts("loser")) == (0, 0)
    agent.unwish("winner")
    eventually(lambda: tso(playground, "up0"))


def test_a_winner_keeps_what_its_wish_needs_although_another_wants_it_off(agent: Agent, playground: Playground) -> None:
    agent.wish("winner", "priority: 5\nuplink: {match: {names: [up0]}, offloads: {tso: true}}")
    agent.wish("loser", "uplink: {match: {names: [up0]}, offloads: {tx: false, sg: false}}")
    agent.start()
    agent.wait_until_calm()
    features = playground.ethtool("up0")
    assert features["tx-checksum-ip-generic"]["active"]
    assert features["tx-scatter-gather"]["active"]
    assert tso(playground, "up0")
    assert agent.reasons() == dict.fromkeys(
        [("up0", "uplink.offloads.sg"), ("up0", "uplink.offloads.tx")], "OverriddenBy"
    )


def test_a_policy_for_other_nodes_is_none_here(agent: Agent, playground: Playground) -> None:
    for zone, length in (("a", 100), ("b", 200)):
        agent.wish(zone, f"nodeSelector: {{matchLabels: {{zone: {zone}}}}}\n" + TAP % length)
    agent.start("--node-label", "zone=b", "--node-name", "node1")
    assert (queue(playground), set(agent.generations())) == (200, {"b"})
    selector = "nodeSelector: {matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [node2]}]}\n"
    agent.wish("b", selector + TAP % 200)
    eventually(lambda: queue(playground) == 1000 and agent.generations() == {})
    assert gro(playground, "tap0")


# --- modes -------------------------------------------------------------------------------------------------


def test_an_audit_reports_what_it_would_do_and_changes_nothing(agent: Agent, playground: Playground) -> None:
    before = snapshot(playground)
    agent.wish("lan", "mode: Audit\nbridge: {name: brx, create: true}\n" + TAP % 100)
    agent.start()
    assert snapshot(playground) == before
    assert set(agent.reasons().values()) == {"AuditOnly"}
    assert {("brx", "bridge.create"), ("tap0", "tap.offloads.gro"), ("tap0", "tap.txQueueLength")} <= set(
        agent.reasons()
    )
    assert agent.condition("Ready")[0] == "True"
    assert agent.condition("Complete")[:2] == ("False", "AuditOnly")


def test_from_enforce_to_audit_freezes_and_the_originals_are_kept(agent: Agent, playground: Playground) -> None:
    originals = snapshot(playground)
    agent.wish("lan", TAP % 100)
    agent.start()
    agent.wish_and_wait("lan", "mode: Audit\n" + TAP % 100, generation=2)
    assert (queue(playground), gro(playground, "tap0")) == (100, False)
    playground.run("ip link set tap0 txqueuelen 77")
    eventually(lambda: agent.reasons() == {("tap0", "tap.txQueueLength"): "AuditOnly"})
    assert queue(playground) == 77
    agent.wish_and_wait("lan", TAP % 100, generation=3)
    assert queue(playground) == 100
    agent.unwish("lan")
    assert snapshot(playground) == originals


def test_the_end_of_a_frozen_policy_restores(agent: Agent, playground: Playground) -> None:
    originals = snapshot(playground)
    agent.wish("lan", "bridge: {name: brx, create: true}\n" + TAP % 100)
    agent.start()
    agent.wish_and_wait("lan", "mode: Audit\nbridge: {name: brx, create: true}\n" + TAP % 100, generation=2)
    assert "brx" in playground.links()
    agent.unwish("lan")
    assert snapshot(playground) == originals


# --- edits and ends ----------------------------------------------------------------------------------------


def test_edits_of_a_policy_are_no_drift_and_no_fight(agent: Agent, playground: Playground) -> None:
    agent.wish("lan", TAP % 100)
    agent.start()
    for generation in range(2, 8):
        agent.wish_and_wait("lan", TAP % (100 * generation), generation)
        assert queue(playground) == 100 * generation
    assert agent.drifts("lan") == 0
    assert agent.reasons() == {}


def test_an_edit_that_the_kernel_refuses_does_not_lose_the_original(agent: Agent, playground: Playground) -> None:
    agent.wish("lan", "tap: {match: {names: [tap0]}, mtu: 1400}")
    agent.start()
    agent.wish_and_wait("lan", "tap: {match: {names: [tap0]}, mtu: 65535}", generation=2)
    assert agent.reasons() == {("tap0", "tap.mtu"): "Refused"}
    assert playground.links()["tap0"]["mtu"] == 1400
    agent.unwish("lan")
    assert playground.links()["tap0"]["mtu"] == 1500


def test_what_a_policy_no_longer_wants_is_put_back_and_the_rest_stays(agent: Agent, playground: Playground) -> None:
    agent.wish("lan", TAP % 100)
    agent.start()
    agent.wish_and_wait("lan", "tap: {match: {names: [tap0]}, txQueueLength: 100}", generation=2)
    assert (queue(playground), gro(playground, "tap0")) == (100, True)


def test_a_hand_over_between_policies_keeps_the_first_original(agent: Agent, playground: Playground) -> None:
    originals = snapshot(playground)
    agent.wish("one", TAP % 100)
    agent.start()
    agent.wish_and_wait("two", "priority: 1\n" + TAP % 200)
    agent.unwish("one")
    assert (queue(playground), gro(playground, "tap0")) == (200, False)
    agent.unwish("two")
    assert snapshot(playground) == originals


def test_retain_leaves_everything_and_forgets_it(agent: Agent, playground: Playground) -> None:
    spec = "deletionPolicy: Retain\nbridge: {name: brx, create: true, ports: [far0]}\n" + TAP % 100
    agent.wish("lan", spec)
    agent.start()
    enforced = snapshot(playground)
    agent.unwish("lan")
    assert snapshot(playground) == enforced
    assert master(playground, "far0") == "brx"
    agent.stop()
    released = agent.command("release")
    assert (released.code, snapshot(playground)) == (0, enforced)


def test_the_last_owner_decides_whether_to_restore(agent: Agent, playground: Playground) -> None:
    agent.wish("keeper", "deletionPolicy: Retain\n" + TAP % 100)
    agent.start()
    agent.wish_and_wait("tidy", "priority: 1\n" + TAP % 200)
    agent.unwish("keeper")
    agent.unwish("tidy")
    assert (queue(playground), gro(playground, "tap0")) == (1000, True)


def test_a_value_that_somebody_else_owns_now_is_left_alone_at_the_end(agent: Agent, playground: Playground) -> None:
    agent.wish("lan", TAP % 100)
    agent.start()
    agent.kill()
    playground.run("ip link set tap0 txqueuelen 77")
    (agent.policies / "lan.yaml").unlink()
    agent.start()
    assert (queue(playground), gro(playground, "tap0")) == (77, True)
    assert "Foreign: left as it is: neither what lan set nor what was there before" in agent.log()


def test_a_bridge_of_ours_with_a_foreign_port_is_not_removed_until_the_port_is_gone(
    agent: Agent, playground: Playground
) -> None:
    agent.wish("made", "bridge: {name: brx, create: true, ports: [far0]}")
    agent.start()
    playground.batch("tuntap add stranger mode tap", "link set stranger master brx")
    agent.unwish("made")
    assert master(playground, "stranger") == "brx"
    assert master(playground, "far0") is None
    assert "stranger" in agent.messages("Foreign")
    playground.run("ip link del stranger")
    eventually(lambda: "brx" not in playground.links())


def test_a_bridge_of_ours_that_carries_the_nodes_addresses_is_not_removed_until_they_are_moved(
    agent: Agent, playground: Playground
) -> None:
    agent.wish("made", "bridge: {name: brx, create: true}")
    agent.start()
    playground.run("ip addr add 192.0.2.2/24 dev brx")
    agent.unwish("made")
    assert "192.0.2.2/24" in playground.run("ip addr show brx")
    assert agent.reasons() == {("brx", "bridge.create"): "CarriesAddresses"}
    playground.run("ip addr del 192.0.2.2/24 dev brx")
    eventually(lambda: "brx" not in playground.links())


def test_a_bridge_that_was_there_before_is_not_removed(agent: Agent, playground: Playground) -> None:
    agent.wish("made", "bridge: {name: br0, create: true, ageingTimeSeconds: 60}")
    agent.start()
    assert option(playground, "br0", "ageing_time") == 6000
    agent.unwish("made")
    assert option(playground, "br0", "ageing_time") == 30000
    assert master(playground, "tap0") == "br0"


# --- the brake ---------------------------------------------------------------------------------------------


def test_the_brake_keeps_everything_when_most_would_be_released_at_once(agent: Agent, playground: Playground) -> None:
    playground.batch(*(f"tuntap add many{number} mode tap" for number in range(12)))
    originals = snapshot(playground)
    agent.wish("many", "tap: {match: {names: ['many*']}, txQueueLength: 100}")
    agent.start()
    enforced = snapshot(playground)
    agent.unwish("many")
    assert snapshot(playground) == enforced
    assert agent.reasons() == {("policy/many", "deletionPolicy"): "TooMuchAtOnce"}
    assert agent.condition("Ready")[:2] == ("False", "TooMuchAtOnce")
    agent.stop()
    agent.start("--allow-mass-removal")
    assert snapshot(playground) == originals


def test_setting_values_is_never_braked(agent: Agent, playground: Playground) -> None:
    playground.batch(*(f"tuntap add many{number} mode tap" for number in range(12)))
    agent.wish("many", "tap: {match: {names: ['many*']}, txQueueLength: 100}")
    agent.start()
    agent.wish_and_wait("many", "tap: {match: {names: ['many*']}, txQueueLength: 200}", generation=2)
    assert {queue(playground, f"many{number}") for number in range(12)} == {200}


# --- contention --------------------------------------------------------------------------------------------

SOON = ("--contention-retry", "2", "--contention-longest", "2", "--contention-quiet", "600")


def change_and_wait(agent: Agent, playground: Playground, times: int) -> None:
    for _ in range(times):
        playground.run("ethtool -K tap0 gro on")
        eventually(lambda: not gro(playground, "tap0"))


def test_who_yields_stops_after_5_repairs_says_so_and_tries_again(agent: Agent, playground: Playground) -> None:
    agent.wish("lan", TAP % 100)
    agent.start(*SOON)
    change_and_wait(agent, playground, 5)
    playground.run("ethtool -K tap0 gro on")
    eventually(lambda: agent.reasons() == {("tap0", "tap.offloads.gro"): "Contended"})
    assert "changed 6 times by somebody else" in agent.messages("Contended")
    assert agent.condition("Ready")[:2] == ("False", "Contended")
    playground.run("ip link set tap0 txqueuelen 77")
    eventually(lambda: queue(playground) == 100)
    eventually(lambda: not gro(playground, "tap0"))
    eventually(lambda: agent.reasons() == {})


def test_who_yields_and_is_attacked_again_lets_go_at_once(agent: Agent, playground: Playground) -> None:
    agent.wish("lan", TAP % 100)
    agent.start("--contention-repairs", "2", "--contention-retry", "3", "--contention-quiet", "600")
    change_and_wait(agent, playground, 2)
    for seen in (3, 4):
        playground.run("ethtool -K tap0 gro on")
        eventually(lambda: "Contended" in agent.reasons().values())
        assert f"changed {seen} times" in agent.messages("Contended")
        assert gro(playground, "tap0")
        eventually(lambda: not gro(playground, "tap0"))
        eventually(lambda: agent.reasons() == {})


def test_who_insists_never_stops_and_contention_is_reported_all_the_same(agent: Agent, playground: Playground) -> None:
    agent.wish("lan", "onContention: Insist\n" + TAP % 100)
    agent.start()
    change_and_wait(agent, playground, 12)
    playground.run("ip link set tap0 txqueuelen 77")
    eventually(lambda: agent.reasons() == {("tap0", "tap.offloads.gro"): "Contended"})
    assert "changed 12 times by somebody else, and put back each time" in agent.messages("Contended")
    assert (gro(playground, "tap0"), queue(playground)) == (False, 100)


def test_a_fight_over_an_attribute_ends_like_one_over_a_feature(agent: Agent, playground: Playground) -> None:
    agent.wish("lan", TAP % 100)
    agent.start("--contention-repairs", "3", *SOON)
    for _ in range(3):
        playground.run("ip link set tap0 txqueuelen 77")
        eventually(lambda: queue(playground) == 100)
    playground.run("ip link set tap0 txqueuelen 77")
    eventually(lambda: agent.reasons() == {("tap0", "tap.txQueueLength"): "Contended"})
    assert queue(playground) == 77
    eventually(lambda: queue(playground) == 100)
