"""Random libvirt domains that are valid by libvirt's schema and written in every way that XML allows.

What a NIC is comes from hypothesis; how it is written (order, quotes, blanks, comments) from one random number.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from xml.sax import saxutils

from hypothesis import strategies as st

ON_OFF = st.sampled_from(["on", "off"])
OFFLOADS = ("csum", "tso4", "tso6", "ecn", "ufo")
DRIVER = {
    "name": st.sampled_from(["vhost", "qemu"]),
    "txmode": st.sampled_from(["iothread", "timer"]),
    "queues": st.sampled_from(["1", "4", "08"]),
    "rx_queue_size": st.sampled_from(["256", "512"]),
    "tx_queue_size": st.just("256"),
    **dict.fromkeys(("ioeventfd", "event_idx", "rss", "rss_hash_report", "iommu", "ats", "packed"), ON_OFF),
    "page_per_vq": ON_OFF,
}


@dataclass(frozen=True)
class Tag:
    name: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: tuple[Tag, ...] = ()
    text: str = ""


@dataclass(frozen=True)
class Drawn:
    """A NIC, and what the tests must know of it without asking the code under test."""

    tag: Tag
    type: str
    model: str
    bridge: str
    mac: str


def _some(values: dict[str, st.SearchStrategy[str]]) -> st.SearchStrategy[dict[str, str]]:
    return st.fixed_dictionaries({}, optional=values)


@st.composite
def drivers(draw: st.DrawFn) -> Tag:
    if draw(st.integers(0, 15)) == 0:
        return Tag("driver", {"name": draw(st.sampled_from(["vfio", "kvm", "xen"]))})
    children = []
    if draw(st.booleans()):
        children.append(Tag("host", draw(_some(dict.fromkeys((*OFFLOADS, "gso", "mrg_rxbuf"), ON_OFF)))))
    if draw(st.booleans()):
        children.append(Tag("guest", draw(_some(dict.fromkeys(OFFLOADS, ON_OFF)))))
    return Tag("driver", draw(_some(DRIVER)), tuple(children))


@st.composite
def nics(draw: st.DrawFn) -> Drawn:
    kind = draw(st.sampled_from(["bridge", "bridge", "bridge", "network", "ethernet", "direct", "user"]))
    bridge, mac = draw(st.sampled_from(["br0", "br1"])), f"52:54:00:0A:0b:{draw(st.integers(16, 99))}"
    source = {
        "bridge": {"bridge": bridge},
        "network": {"network": "default", **({"bridge": bridge} if draw(st.booleans()) else {})},
        "direct": {"dev": "eth0", "mode": "bridge"},
    }.get(kind)
    model = draw(st.sampled_from(["virtio", "virtio", "virtio", "virtio-non-transitional", "e1000", ""]))
    children = [Tag("source", source)] if source else []
    children += [Tag("model", {"type": model})] if model else []
    optional = {
        "mac": Tag("mac", {"address": mac}),
        "driver": draw(drivers()),
        "tune": Tag("tune", {}, draw(st.sampled_from([(), (Tag("sndbuf", {}, (), "1600"),)]))),
        "alias": Tag("alias", {"name": "ua-Capital_X"}),
        "link": Tag("link", {"state": "down"}),
        "guest": Tag("guest", {"dev": "vnet0"}),
        "address": Tag(
            "address", {"type": "pci", "domain": "0x0000", "bus": "0x01", "slot": "0x00", "function": "0x0"}
        ),
    }
    chosen = draw(st.sets(st.sampled_from(sorted(optional))))
    children += [optional[name] for name in sorted(chosen)]
    driver = optional["driver"] if "driver" in chosen else Tag("driver")
    passed_through = driver.attributes.get("name") in {"vfio", "kvm", "xen"}
    known = source.get("bridge", "") if source else ""
    tag = Tag("interface", {"type": kind}, tuple(children))
    return Drawn(
        tag, "passed through" if passed_through else kind, model, known, mac.lower() if "mac" in chosen else ""
    )


@st.composite
def domains(draw: st.DrawFn) -> tuple[bytes, list[Drawn]]:
    """A document, and its NICs in their order."""
    found = draw(st.lists(nics(), max_size=4))
    style = Style(draw(st.integers(0, 2**32 - 1)))
    top = [
        Tag("name", {}, (), "db-1"),
        Tag("memory", {"unit": "KiB"}, (), "1048576"),
        Tag("vcpu", {"placement": "static", "current": "3"}, (), "8"),
        Tag("os", {}, (Tag("type", {"arch": "x86_64"}, (), "hvm"),)),
        Tag("metadata", {}, (Tag("a:interface", {"xmlns:a": "http://a.example/1", "a:Type": "bridge"}),)),
        Tag("description", {}, (), "<interface type='bridge'> & more"),
    ]
    style.random.shuffle(top)
    emulator = Tag("emulator", {}, (), "/usr/bin/kvm")
    disk = Tag(
        "disk", {"type": "file"}, (Tag("driver", {"name": "qemu", "queues": "3"}), Tag("target", {"dev": "vda"}))
    )
    devices = Tag("devices", {}, (emulator, disk, *(nic.tag for nic in found)))
    root = Tag("domain", {"type": draw(st.sampled_from(["kvm", "qemu"]))}, (*top, devices))
    return style.document(root), found


class Style:
    """How a document is written; the order of NICs is kept, that of all else in a NIC is not."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.newline = self.random.choice(["\n", "\r\n", ""])
        self.unit = self.random.choice(["  ", "\t", ""])
        self.mark = self.random.choice(["'", '"', "mixed"])
        self.decorated = self.random.random() < 0.4

    def document(self, root: Tag) -> bytes:
        head = self.random.choice(["", "<?xml version='1.0' encoding='UTF-8'?>\n", "<?xml version='1.0'?>", "\ufeff"])
        return (
            head + self.ornament() + self.element(root, 0) + self.random.choice(["", "\n", "<!-- end -->"])
        ).encode()

    def element(self, tag: Tag, depth: int) -> str:
        children = list(tag.children)
        if tag.name in {"interface", "driver"}:
            self.random.shuffle(children)
        head = f"<{tag.name}{self.attributes(tag.attributes)}{self.random.choice(['', '', ' '])}"
        if not children and not tag.text:
            return head + self.random.choice(["/>", f"></{tag.name}>"])
        inner = self.line(depth + 1)
        content = saxutils.escape(tag.text)
        if tag.name == "sndbuf":
            content = self.random.choice(["{}", "<!-- b -->{}", "<![CDATA[{}]]>"]).format(content)
        content += "".join(inner + self.ornament() + self.element(child, depth + 1) for child in children)
        return f"{head}>{content}{self.line(depth) if children else ''}</{tag.name}{self.random.choice(['', ' '])}>"

    def attributes(self, values: dict[str, str]) -> str:
        items = list(values.items())
        self.random.shuffle(items)
        return "".join(self.attribute(key, value) for key, value in items)

    def attribute(self, key: str, value: str) -> str:
        mark = self.random.choice("'\"") if self.mark == "mixed" else self.mark
        written = saxutils.escape(value)
        if value and self.decorated and self.random.random() < 0.2:
            written = f"&#x{ord(value[0]):x};" + saxutils.escape(value[1:])
        equals = self.random.choice(["=", " = ", "=\n"]) if self.decorated else "="
        return (
            f"{self.random.choice([' ', '  ', chr(10)]) if self.decorated else ' '}{key}{equals}{mark}{written}{mark}"
        )

    def line(self, depth: int) -> str:
        return self.newline + self.unit * depth if self.newline else ""

    def ornament(self) -> str:
        if not self.decorated:
            return ""
        return self.random.choice(["", "", "<!-- <driver name='x'/> é -->", "<?pi some <driver/> ?>"])
