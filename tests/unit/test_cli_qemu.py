"""Which virtio models a QEMU has, from programs that answer as QEMU does."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from virtnet import errors
from virtnet.host import qemu

NEW = """\
Available NIC models for this configuration:
e1000               Intel Gigabit Ethernet
virtio-net-pci
virtio-net-pci-transitional   Virtio, both revisions
"""
OLD = "Supported NIC models:\ne1000\nvirtio-net-pci\nvirtio-net-pci-non-transitional\n"


def program(directory: Path, script: str, name: str = "qemu") -> str:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "models"),
    [
        (OLD, ("virtio-net-pci", "virtio-net-pci-non-transitional")),
        (NEW, ("virtio-net-pci", "virtio-net-pci-transitional")),
        ("Supported NIC models:\nlan9118\n", ()),
        ("", ()),
    ],
)
def test_models_are_read_from_the_list_of_old_and_new_versions(text: str, models: tuple[str, ...]) -> None:
    assert qemu.models_in(text) == models


def test_version_and_models_are_asked_without_a_display(tmp_path: Path) -> None:
    path = program(
        tmp_path,
        f"""case "$*" in
        '-display none --version') echo 'QEMU emulator version 9.2.1 (Debian 1:9.2.1)';;
        '-display none -nic model=help') printf '%s' '{NEW}'; echo noise >&2;;
        *) exit 7;; esac""",
    )
    assert qemu.look(path) == qemu.Qemu(path, "9.2.1", ("virtio-net-pci", "virtio-net-pci-transitional"))


def test_a_qemu_that_fails_is_quoted(tmp_path: Path) -> None:
    path = program(tmp_path, "echo first >&2; echo 'cannot map memory' >&2; exit 1")
    with pytest.raises(errors.Refused, match="--version failed: cannot map memory"):
        qemu.look(path)


def test_a_qemu_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "TIMEOUT", 0.2)
    path = program(tmp_path, "exec sleep 60")
    begun = time.monotonic()
    with pytest.raises(errors.Temporary, match=r"did not answer within 0\.2 seconds"):
        qemu.look(path)
    assert time.monotonic() - begun < 5


def test_a_file_that_is_no_program_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "qemu"
    path.write_text("no program")
    with pytest.raises(errors.NotPermitted, match="cannot be run"):
        qemu.look(str(path))


def test_the_first_of_the_usual_places_is_taken(tmp_path: Path) -> None:
    here = program(tmp_path, "exit 0", "qemu-kvm")
    assert qemu.find([str(tmp_path / "absent"), here]) == here
    assert qemu.find([str(tmp_path / "absent")]) is None
    assert qemu.names("riscv64")[0] == "qemu-system-riscv64"
