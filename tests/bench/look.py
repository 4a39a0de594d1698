"""Look: one look and plan that finds nothing to do, as `virtnet run` takes it for every pass."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tests.bench import figures, place, raw
from tests.bench.figures import Fact, Figure, Report, Target
from tests.bench.place import Links
from virtnet import reconcile
from virtnet.core.model import Policy
from virtnet.engine.workplace import Workplace
from virtnet.host import LinuxHost
from virtnet.kube import manifests

HOW = """\
In one process, in turns: the product's look and plan, and the floor, the same two netlink dumps received into a buffer
and not looked at. Everything is as the policy asks, and the ledger holds the originals. A whole pass is what the agent
does besides: the ledger's books, and what it reports. The first look has nothing to compare with.

Instead, a user reads with `ethtool -k`, once for each link or with one call for all, and `ip -j -d link`; a program may
read with pyroute2."""
STEADY, FLOOR = "look and plan: virtnet", "look: floor, two dumps not parsed"


@dataclass(frozen=True, slots=True)
class Size:
    links: int
    looks: int
    first_looks: int
    others: int


FULL = Size(links=1000, looks=300, first_looks=20, others=3)
QUICK = Size(links=40, looks=20, first_looks=3, others=1)


def measure(directory: Path, *, quick: bool = False) -> Report:
    size = QUICK if quick else FULL
    links = place.make_links(size.links)
    policies = manifests.read(place.policy().encode(), "bench.yaml").policies
    with Workplace.open(state_dir=directory / "state", write=True) as workplace:
        asyncio.run(workplace.apply(policies))
        wrong = place.wrong_links(links)
        if wrong:
            raise RuntimeError(f"not as the policy asks: {', '.join(wrong)}")
        found = [*_steady(workplace, policies, size), *_first(workplace, policies, size)]
    found += _instead(links, size)
    return _report(tuple(found))


def _steady(workplace: Workplace, policies: tuple[Policy, ...], size: Size) -> list[Figure]:
    """Ours and the floor in turns, so that what else the machine does meets both."""
    memory, wish = reconcile.Memory(), reconcile.Wish(policies, workplace.node)
    assert workplace.ledger is not None
    ledger = workplace.ledger
    links, features = raw.Dump.of_links(), raw.Dump.of_features()

    def look() -> None:
        planned = reconcile.look(workplace.host, workplace.recorded, wish, memory).plan.steps
        assert not planned, planned

    def floor() -> None:
        links.receive()
        features.receive()

    async def whole_pass() -> None:
        outcome = await reconcile.run(workplace.host, ledger, wish, memory=memory)
        assert not outcome.applied, outcome.applied

    look()
    with asyncio.Runner() as runner:
        turns = [
            (place.timed(look), place.timed(floor), place.timed(lambda: runner.run(whole_pass())))
            for _ in range(size.looks)
        ]
    links.close()
    features.close()
    ours, bare, passes = zip(*turns, strict=True)
    return [
        figures.milliseconds(STEADY, ours),
        figures.milliseconds("whole pass: virtnet", passes, beside=STEADY),
        figures.milliseconds(FLOOR, bare, beside=STEADY),
    ]


def _first(workplace: Workplace, policies: tuple[Policy, ...], size: Size) -> list[Figure]:
    """Each time with a new host and a new memory."""
    wish, taken = reconcile.Wish(policies, workplace.node), []
    for _ in range(size.first_looks):
        host = LinuxHost(workplace.namespace)

        def look(host: LinuxHost = host) -> None:
            reconcile.look(host, workplace.recorded, wish, reconcile.Memory())

        taken.append(place.timed(look))
        host.close()
    return [figures.milliseconds("first look and plan: virtnet", taken, beside=STEADY)]


def _instead(links: Links, size: Size) -> list[Figure]:
    each = "\n".join(f"ethtool -k {name} >/dev/null" for name in links.names)
    ways: list[tuple[str, Callable[[], object]]] = [
        ("look: ethtool -k once per link", lambda: place.run("sh", "-e", text=each)),
        ("look: ethtool -k '*' and ip -j -d link", _two_commands),
        ("look: pyroute2, links and features", _pyroute2),
    ]
    return [
        figures.milliseconds(what, [place.timed(way) for _ in range(size.others)], beside=STEADY) for what, way in ways
    ]


def _two_commands() -> None:
    place.run("sh", "-ec", "ethtool -k '*' >/dev/null; ip -j -d link >/dev/null")


def _pyroute2() -> None:
    """Imported here only: its modules must not weigh on what was measured before."""
    from pyroute2 import Ethtool, IPRoute

    with IPRoute() as route, Ethtool() as ethtool:
        for link in route.get_links():
            ethtool.get_features(link.get("ifname"))


def _report(found: tuple[Figure, ...]) -> Report:
    report = Report("Look and plan", HOW, found)
    ratio = report.figure(STEADY).median / report.figure(FLOOR).median
    target = Target("look and plan, in terms of the raw dumps", ratio, 3.0, "×")
    return replace(report, targets=(target,), facts=(Fact("changes planned in any of these looks", "0"),))
