"""libvirt itself, in this process's own directory and without a daemon, takes what `domain-xml` makes and keeps it."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from lxml import etree

from tests.guests.test_fuzz import value
from tests.unit.policy_cases import document
from virtnet.core import domain_xml
from virtnet.kube import api

DOMAIN = b"""\
<domain type='qemu'>
  <name>db</name>
  <memory>65536</memory>
  <vcpu>4</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>
    <graphics type='vnc' passwd='secret'/>
    <interface type='bridge'>
      <mac address='52:54:00:aa:00:01'/>
      <source bridge='br0'/>
      <model type='e1000'/>
      <alias name='ua-Capital'/>
    </interface>
  </devices>
</domain>
"""
SPEC = {
    "bridge": {"name": "br0"},
    "vhost": {"mode": "Disabled"},
    "guest": {
        "nic": {
            "model": "virtio",
            "queues": "vcpus",
            "rxQueueSize": 1024,
            "txQueueSize": 256,
            "txMode": "timer",
            "host": {"csum": True, "gso": False, "tso4": True, "tso6": True, "ecn": False, "ufo": False},
            "guest": {"csum": True, "tso4": True, "tso6": True, "ecn": True, "ufo": False},
            "sndbuf": 1600,
            **dict.fromkeys(("mergeableRxBuffers", "packed", "eventIdx", "ioeventfd", "iommu", "ats"), True),
            **dict.fromkeys(("rss", "rssHashReport"), False),
        }
    },
}


@pytest.fixture
def root() -> Iterator[Path]:
    """A directory for libvirt; its sockets need a short path."""
    with tempfile.TemporaryDirectory(prefix="virtnet-") as path:
        yield Path(path)


def virsh(root: Path, *commands: str) -> str:
    command = ["virsh", "--quiet", "--connect", f"qemu:///embed?root={root}", "; ".join(commands)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_libvirt_defines_what_we_make_and_keeps_every_setting(root: Path) -> None:
    policy = api.VirtioNetworkPolicy.model_validate(document(SPEC)).to_core()
    result = domain_xml.change(DOMAIN, [policy])
    path = root / "db.xml"
    path.write_bytes(result.document)
    dumped = virsh(root, f"define --validate {path}", "dumpxml --inactive --security-info db").encode()
    (made,), (kept,) = (etree.fromstring(text).findall("devices/interface") for text in (result.document, dumped))
    asked = [row.setting for row in result.changes]
    assert len(asked) == len(domain_xml.SETTINGS)
    assert {path: value(kept, path) for path in asked} == {path: value(made, path) for path in asked}
    assert kept.find("alias").get("name") == "ua-Capital"
    assert b"passwd='secret'" in dumped
    again = domain_xml.change(dumped, [policy])
    assert (again.document, again.changes) == (dumped, ())
