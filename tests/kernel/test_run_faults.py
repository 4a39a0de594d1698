"""`virtnet run` when its disk is full, read-only or damaged: what it cannot record it leaves alone, and says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernel.agent import Agent, eventually, gro, lay_lan, option, snapshot
from tests.kernel.playground import Playground

TAPS = "tap: {match: {names: ['tap*']}, offloads: {gro: false}, txQueueLength: 500}"
UNRECORDED = "cannot record the original"


@pytest.fixture(autouse=True)
def lan(playground: Playground) -> None:
    lay_lan(playground)


def queue(playground: Playground, link: str = "tap0") -> int:
    return int(playground.links()[link]["txqlen"])


def read_only(state: Path) -> str:
    """For `before`: the state directory as on a disk that was remounted read-only. Only this process sees it so."""
    return f"mount --bind {state} {state}; mount -o remount,bind,ro {state}"


def full(state: Path) -> str:
    """For `before`: the state directory on a small disk of its own that a file fills."""
    return f"mount -t tmpfs -o size=64k,mode=0700 none {state}; head -c 65536 /dev/zero > {state}/filler"


def in_private_mounts(what: str) -> str:
    """The shell that runs `what` and then the command, in a mount namespace of its own."""
    return f'set -- unshare --mount sh -ec \'{what}; exec "$@"\' sh "$@"'


def start_unwatched(agent: Agent, before: str) -> None:
    """Start an agent that cannot write state.json; it has made its first pass when this returns."""
    passes = agent.passes()
    agent.spawn(before=in_private_mounts(before))
    eventually(lambda: agent.passes() > passes or agent.has_ended())
    assert not agent.has_ended(), agent.log()


def test_on_a_read_only_disk_what_is_recorded_stays_enforced_and_the_rest_is_left_alone(
    agent: Agent, playground: Playground
) -> None:
    originals = snapshot(playground)
    agent.wish("taps", TAPS)
    agent.start()
    agent.stop()
    playground.batch("tuntap add tap1 mode tap", "link set tap0 txqueuelen 77")
    playground.run("ethtool -K tap0 gro on")
    start_unwatched(agent, read_only(agent.state))
    assert (queue(playground), gro(playground, "tap0")) == (500, False)
    assert (queue(playground, "tap1"), gro(playground, "tap1")) == (1000, True)
    assert f"tap.offloads.gro: Failed: {UNRECORDED}" in agent.log()
    playground.run("ethtool -K tap0 gro on")
    eventually(lambda: not gro(playground, "tap0"))
    agent.stop()
    agent.start()
    eventually(lambda: (queue(playground, "tap1"), gro(playground, "tap1")) == (500, False))
    playground.run("ip link del tap1")
    agent.unwish("taps")
    assert snapshot(playground) == originals


def test_on_a_full_disk_nothing_is_changed_until_there_is_room(agent: Agent, playground: Playground) -> None:
    before = snapshot(playground)
    agent.state.mkdir(mode=0o700)
    agent.wish("taps", TAPS)
    start_unwatched(agent, full(agent.state))
    assert UNRECORDED in agent.log()
    assert snapshot(playground) == before
    assert agent.child is not None
    inside = Path(f"/proc/{agent.child.pid}/root{agent.state}")
    (inside / "filler").unlink()
    eventually(lambda: (queue(playground), gro(playground, "tap0")) == (500, False))
    eventually((inside / "state.json").exists)


def test_a_transaction_whose_undoing_cannot_be_recorded_is_not_begun(agent: Agent, playground: Playground) -> None:
    agent.wish("lan", "bridge: {name: br0, ageingTimeSeconds: 60}")
    agent.start()
    agent.stop()
    playground.run("ip link set br0 type bridge ageing_time 1200")
    start_unwatched(agent, read_only(agent.state))
    assert "not begun: what would undo it cannot be recorded" in agent.log()
    assert option(playground, "br0", "ageing_time") == 1200


def test_what_was_never_recorded_is_not_restored_from_a_damaged_ledger_and_it_is_said(
    agent: Agent, playground: Playground
) -> None:
    agent.wish("taps", TAPS)
    agent.start()
    agent.kill()
    (journal,) = agent.state.glob("volatile/*.journal")
    journal.write_bytes(b"\x00 torn \xff" * 50 + b"\n")
    (agent.policies / "taps.yaml").unlink()
    agent.start()
    assert (queue(playground), gro(playground, "tap0")) == (500, False)
    assert "damaged" in agent.log()
    assert journal.with_name(f"{journal.name}.damaged").exists()


def test_a_state_directory_of_somebody_else_is_refused(agent: Agent, playground: Playground) -> None:
    before = snapshot(playground)
    agent.wish("taps", TAPS)
    agent.state.mkdir()
    agent.state.chmod(0o777)
    refused = agent.command("run", "--policies", str(agent.policies), "--listen", "")
    assert (refused.code, len(refused.err.splitlines())) == (1, 1)
    assert f"{agent.state} is writable by others (mode 0777); make it 0700" in refused.err
    assert snapshot(playground) == before
