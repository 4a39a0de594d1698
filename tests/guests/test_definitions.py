"""A real libvirtd: its definitions become as the policies say, nothing else in them changes, and all goes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from tests.guests.daemon import Daemon
from tests.unit.policy_cases import document
from virtnet.__main__ import main

NAME = "Db-1"
UUID = "11111111-2222-3333-4444-555555555555"
MAC = "52:54:00:aa:00:01"
OTHER = "52:54:00:aa:00:02"
DOMAIN = f"""\
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{NAME}</name>
  <uuid>{UUID}</uuid>
  <metadata><a:mark xmlns:a="http://a.example/1" a:Case="Kept"/></metadata>
  <memory>65536</memory>
  <vcpu>2</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>
    <graphics type='vnc' passwd='secret'/>
    <interface type='bridge'>
      <mac address='{MAC}'/>
      <source bridge='br0'/>
      <model type='virtio'/>
      <driver name='vhost' queues='2' rx_queue_size='512'><host tso4='on'/></driver>
      <alias name='ua-Capital'/>
    </interface>
    <interface type='bridge'>
      <mac address='{OTHER}'/>
      <source bridge='br1'/>
      <model type='e1000'/>
    </interface>
  </devices>
  <qemu:commandline><qemu:env name='KEPT' value='1'/></qemu:commandline>
</domain>
"""
ON_BR0 = {"bridge": "br0"}
SPEC: dict[str, Any] = {
    "vhost": {"mode": "Disabled"},
    "guest": {
        "match": ON_BR0,
        "nic": {
            "model": "virtio-non-transitional",
            "queues": "vcpus",
            "rxQueueSize": 1024,
            "host": {"csum": True, "tso4": False},
            "guest": {"ufo": False},
            "packed": True,
            "sndbuf": 1600,
        },
    },
}
ASKED = 8
UNASKED = {"guest": {"match": {"domains": ["nobody"]}, "nic": {"packed": True}}}

Virtnet = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def virtnet(libvirtd: Daemon, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> Virtnet:
    """Runs a command with a policy of this spec; its exit code and what it prints."""

    def run(command: str, spec: dict[str, Any] | None = None, *more: str, **meta: Any) -> tuple[int, dict[str, Any]]:
        files = []
        if spec is not None:
            path = tmp_path / "policy.json"
            path.write_text(json.dumps(document(spec, **meta)))
            files = [str(path)]
        where = ["--state-dir", str(tmp_path / "state"), "--libvirt-uri", libvirtd.uri, "-o", "json"]
        code = main([command, *files, *where, *more])
        return code, json.loads(capsysbinary.readouterr().out)

    return run


def nic(libvirtd: Daemon, mac: str = MAC) -> etree._Element:
    root = etree.fromstring(libvirtd.definition(NAME))
    (found,) = root.xpath(f"devices/interface[mac/@address='{mac}']")
    return found


def reasons(found: dict[str, Any]) -> dict[str, str]:
    return {row["setting"]: row["reason"] for row in found["blocked"]}


def test_a_definition_becomes_as_asked_and_goes_back_to_the_last_byte(libvirtd: Daemon, virtnet: Virtnet) -> None:
    libvirtd.define(DOMAIN)
    before = libvirtd.definition(NAME)
    code, planned = virtnet("plan", SPEC)
    assert (code, len(planned["changes"]), reasons(planned)) == (2, ASKED, {})
    code, made = virtnet("apply", SPEC)
    assert (code, made["blocked"], len(made["changes"])) == (0, [], ASKED)
    found = nic(libvirtd)
    assert found.find("driver").attrib == {"name": "qemu", "queues": "2", "rx_queue_size": "1024", "packed": "on"}
    assert found.find("driver/host").attrib == {"csum": "on", "tso4": "off"}
    assert found.find("driver/guest").attrib == {"ufo": "off"}
    assert (found.findtext("tune/sndbuf"), found.find("model").get("type")) == ("1600", "virtio-non-transitional")
    assert found.find("alias").get("name") == "ua-Capital"
    assert virtnet("plan", SPEC) == (0, {"changes": [], "blocked": []})
    assert virtnet("release")[0] == 0
    assert libvirtd.definition(NAME) == before


def test_nothing_else_in_a_definition_changes(libvirtd: Daemon, virtnet: Virtnet) -> None:
    libvirtd.define(DOMAIN)
    before = etree.fromstring(libvirtd.definition(NAME))
    assert virtnet("apply", SPEC)[0] == 0
    after = etree.fromstring(libvirtd.definition(NAME))
    for root in (before, after):
        devices = root.find("devices")
        devices.remove(root.xpath(f"devices/interface[mac/@address='{MAC}']")[0])
    assert etree.tostring(after) == etree.tostring(before)
    assert b"passwd='secret'" in etree.tostring(after).replace(b'"', b"'")


def test_a_running_guest_needs_a_restart_and_that_ends_with_it(libvirtd: Daemon, virtnet: Virtnet) -> None:
    spec = {"guest": {"match": ON_BR0, "nic": {"rxQueueSize": 1024, "eventIdx": True}}}
    libvirtd.define(DOMAIN)
    libvirtd.virsh("start", NAME)
    code, made = virtnet("apply", spec)
    assert (code, reasons(made)) == (3, {"guest.nic.rxQueueSize": "RestartRequired"})
    (row,) = made["blocked"]
    assert (row["subject"], row["actual"]) == (f"guest/{NAME}/{MAC}", 512)
    assert libvirtd.virsh("domstate", NAME).strip() == "running"
    libvirtd.virsh("destroy", NAME)
    libvirtd.virsh("start", NAME)
    assert virtnet("apply", spec) == (0, {"changes": [], "blocked": []})


def test_two_nics_of_one_address_are_changed_by_the_whole_definition_with_its_secrets(
    libvirtd: Daemon, virtnet: Virtnet
) -> None:
    libvirtd.define(DOMAIN.replace(OTHER, MAC).replace("e1000", "virtio"))
    code, _ = virtnet("apply", SPEC)
    root = etree.fromstring(libvirtd.definition(NAME))
    assert [each.get("name") for each in root.findall("devices/interface/driver")] == ["qemu"]
    assert root.find("devices/graphics").get("passwd") == "secret"
    assert code == 0


def test_a_nic_on_a_network_is_chosen_by_the_bridge_of_that_network(libvirtd: Daemon, virtnet: Virtnet) -> None:
    libvirtd.virsh(
        "net-define",
        "/dev/stdin",
        document="<network><name>lan</name><forward mode='bridge'/><bridge name='br0'/></network>",
    )
    libvirtd.define(DOMAIN.replace("type='bridge'", "type='network'", 1).replace("bridge='br0'", "network='lan'"))
    assert virtnet("apply", SPEC)[0] == 0
    assert nic(libvirtd).find("driver").get("rx_queue_size") == "1024"
    libvirtd.virsh("net-undefine", "lan")


def test_a_nic_of_another_model_is_left_alone(libvirtd: Daemon, virtnet: Virtnet) -> None:
    spec = {"guest": {"match": {"bridge": "br1"}, "nic": {"queues": 2}}}
    libvirtd.define(DOMAIN)
    assert virtnet("plan", spec) == (0, {"changes": [], "blocked": []})


def test_an_audit_tells_and_writes_nothing(libvirtd: Daemon, virtnet: Virtnet) -> None:
    libvirtd.define(DOMAIN)
    before = libvirtd.definition(NAME)
    code, made = virtnet("apply", {**SPEC, "mode": "Audit"})
    assert (code, set(reasons(made).values()), len(made["blocked"])) == (0, {"AuditOnly"}, ASKED)
    assert libvirtd.definition(NAME) == before


def test_a_hold_leaves_definitions_alone(
    libvirtd: Daemon, virtnet: Virtnet, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    libvirtd.define(DOMAIN)
    before = libvirtd.definition(NAME)
    assert main(["hold", "--state-dir", str(tmp_path / "state")]) == 0
    capsysbinary.readouterr()
    code, made = virtnet("apply", SPEC)
    assert (code, set(reasons(made).values())) == (3, {"Held"})
    assert libvirtd.definition(NAME) == before


def test_what_somebody_else_wrote_since_is_not_put_back(libvirtd: Daemon, virtnet: Virtnet) -> None:
    libvirtd.define(DOMAIN)
    assert virtnet("apply", SPEC)[0] == 0
    libvirtd.define(libvirtd.definition(NAME).replace("rx_queue_size='1024'", "rx_queue_size='256'"))
    _, made = virtnet("release")
    assert reasons(made) == {"guest.nic.rxQueueSize": "Foreign"}
    driver = nic(libvirtd).find("driver")
    assert (driver.get("rx_queue_size"), driver.get("name")) == ("256", "vhost")


def test_what_is_retained_stays(libvirtd: Daemon, virtnet: Virtnet) -> None:
    libvirtd.define(DOMAIN)
    assert virtnet("apply", {**SPEC, "deletionPolicy": "Retain"})[0] == 0
    assert virtnet("apply", UNASKED)[0] == 0
    assert nic(libvirtd).find("driver").get("rx_queue_size") == "1024"


def test_originals_outlive_a_guest_that_is_gone(libvirtd: Daemon, virtnet: Virtnet) -> None:
    libvirtd.define(DOMAIN)
    assert virtnet("apply", SPEC)[0] == 0
    libvirtd.virsh("undefine", NAME)
    assert virtnet("release") == (0, {"changes": [], "blocked": []})


def test_a_transient_domain_has_nothing_to_be_changed(libvirtd: Daemon, virtnet: Virtnet) -> None:
    libvirtd.virsh("create", "/dev/stdin", document=DOMAIN)
    code, made = virtnet("apply", {"guest": {"match": ON_BR0, "nic": {"rxQueueSize": 1024}}})
    assert (code, reasons(made)) == (3, {"guest.nic.rxQueueSize": "Unsupported"})
    assert "transient" in made["blocked"][0]["message"]


def test_vhost_that_is_required_of_an_emulated_guest_is_said_to_be_in_vain(libvirtd: Daemon, virtnet: Virtnet) -> None:
    libvirtd.define(DOMAIN)
    spec = {"vhost": {"mode": "Required"}, "guest": {"match": ON_BR0}}
    _, planned = virtnet("plan", spec)
    rows = {(row["subject"], row["reason"]) for row in planned["blocked"] if row["setting"] == "vhost.mode"}
    assert (f"guest/{NAME}/{MAC}", "Unsupported") in rows


def test_a_hanging_libvirtd_is_said_in_time_and_nothing_is_forgotten(
    libvirtd: Daemon, virtnet: Virtnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtnet.host.guests.FIRST_SECONDS", 1.0)
    libvirtd.define(DOMAIN)
    before = libvirtd.definition(NAME)
    assert virtnet("apply", SPEC)[0] == 0
    with libvirtd.hanging():
        code, made = virtnet("apply", SPEC)
        assert (code, reasons(made)) == (3, {"guest.nic": "Unreadable"})
        code, made = virtnet("release")
        assert (code, reasons(made)) == (3, {"deletionPolicy": "Unreadable"})
    assert virtnet("release")[0] == 0
    assert libvirtd.definition(NAME) == before
