"""Tells when one of some processes ends; it never signals, traces or reaps one.

Nothing in the kernel tells that a module's last user let go of it. A process that ends closes its descriptors before
its pidfd becomes readable (kernel/exit.c: exit_files and exit_task_work come before exit_notify), so a look after that
finds what it held free.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection

_NONE = -1
"""In the place of a pidfd that could not be opened: asked for once, and not again while the process is named."""


class Exits:
    """Watches processes by pidfd, on the running event loop. `told` is called once for each that ends."""

    def __init__(self, told: Callable[[], None]) -> None:
        self._told = told
        self._descriptors: dict[int, int] = {}

    def watch(self, pids: Collection[int]) -> None:
        """Watch these processes from now on, and no others. One that has ended already is told of at once.

        A process that cannot be watched is left to the next look: descriptors may be used up.
        """
        for pid in self._descriptors.keys() - set(pids):
            self._let_go(pid)
            del self._descriptors[pid]
        for pid in set(pids) - self._descriptors.keys():
            self._begin(pid)

    def close(self) -> None:
        self.watch(())

    def _begin(self, pid: int) -> None:
        self._descriptors[pid] = _NONE
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            self._told()
            return
        except OSError:
            return
        self._descriptors[pid] = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._ended, pid)

    def _ended(self, pid: int) -> None:
        self._let_go(pid)
        self._told()

    def _let_go(self, pid: int) -> None:
        descriptor = self._descriptors[pid]
        if descriptor != _NONE:
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)
            self._descriptors[pid] = _NONE
