"""Faults, kills and other people come exactly when a test says so, and the ledger keeps what it was given."""

from __future__ import annotations

import pytest

from tests.flow.fake import FakeHost, Killed, MemoryLedger
from virtnet import errors
from virtnet.core.model import CreateTap, Deletion, Entry, Made, SetMtu, Setting, SetTxQueueLength


def entry(target: int | str, key: str, original: int | None, wanted: int | None = None, policy: str = "p") -> Entry:
    return Entry(Setting(target, key), original, wanted, policy)


def shrink_both(host: FakeHost) -> None:
    for link in ("v0", "v1"):
        host.apply(SetMtu(host.ref(link), 1400))


# --- faults --------------------------------------------------------------------------------------------


def test_a_fault_strikes_a_kind_of_change_as_often_as_asked_and_nothing_takes_effect() -> None:
    host = FakeHost("v0 veth")
    host.fail(SetMtu, errors.Temporary("out of memory"), times=1)
    host.apply(SetTxQueueLength(host.ref("v0"), 10))
    with pytest.raises(errors.Temporary):
        host.apply(SetMtu(host.ref("v0"), 1400))
    assert "mtu=1500" in host.words("v0")
    host.apply(SetMtu(host.ref("v0"), 1400))
    assert "mtu=1400" in host.words("v0")


def test_a_fault_strikes_what_a_predicate_picks_until_it_is_healed() -> None:
    host = FakeHost("v0 veth\nv1 veth")
    host.fail(lambda change: isinstance(change, SetMtu) and change.link.name == "v1", errors.Refused("no"))
    host.apply(SetMtu(host.ref("v0"), 1400))
    for _ in range(3):
        with pytest.raises(errors.Refused):
            host.apply(SetMtu(host.ref("v1"), 1400))
    host.heal()
    host.apply(SetMtu(host.ref("v1"), 1400))
    assert "mtu=1400" in host.words("v1")


def test_a_late_fault_comes_after_the_change_took_effect() -> None:
    host = FakeHost("v0 veth")
    host.fail(SetMtu, errors.Temporary("the answer was lost"), times=1, late=True)
    with pytest.raises(errors.Temporary):
        host.apply(SetMtu(host.ref("v0"), 1400))
    assert "mtu=1400" in host.words("v0")


# --- kills ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "mtus"), [(0, [1500, 1500]), (1, [1400, 1500]), (3, [1400, 1400])])
def test_a_kill_comes_before_or_after_a_change_takes_effect(count: int, mtus: list[int]) -> None:
    host = FakeHost("v0 veth\nv1 veth")
    host.kill_after(count)
    with pytest.raises(Killed):
        shrink_both(host)
    assert [f"mtu={mtu}" in host.words(link) for link, mtu in zip(("v0", "v1"), mtus, strict=True)] == [True, True]


def test_no_handler_for_errors_catches_a_kill() -> None:
    assert not issubclass(Killed, Exception)


def test_a_killed_host_goes_on_with_the_next_agent() -> None:
    host = FakeHost("v0 veth")
    host.kill_after(0)
    with pytest.raises(Killed):
        host.apply(SetMtu(host.ref("v0"), 1400))
    host.apply(SetMtu(host.ref("v0"), 1400))
    assert "mtu=1400" in host.words("v0")


def test_the_ledger_has_its_boundaries_in_the_same_row_as_the_host() -> None:
    host = FakeHost()
    ledger = MemoryLedger(host.boundaries)
    host.kill_after(2)
    ledger.record_made(Made("tap0", 0, "tun", "p"))
    with pytest.raises(Killed):
        host.apply(CreateTap("tap0"))
    assert list(ledger.recorded.made) == ["tap0"]
    assert host.names() == []


@pytest.mark.parametrize(("count", "kept"), [(0, []), (1, ["tap0"])])
def test_a_kill_comes_before_or_after_a_record_is_kept(count: int, kept: list[str]) -> None:
    ledger = MemoryLedger()
    ledger.boundaries.kill_after(count)
    with pytest.raises(Killed):
        ledger.record_made(Made("tap0", 0, "tun", "p"))
    assert list(ledger.recorded.made) == kept


def test_others_act_between_two_changes_of_a_plan() -> None:
    host = FakeHost("v0 veth")
    v0 = host.ref("v0")
    host.boundaries.at(1, lambda: host.foreign.delete("v0"))
    host.apply(SetMtu(v0, 1400))
    with pytest.raises(errors.Gone):
        host.apply(SetTxQueueLength(v0, 10))


# --- the ledger ----------------------------------------------------------------------------------------


def test_an_original_that_is_held_is_never_overwritten() -> None:
    ledger = MemoryLedger()
    link = FakeHost("v0 veth").machine.named("v0").link
    view = ledger.recorded
    ledger.record(link, [entry(1, "mtu", 1500, 1400)])
    ledger.record(link, [Entry(Setting(1, "mtu"), 1400, 9000, "q", Deletion.RETAIN), entry(1, "rxFrames", 0)])
    assert view.links[1].entries["mtu"] == Entry(Setting(1, "mtu"), 1500, 9000, "q", Deletion.RETAIN)
    assert set(view.links[1].entries) == {"mtu", "rxFrames"}


def test_an_original_of_nothing_is_held_too() -> None:
    ledger = MemoryLedger()
    ledger.record(None, [entry("vhost_net", "persist", None)])
    ledger.record(None, [entry("vhost_net", "persist", 1)])
    assert ledger.recorded.module["persist"].original is None


def test_what_is_forgotten_is_gone_and_forgetting_it_again_is_success() -> None:
    ledger = MemoryLedger()
    link = FakeHost("v0 veth").machine.named("v0").link
    ledger.record(link, [entry(1, "mtu", 1500), entry(1, "rxFrames", 0)])
    ledger.record(None, [entry("vhost_net", "state", None)])
    for _ in range(2):
        ledger.forget([Setting(1, "mtu"), Setting("vhost_net", "state"), Setting(9, "mtu")])
        assert str(ledger) == "v0 rxFrames 0 -> None by p Restore"
    ledger.forget([Setting(1, "rxFrames")])
    assert ledger.recorded.links == {}


def test_a_renamed_link_keeps_its_entries_and_a_gone_one_drops_them() -> None:
    host = FakeHost("v0 veth")
    ledger = MemoryLedger()
    ledger.record(host.machine.named("v0").link, [entry(1, "mtu", 1500)])
    host.foreign.rename("v0", "lan0")
    ledger.follow(host.machine.named("lan0").link)
    assert str(ledger) == "lan0 mtu 1500 -> None by p Restore"
    ledger.drop_link(1)
    ledger.drop_link(1)
    assert str(ledger) == ""


def test_entries_of_a_gone_link_never_become_those_of_another() -> None:
    ledger = MemoryLedger()
    ledger.record(FakeHost("v0 veth").machine.named("v0").link, [entry(1, "mtu", 1500)])
    with pytest.raises(AssertionError, match="were not dropped"):
        ledger.record(FakeHost("br0 bridge").machine.named("br0").link, [entry(1, "mtu", 1500)])
    with pytest.raises(AssertionError, match="is not of"):
        ledger.record(FakeHost("v0 veth").machine.named("v0").link, [entry(2, "mtu", 1500)])


def test_what_we_made_is_held_until_it_is_forgotten() -> None:
    ledger = MemoryLedger()
    ledger.record_made(Made("br0", 0, "bridge", "p"))
    ledger.record_made(Made("br0", 7, "bridge", "p"))
    assert ledger.recorded.made["br0"].ifindex == 7
    ledger.forget_made("br0")
    ledger.forget_made("br0")
    assert ledger.recorded.made == {}


def test_a_ledger_that_cannot_be_written_keeps_nothing_new_and_loses_nothing_old() -> None:
    ledger = MemoryLedger()
    ledger.record_made(Made("br0", 0, "bridge", "p"))
    ledger.fail(times=1)
    with pytest.raises(errors.LedgerError):
        ledger.forget_made("br0")
    ledger.fail()
    for _ in range(3):
        with pytest.raises(errors.LedgerError):
            ledger.record_made(Made("tap0", 0, "tun", "p"))
    assert str(ledger) == "br0 made by p"
    ledger.heal()
    ledger.record_made(Made("tap0", 0, "tun", "p"))
    assert set(ledger.recorded.made) == {"br0", "tap0"}
