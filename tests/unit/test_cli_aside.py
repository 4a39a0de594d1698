"""Work that is done in another process meanwhile, and done here when that one could not."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from virtnet.cli import aside


def forks() -> bool:
    return threading.active_count() == 1 and len(os.sched_getaffinity(0)) > 1


def test_what_the_other_process_found_is_handed_over() -> None:
    with aside.begun(os.getpid) as other:
        assert (other() != os.getpid()) == forks()


@pytest.mark.parametrize("end", ["raises", "dies", "is no value"])
def test_what_the_other_process_could_not_hand_over_is_done_here(end: str, tmp_path: Path) -> None:
    here, told = os.getpid(), tmp_path / "told"

    def work() -> object:
        with told.open("a") as stream:
            stream.write("once\n")
        if os.getpid() == here:
            return "done here"
        if end == "raises":
            raise RuntimeError("only there")
        if end == "dies":
            os.kill(os.getpid(), 9)
        return lambda: "no value"

    with aside.begun(work) as result:
        assert result() == "done here"
    assert told.read_text() == "once\n" * (1 + forks())


def test_a_failure_here_leaves_no_process_behind() -> None:
    with pytest.raises(KeyboardInterrupt), aside.begun(lambda: "x" * 1_000_000):
        raise KeyboardInterrupt
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_what_nobody_asks_for_is_given_up_at_once() -> None:
    with aside.begun(threading.Event().wait if forks() else lambda: True):
        pass
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_with_other_threads_nothing_is_forked() -> None:
    go = threading.Event()
    thread = threading.Thread(target=go.wait)
    thread.start()
    try:
        with aside.begun(os.getpid) as result:
            assert result() == os.getpid()
    finally:
        go.set()
        thread.join()
