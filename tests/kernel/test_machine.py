"""LinuxHost keeps the promises of reconcile.Host: each change twice, unknown ones refused, and only what is asked."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from tests.kernel.playground import Playground
from tests.kernel.test_links import as_ref, look, named
from virtnet.core import model
from virtnet.core.model import EMPTY, HostState, Interest, ModuleStatus, Ref
from virtnet.host import LinuxHost
from virtnet.reconcile import Host

LINKS = (
    "link add br0 type bridge",
    "link add br1 type bridge",
    "link add v0 numtxqueues 4 numrxqueues 4 type veth peer name v1",
    "tuntap add t0 mode tap",
)


def changes(host: LinuxHost) -> list[model.Change]:
    """One of each change that a kernel without hardware and modules can make."""
    v0, t0, br0, br1 = (as_ref(named(host, name)) for name in ("v0", "t0", "br0", "br1"))
    return [
        model.SetFeatures(v0, 1, 0),
        model.SetChannels(v0, rx=2, tx=2),
        model.SetRxFrames(t0, 5),
        model.SetMtu(v0, 1444),
        model.SetTxQueueLength(v0, 444),
        model.SetBridgeOptions(br0, (("stp", True), ("ageingTimeSeconds", 44))),
        model.SetMaster(v0, br0),
        model.SetMaster(v0, None),
        model.CreateBridge("br9"),
        model.CreateTap("t9", vnet_hdr=True),
        model.SetVnetHdr(t0, True),
        model.SetTapOwner(t0, owner=0, group=0),
        model.DeleteLink(br1),
    ]


ON_FILES = {model.WriteModuleFile, model.RemoveModuleFile}
"""Made twice further down."""
IN_THE_LAB = {model.SetRings, model.LoadModule, model.UnloadModule}
"""Made twice in tests/lab, on a kernel that has them."""
IN_LIBVIRT = {model.SetGuestNic, model.ReplugGuestNic, model.LeaveReplug}
"""Tried on a real libvirt, in tests/guests."""


FOLLOWS = {("state", word) for word in ("UNKNOWN", "DOWN", "LOWERLAYERDOWN", "UP")}
"""Linkwatch tells of carriers and of new links up to a second later."""


def as_text(playground: Playground) -> str:
    """The links as ip shows them, without what runs by itself: timers, and the state that follows a moment later."""
    words = playground.run("ip -d link").split()
    pairs = zip(["", *words], words, strict=False)
    return " ".join(word for before, word in pairs if not (before.endswith("_timer") or (before, word) in FOLLOWS))


def test_every_change_can_be_made_twice_and_the_second_changes_nothing(playground: Playground, host: LinuxHost) -> None:
    playground.batch(*LINKS)
    for change in changes(host):
        before = as_text(playground), look(host).features
        host.apply(change)
        once = as_text(playground), dict(look(host).features)
        host.apply(change)
        assert (as_text(playground), dict(look(host).features)) == once, change
        assert once != before or isinstance(change, model.SetRxFrames | model.SetChannels), f"{change} did nothing"


def test_every_kind_of_change_is_made_somewhere(playground: Playground, host: LinuxHost) -> None:
    playground.batch(*LINKS)
    made = {type(change) for change in changes(host)}
    assert made | IN_THE_LAB | IN_LIBVIRT | ON_FILES == set(get_args(model.Change))


def test_what_is_no_change_is_a_programming_error(host: LinuxHost) -> None:
    with pytest.raises(TypeError, match="Ref is no change"):
        host.apply(Ref("lo", 1))  # type: ignore[arg-type]


def test_it_is_a_host(host: LinuxHost) -> None:
    promised: Host = host
    assert promised.identity() == host.identity()
    assert host.identity().netns == host.namespace.identity


def test_only_what_is_asked_is_read(playground: Playground, host: LinuxHost) -> None:
    playground.batch(*LINKS)
    links = ("drivers", "untold_drivers", "rings", "channels", "rx_frames", "addresses")
    asked = (*links, "module", "users", "guests", "running", "fingerprint")
    assert {field.name for field in fields(Interest)} == set(asked)
    nothing = host.observe(Interest())
    assert [nothing.drivers, nothing.rings, nothing.channels, nothing.rx_frames] == [EMPTY] * 4
    assert (nothing.carries, nothing.holders, nothing.module) == (EMPTY, EMPTY, None)
    assert (nothing.running, nothing.drops, nothing.fingerprint, nothing.guests) == ((), EMPTY, None, None)
    everything = host.observe(Interest(**dict.fromkeys(asked, True)))
    assert everything.drivers
    assert everything.channels
    assert everything.rx_frames
    assert everything.module is not None
    assert everything.fingerprint is not None
    assert everything.links is nothing.links
    assert everything.features is nothing.features


def test_the_module_is_looked_at_when_asked(host: LinuxHost) -> None:
    module = host.observe(Interest(module=True)).module
    assert module is not None
    assert module.name == "vhost_net"
    assert module.status in ModuleStatus


def test_the_process_that_holds_a_tap_is_named(playground: Playground, host: LinuxHost) -> None:
    playground.batch(*LINKS)
    holder = playground.start(
        "python3",
        "-c",
        "import fcntl, os, struct, sys\n"
        "tap = os.open('/dev/net/tun', os.O_RDWR)\n"
        "fcntl.ioctl(tap, 0x400454ca, struct.pack('16sH22x', b't0', 0x1002))\n"
        "print('held', flush=True); sys.stdin.read()",
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    state: HostState = host.observe(Interest(users=True))
    assert [process.pid for process in state.holders[named(host, "t0").ifindex]] == [holder.pid]
    assert named(host, "t0").held


def test_links_and_features_of_a_look_are_about_the_same_links(playground: Playground, host: LinuxHost) -> None:
    playground.batch(*LINKS)
    for number in range(5):
        playground.run(f"ip link add x{number} type bridge")
        with_it = look(host)
        playground.run(f"ip link del x{number}")
        without_it = look(host)
        assert with_it.links.keys() == with_it.features.keys()
        assert without_it.links.keys() == without_it.features.keys()
        assert (with_it.by_name(f"x{number}") is None, without_it.by_name(f"x{number}")) == (False, None)


def test_module_files_are_written_and_removed_twice(tmp_path: Path) -> None:
    host = LinuxHost(root=str(tmp_path))
    (tmp_path / "etc/modules-load.d").mkdir(parents=True)
    path = "/etc/modules-load.d/virtnet-vhost_net.conf"
    content = "# managed by virtnet\nvhost_net\n"
    for _ in range(2):
        host.apply(model.WriteModuleFile(path, content))
        assert (tmp_path / path[1:]).read_text() == content
    for _ in range(2):
        host.apply(model.RemoveModuleFile(path))
        assert not (tmp_path / path[1:]).exists()
    host.close()
