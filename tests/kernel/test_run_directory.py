"""How `virtnet run` follows its directory: renames, symlink swaps, half-written, bad and missing files, restarts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kernel.agent import Agent, eventually, manifest, replace
from tests.kernel.playground import Playground

TAP = "tap: {match: {names: [tap0]}, txQueueLength: %d}"
USUAL = 1000


@pytest.fixture(autouse=True)
def tap(playground: Playground) -> None:
    playground.batch("tuntap add tap0 mode tap", "tuntap add tap1 mode tap")


def queue(playground: Playground, link: str = "tap0") -> int:
    return int(playground.links()[link]["txqlen"])


def complaint(agent: Agent) -> str:
    """What the condition Ready says of policies that cannot be read; empty when it is true."""
    status, _, message = agent.condition("Ready")
    return "" if status == "True" else message


def test_files_that_are_written_renamed_and_removed_are_followed(agent: Agent, playground: Playground) -> None:
    agent.start()
    assert queue(playground) == USUAL
    agent.wish("one", TAP % 100)
    eventually(lambda: queue(playground) == 100)
    replace(agent.policies / "one.yaml", manifest("one", TAP % 200))
    eventually(lambda: queue(playground) == 200)
    (agent.policies / "one.yaml").rename(agent.policies / "two.yml")
    agent.wish("other", "tap: {match: {names: [tap1]}, txQueueLength: 100}")
    eventually(lambda: queue(playground, "tap1") == 100)
    assert queue(playground) == 200
    (agent.policies / "two.yml").unlink()
    eventually(lambda: queue(playground) == USUAL)


def test_only_policy_files_directly_in_the_directory_count(agent: Agent, playground: Playground) -> None:
    nested = agent.policies / "nested.yaml"
    nested.mkdir()
    for path in (nested / "a.yaml", agent.policies / ".hidden.yaml", agent.policies / "a.yaml~", agent.policies / "a"):
        path.write_text(manifest("a", TAP % 100))
    (agent.policies / "b.json").write_text(
        '{"apiVersion": "virtnet.dev/v1alpha1", "kind": "VirtioNetworkPolicy", "metadata": {"name": "b"},'
        ' "spec": {"tap": {"match": {"names": ["tap1"]}, "txQueueLength": 100}}}'
    )
    agent.start()
    assert (queue(playground), queue(playground, "tap1")) == (USUAL, 100)
    assert complaint(agent) == ""


def test_a_config_map_is_followed_through_its_symlinks(agent: Agent, playground: Playground) -> None:
    """As kubelet's atomic writer does: DIR/lan.yaml -> ..data/lan.yaml, and ..data is swapped as a whole."""
    publish(agent.policies, "..first", TAP % 100)
    (agent.policies / "lan.yaml").symlink_to("..data/lan.yaml")
    agent.start()
    assert queue(playground) == 100
    publish(agent.policies, "..second", TAP % 200)
    eventually(lambda: queue(playground) == 200)


def publish(directory: Path, version: str, spec: str) -> None:
    (directory / version).mkdir()
    (directory / version / "lan.yaml").write_text(manifest("lan", spec))
    (directory / "..new").symlink_to(version)
    (directory / "..new").rename(directory / "..data")


def test_a_directory_that_is_itself_a_swapped_symlink_is_followed(
    agent: Agent, playground: Playground, tmp_path: Path
) -> None:
    """As git-sync does."""
    for version, length in (("v1", 100), ("v2", 200)):
        (tmp_path / version).mkdir()
        (tmp_path / version / "lan.yaml").write_text(manifest("lan", TAP % length))
    agent.policies.rmdir()
    agent.policies.symlink_to("v1")
    agent.start()
    assert queue(playground) == 100
    (tmp_path / "new").symlink_to("v2")
    (tmp_path / "new").rename(agent.policies)
    eventually(lambda: queue(playground) == 200)


def test_a_half_written_file_changes_nothing_until_it_is_whole(agent: Agent, playground: Playground) -> None:
    agent.wish("lan", TAP % 100)
    agent.start()
    whole = manifest("lan", TAP % 200)
    with (agent.policies / "lan.yaml").open("w") as stream:
        stream.write(whole[: whole.index("spec")] + "spec: {tap: {match")
        stream.flush()
        eventually(lambda: "its last good version stays in force" in complaint(agent))
        assert queue(playground) == 100
        stream.seek(0)
        stream.write(whole)
    eventually(lambda: queue(playground) == 200)
    eventually(lambda: complaint(agent) == "")


def test_a_bad_file_is_reported_and_its_last_good_version_stays_in_force_over_a_restart(
    agent: Agent, playground: Playground
) -> None:
    agent.wish("lan", TAP % 100)
    agent.start()
    agent.wish("lan", "tap: {match: {names: [tap0]}, txQueueLenght: 200}", generation=2)
    agent.wish("good", "tap: {match: {names: [tap1]}, txQueueLength: 100}")
    eventually(lambda: queue(playground, "tap1") == 100)
    bad = agent.policies / "lan.yaml"
    eventually(lambda: f"{bad}:5: spec.tap.txQueueLenght" in complaint(agent))
    assert queue(playground) == 100
    agent.kill()
    playground.run("ip link set tap0 txqueuelen 77")
    agent.start()
    assert (queue(playground), queue(playground, "tap1")) == (100, 100)
    assert "its last good version stays in force" in complaint(agent)
    bad.unlink()
    eventually(lambda: queue(playground) == USUAL)
    eventually(lambda: complaint(agent) == "")


def test_a_file_that_was_never_good_is_reported_and_the_others_are_in_force(
    agent: Agent, playground: Playground
) -> None:
    (agent.policies / "bad.yaml").write_text("kind: [")
    agent.wish("lan", TAP % 100)
    agent.start()
    assert queue(playground) == 100
    assert f"{agent.policies / 'bad.yaml'}:1" in complaint(agent)
    assert agent.condition("Ready")[1] == "Unreadable"


def test_a_directory_that_goes_away_keeps_the_last_good_set_also_over_a_restart(
    agent: Agent, playground: Playground
) -> None:
    agent.wish("lan", TAP % 100)
    agent.start()
    away = agent.policies.with_name("away")
    agent.policies.rename(away)
    eventually(lambda: "the policies last read there stay in force" in complaint(agent))
    assert queue(playground) == 100
    agent.stop()
    playground.run("ip link set tap0 txqueuelen 77")
    agent.start()
    assert queue(playground) == 100
    assert str(agent.policies) in complaint(agent)
    away.rename(agent.policies)
    eventually(lambda: complaint(agent) == "")
    assert queue(playground) == 100


def test_a_directory_that_never_was_there_is_said_and_followed_when_it_comes(
    agent: Agent, playground: Playground
) -> None:
    agent.policies.rmdir()
    agent.spawn()
    eventually(lambda: "no policies were ever read there, so nothing is changed" in agent.log())
    assert queue(playground) == USUAL
    agent.policies.mkdir()
    agent.wish("lan", TAP % 100)
    eventually(lambda: queue(playground) == 100)


def test_an_empty_directory_means_that_all_policies_are_gone_also_after_a_restart(
    agent: Agent, playground: Playground
) -> None:
    agent.wish("lan", TAP % 100)
    agent.start()
    agent.stop()
    (agent.policies / "lan.yaml").unlink()
    agent.start()
    assert queue(playground) == USUAL
    assert agent.condition("Ready")[:2] == ("True", "NoPolicies")


def test_a_directory_that_everybody_may_write_is_refused(agent: Agent, playground: Playground) -> None:
    agent.wish("lan", TAP % 100)
    agent.policies.chmod(0o777)
    refused = agent.command("run", "--policies", str(agent.policies), "--listen", "")
    assert (refused.code, refused.out) == (1, "")
    assert "is writable by everybody (mode 0777): chmod o-w" in refused.err
    assert queue(playground) == USUAL


def test_a_directory_that_becomes_writable_by_everybody_is_no_longer_followed(
    agent: Agent, playground: Playground
) -> None:
    agent.wish("lan", TAP % 100)
    agent.start()
    agent.policies.chmod(0o777)
    agent.wish("lan", TAP % 200)
    eventually(lambda: "is writable by everybody" in complaint(agent))
    assert queue(playground) == 100
    agent.policies.chmod(0o755)
    eventually(lambda: queue(playground) == 200)


def test_of_two_files_with_one_name_the_later_is_refused_and_both_are_named(
    agent: Agent, playground: Playground
) -> None:
    (agent.policies / "a.yaml").write_text(manifest("lan", TAP % 100))
    (agent.policies / "b.yaml").write_text(manifest("lan", TAP % 200))
    agent.start()
    assert queue(playground) == 100
    first, second = agent.policies / "a.yaml", agent.policies / "b.yaml"
    assert f"{second}:3: metadata.name: lan is already in {first}:3" in complaint(agent)
    os.unlink(first)
    eventually(lambda: queue(playground) == 200)
    eventually(lambda: complaint(agent) == "")
