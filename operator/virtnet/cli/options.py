"""The arguments that commands have in common, as the command-line library wants them declared."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from virtnet.cli.terminal import Output

Netns = Annotated[
    str | None, typer.Option("--netns", metavar="NAME", help="Network namespace, as `ip netns` names them.")
]
State = Annotated[
    Path | None,
    typer.Option(
        "--state-dir", metavar="DIR", readable=False, help="Where originals are kept; default /var/lib/virtnet."
    ),
]
NodeName = Annotated[
    str | None, typer.Option("--node-name", metavar="NAME", help="Name of this node; default: the host name.")
]
NodeLabels = Annotated[
    list[str] | None,
    typer.Option("--node-label", metavar="KEY=VALUE", help="A label of this node for nodeSelector; repeatable."),
]
LibvirtUri = Annotated[
    str | None,
    typer.Option("--libvirt-uri", metavar="URI", help="Whose guests; default: the system's libvirt, where it listens."),
]
Format = Annotated[Output, typer.Option("--output", "-o", help="Tables for people, json and yaml for programs.")]
Files = Annotated[
    list[str], typer.Argument(metavar="FILE", help="Policy files, directories of them, or - for standard input.")
]
LinkName = Annotated[str | None, typer.Argument(metavar="[LINK]", help="One link; without it the whole node.")]


class QemuForm(StrEnum):
    """How `qemu-args` prints."""

    SHELL = "shell"
    JSON = "json"
    READCONFIG = "readconfig"


Form = Annotated[QemuForm, typer.Option("--output", "-o", help="For a shell, for a program, for -readconfig.")]


class PathForm(StrEnum):
    """How `path` shows what it found."""

    TABLE = "table"
    SVG = "svg"
    JSON = "json"


PathFormat = Annotated[PathForm, typer.Option("--output", "-o", help="For people, as a picture, for programs.")]
