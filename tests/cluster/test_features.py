"""What an agent's pod was not given: every other setting is enforced, and what is missing is said by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from tests.cluster import nodes
from tests.cluster.installation import Operator, policy
from tests.cluster.sandbox import wait_until

DAEMONSET = "daemonset/virtnet-agent"
CONTAINER = "/spec/template/spec/containers/0"
AT_ONCE = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "100%"}}
EVERYWHERE = {"canary": "100%", "maxUnavailable": "100%", "pauseOnFailure": False}
TAPS = {"create": [{"name": "keep0"}], "match": {"names": ["tap0"]}, "txQueueLength": 700}


@contextmanager
def without(virtnet: Operator, place: str, entry: object) -> Iterator[None]:
    """The agents' pods as the chart makes them, except for one entry of a list; afterwards it is there again."""
    whole = json.loads(virtnet.kubectl("get", DAEMONSET, "--output=json"))["spec"]
    container = whole["template"]["spec"]["containers"][0]
    found = (
        container["securityContext"]["capabilities"]["add"] if "capabilities" in place else container["volumeMounts"]
    )
    assert entry in found
    try:
        replace(virtnet, place, [each for each in found if each != entry])
        yield
    finally:
        virtnet.upgrade("--force-conflicts")  # helm takes back what was changed beside it


def replace(virtnet: Operator, place: str, entries: list[object]) -> None:
    change = [
        {"op": "replace", "path": "/spec/updateStrategy", "value": AT_ONCE},
        {"op": "replace", "path": f"{CONTAINER}/{place}", "value": entries},
    ]
    virtnet.kubectl("patch", DAEMONSET, "--type=json", f"--patch={json.dumps(change)}")
    virtnet.wait_agents()


def refusals(virtnet: Operator, count: int) -> dict[str, str]:
    """What node1 was refused, by setting, once there are so many."""
    found: dict[str, str] = {}

    def is_there() -> bool:
        settings = (virtnet.state(virtnet.cluster.node(1)) or {}).get("status", {}).get("settings", [])
        found.clear()
        found.update({each["setting"]: each["message"] for each in settings if each["reason"] == "Refused"})
        return len(found) == count

    wait_until(f"{count} settings are refused", is_there, 30, 0.3)
    return found


def test_without_its_capability_an_agent_changes_nothing_and_names_it(virtnet: Operator) -> None:
    with without(virtnet, "securityContext/capabilities/add", "NET_ADMIN"):
        virtnet.apply(policy("lan", bridge={"name": nodes.BRIDGE}, tap=TAPS, rollout=EVERYWHERE))
        found = refusals(virtnet, 2)
        assert set(found) == {"tap.create", "tap.txQueueLength"}
        assert all("CAP_NET_ADMIN" in message for message in found.values())
    virtnet.ready("lan")


def test_without_the_device_for_taps_all_else_is_enforced_and_the_device_is_named(virtnet: Operator) -> None:
    with without(virtnet, "volumeMounts", {"name": "tun", "mountPath": "/dev/net/tun"}):
        virtnet.apply(policy("lan", bridge={"name": nodes.BRIDGE}, tap=TAPS, rollout=EVERYWHERE))
        (message,) = refusals(virtnet, 1).values()
        assert message.startswith("/dev/net/tun cannot be opened")
        queue = json.loads(virtnet.cluster.node(1).run("ip", "-json", "link", "show", "tap0"))[0]["txqlen"]
        assert queue == 700
    virtnet.ready("lan")
