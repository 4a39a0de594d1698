"""A machine as text and back: one line per link, by name, then the module; what is usual is left out.

    br0 bridge mtu=1500 stp=off delay=15 ageing=300 snooping=on vlan=off mask=0 +tx +sg +tso +gso +gro +txvlan
    eth0 mlx5_core mtu=1500 master=br0 rx-ring=1024/8192 tx-ring=1024/8192 combined=8/8 +rx +tx … +tso -lro
    tap0 tap mtu=1500 master=br0 vnet_hdr owner=107 held=qemu:100:vm1 ~tx +sg ~tso -tx-tcp-mangleid-segmentation +gso
    vhost_net Loaded experimental_zcopytx=0 used=qemu:100:vm1
    file /etc/modprobe.d/x.conf "options vhost_net experimental_zcopytx=1\\n"

A feature is `+` on, `-` off, or `~` wanted but off; a short name speaks for all members that can be changed, and those
that differ from its first one follow by kernel name, as do other features that are not as the kind or driver starts.
Reading takes the same words in any order, and fills in what is not said. A bridge's mtu that is its smallest port's
is taken for one that follows its ports. Interface indexes grow from 1 in the order of lines; `#N` sets one.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

from tests.flow import rules
from tests.flow.machine import STP_DELAY, Device, Machine
from virtnet.core import features
from virtnet.core.model import BridgeOptions, Features, ModuleStatus, Process, Tun

FLAGS = frozenset({"down", "no-carrier", "vnet_hdr", "mq", "pi", "transient"})
SIGNS = "+-~"
MODULE = "vhost_net"
SWITCH = {"on": True, "off": False}
_SHORT_MASKS = {short: rules.mask(set(names) & set(rules.FEATURE_NAMES)) for short, names in features.SHORT.items()}
_IN_A_SHORT_NAME = sum(_SHORT_MASKS.values())


# --- writing -----------------------------------------------------------------------------------------------


def describe(machine: Machine) -> str:
    """The whole machine; two machines that look the same to an administrator have the same text."""
    devices = sorted(machine.devices.values(), key=lambda device: device.link.name)
    return "\n".join([*(describe_link(machine, device) for device in devices), *_module_lines(machine)])


def describe_link(machine: Machine, device: Device) -> str:
    words = [
        *_link_words(machine, device),
        *_tun_words(device),
        *_queue_words(device),
        *_bridge_words(device),
        *_feature_words(machine, device),
        *_people_words(device),
    ]
    return " ".join(words)


def _link_words(machine: Machine, device: Device) -> Iterator[str]:
    link = device.link
    yield from (link.name, device.profile_name, f"mtu={link.mtu}")
    if link.tx_queue_length != 1000:
        yield f"txqlen={link.tx_queue_length}"
    for word, ifindex in (("master", link.master), ("lower", link.lower)):
        if ifindex:
            yield f"{word}={machine.devices[ifindex].link.name}"
    if not link.up:
        yield "down"
    elif not link.carrier and link.tun is None:
        yield "no-carrier"


def _tun_words(device: Device) -> Iterator[str]:
    tun = device.link.tun
    if tun is None:
        return
    flags = (("vnet_hdr", tun.vnet_hdr), ("mq", tun.multi_queue), ("pi", tun.pi), ("transient", not tun.persist))
    yield from (word for word, shown in flags if shown)
    for word, number in (("owner", tun.owner), ("group", tun.group), ("frames", device.frames or None)):
        if number is not None:
            yield f"{word}={number}"


def _queue_words(device: Device) -> Iterator[str]:
    if device.link.tun is not None:
        return
    for word, field_name in _QUEUES.items():
        holder = device.rings if word.endswith("ring") else device.channels
        now = getattr(holder, field_name, None)
        if now is not None:
            yield f"{word}={now}/{getattr(holder, field_name + '_max')}"


_QUEUES = {"rx-ring": "rx", "tx-ring": "tx", "combined": "combined", "rx-queues": "rx", "tx-queues": "tx"}


def _bridge_words(device: Device) -> Iterator[str]:
    options = device.link.bridge
    if options is None:
        return
    yield f"stp={_switch(options.stp)}"
    yield f"delay={options.forward_delay / 100:g}"
    yield f"ageing={options.ageing_time / 100:g}"
    yield f"snooping={_switch(options.multicast_snooping)}"
    yield f"vlan={_switch(options.vlan_filtering)}"
    yield f"mask={options.group_forward_mask}"


def _switch(on: bool) -> str:
    return "on" if on else "off"


def _feature_words(machine: Machine, device: Device) -> tuple[str, ...]:
    start = device.profile.features.wanted
    words = _words_of_features(device.features, start, machine.settled(device))
    if device.refuses != device.profile.refuses:
        return (*words, f"refuses={','.join(features.names_of(device.refuses, rules.FEATURE_NAMES))}")
    return words


@lru_cache(maxsize=4096)
def _words_of_features(now: Features, start: int, settled: int) -> tuple[str, ...]:
    """`start` is what is wanted at first, `settled` what the kernel would have active."""
    words = []
    for short, members in _SHORT_MASKS.items():
        words += _group_words(now, short, members & now.changeable)
    unusual = now.wanted ^ start | now.active ^ settled
    for name in features.names_of(unusual & now.changeable & ~_IN_A_SHORT_NAME, rules.FEATURE_NAMES):
        words.append(_sign(now, rules.mask(name)) + name)
    return tuple(words)


def _group_words(now: Features, short: str, members: int) -> Iterator[str]:
    names = [name for name in features.SHORT[short] if name in rules.FEATURE_NAMES and rules.mask(name) & members]
    if not names:
        return
    first = _sign(now, rules.mask(names[0]))
    yield first + short
    yield from (sign + name for name in names[1:] if (sign := _sign(now, rules.mask(name))) != first)


def _sign(now: Features, bit: int) -> str:
    if now.active & bit:
        return "+"
    return "~" if now.wanted & bit else "-"


def _people_words(device: Device) -> Iterator[str]:
    yield from (f"held={_process_word(process)}" for process in device.holders)
    if device.carries:
        yield f"carries={shlex.quote(device.carries)}"
    if device.unreadable:
        yield f"unreadable={','.join(sorted(device.unreadable))}"


def _process_word(process: Process) -> str:
    return f"{process.command}:{process.pid}:{process.guest}"


def _module_lines(machine: Machine) -> Iterator[str]:
    module = machine.module
    parameters = [f"{name}={value}" for name, value in sorted(module.parameters.items())]
    users = [f"used={_process_word(user)}" for user in module.users]
    yield " ".join([module.name, module.status, *parameters, *users])
    for path, content in sorted(module.files.items()):
        yield f"file {path} {json.dumps(content)}"


# --- reading -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Words:
    """One line of a link, its words sorted by what they are."""

    name: str
    kind: str
    ifindex: int = 0
    flags: set[str] = field(default_factory=set)
    features: list[tuple[str, str]] = field(default_factory=list)
    values: dict[str, list[str]] = field(default_factory=dict)

    def take(self, key: str) -> str | None:
        """The value of a word that may be there once."""
        values = self.values.pop(key, [])
        assert len(values) < 2, f"{self.name}: {key} is said twice"
        return values[0] if values else None

    def take_number(self, key: str) -> int | None:
        value = self.take(key)
        return None if value is None else int(value)


def parse(text: str) -> Machine:
    """The machine that a text describes; a text that no kernel could show is an AssertionError."""
    machine = Machine()
    links = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("file "):
            _, path, content = line.split(" ", 2)
            machine.module.write(path, json.loads(content))
        elif line.startswith(f"{MODULE} "):
            _read_module(machine, line)
        else:
            links.append(_sort_words(line))
    _read_links(machine, links)
    return machine


def add_link(machine: Machine, line: str) -> Device:
    """Add one more link from its line to a machine that runs."""
    words = _sort_words(line)
    _read_links(machine, [words])
    return machine.named(words.name)


def _sort_words(line: str) -> Words:
    name, kind, *rest = shlex.split(line)
    words = Words(name, kind)
    assert kind in rules.PROFILES, f"{name}: unknown kind or driver {kind!r}"
    for word in rest:
        key, equals, value = word.partition("=")
        if equals:
            words.values.setdefault(key, []).append(value)
        elif word[0] == "#":
            words.ifindex = int(word[1:])
        elif word[0] in SIGNS:
            words.features.append((word[0], word[1:]))
        else:
            assert word in FLAGS, f"{name}: unknown word {word!r}"
            words.flags.add(word)
    return words


def _read_links(machine: Machine, links: list[Words]) -> None:
    for words in links:
        _read_link(machine, words)
    for words in links:
        _read_relations(machine, words)
    for device in sorted(map(machine.named, (words.name for words in links)), key=_stacking):
        device.features = replace(device.features, active=machine.settled(device))
    for words in links:
        _read_actives(machine, words)
        _pin_mtu(machine, machine.named(words.name))
        assert not words.values, f"{words.name}: unknown words {sorted(words.values)}"


def _stacking(device: Device) -> int:
    """Ports come before what stands on them."""
    return ["", "tun", "veth", "macvtap", "vlan", "bond", "team", "bridge"].index(device.link.kind)


def _read_link(machine: Machine, words: Words) -> None:
    if words.kind in {"tap", "tun"}:
        device = machine.add_tap(words.name, _read_tun(words), ifindex=words.ifindex)
        device.frames = words.take_number("frames") or 0
    else:
        device = machine.add(words.name, words.kind, ifindex=words.ifindex)
    device.change(up="down" not in words.flags)
    if "down" in words.flags or "no-carrier" in words.flags:
        device.change(carrier=False)
    device.change(mtu=words.take_number("mtu") or device.link.mtu)
    length = words.take_number("txqlen")
    device.change(tx_queue_length=1000 if length is None else length)
    _read_numbers(device, words)
    for person in words.values.pop("held", []):
        machine.hold(device, read_process(person), vnet_hdr=device.tun.vnet_hdr)
    device.carries = words.take("carries") or ""
    device.unreadable = dict.fromkeys(filter(None, (words.take("unreadable") or "").split(",")), "as the test says")
    _read_wanted(device, words)


def _read_tun(words: Words) -> Tun:
    return Tun(
        tap=words.kind == "tap",
        owner=words.take_number("owner"),
        group=words.take_number("group"),
        pi="pi" in words.flags,
        vnet_hdr="vnet_hdr" in words.flags,
        persist="transient" not in words.flags,
        multi_queue="mq" in words.flags,
    )


def _read_numbers(device: Device, words: Words) -> None:
    for word, field_name in _QUEUES.items():
        value = words.take(word)
        if value is None:
            continue
        now, _, highest = value.partition("/")
        numbers = {field_name: int(now)} | ({field_name + "_max": int(highest)} if highest else {})
        if word.endswith("ring"):
            assert device.rings is not None, f"{words.name} has no rings"
            device.rings = replace(device.rings, **numbers)
        else:
            assert device.channels is not None, f"{words.name} has no channels"
            device.channels = replace(device.channels, **numbers)
    if device.link.bridge is not None:
        device.change(bridge=_read_bridge(device.link.bridge, words))


def _read_bridge(options: BridgeOptions, words: Words) -> BridgeOptions:
    switches = {"stp": "stp", "snooping": "multicast_snooping", "vlan": "vlan_filtering"}
    times = {"delay": "forward_delay", "ageing": "ageing_time"}
    values: dict[str, int] = {}
    values |= {name: SWITCH[said] for word, name in switches.items() if (said := words.take(word)) is not None}
    values |= {name: round(float(said) * 100) for word, name in times.items() if (said := words.take(word))}
    mask = words.take_number("mask")
    values |= {} if mask is None else {"group_forward_mask": mask}
    then = replace(options, **values)  # type: ignore[arg-type]
    assert not then.stp or then.forward_delay in STP_DELAY, f"{words.name}: no delay with stp: {then.forward_delay}"
    return then


def read_process(word: str) -> Process:
    """COMMAND, COMMAND:PID or COMMAND:PID:GUEST."""
    command, pid, guest = (*word.split(":"), "", "")[:3]
    return Process(int(pid or 1), command, guest)


def _read_wanted(device: Device, words: Words) -> None:
    refuses = words.take("refuses")
    if refuses is not None:
        device.refuses = sum(_members(device, name) for name in filter(None, refuses.split(",")))
    wanted = device.features.wanted
    for sign, name in words.features:
        members = _members(device, name)
        wanted = wanted & ~members if sign == "-" else wanted | members
    device.features = replace(device.features, wanted=wanted)


def _members(device: Device, name: str) -> int:
    members = _SHORT_MASKS[name] if name in _SHORT_MASKS else rules.mask(name)
    changeable = members & device.features.changeable
    assert changeable, f"{device.link.name}: {name} is fixed"
    return changeable


def _read_relations(machine: Machine, words: Words) -> None:
    for word in ("master", "lower"):
        other = words.take(word)
        if other is not None:
            machine.named(words.name).change(**{word: machine.named(other).link.ifindex})


def _read_actives(machine: Machine, words: Words) -> None:
    """Hold what the text says of each feature against what the kernel would make of it; the last word counts."""
    device = machine.named(words.name)
    said: dict[str, str] = {}
    for sign, name in words.features:
        said |= dict.fromkeys(features.names_of(_members(device, name), rules.FEATURE_NAMES), sign)
    for name, sign in said.items():
        if sign == "~":
            device.features = replace(device.features, active=device.features.active & ~rules.mask(name))
        shown = _sign(device.features, rules.mask(name))
        assert shown == sign, f"{words.name}: {sign}{name} cannot be, it would be {shown}{name}"


def _pin_mtu(machine: Machine, device: Device) -> None:
    smallest = min((port.link.mtu for port in machine.ports(device)), default=1500)
    device.pinned_mtu = device.link.bridge is not None and device.link.mtu != smallest


def _read_module(machine: Machine, line: str) -> None:
    name, status, *rest = shlex.split(line)
    module = machine.module
    module.name, module.status = name, ModuleStatus(status)
    for word in rest:
        key, _, value = word.partition("=")
        if key == "used":
            module.users = (*module.users, read_process(value))
        else:
            module.parameters[key] = value
    assert not module.users or module.status is ModuleStatus.LOADED, f"{name}: used but not loaded"
