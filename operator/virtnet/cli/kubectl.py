"""The plugin `kubectl virtnet`: the virtio network path of a whole cluster, in the tables of `virtnet inspect`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from virtnet import __main__ as entry
from virtnet import errors
from virtnet.cli import remote, terminal
from virtnet.cli.options import Format
from virtnet.cli.remote import Cluster, Object
from virtnet.cli.terminal import Output

NAMESPACE = "virtnet-system"
DIFFERENT = 2
"""The exit code of `diff` when something is not as asked; that of `virtnet plan` with a pending change."""

app = typer.Typer(
    name="kubectl-virtnet",
    help="Shows the virtio network path of the virtual machines of a cluster.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

Kubeconfig = Annotated[
    str | None, typer.Option("--kubeconfig", metavar="FILE", help="Default: $KUBECONFIG, then ~/.kube/config.")
]
Context = Annotated[str | None, typer.Option("--context", metavar="NAME", help="The context of the kubeconfig.")]
Namespace = Annotated[
    str, typer.Option("--namespace", "-n", metavar="NAME", help="Where the operator is installed: its agents' pods.")
]


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code; errors become one sentence, as with `virtnet`."""
    given = sys.argv[1:] if arguments is None else arguments
    return entry.guarded(lambda: entry.typed(app, "kubectl virtnet", given))


@app.command()
def status(
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    namespace: Namespace = NAMESPACE,
    output: Format = Output.TABLE,
) -> None:
    """Show all policies, all nodes, and the agents that are not well."""
    from virtnet.cli import fleet

    cluster = Cluster.connect(kubeconfig, context)
    policies, states = cluster.list(remote.POLICIES), cluster.list(remote.NODE_STATES)
    if output is not Output.TABLE:
        terminal.emit({"policies": [_plain(one) for one in policies], "nodes": [_plain(one) for one in states]}, output)
        return
    fleet.show_status(terminal.console(), policies, states, _pods(cluster, namespace))


@app.command()
def diff(
    node: Annotated[str, typer.Argument(metavar="NODE", help="The node's name.")],
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    namespace: Namespace = NAMESPACE,
    output: Format = Output.TABLE,
) -> None:
    """Show what is not as asked on one node, as its agent saw it last.

    Exit code: 0 everything is as asked, 2 something is not, 1 error.
    """
    from virtnet.cli import fleet

    cluster = Cluster.connect(kubeconfig, context)
    state = _get(cluster, remote.NODE_STATES, node, "is no node with an agent")
    if output is Output.TABLE:
        fleet.show_node(terminal.console(), state, _agent_on(node, _pods(cluster, namespace)))
    else:
        terminal.emit(dict(fleet.status(state)), output)
    if fleet.rows(state):
        raise typer.Exit(DIFFERENT)


@app.command()
def why(
    policy: Annotated[str, typer.Argument(metavar="POLICY", help="The policy's name.")],
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    output: Format = Output.TABLE,
) -> None:
    """Explain why a policy is not Ready, or not Complete: what stands in its way, and on which nodes."""
    from virtnet.cli import fleet

    cluster = Cluster.connect(kubeconfig, context)
    wanted = _get(cluster, remote.POLICIES, policy, "is no policy")
    states = cluster.list(remote.NODE_STATES)
    if output is Output.TABLE:
        fleet.show_why(terminal.console(), wanted, states)
    else:
        terminal.emit(_why(wanted, states), output)


def _why(policy: Object, states: Sequence[Object]) -> dict[str, Any]:
    from virtnet.cli import fleet
    from virtnet.core import report

    found = fleet.findings(remote.name(policy), states)
    return {
        **_plain(policy),
        "waiting": fleet.waiting(policy, states),
        "findings": [{**report.row_json(one.row), "nodes": list(one.nodes)} for one in found],
    }


def _plain(one: Object) -> dict[str, Any]:
    """Name and status; the mode where there is one."""
    mode = (one.get("spec") or {}).get("mode")
    return {"name": remote.name(one), **({"mode": mode} if mode else {}), "status": one.get("status") or {}}


def _get(cluster: Cluster, path: str, name: str, unknown: str) -> Object:
    """One object by name; a wrong name is told together with the names that there are."""
    try:
        return cluster.get(f"{path}/{name}")
    except errors.NotFound as error:
        names = ", ".join(map(remote.name, cluster.list(path))) or "none at all"
        raise errors.UsageError(f"{name} {unknown}; there are: {names}") from error


def _pods(cluster: Cluster, namespace: str) -> list[Object] | None:
    try:
        return cluster.list(remote.agents(namespace), remote.AGENTS)
    except errors.Forbidden as error:
        terminal.say(f"the agents' pods cannot be seen: {error}")
        return None


def _agent_on(node: str, pods: Sequence[Object] | None) -> str:
    """A sentence about the agent of a node; "" when pods may not be read."""
    from virtnet.cli import fleet

    if pods is None:
        return ""
    here = [pod for pod in pods if fleet.node_of(pod) == node]
    if not here:
        return "no agent is running there"
    why = fleet.pod_trouble(here[0])
    return f"agent {remote.name(here[0])} " + (f"is not ready: {why}" if why else "is ready")
