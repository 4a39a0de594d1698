"""The fight detector on a clock that is an argument: when it lets go, when it tries again, and when it forgets."""

from __future__ import annotations

import pytest

from virtnet.core.model import Setting
from virtnet.engine.fights import Fights, Thresholds

GRO, GSO = Setting(2, "feature:rx-gro"), Setting(2, "feature:tx-generic-segmentation")
MINUTE = 60.0


def provoke(fights: Fights, *times: float, setting: Setting = GRO, insist: bool = False) -> list[bool]:
    """Whether each foreign change at these times may be repaired."""
    return [fights.foreign_change(setting, time, insist=insist) for time in times]


def contended_at(now: float) -> Fights:
    """Stopped for the first time at `now`: left alone until a minute later."""
    fights = Fights()
    provoke(fights, *(now - 5 + second for second in range(6)))
    return fights


# --- Yield -------------------------------------------------------------------------------------------------


def test_five_changes_in_a_minute_are_repaired_and_the_sixth_is_not() -> None:
    assert provoke(Fights(), 0, 10, 20, 30, 40, 50) == [True] * 5 + [False]


@pytest.mark.parametrize(
    ("sixth", "repaired"),
    [
        pytest.param(60.0, False, id="60 s after the first is still in the window"),
        pytest.param(60.1, True, id="later than that is not"),
    ],
)
def test_the_window(sixth: float, repaired: bool) -> None:
    assert provoke(Fights(), 0, 1, 2, 3, 4, sixth)[-1] is repaired


def test_the_window_slides() -> None:
    assert all(provoke(Fights(), *(13.0 * step for step in range(40))))
    assert provoke(Fights(), *(12.0 * step for step in range(6)))[-1] is False


def test_settings_are_counted_apart() -> None:
    fights = Fights()
    provoke(fights, 0, 1, 2, 3, 4, 5)
    assert provoke(fights, 6, setting=GSO) == [True]
    assert list(fights.contended(6)) == [GRO]


def test_what_is_left_alone_is_said_with_the_number_of_changes_and_the_minutes() -> None:
    fights = contended_at(100)
    assert fights.contended(100) == {GRO: "changed 6 times by somebody else; left alone, tried again in 1 min"}
    assert fights.next_attempt(100) == 160


def test_nothing_is_contended_before_it_stops() -> None:
    fights = Fights()
    provoke(fights, 0, 1, 2)
    assert fights.contended(3) == {}
    assert fights.next_attempt(3) is None


def test_after_a_minute_it_is_tried_again() -> None:
    fights = contended_at(100)
    assert fights.contended(159.9) != {}
    assert fights.contended(160) == {}
    assert fights.next_attempt(160) is None


def test_changes_while_it_is_left_alone_neither_repair_nor_prolong() -> None:
    fights = contended_at(100)
    assert provoke(fights, 110, 120, 159) == [False] * 3
    assert fights.next_attempt(159) == 160


def test_one_more_change_after_a_retry_stops_at_once_for_twice_as_long() -> None:
    fights = contended_at(100)
    assert provoke(fights, 161) == [False]
    assert fights.next_attempt(161) == 161 + 2 * MINUTE


def test_the_pause_doubles_from_one_minute_to_thirty_and_stays_there() -> None:
    fights, now, pauses = contended_at(100), 100.0, []
    for _ in range(8):
        resumes = fights.next_attempt(now)
        assert resumes is not None
        pauses.append((resumes - now) / MINUTE)
        now = resumes
        assert provoke(fights, now) == [False]
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]


@pytest.mark.parametrize(
    ("later", "repaired"),
    [
        pytest.param(160 + 10 * MINUTE, False, id="ten minutes after the retry it is remembered"),
        pytest.param(160.1 + 10 * MINUTE, True, id="after more it is forgotten"),
    ],
)
def test_quiet_is_counted_from_the_retry_and_not_from_the_last_change(later: float, repaired: bool) -> None:
    assert provoke(contended_at(100), later) == [repaired]


def test_a_forgotten_fight_begins_anew_with_five_repairs_and_one_minute() -> None:
    fights = contended_at(100)
    assert provoke(fights, *(1000.0 + second for second in range(6))) == [True] * 5 + [False]
    assert fights.next_attempt(1005) == 1005 + MINUTE


def test_a_link_that_goes_takes_its_fights_along() -> None:
    fights = contended_at(100)
    provoke(fights, *range(95, 101), setting=Setting(3, "mtu"))
    fights.drop(2)
    assert list(fights.contended(101)) == [Setting(3, "mtu")]
    assert provoke(fights, 101) == [True]


def test_thresholds_are_the_users() -> None:
    fights = Fights(Thresholds(repairs=1, window=10, retry=5, longest=7, quiet=20))
    assert provoke(fights, 0, 1) == [True, False]
    assert fights.next_attempt(1) == 6
    assert provoke(fights, 6) == [False]
    assert fights.next_attempt(6) == 13


# --- Insist ------------------------------------------------------------------------------------------------


def test_insist_never_stops_and_is_reported_all_the_same() -> None:
    fights = Fights()
    assert all(provoke(fights, *range(20), insist=True))
    assert fights.disputed(20) == {GRO: "changed 20 times by somebody else, and put back each time"}
    assert fights.contended(20) == {}
    assert fights.next_attempt(20) is None


def test_insist_reports_nothing_below_the_threshold() -> None:
    fights = Fights()
    provoke(fights, 0, 1, 2, 3, 4, insist=True)
    assert fights.disputed(5) == {}


def test_what_is_left_alone_is_not_disputed() -> None:
    assert contended_at(100).disputed(101) == {}


def test_a_policy_that_comes_to_insist_repairs_what_was_left_alone() -> None:
    fights = contended_at(100)
    assert provoke(fights, 101, insist=True) == [True]
    assert fights.disputed(101).keys() == {GRO}


def test_a_hundred_repairs_in_a_second_are_immediate() -> None:
    fights = Fights()
    assert [fights.may_repair_at(2, 0.5) for _ in range(100)] == [0.5] * 100


def test_above_that_there_is_one_each_tenth_of_a_second() -> None:
    fights = Fights()
    for _ in range(100):
        fights.may_repair_at(2, 0.5)
    assert [fights.may_repair_at(2, 0.5) for _ in range(4)] == pytest.approx([0.5, 0.6, 0.7, 0.8])


def test_the_next_second_begins_a_new_hundred() -> None:
    fights = Fights()
    for _ in range(150):
        fights.may_repair_at(2, 0.0)
    assert fights.may_repair_at(2, 1.0) == 1.0


def test_links_are_paced_apart() -> None:
    fights = Fights()
    for _ in range(102):
        fights.may_repair_at(2, 0.0)
    assert fights.may_repair_at(3, 0.0) == 0.0
    assert fights.may_repair_at(2, 0.0) == pytest.approx(0.2)
