"""The state directory on a real disk: who may hold it, what a damaged or unwritable file does, what comes back."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtnet.core import model
from virtnet.core.model import Change, CreateTap, Identity, Ref, SetBridgeOptions, SetFeatures, SetMaster, Setting
from virtnet.errors import LedgerError, StateBusy, UsageError
from virtnet.host import codec, records
from virtnet.host import state as states
from virtnet.host.records import EVERYTHING, CachedPolicy, Holds, Pending, Refusal, RolledBack
from virtnet.host.state import StateDir

HERE = Identity("boot-1", "netns-1")

HOLDER = """
    import sys, time
    from virtnet.host.state import StateDir
    with StateDir(sys.argv[1]).lock():
        print("held", flush=True)
        time.sleep(60)
"""


@contextlib.contextmanager
def another_holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    operator = Path(__file__).parents[2] / "operator"
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(path)]
    environment = {**os.environ, "PYTHONPATH": str(operator)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """The kernel refuses to let a file of this process grow beyond `size` bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(path: Path) -> set[str]:
    return {str(found.relative_to(path)) for found in path.rglob("*")}


# --- the directory -----------------------------------------------------------------------------------------


def test_the_directory_and_its_parents_are_made_for_the_owner_alone(tmp_path: Path) -> None:
    StateDir(tmp_path / "virtnet" / "netns" / "blue").prepare()
    made = ["virtnet", "virtnet/netns", "virtnet/netns/blue", "virtnet/netns/blue/volatile"]
    assert {name: f"{(tmp_path / name).stat().st_mode & 0o7777:o}" for name in made} == dict.fromkeys(made, "700")


def test_preparing_twice_changes_nothing(state: StateDir) -> None:
    before = names(state.path)
    state.prepare()
    assert names(state.path) == before


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o1777])
def test_a_directory_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(UsageError, match=rf"writable by others \(mode {mode:04o}\); make it 0700"):
        StateDir(tmp_path).prepare()


def status(kind: int, owner: int, mode: int = 0o700) -> os.stat_result:
    return os.stat_result((kind | mode, 1, 1, 1, owner, owner, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("link", "there", "why"),
    [
        (status(stat.S_IFDIR, 0), status(stat.S_IFDIR, 0), ""),
        (status(stat.S_IFDIR, 1000), status(stat.S_IFDIR, 1000), ""),
        (status(stat.S_IFLNK, 0, 0o777), status(stat.S_IFDIR, 1000), ""),
        (status(stat.S_IFDIR, 7), status(stat.S_IFDIR, 7), "belongs to user 7; use a directory of your own"),
        (status(stat.S_IFLNK, 7), status(stat.S_IFDIR, 0), "is a symbolic link of user 7; use a directory of your own"),
        (
            status(stat.S_IFLNK, 0),
            status(stat.S_IFDIR, 7),
            "leads to a directory of user 7; use a directory of your own",
        ),
        (status(stat.S_IFLNK, 0), status(stat.S_IFDIR, 0, 0o770), "is writable by others (mode 0770); make it 0700"),
    ],
)
def test_a_directory_that_somebody_else_can_change_is_not_trusted(
    link: os.stat_result, there: os.stat_result, why: str
) -> None:
    assert states.distrust(link, there, user=1000) == why


def test_a_symbolic_link_of_our_own_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "state").symlink_to("elsewhere")
    StateDir(tmp_path / "state").prepare()
    assert names(tmp_path / "elsewhere") == {"volatile"}


def test_a_symbolic_link_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "state").symlink_to("elsewhere")
    with pytest.raises(LedgerError, match="No such file or directory"):
        StateDir(tmp_path / "state").prepare()


def test_a_file_in_the_place_of_the_directory_is_an_error_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(LedgerError, match="is not a directory"):
        StateDir(tmp_path / "state").prepare()
    with pytest.raises(LedgerError, match="cannot be prepared: Not a directory"):
        StateDir(tmp_path / "state" / "below").prepare()


# --- who holds it ------------------------------------------------------------------------------------------


def test_nobody_holds_a_directory_that_is_new_or_let_go(state: StateDir) -> None:
    assert state.holder() is None
    with state.lock():
        assert state.holder() == os.getpid()
    assert state.holder() is None
    assert (state.path / "lock").read_text() == ""


def test_a_second_process_is_told_the_pid_of_the_first(state: StateDir) -> None:
    with another_holder(state.path) as process:
        assert state.holder() == process.pid
        with pytest.raises(StateBusy, match=f"held by the virtnet process {process.pid}") as refused, state.lock():
            pytest.fail("two processes hold the directory")
        assert refused.value.pid == process.pid


def test_a_killed_holder_lets_go_and_its_pid_is_not_believed(state: StateDir) -> None:
    with another_holder(state.path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (state.path / "lock").read_text() == f"{process.pid}\n"
    assert state.holder() is None
    with open(state.path / "lock") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert state.holder() == 0
        with pytest.raises(StateBusy, match="held by another virtnet process"), state.lock():
            pytest.fail("two processes hold the directory")


def test_the_lock_is_let_go_when_the_block_fails(state: StateDir) -> None:
    with pytest.raises(ZeroDivisionError), state.lock():
        raise ZeroDivisionError
    with state.lock():
        assert state.holder() == os.getpid()


def test_asking_who_holds_it_never_keeps_anybody_out(state: StateDir) -> None:
    (state.path / "lock").touch()
    with open(state.path / "lock") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        assert state.holder() is None


# --- whole files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [True, False])
def test_a_value_comes_back_and_is_written_only_when_it_differs(state: StateDir, durable: bool) -> None:
    value = {"a": [1, None, "\udc80"], "b": True}
    assert state.write_json("x.json", value, durable=durable)
    inode = (state.path / "x.json").stat().st_ino
    assert state.read_json("x.json") == value
    assert not state.write_json("x.json", dict(reversed(value.items())), durable=durable)
    assert (state.path / "x.json").stat().st_ino == inode
    assert state.write_json("x.json", 2, durable=durable)
    assert names(state.path) == {"x.json", "volatile"}
    assert (state.path / "x.json").stat().st_mode & 0o777 == 0o600


def test_an_absent_file_is_none_and_removing_it_is_success(state: StateDir) -> None:
    assert state.read_json("x.json") is None
    state.remove("x.json", durable=True)
    state.write_json("x.json", 1, durable=False)
    state.remove("x.json", durable=True)
    assert state.read_json("x.json") is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"\0" * 50], ids=["empty", "half", "binary", "deep", "zeros"]
)
def test_a_damaged_file_is_set_aside_and_said(state: StateDir, content: bytes) -> None:
    (state.path / "x.json").write_bytes(content)
    assert state.read_json("x.json") is None
    assert (state.path / "x.json.damaged").read_bytes() == content
    (said,) = state.problems
    assert "x.json was damaged (not JSON:" in said
    assert "kept as x.json.damaged and not used" in said
    assert state.read_json("x.json") is None
    assert len(state.problems) == 1


def test_a_write_that_the_disk_refuses_leaves_the_old_file_and_no_rubbish(state: StateDir) -> None:
    state.write_json("x.json", "old", durable=True)
    with files_at_most(1000), pytest.raises(LedgerError, match=r"x\.json cannot be written: File too large"):
        state.write_json("x.json", "n" * 2000, durable=True)
    assert state.read_json("x.json") == "old"
    assert names(state.path) == {"x.json", "volatile"}


def test_a_file_that_cannot_be_read_is_an_error_and_not_absent(state: StateDir) -> None:
    (state.path / "x.json").mkdir()
    with pytest.raises(LedgerError, match=r"x\.json cannot be read: Is a directory"):
        state.read_json("x.json")


def test_one_who_only_looks_writes_makes_and_moves_nothing(state: StateDir) -> None:
    (state.path / "x.json").write_text("{")
    before = names(state.path)
    looking = StateDir(state.path, read_only=True)
    looking.prepare()
    assert looking.read_json("x.json") is None
    assert "x.json is damaged" in looking.problems[0]
    for act in (
        lambda: looking.write_json("y.json", 1, durable=False),
        lambda: looking.remove("x.json", durable=False),
        lambda: looking.lock().__enter__(),
        lambda: looking.changing().__enter__(),
    ):
        with pytest.raises(LedgerError, match="open only for reading"):
            act()
    assert names(state.path) == before


def test_one_who_only_looks_does_not_make_the_directory(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="No such file or directory"):
        StateDir(tmp_path / "absent", read_only=True).prepare()
    assert names(tmp_path) == set()


# --- records -----------------------------------------------------------------------------------------------


def test_cached_policies_come_back(state: StateDir) -> None:
    assert records.read_policies(state) == {}
    policies = {"10-base.yaml": CachedPolicy("kind: VirtioNetworkPolicy\n# ü\n")}
    records.write_policies(state, policies)
    assert records.read_policies(state) == policies


def test_a_hold_ends_by_itself_and_one_without_an_end_does_not(state: StateDir) -> None:
    records.add_hold(state, "eth0", 1000.5, now=900)
    records.add_hold(state, EVERYTHING, 950, now=900)
    held = records.add_hold(state, "tap1", None, now=900)
    assert records.read_holds(state) == Holds({"eth0": 1001, EVERYTHING: 950, "tap1": None})
    assert held.covers("other", 949)
    assert not held.covers("other", 950)
    assert dict(records.read_holds(state).active(1000.9)) == {"eth0": 1001, "tap1": None}
    assert dict(records.read_holds(state).active(1001)) == {"tap1": None}


def test_holds_that_are_over_are_cleared_away_with_the_next_change(state: StateDir) -> None:
    records.add_hold(state, "eth0", 1000, now=900)
    records.add_hold(state, "tap1", None, now=1000)
    assert set(json.loads((state.path / "holds.json").read_text())) == {"tap1"}
    records.remove_hold(state, "tap1", now=1000)
    records.remove_hold(state, "never-held", now=1000)
    assert records.read_holds(state) == Holds({})


def test_a_hold_can_be_placed_while_an_agent_holds_the_directory(state: StateDir) -> None:
    with another_holder(state.path):
        records.add_hold(state, "eth0", None, now=0)
    assert records.read_holds(state).covers("eth0", 0)


def test_people_can_read_when_a_hold_ends(state: StateDir) -> None:
    records.add_hold(state, "eth0", 1_700_000_000, now=0)
    assert json.loads((state.path / "holds.json").read_text()) == {"eth0": "2023-11-14T22:13:20+00:00"}


@pytest.mark.parametrize("end", ["tomorrow", "2026-01-01T00:00:00"])
def test_a_hold_with_an_end_that_is_no_moment_is_said_and_not_guessed(state: StateDir, end: str) -> None:
    state.write_json("holds.json", {"eth0": end}, durable=False)
    assert records.read_holds(state) == Holds({})
    assert "holds.json was damaged" in state.problems[0]


def test_rolled_back_policies_come_back(state: StateDir) -> None:
    rolled_back = {"vms": RolledBack("3/abc", "gateway 192.0.2.1 did not answer", (("br0", "mtu"),), "boot-1")}
    records.write_rolled_back(state, rolled_back)
    assert records.read_rolled_back(state) == rolled_back


def test_refusals_hold_for_this_boot_and_namespace_alone(state: StateDir) -> None:
    refusals = (Refusal(Setting(7, "feature:rx-lro"), "eth0", False, True), Refusal(Setting(8, "mtu"), "b", 9000, None))
    records.write_refusals(state, HERE, refusals)
    assert records.read_refusals(state, HERE) == refusals
    assert (state.volatile / "refusals.json").exists()
    assert records.read_refusals(state, Identity("boot-2", "netns-1")) == ()
    assert records.read_refusals(state, Identity("boot-1", "netns-2")) == ()


def test_a_pending_transaction_comes_back_in_order_and_can_be_forgotten_twice(state: StateDir) -> None:
    inverse: tuple[Change, ...] = (
        SetMaster(Ref("eth0", 2), None),
        SetBridgeOptions(Ref("br0", 5), (("stp", False), ("forwardDelaySeconds", 15))),
        CreateTap("tap0", owner=107),
        SetFeatures(Ref("eth0", 2), mask=1 << 70, value=1 << 70),
    )
    pending = Pending("vms", "3/abc", HERE, (("eth0", "master"),), inverse)
    records.write_pending(state, pending)
    assert records.read_pending(state) == pending
    records.forget_pending(state)
    records.forget_pending(state)
    assert records.read_pending(state) is None


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ({"type": "FormatDisk"}, "must be a known change, not 'FormatDisk'"),
        ({"mtu": "1500"}, "inverse[0].mtu must be int, not '1500'"),
        ({"mtu": True}, "inverse[0].mtu must be int, not True"),
        ({"extra": 1}, "inverse[0] must be an object of link, mtu"),
        ({"link": {"name": "eth0"}}, "inverse[0].link must be an object of name, ifindex"),
        ({"link": 7}, "inverse[0].link must be an object"),
    ],
)
def test_a_transaction_that_does_not_fit_is_set_aside_whole(state: StateDir, damage: dict[str, Any], why: str) -> None:
    pending = Pending("vms", "1/a", HERE, (), (model.SetMtu(Ref("eth0", 2), 1500),))
    raw = codec.encode(pending)
    raw["inverse"][0].update(damage)
    state.write_json("transaction.json", raw, durable=False)
    assert records.read_pending(state) is None
    assert why in state.problems[0]


# --- the codec ---------------------------------------------------------------------------------------------

REFS = st.builds(Ref, st.text(), st.integers())


def changes(of: Any) -> st.SearchStrategy[Change]:
    """Instances of one class of change, each field from its type."""
    return st.builds(of, **{name: from_hint(hint) for name, hint in typing.get_type_hints(of).items()})


def from_hint(hint: Any) -> st.SearchStrategy[Any]:
    return REFS if hint is Ref else st.from_type(hint)


@given(st.one_of(*map(changes, typing.get_args(Change))))
def test_every_change_survives_the_disk(change: Change) -> None:
    assert codec.decode(Change, json.loads(json.dumps(codec.encode(change)))) == change


def test_every_change_has_a_name_of_its_own() -> None:
    classes = typing.get_args(Change)
    assert len({of.__name__ for of in classes}) == len(classes) > 10


@pytest.mark.parametrize("value", [object(), {1, 2}, b"x", Change])
def test_what_has_no_json_form_is_a_mistake_of_the_programmer(value: object) -> None:
    with pytest.raises(TypeError, match="no JSON form"):
        codec.encode(value)


def test_a_type_without_json_form_is_a_mistake_of_the_programmer() -> None:
    with pytest.raises(TypeError, match="no JSON form"):
        codec.decode(complex, 1)
