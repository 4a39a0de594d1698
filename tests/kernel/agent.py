"""`virtnet run` as a process in a playground, with policies and state of its own; it never looks into the product."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.kernel.playground import Playground

ROOT = Path(__file__).parents[2]
SECONDS = 40.0
"""Generous: other work goes on while the tests run. Nobody waits that long for what comes true."""
LISTEN = "127.0.0.1:9571"
SGRO = """
import ctypes, fcntl, socket, struct, sys
value = ctypes.create_string_buffer(struct.pack("=II", 0x2C, int(sys.argv[2])))
request = struct.pack("16sP", sys.argv[1].encode(), ctypes.addressof(value)) + bytes(16)
fcntl.ioctl(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0x8946, request)
"""
"""SIOCETHTOOL with ETHTOOL_SGRO (linux/ethtool.h): how a program that knows no netlink switches GRO."""
FETCH = """
import sys, urllib.error, urllib.request
try:
    with urllib.request.urlopen(sys.argv[1], timeout=20) as answer:
        print(answer.status, answer.read().decode(), end="")
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode(), end="")
"""

Answer = TypeVar("Answer")


def eventually(question: Callable[[], Answer], seconds: float = SECONDS) -> Answer:
    """Wait until the answer is true, and return it."""
    end = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.05)
    return answer


def manifest(name: str, spec: str, generation: int = 1) -> str:
    """A policy as a user writes it; `spec` is the YAML below `spec:`."""
    head = "apiVersion: virtnet.dev/v1alpha1\nkind: VirtioNetworkPolicy\n"
    body = textwrap.indent(textwrap.dedent(spec).strip() or "{}", "  ")
    return f"{head}metadata: {{name: {name}, generation: {generation}}}\nspec:\n{body}\n"


def replace(path: Path, text: str) -> None:
    """Write a file as careful programs do: whole, under another name, then renamed."""
    new = path.with_name(f".{path.name}.tmp")
    new.write_text(text)
    new.rename(path)


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str


class Agent:
    """The command on one playground. `start` returns when the first pass is over; `end` leaves no process behind."""

    def __init__(self, playground: Playground, place: Path) -> None:
        self.playground = playground
        self.policies, self.state, self.log_file = place / "policies", place / "state", place / "agent.log"
        self.policies.mkdir(mode=0o755)
        self.log_file.touch()
        self.child: subprocess.Popen[str] | None = None

    # --- policies ---

    def wish(self, name: str, spec: str, generation: int = 1) -> None:
        """Put a policy into the directory, in the place of the one of that name."""
        replace(self.policies / f"{name}.yaml", manifest(name, spec, generation))

    def wish_and_wait(self, name: str, spec: str, generation: int = 1) -> None:
        """The same, and wait until the agent reports this generation."""
        self.wish(name, spec, generation)
        eventually(lambda: self.generations().get(name) == generation)

    def unwish(self, name: str) -> None:
        """Take a policy out of the directory, and wait until the agent reports no such policy."""
        (self.policies / f"{name}.yaml").unlink()
        eventually(lambda: name not in self.generations())

    # --- the process ---

    def start(self, *flags: str, listen: str = "", by_name: bool = False, before: str = "") -> None:
        """Start it and wait for the report of its first pass."""
        (self.state / "state.json").unlink(missing_ok=True)
        self.spawn(*flags, listen=listen, by_name=by_name, before=before)
        eventually(lambda: self.status() or self.has_ended())
        assert not self.has_ended(), self.log()

    def spawn(self, *flags: str, listen: str = "", by_name: bool = False, before: str = "") -> None:
        """Start it and wait for nothing. `by_name`: outside, with --netns; `before` is what a shell does first."""
        words = [*self._words("run", by_name), "--policies", str(self.policies), "--listen", listen]
        shell = f'exec 2>>"$0"; {before or ":"}; exec "$@"'
        words = ["sh", "-ec", shell, str(self.log_file), *words, "--log-level", "debug", *flags]
        self.child = subprocess.Popen(words, stdin=subprocess.DEVNULL, text=True)

    def signal(self, number: signal.Signals) -> int:
        """Send a signal and wait for the end; its exit code."""
        assert self.child is not None
        self.child.send_signal(number)
        return self.child.wait(SECONDS)

    def stop(self) -> None:
        """End it as a service manager does; what it says on its way out must be that all went well."""
        assert self.signal(signal.SIGTERM) == 0, self.log()

    def kill(self) -> None:
        """End it in the middle of whatever it does."""
        self.signal(signal.SIGKILL)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Meanwhile it sees and does nothing."""
        assert self.child is not None
        self.child.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.child.send_signal(signal.SIGCONT)

    def has_ended(self) -> bool:
        return self.child is not None and self.child.poll() is not None

    def end(self) -> None:
        """For fixtures: leave nothing running. An agent that lives must still stop as it should."""
        if self.child is not None and not self.has_ended():
            self.stop()

    def command(self, name: str, *arguments: str, seconds: float = SECONDS) -> Done:
        """Another command beside it, on the same state."""
        words = [*self._words(name), *arguments]
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False)
        return Done(done.returncode, done.stdout, done.stderr)

    @contextmanager
    def running(self, name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Another command, while it runs; nothing of it outlives the block."""
        words, pipe = [*self._words(name), *arguments], subprocess.PIPE
        with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True) as child:
            try:
                yield child
            finally:
                child.kill()

    def _words(self, name: str, by_name: bool = False) -> list[str]:
        netns = self.playground.netns
        inside = ["nsenter", f"--net=/run/netns/{netns}", "--"] if netns and not by_name else []
        there = ["--netns", netns] if netns and by_name else []
        product = ["env", f"PYTHONPATH={ROOT / 'operator'}", sys.executable, "-m", "virtnet"]
        return [*inside, *product, name, "--state-dir", str(self.state), *there]

    # --- what it says ---

    def log(self) -> str:
        return self.log_file.read_text()

    def passes(self) -> int:
        """How many full passes are over, over all starts."""
        return self.log().count('logger=virtnet.engine.engine message="pass (')

    def wait_for_passes(self, more: int = 1) -> None:
        """Wait for the end of this many further passes."""
        already = self.passes()
        eventually(lambda: self.passes() >= already + more)

    def wait_until_calm(self, seconds: float = 0.5) -> None:
        """Wait until no pass ended for so long: what its own changes and the kernel's set going is over."""
        passes, since = self.passes(), time.monotonic()
        while time.monotonic() - since < seconds:
            time.sleep(0.05)
            if passes != self.passes():
                passes, since = self.passes(), time.monotonic()

    def status(self) -> dict[str, Any]:
        """STATE_DIR/state.json; empty before there is one."""
        try:
            found: dict[str, Any] = json.loads((self.state / "state.json").read_text())
        except FileNotFoundError:
            return {}
        return found

    def generations(self) -> dict[str, int]:
        """The generation in force of each policy."""
        return {policy["name"]: policy["generation"] for policy in self.status().get("policies", ())}

    def drifts(self, name: str) -> int:
        """How often somebody else changed what a policy wants."""
        return next(int(policy["drifts"]) for policy in self.status()["policies"] if policy["name"] == name)

    def reasons(self) -> dict[tuple[str, str], str]:
        """(link or other subject, setting) -> reason, of everything that is not as asked."""
        rows = self.status().get("settings", ())
        return {(row["subject"].removeprefix("link/"), row["setting"]): row.get("reason", "") for row in rows}

    def messages(self, reason: str) -> str:
        """The sentences of all rows with this reason."""
        return "\n".join(row["message"] for row in self.status()["settings"] if row.get("reason") == reason)

    def condition(self, kind: str) -> tuple[str, str, str]:
        """(status, reason, message)."""
        found = next(entry for entry in self.status()["conditions"] if entry["type"] == kind)
        return found["status"], found["reason"], found["message"]

    def fetch(self, path: str) -> tuple[int, str]:
        """(code, text) of a page of its web site, asked from within the playground."""
        code, _, text = self.playground.python(FETCH, f"http://{LISTEN}{path}").partition(" ")
        return int(code), text


@contextmanager
def agent_on(playground: Playground, place: Path) -> Iterator[Agent]:
    """An agent that is not started yet, and is ended with the block."""
    made = Agent(playground, place)
    try:
        yield made
    finally:
        made.end()


def lay_lan(playground: Playground) -> None:
    """br0 with the ports up0 (a veth whose other end is far0) and tap0, all up."""
    playground.batch(
        "link add br0 type bridge",
        "link set br0 up",
        "link add up0 type veth peer name far0",
        "link set far0 up",
        "link set up0 master br0 up",
        "tuntap add tap0 mode tap vnet_hdr",
        "link set tap0 master br0 up",
    )


# --- the host, as the oracles tell it ----------------------------------------------------------------------


def gro(playground: Playground, link: str) -> bool:
    return playground.ethtool(link)["rx-gro"]["active"]


def tso(playground: Playground, link: str) -> bool:
    return playground.ethtool(link)["tx-tcp-segmentation"]["active"]


def master(playground: Playground, link: str) -> str | None:
    """The bridge that a link is a port of."""
    return playground.links()[link].get("master")


def option(playground: Playground, bridge: str, name: str) -> Any:
    """An option of a bridge, in iproute2's words and units."""
    return playground.links()[bridge]["linkinfo"]["info_data"][name]


def snapshot(playground: Playground) -> dict[str, Any]:
    """Everything that policies can change of every link that is there, by name."""
    return {name: (_settings(link), playground.ethtool(name)) for name, link in playground.links().items()}


def _settings(link: dict[str, Any]) -> dict[str, Any]:
    """Of a bridge without its timers, which run."""
    own = link.get("linkinfo", {}).get("info_data", {})
    own = {key: value for key, value in own.items() if not key.endswith(("_timer", "topology_change"))}
    return {key: link.get(key) for key in ("ifindex", "mtu", "txqlen", "master")} | own


def switch_gro_by_ioctl(playground: Playground, link: str, on: bool) -> None:
    playground.python(SGRO, link, str(int(on)))


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def is_root() -> bool:
    """Whether we are root of the machine, not of a user namespace."""
    return os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
