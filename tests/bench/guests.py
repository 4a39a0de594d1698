"""Guests: all definitions of a libvirt read and planned, and one that is edited noticed and planned anew."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import figures, place
from tests.bench.figures import Fact, Report
from tests.guests import daemon
from tests.guests.daemon import Daemon
from virtnet import reconcile
from virtnet.core.model import Policy
from virtnet.engine.workplace import Workplace
from virtnet.kube import manifests

HOW = """\
A libvirtd of the benchmark's own with defined domains, each with two virtio NICs on the policy's bridge that are as it
asks, but for one NIC of one domain. The first look connects, reads every definition and plans; a later one is what the
agent does when something else has changed. For an event another connection defines one domain anew with a value that
the policy does not want, or with the right one again; the time counts from the begin of that call until the plan has
one change more, or one less.

Instead, a user calls `virsh dumpxml --inactive` once for each domain, from a shell script, or gives one `virsh` all
those commands; neither looks at what it reads."""
ALL = "all definitions: virtnet, first look and plan"
EVENT = "one definition edited: virtnet, until it is planned"

QUEUE = 512
SPEC = {"guest": {"match": {"bridge": "br0"}, "nic": {"rxQueueSize": QUEUE, "host": {"tso4": False}}}}
DOMAIN = """\
<domain type='qemu'>
  <name>guest-{number}</name>
  <uuid>11111111-2222-3333-4444-{number:012d}</uuid>
  <memory>65536</memory>
  <vcpu>2</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>{nics}</devices>
</domain>
"""
NIC = """\
<interface type='bridge'>
  <mac address='52:54:00:{number:02x}:{low:02x}:{at:02x}'/>
  <source bridge='br0'/>
  <model type='virtio'/>
  <driver rx_queue_size='{queue}'><host tso4='off'/></driver>
</interface>
"""
SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Size:
    domains: int
    first_looks: int
    looks: int
    events: int
    others: int


FULL, QUICK = Size(500, 5, 50, 50, 3), Size(20, 2, 5, 4, 1)


def measure(directory: Path, *, quick: bool = False) -> Report:
    size = QUICK if quick else FULL
    document = {"apiVersion": "virtnet.dev/v1alpha1", "kind": "VirtioNetworkPolicy", "metadata": {"name": "bench"}}
    policies = manifests.read(json.dumps({**document, "spec": SPEC}).encode(), "bench.json").policies
    with daemon.running() as libvirtd, _connected(libvirtd.uri) as editor:
        for number in range(size.domains):
            editor.defineXML(_domain(number, QUEUE if number else QUEUE // 2))
        firsts = [place.timed(lambda: _first_look(directory, libvirtd, policies)) for _ in range(size.first_looks)]
        with Workplace.open(state_dir=directory / "state", libvirt_uri=libvirtd.uri, write=True) as workplace:
            agent = _Agent(workplace, policies)
            assert agent.look() == 1
            looks = [place.timed(agent.look) for _ in range(size.looks)]
            events = [place.timed(lambda turn=turn: _edit(editor, agent, turn % 2)) for turn in range(size.events)]
        instead = [place.timed(lambda: _virsh_each(libvirtd, size.domains)) for _ in range(size.others)]
        at_once = [place.timed(lambda: _virsh_once(libvirtd, size.domains)) for _ in range(size.others)]
    return Report(
        "Guests",
        HOW,
        (
            figures.milliseconds(ALL, firsts),
            figures.milliseconds("all definitions: virtnet, a later look and plan", looks, beside=ALL),
            figures.milliseconds("all definitions: virsh dumpxml once per domain", instead, beside=ALL),
            figures.milliseconds("all definitions: one virsh, dumpxml of every domain", at_once, beside=ALL),
            figures.milliseconds(EVENT, events),
        ),
        facts=(Fact("domains", str(size.domains)),),
    )


class _Agent:
    """Looks as `virtnet run` does: what has not changed is not planned again, and libvirt tells when something has."""

    def __init__(self, workplace: Workplace, policies: tuple[Policy, ...]) -> None:
        assert workplace.host.guests is not None
        self.told = threading.Event()
        workplace.host.guests.told = self.told.set
        workplace.host.guests.patience = SECONDS
        self._workplace, self._wish = workplace, reconcile.Wish(policies, workplace.node)
        self._memory = reconcile.Memory()

    def look(self) -> int:
        """How many changes are planned."""
        found = reconcile.look(self._workplace.host, self._workplace.recorded, self._wish, self._memory)
        return len(found.plan.steps)


def _first_look(directory: Path, libvirtd: Daemon, policies: tuple[Policy, ...]) -> None:
    with Workplace.open(state_dir=directory / "none", libvirt_uri=libvirtd.uri, write=False) as workplace:
        planned = _Agent(workplace, policies).look()
    assert planned == 1, planned


def _edit(editor: Any, agent: _Agent, right: int) -> None:
    wanted = 1 if right else 2
    agent.told.clear()
    editor.defineXML(_domain(1, QUEUE if right else QUEUE // 2))
    while agent.look() != wanted:
        assert agent.told.wait(SECONDS)
        agent.told.clear()


def _domain(number: int, queue: int) -> str:
    """`queue` is that of its first NIC."""
    high, low = divmod(number, 256)
    nics = (NIC.format(number=high, low=low, at=at, queue=QUEUE if at else queue) for at in range(2))
    return DOMAIN.format(number=number, nics="".join(nics))


def _virsh_each(libvirtd: Daemon, domains: int) -> None:
    virsh = f"virsh --quiet --connect '{libvirtd.uri}' dumpxml --inactive"
    place.run("sh", "-e", text="\n".join(f"{virsh} guest-{number} >/dev/null" for number in range(domains)))


def _virsh_once(libvirtd: Daemon, domains: int) -> None:
    commands = "\n".join(f"dumpxml --inactive guest-{number}" for number in range(domains))
    place.run("virsh", "--quiet", "--connect", libvirtd.uri, text=f"{commands}\n")


@contextlib.contextmanager
def _connected(uri: str) -> Iterator[Any]:
    import libvirt

    connection = libvirt.open(uri)
    try:
        yield connection
    finally:
        connection.close()
