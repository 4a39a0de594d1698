"""The ledger on a real disk, against a model dictionary: killed anywhere, full, damaged, on another boot."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from virtnet import reconcile
from virtnet.core.model import Deletion, Entry, Identity, Link, LinkRecord, Made, Recorded, Setting, Value
from virtnet.errors import LedgerError
from virtnet.host import journal
from virtnet.host.ledger import Ledger
from virtnet.host.state import StateDir

HERE = Identity("boot-1", "netns-1")
ETH0 = Link(2, "eth0", "", "02:00:00:00:00:02")
TAP7 = Link(7, "tap7", "tun", "02:00:00:00:00:07")
MADE = Made("br0", 5, "bridge", "vms")


def entry(link: Link, key: str, original: Value | None, wanted: Value | None, policy: str = "vms") -> Entry:
    return Entry(Setting(link.ifindex, key), original, wanted, policy)


LRO = entry(ETH0, "feature:rx-lro", True, False)
MTU = entry(ETH0, "mtu", 1500, 9000)
GRO = entry(TAP7, "feature:rx-gro", True, False)
STATE = Entry(Setting("vhost_net", "state"), "Absent", "Loaded", "vms")
FILE = Entry(Setting("vhost_net", "persist"), None, "Loaded", "vms", Deletion.RETAIN)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "state")


@pytest.fixture
def journal_path(state: StateDir) -> Path:
    return state.volatile / "links.journal"


def reopened(ledger: Ledger, state: StateDir, identity: Identity = HERE) -> Ledger:
    ledger.close()
    return Ledger(state, identity)


def entries(ledger: Ledger) -> dict[int, list[Entry]]:
    return {ifindex: list(record.entries.values()) for ifindex, record in ledger.recorded.links.items()}


@contextlib.contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """The kernel refuses to let a file of this process grow beyond `size` bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def descriptor_leads_to(journal_path: Path, target: str) -> Iterator[None]:
    """The open descriptor of the journal leads to another file, as /dev/full."""
    (fd,) = [
        int(fd) for fd in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{fd}") == str(journal_path)
    ]
    kept, other = os.dup(fd), os.open(target, os.O_WRONLY)
    os.dup2(other, fd, inheritable=False)
    try:
        yield
    finally:
        os.dup2(kept, fd, inheritable=False)
        os.close(kept)
        os.close(other)


# --- what it remembers -------------------------------------------------------------------------------------


def test_it_is_the_ledger_that_a_pass_asks_for(state: StateDir) -> None:
    ledger: reconcile.Ledger = Ledger(state, HERE)
    assert ledger.recorded == Recorded({}, {}, {})


def test_what_was_recorded_is_there_after_a_restart(state: StateDir) -> None:
    ledger = Ledger(state, HERE)
    ledger.record(ETH0, [LRO, MTU])
    ledger.record(None, [STATE, FILE])
    ledger.record_made(MADE)
    before = Recorded(dict(ledger.recorded.links), dict(ledger.recorded.module), dict(ledger.recorded.made))
    assert before.links == {2: LinkRecord(2, "eth0", "", ETH0.mac, {"feature:rx-lro": LRO, "mtu": MTU})}
    assert before.module == {"state": STATE, "persist": FILE}
    assert before.made == {"br0": MADE}
    assert reopened(ledger, state).recorded == before


def test_values_come_back_as_the_type_they_had(state: StateDir) -> None:
    ledger = Ledger(state, HERE)
    ledger.record(ETH0, [entry(ETH0, str(n), value, None) for n, value in enumerate((True, 1, "1", None))])
    originals = [held.original for held in reopened(ledger, state).recorded.links[2].entries.values()]
    assert [(type(value), value) for value in originals] == [(bool, True), (int, 1), (str, "1"), (type(None), None)]


def test_an_original_that_is_held_is_never_overwritten(state: StateDir) -> None:
    ledger = Ledger(state, HERE)
    ledger.record(ETH0, [MTU])
    ledger.record(ETH0, [Entry(MTU.setting, 9000, 4000, "other", Deletion.RETAIN)])
    handed_over = Entry(MTU.setting, 1500, 4000, "other", Deletion.RETAIN)
    assert entries(ledger) == {2: [handed_over]}
    ledger.record(None, [STATE])
    ledger.record(None, [replace(STATE, original="Loaded", policy="other")])
    assert ledger.recorded.module == {"state": replace(STATE, policy="other")}
    again = reopened(ledger, state)
    assert entries(again) == {2: [handed_over]}
    assert again.recorded.module == {"state": replace(STATE, policy="other")}


def test_what_is_forgotten_stays_forgotten_and_can_be_forgotten_twice(state: StateDir) -> None:
    ledger = Ledger(state, HERE)
    ledger.record(ETH0, [LRO, MTU])
    ledger.record(TAP7, [GRO])
    ledger.record(None, [STATE, FILE])
    gone = [LRO.setting, GRO.setting, STATE.setting, Setting(99, "mtu"), Setting("vhost_net", "none")]
    for _ in range(2):
        ledger.forget(gone)
        assert entries(ledger) == {2: [MTU]}
        assert ledger.recorded.module == {"persist": FILE}
    again = reopened(ledger, state)
    assert entries(again) == {2: [MTU]}
    assert again.recorded.module == {"persist": FILE}


def test_a_link_that_is_gone_takes_its_entries_along(state: StateDir) -> None:
    ledger = Ledger(state, HERE)
    ledger.record(ETH0, [LRO])
    ledger.record(TAP7, [GRO])
    for _ in range(2):
        ledger.drop_link(7)
        assert entries(ledger) == {2: [LRO]}
    assert entries(reopened(ledger, state)) == {2: [LRO]}


def test_entries_follow_a_renamed_link(state: StateDir) -> None:
    ledger = Ledger(state, HERE)
    ledger.record(ETH0, [LRO])
    ledger.follow(replace(ETH0, name="lan0", mac="02:00:00:00:00:99"))
    ledger.follow(TAP7)
    record = reopened(ledger, state).recorded.links[2]
    assert (record.name, record.mac, dict(record.entries)) == ("lan0", "02:00:00:00:00:99", {"feature:rx-lro": LRO})
    assert set(ledger.recorded.links) == {2}


@pytest.mark.parametrize(
    ("found", "same"),
    [
        (replace(TAP7, name="renamed"), True),
        (replace(TAP7, mac="02:00:00:00:00:99"), True),
        (replace(TAP7, kind="veth"), False),
        (replace(TAP7, name="other", mac="02:00:00:00:00:99"), False),
        (replace(TAP7, name="other", mac=""), False),
    ],
)
def test_a_reused_ifindex_starts_afresh(state: StateDir, found: Link, same: bool) -> None:
    ledger = Ledger(state, HERE)
    ledger.record(TAP7, [GRO])
    new = entry(found, "mtu", 1500, 9000)
    ledger.record(found, [new])
    assert entries(ledger) == {7: [GRO, new] if same else [new]}
    assert ledger.recorded.links[7].name == found.name
    assert entries(reopened(ledger, state)) == entries(ledger)


def test_links_without_an_address_are_not_the_same_because_of_it(state: StateDir) -> None:
    ledger = Ledger(state, HERE)
    ledger.record(replace(TAP7, mac=""), [GRO])
    ledger.record(replace(TAP7, name="other", mac=""), [])
    assert entries(ledger) == {}


def test_made_links_are_known_on_the_boot_and_in_the_namespace_they_were_made(state: StateDir) -> None:
    ledger = Ledger(state, HERE)
    ledger.record_made(replace(MADE, ifindex=0))
    ledger.record_made(MADE)
    ledger.record_made(Made("tap0", 6, "tun", "vms"))
    ledger.forget_made("tap0")
    ledger.forget_made("tap0")
    assert reopened(ledger, state).recorded.made == {"br0": MADE}
    assert Ledger(state, Identity("boot-2", "netns-1")).recorded.made == {}
    assert Ledger(state, Identity("boot-1", "netns-2")).recorded.made == {}


@pytest.mark.parametrize("other", [Identity("boot-2", "netns-1"), Identity("boot-1", "netns-2")])
def test_another_boot_or_namespace_drops_the_links_and_keeps_the_module(state: StateDir, other: Identity) -> None:
    ledger = Ledger(state, HERE)
    ledger.record(ETH0, [LRO])
    ledger.record(None, [STATE])
    moved = reopened(ledger, state, other)
    assert moved.recorded == Recorded({}, {"state": STATE}, {})
    assert moved.problems == ()
    assert reopened(moved, state).recorded.links == {}


def test_the_view_is_live_and_read_only(state: StateDir) -> None:
    ledger = Ledger(state, HERE)
    view = ledger.recorded
    ledger.record(ETH0, [LRO])
    before = view.links[2]
    ledger.record(ETH0, [MTU])
    assert set(view.links[2].entries) == {"feature:rx-lro", "mtu"}
    assert set(before.entries) == {"feature:rx-lro"}
    with pytest.raises(TypeError):
        view.links[3] = before  # type: ignore[index]


def test_recording_what_is_recorded_writes_nothing(state: StateDir, journal_path: Path) -> None:
    ledger = Ledger(state, HERE)
    ledger.record(ETH0, [LRO])
    ledger.record(None, [STATE])
    ledger.record_made(MADE)
    before = journal_path.stat(), (state.path / "ledger.json").stat()
    ledger.record(ETH0, [replace(LRO, original=False)])
    ledger.record(ETH0, [])
    ledger.record(None, [STATE])
    ledger.record_made(MADE)
    ledger.follow(ETH0)
    assert (journal_path.stat(), (state.path / "ledger.json").stat()) == before


# --- the journal -------------------------------------------------------------------------------------------


def test_each_call_is_one_line_however_many_entries(state: StateDir, journal_path: Path) -> None:
    ledger = Ledger(state, HERE)
    ledger.record(ETH0, [LRO, MTU])
    header, line = journal_path.read_text().splitlines()
    assert json.loads(header) == {"journal": 1, "boot_id": "boot-1", "netns": "netns-1"}
    assert json.loads(line)[:2] == [2, "eth0"]


def test_a_restart_leaves_a_short_journal_and_shortens_a_long_one(state: StateDir, journal_path: Path) -> None:
    ledger = Ledger(state, HERE)
    ledger.record(ETH0, [LRO])
    short = journal_path.stat()
    ledger = reopened(ledger, state)
    assert (journal_path.stat().st_ino, journal_path.stat().st_size) == (short.st_ino, short.st_size)
    for frames in range(50):
        ledger.record(ETH0, [replace(LRO, wanted=frames)])
    ledger = reopened(ledger, state)
    assert len(journal_path.read_text().splitlines()) == 2
    assert entries(ledger) == {2: [replace(LRO, wanted=49)]}


def test_the_journal_is_compacted_when_it_has_grown(state: StateDir, journal_path: Path) -> None:
    ledger = Ledger(state, HERE)
    sizes = []
    for mtu in range(2000):
        ledger.record(ETH0, [replace(MTU, wanted=mtu)])
        sizes.append(journal_path.stat().st_size)
    assert 60 * 1024 < max(sizes) <= 64 * 1024
    assert sizes != sorted(sizes)
    assert entries(reopened(ledger, state)) == {2: [replace(MTU, wanted=1999)]}


def test_a_torn_last_line_is_dropped_and_the_next_one_is_whole(state: StateDir, journal_path: Path) -> None:
    ledger = Ledger(state, HERE)
    ledger.record(ETH0, [LRO])
    size = journal_path.stat().st_size
    ledger.record(TAP7, [GRO])
    for kept in range(size, journal_path.stat().st_size):
        copy = StateDir(state.path.with_name(f"torn{kept}"))
        shutil.copytree(state.path, copy.path)
        os.truncate(copy.volatile / "links.journal", kept)
        torn = Ledger(copy, HERE)
        assert (entries(torn), torn.problems) == ({2: [LRO]}, ())
        torn.record(TAP7, [GRO])
        assert entries(reopened(torn, copy)) == {2: [LRO], 7: [GRO]}


GOOD = '[2,"eth0","","",[["mtu",1500,9000,"vms","Restore"]]]'
HEADER = '{"journal":1,"boot_id":"boot-1","netns":"netns-1"}'


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (f"{HEADER}\n[2,\n{GOOD}\n", "line 2: not JSON"),
        (f"{HEADER}\n{GOOD}\n\0\0\0\n", "line 3: not JSON"),
        (f"{HEADER}\n\n{GOOD}\n", "line 2: not JSON"),
        (f'{HEADER}\n{GOOD}\n[2,"eth0"]\n', "line 3: not a record"),
        (f"{HEADER}\n7\n", "line 2: not a record"),
        (f'{HEADER}\n["2","eth0","","",[]]\n', "line 2: not a record"),
        (f'{HEADER}\n[2,"eth0","","",[["mtu",1.5,9000,"vms","Restore"]]]\n', "line 2: not a record"),
        (f'{HEADER}\n[2,"eth0","","",[["mtu",1500,[],"vms","Restore"]]]\n', "line 2: not a record"),
        (f'{HEADER}\n[2,"eth0","","",[["mtu",1500,9000,"vms","Burn"]]]\n', "line 2: not a record"),
        (f'{HEADER}\n[2,"eth0","","",[[7,1500,9000,"vms","Restore"]]]\n', "line 2: not a record"),
        (f'{HEADER}\n[2,"eth0","","",[[]]]\n', "line 2: not a record"),
        (f"{GOOD}\n", "line 1: no header"),
        ("half a hea", "line 1: no header"),
        ('{"journal":2,"boot_id":"boot-1","netns":"netns-1"}\n', "line 1: version 2 is not 1"),
        ("\0" * 200, "line 1: no header"),
    ],
)
def test_a_damaged_journal_is_set_aside_whole_and_said(
    state: StateDir, journal_path: Path, content: str, why: str
) -> None:
    state.prepare()
    journal_path.write_text(content)
    ledger = Ledger(state, HERE)
    assert entries(ledger) == {}
    assert journal_path.with_name("links.journal.damaged").read_text() == content
    (said,) = ledger.problems
    assert f"links.journal was damaged ({why}" in said
    assert said.endswith(
        "what was there before us is not known for the settings it held: they will be left as they are"
    )
    ledger.record(ETH0, [LRO])
    assert entries(reopened(ledger, state)) == {2: [LRO]}


def test_an_empty_journal_is_what_a_power_loss_leaves_and_no_damage(state: StateDir, journal_path: Path) -> None:
    state.prepare()
    journal_path.write_bytes(b"")
    assert Ledger(state, HERE).problems == ()


GUESTS = Entry(Setting("uuid/mac", "guest.nic.queues"), None, 4, "p")


def test_originals_of_guests_outlive_a_boot_and_are_forgotten_one_by_one(state: StateDir) -> None:
    ledger = Ledger(state, HERE)
    other = replace(GUESTS, setting=Setting("uuid/other", "guest.nic.queues"), original=2)
    ledger.record(None, [GUESTS, STATE, other])
    ledger.record(None, [replace(GUESTS, original=8, wanted=5)])
    ledger.close()
    again = Ledger(state, Identity("another boot", HERE.netns))
    assert again.recorded.guests == {GUESTS.setting: replace(GUESTS, wanted=5), other.setting: other}
    again.forget([GUESTS.setting])
    assert reopened(again, state).recorded.guests == {other.setting: other}
    assert again.recorded.module == {"state": STATE}


def test_a_file_from_before_there_were_guests_is_read(state: StateDir) -> None:
    ledger = Ledger(state, HERE)
    ledger.record(None, [STATE])
    path = state.path / "ledger.json"
    kept = json.loads(path.read_text())
    del kept["guests"]
    path.write_text(json.dumps(kept))
    again = reopened(ledger, state)
    assert (again.problems, again.recorded.module) == ((), {"state": STATE})


def test_a_damaged_file_of_the_module_is_set_aside_and_said(state: StateDir) -> None:
    ledger = Ledger(state, HERE)
    ledger.record(None, [STATE])
    path = state.path / "ledger.json"
    path.write_text(path.read_text().replace("Restore", "Burn"))
    again = reopened(ledger, state)
    assert again.recorded.module == {}
    assert "ledger.json was damaged (module[0].deletion must be Deletion, not 'Burn')" in again.problems[0]
    again.record(None, [FILE])
    assert reopened(again, state).recorded.module == {"persist": FILE}


def test_a_journal_that_somebody_removed_is_written_anew_with_all_it_held(state: StateDir, journal_path: Path) -> None:
    ledger = Ledger(state, HERE)
    ledger.record(ETH0, [LRO])
    shutil.rmtree(state.path)
    ledger.record(TAP7, [GRO])
    assert entries(reopened(ledger, state)) == {2: [LRO], 7: [GRO]}


# --- a disk that refuses -----------------------------------------------------------------------------------


def test_a_write_that_is_cut_short_is_taken_back(state: StateDir, journal_path: Path) -> None:
    ledger = Ledger(state, HERE)
    ledger.record(ETH0, [LRO])
    before = journal_path.read_bytes()
    with files_at_most(len(before) + 10):
        for act in (
            lambda: ledger.record(TAP7, [GRO]),
            lambda: ledger.forget([LRO.setting]),
            lambda: ledger.follow(replace(ETH0, name="lan0")),
            lambda: ledger.drop_link(2),
        ):
            with pytest.raises(LedgerError, match=r"links\.journal cannot be written: the disk is full"):
                act()
            assert journal_path.read_bytes() == before
            assert entries(ledger) == {2: [LRO]}
            assert ledger.recorded.links[2].name == "eth0"
    with files_at_most(len(before)), pytest.raises(LedgerError, match="File too large"):
        ledger.record(TAP7, [GRO])
    ledger.record(TAP7, [GRO])
    assert entries(reopened(ledger, state)) == {2: [LRO], 7: [GRO]}


def test_a_full_disk_changes_nothing_in_memory_and_heals(state: StateDir, journal_path: Path) -> None:
    ledger = Ledger(state, HERE)
    ledger.record(ETH0, [LRO])
    with descriptor_leads_to(journal_path, "/dev/full"):
        with pytest.raises(LedgerError, match="No space left on device"):
            ledger.record(TAP7, [GRO])
        assert entries(ledger) == {2: [LRO]}
    ledger.record(TAP7, [GRO])
    assert entries(reopened(ledger, state)) == {2: [LRO], 7: [GRO]}


def test_of_many_links_all_are_recorded_or_none(state: StateDir, journal_path: Path) -> None:
    ledger = Ledger(state, HERE)
    ledger.record(ETH0, [LRO])
    before = journal_path.read_bytes()
    many = [(TAP7, [GRO]), (ETH0, [MTU])]
    for room in (10, 120):  # for a part of the first line, and for the first line alone
        with files_at_most(len(before) + room), pytest.raises(LedgerError, match="the disk is full"):
            ledger.record_links(many)
        assert (journal_path.read_bytes(), entries(ledger)) == (before, {2: [LRO]})
    ledger.record_links(many)
    assert entries(reopened(ledger, state)) == {2: [LRO, MTU], 7: [GRO]}


def test_a_link_that_comes_twice_has_the_entries_of_both_and_the_first_originals(state: StateDir) -> None:
    ledger = Ledger(state, HERE)
    ledger.record_links([(ETH0, [LRO]), (TAP7, [GRO]), (ETH0, [MTU, replace(LRO, original=False)])])
    assert entries(reopened(ledger, state)) == {2: [LRO, MTU], 7: [GRO]}


def test_the_files_of_module_and_made_links_refuse_without_a_change_in_memory(state: StateDir) -> None:
    ledger = Ledger(state, HERE)
    ledger.record(None, [STATE])
    ledger.record_made(MADE)
    with files_at_most(20):
        for act in (
            lambda: ledger.record(None, [FILE]),
            lambda: ledger.forget([STATE.setting]),
            lambda: ledger.record_made(replace(MADE, ifindex=9)),
            lambda: ledger.forget_made("br0"),
        ):
            with pytest.raises(LedgerError, match=r"ledger\.json cannot be written: File too large"):
                act()
    assert ledger.recorded == Recorded({}, {"state": STATE}, {"br0": MADE})
    assert reopened(ledger, state).recorded == Recorded({}, {"state": STATE}, {"br0": MADE})


def test_a_compaction_that_fails_costs_nothing_but_room(state: StateDir, journal_path: Path) -> None:
    ledger = Ledger(state, HERE)
    (state.volatile / ".links.journal.new").mkdir()
    for mtu in range(2000):
        ledger.record(ETH0, [replace(MTU, wanted=mtu)])
    assert journal_path.stat().st_size > 100_000
    (state.volatile / ".links.journal.new").rmdir()
    assert entries(reopened(ledger, state)) == {2: [replace(MTU, wanted=1999)]}


@pytest.mark.parametrize("where", ["state", "state/volatile", "state/volatile/.links.journal.new"])
def test_what_cannot_be_recorded_is_said_at_the_start_and_at_every_attempt(tmp_path: Path, where: str) -> None:
    blocked = tmp_path / where
    blocked.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    blocked.symlink_to("/dev/full")
    ledger = Ledger(StateDir(tmp_path / "state"), HERE)
    assert len(ledger.problems) >= 1
    for _ in range(2):
        with pytest.raises(LedgerError, match=str(tmp_path / "state")):
            ledger.record(ETH0, [LRO])
    assert entries(ledger) == {}


def test_originals_that_cannot_be_read_are_not_replaced(state: StateDir, journal_path: Path) -> None:
    state.prepare()
    journal_path.mkdir()
    (state.path / "ledger.json").mkdir()
    ledger = Ledger(state, HERE)
    assert ["cannot be read: Is a directory" in said for said in ledger.problems] == [True, True]
    journal_path.rmdir()
    (state.path / "ledger.json").rmdir()
    for act in (lambda: ledger.record(ETH0, [LRO]), lambda: ledger.record_made(MADE)):
        with pytest.raises(LedgerError, match="cannot be read"):
            act()
    assert not journal_path.exists()


def test_a_directory_that_others_may_write_is_not_written(state: StateDir) -> None:
    ledger = Ledger(state, HERE)
    state.path.chmod(0o777)
    with pytest.raises(LedgerError, match="writable by others"):
        ledger.record_made(MADE)


def test_one_who_only_looks_sees_everything_and_touches_nothing(state: StateDir, journal_path: Path) -> None:
    ledger = Ledger(state, HERE)
    for wanted in (False, True):
        ledger.record(ETH0, [replace(LRO, wanted=wanted)])
    ledger.record_made(MADE)
    with open(journal_path, "a") as writer:
        writer.write("[7,")
    before = journal_path.read_bytes()
    looking = Ledger(StateDir(state.path, read_only=True), HERE)
    assert entries(looking) == {2: [replace(LRO, wanted=True)]}
    assert looking.recorded.made == {"br0": MADE}
    for act in (lambda: looking.record(TAP7, [GRO]), lambda: looking.forget_made("br0")):
        with pytest.raises(LedgerError, match="open only for reading"):
            act()
    assert journal_path.read_bytes() == before


# --- many links --------------------------------------------------------------------------------------------


def test_a_thousand_links_are_there_again_after_a_restart(state: StateDir, journal_path: Path) -> None:
    ledger = Ledger(state, HERE)
    links = [Link(n, f"tap{n}", "tun", f"02:00:00:00:{n >> 8:02x}:{n & 255:02x}") for n in range(1, 1001)]
    for link in links:
        ledger.record(link, two(link))
    ledger.close()
    assert journal_path.read_bytes().count(b"\n") == 1001
    assert len(Ledger(state, HERE).recorded.links) == 1000


def test_many_links_are_recorded_in_one_write_and_that_is_no_reason_to_write_them_anew(
    state: StateDir, journal_path: Path
) -> None:
    ledger = Ledger(state, HERE)
    before = journal_path.stat()
    links = [Link(n, f"tap{n}", "tun", f"02:00:00:00:{n >> 8:02x}:{n & 255:02x}") for n in range(1, 1001)]
    ledger.record_links([(link, two(link)) for link in links])
    after = journal_path.stat()
    assert (after.st_ino, after.st_size > 64 * 1024) == (before.st_ino, True)
    assert entries(reopened(ledger, state)) == {link.ifindex: two(link) for link in links}


def two(link: Link) -> list[Entry]:
    return [entry(link, "feature:rx-gro", True, False), entry(link, "mtu", 1500, 9000)]


# --- against a model ---------------------------------------------------------------------------------------

IFINDEXES = st.integers(1, 4)
KEYS = st.sampled_from(["mtu", "feature:rx-gro", "bridge.stp"])
VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5))
LINKS = st.builds(
    Link, IFINDEXES, st.sampled_from(["a", "b"]), st.sampled_from(["tun", ""]), st.sampled_from(["", "m", "n"])
)
WISHES = st.lists(st.tuples(KEYS, VALUES, VALUES, st.sampled_from(["p", "q"]), st.sampled_from(Deletion)), max_size=3)

Model = dict[int, tuple[tuple[str, str, str], dict[str, tuple[Value | None, Value | None, str, Deletion]]]]


class LedgerAgainstModel(RuleBasedStateMachine):
    """A dictionary that does the same; a kill cuts the journal anywhere in the last write, and nothing else is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.root = tempfile.mkdtemp()
        self.state = StateDir(Path(self.root) / "state")
        self.path = self.state.volatile / "links.journal"
        self.ledger = Ledger(self.state, HERE)
        self.model: Model = {}
        self.before: Model = {}
        self.written = self.path.stat()

    def teardown(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.root)

    def acting(self) -> None:
        """A change is about to be made: remember where the journal ended and what it said."""
        self.before = dict(self.model)
        self.written = self.path.stat()

    @rule(link=LINKS, wishes=WISHES)
    def record(self, link: Link, wishes: list[tuple[str, Value, Value, str, Deletion]]) -> None:
        self.acting()
        given = [Entry(Setting(link.ifindex, key), *rest) for key, *rest in wishes]
        self.ledger.record(link, given)
        (name, kind, mac), known = self.model.get(link.ifindex, (("", "", ""), {}))
        same = kind == link.kind and (name == link.name or (mac == link.mac and mac != ""))
        held = dict(known) if same else {}
        for key, original, wanted, policy, deletion in wishes:
            held[key] = (held[key][0] if key in held else original, wanted, policy, deletion)
        self.put(link, held)

    @rule(link=LINKS)
    def follow(self, link: Link) -> None:
        self.acting()
        self.ledger.follow(link)
        if link.ifindex in self.model:
            self.put(link, self.model[link.ifindex][1])

    def put(self, link: Link, held: dict[str, tuple[Value | None, Value | None, str, Deletion]]) -> None:
        self.model.pop(link.ifindex, None)
        if held:
            self.model[link.ifindex] = ((link.name, link.kind, link.mac), held)

    @rule(ifindex=IFINDEXES)
    def drop(self, ifindex: int) -> None:
        self.acting()
        self.ledger.drop_link(ifindex)
        self.model.pop(ifindex, None)

    @rule(ifindex=IFINDEXES, keys=st.sets(KEYS))
    def forget(self, ifindex: int, keys: set[str]) -> None:
        self.acting()
        self.ledger.forget([Setting(ifindex, key) for key in keys])
        if ifindex in self.model:
            link, held = self.model.pop(ifindex)
            if left := {key: value for key, value in held.items() if key not in keys}:
                self.model[ifindex] = (link, left)

    @rule()
    def restart(self) -> None:
        self.reopen()

    @precondition(lambda self: self.path.stat().st_size > self.written.st_size)
    @rule(data=st.data())
    def kill_in_the_last_write(self, data: st.DataObject) -> None:
        now = self.path.stat()
        assume(now.st_ino == self.written.st_ino)
        os.truncate(self.path, data.draw(st.integers(self.written.st_size, now.st_size - 1)))
        self.model = self.before
        self.reopen()

    def reopen(self) -> None:
        self.ledger.close()
        self.ledger = Ledger(self.state, HERE)
        self.before, self.written = dict(self.model), self.path.stat()

    @invariant()
    def it_says_what_the_model_says(self) -> None:
        assert self.ledger.problems == ()
        assert self.shown(self.ledger) == self.model

    @invariant()
    def the_disk_says_what_memory_says(self) -> None:
        assert self.shown(Ledger(StateDir(self.state.path, read_only=True), HERE)) == self.model

    @staticmethod
    def shown(ledger: Ledger) -> Model:
        return {
            ifindex: (
                (record.name, record.kind, record.mac),
                {key: (e.original, e.wanted, e.policy, e.deletion) for key, e in record.entries.items()},
            )
            for ifindex, record in ledger.recorded.links.items()
        }


class CompactingLedgerAgainstModel(LedgerAgainstModel):
    """The same with a journal that is compacted every few writes."""

    def __init__(self) -> None:
        journal._SMALL, self.usual = 10, journal._SMALL
        super().__init__()

    def teardown(self) -> None:
        journal._SMALL = self.usual
        super().teardown()


TestLedgerAgainstModel = LedgerAgainstModel.TestCase
TestCompactingLedgerAgainstModel = CompactingLedgerAgainstModel.TestCase
TestLedgerAgainstModel.settings = TestCompactingLedgerAgainstModel.settings = settings(
    max_examples=60, stateful_step_count=25
)
