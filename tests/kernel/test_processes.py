"""Who holds taps: the walk over /proc finds real holders, in the right namespace, with their guest."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from tests.kernel.holding import MULTI_QUEUE, VNET_HDR, hold, let_go
from tests.kernel.playground import Playground
from virtnet.core.model import Process
from virtnet.host import namespaces, processes


def holders(playground: Playground, name: str) -> list[int]:
    return [process.pid for process in processes.look(playground.namespace.path).taps.get(name, ())]


def test_a_holder_is_found_and_gone_when_it_lets_go(playground: Playground) -> None:
    playground.run("ip tuntap add t0 mode tap vnet_hdr")
    assert holders(playground, "t0") == []
    child = hold(playground, "t0")
    assert holders(playground, "t0") == [child.pid]
    let_go(child)
    assert holders(playground, "t0") == []


def test_a_process_with_several_queues_is_one_holder(playground: Playground) -> None:
    playground.run("ip tuntap add t0 mode tap vnet_hdr multi_queue")
    first = hold(playground, "t0", VNET_HDR | MULTI_QUEUE, queues=3)
    second = hold(playground, "t0", VNET_HDR | MULTI_QUEUE)
    assert holders(playground, "t0") == sorted([first.pid, second.pid])


def test_a_tap_is_found_under_its_new_name(playground: Playground) -> None:
    playground.run("ip tuntap add t0 mode tap vnet_hdr")
    child = hold(playground, "t0")
    playground.run("ip link set t0 name t1")
    assert (holders(playground, "t0"), holders(playground, "t1")) == ([], [child.pid])


def test_a_holder_is_shown_with_its_command_and_guest(playground: Playground) -> None:
    playground.run("ip tuntap add t0 mode tap vnet_hdr")
    child = hold(playground, "t0", arguments=("-name", "guest=web1,debug-threads=on"))
    (process,) = processes.look(playground.namespace.path).taps["t0"]
    assert process == Process(child.pid, process.command, "web1")
    assert process.command.startswith("python")


def test_a_descriptor_that_is_not_attached_holds_nothing(playground: Playground) -> None:
    tap = os.open("/dev/net/tun", os.O_RDWR)
    try:
        assert processes.look(playground.namespace.path).taps == {}
    finally:
        os.close(tap)


def test_a_tap_of_the_same_name_in_another_namespace_does_not_count(playground: Playground) -> None:
    playground.run("ip tuntap add t0 mode tap vnet_hdr")
    script = "ip tuntap add t0 mode tap vnet_hdr && exec " + " ".join([sys.executable, "-c", '"$HOLDER"', "t0"])
    child = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", script],
        env={**os.environ, "HOLDER": OPEN_AND_WAIT},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        assert holders(playground, "t0") == []
        elsewhere = processes.look(f"/proc/{child.pid}/ns/net").taps["t0"]
        assert [process.pid for process in elsewhere] == [child.pid]
    finally:
        child.communicate("")


OPEN_AND_WAIT = """
import fcntl, os, struct, sys
tap = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", sys.argv[1].encode(), 0x5002))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_holder_that_lives_in_another_namespace_than_its_tap_is_found(playground: Playground) -> None:
    """As slirp4netns does: opened in the guest's namespace, held from outside."""
    playground.run("ip tuntap add t0 mode tap vnet_hdr")
    program = OPEN_AND_WAIT.replace("print(", "import ctypes; ctypes.CDLL(None).unshare(0x40000000); print(", 1)
    child = playground.start(sys.executable, "-c", program, "t0")
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    assert (
        os.stat(f"/proc/{child.pid}/ns/net").st_ino != os.stat(playground.namespace.path or "/proc/self/ns/net").st_ino
    )
    assert holders(playground, "t0") == [child.pid]


def test_processes_that_come_and_go_meanwhile_do_no_harm(playground: Playground) -> None:
    stop = threading.Event()

    def churn() -> None:
        while not stop.wait(0.001):
            subprocess.run(["true"], check=True)

    worker = threading.Thread(target=churn)
    worker.start()
    try:
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            processes.look(playground.namespace.path)
    finally:
        stop.set()
        worker.join()


COUNT_UNREADABLE = """
import sys
sys.path.insert(0, "operator")
from virtnet.host import processes
print(processes.look().unreadable)
"""


def test_processes_that_may_not_be_looked_into_are_counted() -> None:
    if not namespaces.in_initial_user_namespace():
        assert processes.look().unreadable > 0
        return
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = subprocess.run([*nobody, sys.executable, "-c", COUNT_UNREADABLE], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 0


def test_a_process_that_has_ended_is_described_without_an_error() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    assert str(processes.describe(child.pid)) == f"?[{child.pid}]"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["qemu-system-x86_64", "-name", "guest=web1,debug-threads=on"], "web1"),
        (["qemu-system-x86_64", "-name", "web1"], "web1"),
        (["qemu-system-x86_64", "--name", "web1,process=x"], "web1"),
        (["qemu-system-x86_64", "-name", "debug-threads=on,guest=web1"], "web1"),
        (["qemu-system-x86_64", "-name", "guest=a,,b,debug-threads=on"], "a,b"),
        (["qemu-system-x86_64", "-name", "debug-threads=on"], ""),
        (["qemu-system-x86_64", "-m", "1G", "-name"], ""),
        (["sleep", "7"], ""),
        ([], ""),
    ],
)
def test_a_guest_name_is_read_as_qemu_reads_it(arguments: list[str], name: str) -> None:
    assert processes.guest_name(arguments) == name
