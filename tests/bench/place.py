"""Where a benchmark works: links in this process's own network namespace, the agent on them, and other processes.

Every process that is started here is ended here, and dies with this one whatever ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOREIGN = ROOT / "scripts" / "foreign.py"
SECONDS = 60.0
DIE_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")
ALL_DIE_WITH_US = (*DIE_WITH_US, "unshare", "--pid", "--fork", "--kill-child")
"""For a shell and what it starts: they are alone in a process namespace, which ends with its first process."""
BRIDGES = 10
SITE = "http://127.0.0.1:9571"

POLICY = """\
apiVersion: virtnet.dev/v1alpha1
kind: VirtioNetworkPolicy
metadata: {{name: bench}}
spec:
  onContention: {on_contention}
  uplink:
    match: {{names: ["v*"]}}
    offloads: {{tso: false, gso: false}}
  tap:
    match: {{names: ["t*"]}}
    offloads: {{gro: false, gso: false}}
"""
"""Two features on every link, all of them on in a new veth or tap."""


def policy(on_contention: str = "Insist") -> str:
    return POLICY.format(on_contention=on_contention)


def environment() -> dict[str, str]:
    """In which every Python process finds this tree, installed or not, and its bytecode where it may be written.

    Without bytecode a process would compile everything at each start, which no installed program does.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    paths = os.pathsep.join((str(ROOT / "operator"), str(ROOT)))
    return {**kept, "PYTHONPATH": paths, "PYTHONPYCACHEPREFIX": os.environ.get("PYTHONPYCACHEPREFIX", "")}


def run(*words: str, text: str | None = None) -> str:
    """A command's output; it must succeed within a minute or two."""
    done = subprocess.run(
        words, input=text, capture_output=True, text=True, timeout=2 * SECONDS, check=False, env=environment()
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)[:200]}: {done.stderr or done.stdout}")
    return done.stdout


def timed(what: Callable[[], object]) -> float:
    """How many seconds a call takes."""
    started = time.perf_counter()
    what()
    return time.perf_counter() - started


def wait_until(true: Callable[[], bool], what: str, *, every: float = 0.005, seconds: float = SECONDS) -> None:
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            raise RuntimeError(f"waited {seconds:.0f} s for {what}")
        time.sleep(every)


# --- links -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Links:
    """Names of the links that the policy means; `lo`, bridges and the far end of an odd veth are there besides."""

    veths: tuple[str, ...]
    taps: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.veths, *self.taps)

    @property
    def targets(self) -> list[str]:
        """LINK:FEATURE for each, of a feature that the policy keeps off."""
        veths = (f"{name}:tx-tcp-segmentation" for name in self.veths)
        return [*veths, *(f"{name}:rx-gro" for name in self.taps)]

    def commands(self) -> list[str]:
        """What a user would type for the two features of the policy: one `ethtool -K` for each link."""
        veths = (f"ethtool -K {name} tso off gso off" for name in self.veths)
        return [*veths, *(f"ethtool -K {name} gro off gso off" for name in self.taps)]


def make_links(count: int) -> Links:
    """Half of them ends of veth pairs, half taps, the taps spread over bridges; all up. One link is a veth."""
    veths = tuple(f"v{number}" for number in range(count - count // 2))
    taps = tuple(f"t{number}" for number in range(count // 2))
    far_ends = veths if len(veths) % 2 == 0 else (*veths, "far0")
    bridges = [f"br{number}" for number in range(min(BRIDGES, len(taps)))]
    lines = [f"link add {bridge} type bridge" for bridge in bridges]
    lines += [f"link add {one} type veth peer name {other}" for one, other in _pairs(far_ends)]
    for number, tap in enumerate(taps):
        lines += [f"tuntap add {tap} mode tap", f"link set {tap} master {bridges[number % len(bridges)]}"]
    lines += [f"link set {link} up" for link in ("lo", *bridges, *far_ends, *taps)]
    run("ip", "-batch", "-", text="\n".join(lines) + "\n")
    return Links(veths, taps)


def remove_links() -> None:
    """Everything but `lo`."""
    names = [entry["ifname"] for entry in json.loads(run("ip", "-j", "link")) if entry["ifname"] != "lo"]
    run("ip", "-force", "-batch", "-", text="\n".join(f"link set {name} group 1" for name in names) + "\n")
    run("ip", "link", "del", "group", "1")


def _pairs(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    return zip(names[::2], names[1::2], strict=True)


def wrong_links(links: Links, sample: int = 8) -> list[str]:
    """Of some links, those that ethtool does not find as the policy asks. ethtool is the oracle, never our reader."""
    step = max(1, len(links.names) // sample)
    found = json.loads(run("ethtool", "--json", "-k", "*"))
    by_name = {entry["ifname"]: entry for entry in found}
    return [name for name in links.names[::step] if not _is_as_asked(name in links.taps, by_name[name])]


def _is_as_asked(is_tap: bool, features: Mapping[str, Any]) -> bool:
    names = ["generic-segmentation-offload", "generic-receive-offload" if is_tap else "tcp-segmentation-offload"]
    return not any(features[name]["active"] for name in names)


# --- processes ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process(words: Sequence[str], **streams: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that runs while the block does."""
    with subprocess.Popen(words, text=True, env=environment(), **streams) as child:
        try:
            yield child
        finally:
            child.kill()


@contextlib.contextmanager
def listener(words: Sequence[str]) -> Iterator[None]:
    """A program that says on its first line that it is ready, and runs while the block does."""
    with process(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        if not child.stdout.readline():
            raise RuntimeError(f"{' '.join(words)[:200]} ended at once")
        yield


def shell(script: str) -> list[str]:
    """The words that run a shell script, and end all that it started when they are ended."""
    return [*ALL_DIE_WITH_US, "sh", "-c", script]


def foreign(*words: str) -> list[dict[str, Any]]:
    """What scripts/foreign.py, a process that knows nothing of virtnet, did and saw."""
    found = run(*DIE_WITH_US, sys.executable, str(FOREIGN), *words)
    return [json.loads(line) for line in found.splitlines()]


@dataclass(frozen=True, slots=True)
class Agent:
    """A running `virtnet run`, as others see it."""

    pid: int
    state: Path
    log: Path

    def conditions(self) -> dict[str, str]:
        """The conditions of the node state that it wrote last, by type; empty before there are any."""
        found = self.status()
        return {entry["type"]: entry["status"] for entry in found.get("conditions", ())}

    def status(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.state / "state.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def reasons(self) -> set[str]:
        """Why settings are not simply as asked."""
        return {entry["reason"] for entry in self.status().get("settings", ())}

    def is_ready(self) -> bool:
        return bool(self.status().get("policies")) and self.conditions().get("Ready") == "True"

    def cpu_seconds(self) -> float:
        """Of all its threads since its start, in nanosecond steps: clock_getcpuclockid(3) of another process."""
        return time.clock_gettime(~self.pid << 3 | 2)

    def memory(self) -> Memory:
        return memory_of(self.pid)

    def count(self, what: str) -> int:
        """How many entries one of its directories in /proc has: `task` (threads) or `fd`."""
        return len(os.listdir(f"/proc/{self.pid}/{what}"))

    def is_healthy(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(SITE + "/healthz", timeout=SECONDS) as answer:
            return bool(answer.status == 200)
        return False

    def metrics(self) -> dict[str, float]:
        """The sum of each of its metrics over all labels."""
        with urllib.request.urlopen(SITE + "/metrics", timeout=SECONDS) as answer:
            return sums(answer.read().decode())


@dataclass(frozen=True, slots=True)
class Memory:
    """In MiB, from /proc/PID/smaps_rollup; `proportional` shares out pages that other processes have, too."""

    resident: float
    proportional: float


def memory_of(pid: int) -> Memory:
    rows = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    kibibytes = {row[0]: int(row[1]) for row in rows}
    return Memory(kibibytes["Rss:"] / 1024, kibibytes["Pss:"] / 1024)


def sums(exposition: str) -> dict[str, float]:
    """Metric name -> sum over its labels, from the text format."""
    found: dict[str, float] = {}
    for line in exposition.splitlines():
        if line and not line.startswith("#"):
            name, value = line.rpartition(" ")[::2]
            bare = name.partition("{")[0]
            found[bare] = found.get(bare, 0.0) + float(value)
    return found


def agent_words(place: Path, *options: str) -> list[str]:
    """The command line of an agent that keeps everything below `place`."""
    words = [*DIE_WITH_US, sys.executable, "-m", "virtnet", "run", "--policies", str(place / "policies")]
    return [*words, "--state-dir", str(place / "state"), *options]


@contextlib.contextmanager
def agent(place: Path, text: str, *options: str) -> Iterator[Agent]:
    """`virtnet run` on a policy; `place` is an empty directory for it."""
    with starting_agent(agent_words(place, *options), place, text) as found:
        wait_until(found.is_ready, "the policy to be in force")
        wait_until(found.is_healthy, "the web site, which comes after the first pass")
        yield found


@contextlib.contextmanager
def starting_agent(words: Sequence[str], place: Path, text: str) -> Iterator[Agent]:
    """An agent that may not have done anything yet; what it logs is shown when the block fails."""
    (place / "policies").mkdir(parents=True)
    (place / "policies" / "bench.yaml").write_text(text)
    log = place / "agent.log"
    with log.open("w") as sink, process(words, stderr=sink) as child:
        try:
            yield Agent(child.pid, place / "state", log)
        except Exception:
            sys.stderr.write(log.read_text()[-4000:])
            raise
        child.terminate()
        if child.wait(10):
            raise RuntimeError(f"virtnet run ended with {child.returncode}: {log.read_text()[-4000:]}")
