"""What the operator reports, as pydantic models: the policy's status and the node state; nothing here comes from users.

Docstrings are what `kubectl explain` shows. Programs fill these in, without nulls, and the API server checks them.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints

from virtnet.core import model
from virtnet.kube import rules
from virtnet.kube.fields import Base
from virtnet.kube.rules import Whole

Short = Annotated[str, StringConstraints(max_length=253)]
Message = Annotated[str, StringConstraints(max_length=1024)]
Amount = Annotated[int, Whole(0, 2**53)]
Time = Annotated[str, StringConstraints(max_length=64), rules.Obeys(format="date-time")]
Reason = Annotated[model.Reason, Field(strict=False)]
ModuleStatus = Annotated[model.ModuleStatus, Field(strict=False)]
Setting = Annotated[Any, rules.Obeys(nullable=True, **{"x-kubernetes-preserve-unknown-fields": True})]
"""A value as it is: true or false, a number or a text; null where nothing was asked or nothing is there."""
Settings = Annotated[dict[str, Setting], rules.Obeys(maxProperties=64)]


class Condition(Base):
    """One aspect of the state, as all Kubernetes tools read it."""

    type: Annotated[str, StringConstraints(min_length=1, max_length=316)]
    """Which aspect: Ready, Complete, Reconciling and so on."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    """Why, in one word."""
    message: Annotated[str, StringConstraints(max_length=32768)]
    """Why, in a sentence."""
    last_transition_time: Time
    """When the status changed last."""
    observed_generation: Amount | None = None
    """The generation that this speaks of."""


Conditions = Annotated[list[Condition], rules.distinct_by("type", 16)]


class NodeCounts(Base):
    """How many nodes."""

    matched: Amount | None = None
    """Nodes that the selector matches."""
    admitted: Amount | None = None
    """Nodes that may have this generation."""
    ready: Amount | None = None
    """Nodes that are as asked."""
    blocked: Amount | None = None
    """Nodes on which something cannot be as asked."""
    unknown: Amount | None = None
    """Nodes that do not report."""


class RolloutStatus(Base):
    """How far the newest generation has come."""

    generation: Amount | None = None
    """The generation that travels."""
    admitted: Amount | None = None
    """A node may have it when the first 52 bits of sha256(uid, node name) are below this number."""
    paused: bool | None = None
    """Whether it stands still."""
    reason: Message | None = None
    """Why it stands still."""
    began: Time | None = None
    """When the rollout began; absent when it is over. Edits in the middle of it do not move it."""


class ProblemReport(Base):
    """One of the worst problems."""

    node: Short
    """Where."""
    setting: Short
    """Which setting, as it was written in the policy."""
    reason: Reason
    """Why, in one word."""
    message: Message
    """Why, in a sentence."""


class PolicyStatus(Base):
    """What came of the policy on all nodes; written by the controller alone."""

    observed_generation: Amount | None = None
    """The generation that this speaks of."""
    conditions: Conditions | None = None
    """Ready, Reconciling, Stalled, Conflicted, Complete, MigrationCompatible."""
    nodes: NodeCounts | None = None
    """How many nodes."""
    rollout: RolloutStatus | None = None
    """How far the newest generation has come."""
    problems: Annotated[list[ProblemReport], rules.at_most(3)] | None = None
    """The three worst problems."""


class PolicyOnNode(Base):
    """One policy on this node."""

    name: Short
    """The policy's name."""
    uid: Short | None = None
    """Which policy of that name: one that was deleted and made anew has another."""
    generation: Amount | None = None
    """The generation that is in force here."""
    admitted: bool | None = None
    """Whether the newest generation may be in force here."""
    ready: bool | None = None
    """Whether everything that can be is as asked."""
    reason: Reason | None = None
    """The worst reason on this node."""
    blocked: Amount | None = None
    """Settings that cannot be as asked."""
    drifts: Amount | None = None
    """How often another program changed a setting away."""


class SettingState(Base):
    """A managed setting that is not simply as asked."""

    subject: Short
    """link/NAME, module/vhost_net, guest/DOMAIN/MAC or policy/NAME."""
    setting: Short
    """The setting, as it was written in the policy."""
    wanted: Setting = None
    """What was asked."""
    actual: Setting = None
    """What is there."""
    reason: Reason | None = None
    """Why, in one word; docs/reasons.md says what to do about each."""
    message: Message | None = None
    """Why, in a sentence."""
    policy: Short | None = None
    """Who asked."""
    since: Time | None = None
    """Since when."""


class LinkState(Base):
    """A managed link."""

    name: Annotated[str, StringConstraints(max_length=15)]
    """Its interface name."""
    role: Literal["bridge", "uplink", "tap", "port"] | None = None
    """What it is on the path."""
    driver: Short | None = None
    """Its kernel driver."""
    master: Annotated[str, StringConstraints(max_length=15)] | None = None
    """The bridge, bond or team that it belongs to."""
    wanted: Settings | None = None
    """What the policies ask of it."""
    effective: Settings | None = None
    """What is in effect."""


class VhostState(Base):
    """The vhost_net module on this node."""

    module: ModuleStatus | None = None
    """Loaded, Absent, BuiltIn, or Missing from this kernel."""
    refcount: Amount | None = None
    """How many open devices use it."""
    parameters: Annotated[dict[str, Short], rules.Obeys(maxProperties=16)] | None = None
    """The parameters it was loaded with."""
    users: Annotated[list[Short], rules.at_most(64)] | None = None
    """The processes that hold it, with the guest's name where it is known."""


class GuestState(Base):
    """One NIC of one guest."""

    name: Short
    """The guest's name."""
    mac: Annotated[str, StringConstraints(max_length=17)]
    """The NIC's MAC address."""
    tap: Annotated[str, StringConstraints(max_length=15)] | None = None
    """The tap behind it."""
    wanted: Settings | None = None
    """What the policies ask of it."""
    configured: Settings | None = None
    """What its definition says."""
    effective: Settings | None = None
    """What the running guest has."""
    vhost_evidence: Short | None = None
    """How we know that vhost works for it."""
    restart_required: bool | None = None
    """Whether a wish waits for the guest's next start."""


class Fingerprint(Base):
    """The feature bits that live migration depends on, in hexadecimal."""

    tun: Annotated[str, StringConstraints(max_length=34)] | None = None
    """TUNGETFEATURES of /dev/net/tun."""
    vhost: Annotated[str, StringConstraints(max_length=34)] | None = None
    """VHOST_GET_FEATURES of /dev/vhost-net."""


class Agent(Base):
    """Who wrote this."""

    version: Short | None = None
    """The agent's version."""
    boot_id: Short | None = Field(default=None, alias="bootID")
    """The node's boot."""


class Counts(Base):
    """Sums for tables."""

    policies: Amount | None = None
    """Policies in force on this node."""
    blocked: Amount | None = None
    """Settings that cannot be as asked."""
    restarts_needed: Amount | None = None
    """Guests for which a wish waits for their next start."""


class Omitted(Base):
    """How many entries were left out to keep the object small."""

    links: Amount | None = None
    """Links that are as asked."""
    guests: Amount | None = None
    """Guests that are as asked."""
    settings: Amount | None = None
    """Settings, the least severe first."""


class NodeStateStatus(Base):
    """What the agent sees and did on its node; written by that agent alone."""

    conditions: Conditions | None = None
    """Ready, Complete, Held, Released."""
    policies: Annotated[list[PolicyOnNode], rules.distinct_by("name", 256)] | None = None
    """The policies that select this node."""
    settings: Annotated[list[SettingState], rules.at_most(512)] | None = None
    """Managed settings that are not simply as asked."""
    links: Annotated[list[LinkState], rules.at_most(512)] | None = None
    """Managed links."""
    vhost: VhostState | None = None
    """The vhost_net module."""
    guests: Annotated[list[GuestState], rules.at_most(512)] | None = None
    """Managed NICs of guests."""
    fingerprint: Fingerprint | None = None
    """What live migration depends on."""
    agent: Agent | None = None
    """Who wrote this."""
    counts: Counts | None = None
    """Sums for tables."""
    omitted: Omitted | None = None
    """What was left out to keep the object under 64 KiB."""


class VirtioNetworkNodeState(Base):
    """The virtio network path of one node, as its agent sees it. It has the node's name and no spec."""

    KIND: ClassVar[str] = "VirtioNetworkNodeState"

    status: NodeStateStatus | None = None
    """What the agent sees and did."""
