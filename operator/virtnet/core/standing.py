"""What is known from before that stands in the way of a change: holds, fights, rollbacks, refusals, a full ledger.

It is a value: the engine makes a new one for each pass, and `plan` asks it about each setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from virtnet.core.model import Link, Reason, Setting, Value, nothing
from virtnet.values import frozen

Obstacle = tuple[Reason, str]


@frozen
class Refusal:
    """The driver answered `answered` to `wanted`: asking again would only reset the link.

    `by_error`: it was an error that said so, a missing right perhaps. Whoever is started anew tries that once more.
    """

    wanted: Value | None
    answered: Value | None
    reason: Reason
    message: str
    by_error: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """`held` says until when the whole node is held, `held_links` the same by link name; None: not held.

    `rolled_back` is by (link name, setting key): names, because it outlives a restart. `stays`: whoever carries a plan
    out is still there when a guest lets go of a NIC late; a command that is run once is not.
    """

    held: str | None = None
    held_links: Mapping[str, str] = field(default_factory=nothing)
    contended: Mapping[Setting, str] = field(default_factory=nothing)
    rolled_back: Mapping[tuple[str, str], str] = field(default_factory=nothing)
    refused: Mapping[Setting, Refusal] = field(default_factory=nothing)
    unrecorded: Mapping[Setting, str] = field(default_factory=nothing)
    allow_mass_removal: bool = False
    stays: bool = True
    touched: frozenset[int | str] = field(init=False, default=frozenset())
    """Targets about which anything at all is known, so that all others are asked nothing."""

    def __post_init__(self) -> None:
        targets = {setting.target for known in (self.contended, self.refused, self.unrecorded) for setting in known}
        object.__setattr__(self, "touched", frozenset(targets | {name for name, _ in self.rolled_back}))

    def knows(self, link: Link) -> bool:
        """Whether `obstacle` can have an answer for any setting of this link."""
        return (
            self.held is not None
            or link.ifindex in self.touched
            or link.name in self.touched
            or link.name in self.held_links
        )

    def hold(self, name: str) -> Obstacle | None:
        """Whether the node or the link of this name is held."""
        until = self.held if self.held is not None else self.held_links.get(name)
        return None if until is None else (Reason.HELD, f"held {until}: reported, not changed")

    def answer(self, setting: Setting, wanted: Value, current: Value | None) -> Value:
        """What a setting is when it is as wanted: the driver's own value where it rounds the wanted one."""
        refusal = self.refused.get(setting)
        rounded = refusal and current is not None and (refusal.wanted, refusal.answered) == (wanted, current)
        return current if rounded and current is not None else wanted

    def obstacle(self, setting: Setting, name: str, wanted: Value | None, current: Value | None) -> Obstacle | None:
        """Why `setting` of the link (or module) `name` must not be changed now."""
        hold = self.hold(name)
        if hold:
            return hold
        if (name, setting.key) in self.rolled_back:
            return Reason.ROLLED_BACK, self.rolled_back[name, setting.key]
        if setting in self.contended:
            return Reason.CONTENDED, self.contended[setting]
        if setting in self.unrecorded:
            return Reason.FAILED, self.unrecorded[setting]
        refusal = self.refused.get(setting)
        if refusal and refusal.wanted == wanted and refusal.answered == current:
            return refusal.reason, refusal.message
        return None
