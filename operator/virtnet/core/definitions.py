"""Reads libvirt's domains as values, and writes single settings of one NIC into a definition, every other byte kept.

It knows what is written, never what is wanted of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from virtnet.core import domain_xml, markup
from virtnet.core.domain_xml import Known
from virtnet.core.markup import Edit, Element
from virtnet.core.model import EMPTY, Guest, GuestNic, Value
from virtnet.core.nics import Wish
from virtnet.errors import Gone
from virtnet.values import frozen

Where = tuple[str, str]
"""(MAC address in lower case, place on the bus): what names a NIC in its domain."""


@frozen
class Found:
    """One NIC in a definition. `alone`: no other has its MAC address, so that libvirt finds it by that."""

    document: bytes
    element: Element
    alone: bool

    @property
    def settings(self) -> Mapping[str, Value]:
        return settings(self.element)

    @property
    def alias(self) -> str:
        """What the running guest's device is called, "" where none is written."""
        alias = self.element.child("alias")
        return alias.attributes.get("name", "") if alias else ""

    def written(self, values: Iterable[tuple[str, Value | None]]) -> bytes:
        """The whole document with these settings; None takes one out."""
        return markup.apply(self.document, list(_edits(self.document, self.element, tuple(values))))

    def interface(self, values: Iterable[tuple[str, Value | None]]) -> bytes:
        """Its <interface> alone, with these settings."""
        start, end = self.element.start, self.element.end
        edits = _edits(self.document, self.element, tuple(values))
        moved = [Edit(edit.start - start, edit.end - start, edit.text) for edit in edits]
        return markup.apply(self.document[start:end], moved)


def read(uuid: str, definition: bytes | None, live: bytes | None, networks: Mapping[str, str] = EMPTY) -> Guest:
    """A domain from `virsh dumpxml --inactive` and, while it runs, `virsh dumpxml`; at least one of them is there.

    `networks` maps libvirt's networks to their bridges. Raises `UsageError` for what is no domain.
    """
    known = Known(networks)
    runs = None if live is None else domain_xml.parse(live)
    first = runs if definition is None else domain_xml.parse(definition)
    assert first is not None, "a domain is defined or runs"
    domain, interfaces = first
    running = {} if runs is None else {where(each): each for each in runs[1]}
    found = tuple(_nic(each, domain, known, running.get(where(each)), definition is not None) for each in interfaces)
    return Guest(uuid, domain.name, found, domain.vcpus, domain.type == "qemu")


def _nic(
    interface: Element, domain: domain_xml.Domain, known: Known, running: Element | None, is_defined: bool
) -> GuestNic:
    shown = running or interface
    mac, address = where(interface)
    nic = domain_xml.identify(interface, domain.name, domain.vcpus, known)
    if nic.bridge is None and running is not None:  # libvirt writes a network's bridge while the guest runs
        nic = domain_xml.identify(running, domain.name, domain.vcpus, known)
    target = shown.child("target")
    return GuestNic(
        mac,
        address,
        nic.bridge,
        nic.unknown,
        target.attributes.get("dev", "") if target else "",
        settings(interface) if is_defined else None,
        settings(running) if running is not None else None,
        domain_xml.unsuited(interface, domain, True),
        domain_xml.unsuited(interface, domain, False),
    )


def networks(document: bytes) -> frozenset[str]:
    """The networks of libvirt that the NICs of a domain are on."""
    _, interfaces = domain_xml.parse(document)
    sources = (each.child("source") for each in interfaces if each.attributes.get("type") == "network")
    return frozenset(source.attributes.get("network", "") for source in sources if source)


def where(interface: Element) -> Where:
    """What names this NIC in its domain. Numbers of an address count, not how they are written."""
    mac, address = interface.child("mac"), interface.child("address")
    place = address.attributes if address else {}
    text = " ".join(f"{key}={_number(value)}" for key, value in sorted(place.items()) if key != "multifunction")
    return (mac.attributes.get("address", "").lower() if mac else "", text)


def _number(text: str) -> str:
    try:
        return str(int(text, 0))
    except ValueError:
        return text


def settings(interface: Element) -> Mapping[str, Value]:
    """Everything that is written for this NIC and that a policy can ask for, by API path."""
    found = ((path, domain_xml.value_of(interface, path)) for path in domain_xml.SETTINGS)
    return {path: value for path, value in found if value is not None}


def run(document: bytes) -> str:
    """Libvirt's number of this run of a domain, "" when it does not run. Raises `UsageError` as `read`."""
    return domain_xml.parse(document)[0].id


# --- writing -----------------------------------------------------------------------------------------------


def find(document: bytes, mac: str, address: str) -> Found:
    """A NIC by its MAC address and place. Raises `Gone` when it is not in this definition, `UsageError` as `read`."""
    _, interfaces = domain_xml.parse(document)
    same_mac = [each for each in interfaces if where(each)[0] == mac]
    found = [each for each in same_mac if where(each)[1] == address]
    if len(found) != 1:
        raise Gone(f"the domain has no NIC {mac} at {address or 'no address'} any more")
    return Found(document, found[0], len(same_mac) == 1)


def _edits(document: bytes, interface: Element, values: tuple[tuple[str, Value | None], ...]) -> Iterator[Edit]:
    wishes = (Wish(path, value, "") for path, value in values if value is not None)
    yield from domain_xml.write(document, interface, wishes)
    for path, value in values:
        if value is None:
            yield from _removal(document, interface, path)


def _removal(document: bytes, interface: Element, path: str) -> Iterator[Edit]:
    """Elements that are left empty stay: libvirt reads them as if they were not there."""
    place = domain_xml.SETTINGS[path]
    element: Element | None = interface
    for name in place.path:
        element = element.child(name) if element else None
    if element is None:
        return
    if path in {domain_xml.MODEL, domain_xml.SNDBUF}:
        yield markup.remove(document, element)
    else:
        yield from markup.remove_attribute(document, element, place.attribute)
