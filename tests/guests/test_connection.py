"""Where libvirt is found, and what is said of one that is not there, not installed or too old."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.guests.daemon import Daemon
from tests.guests.test_definitions import DOMAIN, MAC, UUID
from tests.kernel.agent import eventually
from virtnet import errors
from virtnet.core.model import SetGuestNic, Unavailable, Unreadable
from virtnet.host import guests, libvirt
from virtnet.host.guests import Guests

NOWHERE = "qemu+unix:///system?socket=/nowhere/libvirt-sock"
CHANGE = SetGuestNic("db", UUID, MAC, "", (("guest.nic.queues", 2),), (("guest.nic.queues", None),))


@pytest.mark.parametrize("socket", libvirt.SOCKETS)
def test_the_systems_libvirt_takes_part_where_it_listens(tmp_path: Path, socket: str) -> None:
    assert libvirt.default_uri(f"{tmp_path}/") is None
    path = tmp_path / socket.lstrip("/")
    path.parent.mkdir(parents=True)
    path.touch()
    assert libvirt.default_uri(f"{tmp_path}/") == "qemu:///system"


UNIX = """Num       RefCount Protocol Flags    Type St Inode Path
ffff8880: 00000002 00000000 00010000 0001 01 1001 /run/systemd/private
ffff8881: 00000003 00000000 00000000 0001 03 1002 /run/libvirt/libvirt-sock
ffff8882: 00000002 00000000 00010000 0001 01 1003 /run/user/1000/libvirt/libvirt-sock
ffff8883: 00000002 00000000 00010000 0001 01 1004
"""


@pytest.mark.parametrize("socket", ["/run/libvirt/libvirt-sock", "/var/run/libvirt/virtqemud-sock"])
def test_a_libvirt_that_listens_where_nothing_is_seen_is_withheld(tmp_path: Path, socket: str) -> None:
    listed = tmp_path / "proc/self/net/unix"
    listed.parent.mkdir(parents=True)
    assert libvirt.withheld(f"{tmp_path}/") is None
    listed.write_text(UNIX)
    assert libvirt.withheld(f"{tmp_path}/") is None
    listed.write_text(f"{UNIX}ffff8884: 00000002 00000000 00010000 0001 01 1005 {socket}\n")
    why = libvirt.withheld(f"{tmp_path}/")
    assert why is not None
    assert socket.removeprefix("/var") in why.reason
    seen = tmp_path / "run/libvirt/libvirt-sock"
    seen.parent.mkdir(parents=True)
    seen.touch()
    assert libvirt.withheld(f"{tmp_path}/") is None


def test_a_machine_on_which_no_libvirt_ever_listened_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirt, "SYSTEM", NOWHERE)
    monkeypatch.setattr(libvirt, "SOCKETS", ("/nowhere/libvirt-sock",))
    found = Guests(NOWHERE)
    assert found.look() == Unavailable(guests.NOT_HERE)
    found.close()


def test_a_libvirt_that_is_not_there_is_unreadable_at_once_and_tried_again() -> None:
    found = Guests(NOWHERE)
    seen = found.look()
    assert isinstance(seen, Unreadable)
    assert "No such file" in seen.reason
    with pytest.raises(errors.Temporary):
        found.apply(CHANGE)
    found.close()


def test_a_module_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirt, "is_installed", lambda: False)
    assert Guests(NOWHERE).look() == Unavailable(guests.NOT_INSTALLED)


def test_who_is_told_looks_without_waiting(libvirtd: Daemon) -> None:
    libvirtd.define(DOMAIN)
    told: list[bool] = []
    found = Guests(libvirtd.uri, patience=0)
    found.told = lambda: told.append(True)
    assert found.look() is None
    eventually(lambda: told)
    seen, again = found.look(), found.look()
    assert isinstance(seen, Mapping)
    assert isinstance(again, Mapping)
    assert seen[UUID] is again[UUID]
    found.close()


def test_who_hangs_is_asked_once_and_not_again_for_each_definition(libvirtd: Daemon) -> None:
    found = Guests(libvirtd.uri)
    assert found.look() == {}
    with libvirtd.hanging():
        with pytest.raises(errors.Temporary, match="does not answer"):
            found.apply(CHANGE)
        assert isinstance(found.look(), Unreadable)
        with pytest.raises(errors.Temporary, match="does not answer"):
            found.apply(CHANGE)
    eventually(lambda: found.look() == {})
    found.close()


def test_a_libvirt_that_is_too_old_is_told_so() -> None:
    libvirt.check_version(6_000_000)
    with pytest.raises(errors.NotSupported, match=r"this is libvirt 5\.10\.3, and virtnet works with 6\.0\.0"):
        libvirt.check_version(5_010_003)
