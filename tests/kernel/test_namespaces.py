"""Namespaces are entered for a moment, told apart, and missed when they go."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtnet import errors
from virtnet.core.model import Interest
from virtnet.host import LinuxHost, namespaces
from virtnet.host.namespaces import Namespace


class Other:
    """A network namespace that lives as long as a process in it, and can be entered as root and as a plain user."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "100"])
        self.path = f"/proc/{self._holder.pid}/ns/net"
        deadline = time.monotonic() + 10
        while os.stat(self.path).st_ino == inode():
            assert time.monotonic() < deadline, "unshare made no namespace"
            time.sleep(0.01)

    def end(self) -> None:
        self._holder.kill()
        self._holder.wait()


@pytest.fixture
def other() -> Iterator[Other]:
    made = Other()
    yield made
    made.end()


def inode() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


def test_a_namespace_is_entered_and_left(other: Other) -> None:
    home = inode()
    with Namespace(other.path).entered():
        assert inode() == os.stat(other.path).st_ino != home
    assert inode() == home


def test_a_namespace_is_left_after_an_error(other: Other) -> None:
    home = inode()
    with pytest.raises(KeyError), Namespace(other.path).entered():
        raise KeyError
    assert inode() == home


def test_only_the_thread_that_enters_moves(other: Other) -> None:
    home, seen = inode(), list[int]()
    entered, done = threading.Event(), threading.Event()

    def stay() -> None:
        with Namespace(other.path).entered():
            entered.set()
            done.wait(10)
            seen.append(inode())

    thread = threading.Thread(target=stay)
    thread.start()
    assert entered.wait(10)
    assert inode() == home
    done.set()
    thread.join(10)
    assert seen == [os.stat(other.path).st_ino]


def test_the_identity_is_the_namespaces_own(other: Other) -> None:
    assert Namespace(other.path).identity == Namespace(other.path).identity
    assert Namespace().identity == Namespace("/proc/thread-self/ns/net").identity
    assert Namespace(other.path).identity != Namespace().identity


def test_an_unknown_name_is_told_with_the_known_ones(tmp_path: Path) -> None:
    for name in ("blue", "green"):
        (tmp_path / name).touch()
    with pytest.raises(errors.UsageError, match="no network namespace 'red' here; known: blue, green"):
        Namespace.named("red", directory=str(tmp_path))
    with pytest.raises(errors.UsageError, match="`ip netns` knows none"):
        Namespace.named("red", directory=str(tmp_path / "absent"))


@pytest.mark.parametrize("name", ["", ".", "..", "../run", "a/b"])
def test_a_name_that_is_a_path_is_refused(name: str) -> None:
    with pytest.raises(errors.UsageError):
        Namespace.named(name)


def test_a_file_that_is_no_namespace_is_told(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    namespace = Namespace(str(tmp_path / "plain"))
    with pytest.raises(errors.HostError, match="cannot enter"), namespace.entered():
        pytest.fail("a plain file was entered")


def test_a_look_at_a_namespace_that_was_removed_is_gone(other: Other) -> None:
    """Our own sockets keep its links alive, so that only the path tells."""
    host = LinuxHost(Namespace(other.path))
    try:
        assert host.observe(Interest()).by_name("lo") is not None
        other.end()
        with pytest.raises(errors.Gone, match="is gone"):
            host.observe(Interest())
    finally:
        host.close()


def test_another_namespace_under_the_old_name_is_gone_too(other: Other, tmp_path: Path) -> None:
    link = tmp_path / "name"
    link.symlink_to(other.path)
    host = LinuxHost(Namespace(str(link)))
    try:
        host.observe(Interest())
        link.unlink()
        link.symlink_to("/proc/thread-self/ns/net")
        with pytest.raises(errors.Gone, match="another one now"):
            host.observe(Interest())
        with pytest.raises(errors.Gone, match="another one now"), host.namespace.entered():
            pytest.fail("another namespace was entered")
    finally:
        host.close()


def test_the_boot_id_is_the_kernels() -> None:
    assert namespaces.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert len(namespaces.boot_id()) == 36
