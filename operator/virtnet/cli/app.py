"""The commands and their arguments; what a command needs is imported when it is called, so that help is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from virtnet.cli import where
from virtnet.cli.options import (
    Files,
    Form,
    Format,
    LibvirtUri,
    LinkName,
    Netns,
    NodeLabels,
    NodeName,
    PathForm,
    PathFormat,
    QemuForm,
    State,
)
from virtnet.cli.terminal import Output

app = typer.Typer(
    name="virtnet",
    help="Keeps the virtio network path of virtual machines as policies say: bridge, uplink, tap, vhost_net.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _leave(code: int) -> None:
    if code:
        raise typer.Exit(code)


def _show_version(asked: bool) -> None:
    if asked:
        version()
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def inspect(
    policies: Annotated[
        list[str] | None,
        typer.Option("--policies", metavar="FILE", help="Compare with these; default: those the agent enforces."),
    ] = None,
    netns: Netns = None,
    state_dir: State = None,
    node_name: NodeName = None,
    node_label: NodeLabels = None,
    libvirt_uri: LibvirtUri = None,
    output: Format = Output.TABLE,
) -> None:
    """Show the whole path in one look, and what is not as asked.

    Uplinks, bridges, taps, vhost_net, QEMU's virtio models, and what differs from each policy. Needs no root; what it
    may not see is said.
    """
    from virtnet.cli import inspecting

    place = where.where(netns, state_dir, node_name, node_label, libvirt_uri)
    _leave(inspecting.run(policies or (), place, output))


@app.command()
def path(
    name: Annotated[
        str | None, typer.Argument(metavar="[DOMAIN|TAP|MAC]", help="A running guest, a tap or a NIC; default: all.")
    ] = None,
    policies: Annotated[
        list[str] | None,
        typer.Option("--policies", metavar="FILE", help="Compare with these; default: those the agent enforces."),
    ] = None,
    netns: Netns = None,
    state_dir: State = None,
    node_name: NodeName = None,
    node_label: NodeLabels = None,
    libvirt_uri: LibvirtUri = None,
    output: PathFormat = PathForm.TABLE,
    qmp: Annotated[
        list[str] | None,
        typer.Option(
            "--qmp",
            metavar="SOCKET|libvirt",
            help="Ask QEMU too: by its own QMP socket, or by libvirt, which taints the domain; repeatable.",
        ),
    ] = None,
) -> None:
    """Show the whole path of a guest's NIC, hop by hop.

    Guest NIC, QEMU, vhost, tap, bridge, uplink: what is wanted, configured and in effect, and the first hop that
    breaks the wish.
    """
    from virtnet.cli import path as command

    place = where.where(netns, state_dir, node_name, node_label, libvirt_uri)
    _leave(command.run(name, policies or (), place, output, qmp or ()))


@app.command()
def plan(
    files: Files,
    netns: Netns = None,
    state_dir: State = None,
    node_name: NodeName = None,
    node_label: NodeLabels = None,
    libvirt_uri: LibvirtUri = None,
    output: Format = Output.TABLE,
) -> None:
    """Say what apply would change, and change nothing.

    Exit code: 0 nothing to change, 2 at least one change is pending, 1 error.
    """
    from virtnet.cli import planning, policies

    place = where.where(netns, state_dir, node_name, node_label, libvirt_uri)
    _leave(planning.run(policies.read(files), place, output))


@app.command()
def apply(
    files: Files,
    allow_mass_removal: Annotated[
        bool, typer.Option("--allow-mass-removal", help="Remove also when it is most of what is managed.")
    ] = False,
    netns: Netns = None,
    state_dir: State = None,
    node_name: NodeName = None,
    node_label: NodeLabels = None,
    libvirt_uri: LibvirtUri = None,
    output: Format = Output.TABLE,
) -> None:
    """Make the host match the policies, once.

    The FILEs of one call are the whole desired state: what was applied before and is not in them is put back.

    Exit code: 0 all as asked, 3 something is left or failed, 1 error.
    """
    from virtnet.cli import applying, policies

    place = where.where(netns, state_dir, node_name, node_label, libvirt_uri)
    _leave(applying.apply(policies.read(files), place, output, allow_mass_removal=allow_mass_removal))


@app.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
def run(context: typer.Context) -> None:
    """Keep the host as the policies of a directory say."""
    from virtnet.cli import run as agent

    _leave(agent.main(context.args))


@app.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
def agent(context: typer.Context) -> None:
    """Keep this node as the policies of its cluster say."""
    from virtnet.cli import agent as of_a_cluster

    _leave(of_a_cluster.main(context.args))


@app.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
def controller(context: typer.Context) -> None:
    """Sum up the nodes of a cluster, and lead rollouts."""
    from virtnet.cli import controller as of_a_cluster

    _leave(of_a_cluster.main(context.args))


@app.command(
    name="release-nodes",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
def release_nodes(context: typer.Context) -> None:
    """Put back what was there, on all nodes of a cluster."""
    from virtnet.cli import release_nodes as uninstall

    _leave(uninstall.main(context.args))


@app.command()
def release(
    netns: Netns = None, state_dir: State = None, libvirt_uri: LibvirtUri = None, output: Format = Output.TABLE
) -> None:
    """Put back everything that was there before virtnet.

    Exit code: 0 all put back, 3 something was skipped, 1 error.
    """
    from virtnet.cli import applying

    _leave(applying.release(where.where(netns, state_dir, libvirt_uri=libvirt_uri), output))


@app.command()
def hold(
    link: LinkName = None,
    duration: Annotated[
        str, typer.Option("--for", metavar="DURATION", help="How long: 90s, 15m, 1h, 2d.", show_default=True)
    ] = "1h",
    netns: Netns = None,
    state_dir: State = None,
    output: Format = Output.TABLE,
) -> None:
    """Report, change nothing: on one link, or on the whole node."""
    from virtnet.cli import holding

    _leave(holding.hold(link, duration, where.where(netns, state_dir), output))


@app.command()
def unhold(link: LinkName = None, netns: Netns = None, state_dir: State = None, output: Format = Output.TABLE) -> None:
    """End the hold of one link, or all holds."""
    from virtnet.cli import holding

    _leave(holding.unhold(link, where.where(netns, state_dir), output))


@app.command(name="domain-xml")
def domain_xml(policies: Files, node_name: NodeName = None, node_label: NodeLabels = None) -> None:
    """Print a libvirt domain with its NICs as asked.

    It comes from standard input: virsh dumpxml --inactive --security-info NAME | virtnet domain-xml FILE. What the
    policies do not ask stays as it is, byte for byte. Neither libvirt nor the host is asked.

    Exit code: 0 nothing to change, 2 changed, 1 error.
    """
    from virtnet.cli import domain_xml as command

    _leave(command.run(policies, where.node(node_name, node_label)))


@app.command(name="qemu-args")
def qemu_args(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Policies: a file, or - for standard input.")],
    tap: Annotated[str, typer.Option("--tap", metavar="NAME", help="The tap of the NIC.")],
    mac: Annotated[str, typer.Option("--mac", metavar="MAC", help="The NIC's address.")] = "",
    guest: Annotated[str, typer.Option("--guest", metavar="NAME", help="The guest, for guest.match.domains.")] = "",
    vcpus: Annotated[int | None, typer.Option("--vcpus", metavar="N", help="Its virtual CPUs, for queues.")] = None,
    name: Annotated[
        str, typer.Option("--id", metavar="ID", help="What identifiers begin with; default: the tap.")
    ] = "",
    output: Form = QemuForm.SHELL,
    node_name: NodeName = None,
    node_label: NodeLabels = None,
) -> None:
    """Print -netdev and -device of a NIC as asked.

    For a QEMU without libvirt. Neither the host nor the tap is read: a match on what is not given is taken to hold.
    """
    from virtnet.cli import qemu_args as command

    wish = command.Wish(tap, mac, guest, vcpus, name)
    _leave(command.run(file, wish, output, where.node(node_name, node_label)))


@app.command()
def crds(
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Write one file each; default: print them all.")
    ] = None,
) -> None:
    """Write the CustomResourceDefinitions."""
    from virtnet.cli import definitions

    definitions.write(output)


@app.command()
def version() -> None:
    """Show the version."""
    import virtnet

    print(f"virtnet {virtnet.__version__}")
