"""The module surface: a table of what is wanted and what is there, and what is then said or done."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from virtnet.core import modules
from virtnet.core.model import (
    Deletion,
    Entry,
    LoadModule,
    ModuleState,
    ModuleStatus,
    ModuleWish,
    Process,
    Reason,
    RemoveModuleFile,
    Row,
    Setting,
    Step,
    UnloadModule,
    Value,
    WriteModuleFile,
)

LOAD_FILE = "/etc/modules-load.d/virtnet-vhost_net.conf"
RULE_FILE = "/etc/modprobe.d/virtnet-vhost_net.conf"
LOADS = "# managed by virtnet\nvhost_net\n"
OPTION = "# managed by virtnet\noptions vhost_net experimental_zcopytx=1\n"
KEEPS_OUT = "# managed by virtnet\ninstall vhost_net /bin/false\n"
NOT_OURS = "vhost_net\n"

QEMU = Process(42, "qemu-system-x86", "web1")


def there(
    status: str,
    refcount: int = 0,
    zcopytx: str | None = "0",
    files: Mapping[str, str] | None = None,
    users: bool = True,
) -> ModuleState:
    """The module as a look would see it."""
    loaded = status == "Loaded"
    return ModuleState(
        "vhost_net",
        ModuleStatus(status),
        refcount=refcount if loaded else None,
        parameters={"experimental_zcopytx": zcopytx} if zcopytx is not None and status in {"Loaded", "BuiltIn"} else {},
        users=(QEMU,) if refcount and users else (),
        files=files or {},
    )


def want(state: str, zcopytx: int | None = None, persist: bool = False) -> modules.ModuleWant:
    parameters = () if zcopytx is None else (("experimental_zcopytx", zcopytx, "tuned"),)
    return modules.ModuleWant(ModuleWish(state), "vhost", parameters=parameters, persist=persist, persist_policy="kept")


def told(steps: list[Step]) -> list[str]:
    """Steps as text: what a reader would do by hand."""
    return [_told(step) for step in steps]


def _told(step: Step) -> str:
    match step.change:
        case LoadModule(name, parameters):
            return " ".join(["load", name, *(f"{key}={number}" for key, number in parameters)])
        case UnloadModule(name):
            return f"unload {name}"
        case WriteModuleFile(path, content):
            return f"write {path}: {content.splitlines()[1]}"
        case RemoveModuleFile(path):
            return f"remove {path}"
    raise AssertionError(step)


def reasons(rows: list[Row]) -> list[str]:
    return [f"{row.setting} {row.reason}" for row in rows]


STATE = "vhost.module.state"
PARAMETER = "vhost.module.parameters.experimental_zcopytx"
PERSIST = "vhost.module.persist"


@pytest.mark.parametrize(
    ("wanted", "observed", "steps", "blocked"),
    [
        pytest.param(want("Loaded"), there("Loaded"), [], [], id="loaded as wanted"),
        pytest.param(want("Loaded"), there("Absent"), ["load vhost_net"], [], id="absent and wanted"),
        pytest.param(want("Loaded"), there("BuiltIn"), [], [], id="built in is as good as loaded"),
        pytest.param(want("Loaded"), there("Missing"), [], [f"{STATE} Missing"], id="this kernel lacks it"),
        pytest.param(want("Absent"), there("Loaded"), ["unload vhost_net"], [], id="loaded and unwanted"),
        pytest.param(want("Absent"), there("Loaded", 2), [], [f"{STATE} InUse"], id="unwanted and held"),
        pytest.param(want("Absent"), there("BuiltIn"), [], [f"{STATE} BuiltIn"], id="built in and unwanted"),
        pytest.param(want("Absent"), there("Absent"), [], [], id="absent as wanted"),
        pytest.param(want("Absent"), there("Missing"), [], [], id="missing is as good as absent"),
        pytest.param(
            want("Loaded", 1),
            there("Absent"),
            ["load vhost_net experimental_zcopytx=1"],
            [],
            id="it is loaded with its parameter",
        ),
        pytest.param(want("Loaded", 1), there("Loaded", zcopytx="1"), [], [], id="the parameter is as wanted"),
        pytest.param(
            want("Loaded", 1),
            there("Loaded"),
            ["unload vhost_net", "load vhost_net experimental_zcopytx=1"],
            [],
            id="another parameter needs a reload",
        ),
        pytest.param(want("Loaded", 1), there("Loaded", 1), [], [f"{PARAMETER} InUse"], id="a reload waits while held"),
        pytest.param(want("Loaded", 1), there("Loaded", 1, "1"), [], [], id="held with the right parameter"),
        pytest.param(
            want("Loaded", 1), there("Loaded", zcopytx=None), [], [f"{PARAMETER} Unsupported"], id="no such parameter"
        ),
        pytest.param(want("Loaded", 1), there("BuiltIn"), [], [f"{PARAMETER} BuiltIn"], id="a parameter built in"),
        pytest.param(want("Loaded", 0), there("BuiltIn"), [], [], id="a parameter built in as wanted"),
        pytest.param(
            want("Loaded", 1),
            there("Missing"),
            [],
            [f"{STATE} Missing", f"{PARAMETER} Missing"],
            id="a parameter of what is missing",
        ),
        pytest.param(
            want("Absent", 1),
            there("Absent"),
            [],
            [f"{PARAMETER} Unsupported"],
            id="a parameter of what is to be absent",
        ),
        pytest.param(
            want("Unmanaged", 1),
            there("Loaded"),
            ["unload vhost_net", "load vhost_net experimental_zcopytx=1"],
            [],
            id="only the parameter is wanted",
        ),
        pytest.param(want("Unmanaged", 1), there("Absent"), [], [], id="nothing is loaded for a parameter alone"),
    ],
)
def test_state_and_parameters(
    wanted: modules.ModuleWant, observed: ModuleState, steps: list[str], blocked: list[str]
) -> None:
    planned, rows = modules.diff(wanted, observed)
    assert (told(planned), reasons(rows)) == (steps, blocked)


@pytest.mark.parametrize(
    ("wanted", "observed", "steps", "blocked"),
    [
        pytest.param(
            want("Loaded", persist=True),
            there("Loaded"),
            [f"write {LOAD_FILE}: vhost_net"],
            [],
            id="a missing file is a pending change",
        ),
        pytest.param(
            want("Loaded", persist=True), there("Loaded", files={LOAD_FILE: LOADS}), [], [], id="all is there"
        ),
        pytest.param(
            want("Loaded", persist=True),
            there("Loaded", files={LOAD_FILE: LOADS + "tun\n"}),
            [f"write {LOAD_FILE}: vhost_net"],
            [],
            id="a different file of ours is replaced",
        ),
        pytest.param(
            want("Loaded", 1, persist=True),
            there("Loaded", zcopytx="1"),
            [f"write {LOAD_FILE}: vhost_net", f"write {RULE_FILE}: options vhost_net experimental_zcopytx=1"],
            [],
            id="a parameter is kept by an options line",
        ),
        pytest.param(
            want("Loaded", persist=True),
            there("Loaded", files={LOAD_FILE: LOADS, RULE_FILE: OPTION}),
            [f"remove {RULE_FILE}"],
            [],
            id="an option that nobody wants any more goes",
        ),
        pytest.param(
            want("Absent", persist=True),
            there("Loaded", files={LOAD_FILE: LOADS}),
            [f"remove {LOAD_FILE}", f"write {RULE_FILE}: install vhost_net /bin/false", "unload vhost_net"],
            [],
            id="from loaded to absent the rule comes before the unloading",
        ),
        pytest.param(
            want("Loaded", persist=True),
            there("Absent", files={RULE_FILE: KEEPS_OUT}),
            [f"write {LOAD_FILE}: vhost_net", f"remove {RULE_FILE}", "load vhost_net"],
            [],
            id="from absent to loaded our rule goes before the loading",
        ),
        pytest.param(
            want("Absent", persist=True),
            there("Loaded", 1),
            [f"write {RULE_FILE}: install vhost_net /bin/false"],
            [f"{STATE} InUse"],
            id="held now and kept out from the next boot on",
        ),
        pytest.param(
            want("Loaded", persist=True),
            there("Loaded", files={LOAD_FILE: NOT_OURS}),
            [],
            [f"{PERSIST} Foreign"],
            id="a file without our mark is never replaced",
        ),
        pytest.param(
            want("Absent", persist=True),
            there("Absent", files={LOAD_FILE: NOT_OURS, RULE_FILE: KEEPS_OUT}),
            [],
            [f"{PERSIST} Foreign"],
            id="a file without our mark is never removed",
        ),
        pytest.param(want("Loaded", persist=True), there("BuiltIn"), [], [], id="what is built in needs no file"),
        pytest.param(
            want("Loaded", persist=True), there("Missing"), [], [f"{STATE} Missing"], id="no file loads what is missing"
        ),
        pytest.param(
            want("Absent", persist=True),
            there("Missing"),
            [f"write {RULE_FILE}: install vhost_net /bin/false"],
            [],
            id="the next kernel may have what is to stay out",
        ),
        pytest.param(
            want("Unmanaged", 1, persist=True),
            there("Absent"),
            [f"write {RULE_FILE}: options vhost_net experimental_zcopytx=1"],
            [],
            id="a parameter alone is kept by its option alone",
        ),
        pytest.param(want("Loaded"), there("Loaded"), [], [], id="not asked to be kept"),
    ],
)
def test_persistence(wanted: modules.ModuleWant, observed: ModuleState, steps: list[str], blocked: list[str]) -> None:
    planned, rows = modules.diff(wanted, observed)
    assert (told(planned), reasons(rows)) == (steps, blocked)


def test_users_are_named_with_their_guest() -> None:
    _, rows = modules.diff(want("Absent"), there("Loaded", 1))
    assert rows == [
        Row(
            "module/vhost_net",
            STATE,
            "Absent",
            "Loaded",
            Reason.IN_USE,
            "vhost_net is in use by qemu-system-x86[42] (guest web1); it is unloaded when they let go",
            "vhost",
        )
    ]


def test_a_user_that_cannot_be_seen_is_said_to_be_there() -> None:
    _, rows = modules.diff(want("Absent"), there("Loaded", 3, users=False))
    assert "cannot be seen from here (reference count 3)" in rows[0].message


def test_a_pending_row_says_what_is_asked_what_is_there_and_for_whom() -> None:
    steps, _ = modules.diff(want("Loaded", 1), there("Loaded"))
    row = Row("module/vhost_net", PARAMETER, 1, 0, None, "unload and load vhost_net", "tuned")
    assert [step.rows for step in steps] == [(row,), (row,)]
    assert [step.settings for step in steps] == [((Setting("vhost_net", "parameters.experimental_zcopytx"), 1),)] * 2
    assert [step.policy for step in steps] == ["tuned", "tuned"]


def test_a_step_on_files_belongs_to_the_policy_that_asked_for_persistence() -> None:
    steps, _ = modules.diff(want("Loaded", persist=True), there("Loaded"))
    assert [(step.policy, step.settings) for step in steps] == [("kept", ((Setting("vhost_net", "persist"), True),))]


def test_the_field_that_asked_is_the_one_that_is_named() -> None:
    asked = modules.ModuleWant(ModuleWish.LOADED, "vhost", path="vhost.mode", persist=False)
    steps, _ = modules.diff(asked, there("Absent"))
    assert [row.setting for row in steps[0].rows] == ["vhost.mode"]


def test_what_cannot_be_had_is_unmet_and_so_no_drift_when_it_can_be_had_at_last() -> None:
    used = there("Loaded", refcount=1, files={RULE_FILE: NOT_OURS})
    for wanted, keys in (
        (want("Absent", persist=True), {"state", "persist"}),
        (want("Loaded", 1), {"parameters.experimental_zcopytx"}),
        (modules.ModuleWant(ModuleWish.ABSENT, "vhost", path="vhost.mode", persist=False), {"state"}),
    ):
        _, rows = modules.diff(wanted, used)
        assert set(modules.unmet(wanted, rows)) == {Setting("vhost_net", key) for key in keys}
    _, rows = modules.diff(want("Loaded"), used)
    assert list(modules.unmet(want("Loaded"), rows)) == []


def test_every_wanted_setting_is_claimed_with_what_was_there() -> None:
    entries = modules.claims(want("Loaded", 1, persist=True), there("Loaded", files={LOAD_FILE: LOADS}))
    assert [(entry.setting.key, entry.original, entry.wanted, entry.policy) for entry in entries] == [
        ("state", "Loaded", "Loaded", "vhost"),
        ("parameters.experimental_zcopytx", 0, 1, "tuned"),
        ("persist", None, True, "kept"),
    ]


def test_a_parameter_of_a_module_that_is_not_loaded_has_no_original() -> None:
    originals = {entry.setting.key: entry.original for entry in modules.claims(want("Loaded", 1), there("Absent"))}
    assert originals == {"state": "Absent", "parameters.experimental_zcopytx": None}


@pytest.mark.parametrize(
    ("text", "value"), [("Y", 1), ("N", 0), ("1", 1), ("-1", -1), ("0x10", 16), ("(null)", "(null)")]
)
def test_a_parameter_is_compared_as_a_number_where_it_is_one(text: str, value: Value) -> None:
    assert modules.value(there("Loaded", zcopytx=text), "parameters.experimental_zcopytx") == value


@pytest.mark.parametrize(
    ("line", "keeps_out"),
    [
        ("install vhost_net /bin/false", True),
        ("  install\tvhost_net /bin/true", True),
        ("# install vhost_net /bin/false", False),
        ("install vhost_net_extra /bin/false", False),
        ("blacklist vhost_net", False),
    ],
)
def test_only_an_install_rule_keeps_modprobe_from_loading_by_name(line: str, keeps_out: bool) -> None:
    assert modules.keeps_out(f"# a comment\n{line}\n", "vhost_net") is keeps_out


# --- putting back ------------------------------------------------------------------------------------------


def held(key: str, original: Value | None, wanted: Value | None) -> dict[str, Entry]:
    return {key: Entry(Setting("vhost_net", key), original, wanted, "old", Deletion.RESTORE)}


WAS_ABSENT = held("state", "Absent", "Loaded")
WAS_LOADED = held("state", "Loaded", "Absent")
WAS_ZERO = held("parameters.experimental_zcopytx", 0, 1)
WAS_UNKNOWN = held("parameters.experimental_zcopytx", None, 1)
HAD_NO_FILE = held("persist", None, True)


@pytest.mark.parametrize(
    ("entries", "observed", "steps", "said", "forgotten"),
    [
        pytest.param(WAS_ABSENT, there("Loaded"), ["unload vhost_net"], [], [], id="it was absent"),
        pytest.param(WAS_ABSENT, there("Absent"), [], [], ["state"], id="it is absent again"),
        pytest.param(WAS_ABSENT, there("Loaded", 1), [], [f"{STATE} InUse"], [], id="it was absent and is held now"),
        pytest.param(WAS_ABSENT, there("BuiltIn"), [], [], ["state"], id="another kernel has it built in"),
        pytest.param(WAS_LOADED, there("Absent"), ["load vhost_net"], [], [], id="it was loaded"),
        pytest.param(WAS_LOADED, there("Missing"), [], [], ["state"], id="another kernel lacks it"),
        pytest.param(
            WAS_ZERO,
            there("Loaded", zcopytx="1"),
            ["unload vhost_net", "load vhost_net experimental_zcopytx=0"],
            [],
            [],
            id="its parameter was another",
        ),
        pytest.param(
            WAS_ZERO, there("Loaded"), [], [], ["parameters.experimental_zcopytx"], id="its parameter is as it was"
        ),
        pytest.param(
            WAS_ZERO,
            there("Loaded", zcopytx="7"),
            [],
            [f"{PARAMETER} Foreign"],
            ["parameters.experimental_zcopytx"],
            id="its parameter is neither ours nor the original",
        ),
        pytest.param(WAS_ZERO, there("Loaded", 1, "1"), [], [f"{PARAMETER} InUse"], [], id="its parameter waits"),
        pytest.param(
            WAS_ZERO, there("Absent"), [], [], ["parameters.experimental_zcopytx"], id="the parameter's module is gone"
        ),
        pytest.param(
            WAS_UNKNOWN,
            there("Loaded", zcopytx="1"),
            [],
            [],
            ["parameters.experimental_zcopytx"],
            id="nobody knows what its parameter would have been",
        ),
        pytest.param(
            WAS_ABSENT | WAS_UNKNOWN,
            there("Loaded", zcopytx="1"),
            ["unload vhost_net"],
            [],
            ["parameters.experimental_zcopytx"],
            id="its parameter goes with it",
        ),
        pytest.param(
            HAD_NO_FILE,
            there("Loaded", files={LOAD_FILE: LOADS, RULE_FILE: OPTION}),
            [f"remove {RULE_FILE}", f"remove {LOAD_FILE}"],
            [],
            [],
            id="our files go",
        ),
        pytest.param(HAD_NO_FILE, there("Loaded"), [], [], ["persist"], id="our files are gone"),
        pytest.param(
            HAD_NO_FILE,
            there("Loaded", files={LOAD_FILE: NOT_OURS}),
            [],
            [f"{PERSIST} Foreign"],
            ["persist"],
            id="a file that lost our mark is another's",
        ),
        pytest.param({}, there("Loaded"), [], [], [], id="nothing is held"),
    ],
)
def test_restoring(
    entries: dict[str, Entry], observed: ModuleState, steps: list[str], said: list[str], forgotten: list[str]
) -> None:
    planned, rows, settings = modules.restore(entries, observed)
    assert (told(planned), reasons(rows), [setting.key for setting in settings]) == (steps, said, forgotten)
    assert all(step.restores and step.policy == "old" for step in planned)


def test_a_reload_for_the_original_keeps_what_is_still_wanted() -> None:
    still = modules.ModuleWant(ModuleWish.LOADED, "vhost", parameters=(("other", 3, "vhost"),))
    observed = ModuleState(
        "vhost_net", ModuleStatus.LOADED, refcount=0, parameters={"experimental_zcopytx": "1", "other": "3"}
    )
    steps, _, _ = modules.restore(WAS_ZERO, observed, still)
    assert told(steps) == ["unload vhost_net", "load vhost_net other=3 experimental_zcopytx=0"]


def test_a_module_that_is_to_be_absent_now_gets_no_parameter_back() -> None:
    steps, rows, forgotten = modules.restore(WAS_ZERO, there("Loaded", zcopytx="1"), want("Absent"))
    assert (steps, rows, len(forgotten)) == ([], [], 1)
