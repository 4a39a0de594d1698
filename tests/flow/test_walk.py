"""Random policies on random hosts: the agent converges, harms nobody and loses no original, whatever happens.

Every property fails with its scenario as text, which tests.flow.walk runs again as it stands.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hypothesis import given, note, settings
from hypothesis import strategies as st

from tests.flow import scenarios
from tests.flow.fake import Killed
from tests.flow.walk import World, plain_words
from virtnet import errors, reconcile
from virtnet.core import links
from virtnet.core.model import HostState, Policy, Reason

POLICY = scenarios.policies().map("policy {}".format)
ENFORCED = scenarios.policies(modes=("Enforce",)).map("policy {}".format)
ANY_ACT = st.one_of(scenarios.edits(), scenarios.FOREIGN, scenarios.OF_THE_AGENT)
EXPECTED = frozenset({Reason.REFUSED, Reason.UNSUPPORTED, Reason.IN_USE})
"""What a host that nobody disturbs may answer to a change."""


def one_of(parts: int) -> settings:
    """A share of the examples of the profile in force, for properties that run each of theirs many times."""
    return settings(max_examples=settings().max_examples // parts)


def walked(host: str, acts: list[str], directory: Path | None = None) -> World:
    world = World(host, directory)
    for act in acts:
        world.step(act)
    return world


def check_converged(world: World, outcome: reconcile.Outcome) -> None:
    """A second pass changes nothing, writes nothing down, and finds nothing to do; nothing failed in the first."""
    assert world.host.violations == []
    assert {reason for reason, _ in outcome.failures.values()} <= EXPECTED
    assert [row for row in outcome.rows if row.reason is Reason.FAILED] == []
    check_rests(world)


def check_rests(world: World) -> reconcile.Outcome:
    """One more pass changes nothing and writes nothing down, and fresh eyes find nothing to do."""
    before, crossed = str(world.host), world.host.boundaries.crossed
    world.host.applied.clear()
    again = world.run()
    assert world.host.applied == []
    assert world.host.boundaries.crossed == crossed, "the second pass wrote something down"
    assert again.last.plan.steps == ()
    assert world.steps_left() == []
    assert str(world.host) == before
    return again


def check_stranger(world: World) -> None:
    """The link that no policy can mean is as it was."""
    assert world.host.line("idle0") == World(scenarios.STRANGER).host.line("idle0")


def check_nothing_lost(world: World, outcome: reconcile.Outcome) -> None:
    """Every word of every link that is left was there before us, or came from somebody else.

    A bridge of ours that somebody else put a port on stays, and that is said. What somebody renamed is his.
    """
    ours = set(world.agent.ledger.recorded.made)
    assert ours <= {row.subject.removeprefix("link/") for row in outcome.rows if row.reason is Reason.FOREIGN}
    for device in world.host.machine.devices.values():
        words = plain_words(world.host, device.link.name)
        foreign = words - world.seen.get(device.link.ifindex, set())
        if device.link.ifindex in world.host.judge.made and device.link.name not in foreign:
            continue
        assert device.link.name in ours or not foreign, f"{device.link.name} is left with {sorted(foreign)}"
    assert [line for line in originals(world) if " made by " not in line] == []


def originals(world: World) -> list[str]:
    """The ledger without what it says of links that we made: they go, whatever they were like at first."""
    made = tuple(f"{name} " for name in world.agent.ledger.recorded.made)
    return [line for line in str(world.agent.ledger).splitlines() if not line.startswith(made) or " made by " in line]


@contextmanager
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="virtnet-walk-") as path:
        yield Path(path) / "state"


# --- what holds after every act ----------------------------------------------------------------------------


@given(host=scenarios.hosts(), acts=scenarios.scripts(POLICY, longest=3))
def test_after_the_last_policy_the_host_is_as_before(host: str, acts: list[str]) -> None:
    note(scenarios.shown(host, acts))
    world = World(host)
    for act in acts:
        check_converged(world, world.step(act))
    check_converged(world, world.end())
    untouched = World(host)
    untouched.calm()
    assert str(world.host) == str(untouched.host)
    assert str(world.agent.ledger) == ""


@given(host=scenarios.hosts(), acts=scenarios.scripts(ANY_ACT, longest=8))
def test_whatever_others_do_every_pass_converges_and_no_original_is_lost(host: str, acts: list[str]) -> None:
    note(scenarios.shown(host, acts))
    world = World(host)
    for act in acts:
        check_converged(world, world.step(act))
    last_pass = world.end()
    check_converged(world, last_pass)
    check_stranger(world)
    check_nothing_lost(world, last_pass)


@one_of(5)
@given(host=scenarios.hosts(), acts=scenarios.scripts(scenarios.DURING_A_PASS, longest=3), last=ENFORCED)
def test_others_may_act_between_any_two_changes_of_a_pass(host: str, acts: list[str], last: str) -> None:
    note(scenarios.shown(host, [*acts, last]))
    for count in itertools.count(0, 2):
        world = World(host)
        world.act(last)
        for step, act in enumerate(acts):
            world.host.boundaries.at(count + step, lambda world=world, act=act: world.act(act))  # type: ignore[misc]
        world.run()
        if world.host.boundaries.crossed <= count:
            break
        world.host.boundaries.calm()
        world.run()
        check_converged(world, world.run())
        last_pass = world.end()
        check_converged(world, last_pass)
        check_nothing_lost(world, last_pass)


# --- faults and kills --------------------------------------------------------------------------------------


@one_of(5)
@given(host=scenarios.hosts(), acts=scenarios.scripts(ANY_ACT, longest=3), last=POLICY)
def test_a_kill_at_any_boundary_and_a_restart_end_as_if_nothing_had_happened(
    host: str, acts: list[str], last: str
) -> None:
    note(scenarios.shown(host, [*acts, last]))
    whole = walked(host, [*acts, last])
    for count in itertools.count():
        world = walked(host, acts)
        world.host.boundaries.die_after(count)
        try:
            world.step(last)
        except Killed:
            world.agent.restart()
        else:
            break
        world.run()
        assert str(world.host) == str(whole.host), f"killed at boundary {count}"
        assert originals(world) == originals(whole), f"killed at boundary {count}"
        check_rests(world)


@one_of(5)
@given(host=scenarios.hosts(), acts=scenarios.scripts(ANY_ACT, longest=3), last=POLICY)
def test_a_failure_of_any_change_is_made_good_by_the_next_pass(host: str, acts: list[str], last: str) -> None:
    note(scenarios.shown(host, [*acts, last]))
    whole = walked(host, [*acts, last])
    for count in itertools.count():
        for late in (False, True):
            world = walked(host, acts)
            calls = itertools.count()
            world.host.fail(lambda _: next(calls) == count, errors.Temporary("try again"), late=late)  # noqa: B023
            world.step(last)
            world.host.heal()
            world.run()
            assert str(world.host) == str(whole.host), f"change {count} failed, late={late}"
            assert originals(world) == originals(whole), f"change {count} failed, late={late}"
            check_rests(world)
        if next(calls) <= count:
            break


@one_of(5)
@given(host=scenarios.hosts(), acts=scenarios.scripts(ANY_ACT, longest=3), last=ENFORCED)
def test_nothing_is_touched_whose_original_could_not_be_written(host: str, acts: list[str], last: str) -> None:
    note(scenarios.shown(host, [*acts, last]))
    whole = walked(host, [*acts, last])
    for count in itertools.count():
        world = walked(host, acts)
        here = world.host.boundaries.crossed
        world.host.boundaries.at(count, world.agent.ledger.fail)
        world.step(last)
        if world.host.boundaries.crossed - here < count:
            break
        assert world.host.violations == []
        world.agent.restart()
        world.run()
        assert str(world.host) == str(whole.host), f"the disk was full from boundary {count} on"
        check_rests(world)


# --- removing, auditing, holding ---------------------------------------------------------------------------


@one_of(2)
@given(
    host=scenarios.hosts(),
    acts=scenarios.scripts(scenarios.policies(deletion=("Retain",)).map("policy {}".format), longest=3),
)
def test_retain_leaves_everything_as_it_is(host: str, acts: list[str]) -> None:
    note(scenarios.shown(host, acts))
    world = walked(host, acts)
    world.calm()
    world.run()
    enforced = str(world.host)
    check_converged(world, world.end())
    assert str(world.host) == enforced
    assert str(world.agent.ledger) == ""


@one_of(2)
@given(host=scenarios.hosts(), policies=st.lists(scenarios.policies(modes=("Enforce",)), min_size=1, max_size=3))
def test_audit_changes_nothing_and_keeps_the_originals(host: str, policies: list[str]) -> None:
    acts = [f"policy {policy}" for policy in policies]
    note(scenarios.shown(host, acts))
    world = walked(host, acts)
    enforced, originals = str(world.host), str(world.agent.ledger)
    for policy in policies:
        world.act(f"policy {_audited(policy)}")
    check_converged(world, world.run())
    assert str(world.host) == enforced
    assert str(world.agent.ledger) == originals
    for act in acts:
        world.act(act)
    check_converged(world, world.run())
    assert str(world.host) == enforced


def _audited(policy: str) -> str:
    return policy.replace("mode: Enforce", "mode: Audit")


@one_of(2)
@given(host=scenarios.hosts(), acts=scenarios.scripts(ANY_ACT, longest=4), last=st.one_of(ENFORCED, scenarios.FOREIGN))
def test_while_the_node_is_held_nothing_is_changed(host: str, acts: list[str], last: str) -> None:
    note(scenarios.shown(host, [*acts, "held", last]))
    world = walked(host, [*acts, "held"])
    world.act(last)
    world.host.applied.clear()
    world.run()
    assert world.host.applied == []
    check_converged(world, world.step("unheld"))


# --- transactions ------------------------------------------------------------------------------------------


def risky_values(look: reconcile.Look, state: HostState) -> dict[tuple[str, str], object]:
    """What the settings of a look's transactions are in a state, by name: what was removed comes back as another."""
    risky = [setting for step in look.plan.steps if step.risky for setting, _ in step.settings]
    names = [(look.state.links[setting.target].name, setting.key) for setting in risky if setting.key != "exists"]
    there = {(name, key): state.by_name(name) for name, key in names}
    return {(name, key): links.current_value(state, link, key) for (name, key), link in there.items() if link}


@one_of(4)
@given(host=scenarios.hosts(), acts=scenarios.scripts(ENFORCED, longest=2), last=ENFORCED)
def test_a_lost_gateway_puts_a_transaction_back_until_the_policy_changes(host: str, acts: list[str], last: str) -> None:
    note(scenarios.shown(host, [*acts, last]))
    with directory() as path:
        world = walked(host, acts, path / "state")
        world.agent.prober.lost = True
        outcome = world.step(last)
        assert world.host.violations == []
        assert risky_values(outcome.first, outcome.last.state) == risky_values(outcome.first, outcome.first.state)
        check_rests(world)
        world.agent.restart()
        world.agent.prober.lost = False
        check_rests(world)
        for name, policy in list(world.policies.items()):
            world.policies[name] = _next_generation(policy)
        check_converged(world, world.run())
        assert str(world.host) == str(walked(host, [*acts, last]).host)
        check_converged(world, world.end())


def _next_generation(policy: Policy) -> Policy:
    return replace(policy, generation=policy.generation + 1)


@one_of(5)
@given(host=scenarios.hosts(), acts=scenarios.scripts(ENFORCED, longest=2), last=ENFORCED)
def test_a_transaction_that_is_killed_goes_back_at_the_next_start(host: str, acts: list[str], last: str) -> None:
    note(scenarios.shown(host, [*acts, last]))
    whole = walked(host, [*acts, last])
    with directory() as path:
        for count in itertools.count():
            world = walked(host, acts, path / str(count))
            world.host.boundaries.die_after(count)
            try:
                world.step(last)
            except Killed:
                world.agent.restart()
            else:
                break
            world.agent.forgive()
            world.run()
            assert str(world.host) == str(whole.host), f"killed at boundary {count}"
            check_rests(world)
            check_converged(world, world.end())
            untouched = World(host)
            untouched.calm()
            assert str(world.host) == str(untouched.host), f"killed at boundary {count}"
