"""Makes the NICs in a libvirt domain as the policies want them: bytes in, bytes out, and nothing else is touched.

What libvirt writes for a setting is in `SETTINGS`. A setting that is not written in the document is written out also
where libvirt's default is the same: a later default cannot change it then. Twice is the same as once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from virtnet.core import markup, nics
from virtnet.core.markup import Edit, Element, Path
from virtnet.core.model import Mode, Policy, Reason, Row, Value, VhostMode, nothing
from virtnet.core.nics import NIC, Nic, Wanted, Wish
from virtnet.errors import UsageError
from virtnet.values import frozen

NIC_TYPES = frozenset({"bridge", "network", "ethernet", "direct"})
"""The types of <interface> behind which a tap or macvtap and QEMU's virtio-net are."""
QEMU_TYPES = frozenset({"qemu", "kvm", "hvf"})
PASSED_THROUGH = frozenset({"kvm", "vfio", "xen"})
"""Names of <driver> that only a device of the host has (VIR_DOMAIN_HOSTDEV_PCI_BACKEND_*), and that exclude queues."""


@frozen
class Place:
    """Where a setting is in <interface>: an attribute of the element at `path`, or its text where `attribute` is "".

    `since`: the first libvirt that has it (https://libvirt.org/formatdomain.html#network-interfaces).
    """

    path: Path
    attribute: str
    since: str


def _driver(attribute: str, since: str) -> Place:
    return Place(("driver",), attribute, since)


def _offloads(side: str, names: str) -> dict[str, Place]:
    return {f"{NIC}{side}.{name}": Place(("driver", side), name, "1.2.9") for name in names.split()}


MODEL, SNDBUF = f"{NIC}model", f"{NIC}sndbuf"
SETTINGS: Mapping[str, Place] = {
    MODEL: Place(("model",), "type", "5.2.0"),
    nics.MODE: _driver("name", "0.8.8"),
    f"{NIC}txMode": _driver("txmode", "0.8.8"),
    f"{NIC}ioeventfd": _driver("ioeventfd", "0.9.3"),
    f"{NIC}eventIdx": _driver("event_idx", "0.9.5"),
    f"{NIC}queues": _driver("queues", "1.0.6"),
    f"{NIC}rxQueueSize": _driver("rx_queue_size", "2.3.0"),
    f"{NIC}txQueueSize": _driver("tx_queue_size", "3.7.0"),
    f"{NIC}rss": _driver("rss", "8.3.0"),
    f"{NIC}rssHashReport": _driver("rss_hash_report", "8.3.0"),
    f"{NIC}iommu": _driver("iommu", "3.5.0"),
    f"{NIC}ats": _driver("ats", "3.5.0"),
    f"{NIC}packed": _driver("packed", "6.3.0"),
    **_offloads("host", "csum gso tso4 tso6 ecn ufo"),
    f"{NIC}mergeableRxBuffers": Place(("driver", "host"), "mrg_rxbuf", "1.2.13"),
    **_offloads("guest", "csum tso4 tso6 ecn ufo"),
    SNDBUF: Place(("tune", "sndbuf"), "", "0.8.8"),
}
"""In the order in which libvirt writes them."""

_BACKENDS = {VhostMode.REQUIRED: "vhost", VhostMode.DISABLED: "qemu"}
_MODES = {name: str(mode) for mode, name in _BACKENDS.items()}


@frozen
class Known:
    """What only the machine knows: the bridge of each libvirt network, and the one that each tap is on."""

    networks: Mapping[str, str] = field(default_factory=nothing)
    taps: Mapping[str, str] = field(default_factory=nothing)


@frozen
class Result:
    """The document as the policies want it, what was changed in it, and what else there is to say, each as a row."""

    document: bytes
    changes: tuple[Row, ...] = ()
    blocked: tuple[Row, ...] = ()


@frozen
class Domain:
    """What the rest of the domain says about a NIC. `id` counts its runs, "" in a definition."""

    name: str
    type: str
    vcpus: int | None
    id: str = ""


def change(document: bytes, policies: Iterable[Policy], known: Known | None = None) -> Result:
    """A whole <domain>, as `virsh dumpxml` prints it. Raises `UsageError` for anything else."""
    guest, interfaces = parse(document)
    return _change(document, interfaces, guest, tuple(policies), known or Known())


def parse(document: bytes) -> tuple[Domain, tuple[Element, ...]]:
    """What a whole <domain> says of itself, and its NICs. Raises `UsageError` for anything else."""
    root = markup.parse(document, _is_of_interest)
    if root.name != "domain":
        raise UsageError(f"this is no libvirt domain: its first element is <{root.name}>, not <domain>")
    kind, run = root.attributes.get("type", ""), root.attributes.get("id", "")
    guest = Domain(_text(root.child("name")), kind, _vcpus(root.child("vcpu")), run)
    devices = [child for child in root.children if child.name == "devices" and not _foreign(root, child)]
    interfaces = (nic for each in devices for nic in each.children if nic.name == "interface" and not _foreign(nic))
    return guest, tuple(interfaces)


def change_interface(
    element: bytes, policies: Iterable[Policy], *, guest: str, vcpus: int | None = None, known: Known | None = None
) -> Result:
    """A single <interface> of a domain named `guest`, as virDomainUpdateDeviceFlags takes it; raises `UsageError`."""
    root = markup.parse(element, lambda path: True)
    if root.name != "interface" or _foreign(root):
        raise UsageError(f"this is no NIC: its first element is <{root.name}>, not <interface>")
    return _change(element, [root], Domain(guest, "kvm", vcpus), tuple(policies), known or Known())


def _is_of_interest(path: Path) -> bool:
    return path[1] in {"name", "vcpu"} or (path[1] == "devices" and path[2:3] in ((), ("interface",)))


def _foreign(*elements: Element) -> bool:
    """Whether they are in another namespace than libvirt's, which has none."""
    return any(element.attributes.get("xmlns") for element in elements)


def _text(element: Element | None) -> str:
    return element.text.strip() if element else ""


def _vcpus(element: Element | None) -> int | None:
    """The virtual CPUs with which the guest starts. None where the text is no number that libvirt takes."""
    if element is None:
        return 1
    count = element.attributes.get("current", element.text).strip()
    return (int(count) or None) if count.isascii() and count.isdigit() and len(count) < 10 else None


# --- one NIC -----------------------------------------------------------------------------------------------


def _change(
    document: bytes, interfaces: Iterable[Element], guest: Domain, policies: tuple[Policy, ...], known: Known
) -> Result:
    edits: list[Edit] = []
    changes: list[Row] = []
    blocked = [row for row in map(nics.selects_nothing, policies) if row]
    for interface in interfaces:
        nic = identify(interface, guest.name, guest.vcpus, known)
        wanted = nics.wanted(policies, nic)
        blocked += wanted.rows
        why_not = unsuited(interface, guest, MODEL in wanted.wishes)
        if why_not:
            blocked += named_all_the_same(nic, policies, why_not)
            continue
        differing = list(_differing(interface, wanted))
        edits += write(document, interface, differing)
        changes += (_change_row(interface, nic, wish, None) for wish in differing)
        blocked += [*_doubts(interface, nic, wanted, guest), *_audited(interface, nic, policies)]
    return Result(markup.apply(document, edits), tuple(changes), tuple(blocked))


def identify(interface: Element, guest: str, vcpus: int | None, known: Known) -> Nic:
    """The NIC as policies name it."""
    mac = interface.child("mac")
    bridge, unknown = _bridge(interface, known)
    return Nic(guest, mac.attributes.get("address", "").lower() if mac else "", bridge, unknown, vcpus)


def _bridge(interface: Element, known: Known) -> tuple[str | None, str]:
    """The bridge it is on (None: it cannot be known), and why it cannot."""
    source, target = interface.child("source"), interface.child("target")
    attributes = source.attributes if source else {}
    kind = interface.attributes.get("type")
    if kind in {"bridge", "network"} and "bridge" in attributes:  # of a network, while the guest runs
        return attributes["bridge"], ""
    if kind == "network":
        network = attributes.get("network", "")
        return known.networks.get(network), f"the bridge of libvirt's network {network} is not known here"
    if kind == "ethernet":
        tap = target.attributes.get("dev", "") if target else ""
        return known.taps.get(tap), f"which bridge tap {tap or 'of type ethernet'} is on is not known here"
    return "", ""


def unsuited(interface: Element, guest: Domain, gets_model: bool) -> str:
    """Why this is no virtio NIC on a tap, "" when it is one or becomes one."""
    kind, driver, model = interface.attributes.get("type", ""), interface.child("driver"), interface.child("model")
    name = driver.attributes.get("name", "") if driver else ""
    if guest.type not in QEMU_TYPES:
        return f"QEMU does not run domains of type {guest.type or '(none)'}"
    if kind not in NIC_TYPES or name in PASSED_THROUGH:
        return f"a NIC of type {kind}{f' with driver {name}' if name else ''} has no tap"
    if not gets_model and _model(model) not in nics.VIRTIO_MODELS:
        return f"its model is {_model(model) or 'not written'}: ask for guest.nic.model to make it a virtio NIC"
    return ""


def named_all_the_same(nic: Nic, policies: Iterable[Policy], text: str) -> Iterator[Row]:
    """A NIC of another kind is nobody's business, unless a policy names its very MAC address."""
    for policy in policies:
        match = policy.guest.match if policy.guest else None
        if match and nic.mac in match.macs and nics.asks(policy) and nics.selects(policy, nic):
            yield Row(nic.subject, "guest.match.macs", nic.mac, None, Reason.UNSUPPORTED, text, policy.name)


def _audited(interface: Element, nic: Nic, policies: Iterable[Policy]) -> Iterator[Row]:
    """What each Audit policy would change if it had won."""
    for policy in policies:
        wanted = nics.wanted([policy], nic, mode=Mode.AUDIT)
        yield from wanted.rows
        for wish in _differing(interface, wanted):
            yield _change_row(interface, nic, wish, Reason.AUDIT_ONLY)


def _differing(interface: Element, wanted: Wanted) -> Iterator[Wish]:
    """The wishes that are not as asked, in the order of `SETTINGS`."""
    for path in SETTINGS:
        wish = wanted.wishes.get(path)
        if wish is not None and _written(interface, path) != text_of(wish):
            yield wish


def _change_row(interface: Element, nic: Nic, wish: Wish, reason: Reason | None) -> Row:
    actual = value_of(interface, wish.path)
    text = "not written, so it is libvirt's default" if actual is None else ""
    return _row(nic, wish, actual, reason, text)


def _row(nic: Nic, wish: Wish, actual: Value | None, reason: Reason | None, text: str) -> Row:
    return Row(nic.subject, wish.path, wish.value, actual, reason, text, wish.policy)


def _model(element: Element | None) -> str:
    """libvirt takes it in any case (virDomainNetModelTypeFromString)."""
    return element.attributes.get("type", "").lower() if element else ""


def _doubts(interface: Element, nic: Nic, wanted: Wanted, guest: Domain) -> Iterator[Row]:
    """What is or will be written and yet has not the effect that was asked."""
    values = {path: value_of(interface, path) for path in nics.NEEDS}
    values |= {needed: value_of(interface, needed) for paths in nics.NEEDS.values() for needed in paths}
    values |= {path: wish.value for path, wish in wanted.wishes.items()}
    for path, needed in nics.contradictions(values):
        if path in wanted.wishes:
            yield nics.needs_feature(wanted.wishes[path], needed, nic)
    mode, poll = wanted.wishes.get(nics.MODE), wanted.wishes.get(nics.POLL)
    if mode and mode.value == VhostMode.REQUIRED and guest.type == "qemu":
        text = "the domain is emulated (type qemu): libvirt opens no vhost for it, and does not say so"
        yield _row(nic, mode, value_of(interface, mode.path), Reason.UNSUPPORTED, text)
    if poll:
        yield _row(nic, poll, None, Reason.UNSUPPORTED, "libvirt cannot set it; only a QEMU without libvirt has it")


# --- values ------------------------------------------------------------------------------------------------


def text_of(wish: Wish) -> str:
    """How libvirt writes what is wished."""
    if wish.path == nics.MODE:
        return _BACKENDS[VhostMode(str(wish.value))]
    if isinstance(wish.value, bool):
        return "on" if wish.value else "off"
    return str(wish.value)


def value_of(interface: Element, path: str) -> Value | None:
    """What is written for a setting, as the API says it; None where nothing is."""
    written = _written(interface, path)
    if written is None:
        return None
    if path == nics.MODE:
        return _MODES.get(written, written)
    if written in {"on", "off"}:
        return written == "on"
    return int(written) if written.isascii() and written.isdigit() and len(written) < 10 else written


def _written(interface: Element, path: str) -> str | None:
    place = SETTINGS[path]
    element = _at(interface, place.path)
    if element is None:
        return None
    if path == MODEL:
        return _model(element) or None
    return element.attributes.get(place.attribute) if place.attribute else element.text.strip()


def _at(interface: Element, path: Path) -> Element | None:
    element: Element | None = interface
    for name in path:
        element = element.child(name) if element else None
    return element


# --- edits -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Content:
    """What an element must have: attributes, children by name, text."""

    attributes: dict[str, str] = field(default_factory=dict)
    children: dict[str, _Content] = field(default_factory=dict)
    text: str = ""


def write(document: bytes, interface: Element, wishes: Iterable[Wish]) -> Iterator[Edit]:
    """The edits of one NIC that make it as wished. Nothing is removed: every wish is a value."""
    content = _Content()
    for wish in wishes:
        place, here = SETTINGS[wish.path], content
        for name in place.path:
            here = here.children.setdefault(name, _Content())
        if place.attribute:
            here.attributes[place.attribute] = text_of(wish)
        else:
            here.text = text_of(wish)
    return _fill(document, interface, content, b"'", interface.child("driver") or interface.child("model"))


def _fill(
    document: bytes, element: Element, content: _Content, mark: bytes, after: Element | None = None
) -> Iterator[Edit]:
    """The edits that give an element this content; children that are not there go behind `after`."""
    mark = markup.quote(document, element, mark)
    yield from markup.set_attributes(document, element, content.attributes, mark)
    if content.text:
        yield markup.set_text(document, element, content.text)
    missing = []
    for name, below in content.children.items():
        child = element.child(name)
        if child is None:
            missing.append(_new(name, below, mark, markup.indent_in(document, element)))
        else:
            yield from _fill(document, child, below, mark)
    if missing:
        yield markup.add_children(document, element, missing, after)


def _new(name: str, content: _Content, mark: bytes, blank: bytes) -> bytes:
    """An element with all that belongs into it, to stand behind `blank`."""
    inner = markup.deeper(blank)
    children = b"".join(inner + _new(*child, mark, inner) for child in content.children.items())
    return markup.tag(name, content.attributes, mark, content.text.encode() + children + (children and blank))
