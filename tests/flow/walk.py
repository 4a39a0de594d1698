"""A scenario is text: the lines of a host, an empty line, then one act a line. Running it again is reading it again.

    policy p: {bridge: {name: br0, ports: [eth0]}}       add or edit a policy
    remove p                                             take it away
    flip eth0 tso off        mtu eth0 1400               others change links behind the agent's back
    rename tap0 tap9         delete tap0      unplug eth0
    enslave tap0 br0         enslave tap0 none
    bridge br0 stp=1         rings eth0 512   carries eth0 address 192.0.2.1/24
    hold tap0                let-go tap0      add vm7 tap master=br0
    load                     unload           remove-file /etc/modprobe.d/x.conf
    unreadable eth0 features                  readable eth0 features
    restart                  release                     the agent's own life
    held                     unheld

An act that this host, as it stands, cannot see done (no such link, refused by the kernel) is none.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.flow.agent import Agent
from tests.flow.fake import FakeHost
from tests.flow.policies import read_line
from virtnet import errors, reconcile
from virtnet.core.model import Policy, Process

QEMU = Process(100, "qemu", "vm1")

OWN = frozenset({"policy", "remove", "restart", "release", "held", "unheld"})
"""Acts of the administrator towards the agent; all others are done behind its back."""


class World:
    """A host, its agent, the policies in force, and what others did to the host."""

    def __init__(self, lines: str, directory: Path | None = None) -> None:
        self.host = FakeHost(lines)
        self.host.twice = True
        self.agent = Agent(self.host, directory)
        self.policies: dict[str, Policy] = {}
        self.lines = lines
        self.seen: dict[int, set[str]] = self._words()
        """By ifindex: every word that the link had before us, or that somebody else gave it."""

    def act(self, line: str) -> None:
        """Do what one line says."""
        word, _, rest = line.partition(" ")
        if word in OWN:
            getattr(self, f"_{word}")(rest)
            return
        before = self._words()
        try:
            _FOREIGN[word](self.host, *rest.split(" ", 1)) if rest else _FOREIGN[word](self.host)
        except errors.HostError:
            return
        for ifindex, words in self._words().items():
            self.seen.setdefault(ifindex, set()).update(words - before.get(ifindex, set()))

    def step(self, line: str) -> reconcile.Outcome:
        """One act and one pass."""
        self.act(line)
        return self.run()

    def run(self) -> reconcile.Outcome:
        return self.agent.run(tuple(self.policies.values()))

    def steps_left(self) -> list[str]:
        """What a fresh look would still change."""
        look = self.agent.look(tuple(self.policies.values()))
        return [f"{step.change}" for step in look.plan.steps]

    def end(self) -> reconcile.Outcome:
        """Everybody lets go, every policy goes, and what may be put back is."""
        self.calm()
        self.agent.held = None
        self.policies.clear()
        self.agent.allow_mass_removal = True
        return self.run()

    def calm(self) -> None:
        """Nobody holds anything any more, and everything can be read."""
        for device in list(self.host.machine.devices.values()):
            device.unreadable.clear()
            if device.link.tun is not None:
                self.act(f"let-go {device.link.name}")
        self.host.machine.module.users = ()

    def _words(self) -> dict[int, set[str]]:
        devices = self.host.machine.devices.values()
        return {device.link.ifindex: plain_words(self.host, device.link.name) for device in devices}

    # --- the administrator and the agent ---

    def _policy(self, rest: str) -> None:
        policy = read_line(rest)
        self.policies[policy.name] = policy

    def _remove(self, name: str) -> None:
        self.policies.pop(name, None)

    def _restart(self, _: str) -> None:
        self.agent.restart()

    def _release(self, _: str) -> None:
        self.agent.allow_mass_removal = True
        self.agent.run(())
        self.agent.allow_mass_removal = False

    def _held(self, _: str) -> None:
        self.agent.held = "until it is lifted"

    def _unheld(self, _: str) -> None:
        self.agent.held = None


def plain_words(host: FakeHost, name: str) -> set[str]:
    """The words of a link; of a feature only whether it is wanted, because the rest follows from that."""
    return {"+" + word[1:] if word[0] == "~" else word for word in host.words(name)}


# --- behind the agent's back -------------------------------------------------------------------------------


def _on(link: Callable[..., None]) -> Callable[..., None]:
    """The act of a function that needs its first link to be there."""

    def act(host: FakeHost, name: str, rest: str = "") -> None:
        if host.machine.find(name) is not None:
            link(host, name, *rest.split())

    return act


def _flip(host: FakeHost, link: str, feature: str, state: str) -> None:
    host.foreign.set_feature(link, feature, state == "on")


def _rename(host: FakeHost, link: str, name: str) -> None:
    if host.machine.find(name) is None:
        host.foreign.rename(link, name)


def _enslave(host: FakeHost, link: str, master: str) -> None:
    if master == "none" or host.machine.find(master) is not None:
        host.foreign.enslave(link, None if master == "none" else master)


def _bridge(host: FakeHost, link: str, option: str) -> None:
    name, _, value = option.partition("=")
    host.foreign.set_bridge(link, **{name: int(value)})


def _hold(host: FakeHost, link: str) -> None:
    if host.machine.named(link).link.is_tap:
        host.foreign.hold(link, QEMU, vhost=host.machine.module.status == "Loaded")


def _let_go(host: FakeHost, link: str) -> None:
    if host.machine.named(link).link.tun is not None:
        host.foreign.release(link)


def _add(host: FakeHost, name: str, rest: str) -> None:
    words = rest.split()
    masters = [word.removeprefix("master=") for word in words if word.startswith("master=")]
    if host.machine.find(name) is None and all(host.machine.find(master) for master in masters):
        host.foreign.add(f"{name} {' '.join(word for word in words if not word.startswith('master='))}")
        for master in masters:
            host.foreign.enslave(name, master)


_FOREIGN: dict[str, Callable[..., None]] = {
    "flip": _on(_flip),
    "mtu": _on(lambda host, link, mtu: host.foreign.set_mtu(link, int(mtu))),
    "rings": _on(lambda host, link, size: host.foreign.set_rings(link, rx=int(size))),
    "rename": _on(_rename),
    "delete": _on(lambda host, link: host.foreign.delete(link)),
    "unplug": _on(lambda host, link: host.foreign.unplug(link)),
    "enslave": _on(_enslave),
    "bridge": _on(_bridge),
    "carries": _on(lambda host, link, *what: host.foreign.set_carries(link, " ".join(what))),
    "hold": _on(_hold),
    "let-go": _on(_let_go),
    "unreadable": _on(lambda host, link, surface: host.foreign.set_readable(link, surface, "as the test says")),
    "readable": _on(lambda host, link, surface: host.foreign.set_readable(link, surface)),
    "add": _add,
    "load": lambda host: host.foreign.load_module(),
    "unload": lambda host: host.foreign.unload_module(),
    "remove-file": lambda host, path: host.foreign.remove_file(path),
}
