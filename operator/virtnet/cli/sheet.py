"""The one sheet of `inspect` for people, drawn from the same data that programs get; calm where all is well."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from virtnet.cli import tables
from virtnet.cli.survey import Data
from virtnet.cli.tables import BAD, GOOD, HEADING, NOTHING, QUIET, SETTLED, text
from virtnet.cli.terminal import plain
from virtnet.core.model import Mode, Policy, Row
from virtnet.values import frozen

NAME = 15
"""The longest interface name (IFNAMSIZ without its NUL)."""


@frozen
class Sheet:
    """What is drawn.

    `host` is as programs get it, `qemu` a sentence, `selected` the names of the policies that select this node, `rows`
    what differs (None: no policy is known), `drifts` how often each policy was defended, `not_ready` why the node is
    not Ready, `holds` until when whom.
    """

    title: str
    host: Mapping[str, list[Data]]
    vhost: Data | None
    qemu: str
    policies: Sequence[Policy] = ()
    selected: frozenset[str] = frozenset()
    drifts: Mapping[str, int] = field(default_factory=dict)
    rows: Sequence[Row] | None = None
    not_ready: str = ""
    holds: Mapping[str, str] = field(default_factory=dict)


def show(console: Console, sheet: Sheet) -> None:
    """Everything on one sheet; what differs comes last, next to the prompt."""
    console.print(text(sheet.title, QUIET))
    console.print()
    _section(console, "UPLINKS", _uplinks(sheet.host["uplinks"]))
    _section(console, "BRIDGES", _bridges(sheet.host["bridges"]))
    _section(console, "TAPS", _taps(sheet.host["taps"]))
    _section(console, "VHOST_NET", _vhost(sheet.vhost))
    _section(console, "QEMU", _sentence(sheet.qemu))
    tables.show_holds(console, sheet.holds)
    _policies(console, sheet)


def _section(console: Console, heading: str, table: Table) -> None:
    console.print(text(heading, HEADING))
    tables.draw(console, table if table.row_count else _sentence("none"))
    console.print()


def _sentence(sentence: str) -> Table:
    table = tables.grid("")
    table.add_row("", text(sentence, QUIET if sentence == "none" else ""))
    return table


def _records(width: int = NAME) -> Table:
    """Name and state of a link, and then as many lines about it as it needs."""
    table = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(width=0)
    table.add_column(width=width, no_wrap=True)
    table.add_column(width=10)
    table.add_column(overflow="fold", ratio=1)
    return table


def _record(table: Table, link: Data, state: Text, lines: Iterable[Text]) -> None:
    first, *others = [line for line in lines if line.plain] or [Text()]
    table.add_row("", text(link["name"], "bold"), state, first)
    for line in others:
        table.add_row("", "", "", line)


def _state(link: Data) -> Text:
    if not link["up"]:
        return text("down", QUIET)
    return text("up", GOOD) if link["carrier"] else text("no carrier", SETTLED)


# --- uplinks -----------------------------------------------------------------------------------------------


def _uplinks(links: Sequence[Data]) -> Table:
    table = _records()
    for link in links:
        _record(table, link, _state(link), [_driver(link), _tuning(link), *_offloads(link["offloads"])])
    return table


def _driver(link: Data) -> Text:
    parts = [
        f"mtu {link['mtu']}",
        " ".join(word for word in (link["driver"], link["version"]) if word),
        f"at {link['bus']}" if link["bus"] else "",
        f"firmware {link['firmware']}" if link["firmware"] else "",
        f"on {link['lower']}" if link["lower"] else "",
        f"in {link['master']}" if link["master"] else "",
    ]
    return tables.listed(parts)


def _tuning(link: Data) -> Text:
    return tables.listed([_amounts("rings", link["rings"]), _amounts("channels", link["channels"])])


def _amounts(what: str, found: Mapping[str, Any] | None) -> str:
    """`rings rx 256/4096 tx 256/4096`: what is set of what is possible."""
    if not found or "unreadable" in found:
        return f"{what} not readable" if found else ""
    known = [key for key, value in found.items() if value is not None and not key.endswith("Max")]
    amounts = (f"{key} {found[key]}/{found.get(key + 'Max') or '?'}" for key in known)
    return f"{what} {' '.join(amounts)}" if known else ""


def _offloads(found: Mapping[str, Any]) -> list[Text]:
    """On, off, and what no one can change: by name, so that two links can be compared by eye."""
    if "unreadable" in found:
        return [text("offloads not readable", SETTLED)]
    lines = []
    for label, active, fixed in (("on", True, False), ("off", False, False), ("fixed on", True, True)):
        lines.append(
            _names(label, [key for key, seen in found.items() if (seen["active"], seen["fixed"]) == (active, fixed)])
        )
    lines.append(_names("fixed off", [key for key, seen in found.items() if seen["fixed"] and not seen["active"]]))
    return [line for line in lines if line.plain]


def _names(label: str, names: Sequence[str]) -> Text:
    if not names:
        return Text()
    style = QUIET if label.startswith("fixed") else ""
    return Text.assemble((f"{label:<10}", QUIET), (" ".join(names), style), overflow="fold")


# --- bridges -----------------------------------------------------------------------------------------------


def _bridges(links: Sequence[Data]) -> Table:
    table = _records()
    for link in links:
        ports = Text.assemble((f"{'ports':<10}", QUIET), plain(" ".join(link["ports"])) or NOTHING, overflow="fold")
        _record(table, link, _state(link), [ports, _options(link), *_offloads(link["offloads"])])
    return table


def _options(link: Data) -> Text:
    found = link["options"]
    if not found:
        return Text()
    mask = found["groupForwardMask"]
    return tables.listed(
        [
            f"mtu {link['mtu']}",
            f"stp {tables.value_word(found['stp'])}",
            f"forward delay {found['forwardDelaySeconds']:g} s",
            f"ageing {found['ageingTimeSeconds']:g} s",
            f"snooping {tables.value_word(found['multicastSnooping'])}",
            f"vlan filtering {tables.value_word(found['vlanFiltering'])}",
            f"group forward mask {mask:#x}" if mask else "",
        ]
    )


# --- taps --------------------------------------------------------------------------------------------------


def _taps(links: Sequence[Data]) -> Table:
    table = _records()
    for link in links:
        _record(table, link, _tap_state(link), [_flags(link), _holder(link)])
    return table


def _flags(link: Data) -> Text:
    seen = link["offloads"]
    offloads = [f"{key} {tables.value_word(seen[key]['active'])}" for key in ("gro", "gso") if key in seen]
    parts = [
        f"mtu {link['mtu']}",
        f"in {link['master']}" if link["master"] else "in no bridge",
        f"vnet_hdr {tables.value_word(link['vnetHdr'])}",
        _queues(link),
        f"owner {link['owner']}" if link["owner"] is not None else "",
        f"group {link['group']}" if link["group"] is not None else "",
        *offloads,
        "offloads not readable" if "unreadable" in seen else "",
    ]
    return tables.listed(parts)


def _queues(link: Data) -> str:
    if not link["multiQueue"]:
        return "one queue"
    return "multi-queue" + (f" ({link['queues']} open)" if link["queues"] else "")


def _tap_state(link: Data) -> Text:
    """A tap has its carrier from the process that holds it."""
    if not link["up"]:
        return text("down", QUIET)
    return text("held", GOOD) if link["held"] else text("free", QUIET)


def _holder(link: Data) -> Text:
    if link["holders"]:
        return tables.listed(["held by " + _process(link["holders"][0]), *map(_process, link["holders"][1:])])
    return text("held by a process that cannot be seen from here", SETTLED) if link["held"] else Text()


def _process(found: Data) -> str:
    return f"{found['command']}[{found['pid']}]" + (f" (guest {found['guest']})" if found["guest"] else "")


# --- vhost_net ---------------------------------------------------------------------------------------------

_MODULE = {
    "Loaded": "loaded",
    "Absent": "not loaded; this kernel has it",
    "BuiltIn": "built into this kernel",
    "Missing": "this kernel does not have it",
}


def _vhost(found: Data | None) -> Table:
    if found is None:
        return _sentence("cannot be read")
    table = tables.grid("")
    references = found.get("refcount")
    used = f", {tables.count(references, 'reference')}" if references is not None else ""
    table.add_row("", text(_MODULE[found["module"]] + used))
    parameters = [f"{name}={value}" for name, value in sorted(found.get("parameters", {}).items())]
    users = found.get("users", ())
    for line in (tables.listed(parameters), tables.listed([f"used by {users[0]}", *users[1:]] if users else [])):
        if line:
            table.add_row("", line)
    return table


# --- policies ----------------------------------------------------------------------------------------------


def _policies(console: Console, sheet: Sheet) -> None:
    console.print(text("POLICIES", HEADING))
    if sheet.rows is None:
        tables.draw(console, _sentence("none is known here: name files with --policies"))
        return
    table = tables.grid("bold", "")
    for policy in sheet.policies:
        table.add_row("", text(policy.name), _verdict(policy, sheet))
    tables.draw(console, table if table.row_count else _sentence("none"))
    if sheet.not_ready:
        notice = tables.grid(BAD)
        notice.add_row("", text(f"Not ready: {sheet.not_ready}"))
        tables.draw(console, notice)
    if sheet.rows:
        console.print()
        tables.show_reasons(console, "DIFFERS", sheet.rows, policies=len(sheet.policies) > 1)


def _verdict(policy: Policy, sheet: Sheet) -> Text:
    if policy.name not in sheet.selected:
        return text("does not select this node", QUIET)
    differing = sum(row.policy == policy.name for row in sheet.rows or ())
    drifts = sheet.drifts.get(policy.name, 0)
    parts = [
        f"{tables.count(differing, 'setting')} not as asked" if differing else "as asked",
        f"{policy.mode} only" if policy.mode is Mode.AUDIT else "",
        f"drifted {tables.count(drifts, 'time')}" if drifts else "",
    ]
    return tables.listed(parts, SETTLED if differing else GOOD)
