"""What the policies want of one guest's NIC: which of them select it, whose wish wins, and who lost to whom.

It looks at a NIC's identity only, never at what it is like: the same answer serves libvirt and a bare QEMU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from virtnet.core import resolve, select
from virtnet.core.model import Mode, Policy, Reason, Row, Value, VhostMode
from virtnet.values import frozen

MODE = "vhost.mode"
POLL = "vhost.pollMicroseconds"
NIC = "guest.nic."
VCPUS = "vcpus"
MOST_QUEUES = 256
"""Queue pairs of a tap: MAX_TAP_QUEUES in drivers/net/tun.c."""

VIRTIO_MODELS = frozenset({"virtio", "virtio-transitional", "virtio-non-transitional"})

NEEDS: Mapping[str, tuple[str, ...]] = {
    f"{NIC}{side}.{name}": tuple(f"{NIC}{side}.{needed}" for needed in alternatives)
    for side in ("host", "guest")
    for name, alternatives in (("tso4", ("csum",)), ("tso6", ("csum",)), ("ufo", ("csum",)), ("ecn", ("tso4", "tso6")))
}
"""An offload that a guest's driver takes only together with one of others (virtio 1.2, 5.1.3.1)."""


@frozen
class Nic:
    """A guest's NIC as a policy may name it.

    `mac` is in lower case, "" when none is written. `bridge` is "" on no bridge, and None where that cannot be known
    from here: `unknown` says why. `vcpus`: the guest's virtual CPUs, None when that is not known.
    """

    guest: str
    mac: str = ""
    bridge: str | None = ""
    unknown: str = ""
    vcpus: int | None = None

    @property
    def subject(self) -> str:
        return f"guest/{self.guest or '-'}/{self.mac or '-'}"


@frozen
class Wish:
    """One setting that a policy asks of a NIC: `path` as typed ("guest.nic.host.tso4"), queues as a number."""

    path: str
    value: Value
    policy: str


@frozen
class Wanted:
    """The wishes that win, by their path, and a row for each that cannot be had."""

    wishes: Mapping[str, Wish]
    rows: tuple[Row, ...] = ()


def selects(policy: Policy, nic: Nic) -> bool | None:
    """Whether this NIC is meant; None when that depends on its bridge, and its bridge is not known."""
    match = policy.guest.match if policy.guest else None
    if match is None:
        return policy.bridge is not None and _is_on(policy.bridge.name, nic)
    if match.virtual_machines:
        return False
    if match.domains and not select.globs(match.domains).match(nic.guest):
        return False
    if match.macs and nic.mac not in match.macs:
        return False
    return match.bridge is None or _is_on(match.bridge, nic)


def _is_on(bridge: str, nic: Nic) -> bool | None:
    return None if nic.bridge is None else nic.bridge == bridge


def asks(policy: Policy) -> bool:
    """Whether a policy asks anything of guests' NICs."""
    return bool(policy.guest and policy.guest.nic) or next(_vhost(policy), None) is not None


def selects_nothing(policy: Policy) -> Row | None:
    """A row for a policy whose guest section can mean no NIC at all."""
    guest = policy.guest
    if guest is None or not guest.nic or guest.match is not None or policy.bridge is not None:
        return None
    text = "no match and no bridge.name: guest selects no NIC; add guest.match or bridge.name"
    return Row(f"policy/{policy.name}", "guest.match", None, None, Reason.MISSING, text, policy.name)


Choice = Callable[[Policy, Nic], bool | None]


def wanted(policies: Iterable[Policy], nic: Nic, *, mode: Mode = Mode.ENFORCE, choose: Choice = selects) -> Wanted:
    """What the policies of this mode want of one NIC; who has the higher priority, is older or comes first wins.

    A wish that contradicts what a winner wants (tso without csum) loses like one for the same setting. A policy that
    may or may not select the NIC takes no part, and is told so.
    """
    wishes: dict[str, Wish] = {}
    rows: list[Row] = []
    for policy in sorted(policies, key=resolve.precedence):
        if policy.mode is not mode or not asks(policy):
            continue
        chosen = choose(policy, nic)
        if chosen is None:
            text = f"cannot tell whether it is meant: {nic.unknown}"
            rows.append(Row(nic.subject, "guest.match", None, None, Reason.UNREADABLE, text, policy.name))
        if chosen:
            rows += _take(policy, nic, wishes)
    return Wanted(wishes, tuple(rows))


def _take(policy: Policy, nic: Nic, wishes: dict[str, Wish]) -> Iterator[Row]:
    """Add the wishes of one policy to those of its betters; rows for those that lose."""
    for path, asked in (*_vhost(policy), *_asked(policy)):
        value = _queues(policy, nic) if asked == VCPUS else asked
        if value is None:
            text = "the number of its virtual CPUs is not known here: write a number"
            yield Row(nic.subject, path, VCPUS, None, Reason.UNREADABLE, text, policy.name)
            continue
        wish = Wish(path, value, policy.name)
        lost = _lost(wish, wishes)
        if lost is None:
            wishes.setdefault(path, wish)
        else:
            winner, text = lost
            yield Row(nic.subject, path, value, winner.value, Reason.OVERRIDDEN_BY, text, policy.name)


def _vhost(policy: Policy) -> Iterator[tuple[str, Value]]:
    if policy.vhost is None:
        return
    if policy.vhost.mode not in {None, VhostMode.AUTO}:
        yield MODE, str(policy.vhost.mode)
    if policy.vhost.poll_microseconds is not None:
        yield POLL, policy.vhost.poll_microseconds


def _asked(policy: Policy) -> Iterator[tuple[str, Value]]:
    """maxQueues bounds queues and is no setting of its own."""
    for path, value in policy.guest.nic if policy.guest else ():
        if path != "maxQueues":
            yield NIC + path, value


def _queues(policy: Policy, nic: Nic) -> int | None:
    """What `queues: vcpus` comes to."""
    if nic.vcpus is None:
        return None
    limits = [value for path, value in policy.guest.nic if path == "maxQueues"] if policy.guest else []
    return min(nic.vcpus, MOST_QUEUES, *(limit for limit in limits if isinstance(limit, int)))


def _lost(wish: Wish, wishes: Mapping[str, Wish]) -> tuple[Wish, str] | None:
    """The wish that stands against this one, and how; None when it can be had."""
    same = wishes.get(wish.path)
    if same is not None:
        says = f"policy {same.policy} wants {_shown(same.value)}"
        return None if same.value == wish.value else (same, says)
    together = {**{path: other.value for path, other in wishes.items()}, wish.path: wish.value}
    for path, needed in contradictions(together):
        if wish.path == path:
            winner = wishes[needed[0]]
            return winner, f"it needs {_names(needed)}, which policy {winner.policy} wants false"
        if wish.path in needed:
            winner = wishes[path]
            return winner, f"policy {winner.policy} wants {path}, which needs it"
    return None


def contradictions(values: Mapping[str, Value | None]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each setting that is on while all that it could use of others is off, with those others."""
    for path, needed in NEEDS.items():
        if values.get(path) is True and all(values.get(other) is False for other in needed):
            yield path, needed


def _names(paths: Iterable[str]) -> str:
    return " or ".join(path.rsplit(".", 1)[-1] for path in paths)


def needs_feature(wish: Wish, needed: Iterable[str], nic: Nic) -> Row:
    """The row for an offload that is asked and that something nobody asked for keeps from working."""
    text = f"it needs {_names(needed)}, which is off: ask for that too"
    return Row(nic.subject, wish.path, wish.value, None, Reason.NEEDS_FEATURE, text, wish.policy)


def _shown(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
