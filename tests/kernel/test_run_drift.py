"""What `virtnet run` puts back, and links that come, go, are renamed, moved and made again while it runs."""

from __future__ import annotations

import re

import pytest

from tests.kernel import holding
from tests.kernel.agent import (
    Agent,
    eventually,
    gro,
    lay_lan,
    master,
    option,
    snapshot,
    switch_gro_by_ioctl,
    tso,
)
from tests.kernel.playground import Playground

TAPS = "tap: {match: {names: ['tap*']}, offloads: {gro: false}}"
ON_BRIDGE = "bridge: {name: br0}\ntap: {offloads: {gro: false}, txQueueLength: 500}"
PATIENT = ("--contention-repairs", "1000")
"""For tests that change one thing often, and mean no fight."""


@pytest.fixture(autouse=True)
def lan(playground: Playground) -> None:
    lay_lan(playground)


# --- foreign changes ---------------------------------------------------------------------------------------


def test_a_foreign_change_of_a_feature_is_repaired_without_a_full_pass_whoever_makes_it(
    agent: Agent, playground: Playground
) -> None:
    agent.wish("taps", TAPS)
    agent.start(*PATIENT)
    agent.wait_until_calm()
    passes = agent.passes()
    for _ in range(3):
        playground.run("ethtool -K tap0 gro on")
        eventually(lambda: not gro(playground, "tap0"))
        switch_gro_by_ioctl(playground, "tap0", True)
        eventually(lambda: not gro(playground, "tap0"))
    assert agent.passes() == passes
    playground.run("ip link set tap0 mtu 1400")
    eventually(lambda: agent.drifts("taps") == 6)
    assert agent.reasons() == {}


def test_a_foreign_change_that_drags_features_along_is_repaired_with_all_of_them(
    agent: Agent, playground: Playground
) -> None:
    agent.wish("up", "uplink: {match: {names: [up0]}, offloads: {tx: true, tso: true, sg: true}}")
    agent.start()
    before = playground.ethtool("up0")
    playground.run("ethtool -K up0 tx off")
    eventually(lambda: playground.ethtool("up0") == before)
    assert tso(playground, "up0")


def test_foreign_changes_of_link_attributes_and_bridge_options_are_repaired(
    agent: Agent, playground: Playground
) -> None:
    agent.wish(
        "lan",
        """
        bridge: {name: br0, stp: false, ageingTimeSeconds: 60, multicastSnooping: false, mtu: 1450}
        tap: {mtu: 1450, txQueueLength: 500}
        uplink: {match: {names: [up0]}}
        """,
    )
    agent.start()
    desired = snapshot(playground)
    # All at once: what is changed while a pass is under way is repaired by it, and not counted.
    with agent.paused():
        playground.batch(
            "link set br0 type bridge stp_state 1 ageing_time 12345 mcast_snooping 1",
            "link set br0 mtu 1300",
            "link set tap0 mtu 1400 txqueuelen 7",
        )
    eventually(lambda: snapshot(playground) == desired)
    eventually(lambda: agent.drifts("lan") == 6)


def test_what_a_link_cannot_do_does_not_keep_the_rest_from_being_repaired(agent: Agent, playground: Playground) -> None:
    agent.wish("up", "uplink: {match: {names: [up0]}, offloads: {lro: true, gro: true, tx-esp-segmentation: true}}")
    agent.start()
    eventually(lambda: gro(playground, "up0"))
    playground.run("ethtool -K up0 gro off")
    eventually(lambda: gro(playground, "up0"))
    assert agent.reasons() == {
        ("up0", "uplink.offloads.lro"): "Fixed",
        ("up0", "uplink.offloads.tx-esp-segmentation"): "Fixed",
    }


def test_events_that_the_kernel_dropped_are_made_up_for(agent: Agent, playground: Playground) -> None:
    agent.wish("taps", "tap: {match: {names: ['tap*']}, offloads: {gro: false}, txQueueLength: 500}")
    agent.start(*PATIENT)
    with agent.paused():
        playground.run("ethtool -K tap0 gro on")
        playground.batch(*(f"link set far0 txqueuelen {length}" for length in range(1, 12_001)))
        playground.batch("tuntap add tap1 mode tap", "link set tap0 txqueuelen 7")
    eventually(lambda: not gro(playground, "tap0") and not gro(playground, "tap1"))
    eventually(lambda: {playground.links()[tap]["txqlen"] for tap in ("tap0", "tap1")} == {500})
    assert "events were lost" in agent.log()


# --- links that come, go and change their names ------------------------------------------------------------


def test_a_link_that_appears_later_is_managed(agent: Agent, playground: Playground) -> None:
    agent.wish("lan", ON_BRIDGE)
    agent.start()
    playground.run("ip tuntap add tap1 mode tap")
    playground.run("ip link set tap1 master br0")
    eventually(lambda: not gro(playground, "tap1") and playground.links()["tap1"]["txqlen"] == 500)


def test_a_link_that_leaves_the_bridge_gets_its_originals_back(agent: Agent, playground: Playground) -> None:
    agent.wish("lan", ON_BRIDGE)
    agent.start()
    playground.run("ip link set tap0 nomaster")
    eventually(lambda: gro(playground, "tap0") and playground.links()["tap0"]["txqlen"] == 1000)
    playground.run("ip link set tap0 master br0")
    eventually(lambda: not gro(playground, "tap0") and playground.links()["tap0"]["txqlen"] == 500)


def test_a_link_is_managed_from_the_rename_into_a_match_to_the_rename_out_of_it(
    agent: Agent, playground: Playground
) -> None:
    playground.run("ip tuntap add other mode tap")
    agent.wish("taps", TAPS)
    agent.start()
    assert gro(playground, "other")
    playground.run("ip link set other name tap7")
    eventually(lambda: not gro(playground, "tap7"))
    playground.run("ip link set tap7 name another")
    eventually(lambda: gro(playground, "another"))
    assert not gro(playground, "tap0")


def test_a_link_that_is_renamed_within_a_match_keeps_its_originals(agent: Agent, playground: Playground) -> None:
    agent.wish("taps", TAPS)
    agent.start()
    playground.run("ip link set tap0 name tap7")
    playground.run("ethtool -K tap7 gro on")
    eventually(lambda: not gro(playground, "tap7"))
    agent.unwish("taps")
    assert gro(playground, "tap7")


def test_two_links_that_swap_their_names_swap_what_is_asked_of_them(agent: Agent, playground: Playground) -> None:
    playground.run("ip tuntap add other mode tap")
    agent.wish("taps", "tap: {match: {names: [tap0]}, offloads: {gro: false}}")
    agent.start()
    playground.batch("link set tap0 name swap", "link set other name tap0", "link set swap name other")
    eventually(lambda: not gro(playground, "tap0") and gro(playground, "other"))


def test_a_tap_that_is_made_again_is_another_link_with_originals_of_its_own(
    agent: Agent, playground: Playground
) -> None:
    agent.wish("lan", ON_BRIDGE)
    agent.start()
    playground.batch(
        "link del tap0",
        "tuntap add tap0 mode tap",
        "link set tap0 txqueuelen 77",
        "link set tap0 master br0",
    )
    eventually(lambda: playground.links()["tap0"]["txqlen"] == 500)
    agent.unwish("lan")
    assert (playground.links()["tap0"]["txqlen"], gro(playground, "tap0")) == (77, True)


def test_a_link_that_comes_and_goes_all_the_time_harms_nobody(agent: Agent, playground: Playground) -> None:
    agent.wish("taps", TAPS)
    agent.start()
    for _ in range(5):
        playground.batch(*("tuntap add tap1 mode tap", "link del tap1") * 50)
    playground.run("ip tuntap add tap9 mode tap")
    eventually(lambda: not gro(playground, "tap9"))
    playground.run("ethtool -K tap0 gro on")
    eventually(lambda: not gro(playground, "tap0"))
    assert "Traceback" not in agent.log()


# --- what the policy keeps in being ------------------------------------------------------------------------

MADE = """
bridge: {name: brx, create: true, ports: [spare0], ageingTimeSeconds: 60}
tap: {create: [{name: vm0}, {name: vm1, multiQueue: true}], txQueueLength: 500}
"""


@pytest.fixture
def spare(playground: Playground) -> None:
    playground.run("ip link add spare0 type veth peer name far1")


@pytest.mark.usefixtures("spare")
def test_a_port_that_somebody_takes_out_is_put_in_again(agent: Agent, playground: Playground) -> None:
    agent.wish("made", MADE)
    agent.start()
    for link in ("spare0", "vm0"):
        playground.run(f"ip link set {link} nomaster")
        eventually(lambda link=link: master(playground, link) == "brx")


@pytest.mark.usefixtures("spare")
def test_a_port_that_somebody_gives_to_another_bridge_is_foreign_and_stays_there(
    agent: Agent, playground: Playground
) -> None:
    agent.wish("made", MADE)
    agent.start()
    playground.run("ip link set spare0 master br0")
    eventually(lambda: agent.reasons().get(("spare0", "bridge.ports")) == "Foreign")
    assert master(playground, "spare0") == "br0"


@pytest.mark.usefixtures("spare")
def test_a_bridge_and_taps_that_somebody_removes_are_made_again_with_all_that_is_asked(
    agent: Agent, playground: Playground
) -> None:
    agent.wish("made", MADE)
    agent.start()
    for link in ("vm0", "vm1", "brx"):
        playground.run(f"ip link del {link}")
        eventually(lambda: is_made(playground))
    agent.unwish("made")
    assert set(playground.links()) == {"lo", "br0", "up0", "far0", "tap0", "spare0", "far1"}
    assert master(playground, "spare0") is None


def is_made(playground: Playground) -> bool:
    links = playground.links()
    if not {"brx", "vm0", "vm1"} <= set(links) or "UP" not in links["brx"]["flags"]:
        return False
    ports = [links[name].get("master") == "brx" for name in ("vm0", "vm1", "spare0")]
    return all(ports) and option(playground, "brx", "ageing_time") == 6000 and links["vm1"]["txqlen"] == 500


def test_a_tap_has_the_owner_group_and_queues_that_are_asked(agent: Agent, playground: Playground) -> None:
    user, group = (4242, 4343) if playground.netns else (0, 0)
    taps = f"[{{name: vm0, owner: {user}, group: {group}}}, {{name: vm1, multiQueue: true}}]"
    agent.wish("made", f"bridge: {{name: br0}}\ntap: {{create: {taps}, vnetHdr: true}}")
    agent.start()
    links = playground.links()
    own = {name: links[name]["linkinfo"]["info_data"] for name in ("vm0", "vm1")}
    assert {name: (tap["type"], tap["persist"], tap["vnet_hdr"]) for name, tap in own.items()} == {
        "vm0": ("tap", True, True),
        "vm1": ("tap", True, True),
    }
    shown = playground.run("ip -d link show vm0")
    assert re.search(r" user \S+ group \S+", shown)
    assert {name: tap["multi_queue"] for name, tap in own.items()} == {"vm0": False, "vm1": True}
    assert {links[name]["master"] for name in own} == {"br0"}
    with_queues = holding.hold(playground, "vm1", holding.VNET_HDR | holding.MULTI_QUEUE, queues=4)
    assert playground.links()["vm1"]["linkinfo"]["info_data"]["numqueues"] == 4
    holding.let_go(with_queues)


def test_vnet_hdr_waits_while_a_process_holds_the_tap_and_is_repaired_when_it_lets_go(
    agent: Agent, playground: Playground
) -> None:
    holder = holding.hold(playground, "tap0", flags=0)
    agent.wish("taps", "tap: {match: {names: [tap0]}, vnetHdr: true, txQueueLength: 500}")
    agent.start()
    assert agent.reasons() == {("tap0", "tap.vnetHdr"): "InUse"}
    assert str(holder.pid) in agent.messages("InUse")
    assert playground.links()["tap0"]["txqlen"] == 500
    assert playground.links()["tap0"]["linkinfo"]["info_data"]["vnet_hdr"] is False
    holding.let_go(holder)
    eventually(lambda: playground.links()["tap0"]["linkinfo"]["info_data"]["vnet_hdr"])
    eventually(lambda: agent.reasons() == {})
