"""A real domain asked by the monitor that its libvirt holds: what QEMU tells, whom it taints, what is never sent."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.guests.daemon import Daemon
from tests.guests.test_definitions import DOMAIN, MAC, NAME, OTHER, UUID
from tests.kernel.agent import eventually
from virtnet import errors
from virtnet.core.model import Running, Unreadable
from virtnet.host import evidence, monitors, qmp

QUIET = "Quiet"


def running_of(libvirtd: Daemon) -> dict[str, Running]:
    found = evidence.look(f"/proc/{libvirtd.pid}/ns/net")
    return {each.process.guest: each for each in found}


def path(libvirtd: Daemon, tmp_path: Path, *words: str) -> Any:
    """What `virtnet path` prints in libvirtd's network namespace."""
    command = ["nsenter", f"--net=/proc/{libvirtd.pid}/ns/net", sys.executable, "-m", "virtnet", "path", *words]
    command += ["--libvirt-uri", libvirtd.uri, "--state-dir", str(tmp_path / "state"), "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def tainted(libvirtd: Daemon, name: str) -> bool:
    return "custom monitor control commands" in libvirtd.virsh("dominfo", name)


def test_a_domain_is_asked_by_libvirts_monitor_and_no_other_is_tainted(libvirtd: Daemon, tmp_path: Path) -> None:
    libvirtd.define(DOMAIN)
    quiet = DOMAIN.replace(NAME, QUIET).replace(UUID, UUID[::-1])
    libvirtd.define(quiet.replace(MAC, "52:54:00:aa:00:11").replace(OTHER, "52:54:00:aa:00:12"))
    for name in (NAME, QUIET):
        libvirtd.virsh("start", name)
    unasked = path(libvirtd, tmp_path, NAME)
    assert not tainted(libvirtd, NAME)
    assert not any("QEMU says" in fact for hop in unasked[0]["hops"] for fact in hop["facts"])

    def nic() -> Mapping[str, Any]:
        shown = path(libvirtd, tmp_path, NAME, "--qmp", "libvirt")
        (mine,) = (each for each in shown if each["mac"] == MAC)
        return {hop["kind"]: hop for hop in mine["hops"]}

    assert nic()["vhost"]["facts"][0].startswith("NotStarted: QEMU says that vhost is not started")
    eventually(lambda: "MSI-X not in use" in nic()["guest"]["facts"], seconds=60)  # the firmware has run
    assert (tainted(libvirtd, NAME), tainted(libvirtd, QUIET)) == (True, False)

    seen = running_of(libvirtd)
    asked, other = monitors.tell((seen[NAME], seen[QUIET]), libvirtd.uri, {seen[NAME].process.pid})
    assert other == seen[QUIET]
    assert isinstance(asked.told, tuple)
    (told,) = asked.told
    assert (told.mac, told.started, told.driver_ok, told.rings[:2]) == (MAC, False, False, (512, 256))
    assert {"CSUM", "HOST_TSO4", "MRG_RXBUF"} <= told.offered

    with libvirtd.dead():
        (silent,) = monitors.tell((seen[NAME],), libvirtd.uri, {seen[NAME].process.pid})
    assert isinstance(silent.told, Unreadable)


def test_a_process_that_is_no_domain_of_this_libvirt_is_left_as_it_was(libvirtd: Daemon) -> None:
    libvirtd.define(DOMAIN)
    libvirtd.virsh("start", NAME)
    (mine,) = running_of(libvirtd).values()
    stranger = Running(mine.process, ("qemu-system-x86_64", "-uuid", UUID[::-1]))
    assert monitors.tell((stranger,), libvirtd.uri, {mine.process.pid}) == (stranger,)


class Deaf(qmp.Monitor):
    """Nothing must come through to it."""

    def exchange(self, line: str) -> Mapping[str, Any]:
        raise AssertionError(line)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("quit", {}),
        ("qom-set", {"path": "/machine", "property": "x", "value": 1}),
        ("set_link", {"name": "n0", "up": False}),
        ("human-monitor-command", {"command-line": "quit"}),
        ("human-monitor-command", {"command-line": "xp /1hx 0x0\nquit"}),
        ("human-monitor-command", {"command-line": "pmemsave 0 1 /etc/passwd"}),
        ("human-monitor-command", {}),
    ],
)
def test_nothing_but_queries_is_sent(command: str, arguments: Mapping[str, Any]) -> None:
    with pytest.raises(LookupError, match="none of the queries"):
        Deaf("nobody").query(command, **arguments)


def test_an_answer_that_is_no_qmp_is_refused() -> None:
    with pytest.raises(errors.Refused, match="does not speak QMP"):
        Deaf("nobody").parse("HMP>")
