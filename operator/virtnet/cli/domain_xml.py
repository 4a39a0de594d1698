"""The command `domain-xml`: a libvirt domain from standard input, its NICs as the policies want them, to the output.

It asks neither libvirt nor the host.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from virtnet import errors
from virtnet.cli import wishes
from virtnet.core import domain_xml, markup
from virtnet.core.model import Node
from virtnet.kube import manifests

NOTHING_TO_CHANGE = 0
CHANGED = 2


def run(files: Sequence[str], node: Node) -> int:
    """The exit code: 2 when the printed domain differs from the one that was read, else 0."""
    if manifests.STDIN in files:
        raise errors.UsageError("standard input is the domain: name the policies' files")
    given = manifests.standard_input()
    if given.isatty():
        raise errors.UsageError("standard input is a terminal: write < domain.xml")
    wanted = wishes.read(files, node)
    document = given.read(markup.LARGEST + 1)
    result = domain_xml.change(document, wanted)
    sys.stdout.buffer.write(result.document)
    wishes.say(result.blocked)
    return CHANGED if result.document != document else NOTHING_TO_CHANGE
