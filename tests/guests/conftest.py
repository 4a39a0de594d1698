"""What the tests of guests share: libvirt's own schema, and a libvirtd."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from lxml import etree

from tests.guests import daemon
from tests.guests.daemon import Daemon
from virtnet.host import libvirt

SCHEMA = "/usr/share/libvirt/schemas/domain.rng"


@pytest.fixture(scope="session")
def faults() -> Callable[[bytes], str]:
    """What libvirt's schema has against a document, "" when nothing."""
    schema = etree.RelaxNG(file=SCHEMA)

    def check(document: bytes) -> str:
        schema.validate(etree.fromstring(document))
        return str(schema.error_log)

    return check


@pytest.fixture(scope="session")
def one_libvirtd() -> Iterator[Daemon]:
    lacking = daemon.missing() + ([] if libvirt.is_installed() else ["libvirt-python"])
    if lacking:
        pytest.fail(f"no libvirtd can be run here: {', '.join(lacking)} missing; scripts/need says how to get it")
    with daemon.running() as found:
        yield found


@pytest.fixture
def libvirtd(one_libvirtd: Daemon) -> Iterator[Daemon]:
    """A libvirtd without domains."""
    yield one_libvirtd
    one_libvirtd.clear()
