"""Work that is done in another process meanwhile, and done here when that one could not."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from virtnet.cli import aside


def test_what_the_other_process_found_is_handed_over() -> None:
    here: list[int] = []
    other = aside.do(os.getpid, lambda: here.append(os.getpid()))
    assert here == [os.getpid()]
    assert (other != os.getpid()) == (threading.active_count() == 1 and len(os.sched_getaffinity(0)) > 1)


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

    assert aside.do(work, lambda: None) == "done here"
    assert told.read_text() == "once\n" * (1 + (threading.active_count() == 1 and len(os.sched_getaffinity(0)) > 1))


def test_a_failure_here_leaves_no_process_behind() -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        aside.do(lambda: "x" * 1_000_000, fail)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_with_other_threads_nothing_is_forked() -> None:
    go = threading.Event()
    thread = threading.Thread(target=go.wait)
    thread.start()
    try:
        assert aside.do(os.getpid, lambda: None) == os.getpid()
    finally:
        go.set()
        thread.join()
