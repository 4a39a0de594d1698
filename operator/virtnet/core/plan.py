"""Desired × observed → the plan: ordered steps, and what is blocked and why. Planning and verifying are the same call.

The plan made from a second look is the leftover: no step in it means converged. Order: the module, links that are made,
attributes, ports, features, what is put back, removals last. One bad setting never blocks another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from virtnet.core import creations, domains, dragged, links, modules, offloads, replugs, restore, running, select
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
    LeaveReplug,
    Link,
    LinkRecord,
    LoadModule,
    ModuleStatus,
    Reason,
    Recorded,
    ReplugGuestNic,
    Row,
    SetFeatures,
    SetGuestNic,
    SetMaster,
    Setting,
    Step,
    UnloadModule,
    Unreadable,
    Value,
    nothing,
)
from virtnet.core.resolve import Desired, FeatureAsk, FeatureTable, LinkWant, Want
from virtnet.core.standing import Obstacle, Standing
from virtnet.values import frozen

NOTHING_STANDS = Standing()


@frozen
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
    guests: Mapping[str, domains.Managed] = field(default_factory=nothing)

    @property
    def pending(self) -> tuple[Row, ...]:
        """The rows of everything that would be changed."""
        return tuple(row for step in self.steps for row in step.rows)


@dataclass(slots=True)
class Memory:
    """Links about which there was nothing to say, with the very values that were compared.

    The same objects give the same answer, so a plan that is handed the memory of the one before compares only links
    of which anything is new. It may be thrown away at any time.
    """

    quiet: dict[int, tuple[object, ...]] = field(default_factory=dict)
    guests: domains.Memory = field(default_factory=domains.Memory)


def make_plan(
    desired: Desired,
    state: HostState,
    recorded: Recorded,
    standing: Standing = NOTHING_STANDS,
    memory: Memory | None = None,
) -> Plan:
    """What to change, in which order, and what cannot be had."""
    builder = _Builder(desired, scene_of(desired, state), recorded, standing, memory or Memory())
    builder.module()
    builder.creations()
    builder.links()
    builder.guests()
    builder.running()
    builder.audits()
    builder.removals()
    return builder.plan()


def scene_of(desired: Desired, state: HostState) -> Scene:
    topology = select.Topology.of(state.links, state.drivers)
    coming = frozenset(creation.name for creation in desired.creations if creation.name not in topology.by_name)
    return Scene(state, topology, desired.policies, coming)


_ORDER: Mapping[type, int] = {
    CreateBridge: 1,
    CreateTap: 1,
    SetMaster: 3,
    SetFeatures: 4,
    SetGuestNic: 5,
    LeaveReplug: 5,
    DeleteLink: 9,
    ReplugGuestNic: 10,
}
_RESTORE_ORDER: Mapping[type, int] = {SetFeatures: 7, SetGuestNic: 8, DeleteLink: 9}


def _position(step: Step) -> int:
    return _RESTORE_ORDER.get(type(step.change), 6) if step.restores else _ORDER.get(type(step.change), 2)


def _deletions(desired: Desired) -> Callable[[str], Deletion]:
    """By policy. A method remembered by its builder would make a ring of the two, and of the host that they have seen:
    two megabytes for a thousand links, until the next collection."""
    known = {name: policy.deletion for name, policy in desired.policies.items()}
    return lambda policy: known.get(policy, Deletion.RESTORE)


class _Builder:
    """Collects the parts of one plan."""

    def __init__(self, desired: Desired, scene: Scene, recorded: Recorded, standing: Standing, memory: Memory) -> None:
        self.desired, self.scene, self.recorded, self.standing = desired, scene, recorded, standing
        self.memory = memory
        self._deletion = _deletions(desired)
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
        self.found = domains.Findings()
        kept = dragged.kept_below((desired, *desired.audits), scene.topology)
        self.frozen = restore.Frozen.of(desired.audits, scene, kept)

    def plan(self) -> Plan:
        return Plan(
            (*self.first, *sorted(self.steps, key=self._place)),
            tuple(self.rows),
            tuple(self.originals),
            tuple(self.forget),
            tuple(self.forget_made),
            tuple(self.gone),
            tuple(self.renamed),
            self.reflexes,
            frozenset(self.unmet),
            tuple(self.skipped),
            self.found.managed or EMPTY,
        )

    def _place(self, step: Step) -> tuple[int, int]:
        """Features of uppers first: what an upper forbids (LRO) its lower does not get back when asked before it."""
        link = self.scene.state.links.get(step.change.link.ifindex) if isinstance(step.change, SetFeatures) else None
        if link is None or not (link.master or link.ifindex in self.scene.topology.stacked):
            return _position(step), 1
        return _position(step), sum(1 for _ in self.scene.topology.above(link))

    # --- the module ---

    def module(self) -> None:
        want, observed = self.desired.module, self.scene.state.module
        if observed is None:
            return
        claims = modules.claims(want, observed) if want is not None else []
        if want is not None:
            steps, rows = modules.diff(want, observed, modules.lost(self.recorded.module, want))
            self._module_steps(steps)
            self.rows += rows
            self.unmet.update(modules.unmet(want, rows))
            self._module_originals(claims)
        wanted = modules.keys(self.recorded.module, claims, want, self.frozen.module)
        stale = {key: entry for key, entry in self.recorded.module.items() if key not in wanted}
        self.forget += [entry.setting for entry in stale.values() if entry.deletion is Deletion.RETAIN]
        returning = {key: entry for key, entry in stale.items() if entry.deletion is Deletion.RESTORE}
        steps, rows, forget = modules.restore(returning, observed, want)
        self._module_steps(steps)
        self.rows += [row for row in rows if row.reason is not Reason.FOREIGN]
        self.skipped += [row for row in rows if row.reason is Reason.FOREIGN]
        self.forget += forget
        self._module_on_its_way(claims)

    def _module_on_its_way(self, claims: list[Entry]) -> None:
        """Between unloading and loading anew somebody may kill us: it is written down that it has to come back."""
        unloads = [step for step in self.first if isinstance(step.change, UnloadModule)]
        loads = any(isinstance(step.change, LoadModule) for step in self.first)
        setting = Setting(modules.NAME, "state")
        if unloads and loads and all(entry.setting != setting for entry in claims):
            entry = Entry(setting, str(ModuleStatus.LOADED), str(ModuleStatus.ABSENT), unloads[0].policy)
            self.originals.append((None, (entry,)))

    def _module_steps(self, steps: list[Step]) -> None:
        for step in steps:
            obstacles = (self._module_obstacle(setting, value) for setting, value in step.settings)
            blocked = next((found for found in obstacles if found), None)
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
        new = _news(entries, self.recorded.module)
        if new:
            self.originals.append((None, new))

    # --- links that have to be there ---

    def creations(self) -> None:
        for creation in self.desired.creations:
            link = self.scene.topology.by_name.get(creation.name)
            steps, rows = creations.diff(creation, link, self.recorded, self.scene)
            self.rows += rows
            setting = Setting(creation.name, "exists")
            blocked = self.standing.obstacle(setting, creation.name, True, link is not None)
            if blocked:
                self.rows += [row for step in steps for row in _blocked(step.rows, blocked)]
                self.unmet.add(setting)
            else:
                self.steps += steps

    # --- links that are there ---

    def links(self) -> None:
        state, quiet = self.scene.state, self.memory.quiet
        for ifindex in quiet.keys() - self.desired.links.keys():
            del quiet[ifindex]
        said = self._said()
        for ifindex, want in self.desired.links.items():
            link = state.links.get(ifindex)
            if link is None:
                continue
            features = state.features.get(ifindex)
            record = self.recorded.links.get(ifindex)
            knows = self.standing.knows(link)
            compared = (want, link, features, record, state.links.get(link.master), knows)
            known = quiet.get(ifindex)
            if known is not None and all(map(_same, known, compared)):
                if known[-1] is not None:
                    self.reflexes[ifindex] = known[-1]  # type: ignore[assignment]
                continue
            quiet.pop(ifindex, None)
            self._link(link, want, features, record, knows)
            before, said = said, self._said()
            if said == before and not knows and _is_memorable(want):
                quiet[ifindex] = (*compared, self.reflexes.get(ifindex))

    def _link(
        self,
        link: Link,
        want: LinkWant,
        features: Features | Unreadable | None,
        record: LinkRecord | None,
        knows: bool,
    ) -> None:
        """Everything about one wanted link; `knows` as Standing.knows says of it."""
        if record is not None and restore.is_other_link(record, link):
            self.gone.append(link.ifindex)
            record = None
        elif record is not None and record.name != link.name:
            self.renamed.append(link)
        if want.attrs or want.overridden:
            self._attrs(link, want, knows)
        wish = None
        if want.features is not None and isinstance(features, Features):
            wish = offloads.enforced(want.features, features)
            self._features(link, want.features, wish, features, knows)
        elif want.features is not None and features is not None:
            self.rows += offloads.diff(link, want.features, features).rows
        self._originals(link, want, record, features, wish)

    def _said(self) -> tuple[int, ...]:
        """What there is to do and to say so far, as lengths. Spelled out, it costs a third of a loop over the parts."""
        return (
            len(self.steps),
            len(self.rows),
            len(self.originals),
            len(self.forget),
            len(self.gone),
            len(self.renamed),
            len(self.unmet),
        )

    def _attrs(self, link: Link, want: LinkWant, knows: bool) -> None:
        values: dict[str, Row] = {}
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
                values[attr.key] = row
        for lost in want.overridden:
            self.rows.append(_lost(link, lost.want, lost.winner, lost.winning))
        if values:
            self._attr_steps(link, want, values)

    def _attr_obstacle(
        self, link: Link, attr: Want, current: Value | Unreadable | None, knows: bool
    ) -> Obstacle | None:
        if isinstance(current, Unreadable):
            return Reason.UNREADABLE, f"{attr.key} of {link.name} cannot be read: {current.reason}"
        found = links.obstacle(self.scene, link, attr, current)
        if found or not knows:
            return found
        return self.standing.obstacle(Setting(link.ifindex, attr.key), link.name, attr.value, current)

    def _attr_steps(self, link: Link, want: LinkWant, rows: Mapping[str, Row]) -> None:
        """One change for all keys of a group that have the same owner."""
        by_policy: dict[str, dict[str, Value | None]] = {}
        for attr in want.attrs:
            if attr.key in rows:
                by_policy.setdefault(attr.policy, {})[attr.key] = attr.value
        for policy, owned in by_policy.items():
            for change, keys in links.changes(link, owned, self.scene.topology.by_name):
                risky = any(map(links.can_cut_off, keys))
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

    def _features(
        self, link: Link, table: FeatureTable, wish: offloads.Enforced, features: Features, knows: bool
    ) -> None:
        self._reflex(link, wish, features, knows)
        stands = self._stands(link) if knows else None
        found = offloads.difference(link, table, wish, features, stands, lambda ask: self._waits(link, ask))
        if found is offloads.NOTHING:
            return
        self.steps += found.steps
        self.rows += found.rows
        self.unmet.update(found.unmet)

    def _reflex(self, link: Link, wish: offloads.Enforced, features: Features, knows: bool) -> None:
        """What the fast loop may repair; nothing of it while the link is held."""
        mask = offloads.reflex(wish, link)
        if knows:
            stands = self._stands(link)
            for bit in wish.bits:
                if stands(bit, bit.ask.wanted, bool(features.wanted & bit.mask)):
                    mask &= ~bit.mask
        self.reflexes[link.ifindex] = (mask, wish.value & mask)

    def _stands(self, link: Link) -> offloads.Obstacles:
        standing, ifindex, name = self.standing, link.ifindex, link.name
        return lambda bit, wanted, current: standing.obstacle(Setting(ifindex, bit.key), name, wanted, current)

    def _waits(self, link: Link, ask: FeatureAsk) -> Obstacle | None:
        """A feature that may reset the link waits for the guests when its policy says so."""
        return links.disruption(self.scene, link, Want("feature", ask.wanted, ask.policy, ask.path))

    # --- the ledger ---

    def _originals(
        self,
        link: Link,
        want: LinkWant,
        record: LinkRecord | None,
        features: Features | Unreadable | None,
        wish: offloads.Enforced | None,
    ) -> None:
        """Entries that the ledger lacks, or holds for another owner or wish; and those that nobody wants any more."""
        known: Mapping[str, Entry] = record.entries if record else EMPTY
        if wish is not None and not want.attrs and offloads.are_recorded(wish, known, self._deletion):
            return
        entries = self._attr_originals(link, want, known) if want.attrs else []
        if wish is not None and isinstance(features, Features):
            entries += offloads.entries(wish, link, features, self._deletion)
        self._note(link, entries, known)
        if record is not None:
            wanted = {entry.setting.key for entry in entries}
            wanted |= dragged.keys(wanted)
            if not known.keys() <= wanted:
                self._restore(link, record, wanted)

    def _attr_originals(self, link: Link, want: LinkWant, known: Mapping[str, Entry]) -> list[Entry]:
        """Entries of the link's attributes, and of what changes along with them; those of other links are noted."""
        entries = [*self._attr_entries(link, want, known)]
        for other, entry in dragged.entries(self.scene, link, want, self._deletion):
            if other is link:
                entries.append(entry)
            else:
                self._note(other, [entry], self._known(other))
        return entries

    def _note(self, link: Link, entries: Iterable[Entry], known: Mapping[str, Entry]) -> None:
        news = _news(entries, known)
        if news:
            self.originals.append((link, news))

    def _known(self, link: Link) -> Mapping[str, Entry]:
        record = self.recorded.links.get(link.ifindex)
        return EMPTY if record is None or restore.is_other_link(record, link) else record.entries

    def _attr_entries(self, link: Link, want: LinkWant, known: Mapping[str, Entry]) -> Iterable[Entry]:
        for attr in want.attrs:
            current = links.observed_value(self.scene.state, link, attr.key)
            if attr.key == "mtu" and link.bridge is not None and attr.key not in known:
                current = dragged.mtu_before_us(self.scene, self.recorded, link)
            there = current is not None or attr.key in ("master", "owner", "group")
            if there and not isinstance(current, Unreadable):
                setting = Setting(link.ifindex, attr.key)
                wanted = self.standing.answer(setting, attr.value, current)
                yield Entry(setting, current, wanted, attr.policy, self._deletion(attr.policy))

    # --- guests ---

    def guests(self) -> None:
        """The NICs in libvirt's domains; what is put back of them comes with the removals."""
        policies = self.desired.policies.values()
        self.found = domains.find(policies, self.scene.state, self.standing, self._deletion, self.memory.guests)
        replugs.find(self.found, self.desired.policies, self.scene.state, self.standing)
        news = _guest_news(self.found.entries, self.recorded)
        if news:
            self.originals.append((None, news))

    def running(self) -> None:
        """What a QEMU without libvirt was started with is reported, never changed."""
        self.rows += running.rows(self.desired.policies.values(), self.scene.state)

    def _take_guests(self, left: Mapping[str, list[Entry]]) -> None:
        domains.give_back(self.found, self.scene.state, left, self.standing)
        self.steps += self.found.steps
        self.rows += self.found.rows
        self.forget += self.found.forget
        self.skipped += self.found.skipped
        self.unmet |= self.found.unmet

    # --- what is no longer wanted ---

    def audits(self) -> None:
        for audit in self.desired.audits:
            state = replace(self.scene.state, guests=None, running=())  # what it would do to guests has been said
            imagined = make_plan(replace(audit, audits=()), state, Recorded())
            self.rows += imagined.blocked
            for row in imagined.pending:
                text = f"Audit: would {row.message}"
                self.rows.append(replace(row, reason=Reason.AUDIT_ONLY, message=text))

    def removals(self) -> None:
        left = domains.stale(self.found, self.scene.state, self.recorded)
        leaving = {target: entries for target, entries in left.items() if target not in self.found.managed}
        found = restore.removals(self.desired, self.scene, self.recorded, self.frozen, leaving)
        self.gone += found.gone
        self.forget_made += found.forget_made
        braked = [] if self.standing.allow_mass_removal else restore.brake(found, self.desired, self.recorded)
        self._take_guests({target: left[target] for target in left.keys() - leaving.keys()} if braked else left)
        if braked:
            self.rows += braked
            return
        for link, record in found.released:
            self._restore(link, record, set())
        steps, rows = restore.deletions(found, self.scene, self.recorded)
        self.rows += rows
        for step in steps:
            self._put_back(step.rows[0].subject.removeprefix("link/"), step)

    def _restore(self, link: Link, record: LinkRecord, wanted: set[str]) -> None:
        staying = frozenset(wanted) | self.frozen.keys(link.ifindex) | dragged.waiting(self.scene, self.recorded, link)
        found = restore.link(self.scene, link, record, staying)
        self.forget += found.forget
        self.rows += found.rows
        self.skipped += found.skipped
        for step in found.steps:
            self._put_back(link.name, step)

    def _put_back(self, name: str, step: Step) -> None:
        """A hold or a rollback stops a restore; contention and refusals do not."""
        texts = (self.standing.rolled_back.get((name, setting.key)) for setting, _ in step.settings)
        rolled_back = next(((Reason.ROLLED_BACK, text) for text in texts if text), None)
        blocked = self.standing.hold(name) or rolled_back
        if blocked:
            self.rows += _blocked(step.rows, blocked)
        else:
            self.steps.append(step)


def _same(one: object, other: object) -> bool:
    return one is other


def _is_memorable(want: LinkWant) -> bool:
    """Whether what is compared for this link lies in the link and its features alone."""
    return not any(attr.key.startswith(("rings.", "channels.", "rxFrames")) for attr in want.attrs)


def _sentence(attr: Want, current: Value | None) -> str:
    if attr.key == "master":
        return f"make it a port of {attr.value}"
    was = f" (is {_word(current)})" if current is not None else ""
    name = attr.key if attr.path == "tap.create" else attr.path.partition(".")[2]
    return f"set {name} to {_word(attr.value)}{was}"


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


def _news(entries: Iterable[Entry], known: Mapping[str, Entry]) -> tuple[Entry, ...]:
    """What the ledger lacks or holds for another wish; with the value of ours that the new wish has to replace."""
    if not known:
        return tuple(entries)
    return tuple(
        [
            replace(entry, earlier=entry.original) if held is not None and held.is_ours(entry.original) else entry
            for entry in entries
            if _is_news(entry, held := known.get(entry.setting.key))
        ]
    )


def _guest_news(entries: Iterable[Entry], recorded: Recorded) -> tuple[Entry, ...]:
    """As `_news`, of settings that have their guest's NIC in their name."""
    known = recorded.guests
    return tuple(
        replace(entry, earlier=entry.original) if held is not None and held.is_ours(entry.original) else entry
        for entry in entries
        if _is_news(entry, held := known.get(entry.setting))
    )


def _is_news(entry: Entry, known: Entry | None) -> bool:
    return known is None or (known.wanted, known.policy, known.deletion) != (entry.wanted, entry.policy, entry.deletion)


__all__ = ["NOTHING_STANDS", "Memory", "Plan", "make_plan", "scene_of"]
