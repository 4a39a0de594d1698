"""The API server stops, freezes, hangs and resets; hosts are kept as asked meanwhile, and nothing storms afterwards."""

from __future__ import annotations

import contextlib
import time
from collections import Counter

from tests.cluster import audit, proxy
from tests.cluster.installation import Operator, on_all, uplink
from tests.cluster.nodes import UPLINK, Node
from tests.cluster.proxy import Mode
from tests.cluster.sandbox import wait_until

GRO, TSO = "generic-receive-offload", "tcp-segmentation-offload"
OUTAGE_SECONDS = 12
MOST_REQUESTS = 30
"""Of one agent, for coming back; and its attempts to connect during an outage, which become rarer and rarer."""

# Each story changes a feature of its own, twice: five times in a minute would be a fight, of which the agent keeps out.
OWN = {
    "down": "tx-gre-segmentation",
    "frozen": "tx-gre-csum-segmentation",
    "cut off": "tx-udp-segmentation",
}
CUT_OFF = (Mode.HANG, Mode.RESET, Mode.REFUSE)
"""A way for each node."""


def outlast(feature: str, *nodes: Node) -> None:
    """An outage, at whose begin and end a change behind the agents' backs is undone."""
    for pause in (OUTAGE_SECONDS, 0):
        for node in nodes:
            node.fix(UPLINK, **{feature: True})
        wait_until("all are as asked", lambda: not any(node.feature(UPLINK, feature) for node in nodes), 2, 0.02)
        time.sleep(pause)


def test_hosts_are_kept_as_asked_while_the_api_server_is_down(virtnet: Operator) -> None:
    control, nodes = virtnet.cluster.control, virtnet.cluster.nodes
    virtnet.apply(uplink("lan", **{OWN["down"]: False}))
    virtnet.ready("lan")
    control.stop_api()
    outlast(OWN["down"], *nodes)
    back = time.time()
    control.start_api()
    virtnet.apply(uplink("lan", gro=True, **{OWN["down"]: False}))
    wait_until("the edit is in force", lambda: all(node.feature(UPLINK, GRO) for node in nodes), 45, 0.3)
    virtnet.ready("lan")
    asked = Counter(r.node for r in audit.read(control.audit_log, back) if r.user.endswith(":virtnet-agent"))
    assert max(asked.values(), default=0) <= MOST_REQUESTS, asked


def test_hosts_are_kept_as_asked_while_the_api_server_is_frozen(virtnet: Operator) -> None:
    control, nodes = virtnet.cluster.control, virtnet.cluster.nodes
    virtnet.apply(uplink("lan", **{OWN["frozen"]: False}))
    virtnet.ready("lan")
    control.freeze_api()
    try:
        outlast(OWN["frozen"], *nodes)
    finally:
        control.resume_api()
    control.wait_ready()
    virtnet.apply(uplink("lan", gro=True, **{OWN["frozen"]: False}))
    wait_until("the edit is in force", lambda: all(node.feature(UPLINK, GRO) for node in nodes), 60, 0.3)


def test_agents_that_are_cut_off_in_three_ways_keep_their_hosts_and_are_right_soon_after(virtnet: Operator) -> None:
    nodes = virtnet.cluster.nodes
    virtnet.apply(uplink("lan", **{OWN["cut off"]: False}), uplink("ghost", gro=True))
    virtnet.ready("lan", "ghost")
    with contextlib.ExitStack() as stack:
        ways = [(stack.enter_context(proxy.between(node)), mode) for node, mode in zip(nodes, CUT_OFF, strict=True)]
        wait_until("the agents come through the proxies", lambda: all(way.connections for way, _ in ways), 100)
        virtnet.ready("lan")
        before = [way.connections for way, _ in ways]
        for way, mode in ways:
            way.set(mode)
        virtnet.cluster.kubectl("delete", "vnp", "ghost")
        outlast(OWN["cut off"], *nodes)
        tried = [way.connections - count for (way, _), count in zip(ways, before, strict=True)]
        assert max(tried) <= MOST_REQUESTS, f"a storm of connections: {tried}"
        assert all(node.feature(UPLINK, GRO) for node in nodes), "what nobody told it cannot have been followed"
        for way, _ in ways:
            way.set(Mode.PASS)
        on_all(nodes, lambda node: not node.feature(UPLINK, GRO), "the deletion", 100)
        virtnet.ready("lan")


def test_a_node_that_starts_without_an_api_server_enforces_what_it_knows(virtnet: Operator) -> None:
    node, control = virtnet.cluster.node(2), virtnet.cluster.control
    virtnet.apply(uplink("lan", tso=False))
    virtnet.ready("lan")
    control.stop_api()
    try:
        node.run("sh", "-c", "kill -9 $(pidof -x virtnet)")
        node.fix(UPLINK, tso=True)
        wait_until("it is as asked again", lambda: not node.feature(UPLINK, TSO), 45)
    finally:
        control.start_api()
    virtnet.ready("lan")


def test_nobody_writes_anything_while_nothing_happens(virtnet: Operator) -> None:
    virtnet.apply(uplink("lan", tso=False))
    virtnet.ready("lan")
    time.sleep(3)  # what follows from the policy is written by then
    since = time.time()
    time.sleep(15)
    asked = [r for r in audit.read(virtnet.cluster.control.audit_log, since) if r.user.startswith("virtnet-system:")]
    writes = [r for r in asked if r.writes and r.resource != "leases"]
    assert not writes
    assert len([r for r in asked if r.resource != "leases"]) <= 10, asked
