"""Writes what the policies want of a NIC as QEMU's own arguments: -netdev and -device, never -net.

`-net nic -net tap` connects NIC and tap by a hub. A hub port has neither a virtio-net header nor vhost, so the guest
gets no checksum offload, no segmentation offload and no vhost, whatever else is asked (get_vhost_net() and
qemu_has_vnet_hdr() in QEMU's net/).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping

from virtnet.core import nics, resolve, select
from virtnet.core.model import Mode, Policy, Reason, Row, Value, VhostMode
from virtnet.core.nics import NIC, Nic, Wanted, Wish
from virtnet.errors import UsageError
from virtnet.values import frozen

VNET_HDR = "tap.vnetHdr"
LONGEST_VALUE = 1023
"""Characters of a value in a -readconfig file (qemu_config_foreach in util/qemu-config.c)."""

Pairs = tuple[tuple[str, str], ...]


@frozen
class Property:
    """A setting as a property of virtio-net-pci, and what QEMU takes without it (hw/net/virtio-net.c).

    `since`: the first QEMU that has it, "" where every one does that virtnet supports (4.2 and later).
    """

    name: str
    usual: Value
    since: str = ""


def _offloads(side: str, names: str) -> dict[str, Property]:
    return {f"{NIC}{side}.{name}": Property(f"{side}_{name}", True) for name in names.split()}


PROPERTIES: Mapping[str, Property] = {
    f"{NIC}txMode": Property("tx", "iothread"),
    f"{NIC}ioeventfd": Property("ioeventfd", True),
    f"{NIC}eventIdx": Property("event_idx", True),
    f"{NIC}rxQueueSize": Property("rx_queue_size", 256),
    f"{NIC}txQueueSize": Property("tx_queue_size", 256),
    f"{NIC}rss": Property("rss", False, "5.1"),
    f"{NIC}rssHashReport": Property("hash", False, "5.1"),
    f"{NIC}iommu": Property("iommu_platform", False),
    f"{NIC}ats": Property("ats", False),
    f"{NIC}packed": Property("packed", False),
    f"{NIC}host.csum": Property("csum", True),
    f"{NIC}host.gso": Property("gso", True),
    **_offloads("host", "tso4 tso6 ecn ufo"),
    f"{NIC}mergeableRxBuffers": Property("mrg_rxbuf", True),
    **_offloads("guest", "csum tso4 tso6 ecn ufo"),
}
"""The settings that are one property of the device. The others are the model, the queues, and options of the tap."""

DEVICES: Mapping[str, str] = {
    "virtio": "virtio-net-pci",
    "virtio-transitional": "virtio-net-pci-transitional",
    "virtio-non-transitional": "virtio-net-pci-non-transitional",
}
_TX = {"iothread": "bh", "timer": "timer"}


@frozen
class Arguments:
    """A tap and the NIC on it. The first pair of each is what QEMU lets one write without a name: type and driver."""

    netdev: Pairs
    device: Pairs


def build(wanted: Wanted, tap: str, *, mac: str = "", name: str = "") -> Arguments:
    """The arguments for what `wanted` gave. `name` begins the identifiers; usually it is the tap.

    Nothing is written that is not asked: QEMU's own defaults stand.
    """
    name = identifier(name or tap)
    wishes = wanted.wishes
    queues = wishes[f"{NIC}queues"].value if f"{NIC}queues" in wishes else 1
    assert isinstance(queues, int)
    netdev = [("type", "tap"), ("id", f"{name}-net"), ("ifname", tap), ("script", "no"), ("downscript", "no")]
    netdev += [("queues", str(queues))] if queues > 1 else []
    netdev += _tap_options(wishes)
    model = str(wishes[f"{NIC}model"].value) if f"{NIC}model" in wishes else "virtio"
    device = [("driver", DEVICES[model]), ("id", f"{name}-nic"), ("netdev", f"{name}-net")]
    device += [("mac", mac)] if mac else []
    # One vector for each direction of a pair, one for changes of the configuration, one for the control queue.
    device += [("mq", "on"), ("vectors", str(2 * queues + 2))] if queues > 1 else []
    device += [(each.name, text(wishes[path].value)) for path, each in PROPERTIES.items() if path in wishes]
    return Arguments(tuple(netdev), tuple(device))


def _tap_options(wishes: Mapping[str, Wish]) -> Iterator[tuple[str, str]]:
    if VNET_HDR in wishes:
        yield "vnet_hdr", text(wishes[VNET_HDR].value)
    if f"{NIC}sndbuf" in wishes:
        yield "sndbuf", str(wishes[f"{NIC}sndbuf"].value)
    mode = wishes[nics.MODE].value if nics.MODE in wishes else None
    if mode is not None:
        yield "vhost", text(mode == VhostMode.REQUIRED)
    if nics.POLL in wishes and mode == VhostMode.REQUIRED:
        yield "poll-us", str(wishes[nics.POLL].value)


def wanted(policies: Iterable[Policy], nic: Nic, tap: str) -> Wanted:
    """What the policies want of the NIC on this tap.

    Whoever starts a QEMU by a policy means it: a `match` on what is not given here (the bridge, a guest's name or a MAC
    address that is "") is taken to hold.
    """
    chosen = sorted(policies, key=resolve.precedence)
    found = nics.wanted(chosen, nic, choose=_means)
    header = _vnet_hdr(chosen, tap)
    wishes = {**found.wishes, VNET_HDR: header} if header else found.wishes
    return Wanted(wishes, (*found.rows, *_without_effect(wishes, nic)))


def _means(policy: Policy, nic: Nic) -> bool:
    match = policy.guest.match if policy.guest else None
    if match is None:
        return True
    named = not (match.domains and nic.guest) or select.globs(match.domains).match(nic.guest) is not None
    return named and not match.virtual_machines and (not (match.macs and nic.mac) or nic.mac in match.macs)


def _vnet_hdr(policies: Iterable[Policy], tap: str) -> Wish | None:
    """The tap's header as the first policy wants it that has a wish and whose tap section can mean this tap."""
    for policy in policies:
        section = policy.tap
        if section is None or section.vnet_hdr is None or policy.mode is not Mode.ENFORCE:
            continue
        names = section.match.names if section.match else ()
        if not names or select.globs(names).match(tap):
            return Wish(VNET_HDR, section.vnet_hdr, policy.name)
    return None


def _without_effect(wishes: Mapping[str, Wish], nic: Nic) -> Iterator[Row]:
    poll, mode = wishes.get(nics.POLL), wishes.get(nics.MODE)
    if poll and not (mode and mode.value == VhostMode.REQUIRED):
        text = "only vhost polls: ask for vhost.mode: Required too"
        yield Row(nic.subject, poll.path, poll.value, None, Reason.NEEDS_FEATURE, text, poll.policy)


def text(value: Value) -> str:
    """A value as QEMU writes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return _TX.get(str(value), str(value))


def identifier(name: str) -> str:
    """A name that QEMU takes for an `id` (id_wellformed() in util/id.c): a letter, then letters, digits, -, . and _."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    return plain if plain[:1].isalpha() else f"n{plain}"


# --- forms -------------------------------------------------------------------------------------------------


def words(arguments: Arguments) -> tuple[str, ...]:
    """The arguments as a program gets them."""
    return ("-netdev", _joined(arguments.netdev), "-device", _joined(arguments.device))


def _joined(pairs: Pairs) -> str:
    """QEMU's option syntax: a comma in a value is written twice."""
    (_, first), *others = pairs
    return ",".join([first, *(f"{key}={value.replace(',', ',,')}" for key, value in others)])


def shell(arguments: Arguments) -> str:
    """For a shell, an option a line."""
    flags = iter(words(arguments))
    lines = (f"{flag} {shlex.quote(value)}" for flag, value in zip(flags, flags, strict=True))
    return " \\\n".join(lines)


def readconfig(arguments: Arguments) -> str:
    """A file for -readconfig. Raises `UsageError` for a value that such a file cannot hold: it knows no escapes."""
    sections = (("netdev", arguments.netdev), ("device", arguments.device))
    return "\n".join("\n".join(_section(group, pairs)) + "\n" for group, pairs in sections)


def _section(group: str, pairs: Pairs) -> Iterator[str]:
    yield f'[{group} "{dict(pairs)["id"]}"]'
    for key, value in pairs:
        if '"' in value or len(value) > LONGEST_VALUE:
            raise UsageError(f"a -readconfig file cannot hold the value {value}: take -o shell or json")
        if key != "id":
            yield f'  {key} = "{value}"'
