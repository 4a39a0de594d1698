"""The wire: the kernel's errors become ours at one edge, and a socket that is out of step is thrown away."""

from __future__ import annotations

import ast
import os
import sys
import threading
from collections import deque

import pytest

from tests.kernel.playground import Playground
from virtnet import errors
from virtnet.core.model import Interest
from virtnet.host import LinuxHost, links, netlink
from virtnet.host.namespaces import Namespace

WITHOUT_CAPABILITIES = """
from virtnet import errors
from virtnet.core import model
from virtnet.host import LinuxHost
host = LinuxHost()
state = host.observe(model.Interest())
ref = model.Ref("t0", state.by_name("t0").ifindex)
bit = 1 << state.feature_names.index("rx-gro")
for change in (
    model.SetMtu(ref, 1300),
    model.SetFeatures(ref, bit, 0),
    model.SetRxFrames(ref, 3),
    model.SetBridgeOptions(model.Ref("br0", 0), (("stp", True),)),
    model.SetMaster(ref, model.Ref("br0", 0)),
    model.CreateBridge("br1"),
    model.DeleteLink(ref),
):
    try:
        host.apply(change)
        print((type(change).__name__, "done", ""))
    except errors.HostError as error:
        print((type(change).__name__, type(error).__name__, str(error)))
"""


def test_reading_needs_no_privilege_and_each_change_names_the_one_it_needs(playground: Playground) -> None:
    playground.batch("tuntap add t0 mode tap", "link add br0 type bridge")
    bare = f"setpriv --bounding-set=-all --inh-caps=-all env PYTHONPATH={':'.join(sys.path)} {sys.executable} -"
    said = [ast.literal_eval(line) for line in playground.run(bare, text=WITHOUT_CAPABILITIES).splitlines()]
    assert [kind for kind, _, _ in said] == [
        "SetMtu",
        "SetFeatures",
        "SetRxFrames",
        "SetBridgeOptions",
        "SetMaster",
        "CreateBridge",
        "DeleteLink",
    ]
    for kind, error, text in said:
        assert (kind, error) == (kind, "NotPermitted")
        assert "CAP_NET_ADMIN" in text


def test_an_answer_that_does_not_come_is_temporary_and_the_next_request_works() -> None:
    connection = netlink.Connection(netlink.ROUTE, Namespace(), timeout=0.1)

    def read_beyond_the_end() -> None:
        with connection.dumping(links.GETLINK, links.HEADER.pack(0, 0, 0, 0, 0), "list the links"):
            while True:
                connection.receive("list the links")

    with pytest.raises(errors.Temporary, match=r"did not answer within 0\.1 s"):
        read_beyond_the_end()
    answer = connection.get(links.GETLINK, links.HEADER.pack(0, 0, 1, 0, 0), "read lo")
    assert links.parse(answer).name == "lo"
    connection.close()


def test_a_dump_left_in_the_middle_does_not_confuse_the_next_request(playground: Playground) -> None:
    playground.batch(*(f"link add b{number} type bridge" for number in range(80)))
    connection = netlink.Connection(netlink.ROUTE, playground.namespace)

    def leave_in_the_middle() -> None:
        with connection.dumping(links.GETLINK, links.HEADER.pack(0, 0, 0, 0, 0), "list the links"):
            connection.receive("list the links")
            raise InterruptedError

    with pytest.raises(InterruptedError):
        leave_in_the_middle()
    answer = connection.get(links.GETLINK, links.HEADER.pack(0, 0, 1, 0, 0), "read lo")
    assert links.parse(answer).name == "lo"
    connection.close()


def test_a_receive_buffer_too_small_for_the_answers_is_temporary(playground: Playground) -> None:
    """Acknowledgements that nobody reads fill the buffer: the kernel drops the next answer and says ENOBUFS."""
    listener = netlink.open_socket(netlink.ROUTE, playground.namespace)
    netlink.widen(listener, 0)
    listener.setblocking(False)
    request = links.HEADER.pack(0, 0, 1, 0, 0)
    message = netlink.HEADER.pack(16 + len(request), links.GETLINK, netlink.REQUEST, 7, 0) + request
    for _ in range(200):
        listener.send(message)
    with pytest.raises(OSError, match="No buffer space") as caught:
        deque(iter(lambda: listener.recv(65536), b""), maxlen=0)
    assert isinstance(netlink.error(caught.value.errno or 0, "read lo"), errors.Temporary)
    listener.close()


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (19, errors.Gone),
        (22, errors.Refused),
        (34, errors.Refused),
        (95, errors.NotSupported),
        (1, errors.NotPermitted),
        (13, errors.NotPermitted),
        (16, errors.InUse),
        (11, errors.Temporary),
        (4, errors.Temporary),
        (12, errors.Temporary),
        (105, errors.Temporary),
        (5, errors.Refused),
    ],
)
def test_each_errno_has_its_kind_and_keeps_the_kernels_text(number: int, kind: type[errors.HostError]) -> None:
    error = netlink.error(number, "set the mtu of eth0", "mtu greater than device maximum")
    assert type(error) is kind
    assert str(error).startswith("cannot set the mtu of eth0: mtu greater than device maximum")


def test_threads_use_one_host_at_the_same_time(playground: Playground, host: LinuxHost) -> None:
    playground.batch(*(f"link add b{number} type bridge" for number in range(20)))
    expected = set(host.observe(Interest()).links)
    wrong: list[object] = []

    def work() -> None:
        for _ in range(50):
            state = host.observe(Interest())
            read = {index: host.read_features(index) for index in list(expected)[:3]}
            if set(state.links) != expected or any(state.features[index] != found for index, found in read.items()):
                wrong.append(state)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_a_closed_host_opens_new_sockets_when_it_is_used_again(playground: Playground, host: LinuxHost) -> None:
    before = host.observe(Interest())
    host.close()
    assert host.observe(Interest()).links == before.links


def test_what_is_no_number_of_its_size_is_refused() -> None:
    assert netlink.integer(netlink.u16(1, 0xFFFF), 4, 6) == 0xFFFF
    for value in (-1, 1 << 16):
        with pytest.raises(errors.Refused, match="16 bits"):
            netlink.u16(1, value)


def test_the_sockets_of_ended_threads_are_closed(playground: Playground, host: LinuxHost) -> None:
    """A host that is asked from ever new threads must not run out of descriptors."""
    host.observe(Interest())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        thread = threading.Thread(target=host.observe, args=(Interest(),))
        thread.start()
        thread.join(30)
    assert len(os.listdir("/proc/self/fd")) <= before + 2
