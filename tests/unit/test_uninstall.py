"""`virtnet release-nodes`: every node is asked, waited for and only then forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.agent.objects import Object
from tests.agent.server import NODE_STATES, TOKEN, ApiServer
from virtnet import errors
from virtnet.cli import release_nodes
from virtnet.kube import uninstall
from virtnet.kube.connection import Connection
from virtnet.kube.credentials import Server, TokenFile

Story = Callable[[ApiServer, Connection], Awaitable[None]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uninstall, "PAUSE_SECONDS", 0.02)


def on_a_server(tmp_path: Path, story: Story) -> None:
    async def told() -> None:
        token = tmp_path / "token"
        token.write_text(TOKEN)
        server = ApiServer()
        await server.start()
        connection = Connection(Server(server.url, token=TokenFile(token)))
        try:
            await story(server, connection)
        finally:
            await connection.close()
            await server.stop()
        assert server.surprises == []

    asyncio.run(told())


def state(name: str, *, released: str = "", reason: str = "Releasing", left: str = "") -> Object:
    """A node state; `released` is the condition's status, "" when the agent has never spoken of it."""
    condition = {"type": "Released", "status": released, "reason": reason, "message": "being put back"}
    settings = [{"subject": "link/eth0", "setting": "uplink.offloads.tso", "message": left}] if left else []
    return {"metadata": {"name": name}, "status": {"conditions": [condition] if released else [], "settings": settings}}


def put(server: ApiServer, one: Object) -> None:
    server.create(NODE_STATES, one)
    server.merge(NODE_STATES, one["metadata"]["name"], {"status": one["status"]}, subresource="status")


def names(server: ApiServer) -> list[str]:
    return [one["metadata"]["name"] for one in server.objects[NODE_STATES.plural].select()]


async def answer(server: ApiServer, *nodes: str, times: int = 200) -> None:
    """What the agents of these nodes do: released, as soon as they are asked."""
    waiting = set(nodes)
    for _ in range(times):
        for one in server.objects[NODE_STATES.plural].select():
            name = one["metadata"]["name"]
            if name in waiting and one["metadata"].get("annotations", {}).get("virtnet.dev/release"):
                server.merge(NODE_STATES, name, {"status": state(name, released="True")["status"]}, "status")
                waiting.remove(name)
        if not waiting:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"never asked: {waiting}")


def test_every_node_is_asked_waited_for_and_its_state_deleted_last(tmp_path: Path) -> None:
    async def story(server: ApiServer, connection: Connection) -> None:
        many = [f"node-{number}" for number in range(40)]
        for name in many:
            put(server, state(name))
        answering = asyncio.create_task(answer(server, *many))
        assert await uninstall.release(connection, seconds=20) == ()
        await answering
        assert names(server) == []
        writes = [each.method for each in server.asked if each.is_write]
        assert writes == ["PATCH"] * 40 + ["DELETE"] * 40

    on_a_server(tmp_path, story)


def test_nodes_that_do_not_answer_are_named_with_what_their_agents_say_and_nothing_is_deleted(tmp_path: Path) -> None:
    async def story(server: ApiServer, connection: Connection) -> None:
        put(server, state("good"))
        put(server, state("silent"))
        put(server, state("failing", released="False", left="the driver said no"))
        put(server, state("hung", released="False", reason="NotReleased"))
        answering = asyncio.create_task(answer(server, "good"))
        laggards = await uninstall.release(connection, seconds=0.5)
        await answering
        assert [str(laggard) for laggard in laggards] == [
            "failing: being put back; link/eth0 uplink.offloads.tso: the driver said no",
            "hung: its agent has not taken it up: is it running?",
            "silent: its agent has not taken it up: is it running?",
        ]
        assert names(server) == ["failing", "good", "hung", "silent"]
        assert server.count("DELETE") == 0

    on_a_server(tmp_path, story)


def test_a_release_of_before_counts_only_when_it_is_asked_for_now(tmp_path: Path) -> None:
    async def story(server: ApiServer, connection: Connection) -> None:
        put(server, state("a", released="True"))
        assert await uninstall.release(connection, seconds=5) == ()
        assert [each.method for each in server.asked] == ["GET", "PATCH", "GET", "DELETE"]

    on_a_server(tmp_path, story)


def test_a_node_that_joins_meanwhile_is_asked_too(tmp_path: Path) -> None:
    async def story(server: ApiServer, connection: Connection) -> None:
        put(server, state("a"))
        releasing = asyncio.create_task(uninstall.release(connection, seconds=20))
        await asyncio.sleep(0.1)
        put(server, state("b"))
        await answer(server, "b", "a")
        assert await releasing == ()
        assert names(server) == []

    on_a_server(tmp_path, story)


def test_a_cluster_without_node_states_is_released_at_once(tmp_path: Path) -> None:
    async def story(server: ApiServer, connection: Connection) -> None:
        assert await uninstall.release(connection, seconds=5) == ()
        assert [each.method for each in server.asked] == ["GET"]

    on_a_server(tmp_path, story)


def test_an_api_server_that_does_not_answer_is_waited_for(tmp_path: Path) -> None:
    async def story(server: ApiServer, connection: Connection) -> None:
        put(server, state("a"))
        await server.stop()
        releasing = asyncio.create_task(uninstall.release(connection, seconds=20))
        await asyncio.sleep(0.2)
        await server.start()
        await answer(server, "a")
        assert await releasing == ()

    on_a_server(tmp_path, story)


def test_an_api_server_that_never_answers_is_a_laggard_by_itself(tmp_path: Path) -> None:
    async def story(server: ApiServer, connection: Connection) -> None:
        await server.stop()
        (laggard,) = await uninstall.release(connection, seconds=0.2)
        assert laggard.node == "every node"
        assert "GET /apis/virtnet.dev/v1alpha1/virtionetworknodestates" in laggard.why

    on_a_server(tmp_path, story)


def test_a_missing_permission_is_said_at_once(tmp_path: Path) -> None:
    async def story(server: ApiServer, connection: Connection) -> None:
        put(server, state("a"))
        server.refuse = lambda request: 403 if request.method == "PATCH" else None
        with pytest.raises(errors.Forbidden):
            await uninstall.release(connection, seconds=20)

    on_a_server(tmp_path, story)


def test_definitions_that_are_gone_leave_nothing_to_release(tmp_path: Path) -> None:
    async def story(server: ApiServer, connection: Connection) -> None:
        server.removed.add(NODE_STATES.plural)
        assert await uninstall.release(connection, seconds=5) == ()

    on_a_server(tmp_path, story)


@pytest.mark.parametrize("wrong", [["--timeout", "0"], ["--timeout", "soon"], ["--nonsense"]])
def test_a_wrong_command_line_ends_with_1_and_a_sentence(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        release_nodes.main(wrong)
    assert ended.value.code == 1
    assert "--help shows how" in capsys.readouterr().err
