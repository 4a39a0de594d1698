"""Somebody else edits a definition while we do: he wins, and nothing that he wrote and no secret is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import libvirt as api
import pytest
from lxml import etree

from tests.guests.daemon import Daemon
from tests.guests.test_definitions import DOMAIN, MAC, NAME, OTHER, UUID
from virtnet import errors
from virtnet.core import definitions
from virtnet.core.model import SetGuestNic
from virtnet.host import guests

RX = "guest.nic.rxQueueSize"
SECRET = "<graphics type='vnc' passwd='secret'/>"
DISK = "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>"
TWINS = DOMAIN.replace(OTHER, MAC).replace("e1000", "virtio")
"""Two NICs of one address: libvirt cannot tell them by it, so the whole definition is written."""

Edit = Callable[[str], str]


class Watched:
    """A connection whose domains call `then` right after their dump number `at` was answered."""

    def __init__(self, connection: Any, at: int, then: Callable[[], None]) -> None:
        self.connection, self.at, self.then = connection, at, then

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)

    def lookupByUUIDString(self, uuid: str) -> Any:  # noqa: N802  (libvirt's own name)
        return WatchedDomain(self.connection.lookupByUUIDString(uuid), self)


class WatchedDomain:
    def __init__(self, domain: Any, watched: Watched) -> None:
        self.domain, self.watched, self.dumps = domain, watched, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.domain, name)

    def XMLDesc(self, flags: int) -> str:  # noqa: N802  (libvirt's own name)
        text: str = self.domain.XMLDesc(flags)
        self.dumps += 1
        if self.dumps == self.watched.at:
            self.watched.then()
        return text


@pytest.fixture
def connection(libvirtd: Daemon) -> Iterator[Any]:
    opened = api.open(libvirtd.uri)
    yield opened
    opened.close()


def change(libvirtd: Daemon, seen: int | None = 512) -> SetGuestNic:
    nic = definitions.read(UUID, libvirtd.definition(NAME).encode(), None).nics[0]
    return SetGuestNic(NAME, UUID, MAC, nic.address, ((RX, 1024),), ((RX, seen),))


def edit(libvirtd: Daemon, how: Edit) -> None:
    libvirtd.define(how(libvirtd.definition(NAME)))


def sizes(libvirtd: Daemon) -> list[str | None]:
    found = etree.fromstring(libvirtd.definition(NAME)).findall("devices/interface")
    return [each.find("driver").get("rx_queue_size") if each.find("driver") is not None else None for each in found]


def with_disk(text: str) -> str:
    return text.replace("<devices>", f"<devices>{DISK}")


def with_another_size(text: str) -> str:
    return text.replace("rx_queue_size='512'", "rx_queue_size='256'")


def is_intact(libvirtd: Daemon, *, disk: bool) -> bool:
    root = etree.fromstring(libvirtd.definition(NAME))
    return root.find("devices/graphics").get("passwd") == "secret" and (root.find("devices/disk") is not None) == disk


def test_a_value_that_changed_since_it_was_seen_is_not_overwritten(libvirtd: Daemon, connection: Any) -> None:
    libvirtd.define(with_another_size(DOMAIN))
    with pytest.raises(errors.Gone):
        guests.write(connection, change(libvirtd, seen=512))
    assert sizes(libvirtd)[0] == "256"


def test_another_edit_right_before_a_nic_is_written_is_kept(libvirtd: Daemon, connection: Any) -> None:
    libvirtd.define(DOMAIN)
    wanted = change(libvirtd)
    guests.write(Watched(connection, 1, lambda: edit(libvirtd, with_disk)), wanted)
    assert sizes(libvirtd)[0] == "1024"
    assert is_intact(libvirtd, disk=True)


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("how", [with_disk, with_another_size])
def test_another_edit_before_a_whole_definition_is_written_wins(
    libvirtd: Daemon, connection: Any, at: int, how: Edit
) -> None:
    libvirtd.define(TWINS)
    wanted = change(libvirtd)
    watched = Watched(connection, at, lambda: edit(libvirtd, how))
    if at == 1 and how is with_disk:  # seen by the second look, which is what is written
        guests.write(watched, wanted)
        assert "1024" in sizes(libvirtd)
    else:
        with pytest.raises(errors.Gone):
            guests.write(watched, wanted)
        assert "1024" not in sizes(libvirtd)
    assert is_intact(libvirtd, disk=how is with_disk)


def test_writing_twice_is_writing_once(libvirtd: Daemon, connection: Any) -> None:
    libvirtd.define(TWINS)
    wanted = change(libvirtd)
    guests.write(connection, wanted)
    once = libvirtd.definition(NAME)
    guests.write(connection, wanted)
    assert libvirtd.definition(NAME) == once
    assert sizes(libvirtd) == ["1024", None]


def test_a_domain_or_a_nic_that_is_gone_is_looked_for_again(libvirtd: Daemon, connection: Any) -> None:
    libvirtd.define(DOMAIN)
    wanted = change(libvirtd)
    edit(libvirtd, lambda text: text.replace(MAC, "52:54:00:aa:00:77"))
    with pytest.raises(errors.Gone):
        guests.write(connection, wanted)
    libvirtd.virsh("undefine", NAME)
    with pytest.raises(errors.Gone):
        guests.write(connection, wanted)


def test_one_refused_setting_does_not_keep_the_others_from_being_written(libvirtd: Daemon, connection: Any) -> None:
    libvirtd.define(DOMAIN)
    one = change(libvirtd)
    both = SetGuestNic(
        NAME,
        UUID,
        MAC,
        one.address,
        (("guest.nic.txQueueSize", 300), *one.values),
        (("guest.nic.txQueueSize", None), *one.seen),
    )
    with pytest.raises(errors.NotSupported, match="power of two"):
        guests.write(connection, both)
    assert sizes(libvirtd)[0] == "1024"
