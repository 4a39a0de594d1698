"""What is written of a node's state, and when: news at once, counters and times seldom, the same never."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from virtnet import errors
from virtnet.kube import agent, publishing
from virtnet.kube.publishing import Print, Publisher, difference

NODE = "n1"


def status(**changed: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "conditions": [{"type": "Ready", "status": "True", "reason": "AsAsked", "lastTransitionTime": "10:00"}],
        "policies": [{"name": "p", "generation": 1, "drifts": 0}],
        "settings": [{"subject": "link/a", "reason": "Fixed", "since": "10:00"}],
        "vhost": {"module": "Loaded", "refcount": 1},
    }
    return found | changed


@pytest.mark.parametrize(
    ("stored", "what"),
    [
        (status(), "nothing"),
        (status(policies=[{"name": "p", "generation": 1, "drifts": 9}]), "quiet"),
        (status(vhost={"module": "Loaded", "refcount": 2}), "quiet"),
        (status(settings=[{"subject": "link/a", "reason": "Fixed", "since": "11:00"}]), "quiet"),
        (
            status(
                conditions=[{"type": "Ready", "status": "True", "reason": "AsAsked", "lastTransitionTime": "11:00"}]
            ),
            "quiet",
        ),
        (status(policies=[{"name": "p", "generation": 2, "drifts": 0}]), "news"),
        (status(settings=[]), "news"),
        (status(vhost={"module": "Absent"}), "news"),
        (None, "news"),
    ],
)
def test_counters_and_times_alone_are_no_news(stored: dict[str, Any] | None, what: str) -> None:
    assert difference(Print.of(status()), Print.of(stored) if stored else None) == what


# --- when --------------------------------------------------------------------------------------------------


class Api:
    """Takes server-side applies of one object. `refuse` is raised instead, `prune` is dropped from every status."""

    def __init__(self) -> None:
        self.stored: dict[str, Any] | None = None
        self.writes: list[str] = []
        self.version = 0
        self.refuse: errors.ApiError | None = None
        self.prune = ""

    async def apply(
        self, resource: Any, wanted: dict[str, Any], *, manager: str, subresource: str = ""
    ) -> dict[str, Any]:
        if self.refuse is not None:
            raise self.refuse
        if subresource and self.stored is None:
            raise errors.NotFound("no such object")
        self.writes.append(subresource or "metadata")
        self.version += 1
        found = {**(self.stored or {"metadata": {}})}
        found["metadata"] = {**found["metadata"], **wanted["metadata"], "resourceVersion": str(self.version)}
        if subresource:
            found["status"] = {key: value for key, value in wanted["status"].items() if key != self.prune}
        self.stored = found
        return found


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Desk:
    """A publisher that runs, with everything known: its Node, and that there is no state yet."""

    def __init__(self) -> None:
        self.api, self.clock = Api(), Clock()
        self.publisher = Publisher(self.api, NODE, clock=self.clock)  # type: ignore[arg-type]

    def know_all(self) -> None:
        self.publisher.own("uid")
        self.publisher.found(None)

    async def writes(self) -> list[str]:
        """All writes so far, after a while in which more could have come."""
        await asyncio.sleep(0.05)
        return list(self.api.writes)


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "BETWEEN_WRITES", 0.002)
    monkeypatch.setattr(publishing, "RETRY_SECONDS", (0.002, 0.004))


def told(story: Callable[[Desk], Any]) -> Desk:
    async def tell() -> Desk:
        desk = Desk()
        task = asyncio.create_task(desk.publisher.run())
        try:
            await story(desk)
        finally:
            task.cancel()
            await asyncio.wait([task])
        return desk

    return asyncio.run(tell())


def test_nothing_is_written_before_the_node_the_state_and_the_wish_are_known() -> None:
    async def story(desk: Desk) -> None:
        desk.publisher.want(status())
        assert await desk.writes() == []
        desk.publisher.own("uid")
        assert await desk.writes() == []
        desk.publisher.found(None)
        assert await desk.writes() == ["metadata", "status"]

    desk = told(story)
    assert desk.api.stored is not None
    assert desk.api.stored["metadata"]["ownerReferences"][0]["uid"] == "uid"


def test_a_state_that_is_as_wanted_is_not_written() -> None:
    async def story(desk: Desk) -> None:
        owner = {"apiVersion": "v1", "kind": "Node", "name": NODE, "uid": "uid"}
        desk.publisher.own("uid")
        desk.publisher.found({"metadata": {"ownerReferences": [owner]}, "status": status()})
        desk.publisher.want(status())
        assert await desk.writes() == []

    told(story)


def test_quiet_changes_wait_for_five_minutes_and_news_take_them_along() -> None:
    async def story(desk: Desk) -> None:
        desk.know_all()
        desk.publisher.want(status())
        await desk.writes()
        drifted = status(policies=[{"name": "p", "generation": 1, "drifts": 9}])
        desk.clock.now += publishing.BETWEEN_QUIET_WRITES - 1
        desk.publisher.want(drifted)
        assert await desk.writes() == ["metadata", "status"]
        desk.clock.now += 1
        desk.publisher.want(drifted)
        assert await desk.writes() == ["metadata", "status", "status"]
        desk.publisher.want(status(settings=[]))
        assert await desk.writes() == ["metadata", "status", "status", "status"]

    told(story)


def test_a_field_that_the_server_drops_is_not_written_for_ever() -> None:
    async def story(desk: Desk) -> None:
        desk.api.prune = "vhost"
        desk.know_all()
        desk.publisher.want(status())
        assert await desk.writes() == ["metadata", "status"]
        desk.publisher.found(desk.api.stored)
        assert await desk.writes() == ["metadata", "status"]

    told(story)


def test_what_others_write_is_taken_back_and_news_that_come_late_are_not_believed() -> None:
    async def story(desk: Desk) -> None:
        desk.know_all()
        desk.publisher.want(status())
        await desk.writes()
        late = {"metadata": {"resourceVersion": "1"}, "status": {}}
        desk.publisher.found(late)
        assert await desk.writes() == ["metadata", "status"]
        assert desk.api.stored is not None
        desk.publisher.found({**desk.api.stored, "status": {}})
        assert await desk.writes() == ["metadata", "status", "status"]

    told(story)


@pytest.mark.parametrize("error", [errors.Unreachable("down"), errors.Conflict("taken"), errors.Invalid("bad")])
def test_what_is_refused_is_tried_again_and_said_until_it_works(error: errors.ApiError) -> None:
    async def story(desk: Desk) -> None:
        desk.api.refuse = error
        desk.know_all()
        desk.publisher.want(status())
        assert await desk.writes() == []
        assert desk.publisher.trouble == f"{type(error).__name__}: {error}"
        desk.api.refuse = None
        if error.retry:
            assert await desk.writes() == ["metadata", "status"]
            assert desk.publisher.trouble == ""

    told(story)


def test_a_state_that_is_deleted_between_two_writes_is_made_anew() -> None:
    async def story(desk: Desk) -> None:
        desk.know_all()
        desk.publisher.want(status())
        await desk.writes()
        desk.api.stored = None
        desk.publisher.want(status(settings=[]))
        assert await desk.writes() == ["metadata", "status", "metadata", "status"]

    told(story)


def test_while_the_node_is_gone_nothing_is_written_and_a_new_one_becomes_the_owner() -> None:
    async def story(desk: Desk) -> None:
        desk.know_all()
        desk.publisher.want(status())
        await desk.writes()
        desk.publisher.own(None)
        desk.publisher.found(None)
        desk.publisher.want(status(settings=[]))
        assert await desk.writes() == ["metadata", "status"]
        desk.publisher.own("another")
        await desk.writes()
        assert desk.api.stored is not None
        assert desk.api.stored["metadata"]["ownerReferences"][0]["uid"] == "another"

    told(story)


# --- the annotation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "held"),
    [
        ("", (False, None)),
        ("false", (False, None)),
        ("true", (True, None)),
        ("True", (True, None)),
        ("2026-11-22T18:00:00Z", (True, 1795370400.0)),
        ("2026-11-22T19:00:00+01:00", (True, 1795370400.0)),
        ("2026-11-22T18:00:00", (True, 1795370400.0)),
        ("1h", (True, None)),
    ],
)
def test_a_hold_is_a_time_or_true_and_whatever_else_is_written_holds_too(
    value: str, held: tuple[bool, float | None]
) -> None:
    assert agent.held_until(value) == held
