"""Desired × observed → the plan: ordered steps, and what is blocked and why. Planning and verifying are the same call.

The plan made from a second look is the leftover: no step in it means converged. Order: the module, links that are made,
attributes, ports, features, what is put back, removals last. One bad setting never blocks another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from virtnet.core import features as feature_names
from virtnet.core import links, modules, offloads, restore, select
from virtnet.core.links import Scene
from virtnet.core.model import (
    EMPTY,
    CreateBridge,
    CreateTap,
    DeleteLink,
    Deletion,
    Entry,
    Features,
    HostState,
    Link,
    LinkRecord,
    Reason,
    Recorded,
    Ref,
    Row,
    SetFeatures,
    SetMaster,
    Setting,
    Step,
    Unreadable,
    Value,
    nothing,
)
from virtnet.core.resolve import Creation, Desired, FeatureAsk, FeatureTable, LinkWant, Want
from virtnet.core.standing import Obstacle, Standing

NOTHING_STANDS = Standing()


@dataclass(frozen=True, slots=True)
class Plan:
    """`steps` in order; `blocked` rows; what the ledger must record before any step, and what it may forget.

    `reflexes` is what the fast loop may repair by itself: ifindex -> (mask, value) of features. `unmet` are the wanted
    settings that no step changes because something stands in the way: they are not verified. `skipped` are values that
    are not put back, said once: the ledger forgets them.
    """

    steps: tuple[Step, ...] = ()
    blocked: tuple[Row, ...] = ()
    originals: tuple[tuple[Link | None, tuple[Entry, ...]], ...] = ()
    forget: tuple[Setting, ...] = ()
    forget_made: tuple[str, ...] = ()
    gone: tuple[int, ...] = ()
    renamed: tuple[Link, ...] = ()
    reflexes: Mapping[int, tuple[int, int]] = field(default_factory=nothing)
    unmet: frozenset[Setting] = frozenset()
    skipped: tuple[Row, ...] = ()

    @property
    def pending(self) -> tuple[Row, ...]:
        """The rows of everything that would be changed."""
        return tuple(row for step in self.steps for row in step.rows)


def make_plan(desired: Desired, state: HostState, recorded: Recorded, standing: Standing = NOTHING_STANDS) -> Plan:
    """What to change, in which order, and what cannot be had."""
    scene = scene_of(desired, state)
    builder = _Builder(desired, scene, recorded, standing)
    builder.module()
    builder.creations()
    for ifindex, want in desired.links.items():
        link = state.links.get(ifindex)
        if link is not None:
            builder.link(link, want)
    builder.audits()
    builder.removals()
    return builder.plan()


def scene_of(desired: Desired, state: HostState) -> Scene:
    topology = select.Topology.of(state.links, state.drivers)
    coming = frozenset(c.name for c in desired.creations if c.name not in topology.by_name)
    return Scene(state, topology, desired.policies, coming)


_ORDER: Mapping[type, int] = {CreateBridge: 1, CreateTap: 1, SetMaster: 3, SetFeatures: 4, DeleteLink: 9}


def _position(step: Step) -> int:
    if step.restores:
        return (
            6
            if not isinstance(step.change, DeleteLink | SetFeatures)
            else 9
            if isinstance(step.change, DeleteLink)
            else 7
        )
    return _ORDER.get(type(step.change), 2)


class _Builder:
    """Collects the parts of one plan."""

    def __init__(self, desired: Desired, scene: Scene, recorded: Recorded, standing: Standing) -> None:
        self.desired, self.scene, self.recorded, self.standing = desired, scene, recorded, standing
        self.first: list[Step] = []
        self.steps: list[Step] = []
        self.rows: list[Row] = list(desired.rows)
        self.originals: list[tuple[Link | None, tuple[Entry, ...]]] = []
        self.forget: list[Setting] = []
        self.forget_made: list[str] = []
        self.gone: list[int] = []
        self.renamed: list[Link] = []
        self.reflexes: dict[int, tuple[int, int]] = {}
        self.unmet: set[Setting] = set()
        self.skipped: list[Row] = []
        self.frozen = restore.Frozen.of(desired.audits, scene)

    def plan(self) -> Plan:
        return Plan(
            (*self.first, *sorted(self.steps, key=_position)),
            tuple(self.rows),
            tuple(self.originals),
            tuple(self.forget),
            tuple(self.forget_made),
            tuple(self.gone),
            tuple(self.renamed),
            self.reflexes,
            frozenset(self.unmet),
            tuple(self.skipped),
        )

    # --- the module ---

    def module(self) -> None:
        want, observed = self.desired.module, self.scene.state.module
        if observed is None:
            return
        if want is not None:
            steps, rows = modules.diff(want, observed)
            self._module_steps(steps)
            self.rows += rows
        claims = modules.claims(want, observed) if want is not None else []
        self._module_originals(claims)
        wanted = {entry.setting.key for entry in claims}
        stale = {
            key: entry
            for key, entry in self.recorded.module.items()
            if key not in wanted and key not in self.frozen.module
        }
        retained = [entry.setting for entry in stale.values() if entry.deletion is Deletion.RETAIN]
        self.forget += retained
        steps, rows, forget = modules.restore(
            {key: entry for key, entry in stale.items() if entry.deletion is Deletion.RESTORE}, observed, want
        )
        self._module_steps(steps)
        self.rows += [row for row in rows if row.reason is not Reason.FOREIGN]
        self.skipped += [row for row in rows if row.reason is Reason.FOREIGN]
        self.forget += forget

    def _module_steps(self, steps: list[Step]) -> None:
        for step in steps:
            blocked = next(
                (found for setting, value in step.settings if (found := self._module_obstacle(setting, value))),
                None,
            )
            if blocked:
                self.rows += _blocked(step.rows, blocked)
                self.unmet |= {setting for setting, _ in step.settings}
            else:
                self.first.append(step)

    def _module_obstacle(self, setting: Setting, value: Value | None) -> Obstacle | None:
        observed = self.scene.state.module
        current = modules.value(observed, setting.key) if observed else None
        return self.standing.obstacle(setting, modules.NAME, value, current)

    def _module_originals(self, entries: list[Entry]) -> None:
        entries = [replace(entry, deletion=self._deletion(entry.policy)) for entry in entries]
        new = tuple(entry for entry in entries if _is_news(entry, self.recorded.module.get(entry.setting.key)))
        if new:
            self.originals.append((None, new))

    def _deletion(self, policy: str) -> Deletion:
        known = self.desired.policies.get(policy)
        return known.deletion if known else Deletion.RESTORE

    # --- links that have to be there ---

    def creations(self) -> None:
        for creation in self.desired.creations:
            link = self.scene.topology.by_name.get(creation.name)
            steps, rows = create(creation, link, self.recorded, self.scene)
            hold = self.standing.hold(creation.name)
            setting = Setting(creation.name, "exists")
            hold = hold or self.standing.obstacle(setting, creation.name, True, link is not None)
            if hold:
                rows = [*rows, *(row for step in steps for row in _blocked(step.rows, hold))]
                steps = []
            self.steps += steps
            self.rows += rows

    # --- links that are there ---

    def link(self, link: Link, want: LinkWant) -> None:
        record = self.recorded.links.get(link.ifindex)
        if record is not None and restore.is_other_link(record, link):
            self.gone.append(link.ifindex)
            record = None
        elif record is not None and record.name != link.name:
            self.renamed.append(link)
        features = self.scene.state.features.get(link.ifindex)
        knows = self.standing.knows(link)
        if want.attrs or want.overridden:
            self._attrs(link, want, knows)
        if want.features is not None and features is not None:
            self._features(link, want.features, features, knows)
        self._originals(link, want, record, features)

    def _attrs(self, link: Link, want: LinkWant, knows: bool) -> None:
        values: dict[str, Value | None] = {}
        rows: dict[str, Row] = {}
        for attr in want.attrs:
            current = links.observed_value(self.scene.state, link, attr.key)
            if current == attr.value:
                continue
            blocked = self._attr_obstacle(link, attr, current, knows)
            shown = None if isinstance(current, Unreadable) else current
            row = Row(f"link/{link.name}", attr.path, attr.value, shown, None, _sentence(attr, shown), attr.policy)
            if blocked:
                self.rows += _blocked((row,), blocked)
                self.unmet.add(Setting(link.ifindex, attr.key))
            else:
                values[attr.key], rows[attr.key] = attr.value, row
        for lost in want.overridden:
            self.rows.append(_lost(link, lost.want, lost.winner, lost.winning))
        self._attr_steps(link, want, values, rows)

    def _attr_obstacle(
        self, link: Link, attr: Want, current: Value | Unreadable | None, knows: bool
    ) -> Obstacle | None:
        if isinstance(current, Unreadable):
            return Reason.UNREADABLE, f"{attr.key} of {link.name} cannot be read: {current.reason}"
        found = links.obstacle(self.scene, link, attr, current)
        if found or not knows:
            return found
        return self.standing.obstacle(Setting(link.ifindex, attr.key), link.name, attr.value, current)

    def _attr_steps(
        self, link: Link, want: LinkWant, values: Mapping[str, Value | None], rows: Mapping[str, Row]
    ) -> None:
        """One change for all keys of a group that have the same owner."""
        by_policy: dict[str, dict[str, Value | None]] = {}
        for attr in want.attrs:
            if attr.key in values:
                by_policy.setdefault(attr.policy, {})[attr.key] = attr.value
        for policy, owned in by_policy.items():
            for change, keys in links.changes(link, owned, self.scene.topology.by_name):
                risky = any(links.can_cut_off(key) for key in keys)
                self.steps.append(
                    Step(
                        change,
                        tuple((Setting(link.ifindex, key), owned[key]) for key in keys),
                        tuple(rows[key] for key in keys),
                        policy,
                        risky=risky,
                        wait_carrier=risky and link.physical and link.carrier,
                    )
                )

    def _features(self, link: Link, table: FeatureTable, features: Features | Unreadable, knows: bool) -> None:
        if isinstance(features, Features):
            wish = offloads.enforced(table, features)
            care = wish.care & ~self._resetting(link, table.names)
            if not knows:
                self.reflexes[link.ifindex] = (care, wish.value & care)
                if offloads.is_as_asked(table, features) and not table.unknown and not _any_lost(table):
                    return
            elif self.standing.hold(link.name) is None:
                free = care & ~self._blocked_bits(link, table, features, care, wish.value)[0]
                self.reflexes[link.ifindex] = (free, wish.value & free)
        found = offloads.diff(link, table, features)
        self.rows += found.rows
        if found.mask and isinstance(features, Features):
            self._feature_steps(link, table, features, found, knows)

    def _resetting(self, link: Link, names: tuple[str, ...]) -> int:
        return feature_names.mask_of(feature_names.MAY_RESET, names) if link.physical else 0

    def _blocked_bits(
        self, link: Link, table: FeatureTable, features: Features, mask: int, value: int
    ) -> tuple[int, dict[int, Obstacle]]:
        """The bits of `mask` that must not be set now, and why each."""
        why: dict[int, Obstacle] = {}
        blocked = 0
        for name in feature_names.names_of(mask, table.names):
            bit = 1 << feature_names.index(table.names)[name]
            setting = Setting(link.ifindex, f"feature:{name}")
            found = self.standing.obstacle(setting, link.name, bool(value & bit), bool(features.wanted & bit))
            if found:
                blocked |= bit
                why[bit] = found
        return blocked, why

    def _feature_steps(
        self, link: Link, table: FeatureTable, features: Features, found: offloads.Difference, knows: bool
    ) -> None:
        mask = found.mask
        why: dict[int, Obstacle] = {}
        if knows:
            blocked, why = self._blocked_bits(link, table, features, mask, found.value)
            mask &= ~blocked
        resetting = self._resetting(link, table.names) & mask
        waits = self._waiting_bits(link, found.pending, resetting)
        for bit, reason in waits.items():
            why[bit] = reason
            mask &= ~bit
        resetting &= mask
        self.unmet |= {
            Setting(link.ifindex, f"feature:{name}") for name in feature_names.names_of(sum(why), table.names)
        }
        self.rows += _feature_rows(link, table, features, found, why)
        for part, risky in ((mask & ~resetting, False), (resetting, True)):
            self.steps += _feature_step(link, table, features, found.value, part, found.pending, risky)

    def _waiting_bits(self, link: Link, asks: tuple[FeatureAsk, ...], resetting: int) -> dict[int, Obstacle]:
        """Features that may reset the link and whose policy lets them wait for the guests."""
        waits: dict[int, Obstacle] = {}
        for ask in asks:
            bits = ask.won & resetting
            if bits and (
                found := links.disruption(self.scene, link, Want("feature", ask.wanted, ask.policy, ask.path))
            ):
                waits |= {1 << bit: found for bit in range(bits.bit_length()) if bits >> bit & 1}
        return waits

    # --- the ledger ---

    def _originals(
        self, link: Link, want: LinkWant, record: LinkRecord | None, features: Features | Unreadable | None
    ) -> None:
        """Entries that the ledger lacks, or holds for another owner or wish."""
        known = record.entries if record else EMPTY
        wanted: set[str] = set()
        news = []
        for entry in self._entries(link, want, features):
            wanted.add(entry.setting.key)
            if _is_news(entry, known.get(entry.setting.key)):
                news.append(entry)
        if news:
            self.originals.append((link, tuple(news)))
        if record is not None and len(known) > len(wanted):
            self._restore(link, record, wanted | restore.side_effects(wanted))

    def _entries(self, link: Link, want: LinkWant, features: Features | Unreadable | None) -> Iterator[Entry]:
        for attr in want.attrs:
            current = links.observed_value(self.scene.state, link, attr.key)
            if not isinstance(current, Unreadable) and (
                current is not None or attr.key in ("master", "owner", "group")
            ):
                setting = Setting(link.ifindex, attr.key)
                yield Entry(setting, current, attr.value, attr.policy, self._deletion(attr.policy))
        if isinstance(features, Features):
            yield from self._side_effects(link, want, features)
            if want.features is not None:
                yield from self._feature_entries(link, want.features, features)

    def _feature_entries(self, link: Link, table: FeatureTable, features: Features) -> Iterator[Entry]:
        care = offloads.enforced(table, features).care
        index = feature_names.index(table.names)
        for ask in table.asks:
            for name in feature_names.names_of(ask.won & care, table.names):
                original = bool(features.wanted >> index[name] & 1)
                setting = Setting(link.ifindex, f"feature:{name}")
                yield Entry(setting, original, ask.wanted, ask.policy, self._deletion(ask.policy))

    def _side_effects(self, link: Link, want: LinkWant, features: Features) -> Iterator[Entry]:
        """Enslaving makes the kernel switch LRO off (dev_disable_lro): that is a change of ours."""
        master = want.attr("master")
        lro = feature_names.mask_of(("rx-lro",), self.scene.state.feature_names)
        if master is not None and not link.master and features.wanted & lro:
            setting = Setting(link.ifindex, "feature:rx-lro")
            yield Entry(setting, True, False, master.policy, self._deletion(master.policy))

    # --- what is no longer wanted ---

    def audits(self) -> None:
        for audit in self.desired.audits:
            imagined = make_plan(replace(audit, audits=()), self.scene.state, Recorded())
            self.rows += [row for row in imagined.blocked if row.policy in audit.policies]
            for row in imagined.pending:
                text = f"Audit: would {row.message}"
                self.rows.append(replace(row, reason=Reason.AUDIT_ONLY, message=text))

    def removals(self) -> None:
        found = restore.removals(self.desired, self.scene, self.recorded, self.frozen)
        self.gone += found.gone
        self.forget_made += found.forget_made
        braked = restore.brake(found, self.desired, self.recorded) if not self.standing.allow_mass_removal else None
        if braked:
            self.rows += braked
            return
        for link, record in found.released:
            self._restore(link, record, set())
        steps, rows = restore.deletions(found, self.scene, self.recorded)
        for step in steps:
            hold = self.standing.hold(step.rows[0].subject.removeprefix("link/"))
            self.rows += _blocked(step.rows, hold) if hold else ()
            self.steps += [] if hold else [step]
        self.rows += rows

    def _restore(self, link: Link, record: LinkRecord, wanted: set[str]) -> None:
        found = restore.link(self.scene, link, record, frozenset(wanted) | self.frozen.keys(link.ifindex))
        self.forget += found.forget
        self.rows += found.rows
        self.skipped += found.skipped
        for step in found.steps:
            blocked = self._restore_obstacle(link, step)
            self.rows += _blocked(step.rows, blocked) if blocked else ()
            self.steps += [] if blocked else [step]

    def _restore_obstacle(self, link: Link, step: Step) -> Obstacle | None:
        """A hold or a rollback stops a restore; contention and refusals do not."""
        hold = self.standing.hold(link.name)
        if hold:
            return hold
        for setting, _ in step.settings:
            text = self.standing.rolled_back.get((link.name, setting.key))
            if text:
                return Reason.ROLLED_BACK, text
        return None


def create(creation: Creation, link: Link | None, recorded: Recorded, scene: Scene) -> tuple[list[Step], list[Row]]:
    """What makes a wanted bridge or tap be there."""
    if link is None:
        return [_creation_step(creation)], []
    kind = "tap" if link.is_tap else link.kind or "hardware"
    if kind != creation.kind:
        text = f"{link.name} exists and is a {kind} link; choose another name"
        return [], [_creation_row(creation, kind, Reason.FOREIGN, text)]
    wish = creation.tap
    if wish is None or link.tun is None or wish.multi_queue in (None, link.tun.multi_queue):
        return [], []
    return _recreate(creation, link, recorded, scene)


def _creation_row(creation: Creation, actual: Value | None, reason: Reason | None, message: str) -> Row:
    return Row(f"link/{creation.name}", creation.path, creation.kind, actual, reason, message, creation.policy)


def _creation_step(creation: Creation) -> Step:
    row = _creation_row(creation, None, None, f"make {creation.kind} {creation.name}")
    return Step(_creation_change(creation), ((Setting(creation.name, "exists"), True),), (row,), creation.policy)


def _creation_change(creation: Creation) -> CreateBridge | CreateTap:
    wish = creation.tap
    if wish is None:
        return CreateBridge(creation.name)
    return CreateTap(creation.name, wish.owner, wish.group, bool(wish.multi_queue), creation.vnet_hdr)


def _recreate(creation: Creation, link: Link, recorded: Recorded, scene: Scene) -> tuple[list[Step], list[Row]]:
    """multi_queue is fixed when a tap is made: only one that we made and nobody holds is made again."""
    made = recorded.made.get(link.name)
    if made is None or made.ifindex not in (0, link.ifindex):
        text = f"multiQueue of {link.name} is fixed at creation, and it was not made here; delete it or drop multiQueue"
        return [], [_creation_row(creation, "tap", Reason.FOREIGN, text)]
    if link.held:
        found = links.obstacle(scene, link, Want("owner", 0, creation.policy, creation.path), None)
        text = found[1].replace("owner", "multiQueue") if found else f"{link.name} is held"
        return [], [_creation_row(creation, "tap", Reason.IN_USE, text)]
    row = _creation_row(creation, "tap", None, f"make {link.name} again: multiQueue is fixed at its creation")
    settings = ((Setting(creation.name, "exists"), True),)
    remove = Step(DeleteLink(Ref(link.name, link.ifindex)), settings, (row,), creation.policy, risky=True)
    return [remove], []


def _sentence(attr: Want, current: Value | None) -> str:
    if attr.key == "master":
        return f"make it a port of {attr.value}"
    return f"set {attr.path.partition('.')[2]} to {_word(attr.value)}" + (
        f" (is {_word(current)})" if current is not None else ""
    )


def _word(value: Value | None) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "none" if value is None else str(value)


def _lost(link: Link, want: Want, winner: str, winning: Value) -> Row:
    text = f"policy {winner} wants {_word(winning)}"
    return Row(f"link/{link.name}", want.path, want.value, winning, Reason.OVERRIDDEN_BY, text, want.policy)


def _blocked(rows: tuple[Row, ...], obstacle: Obstacle) -> list[Row]:
    reason, text = obstacle
    return [replace(row, reason=reason, message=text) for row in rows]


def _any_lost(table: FeatureTable) -> bool:
    return any(ask.lost for ask in table.asks)


def _is_news(entry: Entry, known: Entry | None) -> bool:
    return known is None or (known.wanted, known.policy, known.deletion) != (entry.wanted, entry.policy, entry.deletion)


def _feature_rows(
    link: Link, table: FeatureTable, features: Features, found: offloads.Difference, why: Mapping[int, Obstacle]
) -> Iterator[Row]:
    """One row for each ask and reason among its blocked bits."""
    for ask in found.pending:
        reasons: dict[Obstacle, int] = {}
        for bit, obstacle in why.items():
            if ask.won & bit:
                reasons[obstacle] = reasons.get(obstacle, 0) | bit
        for obstacle, bits in reasons.items():
            row = offloads.pending_row(link, ask, table, features, bits)
            yield _blocked((row,), obstacle)[0]


def _feature_step(
    link: Link,
    table: FeatureTable,
    features: Features,
    value: int,
    mask: int,
    asks: tuple[FeatureAsk, ...],
    risky: bool,
) -> Iterator[Step]:
    """One message for the link; in a transaction one for each policy."""
    owners = tuple(dict.fromkeys(ask.policy for ask in asks if ask.won & mask))
    for group in [(owner,) for owner in owners] if risky else [owners] if owners else []:
        mine = tuple(ask for ask in asks if ask.policy in group and ask.won & mask)
        bits = 0
        for ask in mine:
            bits |= ask.won & mask
        settings = tuple(
            (Setting(link.ifindex, f"feature:{name}"), ask.wanted)
            for ask in mine
            for name in feature_names.names_of(ask.won & mask, table.names)
        )
        rows = tuple(offloads.pending_row(link, ask, table, features, mask) for ask in mine)
        change = SetFeatures(Ref(link.name, link.ifindex), bits, value & bits)
        yield Step(change, settings, rows, group[0], risky=risky, wait_carrier=risky and link.carrier)


__all__ = ["NOTHING_STANDS", "Plan", "make_plan", "scene_of"]
