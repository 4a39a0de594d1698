"""The guests' part of a policy: which NICs, and what they must be like.

Docstrings are what `kubectl explain` shows.
"""

from typing import Annotated, Literal

from pydantic import Field

from virtnet.core import model
from virtnet.kube import fields, rules
from virtnet.kube.fields import Base, LabelSelector, Maybe, Name, Word
from virtnet.kube.rules import Whole

Update = Annotated[model.GuestUpdate, Field(strict=False)]
VIRTIO = Literal["virtio", "virtio-transitional", "virtio-non-transitional"]


class VirtualMachines(Base):
    """Which KubeVirt virtual machines."""

    namespaces: Maybe[Annotated[list[Annotated[str, rules.NAMESPACE]], rules.distinct(64, shortest=1)]] = None
    """Their namespaces; unset: all."""
    selector: Maybe[LabelSelector] = None
    """Their labels."""
    interfaces: Maybe[Annotated[list[Word], rules.distinct(32, shortest=1)]] = None
    """Names of the interfaces in their specification; unset: all."""


class GuestMatch(Base):
    """Which guest NICs; all that is written must hold. Without it: the NICs on bridge.name."""

    RULES = (fields.one_of("domains macs bridge virtual_machines"),)

    domains: Maybe[Annotated[list[Word], rules.distinct(64, shortest=1)]] = None
    """Names of libvirt domains, or patterns with * ? [ ]."""
    macs: Maybe[Annotated[list[Annotated[str, rules.MAC]], rules.distinct(256, shortest=1)]] = None
    """MAC addresses of NICs."""
    bridge: Maybe[Name] = None
    """NICs on this bridge."""
    virtual_machines: Maybe[VirtualMachines] = None
    """NICs of KubeVirt virtual machines."""

    def to_core(self) -> model.GuestMatch:
        return model.GuestMatch(
            domains=tuple(self.domains or ()),
            macs=tuple(mac.lower() for mac in self.macs or ()),
            bridge=self.bridge,
            virtual_machines=self.virtual_machines is not None,
        )


_TSO_NEEDS_CSUM = "tso needs csum: write csum: true, or take one of the two out"
_UFO_NEEDS_CSUM = "ufo needs csum: write csum: true, or take one of the two out"
_ECN_NEEDS_TSO = rules.rule(
    "ecn needs tso: write tso4: true or tso6: true, or take ecn out",
    "!(has(self.ecn) && self.ecn && has(self.tso4) && !self.tso4 && has(self.tso6) && !self.tso6)",
    lambda it: not (it.ecn and it.tso4 is False and it.tso6 is False),
    "ecn",
)
_GUEST_RULES = (
    fields.not_both("tso4", "csum", _TSO_NEEDS_CSUM),
    fields.not_both("tso6", "csum", _TSO_NEEDS_CSUM),
    fields.not_both("ufo", "csum", _UFO_NEEDS_CSUM),
    _ECN_NEEDS_TSO,
)


class GuestOffloads(Base):
    """What the guest may receive from its NIC without more work (VIRTIO_NET_F_GUEST_*)."""

    RULES = _GUEST_RULES

    csum: Maybe[bool] = None
    """Packets with partial checksums."""
    tso4: Maybe[bool] = None
    """Large TCP packets over IPv4; needs csum."""
    tso6: Maybe[bool] = None
    """Large TCP packets over IPv6; needs csum."""
    ecn: Maybe[bool] = None
    """Large TCP packets with ECN; needs tso4 or tso6."""
    ufo: Maybe[bool] = None
    """Large UDP packets; needs csum."""


class HostOffloads(GuestOffloads):
    """What the guest may hand to its NIC to finish (VIRTIO_NET_F_HOST_*)."""

    gso: Maybe[bool] = None
    """Packets of any segmented kind (the old VIRTIO_NET_F_GSO)."""


class Nic(Base):
    """What the NICs must be like; every field takes effect when a guest is started anew."""

    RULES = (
        rules.rule(
            "maxQueues is smaller than queues: write one number in both, or leave maxQueues out",
            "!(has(self.maxQueues) && has(self.queues) && type(self.queues) == int && self.queues > self.maxQueues)",
            lambda it: not (it.max_queues and isinstance(it.queues, int) and it.queues > it.max_queues),
            "maxQueues",
        ),
    )

    model: Maybe[VIRTIO] = None
    """The kind of virtio NIC."""
    queues: Maybe[Annotated[int | str, rules.QUEUES]] = None
    """Number of queue pairs, 1 to 256, or `vcpus` for one per virtual CPU."""
    max_queues: Maybe[Annotated[int, Whole(1, 256)]] = None
    """The most queue pairs that `vcpus` may give."""
    rx_queue_size: Maybe[
        Annotated[
            int,
            rules.Obeys(
                rules.rule("write 256, 512 or 1024", "self in [256, 512, 1024]", lambda size: size in {256, 512, 1024})
            ),
        ]
    ] = None
    """Descriptors in a receive queue: 256, 512 or 1024."""
    tx_queue_size: Maybe[
        Annotated[
            int,
            rules.Obeys(
                rules.rule(
                    "a tap takes only 256 (more works on vhost-user and vDPA alone): write 256, or leave it out",
                    "self == 256",
                    lambda size: size == 256,
                )
            ),
        ]
    ] = None
    """Descriptors in a transmit queue: 256 on a tap."""
    host: Maybe[HostOffloads] = None
    """What the guest may hand to its NIC to finish: transmit offloads."""
    guest: Maybe[GuestOffloads] = None
    """What the guest may receive without more work: receive offloads."""
    mergeable_rx_buffers: Maybe[bool] = None
    """Receive a large packet in several small buffers."""
    packed: Maybe[bool] = None
    """Packed virtqueue layout."""
    event_idx: Maybe[bool] = None
    """Event index: fewer interrupts and notifications."""
    ioeventfd: Maybe[bool] = None
    """Notifications by eventfd."""
    iommu: Maybe[bool] = None
    """DMA through the virtual IOMMU."""
    ats: Maybe[bool] = None
    """Address translation service."""
    rss: Maybe[bool] = None
    """Receive-side scaling."""
    rss_hash_report: Maybe[bool] = None
    """Report the RSS hash to the guest."""
    sndbuf: Maybe[Annotated[int, Whole(0, 2**31 - 1)]] = None
    """Send buffer of the tap in bytes; 0 is unlimited. A limit turns the transmit batching of vhost off."""
    tx_mode: Maybe[Literal["iothread", "timer"]] = None
    """How QEMU's own backend sends; vhost ignores it."""


class Guest(Base):
    """The virtual machines' NICs on this path."""

    match: Maybe[GuestMatch] = None
    """Which NICs are meant; by default those on bridge.name."""
    update: Maybe[Update] = None
    """How a change that libvirt refuses live reaches a running guest: NextStart (the default) leaves it to its next
    start, Replug takes the NIC out and puts it in again as asked, one guest at a time on a node; the guest sees its NIC
    go and come. It needs a guest that takes part in hot-plugging."""
    nic: Maybe[Nic] = None
    """What the NICs must be like."""

    def to_core(self) -> model.GuestSpec:
        nic = self.nic.written() if self.nic else {}
        return model.GuestSpec(
            match=self.match.to_core() if self.match else None,
            update=self.update or model.GuestUpdate.NEXT_START,
            nic=tuple((path.removeprefix("nic."), value) for path, value in fields.leaves(nic, "nic")),
        )
