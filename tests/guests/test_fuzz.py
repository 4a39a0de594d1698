"""Random domains and policies: nothing changes but what is asked, the result is as libvirt wants it, twice is once.

lxml and libvirt's schema are the judges; both read XML by libxml2, as libvirt does, and not as the code under test.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from lxml import etree

from tests.guests import domains
from tests.guests.domains import Drawn
from tests.unit.policy_cases import document as policy_document
from virtnet import errors
from virtnet.core import domain_xml
from virtnet.core.model import Policy
from virtnet.kube import api

MANY = settings(max_examples=10 * settings().max_examples)
"""1,000 each in an ordinary run, 50,000 in `make fuzz`."""

XPATHS = {
    "vhost.mode": "driver/@name",
    "guest.nic.model": "model/@type",
    "guest.nic.queues": "driver/@queues",
    "guest.nic.rxQueueSize": "driver/@rx_queue_size",
    "guest.nic.txQueueSize": "driver/@tx_queue_size",
    "guest.nic.txMode": "driver/@txmode",
    "guest.nic.ioeventfd": "driver/@ioeventfd",
    "guest.nic.eventIdx": "driver/@event_idx",
    "guest.nic.packed": "driver/@packed",
    "guest.nic.iommu": "driver/@iommu",
    "guest.nic.ats": "driver/@ats",
    "guest.nic.rss": "driver/@rss",
    "guest.nic.rssHashReport": "driver/@rss_hash_report",
    "guest.nic.mergeableRxBuffers": "driver/host/@mrg_rxbuf",
    "guest.nic.host.gso": "driver/host/@gso",
    **{f"guest.nic.{side}.{name}": f"driver/{side}/@{name}" for side in ("host", "guest") for name in domains.OFFLOADS},
    "guest.nic.sndbuf": "tune/sndbuf/text()",
}
"""Written down once more from libvirt's page on domains, so that a wrong table in the code is found."""

SWITCHES = ("ioeventfd", "eventIdx", "packed", "iommu", "ats", "rss", "rssHashReport", "mergeableRxBuffers")
OFFLOADS = st.fixed_dictionaries({}, optional=dict.fromkeys(domains.OFFLOADS, st.booleans()))
NICS = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["virtio", "virtio-transitional"]),
        "queues": st.sampled_from([1, 2, 256, "vcpus"]),
        "rxQueueSize": st.sampled_from([256, 1024]),
        "txQueueSize": st.just(256),
        "txMode": st.sampled_from(["iothread", "timer"]),
        "sndbuf": st.sampled_from([0, 65536]),
        "host": OFFLOADS,
        "guest": OFFLOADS,
        **dict.fromkeys(SWITCHES, st.booleans()),
    },
)
MATCHES = st.sampled_from(
    [None, {"domains": ["db-*"]}, {"domains": ["web"]}, {"bridge": "br1"}, {"macs": ["52:54:00:0A:0B:20"]}]
)


@st.composite
def policies(draw: st.DrawFn) -> Policy | None:
    """A policy for the NICs on br0 or those that its match names; None where the models refuse it."""
    guest: dict[str, Any] = {"nic": draw(NICS)}
    match = draw(MATCHES)
    if match:
        guest["match"] = match
    spec: dict[str, Any] = {"bridge": {"name": "br0"}, "guest": guest}
    mode = draw(st.sampled_from([None, "Auto", "Required", "Disabled"]))
    if mode:
        spec["vhost"] = {"mode": mode}
    try:
        return api.VirtioNetworkPolicy.model_validate(policy_document(spec)).to_core()
    except ValueError:
        return None


def asked(policy: Policy) -> dict[str, str]:
    """Path -> what libvirt must have there in the end, in its own words."""
    assert policy.guest is not None
    found = {f"guest.nic.{path}": value for path, value in policy.guest.nic}
    texts = {path: {True: "on", False: "off", "vcpus": "3"}.get(value, str(value)) for path, value in found.items()}
    texts |= {path: str(value) for path, value in found.items() if type(value) is int}
    mode = policy.vhost.mode if policy.vhost else None
    return texts | (
        {"vhost.mode": {"Required": "vhost", "Disabled": "qemu"}[mode]} if mode in {"Required", "Disabled"} else {}
    )


def is_meant(policy: Policy, nic: Drawn) -> bool:
    """Whether the policy speaks of this NIC; by what was drawn, not by the code under test."""
    assert policy.guest is not None
    texts, match = asked(policy), policy.guest.match
    virtio = nic.model.startswith("virtio") or "guest.nic.model" in texts
    if not virtio or nic.type not in {"bridge", "network", "ethernet", "direct"}:
        return False
    if match is None or match.bridge:
        return nic.bridge == (match.bridge if match else "br0") and nic.type in {"bridge", "network"}
    return "web" not in match.domains and (not match.macs or nic.mac in match.macs)


def value(interface: Any, path: str) -> str | None:
    element, _, attribute = XPATHS[path].rpartition("/")
    found = interface.find(element)
    if found is None:
        return None
    text = found.get(attribute[1:]) if attribute.startswith("@") else found.xpath("string()").strip()
    return None if text is None else str(text)


def put_back(before: Any, after: Any, path: str) -> None:
    """Make one setting of `after` as it is in `before`."""
    names, _, attribute = XPATHS[path].rpartition("/")
    old, new = before.find(names), after.find(names)
    if attribute.startswith("@"):
        if old is not None and old.get(attribute[1:]) is not None:
            new.set(attribute[1:], old.get(attribute[1:]))
        else:
            new.attrib.pop(attribute[1:])
    elif old is not None:
        new.getparent().replace(new, etree.fromstring(etree.tostring(old, with_tail=False)))
    here = names
    while here:  # elements that were made for it
        if before.find(here) is None:
            made = after.find(here)
            if made is not None and not made.attrib and not len(made):
                made.getparent().remove(made)
        here = here.rpartition("/")[0]


def shape(element: Any) -> Any:
    """All that an element means but its blanks."""
    text = "".join(element.xpath("text()")).split()
    comments = [str(each) for each in element.xpath("comment()|processing-instruction()")]
    children = [shape(child) for child in element.iterchildren(tag=etree.Element)]
    return element.tag, dict(element.attrib), text, comments, children


OUTSIDE = re.compile(rb"<interface[^a-z].*?(?:</interface\s*>|(?=<interface|\Z))", re.DOTALL)


def interfaces(document: bytes) -> list[Any]:
    return list(etree.fromstring(document).findall("devices/interface"))


@MANY
@given(domains.domains(), policies())
def test_a_domain_is_changed_only_where_it_is_asked(
    faults: Callable[[bytes], str], drawn: tuple[bytes, list[Drawn]], policy: Policy | None
) -> None:
    document, nics = drawn
    assert faults(document) == ""
    if policy is None:
        return
    result = domain_xml.change(document, [policy])
    assert faults(result.document) == ""
    again = domain_xml.change(result.document, [policy])
    assert (again.document, again.changes) == (result.document, ())
    assert bool(result.changes) == (result.document != document)
    texts = asked(policy)
    before, after = interfaces(document), interfaces(result.document)
    for nic, old, new in zip(nics, before, after, strict=True):
        if not is_meant(policy, nic):
            assert etree.tostring(old) == etree.tostring(new)
            continue
        assert {path: value(new, path) for path in texts} == texts
        for path in texts:
            if value(old, path) != texts[path]:
                put_back(old, new, path)
        assert shape(old) == shape(new)
    for tree in (old_root := etree.fromstring(document), new_root := etree.fromstring(result.document)):
        for interface in tree.findall("devices/interface"):
            interface.clear(keep_tail=True)
    assert etree.tostring(old_root) == etree.tostring(new_root)


@MANY
@given(domains.domains(), st.integers(0, 3000), st.integers(0, 8), st.binary(max_size=6))
@example((b"<domain/>", []), 0, 0, b"\xff\xfe")
@example((b"<domain/>", []), 8, 0, b" a='1' a='1'")
def test_a_broken_domain_is_refused_or_read_and_never_a_crash(
    drawn: tuple[bytes, list[Drawn]], at: int, cut: int, put: bytes
) -> None:
    policy = api.VirtioNetworkPolicy.model_validate(
        policy_document({"vhost": {"mode": "Required"}, "guest": {"match": {"domains": ["*"]}, "nic": {"queues": 2}}})
    ).to_core()
    document = drawn[0][:at] + put + drawn[0][at + cut :]
    try:
        result = domain_xml.change(document, [policy])
    except errors.UsageError:
        return
    assert domain_xml.change(result.document, [policy]).document == result.document
