"""What the tests of guests share: libvirt's own schema."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from lxml import etree

SCHEMA = "/usr/share/libvirt/schemas/domain.rng"


@pytest.fixture(scope="session")
def faults() -> Callable[[bytes], str]:
    """What libvirt's schema has against a document, "" when nothing."""
    schema = etree.RelaxNG(file=SCHEMA)

    def check(document: bytes) -> str:
        schema.validate(etree.fromstring(document))
        return str(schema.error_log)

    return check
