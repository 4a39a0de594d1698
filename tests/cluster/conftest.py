"""The cluster of a test session: brought up once, with the images of the work tree, and ended with the session."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.cluster import images
from tests.cluster.cluster import Cluster

KEEP = "VIRTNET_CLUSTER_KEEP"
"""Environment: 1 leaves the cluster as it is at the end, for a look at it. `make cluster-down CLUSTER=test` ends it."""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three nodes, Ready, that know the images; nothing is installed."""
    one = Cluster(os.environ.get("VIRTNET_CLUSTER", "test"))
    try:
        one.up(nodes=3)
        one.load(*images.TARGETS)
        yield one
    finally:
        if os.environ.get(KEEP) != "1":
            one.down()
