"""The values everything else speaks of: policies, the observed host, settings, changes and the plan.

Three things are never mixed: a setting that was not asked is `None` in a policy; one that is not there is
missing from the observed host; one that could not be read is `Unreadable`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple

from virtnet.values import frozen

Value = bool | int | str
"""What a setting can be. Times are in the unit of the API field, interface references are names."""

EMPTY: Mapping[Any, Any] = MappingProxyType({})


def nothing() -> Mapping[Any, Any]:
    """The default of mappings: Python 3.11 takes the unhashable EMPTY itself for a mutable default."""
    return EMPTY


class Reason(StrEnum):
    """Why a setting is not simply as asked; the list of the API, documented in docs/reasons.md."""

    AS_ASKED = "AsAsked"
    APPLIED = "Applied"
    # failing: the node's policy is not Ready
    REFUSED = "Refused"
    NEEDS_FEATURE = "NeedsFeature"
    FAILED = "Failed"
    MISSING = "Missing"
    UNREADABLE = "Unreadable"
    ROLLED_BACK = "RolledBack"
    CARRIES_ADDRESSES = "CarriesAddresses"
    TOO_MUCH_AT_ONCE = "TooMuchAtOnce"
    CONTENDED = "Contended"
    AGENT_DOWN = "AgentDown"
    # settled: Ready stays, Complete does not
    FIXED = "Fixed"
    UNSUPPORTED = "Unsupported"
    OVERRIDDEN_BY = "OverriddenBy"
    IN_USE = "InUse"
    BUILT_IN = "BuiltIn"
    RESTART_REQUIRED = "RestartRequired"
    GUESTS_RUNNING = "GuestsRunning"
    FOREIGN = "Foreign"
    AUDIT_ONLY = "AuditOnly"
    HELD = "Held"
    NOT_ADMITTED = "NotAdmitted"


DONE = frozenset({Reason.AS_ASKED, Reason.APPLIED})
FAILING = (
    Reason.AGENT_DOWN,
    Reason.ROLLED_BACK,
    Reason.TOO_MUCH_AT_ONCE,
    Reason.FAILED,
    Reason.CARRIES_ADDRESSES,
    Reason.MISSING,
    Reason.REFUSED,
    Reason.NEEDS_FEATURE,
    Reason.UNREADABLE,
    Reason.CONTENDED,
)
"""The failing reasons, the most severe first."""


# --- what the policies ask ---------------------------------------------------------------------------------


class Mode(StrEnum):
    ENFORCE = "Enforce"
    AUDIT = "Audit"


class OnContention(StrEnum):
    YIELD = "Yield"
    INSIST = "Insist"


class Deletion(StrEnum):
    RESTORE = "Restore"
    RETAIN = "Retain"


class Disruption(StrEnum):
    IMMEDIATE = "Immediate"
    WHEN_NO_GUESTS = "WhenNoGuests"


class VhostMode(StrEnum):
    AUTO = "Auto"
    REQUIRED = "Required"
    DISABLED = "Disabled"


class GuestUpdate(StrEnum):
    NEXT_START = "NextStart"
    REPLUG = "Replug"


class ModuleWish(StrEnum):
    LOADED = "Loaded"
    ABSENT = "Absent"
    UNMANAGED = "Unmanaged"


@frozen
class Requirement:
    """One matchExpressions entry of a LabelSelector; `operator` is In, NotIn, Exists or DoesNotExist."""

    key: str
    operator: str
    values: tuple[str, ...] = ()


@frozen
class NodeSelector:
    labels: tuple[tuple[str, str], ...] = ()
    expressions: tuple[Requirement, ...] = ()


@frozen
class Match:
    """Which links; every field that is given must hold. An empty tuple and None mean "not given"."""

    names: tuple[str, ...] = ()
    drivers: tuple[str, ...] = ()
    bridge: str | None = None
    pods: bool | None = None


@frozen
class BridgeSpec:
    name: str
    create: bool = False
    ports: tuple[str, ...] = ()
    stp: bool | None = None
    forward_delay_seconds: int | None = None
    ageing_time_seconds: int | None = None
    multicast_snooping: bool | None = None
    vlan_filtering: bool | None = None
    group_forward_mask: int | None = None
    mtu: int | None = None
    offloads: tuple[tuple[str, bool], ...] = ()


@frozen
class UplinkSpec:
    match: Match | None = None
    offloads: tuple[tuple[str, bool], ...] = ()
    rings_rx: int | None = None
    rings_tx: int | None = None
    channels_combined: int | None = None
    channels_rx: int | None = None
    channels_tx: int | None = None
    disruption: Disruption = Disruption.IMMEDIATE


@frozen
class TapToCreate:
    name: str
    owner: int | None = None
    group: int | None = None
    multi_queue: bool | None = None


@frozen
class TapSpec:
    match: Match | None = None
    create: tuple[TapToCreate, ...] = ()
    vnet_hdr: bool | None = None
    offloads: tuple[tuple[str, bool], ...] = ()
    rx_frames: int | None = None
    mtu: int | None = None
    tx_queue_length: int | None = None


@frozen
class VhostSpec:
    mode: VhostMode | None = None
    state: ModuleWish = ModuleWish.UNMANAGED
    parameters: tuple[tuple[str, int], ...] = ()
    persist: bool = True
    poll_microseconds: int | None = None


@frozen
class GuestMatch:
    """Which guest NICs; every field that is given must hold. MAC addresses are in lower case.

    `virtual_machines`: KubeVirt's are meant, so no NIC of any other guest is.
    """

    domains: tuple[str, ...] = ()
    macs: tuple[str, ...] = ()
    bridge: str | None = None
    virtual_machines: bool = False


@frozen
class GuestSpec:
    """`nic` is what was written below guest.nic, by its path from there: ("host.tso4", False), ("queues", "vcpus")."""

    match: GuestMatch | None = None
    update: GuestUpdate = GuestUpdate.NEXT_START
    nic: tuple[tuple[str, Value], ...] = ()


@frozen
class Safety:
    api_server: bool = True
    gateway: bool = True
    tcp: tuple[str, ...] = ()
    timeout_seconds: int = 15
    rollback: bool = True


@frozen
class Rollout:
    """How a new generation travels over the nodes.

    `canary` and `max_unavailable` are numbers of nodes, or percentages as they were written ("25%").
    """

    canary: int | str = 1
    max_unavailable: int | str = "25%"
    pause_on_failure: bool = True
    paused: bool = False
    deadline_seconds: int = 120


@frozen
class Unenforced:
    """A field that the models accept and nothing enforces yet: it is reported, never silently ignored."""

    path: str
    wanted: Value
    why: str


@frozen
class Policy:
    """One VirtioNetworkPolicy.

    `digest` is the sha256 (hex) of the canonical JSON of the spec as it was written; with `generation` it says whether
    the policy has changed. `created` is metadata.creationTimestamp (RFC 3339) or empty. `cluster_only` are the fields,
    as typed, that have no effect without Kubernetes; `warnings` are sentences about accepted but questionable values.
    """

    name: str
    uid: str = ""
    generation: int = 0
    digest: str = ""
    created: str = ""
    node_selector: NodeSelector = NodeSelector()
    priority: int = 0
    mode: Mode = Mode.ENFORCE
    on_contention: OnContention = OnContention.YIELD
    deletion: Deletion = Deletion.RESTORE
    bridge: BridgeSpec | None = None
    uplink: UplinkSpec | None = None
    tap: TapSpec | None = None
    vhost: VhostSpec | None = None
    guest: GuestSpec | None = None
    rollout: Rollout = Rollout()
    safety: Safety = Safety()
    unenforced: tuple[Unenforced, ...] = ()
    cluster_only: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    annotations: tuple[tuple[str, str], ...] = ()

    @property
    def version(self) -> str:
        """What a rolled-back or braked decision is tied to: it changes when the policy's content does."""
        return f"{self.generation}/{self.digest}"


@frozen
class Node:
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


# --- what is there -----------------------------------------------------------------------------------------


@frozen
class Unreadable:
    """The machine did not let us look; never taken for "off" or "absent"."""

    reason: str


@frozen
class Unavailable:
    """This machine cannot let us look, and will not by itself: a part that we need is not installed."""

    reason: str


@frozen
class Withheld:
    """It is here, and we are not allowed to look: the text names the capability, device or mount that is missing."""

    reason: str


@frozen
class Features:
    """A link's offload features as bit masks over `HostState.feature_names`.

    From the kernel's ETHTOOL_MSG_FEATURES_GET reply: `hw` can be changed by a user, `wanted` is what was asked,
    `active` is what is in effect, `nochange` can never be changed.
    """

    hw: int
    wanted: int
    active: int
    nochange: int = 0

    @property
    def changeable(self) -> int:
        return self.hw & ~self.nochange


@frozen
class Rings:
    """Ring sizes in descriptors; None where this link has no such ring."""

    rx: int | None
    tx: int | None
    rx_max: int | None
    tx_max: int | None


@frozen
class Channels:
    """Queue counts; None where this link has no such kind."""

    combined: int | None
    rx: int | None
    tx: int | None
    combined_max: int | None
    rx_max: int | None
    tx_max: int | None


@frozen
class Driver:
    """From ETHTOOL_GDRVINFO: what `ethtool -i` prints."""

    name: str
    version: str = ""
    bus: str = ""
    firmware: str = ""


@frozen
class Tun:
    """A tun/tap link's own attributes (IFLA_TUN_*). `queues`: how many are open, None where the kernel does not say."""

    tap: bool
    owner: int | None
    group: int | None
    pi: bool
    vnet_hdr: bool
    persist: bool
    multi_queue: bool
    queues: int | None = None


@frozen
class BridgeOptions:
    """A bridge's options; times in hundredths of a second (the kernel's USER_HZ)."""

    stp: bool
    forward_delay: int
    ageing_time: int
    multicast_snooping: bool
    vlan_filtering: bool
    group_forward_mask: int


@frozen
class Link:
    """One network link.

    `kind` is the kernel's IFLA_INFO_KIND ("" for hardware), `master` and `lower` are ifindexes (0: none). `physical`:
    a device on a bus stands behind it. `bus` is that device ("0000:00:03.0"). `lower` is a vlan's or macvtap's real
    device in the same namespace. `carrier` of a tap is on while a process holds it.
    """

    ifindex: int
    name: str
    kind: str = ""
    mac: str = ""
    mtu: int = 1500
    tx_queue_length: int = 1000
    master: int = 0
    lower: int = 0
    up: bool = False
    carrier: bool = False
    physical: bool = False
    loopback: bool = False
    bus: str = ""
    tun: Tun | None = None
    bridge: BridgeOptions | None = None

    @property
    def is_tap(self) -> bool:
        return self.tun is not None and self.tun.tap

    @property
    def held(self) -> bool:
        """Whether a process has this tap open, as far as netlink tells."""
        return self.tun is not None and (bool(self.tun.queues) or self.carrier)


@frozen
class Process:
    """A process that holds a tap or a vhost device; `guest` is its virtual machine when the command line tells."""

    pid: int
    command: str
    guest: str = ""

    def __str__(self) -> str:
        return f"{self.command}[{self.pid}]" + (f" (guest {self.guest})" if self.guest else "")


@frozen
class Told:
    """One virtio NIC as its QEMU tells by QMP (x-query-virtio-status, qom-get). `peer` is the id of its -netdev.

    `started` is `vhost-started`, the only proof that vhost works. `offered` and `accepted` are feature names without
    their prefix (VIRTIO_NET_F_CSUM is CSUM, VIRTIO_RING_F_EVENT_IDX is EVENT_IDX). `rings` are the negotiated sizes of
    the virtqueues in their order. `msix`: whether the guest's driver uses MSI-X, from the device's PCI configuration.
    """

    mac: str
    peer: str = ""
    started: bool = False
    driver_ok: bool = False
    offered: frozenset[str] = frozenset()
    accepted: frozenset[str] = frozenset()
    rings: tuple[int, ...] = ()
    msix: bool | Unreadable | None = None


@frozen
class Running:
    """A process with open taps, as it looks from outside; a virtual machine when its arguments name NICs.

    `taps` maps its descriptors to the names of the taps of the looked-at namespace, `vhost` counts its descriptors of
    /dev/vhost-net, `workers` are the names of its vhost threads, inside it or in the kernel ("vhost-4711"). `files` are
    the texts of its -readconfig files, by the path that the arguments name. `told` is None when QMP was not asked.
    """

    process: Process
    argv: tuple[str, ...] = ()
    taps: Mapping[int, str] = field(default_factory=nothing)
    vhost: int = 0
    workers: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=nothing)
    told: tuple[Told, ...] | Unreadable | None = None


@frozen
class Fingerprint:
    """The feature bits that live migration depends on: TUNGETFEATURES of /dev/net/tun, VHOST_GET_FEATURES of
    /dev/vhost-net. None where that device is not there or may not be opened."""

    tun: int | None = None
    vhost: int | None = None


class ModuleStatus(StrEnum):
    LOADED = "Loaded"
    ABSENT = "Absent"  # this kernel has it, it is not loaded
    BUILT_IN = "BuiltIn"
    MISSING = "Missing"  # this kernel does not have it


@frozen
class ModuleState:
    """A kernel module now, and what our own files say of the next boot.

    `files` maps the absolute path of each file that could be ours to its content, for those that exist.
    """

    name: str
    status: ModuleStatus
    refcount: int | None = None
    parameters: Mapping[str, str] = field(default_factory=nothing)
    users: tuple[Process, ...] = ()
    files: Mapping[str, str] = field(default_factory=nothing)


@frozen
class GuestNic:
    """One NIC in a libvirt domain, as its definition and the running guest have it.

    `mac` is in lower case, `address` is its place on the guest's bus ("" when none is written): together they find it.
    `bridge` is the bridge that libvirt names, "" when it is on none, None when only the host knows: then `tap` is
    asked. `unknown`: why it is not known. `configured` are the settings that the definition writes, by their API path;
    None: there is no definition. `running` are those that the running guest was started with; None: it does not run.
    `unsuited`: why it can never be a virtio NIC on a tap; `model_unsuited`: why it is none while its model stays.
    """

    mac: str
    address: str = ""
    bridge: str | None = ""
    unknown: str = ""
    tap: str = ""
    configured: Mapping[str, Value] | None = None
    running: Mapping[str, Value] | None = None
    unsuited: str = ""
    model_unsuited: str = ""


@frozen
class Guest:
    """A libvirt domain. `vcpus`: how many it starts with, None when that cannot be told. `emulated`: without KVM."""

    uuid: str
    name: str
    nics: tuple[GuestNic, ...] = ()
    vcpus: int | None = None
    emulated: bool = False


class ReplugStage(StrEnum):
    """Where a re-plug is. On its way are `LEAVING` and `RETURNING`; the others have the guest's NIC in."""

    LEAVING = "Leaving"  # the guest was asked to let go of the NIC; it goes in as wanted when it is out
    INTERRUPTED = "Interrupted"  # the same, and the process that asked has ended
    LATE = "Late"  # the guest does not let go, and is not asked again; when it does, the NIC goes in as wanted
    RECALLED = "Recalled"  # nobody wants it any more; when the guest lets go all the same, it goes in as it was
    RETURNING = "Returning"  # it is out and could not be put in as wanted: it goes in as it was
    PUT_BACK = "PutBack"  # it is in as it was, and this is remembered


@frozen
class Replug:
    """A NIC that is taken out of a running guest and put in otherwise, on disk before the guest is asked.

    `run` names this run of the guest: a later one has its NICs from the definition. `former` and `wanted` are its whole
    <interface> as it ran and as it is to run, `values` what differs, by API path. `message`: why it is where it is.
    `trouble`: why a NIC that is out cannot be put back at the moment.
    """

    guest: str
    uuid: str
    run: str
    mac: str
    address: str
    alias: str
    former: str
    wanted: str
    values: tuple[tuple[str, Value], ...]
    policy: str
    version: str
    stage: ReplugStage = ReplugStage.LEAVING
    message: str = ""
    trouble: str = ""


@frozen
class Interest:
    """What a look must read beyond links and their features; everything else is left out of it."""

    drivers: bool = False
    rings: bool = False
    channels: bool = False
    rx_frames: bool = False
    addresses: bool = False
    module: bool = False
    users: bool = False  # processes that hold taps and vhost devices: a walk over /proc
    fingerprint: bool = False
    running: bool = False  # running virtual machines, with what proves how they run: a walk over /proc
    untold_drivers: bool = False  # of links whose kind is not their driver's name; `drivers` are those of all links
    guests: bool = False  # libvirt's domains; they are told also while a NIC of one is on its way


@frozen
class HostState:
    """One look at the machine. Maps are by ifindex; an entry that is missing means that the link has no such thing.

    `carries` says why a link must not be enslaved ("address 192.0.2.1/24", "route 10.0.0.0/8 via 192.0.2.254").
    `drops` counts, for the taps of running guests, the packets that a guest did not fetch in time.
    `guests` are libvirt's by UUID; None: nobody asked, there is no libvirt, or it has not told yet.
    `replugs` are by the target of the NIC's settings.
    """

    links: Mapping[int, Link]
    features: Mapping[int, Features | Unreadable]
    feature_names: tuple[str, ...]
    drivers: Mapping[int, Driver] = field(default_factory=nothing)
    rings: Mapping[int, Rings | Unreadable] = field(default_factory=nothing)
    channels: Mapping[int, Channels | Unreadable] = field(default_factory=nothing)
    rx_frames: Mapping[int, int | Unreadable] = field(default_factory=nothing)
    carries: Mapping[int, str] = field(default_factory=nothing)
    holders: Mapping[int, tuple[Process, ...]] = field(default_factory=nothing)
    module: ModuleState | None = None
    running: tuple[Running, ...] = ()
    drops: Mapping[int, int] = field(default_factory=nothing)
    fingerprint: Fingerprint | None = None
    guests: Mapping[str, Guest] | Unreadable | Unavailable | Withheld | None = None
    replugs: Mapping[str, Replug] = field(default_factory=nothing)

    def by_name(self, name: str) -> Link | None:
        return next((link for link in self.links.values() if link.name == name), None)


# --- settings and changes ----------------------------------------------------------------------------------


class Setting(NamedTuple):
    """The smallest thing that can be wanted.

    `target` is an ifindex, a link name (only for "exists"), a module name, or `UUID/MAC` of a guest's NIC, whose keys
    are API paths (`vhost.mode`, `guest.nic.host.tso4`). Of the others `key` is one of: `feature:KERNEL-NAME`,
    `mtu`, `txQueueLength`, `rxFrames`, `rings.{rx,tx}`, `channels.{combined,rx,tx}`, `master`, `vnetHdr`, `owner`,
    `group`, `bridge.{stp,forwardDelaySeconds,ageingTimeSeconds,multicastSnooping,vlanFiltering,groupForwardMask}`,
    `exists`, and for a module `state`, `parameters.NAME`, `persist`.
    """

    target: int | str
    key: str

    @property
    def is_guests(self) -> bool:
        """Whether this is a setting of a guest's NIC: no link and no module has a slash in its name."""
        return isinstance(self.target, str) and "/" in self.target


@frozen
class Ref:
    """A link as a change names it. `ifindex` 0: made earlier in the same plan, found by name once it is there."""

    name: str
    ifindex: int


@frozen
class SetFeatures:
    """Ask for the features in `mask` (bits of HostState.feature_names) to be as in `value`, in one message."""

    link: Ref
    mask: int
    value: int


@frozen
class SetRings:
    link: Ref
    rx: int | None = None
    tx: int | None = None


@frozen
class SetChannels:
    link: Ref
    combined: int | None = None
    rx: int | None = None
    tx: int | None = None


@frozen
class SetRxFrames:
    link: Ref
    frames: int


@frozen
class SetMtu:
    link: Ref
    mtu: int


@frozen
class SetTxQueueLength:
    link: Ref
    length: int


@frozen
class SetBridgeOptions:
    """Options by their API name (without "bridge."), seconds for the times."""

    link: Ref
    options: tuple[tuple[str, Value], ...]


@frozen
class SetMaster:
    """Enslave to a bridge, or release with `master=None`."""

    link: Ref
    master: Ref | None


@frozen
class CreateBridge:
    """Make a bridge and set it up. Making one that is there is success when it is a bridge."""

    name: str


@frozen
class CreateTap:
    """Make a persistent tap without packet information, and set it up. It never touches a tap that is there."""

    name: str
    owner: int | None = None
    group: int | None = None
    multi_queue: bool = False
    vnet_hdr: bool = True


@frozen
class DeleteLink:
    """Remove a bridge or tap that we made. Removing what is gone is success."""

    link: Ref


@frozen
class SetVnetHdr:
    """Re-open a tap that nobody holds with or without IFF_VNET_HDR, keeping its other flags."""

    link: Ref
    vnet_hdr: bool


@frozen
class SetTapOwner:
    """Change the owner and group of a tap that nobody holds; None leaves that one, -1 clears it."""

    link: Ref
    owner: int | None = None
    group: int | None = None


@frozen
class LoadModule:
    name: str
    parameters: tuple[tuple[str, int], ...] = ()


@frozen
class UnloadModule:
    name: str


@frozen
class WriteModuleFile:
    """Write one of our marked files in modules-load.d or modprobe.d, whole."""

    path: str
    content: str


@frozen
class RemoveModuleFile:
    """Remove one of our marked files. A file without our mark is never removed."""

    path: str


@frozen
class SetGuestNic:
    """Write these settings into the persistent definition of a NIC, by API path; None takes one out of it.

    `seen` is what they were when this was decided: when they are something else by then, nothing is written.
    """

    guest: str
    uuid: str
    mac: str
    address: str
    values: tuple[tuple[str, Value | None], ...]
    seen: tuple[tuple[str, Value | None], ...]


@frozen
class ReplugGuestNic:
    """Ask a running guest to let go of a NIC, which is then put in again with these settings, as all else of it was.

    `target` is that of its settings. `seen` is what the guest ran with when this was decided: when that is something
    else by then, it is not asked.
    """

    target: str
    guest: str
    uuid: str
    mac: str
    address: str
    values: tuple[tuple[str, Value], ...]
    seen: tuple[tuple[str, Value | None], ...]
    policy: str
    version: str


@frozen
class LeaveReplug:
    """Nobody wants a re-plug any more: one that is over is forgotten, and what still comes out goes in as it was."""

    target: str


LinkChange = (
    SetFeatures
    | SetRings
    | SetChannels
    | SetRxFrames
    | SetMtu
    | SetTxQueueLength
    | SetBridgeOptions
    | SetMaster
    | DeleteLink
    | SetVnetHdr
    | SetTapOwner
)
GuestChange = SetGuestNic | ReplugGuestNic | LeaveReplug
Change = (
    LinkChange | CreateBridge | CreateTap | LoadModule | UnloadModule | WriteModuleFile | RemoveModuleFile | GuestChange
)


# --- the plan ----------------------------------------------------------------------------------------------


@frozen
class Row:
    """What a user is told of one asked name on one subject; the shape of `plan -o json` and of the node state.

    `subject` is `link/NAME`, `module/vhost_net`, `guest/DOMAIN/MAC` or `policy/NAME`; `setting` is the API path as the
    user typed it. `reason` is empty for a pending change. None in `wanted` or `actual`: nothing asked, nothing there.
    """

    subject: str
    setting: str
    wanted: Value | None
    actual: Value | None
    reason: Reason | None
    message: str
    policy: str


@frozen
class Step:
    """One change of a plan, with what it is for.

    `settings` maps what it sets to the value it sets, `rows` is what users are told. `risky`: it can cut the node off
    and runs in the transaction of `policy`. `restores`: it puts back what was there before us. `wait_carrier`: the next
    step of the transaction waits until this link has its carrier again (the slaves of one bond).
    """

    change: Change
    settings: tuple[tuple[Setting, Value | None], ...]
    rows: tuple[Row, ...]
    policy: str
    risky: bool = False
    restores: bool = False
    wait_carrier: bool = False


# --- the ledger, as the plan sees it -----------------------------------------------------------------------


@frozen
class Identity:
    """Which machine state a link belongs to: the boot, and the network namespace (its cookie or inode as text)."""

    boot_id: str
    netns: str


@frozen
class Entry:
    """One setting that we manage: what was there before us, what we want it to be, and for whom.

    `original` None: there was nothing (a parameter not set, a file that did not exist, no master). `earlier` is the
    value of ours that was there when `wanted` was last edited: it still is while that cannot be carried out.
    """

    setting: Setting
    original: Value | None
    wanted: Value | None
    policy: str
    deletion: Deletion = Deletion.RESTORE
    earlier: Value | None = None

    def is_ours(self, value: Value | None) -> bool:
        """Whether we set this value, and nobody else since."""
        return value == self.wanted or (value is not None and value == self.earlier)


@frozen
class LinkRecord:
    """The entries of one link, by `Setting.key`. `name`, `kind` and `mac` only tell a reused ifindex."""

    ifindex: int
    name: str
    kind: str
    mac: str
    entries: Mapping[str, Entry]


@frozen
class Made:
    """A bridge or tap that we made; `ifindex` tells it from a later one of the same name."""

    name: str
    ifindex: int
    kind: str
    policy: str
    deletion: Deletion = Deletion.RESTORE

    def is_it(self, link: Link) -> bool:
        """Whether this is the link that we made; as long as its ifindex is not known, by its name and kind."""
        if self.ifindex:
            return self.ifindex == link.ifindex
        return self.name == link.name and self.kind == ("tap" if link.is_tap else link.kind)


@frozen
class Recorded:
    """All that the ledger holds for this boot and namespace. `module` is by `Setting.key`, `made` by link name.

    `guests` does not end with the boot: definitions outlive it.
    """

    links: Mapping[int, LinkRecord] = field(default_factory=nothing)
    module: Mapping[str, Entry] = field(default_factory=nothing)
    made: Mapping[str, Made] = field(default_factory=nothing)
    guests: Mapping[Setting, Entry] = field(default_factory=nothing)
