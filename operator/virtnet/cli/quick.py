"""`plan` and `apply` as they are usually called, without the command-line library, which takes longer than their work.

It knows the names of the arguments and nothing else: whatever is not plainly right, and every request for help, is left
to the library, which explains. A test holds that both know the same arguments.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from virtnet.cli import where
from virtnet.cli.policies import Read
from virtnet.cli.terminal import Output


class NotPlain(Exception):
    """For the library to explain."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise NotPlain(message)


def parser(name: str) -> argparse.ArgumentParser:
    """Of the command `name`; it raises `NotPlain`."""
    found = _Parser(add_help=False, allow_abbrev=False)
    add = found.add_argument
    add("files", nargs="+")
    add("--netns")
    add("--state-dir", type=Path)
    add("--node-name")
    add("--node-label", action="append")
    add("--libvirt-uri")
    add("--output", "-o", type=Output, default=Output.TABLE)
    if name == "apply":
        add("--allow-mass-removal", action="store_true")
    return found


def command(arguments: Sequence[str], read: Read) -> Callable[[], int] | None:
    """What carries these arguments out and returns the exit code; None when they are for the library."""
    name = arguments[0]
    try:
        given = parser(name).parse_args(arguments[1:])
    except NotPlain:
        return None
    return lambda: _carry_out(name, given, read)


def _carry_out(name: str, given: argparse.Namespace, read: Read) -> int:
    place = where.where(given.netns, given.state_dir, given.node_name, given.node_label, given.libvirt_uri)
    with place.seen_once() as seen:
        if name == "plan":
            from virtnet.cli import planning

            return planning.run(read(given.files), seen, given.output)
        from virtnet.cli import applying

        wanted = read(given.files)
        return applying.apply(wanted, seen, given.output, allow_mass_removal=given.allow_mass_removal)
