"""The cluster of a test session, brought up once with the images of the work tree, and the chart installed on it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import images
from tests.cluster.cluster import Cluster
from tests.cluster.installation import Operator
from tests.cluster.nodes import Picture
from tests.cluster.sandbox import wait_until

KEEP = "VIRTNET_CLUSTER_KEEP"
"""Environment: 1 leaves the cluster as it is at the end, for a look at it, and takes over one that is left from before,
with new images and the chart as it is now. `make cluster-down CLUSTER=test` ends it."""
RESTORED_SECONDS = 30
TEST_SECONDS = 300
"""For one story; the first one of a session also waits for the cluster and the chart."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout(TEST_SECONDS))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three nodes, Ready, that know the images; nothing is installed."""
    one = Cluster(os.environ.get("VIRTNET_CLUSTER", "test"))
    keep = os.environ.get(KEEP) == "1"
    try:
        if not keep or one.control.sandbox.init is None:
            one.up(nodes=3)
        one.load(*images.TARGETS)
        yield one
    finally:
        if not keep:
            one.down()


@pytest.fixture(scope="session")
def installed(cluster: Cluster) -> Operator:
    """The chart, installed from nothing by helm 4, waited for as an administrator waits. No policy is there."""
    found = Operator(cluster)
    if found.is_installed():
        cluster.kubectl("delete", "vnp", "--all")
        found.upgrade(f"--set=agent.podAnnotations.at={time.time()},controller.podAnnotations.at={time.time()}")
    else:
        found.install()
    return found


@pytest.fixture
def virtnet(installed: Operator) -> Iterator[Operator]:
    """The same for one story, after which every policy goes, and every host has to be what it was before."""
    cluster = installed.cluster
    before = {node.name: node.picture() for node in cluster.nodes}
    yield installed
    cluster.kubectl("delete", "vnp", "--all", "--timeout=30s")
    left: dict[str, object] = {}

    def is_restored() -> bool:
        left.clear()
        left.update({node.name: _changes(before[node.name], node.picture()) for node in cluster.nodes})
        return not any(left.values())

    try:
        wait_until("every host is what it was before", is_restored, RESTORED_SECONDS, 0.5)
    except AssertionError as error:
        raise AssertionError(f"{error}: {left}") from error


def _changes(before: Picture, after: Picture) -> dict[str, object]:
    """What differs, link by link; of one that came or went only that."""
    known, links = {link for link, _ in before}, {link for link, _ in after}
    found: dict[str, object] = {link: "new" if link in links else "gone" for link in known ^ links}
    for link, key in sorted(before):
        if link in links and before[link, key] != after.get((link, key)):
            found[f"{link} {key}"] = (before[link, key], after.get((link, key)))
    return found
