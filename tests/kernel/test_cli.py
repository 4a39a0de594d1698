"""The commands on a real kernel: exit codes, what they change, and data that agrees with `ip` and ethtool."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kernel.playground import Playground
from virtnet.__main__ import main
from virtnet.host import qemu

ROOT = Path(__file__).parents[2]
SECONDS = 60

LAN = """\
apiVersion: virtnet.dev/v1alpha1
kind: VirtioNetworkPolicy
metadata: {name: lan}
spec:
  bridge: {name: br0, ageingTimeSeconds: 60}
  uplink:
    match: {names: [up0]}
    offloads: {gro: true, tso: false}
  tap:
    offloads: {gro: false}
"""
FIXED = LAN.replace("gro: true", "lro: true")


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


class Command:
    """`virtnet` in a playground, with a state directory of its own. Called, it runs here; `start` makes a process."""

    def __init__(self, playground: Playground, state: Path) -> None:
        self.playground, self.state = playground, state

    def arguments(self, name: str, *arguments: str) -> list[str]:
        netns = ["--netns", self.playground.netns] if self.playground.netns else []
        return [name, *netns, "--state-dir", str(self.state), *arguments]

    def __call__(self, name: str, *arguments: str) -> Done:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main(self.arguments(name, *arguments))
        return Done(code, out.getvalue(), err.getvalue())

    def process(self, name: str, *arguments: str, text: str | None = None) -> Done:
        with self.start(name, *arguments) as child:
            out, err = child.communicate(text, timeout=SECONDS)
        return Done(child.returncode, out, err)

    def start(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        words = [sys.executable, "-m", "virtnet", *self.arguments(name, *arguments)]
        return subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment())


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "operator")}


@pytest.fixture
def virtnet(playground: Playground, tmp_path: Path) -> Command:
    """The command on a bridge br0 with the uplink up0 and the tap tap0."""
    playground.batch(
        "link add br0 type bridge",
        "link set br0 up",
        "link add up0 type veth peer name far0",
        "link set up0 master br0 up",
        "link set far0 up",
        "tuntap add tap0 mode tap vnet_hdr",
        "link set tap0 master br0 up",
    )
    return Command(playground, tmp_path / "state")


@pytest.fixture
def lan(tmp_path: Path) -> str:
    return written(tmp_path / "lan.yaml", LAN)


@pytest.fixture
def fixed(tmp_path: Path) -> str:
    return written(tmp_path / "fixed.yaml", FIXED)


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def wait_for(question: Callable[[], Any], seconds: float = 20.0) -> Any:
    end = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.05)
    return answer


# --- plan, apply, release ----------------------------------------------------------------------------------


def test_a_policy_is_planned_applied_and_released(virtnet: Command, playground: Playground, lan: str) -> None:
    before = snapshot(playground)
    assert (virtnet.process("plan", lan).returncode, snapshot(playground)) == (2, before)

    applied = virtnet.process("apply", lan)
    assert (applied.returncode, applied.stderr) == (0, "")
    assert playground.ethtool("up0")["rx-gro"]["active"] is True
    assert playground.ethtool("up0")["tx-tcp-segmentation"]["active"] is False
    assert playground.ethtool("tap0")["rx-gro"]["active"] is False
    assert playground.links()["br0"]["linkinfo"]["info_data"]["ageing_time"] == 6000

    planned = virtnet.process("plan", lan)
    assert (planned.returncode, planned.stdout) == (0, "Nothing to change.\n")
    assert virtnet.process("apply", lan).stdout == "All as asked; nothing was changed.\n"

    assert virtnet.process("release").returncode == 0
    assert snapshot(playground) == before


def snapshot(playground: Playground) -> dict[str, Any]:
    """What the policies here can change, as the oracles tell it."""
    features = {name: playground.ethtool(name) for name in ("br0", "up0", "tap0")}
    return {**features, "ageing": playground.links()["br0"]["linkinfo"]["info_data"]["ageing_time"]}


def test_what_cannot_be_had_is_no_pending_change_but_is_left_by_apply(virtnet: Command, fixed: str) -> None:
    assert virtnet("plan", fixed).returncode == 2
    assert virtnet("apply", fixed).returncode == 3
    planned = virtnet("plan", "-o", "json", fixed)
    assert planned.returncode == 0
    assert [(row["reason"], row["setting"]) for row in json.loads(planned.stdout)["blocked"]] == [
        ("Fixed", "uplink.offloads.lro")
    ]


def test_what_an_audit_leaves_is_no_failure(virtnet: Command, playground: Playground, tmp_path: Path) -> None:
    audit = written(tmp_path / "audit.yaml", LAN.replace("spec:", "spec:\n  mode: Audit"))
    before = snapshot(playground)
    applied = virtnet("apply", audit, "-o", "json")
    assert (applied.returncode, snapshot(playground)) == (0, before)
    assert {row["reason"] for row in json.loads(applied.stdout)["blocked"]} == {"AuditOnly"}


def test_one_bad_file_keeps_the_good_ones_from_being_applied(
    virtnet: Command, playground: Playground, lan: str, tmp_path: Path
) -> None:
    bad = written(tmp_path / "wan.yaml", LAN.replace("name: lan", "name: wan").replace("ageing", "aging"))
    before = snapshot(playground)
    applied = virtnet("apply", lan, bad)
    assert (applied.returncode, applied.stdout, snapshot(playground)) == (1, "", before)
    assert applied.stderr.startswith(f"{bad}:5: spec.bridge.agingTimeSeconds: ")


def test_the_files_of_one_call_are_the_whole_desired_state(virtnet: Command, playground: Playground, lan: str) -> None:
    before = snapshot(playground)
    other = "apiVersion: virtnet.dev/v1alpha1\nkind: VirtioNetworkPolicy\nmetadata: {name: other}\nspec: {}\n"
    assert virtnet.process("apply", "-", text=LAN).returncode == 0
    assert virtnet.process("apply", "-", text=other).returncode == 0
    assert snapshot(playground) == before


def test_a_value_that_somebody_else_has_set_since_is_skipped_by_release_and_said(
    virtnet: Command, playground: Playground, lan: str
) -> None:
    assert virtnet("apply", lan).returncode == 0
    playground.run("ip link set br0 type bridge ageing_time 1234")
    released = virtnet("release", "-o", "json")
    assert [row["reason"] for row in json.loads(released.stdout)["blocked"]] == ["Foreign"]
    assert released.returncode == 3
    assert playground.links()["br0"]["linkinfo"]["info_data"]["ageing_time"] == 1234


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_planned(virtnet: Command, example: Path) -> None:
    planned = virtnet("plan", str(example))
    assert planned.returncode in (0, 2), planned.stderr
    assert max(map(len, planned.stdout.splitlines())) <= 100
    found = json.loads(virtnet("plan", str(example), "-o", "json").stdout)
    assert yaml.safe_load(virtnet("plan", str(example), "-o", "yaml").stdout) == found
    assert (planned.returncode == 2) is bool(found["changes"])


def test_fields_that_only_a_cluster_obeys_are_said(virtnet: Command, tmp_path: Path) -> None:
    path = written(tmp_path / "lan.yaml", LAN + "  rollout: {canary: 2}\n")
    for command in ("plan", "apply"):
        assert "policy lan: rollout.canary has no effect without Kubernetes\n" in virtnet(command, path).stderr


def test_a_policy_is_for_the_node_that_its_selector_names(virtnet: Command, tmp_path: Path) -> None:
    selecting = "spec:\n  nodeSelector: {matchLabels: {zone: a, kubernetes.io/hostname: node1}}"
    path = written(tmp_path / "lan.yaml", LAN.replace("spec:", selecting))
    assert virtnet("plan", path).returncode == 0
    assert virtnet("plan", path, "--node-name", "node1", "--node-label", "zone=a").returncode == 2


def test_a_plan_imports_no_kubernetes_client_and_no_netlink_library(playground: Playground, lan: str) -> None:
    netns = ["--netns", playground.netns] if playground.netns else []
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from virtnet.__main__ import main\n"
        "code = main(sys.argv[1:]); print(*sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(ROOT / "operator"), "plan", *netns, "--state-dir", "/nonexistent/x", lan],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert {"kopf", "kubernetes", "pyroute2", "libvirt", "aiohttp", "prometheus_client"} & loaded == set()


def test_a_namespace_that_is_not_there_is_one_line(virtnet: Command, lan: str) -> None:
    done = virtnet("plan", "--netns", "no-such-namespace", lan)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "no-such-namespace" in done.stderr


# --- inspect -----------------------------------------------------------------------------------------------


def test_inspect_tells_programs_what_ip_and_ethtool_tell(virtnet: Command, playground: Playground, lan: str) -> None:
    playground.run("ip link add br1 type bridge stp_state 1")
    with_holder = playground.start(sys.executable, "-c", HOLD_TAP, "tap0")
    assert with_holder.stdout is not None
    assert with_holder.stdout.readline() == "held\n"
    found = json.loads(virtnet("inspect", "--policies", lan, "-o", "json").stdout)
    host = found["host"]
    links = playground.links()
    assert {bridge["name"]: bridge["options"]["stp"] for bridge in host["bridges"]} == {"br0": False, "br1": True}
    assert [port for bridge in host["bridges"] for port in bridge["ports"]] == ["tap0", "up0"]
    (tap,) = host["taps"]
    assert (tap["mac"], tap["mtu"], tap["vnetHdr"]) == (links["tap0"]["address"], links["tap0"]["mtu"], True)
    assert [holder["pid"] for holder in tap["holders"]] == [with_holder.pid]
    (uplink,) = host["uplinks"]
    ethtool = playground.ethtool("up0")
    assert uplink["offloads"]["gro"]["active"] is ethtool["rx-gro"]["active"]
    assert uplink["offloads"]["sg"]["active"] is ethtool["tx-scatter-gather"]["active"]
    assert uplink["offloads"]["lro"]["fixed"] is ethtool["rx-lro"]["fixed"]
    assert uplink["driver"] == "veth"
    assert [policy["name"] for policy in found["policies"]] == ["lan"]
    assert {setting["setting"] for setting in found["settings"]} >= {"uplink.offloads.gro", "tap.offloads.gro"}
    assert {"conditions", "policies", "settings", "links", "vhost", "agent", "host"} <= set(found)


HOLD_TAP = """
import fcntl, struct, sys
tap = open("/dev/net/tun", "r+b", buffering=0)
fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", sys.argv[1].encode(), 0x0002 | 0x1000 | 0x4000))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["plan", "inspect"])
def test_without_any_right_one_can_still_look(kind: str, virtnet: Command, playground: Playground, lan: str) -> None:
    virtnet.state.mkdir(mode=0o700)
    virtnet.state.chmod(0)
    arguments = [lan] if kind == "plan" else ["--policies", lan]
    powerless = ["setpriv", "--inh-caps=-all", "--bounding-set=-all", sys.executable, "-m", "virtnet", kind]
    path = str(ROOT / "operator")
    child = playground.start("env", f"PYTHONPATH={path}", *powerless, "--state-dir", str(virtnet.state), *arguments)
    out, err = child.communicate(timeout=SECONDS)
    assert child.returncode == (2 if kind == "plan" else 0), err
    assert f"no access to {virtnet.state}: looking at the host alone" in err
    assert "up0" in out


def test_the_sheet_fits_a_hundred_columns_and_has_no_colour_in_a_pipe(virtnet: Command, lan: str) -> None:
    shown = virtnet("inspect", "--policies", lan).stdout
    assert max(map(len, shown.splitlines())) <= 100
    assert "\x1b" not in shown
    for heading in ("UPLINKS", "BRIDGES", "TAPS", "VHOST_NET", "QEMU", "POLICIES", "DIFFERS"):
        assert f"{heading}\n" in shown


def test_a_machine_without_qemu_is_told_so(virtnet: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "names", lambda: ("no-such-qemu",))
    said = "no QEMU is installed here (looked for no-such-qemu)\n"
    assert f"QEMU\n  {said}" in virtnet("inspect").stdout
    found = virtnet("inspect", "-o", "json")
    assert found.stderr == said
    assert (json.loads(found.stdout)["host"]["qemuModels"], json.loads(found.stdout)["host"]["qemu"]) == ([], None)


# --- hold --------------------------------------------------------------------------------------------------


def test_a_hold_is_shown_in_every_table_and_keeps_the_link_as_it_is(
    virtnet: Command, playground: Playground, lan: str
) -> None:
    held = virtnet("hold", "up0", "--for", "15m")
    assert held.returncode == 0
    assert held.stdout.startswith("link up0 is held until ")
    assert virtnet("apply", lan).returncode == 3
    assert playground.ethtool("up0")["rx-gro"]["active"] is False
    assert playground.ethtool("tap0")["rx-gro"]["active"] is False
    for arguments in (["plan", lan], ["apply", lan], ["inspect", "--policies", lan], ["release"]):
        assert "HELD  link up0 is held until " in virtnet(*arguments).stdout, arguments
    assert virtnet("unhold").stdout == "link up0: no longer held\n"
    assert virtnet("apply", lan).returncode == 0
    assert playground.ethtool("up0")["rx-gro"]["active"] is True


def test_a_hold_of_a_link_that_is_not_there_says_so(virtnet: Command) -> None:
    held = virtnet("hold", "up9", "-o", "json")
    assert held.returncode == 0
    assert held.stderr == "no link is named up9 now; one that appears under this name is held\n"
    assert list(json.loads(held.stdout)["holds"]) == ["up9"]


# --- beside a running agent --------------------------------------------------------------------------------


@pytest.fixture
def agent(virtnet: Command, lan: str) -> Iterator[subprocess.Popen[str]]:
    """`virtnet run` on the policies beside `lan`, after its first pass."""
    child = virtnet.start("run", "--policies", str(Path(lan).parent), "--listen", "127.0.0.1:0")
    try:
        wait_for((virtnet.state / "state.json").exists)
        yield child
    finally:
        child.terminate()
        child.communicate(timeout=SECONDS)


def test_apply_and_release_beside_a_running_agent_name_its_pid(
    virtnet: Command, agent: subprocess.Popen[str], lan: str
) -> None:
    for arguments in (["apply", lan], ["release"]):
        done = virtnet(*arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert str(agent.pid) in done.stderr
    assert virtnet("plan", lan).returncode == 0


def test_a_hold_returns_when_the_running_agent_has_taken_notice(
    virtnet: Command, agent: subprocess.Popen[str], playground: Playground
) -> None:
    wait_for(lambda: playground.ethtool("up0")["rx-gro"]["active"])
    held = virtnet("hold")
    assert (held.returncode, held.stderr) == (0, "")
    playground.run("ethtool -K up0 gro off")
    inspected = virtnet("inspect").stdout
    assert f"agent running, pid {agent.pid}" in inspected
    assert "HELD  this whole node is held until " in inspected
    assert "uplink.offloads.gro" in inspected
    assert playground.ethtool("up0")["rx-gro"]["active"] is False
    lifted = virtnet("unhold")
    assert (lifted.stdout, lifted.stderr) == ("this whole node: no longer held\n", "")
    wait_for(lambda: playground.ethtool("up0")["rx-gro"]["active"])


def test_what_the_agent_has_given_up_for_now_is_no_pending_change(
    virtnet: Command, agent: subprocess.Popen[str], playground: Playground
) -> None:
    assert agent.poll() is None
    for _ in range(6):
        wait_for(lambda: playground.ethtool("up0")["rx-gro"]["active"])
        playground.run("ethtool -K up0 gro off")
    wait_for(lambda: "Contended" in (virtnet.state / "state.json").read_text())
    shown = virtnet("inspect").stdout
    assert "uplink.offloads.gro  off → on  Contended\n" in shown
    assert "Not ready: 1 setting fails: link/up0 uplink.offloads.gro: " in shown
    found = json.loads(virtnet("inspect", "-o", "json").stdout)
    assert [(row["setting"], row["reason"]) for row in found["settings"]] == [("uplink.offloads.gro", "Contended")]
    assert {each["type"]: each["status"] for each in found["conditions"]}["Ready"] == "False"
