"""prometheus-client's numbers and their text, without the web server that the whole package brings.

Its `__init__` imports a web server, a web client, mail and TLS: eight megabytes in a process of forty, and a sixth of
the time of a start. Its submodules need none of that, so they are imported below a package that was found and not run.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_PACKAGE = "prometheus_client"


@contextmanager
def _without_running_the_package() -> Iterator[None]:
    """Whoever imports it later gets all of it, made of the same submodules."""
    spec = None if _PACKAGE in sys.modules else importlib.util.find_spec(_PACKAGE)
    if spec is None:  # it was run already, or it is not there and the import says so
        yield
        return
    sys.modules[_PACKAGE] = importlib.util.module_from_spec(spec)
    try:
        yield
    finally:
        del sys.modules[_PACKAGE]


with _without_running_the_package():
    from prometheus_client.metrics import Counter, Gauge, Histogram, disable_created_metrics
    from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE
    from prometheus_client.openmetrics.exposition import generate_latest
    from prometheus_client.registry import CollectorRegistry as Registry

__all__ = ["CONTENT_TYPE", "Counter", "Gauge", "Histogram", "Registry", "text"]

disable_created_metrics()  # type: ignore[no-untyped-call]  # no alert asks when a count began


def text(registry: Registry) -> str:
    """All metrics of a registry in the OpenMetrics format, which Prometheus reads since 2.5."""
    found: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]
    return found.decode()
