"""Reading a module from a machine's files, and our own files about it; the kernel's part is tested in tests/lab."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from virtnet import errors
from virtnet.core.model import ModuleStatus, Process
from virtnet.host import modules

RELEASE = "6.1.0-9-test"
NAME = "vhost_net"
LOAD_FILE = "/etc/modules-load.d/virtnet-vhost_net.conf"
MARKED = "# managed by virtnet\nvhost_net\n"


def lay(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


TREE = f"lib/modules/{RELEASE}"
DEP = "kernel/drivers/vhost/vhost_net.ko: kernel/drivers/vhost/vhost.ko\nkernel/drivers/net/tun.ko:\n"


@pytest.mark.parametrize(
    ("files", "status"),
    [
        pytest.param({f"{TREE}/modules.dep": DEP}, "Absent", id="listed"),
        pytest.param({f"{TREE}/modules.dep": DEP.replace(".ko:", ".ko.zst:")}, "Absent", id="listed, compressed"),
        pytest.param({f"{TREE}/modules.dep": DEP.replace("vhost_net", "vhost-net")}, "Absent", id="listed with a dash"),
        pytest.param(
            {f"{TREE}/modules.dep": "kernel/a/my_vhost_net.ko:\n"}, "Missing", id="only a longer name is listed"
        ),
        pytest.param({f"{TREE}/modules.dep": "kernel/drivers/net/tun.ko:\n"}, "Missing", id="not listed"),
        pytest.param({}, "Missing", id="no modules at all"),
        pytest.param({"proc/modules": ""}, "Absent", id="a kernel with modules, which cannot be seen"),
        pytest.param({"proc/modules": "", f"{TREE}/modules.dep": ""}, "Missing", id="a kernel with other modules"),
        pytest.param({f"{TREE}/kernel/drivers/vhost/vhost_net.ko.xz": ""}, "Absent", id="a file and no list"),
        pytest.param({f"{TREE}/kernel/drivers/vhost/vhost.ko": ""}, "Missing", id="another file and no list"),
        pytest.param(
            {f"{TREE}/modules.builtin": "kernel/drivers/vhost/vhost_net.ko\n", f"{TREE}/modules.dep": ""},
            "BuiltIn",
            id="listed as built in",
        ),
        pytest.param({"sys/module/vhost_net/parameters/x": "0\n"}, "BuiltIn", id="a directory and no list"),
        pytest.param(
            {"sys/module/vhost_net/initstate": "live\n", f"{TREE}/modules.dep": DEP}, "Loaded", id="its state is live"
        ),
        pytest.param({"sys/module/vhost_net/initstate": "coming\n"}, "Loaded", id="its state is coming"),
        pytest.param(
            {"sys/module/vhost_net/initstate": "going\n", f"{TREE}/modules.dep": DEP}, "Absent", id="its state is going"
        ),
        pytest.param(
            {"sys/module/vhost_net/parameters/x": "0\n", f"{TREE}/modules.dep": DEP},
            "Absent",
            id="its directory is on its way out",
        ),
    ],
)
def test_the_status_is_what_the_kernel_and_its_lists_say(tmp_path: Path, files: dict[str, str], status: str) -> None:
    lay(tmp_path, files)
    assert modules.read(NAME, root=str(tmp_path), release=RELEASE).status is ModuleStatus(status)


def test_a_loaded_module_is_read_with_its_users_count_parameters_and_files(tmp_path: Path) -> None:
    directory = "sys/module/vhost_net"
    lay(
        tmp_path,
        {
            f"{directory}/initstate": "live\n",
            f"{directory}/refcnt": "2\n",
            f"{directory}/parameters/experimental_zcopytx": "1\n",
            LOAD_FILE[1:]: MARKED,
        },
    )
    user = Process(42, "qemu-system-x86", "web1")
    state = modules.read(NAME, users=[user], root=str(tmp_path), release=RELEASE)
    assert (state.refcount, dict(state.parameters), state.users) == (2, {"experimental_zcopytx": "1"}, (user,))
    assert dict(state.files) == {LOAD_FILE: MARKED}


def test_a_link_or_a_directory_in_the_place_of_our_file_is_not_ours(tmp_path: Path) -> None:
    lay(tmp_path, {"elsewhere": MARKED})
    place = tmp_path / LOAD_FILE[1:]
    place.parent.mkdir(parents=True)
    place.symlink_to(tmp_path / "elsewhere")
    assert dict(modules.read(NAME, root=str(tmp_path)).files) == {LOAD_FILE: ""}
    place.unlink()
    place.mkdir()
    assert dict(modules.read(NAME, root=str(tmp_path)).files) == {LOAD_FILE: ""}


def test_our_file_is_written_and_removed_and_both_can_be_done_twice(tmp_path: Path) -> None:
    place = tmp_path / LOAD_FILE[1:]
    for _ in range(2):
        modules.write_file(LOAD_FILE, MARKED, root=str(tmp_path))
        assert (place.read_text(), stat.S_IMODE(place.stat().st_mode)) == (MARKED, 0o644)
    modules.write_file(LOAD_FILE, MARKED + "tun\n", root=str(tmp_path))
    assert place.read_text() == MARKED + "tun\n"
    for _ in range(2):
        modules.remove_file(LOAD_FILE, root=str(tmp_path))
        assert os.listdir(place.parent) == []


def test_a_file_that_is_as_wanted_is_not_written_again(tmp_path: Path) -> None:
    modules.write_file(LOAD_FILE, MARKED, root=str(tmp_path))
    before = (tmp_path / LOAD_FILE[1:]).stat()
    modules.write_file(LOAD_FILE, MARKED, root=str(tmp_path))
    assert (tmp_path / LOAD_FILE[1:]).stat().st_ino == before.st_ino


@pytest.mark.parametrize("content", ["vhost_net\n", "", "vhost_net\n# managed by virtnet\n"])
def test_a_file_without_our_mark_is_neither_replaced_nor_removed(tmp_path: Path, content: str) -> None:
    lay(tmp_path, {LOAD_FILE[1:]: content})
    with pytest.raises(errors.Refused, match=r"virtnet-vhost_net\.conf lacks the line .* not ours"):
        modules.write_file(LOAD_FILE, MARKED, root=str(tmp_path))
    with pytest.raises(errors.Refused, match="not ours"):
        modules.remove_file(LOAD_FILE, root=str(tmp_path))
    assert (tmp_path / LOAD_FILE[1:]).read_text() == content


def test_nothing_is_written_without_our_mark(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must begin with"):
        modules.write_file(LOAD_FILE, "vhost_net\n", root=str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    lay(tmp_path, {"etc/modules-load.d": "a file where a directory should be"})
    with pytest.raises(errors.HostError, match=r"/etc/modules-load\.d/virtnet-vhost_net\.conf cannot be changed"):
        modules.write_file(LOAD_FILE, MARKED, root=str(tmp_path))


def test_unloading_what_is_not_there_needs_no_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    modules.unload("virtnet_nonsense", root=str(tmp_path))
    assert modules.read("virtnet_nonsense", root=str(tmp_path)).status is ModuleStatus.MISSING


def test_where_the_modules_lie_is_named_when_a_container_does_not_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(tmp_path, {"proc/modules": "", "bin/modprobe": "#!/bin/sh\necho 'modprobe: FATAL: not found' >&2\nexit 1\n"})
    (tmp_path / "bin/modprobe").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    with pytest.raises(errors.NotPermitted) as refused:
        modules.load(NAME, root=str(tmp_path))
    text = str(refused.value)
    assert f"{tmp_path}/lib/modules/{os.uname().release} (in a container: the host's /lib/modules mounted)" in text
    assert text.startswith(f"{NAME}: needed and not there: ")
    assert text.endswith(": not found")


def test_the_mount_that_a_file_needs_is_named_when_the_root_is_read_only(tmp_path: Path) -> None:
    with pytest.raises(errors.NotPermitted) as refused, modules._disk(LOAD_FILE):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    assert str(refused.value) == (
        f"{LOAD_FILE} cannot be changed: Read-only file system "
        "(in a container: the host's /etc/modules-load.d must be mounted)"
    )
