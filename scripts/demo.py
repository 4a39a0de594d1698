"""The whole story in a terminal: a host, a policy, drift injected and repaired, the policy removed, the originals back.

Everything happens in a network namespace of its own, as root or, through a user namespace, as anybody; nothing of this
machine is changed. The agent is the real `virtnet run`; the drift comes from another process (scripts/foreign.py) and
from `ethtool -K`; the oracle is `ethtool`.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

HERE = Path(__file__).resolve().parent
INSIDE = "VIRTNET_DEMO_INSIDE"
FLIPS, PAUSE = 300, 0.02
TAPS = ("vm0-net", "vm1-net", "vm2-net")
TARGETS = ("uplink0:tx-tcp-segmentation", "vm0-net:rx-gro", "vm1-net:rx-gro", "br0:tx-tcp6-segmentation")
SHOWN = {
    "tso": "tx-tcp-segmentation",
    "gro": "generic-receive-offload",
    "gso": "generic-segmentation-offload",
}
"""In ethtool's own words."""
BUCKETS = (0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10)
POLICY = """\
apiVersion: virtnet.dev/v1alpha1
kind: VirtioNetworkPolicy
metadata:
  name: demo
spec:
  onContention: Insist   # hundreds of foreign changes: go on all the same
  bridge:
    name: br0
    create: true
    ports: [uplink0]
    stp: false
    offloads: {tso: false}
  uplink:
    match: {names: [uplink0]}
    offloads: {tso: false, gro: true}
  tap:
    create:
      - name: vm0-net
      - {name: vm1-net, multiQueue: true}
      - name: vm2-net
    offloads: {gro: false}
    txQueueLength: 500
"""

console = Console()


def main() -> int:
    if INSIDE not in os.environ:
        return enter()
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "uplink0", "type", "veth", "peer", "name", "wire0")
    for link in ("uplink0", "wire0"):
        run("ip", "link", "set", link, "up")
    with tempfile.TemporaryDirectory(prefix="virtnet-demo-") as place:
        return story(Path(place))


def enter() -> int:
    """The same program again, in namespaces of its own."""
    unshare = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    os.environ[INSIDE] = "1"
    os.execvp(unshare[0], [*unshare, sys.executable, __file__])


def story(place: Path) -> int:
    policies = place / "policies"
    policies.mkdir()
    console.rule("[bold]1. A host: one uplink, and nothing else")
    before = features("uplink0")
    console.print(table(["uplink0"]))
    console.rule("[bold]2. A policy")
    console.print(Syntax(POLICY, "yaml", background_color="default"))
    (policies / "demo.yaml").write_text(POLICY)
    with agent(policies, place / "state"):
        started = time.perf_counter()
        wait_until(lambda: status(place / "state").get("Ready") == "True", "the policy to be in force")
        console.rule(
            f"[bold]3. virtnet run: in force {time.perf_counter() - started:.2f} s after the start of the process"
        )
        console.print(table(["uplink0", "br0", *TAPS]))
        console.rule(f"[bold]4. Another process changes it back, {FLIPS} times")
        latencies, lost = drift()
        by_hand()
        console.rule("[bold]5. The policy is removed")
        (policies / "demo.yaml").unlink()
        wait_until(lambda: not exists("br0"), "the originals to be back")
    after = features("uplink0")
    console.print(table(["uplink0"]))
    same = before == after and not any(map(exists, ("br0", *TAPS)))
    console.print(
        "[bold green]Every original is back; the bridge and the taps that virtnet made are gone."
        if same
        else "[bold red]The host is not as it was."
    )
    return 0 if same and not lost and latencies else 1


# --- the host ----------------------------------------------------------------------------------------------


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def exists(link: str) -> bool:
    return Path("/proc/net/dev").read_text().find(f" {link}:") >= 0


def features(link: str) -> dict[str, bool]:
    """What ethtool says is on."""
    (found,) = json.loads(run("ethtool", "--json", "-k", link))
    return {name: value["active"] for name, value in found.items() if isinstance(value, dict)}


def table(links: list[str]) -> Table:
    """What `ethtool -k` and `ip link` say."""
    kinds = {entry["ifname"]: entry for entry in json.loads(run("ip", "-j", "-d", "link"))}
    found = Table("link", "kind", "port of", *SHOWN, "queue length", box=None, padding=(0, 2), header_style="bold")
    for link in links:
        active, entry = features(link), kinds[link]
        kind = entry.get("linkinfo", {}).get("info_kind", "")
        words = [Text("on", "green") if active[name] else Text("off", "yellow") for name in SHOWN.values()]
        found.add_row(link, kind, entry.get("master", ""), *words, str(entry.get("txqlen", "")))
    return found


# --- the agent ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def agent(policies: Path, state: Path) -> Iterator[None]:
    words = [sys.executable, "-m", "virtnet", "run", "--policies", str(policies), "--state-dir", str(state)]
    log = state.parent / "agent.log"
    with log.open("w") as sink, subprocess.Popen([*words, "--listen", ""], stderr=sink) as process:
        try:
            yield
        except BaseException:
            console.print(log.read_text(), style="dim")
            raise
        finally:
            process.terminate()
            process.wait(10)


def status(state: Path) -> dict[str, str]:
    """The conditions that the agent last reported, by type."""
    try:
        found = json.loads((state / "state.json").read_text())
    except (OSError, ValueError):
        return {}
    return {entry["type"]: entry["status"] for entry in found["conditions"]} if found["policies"] else {}


def wait_until(true: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + 20
    while not true():
        if time.monotonic() > until:
            raise SystemExit(f"waited 20 s for {what}")
        time.sleep(0.005)


# --- drift -------------------------------------------------------------------------------------------------


def drift() -> tuple[list[float], int]:
    """Let the other process loose, and draw what it measures; (milliseconds of each repair, flips never repaired)."""
    words = [sys.executable, str(HERE / "foreign.py"), str(FLIPS), str(PAUSE), *TARGETS]
    found: list[dict[str, object]] = []
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        reader = threading.Thread(target=lambda: found.extend(map(json.loads, other.stdout or ())))
        reader.start()
        with Live(console=console, refresh_per_second=10) as live:
            while reader.is_alive():
                live.update(picture(list(found)))
                reader.join(0.1)
            live.update(picture(found))
    times = [float(str(one["seconds"])) * 1000 for one in found if one["seconds"] is not None]
    return times, len(found) - len(times)


def picture(found: list[dict[str, object]]) -> Group:
    counts = Table("link", "feature", "changed", "put back", "slowest", box=None, padding=(0, 2), header_style="bold")
    for target in TARGETS:
        link, _, feature = target.partition(":")
        mine = [one["seconds"] for one in found if one["link"] == link]
        back = [float(str(seconds)) * 1000 for seconds in mine if seconds is not None]
        slowest = f"{max(back):.2f} ms" if back else ""
        counts.add_row(link, feature, str(len(mine)), str(len(back)), slowest)
    times = [float(str(one["seconds"])) * 1000 for one in found if one["seconds"] is not None]
    return Group(counts, Panel(histogram(times), title="time until the value is back, seen by the other process"))


def histogram(times: list[float]) -> Text:
    """One bar for each bucket of milliseconds."""
    text = Text()
    most = max((sum(low < t <= high for t in times) for low, high in _edges()), default=0) or 1
    for low, high in _edges():
        count = sum(low < t <= high for t in times)
        label = f"≤ {high:g} ms" if high != float("inf") else f"> {low:g} ms"
        text.append(f"{label:>10} {'█' * round(40 * count / most):<40} {count}\n")
    if len(times) > 1:
        ordered = sorted(times)
        p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
        text.append(f"{len(times)} repairs, median {statistics.median(times):.2f} ms, 99 % within {p99:.2f} ms", "bold")
    return text


def _edges() -> list[tuple[float, float]]:
    return list(zip((0.0, *BUCKETS), (*BUCKETS, float("inf")), strict=True))


def by_hand() -> None:
    """The same with the command that people use."""
    run("ethtool", "-K", "uplink0", "tso", "on")
    wait_until(lambda: not features("uplink0")[SHOWN["tso"]], "tso to be off again")
    console.print("\nAnd by hand: [bold]ethtool -K uplink0 tso on[/] … and it is off again.")


if __name__ == "__main__":
    sys.exit(main())
