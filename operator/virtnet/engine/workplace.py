"""One host as a command finds it: the machine, the state directory and the ledger, opened together and closed together.

Commands that only look need no root: what they may not read they say in `notices`, and look at the host alone.
"""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virtnet import errors, reconcile
from virtnet.core import domains, foresight
from virtnet.core.model import HostState, Interest, Node, Policy, Recorded
from virtnet.core.standing import Standing
from virtnet.engine import heap, holds
from virtnet.engine.probing import NetworkProber
from virtnet.engine.transactions import Transactions
from virtnet.host import LinuxHost, libvirt, records, remembrance
from virtnet.host import state as states
from virtnet.host.ledger import Ledger
from virtnet.host.namespaces import Namespace
from virtnet.host.state import StateDir

if TYPE_CHECKING:
    from virtnet.host.guests import Guests

STATUS = "state.json"
EVERYTHING = Interest(
    drivers=True,
    rings=True,
    channels=True,
    rx_frames=True,
    addresses=True,
    module=True,
    users=True,
    fingerprint=True,
    running=True,
)
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def default_state_dir(netns: str | None) -> Path:
    """Where state lives when nobody says: below the default directory for a named network namespace."""
    return states.DEFAULT if netns is None else states.DEFAULT / "netns" / netns


def this_node(name: str | None, labels: Mapping[str, str]) -> Node:
    """The node that policies are resolved for without Kubernetes, with the labels that a kubelet would set."""
    hostname = name or socket.gethostname()
    machine = platform.machine()
    known = {
        "kubernetes.io/hostname": hostname,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": _ARCHITECTURES.get(machine, machine),
    }
    return Node(hostname, {**known, **labels})


def seen_host(netns: str | None) -> LinuxHost:
    """The machine after a look at its links and their features; to be closed. Raises what opening and looking raise."""
    host = LinuxHost(_namespace(netns))
    try:
        host.observe(Interest())
    except BaseException:
        host.close()
        raise
    return host


def _namespace(netns: str | None) -> Namespace:
    return Namespace.named(netns) if netns else Namespace(None)


@dataclass
class Workplace:
    """What a command works with. `state` and `ledger` are None where they may not be read."""

    host: LinuxHost
    namespace: Namespace
    node: Node
    state: StateDir | None
    ledger: Ledger | None
    notices: list[str] = field(default_factory=list)
    api_server: str | None = None
    """HOST:PORT that `safety.probes.apiServer` asks; None where there is no API server."""

    @classmethod
    @contextmanager
    def open(
        cls,
        *,
        netns: str | None = None,
        state_dir: Path | None = None,
        node_name: str | None = None,
        node_labels: Mapping[str, str] | None = None,
        api_server: str | None = None,
        libvirt_uri: str | None = None,
        host: LinuxHost | None = None,
        write: bool,
    ) -> Iterator[Workplace]:
        """Open everything; with `write` the state directory is locked (`StateBusy` names who holds it).

        A `host` of this namespace that is open already stays open. Without `libvirt_uri` the system's libvirt takes
        part where it listens; it is of the machine, so not in a named network namespace.
        """
        heap.settle()
        path = state_dir or default_state_dir(netns)
        namespace = host.namespace if host else _namespace(netns)
        node = this_node(node_name, node_labels or {})
        with ExitStack() as stack:
            state = StateDir(path, read_only=not write)
            if write:
                stack.enter_context(state.lock())
            if host is None:
                host = LinuxHost(namespace)
                stack.callback(host.close)
            uri = libvirt_uri or (libvirt.default_uri() if netns is None else None)
            if uri is not None:
                host.guests = stack.enter_context(_guests(uri, state))
            place = cls(host, namespace, node, state, None, api_server=api_server)
            place._open_ledger(stack, write)
            yield place

    def _open_ledger(self, stack: ExitStack, write: bool) -> None:
        assert self.state is not None
        if not write and not _readable(self.state.path):
            self.notices.append(f"no access to {self.state.path}: looking at the host alone (no restores, no holds)")
            self.state = None
            return
        self.ledger = Ledger(self.state, self.host.identity())
        stack.callback(self.ledger.close)
        self.notices += self.state.problems

    # --- looking ---

    @property
    def recorded(self) -> Recorded:
        return self.ledger.recorded if self.ledger else Recorded()

    def look(self, policies: tuple[Policy, ...], *, allow_mass_removal: bool = False) -> reconcile.Look:
        """What the policies would change now, also of links that have to be made first."""
        standing = self._standing(policies, allow_mass_removal)
        self._say_without_libvirt(policies)
        found = reconcile.look(self.host, self.recorded, reconcile.Wish(policies, self.node, standing))
        plan = foresight.foresee(found.plan, found.desired, found.state, policies, self.node, self.recorded, standing)
        return replace(found, plan=plan)

    def _say_without_libvirt(self, policies: tuple[Policy, ...]) -> None:
        asking = [policy.name for policy in policies if domains.asks(policy)]
        if asking and self.host.guests is None and libvirt.withheld() is None:
            text = f"what {', '.join(asking)} asks of libvirt's guests reaches none (--libvirt-uri names another)"
            self.notices.append(f"no libvirt listens here: {text}")

    def inspect(self) -> HostState:
        return self.host.observe(EVERYTHING)

    def status(self) -> Mapping[str, Any] | None:
        """The node state that the last pass of a running agent wrote."""
        found = self.state.read_json(STATUS) if self.state else None
        return found if isinstance(found, dict) else None

    def cached_policies(self) -> Mapping[str, records.CachedPolicy]:
        """The policies in force here, by source: those of a cluster, where this host is in one."""
        if self.state is None:
            return {}
        admitted = remembrance.read_admitted(self.state)
        if admitted is None:
            return records.read_policies(self.state)
        return {name: records.CachedPolicy(each.text) for name, each in admitted.items() if each.text}

    def _standing(self, policies: tuple[Policy, ...], allow_mass_removal: bool) -> Standing:
        if self.state is None:
            return Standing(allow_mass_removal=allow_mass_removal)
        node, by_link = holds.sentences(holds.active(self.state))
        return Standing(
            held=node,
            held_links=by_link,
            rolled_back=self.transactions().standing(policies),
            allow_mass_removal=allow_mass_removal or any(map(holds.allows_mass_removal, policies)),
        )

    # --- changing ---

    def transactions(self) -> Transactions:
        assert self.state is not None
        assert self.ledger is not None
        prober = NetworkProber(self.namespace, self.api_server)
        return Transactions(self.host, self.ledger, self.state, prober)

    async def apply(self, policies: tuple[Policy, ...], *, allow_mass_removal: bool = False) -> reconcile.Outcome:
        """One pass for exactly these policies. What went back before is tried again."""
        assert self.ledger is not None
        transactions = self.transactions()
        interrupted = transactions.recover()
        if interrupted:
            self.notices.append(interrupted)
        transactions.forgive()
        if self.host.guests is not None and self.host.guests.replugs:
            self.host.guests.forgive()
            self.host.guests.look()  # waits until a NIC that is out is in again
        self._say_without_libvirt(policies)
        standing = replace(self._standing(policies, allow_mass_removal), stays=False)
        wish = reconcile.Wish(policies, self.node, standing)
        return await reconcile.run(self.host, self.ledger, wish, transact=transactions)

    async def release(self) -> reconcile.Outcome:
        """Put back everything that the ledger holds; exempt from the brake."""
        return await self.apply((), allow_mass_removal=True)

    # --- holds ---

    def hold(self, link: str | None, seconds: float) -> str:
        """Leave a link, or the whole node, alone for a time; returns how its end is said."""
        end = time.time() + seconds
        records.add_hold(self._shared(), link or records.EVERYTHING, end, time.time())
        return holds.until(end)

    def unhold(self, link: str | None) -> None:
        records.remove_hold(self._shared(), link or records.EVERYTHING, time.time())

    def holds(self) -> Mapping[str, str]:
        """Until when whom: link name or "*"."""
        if self.state is None:
            return {}
        return {name: holds.until(end) for name, end in holds.active(self.state).items()}

    def _shared(self) -> StateDir:
        """The state directory for a short write beside a running agent."""
        if self.state is None:
            raise errors.UsageError("no access to the state directory: holds need it; call this as root")
        state = StateDir(self.state.path)
        state.prepare()
        return state


@contextmanager
def _guests(uri: str, state: StateDir) -> Iterator[Guests]:
    """Nothing is asked of libvirt before somebody wants something of a guest, or a NIC of one is on its way."""
    from virtnet.host.guests import Guests

    guests = Guests(uri, state=state if _readable(state.path) else None)
    guests.recover()
    try:
        yield guests
    finally:
        guests.close()


def _readable(path: Path) -> bool:
    """Whether a state directory, if there is one, may be read; one that does not exist holds nothing."""
    for parent in (path, *path.parents):
        try:
            os.stat(parent)
        except FileNotFoundError:
            continue
        except OSError:
            return False
        return parent != path or os.access(parent, os.R_OK | os.X_OK)
    return True
