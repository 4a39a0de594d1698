"""The policy that a user writes: the models judge it and turn it into the values of `core.model`; pydantic ends there.

Docstrings are what `kubectl explain` shows. A field that is not written is not asked: defaults stand in `to_core()` and
in the texts, not in the stored object. Rules that a type cannot say are in `kube.rules`, once for pydantic and for CEL.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from virtnet.core import model
from virtnet.kube import fields, profiles, rules
from virtnet.kube.fields import Base, Count, Id, LabelSelector, Maybe, Mtu, Name, NamePatterns, Names, Nodes, Offloads
from virtnet.kube.guests import Guest
from virtnet.kube.places import Loc
from virtnet.kube.rules import Rule, Whole

GROUP = "virtnet.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "VirtioNetworkPolicy"

PODS_LATER = "taps in pod network namespaces come with the Kubernetes agent"

PROFILES = Literal[
    "Throughput", "UdpHostToGuest", "UplinkGroGsoWorkaround", "TunnelChecksumWorkaround", "LegacyTsoGsoDisabled"
]

Mode = Annotated[model.Mode, Field(strict=False)]
OnContention = Annotated[model.OnContention, Field(strict=False)]
Deletion = Annotated[model.Deletion, Field(strict=False)]
Disruption = Annotated[model.Disruption, Field(strict=False)]
VhostMode = Annotated[model.VhostMode, Field(strict=False)]
ModuleWish = Annotated[model.ModuleWish, Field(strict=False)]


# --- bridge and uplink -------------------------------------------------------------------------------------


class Bridge(Base):
    """The bridge of this path: its options, offloads and the links enslaved to it."""

    RULES = (
        Rule(
            "a bridge cannot be its own port: take it out of ports",
            "!has(self.ports) || !(self.name in self.ports)",
            lambda it: (("ports", at) for at, port in enumerate(it.ports or ()) if port == it.name),
        ),
        rules.rule(
            "with stp the kernel takes 2 to 30 seconds: write forwardDelaySeconds: 2 or more, or stp: false",
            "!(has(self.stp) && self.stp && has(self.forwardDelaySeconds) && self.forwardDelaySeconds < 2)",
            lambda it: not (it.stp and it.forward_delay_seconds is not None and it.forward_delay_seconds < 2),
            "forwardDelaySeconds",
        ),
    )

    name: Name
    """The bridge's interface name."""
    create: Maybe[bool] = None
    """Make the bridge when it is absent; Restore removes it if we made it and no foreign port is on it (false)."""
    ports: Maybe[Names] = None
    """Links to enslave beside those that are there. A link that carries addresses is refused, never cut off."""
    stp: Maybe[bool] = None
    """Spanning tree protocol."""
    forward_delay_seconds: Maybe[Annotated[int, Whole(0, 30)]] = None
    """Forward delay, 0 to 30 seconds; at least 2 with stp."""
    ageing_time_seconds: Maybe[Annotated[int, Whole(0, 1_000_000)]] = None
    """How long a learned address is kept without traffic."""
    multicast_snooping: Maybe[bool] = None
    """Whether the bridge listens to IGMP and MLD and forwards multicast only where it is wanted."""
    vlan_filtering: Maybe[bool] = None
    """Whether the bridge looks at VLAN tags."""
    group_forward_mask: Maybe[
        Annotated[
            int,
            rules.Obeys(
                rules.rule(
                    "the lowest three bits must be 0 (the kernel never forwards STP, pause and LACP frames): "
                    "write a multiple of 8",
                    "self % 8 == 0",
                    lambda mask: mask % 8 == 0,
                )
            ),
            Whole(0, 65528),
        ]
    ] = None
    """Bit mask of the link-local groups 01:80:c2:00:00:0X to forward; the lowest three bits are 0."""
    mtu: Maybe[Mtu] = None
    """Largest packet in bytes."""
    offloads: Maybe[Offloads] = None
    """Feature -> true or false, by ethtool's short names (tso, gro...) or kernel names (tx-udp-segmentation...)."""

    def to_core(self) -> model.BridgeSpec:
        return model.BridgeSpec(
            name=self.name,
            create=bool(self.create),
            ports=tuple(self.ports or ()),
            stp=self.stp,
            forward_delay_seconds=self.forward_delay_seconds,
            ageing_time_seconds=self.ageing_time_seconds,
            multicast_snooping=self.multicast_snooping,
            vlan_filtering=self.vlan_filtering,
            group_forward_mask=self.group_forward_mask,
            mtu=self.mtu,
            offloads=tuple((self.offloads or {}).items()),
        )


class UplinkMatch(Base):
    """Which uplinks; all that is written must hold. Without it: hardware, bond, team and vlan ports of bridge.name."""

    RULES = (fields.one_of("names drivers bridge"),)

    names: Maybe[NamePatterns] = None
    """Interface names or patterns with * ? [ ]."""
    drivers: Maybe[Annotated[list[Annotated[str, rules.DRIVER]], rules.distinct(32, shortest=1)]] = None
    """Kernel drivers, as `ethtool -i` prints them."""
    bridge: Maybe[Name] = None
    """Ports of this bridge, and what is below them."""

    def to_core(self) -> model.Match:
        return model.Match(tuple(self.names or ()), tuple(self.drivers or ()), self.bridge)


class Rings(Base):
    """Ring sizes in descriptors."""

    rx: Maybe[Count] = None
    """Receive ring."""
    tx: Maybe[Count] = None
    """Transmit ring."""


class Channels(Base):
    """Queue counts; most drivers have only `combined`."""

    combined: Maybe[Count] = None
    """Queues that both send and receive."""
    rx: Maybe[Count] = None
    """Receive-only queues."""
    tx: Maybe[Count] = None
    """Transmit-only queues."""


class Uplink(Base):
    """The links that carry the bridge's traffic out of the node."""

    match: Maybe[UplinkMatch] = None
    """Which links are meant; by default the uplinks of bridge.name."""
    offloads: Maybe[Offloads] = None
    """Feature -> true or false, by ethtool's short names (tso, gro...) or kernel names (tx-udp-segmentation...)."""
    rings: Maybe[Rings] = None
    """Ring sizes."""
    channels: Maybe[Channels] = None
    """Queues."""
    disruption: Maybe[Disruption] = None
    """Whether changes that can reset the link come at once (Immediate, the default) or wait until no guest uses it."""

    def to_core(self) -> model.UplinkSpec:
        rings, channels = self.rings or Rings(), self.channels or Channels()
        return model.UplinkSpec(
            match=self.match.to_core() if self.match else None,
            offloads=tuple((self.offloads or {}).items()),
            rings_rx=rings.rx,
            rings_tx=rings.tx,
            channels_combined=channels.combined,
            channels_rx=channels.rx,
            channels_tx=channels.tx,
            disruption=self.disruption or model.Disruption.IMMEDIATE,
        )


# --- tap and vhost -----------------------------------------------------------------------------------------


class TapMatch(Base):
    """Which taps; all that is written must hold. Without it: the taps on bridge.name."""

    RULES = (fields.one_of("names bridge pods"),)

    names: Maybe[NamePatterns] = None
    """Interface names or patterns with * ? [ ]."""
    bridge: Maybe[Name] = None
    """Taps on this bridge."""
    pods: Maybe[bool] = None
    """Also taps in the network namespaces of pods (false)."""

    def to_core(self) -> model.Match:
        return model.Match(names=tuple(self.names or ()), bridge=self.bridge, pods=self.pods)


class TapToCreate(Base):
    """A persistent tap."""

    name: Name
    """The tap's interface name."""
    owner: Maybe[Id] = None
    """Numeric user id that may open it."""
    group: Maybe[Id] = None
    """Numeric group id that may open it."""
    multi_queue: Maybe[bool] = None
    """Whether it can have several queues; fixed at creation."""

    def to_core(self) -> model.TapToCreate:
        return model.TapToCreate(self.name, self.owner, self.group, self.multi_queue)


class Tap(Base):
    """The tap devices between the bridge and the guests."""

    match: Maybe[TapMatch] = None
    """Which taps are meant; by default those on bridge.name."""
    create: Maybe[Annotated[list[TapToCreate], rules.distinct_by("name", 256)]] = None
    """Taps to keep in being, enslaved to bridge.name."""
    vnet_hdr: Maybe[bool] = None
    """Whether packets carry a virtio-net header (offloads need it); repaired only while nobody holds the tap."""
    offloads: Maybe[Annotated[dict[str, bool], rules.TAP_OFFLOADS]] = None
    """Only gro and gso; the others belong to the guest's driver, see guest.nic.guest."""
    rx_frames: Maybe[Annotated[int, Whole(0, 64)]] = None
    """Packets that a tap batches before it passes them on, 0 to 64."""
    mtu: Maybe[Mtu] = None
    """Largest packet in bytes."""
    tx_queue_length: Maybe[Annotated[int, Whole(0, 2**32 - 1)]] = None
    """Length of the queue towards the guest, in packets."""

    def to_core(self) -> model.TapSpec:
        return model.TapSpec(
            match=self.match.to_core() if self.match else None,
            create=tuple(tap.to_core() for tap in self.create or ()),
            vnet_hdr=self.vnet_hdr,
            offloads=tuple((self.offloads or {}).items()),
            rx_frames=self.rx_frames,
            mtu=self.mtu,
            tx_queue_length=self.tx_queue_length,
        )


class ModuleParameters(Base):
    """Load-time parameters of vhost_net."""

    experimental_zcopytx: Maybe[Annotated[int, Whole(0, 1)]] = Field(default=None, alias="experimental_zcopytx")
    """Zero-copy transmit: 0 or 1."""


class VhostModule(Base):
    """The vhost_net kernel module."""

    state: Maybe[ModuleWish] = None
    """Loaded, Absent or Unmanaged (the default)."""
    parameters: Maybe[ModuleParameters] = None
    """A change needs the module to be loaded anew, and waits while it is in use."""
    persist: Maybe[bool] = None
    """Keep state and parameters over a reboot too, in modules-load.d and modprobe.d (true)."""


class Vhost(Base):
    """The in-kernel backend of the guests' NICs."""

    RULES = (
        rules.rule(
            "vhost.mode Required needs the module: write module.state: Loaded or leave it out, or another mode",
            "!(has(self.mode) && self.mode == 'Required' && has(self.module) && has(self.module.state)"
            " && self.module.state == 'Absent')",
            lambda it: (
                not (it.mode is model.VhostMode.REQUIRED and it.module and it.module.state is model.ModuleWish.ABSENT)
            ),
            "mode",
        ),
    )

    mode: Maybe[VhostMode] = None
    """The backend of the guests' NICs: Required (vhost) or Disabled (QEMU); Auto and unset leave the guest's choice."""
    module: Maybe[VhostModule] = None
    """The vhost_net module. mode Required implies Loaded."""
    poll_microseconds: Maybe[Annotated[int, Whole(0, 2**32 - 1)]] = None
    """How long vhost polls before it sleeps; only for QEMU without libvirt."""

    def to_core(self) -> model.VhostSpec:
        module = self.module or VhostModule()
        return model.VhostSpec(
            mode=self.mode,
            state=module.state or model.ModuleWish.UNMANAGED,
            parameters=tuple(module.parameters.written().items()) if module.parameters else (),
            persist=module.persist is not False,
            poll_microseconds=self.poll_microseconds,
        )


# --- rollout and safety ------------------------------------------------------------------------------------


class Rollout(Base):
    """How a new generation of the policy travels over the nodes."""

    canary: Maybe[Nodes] = None
    """Nodes that take it first (1)."""
    max_unavailable: Maybe[Nodes] = None
    """Nodes that may be changing at a time; a number, or a percentage that is rounded up (25%)."""
    pause_on_failure: Maybe[bool] = None
    """Stop when a node fails (true)."""
    paused: Maybe[bool] = None
    """Stopped by the user (false)."""
    deadline_seconds: Maybe[Annotated[int, Whole(1, 86_400)]] = None
    """How long a node may take to become Ready (120)."""

    def to_core(self) -> model.Rollout:
        usual = model.Rollout()
        return model.Rollout(
            canary=usual.canary if self.canary is None else self.canary,
            max_unavailable=usual.max_unavailable if self.max_unavailable is None else self.max_unavailable,
            pause_on_failure=self.pause_on_failure is not False,
            paused=bool(self.paused),
            deadline_seconds=self.deadline_seconds or usual.deadline_seconds,
        )


class Probes(Base):
    """What must still answer after a change that can cut the node off, if it answered before."""

    api_server: Maybe[bool] = None
    """The Kubernetes API server (true)."""
    gateway: Maybe[bool] = None
    """The default gateways (true)."""
    tcp: Maybe[Annotated[list[Annotated[str, rules.ENDPOINT]], rules.distinct(16)]] = None
    """Further TCP services, as host:port."""


class Safety(Base):
    """What happens around a change that can cut the node off."""

    probes: Maybe[Probes] = None
    """What is asked, all at the same time."""
    timeout_seconds: Maybe[Annotated[int, Whole(1, 600)]] = None
    """How long the answers may take (15)."""
    rollback: Maybe[bool] = None
    """Put the old state back when a probe fails (true)."""

    def to_core(self) -> model.Safety:
        probes = self.probes or Probes()
        return model.Safety(
            api_server=probes.api_server is not False,
            gateway=probes.gateway is not False,
            tcp=tuple(probes.tcp or ()),
            timeout_seconds=15 if self.timeout_seconds is None else self.timeout_seconds,
            rollback=self.rollback is not False,
        )


# --- the policy --------------------------------------------------------------------------------------------


def _tap_beside_its_bridge(spec: "Spec") -> Iterator[Loc]:
    if spec.tap and spec.bridge:
        names = (tap.name for tap in spec.tap.create or ())
        yield from (("tap", "create", at, "name") for at, name in enumerate(names) if name == spec.bridge.name)


class Spec(Base):
    """One virtio network path: bridge, uplinks, taps, vhost and guests. What is not written is not asked."""

    RULES = (
        rules.rule(
            "tap.create needs a bridge for its taps: write bridge.name",
            "!(has(self.tap) && has(self.tap.create) && self.tap.create.size() > 0) || has(self.bridge)",
            lambda it: not (it.tap and it.tap.create) or it.bridge is not None,
            "tap",
        ),
        Rule(
            "a tap cannot have the name of its bridge: write another one",
            "!(has(self.tap) && has(self.tap.create) && has(self.bridge))"
            " || self.tap.create.all(tap, tap.name != self.bridge.name)",
            _tap_beside_its_bridge,
        ),
    )

    node_selector: Maybe[LabelSelector] = None
    """Which nodes; empty or unset: all."""
    priority: Maybe[Annotated[int, Whole(-1000, 1000)]] = None
    """Where two policies want the same setting the higher priority wins (0), then the older policy, then the name."""
    mode: Maybe[Mode] = None
    """Enforce (the default), or Audit: report what would be done and change nothing."""
    on_contention: Maybe[OnContention] = None
    """When another program keeps changing a setting back: Yield for a while (the default), or Insist."""
    deletion_policy: Maybe[Deletion] = None
    """What becomes of settings that no policy wants any more: Restore what was there (the default), or Retain."""
    bridge: Maybe[Bridge] = None
    """The bridge."""
    uplink: Maybe[Uplink] = None
    """The links that carry the bridge's traffic out of the node."""
    tap: Maybe[Tap] = None
    """The tap devices between the bridge and the guests."""
    vhost: Maybe[Vhost] = None
    """The in-kernel backend of the guests' NICs."""
    guest: Maybe[Guest] = None
    """The virtual machines' NICs."""
    profile: Maybe[PROFILES] = None
    """A named set of values under the fields that are written."""
    rollout: Maybe[Rollout] = None
    """How a new generation travels over the nodes."""
    safety: Maybe[Safety] = None
    """What happens around a change that can cut the node off."""

    @property
    def digest(self) -> str:
        """sha256 (hex) of the canonical JSON of what was written."""
        text = json.dumps(self.written(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def whole(self) -> "tuple[Spec, tuple[str, ...]]":
        """The spec with its profile's values under it, and sentences about those that had to be left out."""
        if self.profile is None:
            return self, ()
        written, said = profiles.under(self.written(), self.profile, _fault)
        return Spec.model_validate(written), said

    def unenforced(self) -> Iterator[model.Unenforced]:
        """What is accepted and not enforced yet, one per value."""
        if self.tap and self.tap.match and self.tap.match.pods:
            yield model.Unenforced("tap.match.pods", True, PODS_LATER)

    def cluster_only(self) -> Iterator[str]:
        """What is written and has no effect without Kubernetes."""
        yield from (path for path, _ in fields.leaves(self.rollout.written() if self.rollout else {}, "rollout"))
        if self.guest and self.guest.match and self.guest.match.virtual_machines:
            yield VIRTUAL_MACHINES
        if self.safety and self.safety.probes and self.safety.probes.api_server:
            yield "safety.probes.apiServer"

    def warnings(self) -> Iterator[str]:
        """Sentences about values that are accepted and will not do what they seem to."""
        nic = self.guest.nic if self.guest else None
        if nic and nic.tx_mode and self.vhost and self.vhost.mode is model.VhostMode.REQUIRED:
            yield "guest.nic.txMode has no effect with vhost.mode Required: take it out"
        if nic and nic.sndbuf:
            yield "guest.nic.sndbuf turns the transmit batching of vhost off: write 0 unless a limit is needed"


def _fault(written: Mapping[str, Any]) -> str:
    """What the rules have against a spec: the first sentence, "" for nothing."""
    try:
        Spec.model_validate(written)
    except ValidationError as error:
        return str(error.errors(include_url=False)[0]["msg"])
    return ""


VIRTUAL_MACHINES = "guest.match.virtualMachines"


class Metadata(Base):
    """What we read of an object's metadata; the server writes more."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, rules.OBJECT_NAME]
    uid: str = ""
    generation: int = 0
    creation_timestamp: str | None = None
    annotations: dict[str, str] | None = None

    def own_annotations(self) -> tuple[tuple[str, str], ...]:
        """The annotations that speak to us."""
        return tuple((key, value) for key, value in (self.annotations or {}).items() if key.startswith(f"{GROUP}/"))


class VirtioNetworkPolicy(Base):
    """How the virtio network path of the virtual machines on some nodes must be."""

    api_version: Literal["virtnet.dev/v1alpha1"]
    kind: Literal["VirtioNetworkPolicy"]
    metadata: Metadata
    spec: Spec = Field(default_factory=Spec)
    """What the administrator asks for."""
    status: Any = None
    """What came of it; written by the controller and ignored here."""

    def to_core(self) -> model.Policy:
        meta, (spec, left_out) = self.metadata, self.spec.whole()
        return model.Policy(
            name=meta.name,
            uid=meta.uid,
            generation=meta.generation,
            digest=self.spec.digest,
            created=meta.creation_timestamp or "",
            node_selector=spec.node_selector.to_core() if spec.node_selector else model.NodeSelector(),
            priority=spec.priority or 0,
            mode=spec.mode or model.Mode.ENFORCE,
            on_contention=spec.on_contention or model.OnContention.YIELD,
            deletion=spec.deletion_policy or model.Deletion.RESTORE,
            bridge=spec.bridge.to_core() if spec.bridge else None,
            uplink=spec.uplink.to_core() if spec.uplink else None,
            tap=spec.tap.to_core() if spec.tap else None,
            vhost=spec.vhost.to_core() if spec.vhost else None,
            guest=spec.guest.to_core() if spec.guest else None,
            rollout=spec.rollout.to_core() if spec.rollout else model.Rollout(),
            safety=spec.safety.to_core() if spec.safety else model.Safety(),
            unenforced=tuple(spec.unenforced()),
            cluster_only=tuple(spec.cluster_only()),
            warnings=(*left_out, *spec.warnings()),
            annotations=meta.own_annotations(),
        )
