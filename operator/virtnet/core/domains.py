"""What differs between the NICs in libvirt's domains and what the policies want of them, and what is put back.

definition as wanted, guest stopped or started so    nothing to say
definition otherwise                                 one step for the NIC: its settings are written together
definition as wanted, guest started otherwise        RestartRequired, until its next start; where the policy says
                                                     guest.update: Replug, that is for replugs.py to decide
no definition (a transient domain)                   Unsupported: there is nothing to write into

libvirt changes none of these settings while a guest runs (qemuDomainChangeNet() in src/qemu/qemu_hotplug.c), so nothing
here is ever done live.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping

from virtnet.core import domain_xml, nics, qemu_args
from virtnet.core.model import (
    Deletion,
    Entry,
    Guest,
    GuestNic,
    GuestUpdate,
    HostState,
    Mode,
    Policy,
    Reason,
    Recorded,
    Row,
    SetGuestNic,
    Setting,
    Step,
    Unavailable,
    Unreadable,
    Value,
    VhostMode,
    Withheld,
)
from virtnet.core.nics import Nic, Wanted, Wish
from virtnet.core.standing import Obstacle, Standing
from virtnet.values import frozen

Silence = Unreadable | Unavailable | Withheld
"""Why nothing is known of guests."""

SILENCES: Mapping[type[Silence], Reason] = {
    Unreadable: Reason.UNREADABLE,
    Unavailable: Reason.UNSUPPORTED,
    Withheld: Reason.REFUSED,
}

USUAL: Mapping[str, Value] = {
    **{path: about.usual for path, about in qemu_args.PROPERTIES.items()},
    f"{nics.NIC}queues": 1,
    domain_xml.SNDBUF: 0,
}
"""What a guest has of a setting that its running definition does not write."""

TRANSIENT = "the domain is transient: it has no definition that could be changed; start it with the NIC as asked"
RESTART = (
    "the definition is as asked, the running guest was started otherwise: it takes effect at the guest's next start"
)


@frozen
class Managed:
    """A NIC of which the policies want something."""

    guest: Guest
    nic: GuestNic
    identity: Nic
    wanted: Wanted

    @property
    def target(self) -> str:
        return target_of(self.guest, self.nic)

    def asked(self) -> Iterator[tuple[Setting, Wish]]:
        """What can be written into a definition, in libvirt's order."""
        for path in domain_xml.SETTINGS:
            if path in self.wanted.wishes:
                yield Setting(self.target, path), self.wanted.wishes[path]


def target_of(guest: Guest, nic: GuestNic) -> str:
    """What names a NIC in settings and in the ledger; by its place, too, where another has the same address."""
    alone = sum(other.mac == nic.mac for other in guest.nics) == 1
    return f"{guest.uuid}/{nic.mac}" if alone else f"{guest.uuid}/{nic.mac} {nic.address}"


class Findings:
    """What there is to do and to say of guests' NICs.

    `frozen` are settings that an Audit policy wants, `asking` the policies that want something of guests at all.
    `waiting` are, by NIC, the wishes that the definition fulfils and the running guest does not, and of which the
    policy says that they may be brought to it by a re-plug.
    """

    def __init__(self, asking: tuple[str, ...] = ()) -> None:
        self.asking = asking
        self.managed: dict[str, Managed] = {}
        self.steps: list[Step] = []
        self.rows: list[Row] = []
        self.entries: list[Entry] = []
        self.forget: list[Setting] = []
        self.skipped: list[Row] = []
        self.unmet: set[Setting] = set()
        self.frozen: set[Setting] = set()
        self.waiting: dict[str, tuple[Wish, ...]] = {}

    def take(self, other: Findings) -> None:
        """Add what was found of one guest; what is put back is found later, and of all of them."""
        self.managed.update(other.managed)
        self.steps += other.steps
        self.rows += other.rows
        self.entries += other.entries
        self.unmet |= other.unmet
        self.frozen |= other.frozen
        self.waiting.update(other.waiting)


class Memory:
    """What was found of each guest for the same policies, with the very object it was found for."""

    def __init__(self) -> None:
        self.policies: tuple[Policy, ...] = ()
        self.guests: dict[str, tuple[Guest, Findings]] = {}


def asks(policy: Policy) -> bool:
    """Whether a policy asks something of libvirt's guests; those of KubeVirt are another's."""
    match = policy.guest.match if policy.guest else None
    return nics.asks(policy) and not (match is not None and match.virtual_machines)


def find(
    policies: Iterable[Policy],
    state: HostState,
    standing: Standing,
    deletion: Callable[[str], Deletion],
    memory: Memory | None = None,
) -> Findings:
    """Compare every domain with what the policies, winners first, want of its NICs."""
    asking = tuple(policy for policy in policies if asks(policy))
    found = Findings(tuple(policy.name for policy in asking))
    memory = memory or Memory()
    if memory.policies != asking:
        memory.policies = asking
        memory.guests.clear()
    found.rows += [row for row in map(nics.selects_nothing, asking) if row]
    if isinstance(state.guests, Silence):
        found.rows += (_unread(policy, state.guests) for policy in asking)
    elif state.guests is not None and asking:
        for gone in memory.guests.keys() - state.guests.keys():
            del memory.guests[gone]
        for guest in state.guests.values():
            found.take(_of(guest, asking, state, standing, deletion, memory))
    return found


def _of(
    guest: Guest,
    policies: tuple[Policy, ...],
    state: HostState,
    standing: Standing,
    deletion: Callable[[str], Deletion],
    memory: Memory,
) -> Findings:
    """What there is to do and say of one guest; nothing is compared anew for an object that was compared before."""
    known = memory.guests.get(guest.uuid)
    stands = standing.held is not None or not standing.touched.isdisjoint(target_of(guest, nic) for nic in guest.nics)
    if known is not None and known[0] is guest and not stands:
        return known[1]
    found = Findings()
    for nic in guest.nics:
        _nic(found, guest, nic, policies, state, standing, deletion)
    if not stands and all(nic.bridge is not None for nic in guest.nics):
        memory.guests[guest.uuid] = (guest, found)
    return found


def _unread(policy: Policy, why: Silence) -> Row:
    setting = "guest.nic" if policy.guest and policy.guest.nic else nics.MODE
    return Row(f"policy/{policy.name}", setting, None, None, SILENCES[type(why)], why.reason, policy.name)


def _nic(
    found: Findings,
    guest: Guest,
    nic: GuestNic,
    policies: tuple[Policy, ...],
    state: HostState,
    standing: Standing,
    deletion: Callable[[str], Deletion],
) -> None:
    identity = identify(guest, nic, state)
    wanted = nics.wanted(policies, identity)
    unsuited = nic.unsuited if domain_xml.MODEL in wanted.wishes else nic.model_unsuited
    if unsuited:
        found.rows += domain_xml.named_all_the_same(identity, policies, unsuited)
        return
    found.rows += wanted.rows
    _audits(found, guest, nic, identity, policies)
    if wanted.wishes:
        managed = Managed(guest, nic, identity, wanted)
        found.managed[managed.target] = managed
        found.rows += _doubts(managed)
        _compare(found, managed, standing, deletion)
        _restarts(found, managed, {policy.name for policy in policies if allows_replug(policy)})


def identify(guest: Guest, nic: GuestNic, state: HostState) -> Nic:
    """The NIC as policies name it; the bridge of a tap that libvirt did not put there is the host's to say."""
    bridge, unknown = nic.bridge, nic.unknown
    tap = state.by_name(nic.tap) if bridge is None and nic.tap else None
    if tap is not None:
        master = state.links.get(tap.master)
        bridge, unknown = (master.name if master and master.bridge else ""), ""
    return Nic(guest.name, nic.mac, bridge, unknown, guest.vcpus)


def _compare(found: Findings, managed: Managed, standing: Standing, deletion: Callable[[str], Deletion]) -> None:
    """The definition first; the running guest only where the definition is as wanted."""
    configured, differing = managed.nic.configured, []
    for setting, wish in managed.asked():
        if configured is None:
            found.rows += _without_definition(managed, wish)
            continue
        current = configured.get(wish.path)
        found.entries.append(Entry(setting, current, wish.value, wish.policy, deletion(wish.policy)))
        if current == wish.value:
            continue
        blocked = standing.obstacle(setting, managed.guest.name, wish.value, current)
        if blocked:
            found.rows.append(_row(managed, wish, current, *blocked))
            found.unmet.add(setting)
        else:
            differing.append(wish)
    if differing:
        found.steps.append(_step(managed, differing))


def _without_definition(managed: Managed, wish: Wish) -> Iterator[Row]:
    if _differs_running(managed.nic, wish):
        yield running_row(managed, wish, Reason.UNSUPPORTED, TRANSIENT)


def _restarts(found: Findings, managed: Managed, replugging: Container[str]) -> None:
    """What is configured and not in the running guest: it waits for its restart, or for a re-plug."""
    late = [wish for _, wish in managed.asked() if _is_late(managed.nic, wish)]
    found.rows += (
        running_row(managed, wish, Reason.RESTART_REQUIRED, RESTART) for wish in late if wish.policy not in replugging
    )
    waiting = tuple(wish for wish in late if wish.policy in replugging)
    if waiting:
        found.waiting[managed.target] = waiting


def _is_late(nic: GuestNic, wish: Wish) -> bool:
    """Whether the definition has it and the running guest has not."""
    return (nic.configured or {}).get(wish.path) == wish.value and _differs_running(nic, wish)


def allows_replug(policy: Policy) -> bool:
    """Whether a policy wants NICs of running guests re-plugged."""
    return policy.guest is not None and policy.guest.update is GuestUpdate.REPLUG


def runs_as_wanted(managed: Managed) -> bool:
    """Whether the guest runs with all that is wanted of this NIC."""
    return managed.nic.running is not None and not any(
        _differs_running(managed.nic, wish) for _, wish in managed.asked()
    )


def _differs_running(nic: GuestNic, wish: Wish) -> bool:
    """Whether the guest runs with something else. What it runs without has QEMU's own value."""
    return nic.running is not None and running(nic, wish.path) != wish.value


def running(nic: GuestNic, path: str) -> Value | None:
    """What a running guest has of a setting."""
    return runs_with(nic.running or {}, path)


def runs_with(settings: Mapping[str, Value], path: str) -> Value | None:
    """The same, of the settings that its running definition writes."""
    return settings.get(path, USUAL.get(path))


def _step(managed: Managed, wishes: list[Wish]) -> Step:
    guest, nic = managed.guest, managed.nic
    configured = nic.configured or {}
    change = SetGuestNic(
        guest.name,
        guest.uuid,
        nic.mac,
        nic.address,
        tuple((wish.path, wish.value) for wish in wishes),
        tuple((wish.path, configured.get(wish.path)) for wish in wishes),
    )
    settings = tuple((Setting(managed.target, wish.path), wish.value) for wish in wishes)
    rows = tuple(
        _row(managed, wish, configured.get(wish.path), None, _sentence(wish, configured.get(wish.path)))
        for wish in wishes
    )
    return Step(change, settings, rows, wishes[0].policy)


def _sentence(wish: Wish, current: Value | None) -> str:
    was = "not written" if current is None else _word(current)
    return f"write {wish.path.removeprefix(nics.NIC)} {_word(wish.value)} into the definition (is {was})"


def replug_sentence(wish: Wish, actual: Value | None) -> str:
    """What a re-plug is for, as a plan says it."""
    name = wish.path.removeprefix(nics.NIC)
    return f"re-plug the NIC of the running guest, with {name} {_word(wish.value)} (runs with {_word(actual)})"


def _word(value: Value | None) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "nothing" if value is None else str(value)


def _row(managed: Managed, wish: Wish, actual: Value | None, reason: Reason | None, message: str) -> Row:
    return Row(managed.identity.subject, wish.path, wish.value, actual, reason, message, wish.policy)


def running_row(managed: Managed, wish: Wish, reason: Reason | None, message: str) -> Row:
    """What is told of one wish, beside what the guest runs with."""
    return _row(managed, wish, running(managed.nic, wish.path), reason, message)


def _doubts(managed: Managed) -> Iterator[Row]:
    """What is or will be written and yet has not the effect that was asked."""
    wishes = managed.wanted.wishes
    values: dict[str, Value | None] = {**(managed.nic.configured or {})}
    values |= {path: wish.value for path, wish in wishes.items()}
    for path, needed in nics.contradictions(values):
        if path in wishes:
            yield nics.needs_feature(wishes[path], needed, managed.identity)
    mode, poll = wishes.get(nics.MODE), wishes.get(nics.POLL)
    if mode is not None and mode.value == VhostMode.REQUIRED and managed.guest.emulated:
        text = "the domain is emulated (type qemu): libvirt opens no vhost for it, and does not say so"
        yield _row(managed, mode, (managed.nic.configured or {}).get(mode.path), Reason.UNSUPPORTED, text)
    if poll is not None:
        text = "libvirt cannot set it; only a QEMU without libvirt has it"
        yield _row(managed, poll, None, Reason.UNSUPPORTED, text)


def _audits(found: Findings, guest: Guest, nic: GuestNic, identity: Nic, policies: tuple[Policy, ...]) -> None:
    """What each Audit policy would change, as if it had won; what it wants is neither repaired nor restored."""
    for policy in policies:
        if policy.mode is not Mode.AUDIT:
            continue
        wanted = nics.wanted([policy], identity, mode=Mode.AUDIT)
        found.rows += wanted.rows
        managed = Managed(guest, nic, identity, wanted)
        for setting, wish in managed.asked():
            found.frozen.add(setting)
            current = (nic.configured or {}).get(wish.path)
            if nic.configured is not None and current != wish.value:
                text = f"Audit: would {_sentence(wish, current)}"
                found.rows.append(_row(managed, wish, current, Reason.AUDIT_ONLY, text))
            elif allows_replug(policy) and _is_late(nic, wish):
                text = f"Audit: would {replug_sentence(wish, running(nic, wish.path))}"
                found.rows.append(running_row(managed, wish, Reason.AUDIT_ONLY, text))


# --- what is no longer wanted ------------------------------------------------------------------------------


def stale(found: Findings, state: HostState, recorded: Recorded) -> Mapping[str, list[Entry]]:
    """The recorded settings that no policy wants any more, by NIC; what an Audit policy wants stays as it is.

    While libvirt cannot be asked, nobody knows which NICs a policy selects: all that it owns is taken for wanted.
    """
    wanted = {entry.setting for entry in found.entries} | found.frozen
    kept = () if isinstance(state.guests, Mapping) else found.asking
    left: dict[str, list[Entry]] = {}
    for setting, entry in recorded.guests.items():
        if setting not in wanted and entry.policy not in kept:
            left.setdefault(str(setting.target), []).append(entry)
    return left


def give_back(found: Findings, state: HostState, left: Mapping[str, list[Entry]], standing: Standing) -> None:
    """Plan what was there before us. A guest or NIC that is gone is simply done; who cannot be asked is left alone."""
    if state.guests is None:
        return
    if isinstance(state.guests, Silence):
        found.rows += _waiting(left, state.guests)
        return
    there = {target_of(guest, nic): (guest, nic) for guest in state.guests.values() for nic in guest.nics}
    for target, entries in left.items():
        if target not in there:
            found.forget += [entry.setting for entry in entries]
            continue
        guest, nic = there[target]
        if nic.configured is None:  # running on without a definition: nothing of ours is left
            found.forget += [entry.setting for entry in entries]
        else:
            _give_back(found, guest, nic, entries, standing)


def _waiting(left: Mapping[str, list[Entry]], why: Silence) -> Iterator[Row]:
    owners = dict.fromkeys(entry.policy for entries in left.values() for entry in entries)
    for owner in owners:
        text = f"what was there before cannot be put back: {why.reason}"
        yield Row(f"policy/{owner}", "deletionPolicy", None, None, Reason.UNREADABLE, text, owner)


def _give_back(found: Findings, guest: Guest, nic: GuestNic, entries: list[Entry], standing: Standing) -> None:
    subject, returning = Nic(guest.name, nic.mac).subject, []
    hold: Obstacle | None = standing.hold(guest.name)
    for entry in entries:
        current = (nic.configured or {}).get(entry.setting.key)
        if entry.deletion is Deletion.RETAIN or current == entry.original:
            found.forget.append(entry.setting)
        elif not entry.is_ours(current):
            text = f"left as it is: neither what {entry.policy} set nor what was there before"
            found.skipped.append(_returned(subject, entry, current, Reason.FOREIGN, text))
            found.forget.append(entry.setting)
        elif hold:
            found.rows.append(_returned(subject, entry, current, *hold))
        else:
            returning.append(entry)
    if returning:
        found.steps.append(_return_step(guest, nic, subject, returning))


def _return_step(guest: Guest, nic: GuestNic, subject: str, entries: list[Entry]) -> Step:
    configured = nic.configured or {}
    change = SetGuestNic(
        guest.name,
        guest.uuid,
        nic.mac,
        nic.address,
        tuple((entry.setting.key, entry.original) for entry in entries),
        tuple((entry.setting.key, configured.get(entry.setting.key)) for entry in entries),
    )
    rows = tuple(
        _returned(subject, entry, entry.wanted, None, f"put back {_word(entry.original)}") for entry in entries
    )
    settings = tuple((entry.setting, entry.original) for entry in entries)
    return Step(change, settings, rows, entries[0].policy, restores=True)


def _returned(subject: str, entry: Entry, current: Value | None, reason: Reason | None, message: str) -> Row:
    return Row(subject, entry.setting.key, entry.original, current, reason, message, entry.policy)


# --- for whoever asks about one setting --------------------------------------------------------------------


def value(state: HostState, setting: Setting) -> Value | None:
    """What a definition writes for a setting; None when it writes nothing, or nobody can tell."""
    if isinstance(state.guests, Mapping):
        guest = state.guests.get(str(setting.target).partition("/")[0])
        for nic in guest.nics if guest else ():
            if guest is not None and target_of(guest, nic) == setting.target:
                return (nic.configured or {}).get(setting.key)
    return None
