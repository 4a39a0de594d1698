"""The probes against real neighbours: a node and its router are two namespaces joined by a veth pair.

The namespaces belong to sleeping processes, not to `ip netns`, so that a plain user can run this in `unshare -Urn`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from virtnet.host import names, probes
from virtnet.host.namespaces import Namespace
from virtnet.host.probes import Probe

V4 = Probe("gateway", "192.0.2.1%up0")
V6 = Probe("gateway", "2001:db8::1%up0")
LISTENS = 7001


@dataclass
class Machine:
    """A network namespace: the one of the sleeping process `holder`."""

    holder: subprocess.Popen[bytes]
    namespace: Namespace = field(init=False)

    def __post_init__(self) -> None:
        self.namespace = Namespace(f"/proc/{self.holder.pid}/ns/net")

    def run(self, *commands: str) -> None:
        """Shell commands, one after the other, in the namespace (in /proc/sys/net, too)."""
        enter = ["nsenter", "-t", str(self.holder.pid), "-n", "sh", "-ec", "\n".join(commands)]
        done = subprocess.run(enter, capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 0, done.stderr


@dataclass
class Network:
    node: Machine
    router: Machine


@contextlib.contextmanager
def machine() -> Iterator[Machine]:
    home = os.stat("/proc/self/ns/net")
    with subprocess.Popen(["unshare", "-n", "sleep", "300"]) as holder:
        try:
            while os.stat(f"/proc/{holder.pid}/ns/net").st_ino == home.st_ino:
                assert holder.poll() is None, "unshare failed"
                time.sleep(0.002)
            made = Machine(holder)
            # Without duplicate address detection an IPv6 address can be used at once.
            made.run("cd /proc/sys/net/ipv6/conf; echo 0 | tee all/accept_dad default/accept_dad", "ip link set lo up")
            yield made
        finally:
            holder.kill()


@pytest.fixture
def network() -> Iterator[Network]:
    """Node: up0 192.0.2.2 2001:db8::2, default routes to the router: down0 192.0.2.1 2001:db8::1 fe80::1."""
    with machine() as node, machine() as router:
        node.run(f"ip link add up0 type veth peer name down0 netns {router.holder.pid}")
        router.run(
            "ip link set down0 up",
            "ip addr add 192.0.2.1/24 dev down0",
            "ip addr add 2001:db8::1/64 dev down0",
            "ip addr add fe80::1/64 dev down0",
        )
        node.run(
            "ip link set up0 up",
            "ip addr add 192.0.2.2/24 dev up0",
            "ip addr add 2001:db8::2/64 dev up0",
            "ip route add default via 192.0.2.1",
            "ip -6 route add default via 2001:db8::1",
        )
        yield Network(node, router)


@contextlib.contextmanager
def listening(where: Machine, family: int = socket.AF_INET) -> Iterator[None]:
    with where.namespace.entered():
        listener = socket.socket(family, socket.SOCK_STREAM)
    with listener:
        listener.bind(("", LISTENS))
        listener.listen()
        yield


def working(network: Network, *asked: Probe, within: float = 5) -> set[Probe]:
    return set(asyncio.run(probes.working(asked, network.node.namespace, within)))


def confirm(network: Network, *asked: Probe, within: float = 5) -> dict[Probe, str]:
    """As `probes.confirm`, which must keep to its time."""
    start = time.monotonic()
    failures = asyncio.run(probes.confirm(asked, network.node.namespace, within))
    assert time.monotonic() - start < within + 5
    return failures


def left_behind() -> tuple[set[str], int, int]:
    """Children, open files and threads of this process."""
    children = {line for task in Path("/proc/self/task").iterdir() for line in (task / "children").read_text().split()}
    return children, len(os.listdir("/proc/self/fd")), threading.active_count()


# --- which gateways there are ------------------------------------------------------------------------------


def test_every_default_route_has_a_gateway_to_ask(network: Network) -> None:
    assert probes.gateways(network.node.namespace) == [V4, V6]
    assert probes.gateways(network.router.namespace) == []


@pytest.mark.parametrize(
    ("route", "targets"),
    [
        ("ip route replace default nexthop via 192.0.2.1 nexthop via 192.0.2.9", ["192.0.2.1%up0", "192.0.2.9%up0"]),
        ("ip route add default via 192.0.2.9 metric 7", ["192.0.2.1%up0", "192.0.2.9%up0"]),
        ("ip route del default; ip route add default via inet6 fe80::1 dev up0", ["fe80::1%up0"]),
        ("ip route replace default dev up0", []),
        ("ip route add default via 192.0.2.9 table 100", ["192.0.2.1%up0"]),
        ("ip route add 198.51.100.0/24 via 192.0.2.9", ["192.0.2.1%up0"]),
        ("ip route add unreachable default metric 9999", ["192.0.2.1%up0"]),
        (
            "ip -6 route add default nexthop via 2001:db8::1 dev up0 nexthop via fe80::1 dev up0",
            ["192.0.2.1%up0", "2001:db8::1%up0", "fe80::1%up0"],
        ),
    ],
)
def test_gateways_are_the_next_hops_of_default_routes(network: Network, route: str, targets: list[str]) -> None:
    network.node.run("ip -6 route del default", route)
    assert [probe.target for probe in probes.gateways(network.node.namespace)] == targets


# --- a gateway that answers, and one that does not ---------------------------------------------------------


def test_a_gateway_that_answers_works_at_once(network: Network) -> None:
    assert working(network, V4, V6) == {V4, V6}
    start = time.monotonic()
    assert confirm(network, V4, V6, within=60) == {}
    assert time.monotonic() - start < 30


def test_a_gateway_by_its_link_local_address_answers(network: Network) -> None:
    network.node.run("ip route del default", "ip -6 route replace default via fe80::1 dev up0")
    (gateway,) = probes.gateways(network.node.namespace)
    assert gateway == Probe("gateway", "fe80::1%up0")
    assert working(network, gateway) == {gateway}


@pytest.mark.parametrize("probe", [V4, V6], ids=str)
def test_an_answer_from_before_the_change_is_not_believed(network: Network, probe: Probe) -> None:
    assert working(network, probe) == {probe}  # the neighbour entry is REACHABLE now, for half a minute
    network.router.run("ip addr flush dev down0 scope global")
    assert set(confirm(network, probe, within=1)) == {probe}
    assert working(network, probe, within=1) == set()


@pytest.mark.parametrize("probe", [V4, V6], ids=str)
def test_the_kernel_giving_up_is_said(network: Network, probe: Probe) -> None:
    network.router.run("ip addr flush dev down0 scope global")
    failures = confirm(network, probe, within=5)
    assert failures == {probe: "it does not answer neighbour discovery, for 5 s"}


def test_a_gateway_behind_a_dead_link_does_not_work(network: Network) -> None:
    assert working(network, V4, V6) == {V4, V6}
    network.router.run("ip link set down0 down")
    assert set(confirm(network, V4, V6, within=1)) == {V4, V6}


def test_a_default_route_that_is_gone_is_said(network: Network) -> None:
    assert working(network, V4) == {V4}
    network.node.run("ip route del default")
    assert confirm(network, V4, within=0.3) == {V4: "there is no default route through it, for 0.3 s"}


def test_a_node_that_lost_its_address_has_lost_its_gateway(network: Network) -> None:
    assert working(network, V4) == {V4}
    network.node.run("ip addr del 192.0.2.2/24 dev up0")
    assert confirm(network, V4, within=0.3) == {V4: "there is no default route through it, for 0.3 s"}


def test_a_link_that_comes_back_in_time_is_confirmed(network: Network) -> None:
    network.router.run("ip link set down0 down")

    async def comes_back() -> tuple[dict[Probe, str], float]:
        start = time.monotonic()
        asked = asyncio.create_task(probes.confirm([V4], network.node.namespace, 20))
        await asyncio.sleep(0.5)
        assert not asked.done()
        network.router.run("ip link set down0 up")
        return await asked, time.monotonic() - start

    failures, seconds = asyncio.run(comes_back())
    assert failures == {}
    assert 0.5 < seconds < 20


# --- a gateway of which the neighbour table knows nothing -----------------------------------------------------


@pytest.fixture
def permanent(network: Network) -> Network:
    """The router's address is in the node's neighbour table by hand: the kernel never asks for it."""
    mac = "02:00:00:00:00:01"
    network.router.run(f"ip link set down0 address {mac}")
    network.node.run(
        *(f"ip neigh replace {ip} lladdr {mac} dev up0 nud permanent" for ip in ("192.0.2.1", "2001:db8::1"))
    )
    return network


@pytest.mark.parametrize("permitted", [False, True], ids=["raw", "datagram"])
@pytest.mark.parametrize("probe", [V4, V6], ids=str)
def test_a_gateway_with_a_permanent_entry_is_pinged(permanent: Network, probe: Probe, permitted: bool) -> None:
    if permitted:  # else as a new namespace has it: to nobody (icmp(7), ping_group_range)
        permanent.node.run("echo 0 0 > /proc/sys/net/ipv4/ping_group_range")
    assert working(permanent, probe) == {probe}


def test_a_gateway_with_a_permanent_entry_that_ignores_ping_does_not_work(permanent: Network) -> None:
    permanent.router.run("echo 1 > /proc/sys/net/ipv4/icmp_echo_ignore_all")
    why = "it does not answer to ping, and neighbour discovery cannot tell, for 1.5 s"
    assert confirm(permanent, V4, within=1.5) == {V4: why}


def test_a_gateway_that_ignores_ping_works_by_its_neighbour_entry(network: Network) -> None:
    network.router.run("echo 1 > /proc/sys/net/ipv4/icmp_echo_ignore_all")
    assert working(network, V4) == {V4}


def test_a_link_without_neighbour_discovery_is_pinged(network: Network) -> None:
    mac = "02:00:00:00:00:01"
    network.router.run(f"ip link set down0 address {mac} arp off")
    network.node.run(f"ip link set up0 address {mac} arp off")
    assert working(network, V4) == {V4}


# --- TCP ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tcp", "apiServer"])
@pytest.mark.parametrize("host", ["192.0.2.1", "[2001:db8::1]"])
def test_a_connection_that_is_accepted_or_refused_works(network: Network, kind: probes.Kind, host: str) -> None:
    accepted, refused = Probe(kind, f"{host}:{LISTENS}"), Probe(kind, f"{host}:9")
    with listening(network.router, socket.AF_INET6 if "[" in host else socket.AF_INET):
        assert confirm(network, accepted, refused) == {}


@pytest.mark.parametrize(
    ("route", "why"),
    [
        ("true", "no answer within 1 s"),
        ("ip route add unreachable 198.51.100.1", "198.51.100.1: No route to host, for 1 s"),
        ("ip route add prohibit 198.51.100.1", "198.51.100.1: Permission denied, for 1 s"),
        ("ip route del default", "198.51.100.1: Network is unreachable, for 1 s"),
    ],
)
def test_a_connection_that_gets_nowhere_does_not_work(network: Network, route: str, why: str) -> None:
    network.node.run(route)  # the router forwards nothing
    probe = Probe("tcp", "198.51.100.1:80")
    assert confirm(network, probe, within=1) == {probe: why}


@pytest.mark.parametrize("target", ["", "host", "host:", ":80", "host:http", "192.0.2.1:0", "192.0.2.1:65536", "h:-1"])
def test_a_target_that_is_none_does_not_work(network: Network, target: str) -> None:
    probe = Probe("tcp", target)
    assert confirm(network, probe, within=0.2) == {probe: f"{target!r} is not HOST:PORT, for 0.2 s"}


def test_a_name_is_resolved_and_connected_to_in_the_namespace(network: Network) -> None:
    probe = Probe("tcp", f"localhost:{LISTENS}")
    with listening(network.node):
        assert working(network, probe) == {probe}


def test_an_address_is_its_own(network: Network) -> None:
    assert asyncio.run(names.resolve("2001:db8::1", network.node.namespace)) == [("2001:db8::1", 0)]


def test_a_name_that_nobody_knows_does_not_work(network: Network) -> None:
    network.node.run("ip route del default", "ip -6 route del default")
    probe = Probe("tcp", "nobody.invalid:80")
    failures = confirm(network, probe, within=3)
    assert set(failures) == {probe}


# --- time, and what is left behind -------------------------------------------------------------------------


def many(network: Network) -> list[Probe]:
    """Probes that never end by themselves: a silent address, a name whose server is silent, a dead gateway."""
    network.router.run("ip addr flush dev down0 scope global")
    return [V4, V6, Probe("tcp", "198.51.100.1:80"), Probe("tcp", "nobody.invalid:80"), Probe("tcp", "192.0.2.1:80")]


@pytest.mark.parametrize("ask", [probes.working, probes.confirm])
def test_all_probes_together_keep_to_the_time_and_leave_nothing_behind(
    network: Network, ask: Callable[..., object]
) -> None:
    asked, before = many(network), left_behind()
    start = time.monotonic()
    asyncio.run(ask(asked, network.node.namespace, 1))  # type: ignore[arg-type]
    assert 0.9 < time.monotonic() - start < 6
    assert left_behind() == before


def test_a_confirmation_can_be_cancelled_and_leaves_nothing_behind(network: Network) -> None:
    asked, before = many(network), left_behind()

    async def cancelled() -> float:
        task = asyncio.create_task(probes.confirm(asked, network.node.namespace, 60))
        await asyncio.sleep(0.5)
        start = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic() - start

    assert asyncio.run(cancelled()) < 30
    assert left_behind() == before


def test_no_time_is_no_proof(network: Network) -> None:
    silent = Probe("tcp", "198.51.100.1:80")
    assert set(confirm(network, silent, within=0)) == {silent}


def test_nothing_to_ask_takes_no_time(network: Network) -> None:
    assert confirm(network, within=60) == {}
    assert working(network) == set()


def test_a_namespace_that_is_gone_is_a_reason_and_no_crash() -> None:
    with machine() as gone:
        namespace = gone.namespace
    failures = asyncio.run(probes.confirm([V4, Probe("tcp", "192.0.2.1:80")], namespace, 0.2))
    assert ["is gone" in why for why in failures.values()] == [True, True]
