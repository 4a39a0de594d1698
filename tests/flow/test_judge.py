"""What a good agent never does is written down; what it could not know is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.flow.fake import FakeHost, MemoryLedger, Process
from tests.flow.judge import touched
from virtnet import errors
from virtnet.core import modules
from virtnet.core.model import (
    Change,
    CreateBridge,
    CreateTap,
    DeleteLink,
    Entry,
    Interest,
    LoadModule,
    Made,
    SetBridgeOptions,
    SetChannels,
    SetMaster,
    SetMtu,
    SetRings,
    SetRxFrames,
    SetTapOwner,
    Setting,
    SetTxQueueLength,
    SetVnetHdr,
    UnloadModule,
    WriteModuleFile,
)

RULE = modules.rule_file(modules.NAME)
HOST = """
br0 bridge
eth0 mlx5_core carries='address 192.0.2.1/24'
tap0 tap held=qemu:100:vm1
vhost_net Loaded used=qemu:100:vm1
"""


def sentences(host: FakeHost) -> list[str]:
    return [violation.rpartition("): ")[2] for violation in host.violations]


def attempt(host: FakeHost, change: Change) -> None:
    """Make a change that the host may refuse: the judge has seen it all the same."""
    try:
        host.apply(change)
    except (errors.InUse, errors.Refused):
        assert host.violations


BAD: list[tuple[Callable[[FakeHost], Change], str]] = [
    (
        lambda host: SetMaster(host.ref("eth0"), host.ref("br0")),
        "enslaves eth0, which carries address 192.0.2.1/24",
    ),
    (lambda host: SetVnetHdr(host.ref("tap0"), True), "opens tap0, held by qemu[100] (guest vm1)"),
    (lambda host: SetTapOwner(host.ref("tap0"), 107), "opens tap0, held by qemu[100] (guest vm1)"),
    (lambda host: UnloadModule("vhost_net"), "unloads a module that is in use"),
    (lambda host: DeleteLink(host.ref("br0")), "deletes br0, which it did not make"),
    (lambda host: WriteModuleFile(RULE, "install vhost_net /bin/false\n"), f"writes {RULE} without our mark"),
]


@pytest.mark.parametrize(("change", "why"), BAD, ids=[why for _, why in BAD])
def test_a_harmful_change_is_a_violation(change: Callable[[FakeHost], Change], why: str) -> None:
    host = FakeHost(HOST)
    host.observe(Interest())
    attempt(host, change(host))
    assert sentences(host) == [why]


def test_what_came_after_the_last_look_is_no_violation() -> None:
    host = FakeHost("br0 bridge\neth0 mlx5_core\ntap0 tap\nvhost_net Absent")
    host.observe(Interest())
    host.foreign.set_carries("eth0", "address 192.0.2.1/24")
    host.foreign.hold("tap0", Process(100, "qemu", "vm1"), vhost=True)
    host.apply(SetMaster(host.ref("eth0"), host.ref("br0")))
    for change in (SetVnetHdr(host.ref("tap0"), True), UnloadModule("vhost_net")):
        with pytest.raises(errors.InUse):
            host.apply(change)
    assert host.violations == []


def test_moving_a_port_that_carries_nothing_and_keeping_one_that_does_are_no_violations() -> None:
    host = FakeHost("br0 bridge\neth0 mlx5_core\neth1 mlx5_core master=br0 carries='address 192.0.2.1/24'")
    for link in ("eth0", "eth1"):
        host.apply(SetMaster(host.ref(link), host.ref("br0")))
    host.apply(SetMaster(host.ref("eth1"), None))
    assert host.violations == []


def test_deleting_a_tap_that_we_made_under_a_guest_is_a_violation() -> None:
    host = FakeHost()
    host.apply(CreateTap("tap0"))
    host.foreign.hold("tap0", Process(100, "qemu", "vm1"))
    host.observe(Interest())
    host.apply(DeleteLink(host.ref("tap0")))
    assert sentences(host) == ["deletes tap0 under qemu[100] (guest vm1)"]
    assert host.names() == []


def test_deleting_a_bridge_that_we_made_is_a_violation_only_under_foreign_ports() -> None:
    host = FakeHost("eth0 mlx5_core\nv0 veth")
    for _ in range(2):
        host.apply(CreateBridge("br0"))
        host.apply(SetMaster(host.ref("eth0"), host.ref("br0")))
        host.observe(Interest())
        host.apply(DeleteLink(host.ref("br0")))
    assert host.violations == []
    host.apply(CreateBridge("br0"))
    host.foreign.enslave("v0", "br0")
    host.observe(Interest())
    host.apply(DeleteLink(host.ref("br0")))
    assert sentences(host) == ["deletes br0 under foreign port v0"]


def test_a_link_of_the_same_name_that_somebody_else_made_is_not_ours() -> None:
    host = FakeHost()
    host.apply(CreateTap("tap0"))
    host.foreign.delete("tap0")
    host.foreign.add_tap("tap0")
    host.apply(DeleteLink(host.ref("tap0")))
    assert sentences(host) == ["deletes tap0, which it did not make"]


def test_only_links_that_a_policy_names_are_touched() -> None:
    host = FakeHost("br0 bridge\nbr1 bridge\neth0 mlx5_core\neth1 mlx5_core")
    host.judge.allowed = {"eth0", "br?0", "br0", "vm*"}
    host.apply(SetMtu(host.ref("eth0"), 9000))
    host.apply(CreateTap("vm1"))
    host.apply(SetMaster(host.ref("eth0"), host.ref("br0")))
    assert host.violations == []
    host.apply(SetMtu(host.ref("eth1"), 9000))
    host.apply(SetMaster(host.ref("eth0"), host.ref("br1")))
    host.apply(CreateTap("tap0"))
    assert sentences(host) == ["no policy names eth1", "no policy names br1", "no policy names tap0"]


def recorded_host(text: str) -> tuple[FakeHost, MemoryLedger]:
    host = FakeHost(text)
    ledger = MemoryLedger(host.boundaries)
    host.judge.ledger = ledger
    return host, ledger


def record(host: FakeHost, ledger: MemoryLedger, link: str, *keys: str) -> None:
    found = host.machine.named(link).link
    ledger.record(found, [Entry(Setting(found.ifindex, key), None, None, "p") for key in keys])


def test_a_setting_is_touched_only_after_its_original_is_recorded() -> None:
    host, ledger = recorded_host("br0 bridge\neth0 mlx5_core +lro")
    change = SetMaster(host.ref("eth0"), host.ref("br0"))
    record(host, ledger, "eth0", "master")
    host.apply(change)
    assert sentences(host) == ["touches feature:rx-lro of eth0, whose original is not recorded"]
    record(host, ledger, "eth0", "feature:rx-gro")
    host.violations.clear()
    host.apply(host.ask("eth0", "-gro", "-gso"))
    assert sentences(host) == ["touches feature:tx-generic-segmentation of eth0, whose original is not recorded"]


def test_a_link_is_made_only_after_that_is_recorded_and_is_then_free_to_change() -> None:
    host, ledger = recorded_host("")
    ledger.record_made(Made("tap0", 0, "tun", "p"))
    host.apply(CreateTap("tap0"))
    host.apply(SetMtu(host.ref("tap0"), 1400))
    assert host.violations == []
    host.apply(CreateTap("tap1"))
    assert sentences(host) == ["makes tap1 before that is recorded"]


def test_the_module_is_touched_only_after_that_is_recorded() -> None:
    host, ledger = recorded_host("vhost_net Absent")
    host.apply(LoadModule("vhost_net"))
    host.apply(WriteModuleFile(RULE, modules.MARK + "\n"))
    assert sentences(host) == [
        "touches the module, whose state is not recorded",
        "touches a file of the module before that is recorded",
    ]
    host.violations.clear()
    ledger.record(None, [Entry(Setting("vhost_net", key), None, None, "p") for key in ("state", "persist")])
    host.apply(UnloadModule("vhost_net"))
    host.apply(WriteModuleFile(RULE, modules.MARK + "\n"))
    assert host.violations == []


@pytest.mark.parametrize(
    ("make", "keys"),
    [
        (lambda ref: SetRings(ref, rx=256), ["rings.rx"]),
        (lambda ref: SetChannels(ref, combined=1, tx=2), ["channels.combined", "channels.tx"]),
        (lambda ref: SetRxFrames(ref, 1), ["rxFrames"]),
        (lambda ref: SetMtu(ref, 1500), ["mtu"]),
        (lambda ref: SetTxQueueLength(ref, 1), ["txQueueLength"]),
        (lambda ref: SetBridgeOptions(ref, (("stp", True),)), ["bridge.stp"]),
        (lambda ref: SetMaster(ref, None), ["master"]),
        (lambda ref: SetVnetHdr(ref, True), ["vnetHdr"]),
        (lambda ref: SetTapOwner(ref, owner=-1), ["owner"]),
    ],
)
def test_every_change_of_a_link_tells_the_settings_that_it_touches(
    make: Callable[[object], Change], keys: list[str]
) -> None:
    host = FakeHost("eth0 mlx5_core +lro")
    assert touched(make(host.ref("eth0")), host.machine.named("eth0")) == keys
