"""Bridges and taps that have to be there: made when absent, left alone when they are somebody else's."""

from __future__ import annotations

from virtnet.core import links
from virtnet.core.links import Scene
from virtnet.core.model import (
    CreateBridge,
    CreateTap,
    DeleteLink,
    Link,
    Reason,
    Recorded,
    Ref,
    Row,
    Setting,
    Step,
    Value,
)
from virtnet.core.resolve import Creation


def diff(creation: Creation, link: Link | None, recorded: Recorded, scene: Scene) -> tuple[list[Step], list[Row]]:
    """What makes a wanted bridge or tap be there; `link` is what has its name now."""
    if link is None:
        row = _row(creation, None, None, f"make {creation.kind} {creation.name}")
        return [Step(_change(creation), ((Setting(creation.name, "exists"), True),), (row,), creation.policy)], []
    kind = "tap" if link.is_tap else link.kind or "hardware"
    if kind != creation.kind:
        text = f"{link.name} exists and is a {kind} link; choose another name"
        return [], [_row(creation, kind, Reason.FOREIGN, text)]
    wish = creation.tap
    if wish is None or link.tun is None or wish.multi_queue in (None, link.tun.multi_queue):
        return [], []
    return _again(creation, link, recorded, scene)


def _row(creation: Creation, actual: Value | None, reason: Reason | None, message: str) -> Row:
    return Row(f"link/{creation.name}", creation.path, creation.kind, actual, reason, message, creation.policy)


def _change(creation: Creation) -> CreateBridge | CreateTap:
    wish = creation.tap
    if wish is None:
        return CreateBridge(creation.name)
    return CreateTap(creation.name, wish.owner, wish.group, bool(wish.multi_queue), creation.vnet_hdr)


def _again(creation: Creation, link: Link, recorded: Recorded, scene: Scene) -> tuple[list[Step], list[Row]]:
    """multi_queue is fixed when a tap is made: only one that we made and nobody holds is made again."""
    made = recorded.made.get(link.name)
    if made is None or not made.is_it(link):
        text = f"multiQueue of {link.name} is fixed at creation, and it was not made here; delete it or drop multiQueue"
        return [], [_row(creation, "tap", Reason.FOREIGN, text)]
    held = links.held_by(scene.state, link)
    if held:
        text = f"{link.name} is held by {held}; multiQueue is fixed at creation and can change when it is let go"
        return [], [_row(creation, "tap", Reason.IN_USE, text)]
    row = _row(creation, "tap", None, f"make {link.name} again: multiQueue is fixed at creation")
    gone = ((Setting(creation.name, "exists"), None),)
    return [Step(DeleteLink(Ref(link.name, link.ifindex)), gone, (row,), creation.policy, risky=True)], []
