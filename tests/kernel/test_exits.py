"""Processes that are watched until they end."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator

import pytest

from virtnet.host.exits import Exits

SECONDS = 20


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    made = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    yield made
    made.kill()
    made.communicate()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_the_end_of_a_process_is_told_once_and_leaves_no_descriptor(child: subprocess.Popen[bytes]) -> None:
    async def story() -> int:
        told = asyncio.Queue[None]()
        exits = Exits(lambda: told.put_nowait(None))
        before = open_descriptors()
        exits.watch([child.pid])
        exits.watch([child.pid])
        assert (told.qsize(), open_descriptors()) == (0, before + 1)
        child.kill()
        await asyncio.wait_for(told.get(), SECONDS)
        exits.watch([child.pid])
        assert open_descriptors() == before
        exits.close()
        return told.qsize()

    assert asyncio.run(story()) == 0


def test_a_process_that_is_no_longer_named_is_not_told_of(child: subprocess.Popen[bytes]) -> None:
    async def story() -> int:
        told = asyncio.Queue[None]()
        exits = Exits(lambda: told.put_nowait(None))
        before = open_descriptors()
        exits.watch([child.pid])
        exits.watch([])
        assert open_descriptors() == before
        child.kill()
        child.wait(SECONDS)
        await asyncio.sleep(0)
        return told.qsize()

    assert asyncio.run(story()) == 0


def test_a_process_that_has_ended_already_is_told_of_once() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait(SECONDS)

    async def story() -> int:
        told = asyncio.Queue[None]()
        exits = Exits(lambda: told.put_nowait(None))
        exits.watch([gone.pid])
        exits.watch([gone.pid])
        exits.close()
        return told.qsize()

    assert asyncio.run(story()) == 1
