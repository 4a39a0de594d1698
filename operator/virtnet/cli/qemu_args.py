"""The command `qemu-args`: what belongs on a QEMU command line for one NIC; it reads neither the host nor the tap."""

from __future__ import annotations

import json
import re

from virtnet import errors
from virtnet.cli import terminal, wishes
from virtnet.cli.options import QemuForm
from virtnet.core import nics, qemu_args
from virtnet.core.model import Mode, Node
from virtnet.core.nics import Nic
from virtnet.core.qemu_args import Arguments
from virtnet.kube import rules
from virtnet.values import frozen

_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")


@frozen
class Wish:
    """The NIC that is to be started, as typed; an empty text and None: not told."""

    tap: str
    mac: str = ""
    guest: str = ""
    vcpus: int | None = None
    name: str = ""


def run(file: str, wish: Wish, form: QemuForm, node: Node) -> int:
    nic = _nic(wish)
    found = wishes.read([file], node)
    for policy in found:
        if policy.mode is Mode.AUDIT:
            terminal.say(f"policy {policy.name}: it is in mode Audit: left out")
    wanted = qemu_args.wanted(found, nic, wish.tap)
    _refuse_unknown_vcpus(wanted)
    if not wish.mac:
        terminal.say("without --mac every QEMU gives its first NIC the same address, 52:54:00:12:34:56")
    shown = _shown(qemu_args.build(wanted, wish.tap, mac=nic.mac, name=wish.name), form)
    wishes.say(wanted.rows)
    print(shown)
    return 0


def _nic(wish: Wish) -> Nic:
    if not rules.is_interface_name(wish.tap):
        raise errors.UsageError(
            f"--tap {wish.tap} is no interface name: 1 to 15 bytes, no '/', ':', '%' or white space"
        )
    mac = wish.mac.lower()
    if mac and not _MAC.fullmatch(mac):
        raise errors.UsageError(f"--mac {wish.mac} is no address of one NIC: write it like 52:54:00:12:34:56")
    if wish.vcpus is not None and wish.vcpus < 1:
        raise errors.UsageError(f"--vcpus {wish.vcpus}: write 1 or more")
    return Nic(wish.guest, mac, None, vcpus=wish.vcpus)


def _refuse_unknown_vcpus(wanted: nics.Wanted) -> None:
    if any(row.wanted == nics.VCPUS for row in wanted.rows):
        raise errors.UsageError("the policy asks for one queue for each virtual CPU: write --vcpus N")


def _shown(arguments: Arguments, form: QemuForm) -> str:
    if form is QemuForm.JSON:
        return json.dumps(qemu_args.words(arguments))
    return qemu_args.shell(arguments) if form is QemuForm.SHELL else qemu_args.readconfig(arguments).rstrip("\n")
