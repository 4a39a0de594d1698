"""What is told as Events, and how often."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.controller.cluster import connect, serving
from virtnet.core.rollout import EVERYBODY
from virtnet.kube import events
from virtnet.kube.events import News, Recorder

OVER = {"generation": 1, "admitted": EVERYBODY, "paused": False}
MOVING = {"generation": 2, "admitted": 7, "paused": False, "began": "2026-01-01T00:00:00Z"}
STOPPED = {**MOVING, "paused": True, "reason": "n1: uplink.mtu: Refused: no"}
REFUSED = {"node": "n1", "setting": "uplink.mtu", "reason": "Refused", "message": "no"}
FOUGHT = {"node": "n1", "setting": "uplink.mtu", "reason": "Contended", "message": "TuneD"}


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (None, {"rollout": MOVING}, []),
        ({"rollout": OVER}, {"rollout": OVER}, []),
        ({"rollout": OVER}, {"rollout": MOVING}, []),
        ({"rollout": MOVING}, {"rollout": STOPPED}, ["RolloutPaused"]),
        ({"rollout": STOPPED}, {"rollout": STOPPED}, []),
        ({"rollout": STOPPED}, {"rollout": {**STOPPED, "reason": "n2 fails"}}, []),
        ({"rollout": STOPPED}, {"rollout": {**STOPPED, "generation": 3}}, ["RolloutPaused"]),
        ({"rollout": STOPPED}, {"rollout": MOVING}, ["RolloutResumed"]),
        ({"rollout": MOVING}, {"rollout": {**OVER, "generation": 2}}, ["RolledOut"]),
        ({"rollout": OVER}, {"rollout": {**OVER, "generation": 2}}, ["RolledOut"]),
        ({}, {"problems": [REFUSED]}, ["Blocked"]),
        ({}, {"problems": [FOUGHT]}, ["Contended"]),
        ({"problems": [REFUSED]}, {"problems": [{**REFUSED, "node": "n2"}]}, []),
        ({"problems": [REFUSED]}, {"problems": []}, []),
    ],
)
def test_news_is_what_changed_between_two_statuses(
    before: dict[str, Any] | None, after: dict[str, Any], told: list[str]
) -> None:
    assert [news.reason for news in events.news(before, after)] == told


def test_the_same_news_counts_up_and_too_much_is_kept_back() -> None:
    async def story() -> None:
        async with serving() as cluster:
            now = 1_700_000_000.0
            connection = connect(cluster.server)
            recorder = Recorder(connection, "controller-0", clock=lambda: now)
            for _ in range(3):
                await recorder.tell("p", "uid-1", News("Blocked", "no", warning=True))
            assert cluster.events() == ["Warning Blocked x3: no"]
            for number in range(20):
                await recorder.tell("p", "uid-1", News("Blocked", f"number {number}", warning=True))
            assert len(cluster.events()) == events.MOST - 2
            await recorder.tell("q", "uid-2", News("RolledOut", "fine"))
            assert recorder.lost == 13, "another policy has its own share"
            now += events.MOST_SECONDS
            await recorder.tell("p", "uid-1", News("Blocked", "later", warning=True))
            assert "Warning Blocked x1: later" in cluster.events()
            found = next(iter(cluster.server.objects["events"].found.values()))
            assert found["involvedObject"]["name"] == "p"
            assert found["metadata"]["namespace"] == "default"
            await connection.close()

    asyncio.run(story())


def test_a_problem_that_comes_back_on_another_node_is_the_same_event_with_the_newest_words() -> None:
    async def story() -> None:
        async with serving() as cluster:
            connection = connect(cluster.server)
            recorder = Recorder(connection, "controller-0")
            for node in ("n1", "n2"):
                for news in events.news({}, {"problems": [{**REFUSED, "node": node}]}):
                    await recorder.tell("p", "uid-1", news)
            assert cluster.events() == ["Warning Blocked x2: n2: uplink.mtu: Refused: no"]
            await connection.close()

    asyncio.run(story())


def test_an_event_that_the_server_forgot_is_written_anew() -> None:
    async def story() -> None:
        async with serving() as cluster:
            connection = connect(cluster.server)
            recorder = Recorder(connection, "controller-0")
            news = News("Blocked", "no", warning=True)
            await recorder.tell("p", "uid-1", news)
            cluster.server.objects["events"].found.clear()
            await recorder.tell("p", "uid-1", news)
            assert cluster.events() == ["Warning Blocked x2: no"]
            await connection.close()

    asyncio.run(story())


def test_an_event_that_cannot_be_written_is_lost_and_nothing_else() -> None:
    async def story() -> None:
        async with serving() as cluster:
            cluster.server.refuse = lambda _: 403
            connection = connect(cluster.server)
            recorder = Recorder(connection, "controller-0")
            await recorder.tell("p", "uid-1", News("RolledOut", "fine"))
            assert recorder.lost == 1
            await connection.close()

    asyncio.run(story())
