"""Reads from a QEMU command line which NICs it was started with, and compares them with what the policies want.

It tells what was configured, never what is in effect: a guest may have refused a feature, vhost may not have started.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from virtnet.core import nics, qemu_args
from virtnet.core.model import EMPTY, Reason, Row, Value, VhostMode
from virtnet.core.nics import NIC, Nic, Wanted, Wish
from virtnet.values import frozen

HUB = (
    "-net connects NIC and tap by hub 0: the guest gets no checksum offload, no segmentation offload and no vhost, "
    "whatever else is asked; start it with -netdev and -device, as virtnet qemu-args prints them"
)
NO_HEADER = "without vnet_hdr the guest gets no checksum and no segmentation offload"

LOST_WITHOUT_HEADER = frozenset(
    {
        *(f"{NIC}{side}.{name}" for side in ("host", "guest") for name in ("csum", "tso4", "tso6", "ecn", "ufo")),
        f"{NIC}rssHashReport",
    }
)
"""What virtio_net_get_features() in hw/net/virtio-net.c takes back from a NIC whose peer has no virtio-net header."""

_MODELS: Mapping[str, str] = {
    **{device: model for model, device in qemu_args.DEVICES.items()},
    **dict.fromkeys(("virtio", "virtio-net", "virtio-net-ccw", "virtio-net-device"), "virtio"),
}
_YES, _NO = frozenset({"on", "yes", "true", "y"}), frozenset({"off", "no", "false", "n"})
_SECTION = re.compile(r'\s*\[\s*(\w+)(?:\s+"([^"]*)")?\s*\]')
_ENTRY = re.compile(r'\s*([\w.-]+)\s*=\s*"([^"]*)"')

Options = Mapping[str, str]


@frozen
class Configured:
    """One NIC as QEMU was told.

    `model` is virtio, virtio-transitional, virtio-non-transitional, or QEMU's name of another device. `backend` is the
    type of its -netdev ("" when it has none), `tap` the tap's name, "" when QEMU got open descriptors (`fds`) instead.
    `options` are those of the backend, `properties` those of the device. `hub`: both meet at a hub.
    """

    model: str
    mac: str = ""
    backend: str = ""
    tap: str = ""
    fds: tuple[str, ...] = ()
    options: Options = field(default_factory=lambda: EMPTY)
    properties: Options = field(default_factory=lambda: EMPTY)
    hub: bool = False

    @property
    def virtio(self) -> bool:
        return self.model in nics.VIRTIO_MODELS


@frozen
class Read:
    """The NICs of one command line, its virtual CPUs (None: not told in a way that we know), the -readconfig files
    whose content was not given."""

    nics: tuple[Configured, ...]
    vcpus: int | None
    unread: tuple[str, ...] = ()


def read(argv: Sequence[str], files: Mapping[str, str] = EMPTY) -> Read:
    """What a QEMU was started with. `files` maps the path of each -readconfig file, as written there, to its text."""
    command = _Command()
    for flag, value in itertools.pairwise(argv):
        if flag.startswith("-"):
            command.take(flag.removeprefix("-").removeprefix("-"), value, files)
    return Read(tuple(command.found()), _vcpus(command.smp), tuple(command.unread))


def options(text: str, first: str) -> dict[str, str]:
    """QEMU's options, `a=b,c=d` or JSON; `first` is the key of a first value without one. A later one wins."""
    if text.startswith("{"):
        return _from_json(text)
    found = {}
    for at, part in enumerate(text.replace(",,", "\0").split(",")):
        key, sign, value = part.replace("\0", ",").partition("=")
        if sign:
            found[key] = value
        elif at == 0:
            found[first] = key
        else:  # an old spelling of truth values: `server`, `nowait`
            found[key.removeprefix("no")] = "off" if key.startswith("no") else "on"
    return found


def _from_json(text: str) -> dict[str, str]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return {key: _plain(each) for key, each in value.items()} if isinstance(value, dict) else {}


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


@dataclass(slots=True)
class _Command:
    """The parts of a command line that speak of NICs, as they come."""

    netdevs: dict[str, dict[str, str]] = field(default_factory=dict)
    devices: list[dict[str, str]] = field(default_factory=list)
    pairs: list[dict[str, str]] = field(default_factory=list)  # -nic
    legacy: list[dict[str, str]] = field(default_factory=list)  # -net
    usual: dict[str, dict[str, str]] = field(default_factory=dict)  # -global
    unread: list[str] = field(default_factory=list)
    smp: str = "1"

    def take(self, flag: str, value: str, files: Mapping[str, str]) -> None:
        match flag:
            case "netdev":
                self.add("netdev", options(value, "type"))
            case "device":
                self.add("device", options(value, "driver"))
            case "nic":
                self.pairs.append(options(value, "type"))
            case "net":
                self.legacy.append(options(value, "type"))
            case "global":
                self.preset(value)
            case "set":
                self.correct(value)
            case "smp":
                self.smp = value
            case "readconfig":
                self.include(value, files)

    def add(self, group: str, found: dict[str, str]) -> None:
        if group == "netdev":
            self.netdevs[found.get("id", "")] = found
        elif group == "device":
            self.devices.append(found)

    def preset(self, value: str) -> None:
        """`DRIVER.PROPERTY=VALUE`, or the three by their names."""
        named = options(value, "")
        driver, key, text = named.get("driver", ""), named.get("property", ""), named.get("value", "")
        if not driver:
            name, _, text = value.partition("=")
            driver, _, key = name.partition(".")
        self.usual.setdefault(driver, {})[key] = text

    def correct(self, value: str) -> None:
        """`GROUP.ID.KEY=VALUE`, for what is there already."""
        name, _, text = value.partition("=")
        group, _, rest = name.partition(".")
        identifier, _, key = rest.rpartition(".")
        if group == "netdev" and identifier in self.netdevs:
            self.netdevs[identifier][key] = text
        for device in self.devices if group == "device" else ():
            if device.get("id") == identifier:
                device[key] = text

    def include(self, path: str, files: Mapping[str, str]) -> None:
        if path not in files:
            self.unread.append(path)
            return
        current: dict[str, str] = {}
        for line in files[path].splitlines():
            if section := _SECTION.match(line):
                current = {"id": section[2]} if section[2] else {}
                if section[1] == "netdev":
                    self.netdevs[section[2] or ""] = current
                elif section[1] == "device":
                    self.devices.append(current)
            elif entry := _ENTRY.match(line):
                current[entry[1]] = entry[2]

    def found(self) -> Iterator[Configured]:
        for device in self.devices:
            if "netdev" in device or device.get("driver") in _MODELS:
                yield self.configured(device, self.netdevs.get(device.get("netdev", ""), {}))
        for pair in self.pairs:
            if pair.get("type") != "none":
                yield self.configured({**pair, "driver": pair.get("model", "")}, pair)
        backends = [each for each in self.legacy if each.get("type") not in {"nic", "none"}]
        for nic in self.legacy:
            if nic.get("type") == "nic":
                device = {**nic, "driver": nic.get("model", ""), "mac": nic.get("macaddr", nic.get("mac", ""))}
                own = self.netdevs.get(nic.get("netdev", ""))
                yield self.configured(device, own or (backends or [{}])[0], hub=own is None)

    def configured(self, device: Options, backend: Options, *, hub: bool = False) -> Configured:
        driver = device.get("driver", "")
        fds = backend.get("fds", backend.get("fd", ""))
        return Configured(
            _MODELS.get(driver, driver),
            device.get("mac", "").lower(),
            backend.get("type", ""),
            backend.get("ifname", ""),
            tuple(fds.split(":")) if fds else (),
            backend,
            {**self.usual.get(driver, {}), **device},
            hub or backend.get("type") == "hubport",
        )


def _vcpus(smp: str) -> int | None:
    """The virtual CPUs at the start, by the rules of machine_parse_smp_config() in QEMU's hw/core/machine-smp.c."""
    told = options(smp, "cpus")
    counts = {key: _whole(value) for key, value in told.items()}
    if None in counts.values():
        return None
    numbers = {key: count for key, count in counts.items() if count}
    if "cpus" in numbers or "maxcpus" in numbers:
        return numbers.get("cpus", numbers.get("maxcpus"))
    total = 1
    for count in numbers.values():
        total *= count
    return total


def _whole(text: str) -> int | None:
    try:
        return int(text[:20], 0)
    except ValueError:
        return None


# --- what that means ---------------------------------------------------------------------------------------


def asks_vhost(nic: Configured) -> bool:
    """Whether QEMU was told to use vhost: net_init_tap_one() in net/tap.c. Never through a hub."""
    if nic.hub or nic.backend != "tap":
        return False
    told = nic.options
    if "vhost" in told:
        return _truth(told["vhost"]) is True
    return bool(told.get("vhostfd") or told.get("vhostfds")) or _truth(told.get("vhostforce", "off")) is True


def explain(nic: Configured) -> Iterator[str]:
    """What is old or easily misread in the way in which a NIC was configured, in today's words, with the fix."""
    if nic.hub:
        yield HUB
    told = nic.options
    if "vhostforce" in told:
        yield (
            f"vhostforce={told['vhostforce']} beside vhost={told['vhost']} has no effect: take it out"
            if "vhost" in told
            else f"vhostforce={told['vhostforce']} means vhost={told['vhostforce']}: since QEMU 2.4 vhost does not "
            "depend on MSI-X in the guest; write vhost instead"
        )
    for name in ("vhostfd", "vhostfds"):
        if name in told:
            yield f"{name}={told[name]} means vhost=on: whoever started QEMU has opened /dev/vhost-net for it"


def actual(nic: Configured, path: str) -> Value | None:
    """What a NIC was configured to, as the API says it; None where QEMU decides by what it finds."""
    if path == nics.MODE:
        return str(VhostMode.REQUIRED if asks_vhost(nic) else VhostMode.DISABLED)
    if path == nics.POLL:
        return _whole(nic.options.get("poll-us", "0"))
    if path == f"{NIC}model":
        return nic.model
    if path == f"{NIC}queues":
        return len(nic.fds) or _whole(nic.options.get("queues", "1"))
    if path == f"{NIC}sndbuf":
        return _whole(nic.options.get("sndbuf", "0"))
    if path in LOST_WITHOUT_HEADER and _has_no_header(nic):
        return False
    return _property(nic, qemu_args.PROPERTIES[path])


def _has_no_header(nic: Configured) -> bool:
    return nic.hub or _truth(nic.options.get("vnet_hdr", "on")) is False


def _property(nic: Configured, about: qemu_args.Property) -> Value | None:
    written = nic.properties.get(about.name)
    if written is None:
        return about.usual
    if isinstance(about.usual, bool):
        return _truth(written)
    if isinstance(about.usual, int):
        return _whole(written)
    return "timer" if written == "timer" else "iothread"


def _truth(text: str) -> bool | None:
    return True if text in _YES else False if text in _NO else None


def compare(nic: Configured, identity: Nic, wanted: Wanted) -> Iterator[Row]:
    """A row for every wish that the running QEMU was not started with. A NIC that is not virtio is nobody's business,
    unless a model is wanted."""
    if not (nic.virtio or f"{NIC}model" in wanted.wishes):
        return
    for wish in wanted.wishes.values():
        value = actual(nic, wish.path)
        if value != wish.value and not (wish.path == f"{NIC}txMode" and asks_vhost(nic)):
            text = _advice(nic, wish)
            yield Row(identity.subject, wish.path, wish.value, value, Reason.RESTART_REQUIRED, text, wish.policy)


def _advice(nic: Configured, wish: Wish) -> str:
    if nic.hub and (wish.path in LOST_WITHOUT_HEADER or wish.path == nics.MODE):
        return HUB
    if wish.path in LOST_WITHOUT_HEADER and _has_no_header(nic):
        return NO_HEADER
    return f"QEMU was started otherwise; start it with {_argument(wish)}"


def _argument(wish: Wish) -> str:
    """What belongs on the command line for one wish."""
    value = wish.value
    match wish.path.removeprefix(NIC):
        case "model":
            return f"-device {qemu_args.DEVICES[str(value)]}"
        case "queues":
            return f"queues={value} in -netdev and mq=on in -device" if value != 1 else "no queues= and no mq="
        case "sndbuf":
            return f"sndbuf={value}"
        case nics.MODE:
            return f"vhost={qemu_args.text(value == VhostMode.REQUIRED)}"
        case nics.POLL:
            return f"vhost=on,poll-us={value}"
    return f"{qemu_args.PROPERTIES[wish.path].name}={qemu_args.text(value)}"
