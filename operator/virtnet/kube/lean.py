"""Imports kopf without the client libraries that it would load only because they are installed.

kopf looks for `kubernetes` and `pykube` to log in with their help, which we do ourselves; they would cost an agent a
third of its memory. Who uses kopf writes `from virtnet.kube.lean import kopf`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

UNWANTED = ("kubernetes", "kubernetes_asyncio", "pykube")


@contextmanager
def _without(names: Iterable[str]) -> Iterator[None]:
    """None in sys.modules is how the import system is told that there is no such module."""
    modules: dict[str, Any] = sys.modules
    hidden = [name for name in names if name not in modules]
    modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]


with _without(UNWANTED):
    import kopf as kopf  # noqa: PLC0414 - the alias says that it is meant for others
