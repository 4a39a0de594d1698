"""What a node says of itself after a pass: conditions, policies, settings and links, small and in the same order."""

from __future__ import annotations

import cProfile
import functools
import itertools
import json
import pstats
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from virtnet.core import features, managed, plan, report, resolve
from virtnet.core.model import (
    DONE,
    FAILING,
    BridgeOptions,
    BridgeSpec,
    Driver,
    Features,
    HostState,
    Link,
    Match,
    Mode,
    ModuleState,
    ModuleStatus,
    ModuleWish,
    Node,
    Policy,
    Process,
    Reason,
    Recorded,
    Row,
    TapSpec,
    Tun,
    Unreadable,
    UplinkSpec,
)
from virtnet.core.resolve import Desired
from virtnet.kube.status import NodeStateStatus

MORNING, NOON = "2026-03-01T06:00:00Z", "2026-03-01T12:00:00Z"
AGENT = {"version": "0.1.0", "bootID": "3b0b9a8e-5f0c-4b7e-9a56-9d2f0f6a1c11"}
NAMES = (
    *("tx-scatter-gather", "tx-checksum-ip-generic", "tx-generic-segmentation", "tx-tcp-segmentation"),
    *("tx-tcp6-segmentation", "rx-gro", "rx-lro"),
)
ALL = (1 << len(NAMES)) - 1
TAP = Tun(tap=True, owner=0, group=0, pi=False, vnet_hdr=True, persist=True, multi_queue=False)
BRIDGE = BridgeOptions(False, 1500, 30000, True, False, 0)
NOTHING = HostState({}, {}, NAMES)

FORWARDING = Policy(
    "forwarding",
    generation=3,
    bridge=BridgeSpec("br0", multicast_snooping=True),
    uplink=UplinkSpec(offloads=(("tso", True), ("lro", False))),
    tap=TapSpec(offloads=(("gro", True), ("gso", True)), mtu=1500),
)


def on(*names: str) -> int:
    return features.mask_of(names, NAMES)


def row(
    reason: Reason | None = Reason.FIXED,
    link: str = "eth0",
    setting: str = "uplink.offloads.lro",
    policy: str = "forwarding",
    message: str = "the driver lacks it",
) -> Row:
    return Row(f"link/{link}", setting, True, False, reason, message, policy)


@functools.cache
def host(taps: int = 2) -> HostState:
    """br0 with one uplink and some taps, all features on but lro, all of them changeable."""
    links = [
        Link(1, "br0", "bridge", bridge=BRIDGE),
        Link(2, "eth0", master=1, physical=True, bus="0000:00:03.0"),
        *(Link(number, f"tap{number}", "tun", master=1, tun=TAP) for number in range(3, 3 + taps)),
    ]
    state = Features(hw=ALL, wanted=ALL & ~on("rx-lro"), active=ALL & ~on("rx-lro"))
    drivers = {2: Driver("mlx5_core", "6.1.0", "0000:00:03.0")}
    return HostState({link.ifindex: link for link in links}, {link.ifindex: state for link in links}, NAMES, drivers)


def desired_of(state: HostState, *policies: Policy) -> Desired:
    return resolve.resolve(policies or (FORWARDING,), Node("node-1"), state)


def named(*policies: str) -> Desired:
    """Policies that select this node and want nothing of any link."""
    return Desired({name: Policy(name, generation=7) for name in policies}, {})


def status_of(rows: Iterable[Row] = (), *, desired: Desired | None = None, **given: Any) -> dict[str, Any]:
    """The status, after the API's own model has found nothing wrong with it."""
    state = given.pop("state", NOTHING)
    desired = desired if desired is not None else named("forwarding")
    status = report.node_state(desired, state, rows, **{"now": NOON, "agent": AGENT, **given})
    NodeStateStatus.model_validate_json(compact(status))
    return status


def compact(status: Mapping[str, Any]) -> str:
    return json.dumps(status, separators=(",", ":"))


def condition(status: Mapping[str, Any], kind: str) -> dict[str, str]:
    return _only(entry for entry in status["conditions"] if entry["type"] == kind)


def said(status: Mapping[str, Any], kind: str) -> tuple[str, str]:
    found = condition(status, kind)
    return found["status"], found["reason"]


def link_of(status: Mapping[str, Any], name: str) -> dict[str, Any]:
    return _only(entry for entry in status["links"] if entry["name"] == name)


def _only(entries: Iterable[dict[str, Any]]) -> dict[str, Any]:
    (found,) = entries
    return found


# --- rows --------------------------------------------------------------------------------------------------


def test_every_reason_is_done_settled_or_failing_and_nothing_twice() -> None:
    assert sorted([*DONE, *report.SETTLED, *FAILING]) == sorted(Reason)


def test_failing_is_worse_than_settled_settled_than_pending_and_pending_than_done() -> None:
    groups = [[report.severity(row(reason)) for reason in group] for group in (DONE, (None,), report.SETTLED, FAILING)]
    for better, worse in itertools.pairwise(groups):
        assert max(better) < min(worse)


@pytest.mark.parametrize("reason", [None, *Reason], ids=str)
def test_only_the_failing_reasons_fail(reason: Reason | None) -> None:
    assert report.failing(row(reason)) == (reason in FAILING)


def test_the_first_of_the_failing_reasons_is_the_worst() -> None:
    assert max(map(row, FAILING), key=report.severity).reason is FAILING[0]


def test_a_pending_change_has_an_empty_reason_in_json() -> None:
    assert report.row_json(row(None, message="turn rx-lro on")) == {
        "subject": "link/eth0",
        "setting": "uplink.offloads.lro",
        "wanted": True,
        "actual": False,
        "reason": "",
        "message": "turn rx-lro on",
        "policy": "forwarding",
    }


def test_enums_are_plain_text_in_json_because_writers_of_yaml_know_no_others() -> None:
    module = Row("module/vhost_net", "vhost.module.state", ModuleWish.LOADED, None, Reason.MISSING, "", "vhost")
    shown = report.row_json(module)
    assert (shown["wanted"], shown["actual"], shown["reason"]) == ("Loaded", None, "Missing")
    assert {type(value) for value in shown.values()} == {str, type(None)}


def test_rows_of_one_name_become_the_worst_one_with_all_messages() -> None:
    rows = [row(Reason.HELD, message="held"), row(Reason.REFUSED, message="refused"), row(None, message="turn on")]
    assert report.merge([*rows, rows[0]]) == [row(Reason.REFUSED, message="refused; held; turn on")]


@pytest.mark.parametrize(
    "other",
    [row(link="eth1"), row(setting="uplink.offloads.tso"), row(policy="other")],
    ids=["another link", "another name", "another policy"],
)
def test_rows_of_different_names_links_or_policies_stay_apart(other: Row) -> None:
    assert len(report.merge([row(), other])) == 2


def test_what_is_done_is_no_row() -> None:
    assert report.merge([row(Reason.APPLIED), row(Reason.AS_ASKED)]) == []


def test_failing_rows_come_before_settled_ones_then_subjects_in_order() -> None:
    rows = [
        row(Reason.REFUSED, "b"),
        row(Reason.MISSING, "c"),
        row(Reason.REFUSED, "a"),
        row(Reason.IN_USE, "a", "tap.vnetHdr"),
        row(Reason.FIXED, "a", "tap.mtu"),
    ]
    for shuffled in itertools.permutations(rows):
        found = [(found.subject, found.reason) for found in report.merge(shuffled)]
        assert found == [
            ("link/a", Reason.REFUSED),
            ("link/b", Reason.REFUSED),
            ("link/c", Reason.MISSING),
            ("link/a", Reason.FIXED),
            ("link/a", Reason.IN_USE),
        ]


def test_a_summary_counts_asked_names_and_says_zero_of_the_other_reasons() -> None:
    rows = [row(), row(), row(Reason.FIXED, "eth1"), row(Reason.HELD, "eth2"), row(None, "eth3")]
    counts = report.summary(rows)
    assert {reason: count for reason, count in counts.items() if count} == {Reason.FIXED: 2, Reason.HELD: 1}
    assert set(counts) == set(Reason) - DONE


# --- conditions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "ready", "complete"),
    [
        ([], ("True", "AsAsked"), ("True", "AsAsked")),
        ([row(Reason.APPLIED)], ("True", "AsAsked"), ("True", "AsAsked")),
        ([row(Reason.FIXED)], ("True", "AsAsked"), ("False", "Fixed")),
        ([row(None)], ("True", "AsAsked"), ("False", "Pending")),
        ([row(Reason.FIXED), row(Reason.IN_USE, "eth1")], ("True", "AsAsked"), ("False", "InUse")),
        ([row(Reason.FIXED), row(Reason.REFUSED, "eth1")], ("False", "Refused"), ("False", "Refused")),
        ([row(Reason.REFUSED), row(Reason.ROLLED_BACK, "x")], ("False", "RolledBack"), ("False", "RolledBack")),
        ([row(Reason.TOO_MUCH_AT_ONCE, policy="gone")], ("False", "TooMuchAtOnce"), ("False", "TooMuchAtOnce")),
    ],
    ids=[
        "none",
        "applied",
        "settled",
        "pending",
        "two settled",
        "one failing",
        "two failing",
        "of a policy that is gone",
    ],
)
def test_a_node_is_ready_when_nothing_fails_and_complete_when_nothing_is_left(
    rows: list[Row], ready: tuple[str, str], complete: tuple[str, str]
) -> None:
    status = status_of(rows)
    assert (said(status, "Ready"), said(status, "Complete")) == (ready, complete)


def test_the_conditions_name_the_worst_setting_and_count_the_reasons() -> None:
    rows = [row(Reason.FIXED), row(Reason.FIXED, "eth1"), row(Reason.REFUSED, "eth2"), row(Reason.FAILED, "eth3")]
    status = status_of(rows)
    message = "2 settings fail, the worst: link/eth3 uplink.offloads.lro: the driver lacks it"
    assert condition(status, "Ready")["message"] == message
    assert condition(status, "Complete")["message"] == "not as asked: 1 Failed, 1 Refused, 2 Fixed"


def test_a_node_that_no_policy_selects_is_ready_and_says_so() -> None:
    status = status_of(desired=named())
    assert (said(status, "Ready"), said(status, "Complete")) == (("True", "NoPolicies"),) * 2


def test_policies_that_cannot_be_read_make_the_node_not_ready_beside_what_else_fails() -> None:
    unread = ("a.yaml:3: spec.uplink: unknown field", "b.yaml: it is empty")
    alone = status_of(policies_unread=unread)
    assert said(alone, "Ready") == said(alone, "Complete") == ("False", "Unreadable")
    assert all(sentence in condition(alone, "Ready")["message"] for sentence in unread)
    worse = status_of([row(Reason.MISSING)], policies_unread=unread)
    assert said(worse, "Ready") == ("False", "Missing")
    assert condition(worse, "Ready")["message"].startswith("1 setting fails: link/eth0")
    assert unread[1] in condition(worse, "Ready")["message"]
    assert condition(worse, "Complete")["message"] == "not as asked: 1 Missing; policies cannot be read"


@pytest.mark.parametrize(
    ("given", "expected", "message"),
    [
        ({}, ("False", "NotHeld"), "nothing is held"),
        ({"held": "until 23:15"}, ("True", "Held"), "the node is held until 23:15: reported, not changed"),
        ({"held": ""}, ("True", "Held"), "the node is held: reported, not changed"),
        (
            {"held_links": {"tap1": "until 23:15", "eth0": "until it is lifted"}},
            ("True", "LinksHeld"),
            "reported, not changed: eth0 until it is lifted, tap1 until 23:15",
        ),
    ],
    ids=["nothing", "the node", "without an end", "two links"],
)
def test_a_hold_is_a_condition_that_names_whom_and_until_when(
    given: dict[str, Any], expected: tuple[str, str], message: str
) -> None:
    status = status_of(**given)
    assert said(status, "Held") == expected
    assert condition(status, "Held")["message"] == message


def test_a_released_node_says_that_it_rests() -> None:
    assert said(status_of(released=True), "Released") == ("True", "Released")
    assert said(status_of(), "Released") == ("False", "NotReleased")


# --- times -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "since"),
    [
        ([], [], MORNING),
        ([], [row(Reason.FIXED)], MORNING),
        ([], [row(Reason.REFUSED)], NOON),
        ([row(Reason.REFUSED)], [row(Reason.MISSING)], MORNING),
        ([row(Reason.REFUSED)], [], NOON),
    ],
    ids=["still ready", "still ready, now settled", "fails now", "fails otherwise", "ready again"],
)
def test_a_condition_keeps_its_time_while_its_status_stays(before: list[Row], after: list[Row], since: str) -> None:
    status = status_of(after, previous=status_of(before, now=MORNING))
    assert condition(status, "Ready")["lastTransitionTime"] == since


@pytest.mark.parametrize(
    ("now", "since"),
    [
        (row(Reason.REFUSED), MORNING),
        (row(Reason.REFUSED, message="in other words"), MORNING),
        (row(Reason.FIXED), NOON),
        (row(Reason.REFUSED, policy="other"), NOON),
        (row(Reason.REFUSED, link="eth1"), NOON),
        (row(None), NOON),
    ],
    ids=["the same", "another message", "another reason", "another policy", "another link", "to be changed now"],
)
def test_a_setting_tells_since_when_it_is_blocked_for_this_reason(now: Row, since: str) -> None:
    (entry,) = status_of([now], previous=status_of([row(Reason.REFUSED)], now=MORNING))["settings"]
    assert entry["since"] == since


def test_a_host_that_did_not_change_gives_an_equal_status_whatever_the_time() -> None:
    state = host()
    rows = [row(Reason.REFUSED), row(Reason.FIXED, "tap3", "tap.offloads.gro")]
    before = status_of(rows, state=state, desired=desired_of(state), now=MORNING)
    after = status_of(reversed(rows), state=state, desired=desired_of(state), previous=before)
    assert compact(after) == compact(before)


ANY = st.recursive(
    st.sampled_from([None, True, 7, "Ready", "True", "link/eth0", MORNING]),
    lambda parts: st.lists(parts, max_size=2) | st.dictionaries(st.sampled_from(["type", "status", "since"]), parts),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["conditions", "settings"]), ANY))
@example({"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": None}], "settings": [{"since": 1}]})
def test_what_was_reported_by_another_version_is_only_mined_for_times(previous: dict[str, Any]) -> None:
    status = status_of([row()], previous=previous)
    assert status["settings"][0]["subject"] == "link/eth0"


# --- policies and settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], {"admitted": True, "ready": True, "reason": "AsAsked", "blocked": 0}),
        ([row(Reason.REFUSED, policy="other")], {"admitted": True, "ready": True, "reason": "AsAsked", "blocked": 0}),
        ([row(), row(link="eth1")], {"admitted": True, "ready": True, "reason": "Fixed", "blocked": 2}),
        ([row(), row(Reason.FAILED, "eth1")], {"admitted": True, "ready": False, "reason": "Failed", "blocked": 2}),
        ([row(None)], {"admitted": True, "ready": True, "blocked": 0}),
        ([row(Reason.NOT_ADMITTED)], {"admitted": False, "ready": True, "reason": "NotAdmitted", "blocked": 1}),
    ],
    ids=["as asked", "another fails", "settled", "failing", "pending", "not admitted"],
)
def test_a_policy_is_ready_when_none_of_its_own_rows_fails(rows: list[Row], expected: dict[str, Any]) -> None:
    (entry,) = status_of(rows, drifts={"forwarding": 4, "other": 9})["policies"]
    assert entry == {"name": "forwarding", "generation": 7, **expected, "drifts": 4}


def test_policies_are_listed_winners_first_and_counted() -> None:
    low, high = Policy("a"), Policy("b", priority=10)
    status = status_of([row(policy="a"), row(None)], desired=desired_of(host(), low, high))
    assert [entry["name"] for entry in status["policies"]] == ["b", "a"]
    assert status["counts"] == {"policies": 2, "blocked": 1, "restartsNeeded": 0}


def test_guests_that_wait_for_a_restart_are_counted_once_each() -> None:
    rows = [
        Row(f"guest/{name}/52:54:00:00:00:01", setting, 4, 1, Reason.RESTART_REQUIRED, "next start", "forwarding")
        for name, setting in (("vm1", "guest.nic.queues"), ("vm1", "guest.nic.packed"), ("vm2", "guest.nic.queues"))
    ]
    assert status_of(rows)["counts"] == {"policies": 1, "blocked": 3, "restartsNeeded": 2}


def test_a_setting_leaves_out_what_is_not_there() -> None:
    missing = Row("link/eth9", "bridge.ports", "br0", None, Reason.MISSING, "no link is named eth9", "forwarding")
    assert status_of([missing])["settings"] == [
        {
            "subject": "link/eth9",
            "setting": "bridge.ports",
            "wanted": "br0",
            "reason": "Missing",
            "message": "no link is named eth9",
            "policy": "forwarding",
            "since": NOON,
        }
    ]
    (pending,) = status_of([row(None)])["settings"]
    assert "reason" not in pending


def test_a_text_that_is_too_long_is_clipped_and_shows_it() -> None:
    (entry,) = status_of([row(Reason.FAILED, link="x" * 500, message="y" * 5000)])["settings"]
    assert (len(entry["subject"]), entry["subject"][-1]) == (report.LONGEST_TEXT, "…")
    assert (len(entry["message"]), entry["message"][-1]) == (report.LONGEST_MESSAGE, "…")


def test_the_time_of_a_clipped_setting_is_kept_too() -> None:
    long = row(Reason.FAILED, link="x" * 500)
    (entry,) = status_of([long], previous=status_of([long], now=MORNING))["settings"]
    assert entry["since"] == MORNING


# --- links -------------------------------------------------------------------------------------------------


def test_a_managed_link_shows_its_place_what_is_wanted_and_what_is_in_effect() -> None:
    state = host(taps=1)
    assert status_of(state=state, desired=desired_of(state))["links"] == [
        {
            "name": "br0",
            "role": "bridge",
            "driver": "bridge",
            "wanted": {"multicastSnooping": True},
            "effective": {"multicastSnooping": True},
        },
        {
            "name": "eth0",
            "role": "uplink",
            "driver": "mlx5_core",
            "master": "br0",
            "wanted": {"tso": True, "lro": False},
            "effective": {"tso": True, "lro": False},
        },
        {
            "name": "tap3",
            "role": "tap",
            "driver": "tun",
            "master": "br0",
            "wanted": {"gro": True, "gso": True, "mtu": 1500},
            "effective": {"gro": True, "gso": True, "mtu": 1500},
        },
    ]


def uplink(ask: tuple[str, bool], features: Features | Unreadable) -> dict[str, Any]:
    state = replace(host(taps=0), features={2: features})
    policy = Policy("p", bridge=BridgeSpec("br0"), uplink=UplinkSpec(offloads=(ask,)))
    return link_of(status_of(state=state, desired=desired_of(state, policy)), "eth0")


TSO = on("tx-tcp-segmentation", "tx-tcp6-segmentation")
TSO4 = on("tx-tcp-segmentation")


@pytest.mark.parametrize(
    ("ask", "features", "effective"),
    [
        (("tso", True), Features(ALL, ALL, ALL), {"tso": True}),
        (("tso", True), Features(ALL, ALL, ALL & ~TSO4), {"tso": False}),
        (("tso", False), Features(ALL, 0, TSO4), {"tso": True}),
        (("tso", True), Features(ALL & ~TSO4, ALL, ALL & ~TSO4), {"tso": True}),
        (("tso", True), Features(ALL & ~TSO, 0, 0), {"tso": False}),
        (("tso", False), Features(ALL & ~TSO, 0, 0), {"tso": False}),
        (("tso", False), Features(ALL & ~TSO, 0, TSO), {"tso": True}),
        (("tx-teleport", True), Features(ALL, ALL, ALL), {}),
        (("tso", True), Unreadable("no such device"), {}),
    ],
    ids=[
        "all members on",
        "one member off",
        "one member on that should be off",
        "a fixed member does not count",
        "fixed off",
        "fixed off, as wanted",
        "fixed on",
        "unknown to this kernel",
        "unreadable",
    ],
)
def test_a_feature_name_stands_for_its_changeable_members(
    ask: tuple[str, bool], features: Features | Unreadable, effective: dict[str, bool]
) -> None:
    entry = uplink(ask, features)
    assert (entry["wanted"], entry["effective"]) == (dict([ask]), effective)


def test_a_link_shows_what_the_winner_wants_and_the_loser_is_a_setting() -> None:
    state = host(taps=0)
    high = Policy("high", priority=1, uplink=UplinkSpec(match=Match(names=("eth0",)), offloads=(("gro", False),)))
    low = Policy("low", uplink=UplinkSpec(match=Match(names=("eth0",)), offloads=(("gro", True),)))
    desired = desired_of(state, low, high)
    rows = plan.make_plan(desired, state, Recorded()).blocked
    status = status_of(rows, state=state, desired=desired)
    assert link_of(status, "eth0")["wanted"] == {"gro": False}
    assert [(entry["policy"], entry["reason"]) for entry in status["settings"]] == [("low", "OverriddenBy")]


def test_links_with_something_to_say_come_first() -> None:
    state = host(taps=3)
    status = status_of([row(link="tap4")], state=state, desired=desired_of(state))
    assert [entry["name"] for entry in status["links"]] == ["tap4", "br0", "eth0", "tap3", "tap5"]


def test_a_link_that_is_gone_or_only_audited_is_not_managed() -> None:
    state = host(taps=1)
    desired = desired_of(state)
    gone = replace(state, links={index: link for index, link in state.links.items() if link.name != "tap3"})
    assert [entry["name"] for entry in status_of(state=gone, desired=desired)["links"]] == ["br0", "eth0"]
    audited = desired_of(state, replace(FORWARDING, mode=Mode.AUDIT))
    assert status_of(state=state, desired=audited)["links"] == []


def test_links_share_no_map_that_a_reader_could_change_for_all_of_them() -> None:
    state = host(taps=2)
    links = status_of(state=state, desired=desired_of(state))["links"]
    maps = [id(link[part]) for link in links for part in ("wanted", "effective")]
    assert len(set(maps)) == len(maps)


def test_a_link_of_which_nothing_is_wanted_is_listed_without_a_wish() -> None:
    state = host(taps=0)
    desired = desired_of(state, Policy("p", bridge=BridgeSpec("br0")))
    assert status_of(state=state, desired=desired)["links"] == [{"name": "br0", "role": "bridge", "driver": "bridge"}]


# --- vhost -------------------------------------------------------------------------------------------------


def test_the_module_is_shown_with_its_users() -> None:
    users = (Process(100, "qemu-system-x86", "vm1"), Process(200, "vhost-test"))
    module = ModuleState("vhost_net", ModuleStatus.LOADED, 2, {"experimental_zcopytx": "0"}, users)
    assert status_of(state=replace(NOTHING, module=module))["vhost"] == {
        "module": "Loaded",
        "refcount": 2,
        "parameters": {"experimental_zcopytx": "0"},
        "users": ["qemu-system-x86[100] (guest vm1)", "vhost-test[200]"],
    }


def test_a_module_that_is_absent_has_no_more_to_say_and_one_that_was_not_read_nothing() -> None:
    absent = ModuleState("vhost_net", ModuleStatus.ABSENT)
    assert status_of(state=replace(NOTHING, module=absent))["vhost"] == {"module": "Absent"}
    assert "vhost" not in status_of()


def test_of_many_users_some_are_named_and_the_others_counted() -> None:
    users = tuple(Process(pid, "qemu") for pid in range(500))
    module = ModuleState("vhost_net", ModuleStatus.LOADED, 500, users=users)
    shown = status_of(state=replace(NOTHING, module=module))["vhost"]["users"]
    assert len(shown) == report.MOST_NAMES + 1
    assert shown[-1] == "and 468 more"


# --- size --------------------------------------------------------------------------------------------------


def test_a_usual_node_takes_less_than_four_kibibytes() -> None:
    """A bridge, an uplink, 16 guests, vhost_net in use by all of them, and two things that cannot be had."""
    users = tuple(Process(1000 + number, "qemu-system-x86", f"guest-{number}") for number in range(4))
    state = replace(host(taps=16), module=ModuleState("vhost_net", ModuleStatus.LOADED, 16, users=users))
    rows = [row(), row(Reason.IN_USE, "tap3", "tap.vnetHdr", message="tap3 is held by qemu-system-x86[1000]")]
    status = status_of(rows, state=state, desired=desired_of(state))
    assert len(status["links"]) == 18
    assert "omitted" not in status
    assert len(compact(status)) < 4096


@pytest.mark.parametrize(
    ("taps", "blocked", "omitted"),
    [
        (20, 0, set()),
        (1000, 0, {"links"}),
        (1000, 10, {"links"}),
        (20, 2000, {"links", "settings"}),
        (1000, 2000, {"links", "settings"}),
    ],
)
def test_too_much_is_cut_links_first_and_counted(taps: int, blocked: int, omitted: set[str]) -> None:
    state = host(taps)
    rows = [row(Reason.FIXED, f"veth{number}", message="m" * 200) for number in range(blocked)]
    status = status_of(rows, state=state, desired=desired_of(state))
    assert len(compact(status)) <= report.LIMIT
    cut = status.get("omitted", {})
    assert set(cut) == omitted
    assert len(status["links"]) + cut.get("links", 0) == taps + 2
    assert len(status["settings"]) + cut.get("settings", 0) == blocked
    if omitted:
        assert len(compact(status)) > report.LIMIT - 512


def test_links_with_something_to_say_are_cut_after_those_as_asked() -> None:
    state = host(taps=1000)
    rows = [row(Reason.FIXED, f"tap{number}", "tap.offloads.gro", message="no") for number in range(900, 1000)]
    status = status_of(rows, state=state, desired=desired_of(state))
    shown = {entry["name"] for entry in status["links"]}
    assert status["omitted"].keys() == {"links"}
    assert {f"tap{number}" for number in range(900, 1000)} < shown


def test_settings_are_cut_from_the_least_severe_and_shown_in_the_usual_order() -> None:
    reasons = (Reason.AUDIT_ONLY, Reason.CONTENDED, Reason.FIXED, Reason.ROLLED_BACK)
    rows = [row(reason, f"l{number}", str(reason), message="m" * 500) for number in range(40) for reason in reasons]
    status = status_of(rows)
    kept = [entry["reason"] for entry in status["settings"]]
    assert (kept.count("RolledBack"), kept.count("Contended")) == (40, 40)
    assert 0 < kept.count("Fixed") < 40
    assert "AuditOnly" not in kept
    assert kept == sorted(kept, key=lambda reason: reason == "Fixed")
    subjects = [entry["subject"] for entry in status["settings"][:80]]
    assert subjects == sorted(subjects)


def test_a_list_never_has_more_entries_than_the_api_takes() -> None:
    rows = [Row(f"link/l{number}", "s", None, None, Reason.FIXED, "", "p") for number in range(600)]
    status = status_of(rows, desired=named("p"))
    assert (len(status["settings"]), status["omitted"]) == (512, {"settings": 88})


@pytest.mark.parametrize("part", ["wanted", "effective"])
def test_a_link_never_shows_more_wishes_than_the_api_takes(part: str) -> None:
    names = tuple(f"rx-feature-{number}" for number in range(100))
    state = HostState({2: Link(2, "eth0", physical=True)}, {2: Features((1 << 100) - 1, 0, 0)}, names)
    asks = tuple((name, True) for name in names)
    policy = Policy("p", uplink=UplinkSpec(match=Match(names=("eth0",)), offloads=asks))
    (entry,) = status_of(state=state, desired=desired_of(state, policy))["links"]
    assert len(entry[part]) == managed.MOST_WANTED


ROWS = st.builds(
    Row,
    st.text(max_size=300),
    st.text(max_size=60),
    st.none() | st.booleans() | st.integers(-(2**31), 2**31) | st.text(max_size=300),
    st.none() | st.booleans() | st.text(max_size=20),
    st.none() | st.sampled_from(Reason),
    st.text(max_size=900),
    st.sampled_from(["forwarding", "a", "b"]),
)


@given(
    rows=st.lists(ROWS, max_size=12),
    times=st.integers(1, 60),
    taps=st.sampled_from([0, 1, 30, 700]),
    policies=st.integers(0, 200),
    unread=st.lists(st.text(max_size=400), max_size=4),
    holds=st.dictionaries(st.text(max_size=15), st.text(max_size=40), max_size=50),
)
@example(rows=[row(Reason.FAILED, message="\U0001f525" * 900)], times=60, taps=700, policies=200, unread=[], holds={})
def test_a_status_is_never_too_large_never_refused_and_never_loses_count(
    rows: list[Row], times: int, taps: int, policies: int, unread: list[str], holds: dict[str, str]
) -> None:
    state = host(taps)
    desired = desired_of(state)
    more = {f"policy-{number}": Policy(f"policy-{number}") for number in range(policies)}
    desired = replace(desired, policies={**desired.policies, **more})
    many = [replace(one, subject=f"{one.subject}{number}") for one in rows for number in range(times)]
    status = status_of(many, state=state, desired=desired, policies_unread=unread, held_links=holds)
    omitted = status.get("omitted", {})
    assert len(compact(status)) <= report.LIMIT
    assert len(status["conditions"]) == 4
    assert [entry["name"] for entry in status["policies"]] == list(desired.policies)
    assert len(status["settings"]) + omitted.get("settings", 0) == len(report.merge(many))
    assert len(status["links"]) + omitted.get("links", 0) == taps + 2
    assert not (omitted.get("settings") and status["links"])


def test_a_thousand_links_as_asked_cost_a_few_calls_each() -> None:
    """Calls are counted, not seconds: they are the same on every machine. A pass without news has to stay cheap."""
    state = host(taps=1000)
    desired = desired_of(state)
    profile = cProfile.Profile()
    profile.runcall(report.node_state, desired, state, (), now=NOON, agent=AGENT)
    assert pstats.Stats(profile).total_calls < 20 * len(state.links)  # type: ignore[attr-defined]


# --- from the plan to the status ---------------------------------------------------------------------------


def test_what_the_plan_finds_is_what_the_node_says() -> None:
    state = host(taps=1)
    lacks_lro = Features(ALL & ~on("rx-lro"), ALL, ALL & ~on("rx-lro"))
    state = replace(state, features={**state.features, 2: lacks_lro, 3: Features(ALL, 0, 0)})
    policy = replace(FORWARDING, uplink=UplinkSpec(offloads=(("lro", True), ("tx-teleport", True))))
    desired = desired_of(state, policy)
    found = plan.make_plan(desired, state, Recorded())
    status = status_of([*found.blocked, *found.pending], state=state, desired=desired)
    assert [(entry["subject"], entry["setting"], entry.get("reason")) for entry in status["settings"]] == [
        ("link/eth0", "uplink.offloads.lro", "Fixed"),
        ("link/eth0", "uplink.offloads.tx-teleport", "Unsupported"),
        ("link/tap3", "tap.offloads.gro", None),
        ("link/tap3", "tap.offloads.gso", None),
    ]
    assert said(status, "Ready") == ("True", "AsAsked")
    assert condition(status, "Complete")["message"] == "not as asked: 1 Unsupported, 1 Fixed, 2 Pending"
