"""vhost_net on a stock kernel: what is read, loaded, unloaded, kept over a reboot, and what stands in the way."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.lab.conftest import FILES, Module, run, uevents, wait_for
from tests.lab.guest import NAME, Guest
from virtnet.core import modules as rules
from virtnet.core.model import (
    LoadModule,
    ModuleState,
    ModuleStatus,
    ModuleWish,
    Reason,
    RemoveModuleFile,
    Step,
    UnloadModule,
    WriteModuleFile,
)
from virtnet.errors import InUse, NotSupported, Refused
from virtnet.host import modules, processes

VHOST = "vhost_net"
ZCOPYTX = "experimental_zcopytx"
LOAD_FILE, RULE_FILE = FILES


def look() -> ModuleState:
    return modules.read(VHOST, users=processes.look().vhost)


def make(step: Step) -> None:
    match step.change:
        case LoadModule(name, parameters):
            modules.load(name, parameters)
        case UnloadModule(name):
            modules.unload(name)
        case WriteModuleFile(path, content):
            modules.write_file(path, content)
        case RemoveModuleFile(path):
            modules.remove_file(path)
        case other:
            raise AssertionError(other)


def enforce(want: rules.ModuleWant) -> list[Reason | None]:
    """Plan, act twice (every change can be made twice), look again; the reasons of what is left."""
    steps, _ = rules.diff(want, look())
    for step in steps:
        make(step)
    for step in [step for step in steps if not isinstance(step.change, UnloadModule | LoadModule)]:
        make(step)
    leftover, rows = rules.diff(want, look())
    assert leftover == []
    return [row.reason for row in rows]


def want(state: str, zcopytx: int | None = None, persist: bool = True) -> rules.ModuleWant:
    parameters = () if zcopytx is None else ((ZCOPYTX, zcopytx, "lab"),)
    return rules.ModuleWant(ModuleWish(state), "lab", parameters=parameters, persist=persist)


def parameter() -> str:
    return Path("/sys/module", VHOST, "parameters", ZCOPYTX).read_text().strip()


# --- without users -----------------------------------------------------------------------------------------


def test_a_module_is_read_as_absent_then_loaded_then_absent(module: Module) -> None:
    assert look().status is ModuleStatus.ABSENT
    module.load()
    assert (look().status, look().refcount, dict(look().parameters)) == (ModuleStatus.LOADED, 0, {ZCOPYTX: "0"})
    module.remove()
    assert look().status is ModuleStatus.ABSENT


@pytest.mark.parametrize(
    ("name", "status"),
    [("unix", ModuleStatus.BUILT_IN), ("virtnet_nonsense", ModuleStatus.MISSING), ("8021q", ModuleStatus.ABSENT)],
)
def test_what_is_built_in_missing_or_only_on_disk_is_told_apart(name: str, status: ModuleStatus) -> None:
    subprocess.run(["modprobe", "--remove", "8021q"], capture_output=True, check=False)
    assert modules.read(name).status is status


def test_loading_and_unloading_can_be_done_twice(module: Module) -> None:
    for _ in range(2):
        modules.load(VHOST)
        assert module.loaded
    for _ in range(2):
        modules.unload(VHOST)
        assert not module.loaded


def test_unloading_takes_no_other_module_along(module: Module) -> None:
    module.load()
    modules.unload(VHOST)
    assert {"vhost", "tun"} <= {line.split()[0] for line in run("lsmod").splitlines()}


def test_a_parameter_is_loaded_with_the_module_and_changed_by_a_reload(module: Module) -> None:
    assert enforce(want("Loaded", 1, persist=False)) == []
    assert parameter() == "1"
    assert enforce(want("Loaded", 0, persist=False)) == []
    assert parameter() == "0"


def test_loading_what_is_loaded_with_another_parameter_says_what_is_needed(module: Module) -> None:
    module.load(f"{ZCOPYTX}=1")
    with pytest.raises(Refused, match="loaded with experimental_zcopytx=1; only a reload changes it"):
        modules.load(VHOST, ((ZCOPYTX, 0),))


def test_a_parameter_that_the_module_lacks_is_not_supported(module: Module) -> None:
    with pytest.raises(NotSupported, match="has no parameter nonsense"):
        modules.load(VHOST, (("nonsense", 1),))
    asked = rules.ModuleWant(ModuleWish.LOADED, "lab", parameters=(("nonsense", 1, "lab"),), persist=False)
    assert enforce(asked) == [Reason.UNSUPPORTED]


def test_a_module_that_the_kernel_lacks_is_not_supported() -> None:
    with pytest.raises(NotSupported, match=r"the running kernel \S+ does not have virtnet_nonsense: .*not found"):
        modules.load("virtnet_nonsense")


def test_what_is_built_in_is_loaded_and_cannot_be_unloaded() -> None:
    modules.load("unix")
    with pytest.raises(Refused, match="built into the running kernel"):
        modules.unload("unix")


def test_what_the_kernel_refuses_to_load_is_refused_with_its_words(module: Module) -> None:
    with pytest.raises(Refused, match="vhost_net cannot be loaded: could not insert 'vhost_net': Numerical result"):
        modules.load(VHOST, ((ZCOPYTX, 1 << 40),))


def test_what_was_there_before_is_put_back(module: Module) -> None:
    module.load()
    wanted = want("Loaded", 1)
    entries = {entry.setting.key: entry for entry in rules.claims(wanted, look())}
    enforce(wanted)
    for step in rules.restore(entries, look())[0]:
        make(step)
    steps, rows, forgotten = rules.restore(entries, look())
    assert (steps, rows, len(forgotten)) == ([], [], 3)
    assert (module.loaded, parameter(), LOAD_FILE.exists(), RULE_FILE.exists()) == (True, "0", False, False)


# --- over a reboot -----------------------------------------------------------------------------------------


def test_a_kept_module_is_loaded_with_its_parameter_by_what_runs_at_boot(module: Module) -> None:
    assert enforce(want("Loaded", 1)) == []
    module.remove()
    run("/usr/lib/systemd/systemd-modules-load")
    assert (module.loaded, parameter()) == (True, "1")


def test_a_module_kept_out_is_loaded_neither_by_name_nor_by_opening_its_node(module: Module) -> None:
    module.load()
    assert enforce(want("Absent")) == []
    assert subprocess.run(["modprobe", VHOST], capture_output=True, check=False).returncode != 0
    node = Path("/dev/lab-vhost-net")
    os.mknod(node, 0o020600, os.makedev(10, 238))
    try:
        with pytest.raises(OSError, match="No such device"):
            os.open(node, os.O_RDWR)
    finally:
        node.unlink()
    assert not module.loaded


def test_our_own_rule_does_not_stop_us_when_the_policy_flips(module: Module) -> None:
    enforce(want("Absent"))
    modules.load(VHOST)
    assert module.loaded
    enforce(want("Absent"))
    assert enforce(want("Loaded")) == []
    assert module.loaded
    assert not RULE_FILE.exists()


def test_the_rule_of_another_is_obeyed_and_named(module: Module) -> None:
    rule = Path("/etc/modprobe.d/aa-admin.conf")
    rule.write_text(f"install {VHOST} /bin/false\n")
    try:
        with pytest.raises(Refused, match=f"the rule in {rule} keeps vhost_net out"):
            modules.load(VHOST)
    finally:
        rule.unlink()
    assert not module.loaded


# --- in use ------------------------------------------------------------------------------------------------


def test_uevents_tell_of_an_outside_load_and_unload_at_once(module: Module) -> None:
    with uevents() as listener:
        for command, action, status in (
            (["modprobe", VHOST], b"add@", ModuleStatus.LOADED),
            (["rmmod", VHOST], b"remove@", ModuleStatus.ABSENT),
        ):
            process = subprocess.Popen(command)
            wait_for(listener, action + b"/module/vhost_net")
            assert process.wait(30) == 0
            assert look().status is status


def test_qemu_opens_vhost_net_without_kvm_and_before_the_guest_runs(paused: Guest) -> None:
    assert [(user.pid, user.guest) for user in look().users] == [(paused.process.pid, NAME)]
    assert look().refcount == 1
    with pytest.raises(InUse, match=f"guest {NAME}"):
        modules.unload(VHOST)


def test_what_could_not_be_done_while_in_use_is_done_when_the_user_lets_go(paused: Guest) -> None:
    asked = want("Absent")
    steps, rows = rules.diff(asked, look())
    assert [row.reason for row in rows] == [Reason.IN_USE]
    for step in steps:
        make(step)
    paused.stop()
    assert enforce(asked) == []
    assert look().status is ModuleStatus.ABSENT


def test_a_guest_on_vhost_net_passes_traffic(guest: Guest) -> None:
    assert guest.ping()
    assert guest.send() == guest.fetch() == 8 << 20
    assert guest.vhost_threads() != []
    assert "guest: has MSI-X" in guest.output


def test_a_guest_shows_as_the_user_of_the_module_and_as_the_holder_of_its_tap(guest: Guest) -> None:
    found = processes.look()
    assert [(user.pid, user.guest) for user in found.vhost] == [(guest.process.pid, NAME)]
    assert [holder.guest for holder in found.taps["labtap"]] == [NAME]


def test_a_module_in_use_is_neither_unloaded_nor_reloaded_and_the_guest_is_named(guest: Guest) -> None:
    steps, rows = rules.diff(want("Absent", persist=False), look())
    assert (steps, [row.reason for row in rows]) == ([], [Reason.IN_USE])
    assert f"qemu-system-x86[{guest.process.pid}] (guest {NAME})" in rows[0].message
    steps, rows = rules.diff(want("Loaded", 1, persist=False), look())
    assert (steps, [row.reason for row in rows]) == ([], [Reason.IN_USE])
    with pytest.raises(InUse, match=f"in use by qemu.*guest {NAME}"):
        modules.unload(VHOST)
    with pytest.raises(InUse, match=f"loaded with {ZCOPYTX}=0 and in use by qemu"):
        modules.load(VHOST, ((ZCOPYTX, 1),))
    assert guest.ping()
