"""What a plan will go on to do to links that it first has to make; to show a plan, never to carry one out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from virtnet.core import plan as planning
from virtnet.core import resolve
from virtnet.core.model import (
    BridgeOptions,
    CreateBridge,
    CreateTap,
    HostState,
    Link,
    Node,
    Policy,
    Recorded,
    Ref,
    Row,
    SetFeatures,
    SetMaster,
    Step,
    Tun,
)
from virtnet.core.plan import Plan
from virtnet.core.resolve import Creation, Desired
from virtnet.core.standing import Standing

NEW_BRIDGE = BridgeOptions(
    stp=False,
    forward_delay=1500,
    ageing_time=30000,
    multicast_snooping=True,
    vlan_filtering=False,
    group_forward_mask=0,
)
"""As the kernel makes one: br_dev_setup() in net/bridge/br_device.c."""


STAGES = 3
"""Links are made, then get their ports and masters, and then belong to what a section selects."""


def foresee(
    plan: Plan,
    desired: Desired,
    state: HostState,
    policies: Iterable[Policy],
    node: Node,
    recorded: Recorded,
    standing: Standing,
) -> Plan:
    """`plan` with the steps that follow once its links are made and its ports are where they belong."""
    policies = tuple(policies)
    told = dict.fromkeys(plan.steps)
    stage, blocked = plan, plan.blocked
    for _ in range(STAGES):
        later = _after(stage, desired, state)
        if later.links == state.links:
            break
        state = later
        desired = resolve.resolve(policies, node, state)
        stage, rows = (
            planning.make_plan(desired, state, recorded, standing),
            {row for step in told for row in step.rows},
        )
        blocked = stage.blocked
        steps = (*stage.steps, *_features(desired, state))
        told |= dict.fromkeys(step for step in steps if not rows.issuperset(step.rows))
    return replace(plan, steps=tuple(told), blocked=blocked)


def _after(plan: Plan, desired: Desired, state: HostState) -> HostState:
    """The links as they will be when the plan's links are made and enslaved; made ones have a negative ifindex."""
    links = dict(state.links)
    creations = {creation.name: creation for creation in desired.creations}
    for step in plan.steps:
        if isinstance(step.change, CreateBridge | CreateTap):
            ifindex = min(0, *links) - 1
            links[ifindex] = _as_made(creations[step.change.name], ifindex)
    by_name = {link.name: link.ifindex for link in links.values()}
    for step in plan.steps:
        if isinstance(step.change, SetMaster) and step.change.master is not None:
            port, master = by_name.get(step.change.link.name), by_name.get(step.change.master.name)
            if port is not None and master is not None:
                links[port] = replace(links[port], master=master)
    return replace(state, links=links)


def _as_made(creation: Creation, ifindex: int) -> Link:
    wish = creation.tap
    if wish is None:
        return Link(ifindex, creation.name, kind="bridge", up=True, bridge=NEW_BRIDGE)
    tun = Tun(True, wish.owner, wish.group, False, creation.vnet_hdr, True, bool(wish.multi_queue))
    return Link(ifindex, creation.name, kind="tun", up=True, tun=tun)


def _features(desired: Desired, state: HostState) -> Iterator[Step]:
    """Offloads of a link that is not there are not known to differ: they are told as what will be seen to."""
    for ifindex in sorted(index for index in desired.links if index < 0):
        want, link = desired.links[ifindex], state.links[ifindex]
        for ask in want.features.asks if want.features else ():
            word = "on" if ask.wanted else "off"
            text = f"see to it that {ask.name} is {word} once {link.name} is there"
            row = Row(f"link/{link.name}", ask.path, ask.wanted, None, None, text, ask.policy)
            change = SetFeatures(Ref(link.name, 0), ask.won, ask.won if ask.wanted else 0)
            yield Step(change, (), (row,), ask.policy)
