"""What to put back when no policy wants a setting any longer, which links of ours to remove, and when to refuse.

value is the original                 done: forget it
value is what we set                  put the original back
value is neither                      somebody else owns it now: leave it, say so, forget it
deletionPolicy Retain                 forget it
an Audit policy now wants it          frozen: no repair, no restore, the original is kept
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field

from virtnet.core import dragged, links, offloads
from virtnet.core import features as feature_names
from virtnet.core.links import Scene
from virtnet.core.model import (
    EMPTY,
    Change,
    DeleteLink,
    Deletion,
    Entry,
    Features,
    Link,
    LinkRecord,
    Made,
    Reason,
    Recorded,
    Ref,
    Row,
    SetFeatures,
    Setting,
    Step,
    Unreadable,
    Value,
    nothing,
)
from virtnet.core.resolve import Desired, LinkWant
from virtnet.values import frozen

BRAKE_AT = 10
"""More removals than this in one pass, and more than half of what is managed, wait for permission."""


@frozen
class Frozen:
    """The settings that Audit policies want: neither repaired nor restored."""

    links: Mapping[int, frozenset[str]]
    module: frozenset[str]
    made: frozenset[str]
    policies: frozenset[str]

    @staticmethod
    def of(audits: tuple[Desired, ...], scene: Scene, kept: Mapping[int, frozenset[str]] = EMPTY) -> Frozen:
        """`kept`: keys by ifindex that stay as they are for another reason."""
        found = dict(kept)
        module: set[str] = set()
        for audit in audits:
            for ifindex, want in audit.links.items():
                found[ifindex] = found.get(ifindex, frozenset()) | wanted_keys(want, scene.state.features.get(ifindex))
            if audit.module is not None:
                module |= {"state", "persist"} | {f"parameters.{name}" for name, _, _ in audit.module.parameters}
        made = frozenset(creation.name for audit in audits for creation in audit.creations)
        policies = frozenset(name for audit in audits for name in audit.policies)
        return Frozen(found, frozenset(module), made, policies)

    def keys(self, ifindex: int) -> frozenset[str]:
        return self.links.get(ifindex, frozenset())


def wanted_keys(want: LinkWant, features: Features | Unreadable | None) -> frozenset[str]:
    """The keys of everything that is wanted of a link and that the ledger keeps for it."""
    keys = frozenset(attr.key for attr in want.attrs)
    if want.features is not None and isinstance(features, Features):
        keys |= offloads.enforced(want.features, features).keys
    return keys | dragged.keys(keys)


def is_other_link(record: LinkRecord, link: Link) -> bool:
    """Whether an ifindex was taken by another link since: another kind, or both another name and another address."""
    return record.kind != link.kind or (record.name != link.name and record.mac != link.mac)


# --- one link ----------------------------------------------------------------------------------------------


@frozen
class Returned:
    """`skipped` rows are about entries in `forget`, `rows` about entries that stay."""

    steps: tuple[Step, ...]
    rows: tuple[Row, ...]
    skipped: tuple[Row, ...]
    forget: tuple[Setting, ...]


def link(scene: Scene, link: Link, record: LinkRecord, wanted: frozenset[str]) -> Returned:
    """What to do about a link's entries that nobody wants any longer."""
    values: dict[str, Value | None] = {}
    rows, skipped, forget = [], [], []
    stale = [entry for key, entry in record.entries.items() if key not in wanted]
    for entry in stale:
        key = entry.setting.key
        current = links.current_value(scene.state, link, key)
        if isinstance(current, Unreadable):
            rows.append(_row(link, entry, None, Reason.UNREADABLE, f"cannot be read: {current.reason}"))
        elif entry.deletion is Deletion.RETAIN or current == entry.original:
            forget.append(entry.setting)
        elif not entry.is_ours(current):
            text = f"left as it is: neither what {entry.policy} set nor what was there before"
            skipped.append(_row(link, entry, current, Reason.FOREIGN, text))
            forget.append(entry.setting)
        elif key in ("vnetHdr", "owner", "group") and link.held:
            rows.append(_row(link, entry, current, Reason.IN_USE, f"{link.name} is held; restored when it is let go"))
        elif key == "master" and entry.original is not None and entry.original not in scene.topology.by_name:
            text = f"left as it is: {entry.original}, where it was before, is gone"
            skipped.append(_row(link, entry, current, Reason.FOREIGN, text))
            forget.append(entry.setting)
        else:
            values[key] = entry.original
    steps = _steps(scene, link, record, values)
    return Returned(steps, tuple(rows), tuple(skipped), tuple(forget))


def _row(link: Link, entry: Entry, current: Value | None, reason: Reason | None, message: str) -> Row:
    key = entry.setting.key.replace("feature:", "offloads.")
    return Row(f"link/{link.name}", key, entry.original, current, reason, message, entry.policy)


def _steps(scene: Scene, link: Link, record: LinkRecord, values: Mapping[str, Value | None]) -> tuple[Step, ...]:
    rows = {
        key: _row(link, record.entries[key], record.entries[key].wanted, None, f"put back {_shown(value)}")
        for key, value in values.items()
    }
    attrs = {key: value for key, value in values.items() if not key.startswith("feature:")}
    found = [
        _step(link, change, {key: attrs[key] for key in keys}, rows, record, any(map(links.can_cut_off, keys)))
        for change, keys in links.changes(link, attrs, scene.topology.by_name)
    ]
    features = {key: value for key, value in values.items() if key.startswith("feature:")}
    resetting = frozenset(f"feature:{name}" for name in feature_names.MAY_RESET) if link.physical else frozenset()
    for part, risky in ((features.keys() - resetting, False), (features.keys() & resetting, True)):
        if part:
            mine = {key: value for key, value in features.items() if key in part}
            found.append(_step(link, _set_features(scene, link, mine), mine, rows, record, risky))
    return tuple(found)


def _set_features(scene: Scene, link: Link, values: Mapping[str, Value | None]) -> SetFeatures:
    names = scene.state.feature_names
    mask = feature_names.mask_of((key.removeprefix("feature:") for key in values), names)
    value = feature_names.mask_of((key.removeprefix("feature:") for key, on in values.items() if on), names)
    return SetFeatures(Ref(link.name, link.ifindex), mask, value)


def _step(
    link: Link,
    change: Change,
    values: Mapping[str, Value | None],
    rows: Mapping[str, Row],
    record: LinkRecord,
    risky: bool,
) -> Step:
    return Step(
        change,
        tuple((Setting(link.ifindex, key), value) for key, value in values.items()),
        tuple(rows[key] for key in values),
        record.entries[next(iter(values))].policy,
        risky=risky,
        restores=True,
        wait_carrier=risky and link.physical and link.carrier,
    )


def _shown(value: Value | None) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else str(value)


# --- whole links -------------------------------------------------------------------------------------------


@frozen
class Removals:
    """Links that are no longer managed: released ones keep living, those that we made go."""

    released: tuple[tuple[Link, LinkRecord], ...]
    deleted: tuple[tuple[Link, Made], ...]
    policies: tuple[str, ...]
    gone: tuple[int, ...]
    forget_made: tuple[str, ...]
    guests: Mapping[str, Sequence[Entry]] = field(default_factory=nothing)
    """NICs of guests of which nothing is wanted any longer, with what the ledger holds of them."""

    @property
    def count(self) -> int:
        names = {link.name for link, _ in self.released} | {link.name for link, _ in self.deleted}
        return len(names) + len(self.policies) + len(self.guests)


def removals(
    desired: Desired,
    scene: Scene,
    recorded: Recorded,
    frozen: Frozen,
    guests: Mapping[str, Sequence[Entry]] = EMPTY,
) -> Removals:
    """What this pass would stop managing; `guests` as in `Removals`."""
    wanted = {creation.name for creation in desired.creations} | frozen.made
    deleted, forget = [], []
    for name, made in recorded.made.items():
        link = scene.topology.by_name.get(name)
        if link is None or not made.is_it(link):
            if name not in wanted or link is not None:
                forget.append(name)
        elif name not in wanted:
            if made.deletion is Deletion.RETAIN:
                forget.append(name)
            else:
                deleted.append((link, made))
    doomed = {link.ifindex for link, _ in deleted}
    released, gone = [], []
    for ifindex, record in recorded.links.items():
        link = scene.state.links.get(ifindex)
        if link is None or (is_other_link(record, link) and ifindex not in desired.links):
            gone.append(ifindex)
        elif ifindex not in desired.links and ifindex not in doomed and record.entries.keys() - frozen.keys(ifindex):
            released.append((link, record))
    leaving = _releasing(released) | {made.policy for _, made in deleted}
    leaving |= {entry.policy for entry in recorded.module.values()} | _owning(guests)
    policies = tuple(sorted(leaving - desired.policies.keys() - frozen.policies))
    return Removals(tuple(released), tuple(deleted), policies, tuple(gone), tuple(forget), guests)


def _owning(guests: Mapping[str, Sequence[Entry]]) -> set[str]:
    return {entry.policy for entries in guests.values() for entry in entries}


def _owners(recorded: Recorded) -> set[str]:
    owners = {entry.policy for record in recorded.links.values() for entry in record.entries.values()}
    owners |= {made.policy for made in recorded.made.values()}
    owners |= {entry.policy for entry in recorded.guests.values()}
    return owners | {entry.policy for entry in recorded.module.values()}


def brake(found: Removals, desired: Desired, recorded: Recorded) -> list[Row]:
    """Rows that say why nothing is removed, or none when it may be."""
    managed = len(recorded.links.keys() | desired.links.keys()) + len(_owners(recorded) | desired.policies.keys())
    managed += len({setting.target for setting in recorded.guests})
    if found.count <= BRAKE_AT or found.count * 2 <= managed:
        return []
    text = (
        f"{found.count} removals at once, of {managed} links and policies managed here: everything stays as it is; "
        "allow it with --allow-mass-removal"
    )
    owners = found.policies or sorted(
        {made.policy for _, made in found.deleted} | _releasing(found.released) | _owning(found.guests)
    )
    return [Row(f"policy/{name}", "deletionPolicy", None, None, Reason.TOO_MUCH_AT_ONCE, text, name) for name in owners]


def _releasing(released: Iterable[tuple[Link, LinkRecord]]) -> set[str]:
    return {entry.policy for _, record in released for entry in record.entries.values()}


def deletions(found: Removals, scene: Scene, recorded: Recorded) -> tuple[list[Step], list[Row]]:
    """Removal of the bridges and taps that we made, bridges last."""
    steps, rows = [], []
    ours = {link.ifindex for link, _ in found.deleted}
    for link, made in sorted(found.deleted, key=lambda pair: pair[0].kind == "bridge"):
        row = Row(f"link/{link.name}", f"{made.kind}.create", None, made.kind, None, f"remove {link.name}", made.policy)
        blocked = _not_removable(link, ours, scene, recorded)
        if blocked:
            reason, text = blocked
            rows.append(Row(row.subject, row.setting, None, made.kind, reason, text, made.policy))
            continue
        settings = ((Setting(link.name, "exists"), None),)
        steps.append(
            Step(DeleteLink(Ref(link.name, link.ifindex)), settings, (row,), made.policy, risky=True, restores=True)
        )
    return steps, rows


def _not_removable(link: Link, ours: set[int], scene: Scene, recorded: Recorded) -> links.Obstacle | None:
    if link.is_tap:
        held = links.held_by(scene.state, link)
        return (Reason.IN_USE, f"{link.name} is held by {held}; it is removed when it is let go") if held else None
    foreign = [
        port.name
        for port in scene.topology.ports.get(link.ifindex, ())
        if port.ifindex not in ours and not _enslaved_by_us(port, link, recorded)
    ]
    if foreign:
        return Reason.FOREIGN, f"{link.name} has ports that are not ours: {', '.join(foreign)}"
    carries = scene.state.carries.get(link.ifindex)
    if carries:
        # A rollback could make the bridge again, but not what the administrator has put on it since.
        return Reason.CARRIES_ADDRESSES, f"{link.name} carries {carries}; move it before {link.name} is removed"
    return None


def _enslaved_by_us(port: Link, bridge: Link, recorded: Recorded) -> bool:
    record = recorded.links.get(port.ifindex)
    entry = record.entries.get("master") if record else None
    return entry is not None and entry.is_ours(bridge.name) and entry.original != bridge.name
