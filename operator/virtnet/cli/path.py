"""The command `path`: the whole path of guests' NICs as a picture of hops; it changes nothing."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from virtnet.cli import inspecting, policies, terminal
from virtnet.cli.options import PathForm
from virtnet.cli.tables import BAD, GOOD, HEADING, QUIET, SETTLED, text
from virtnet.cli.where import Where
from virtnet.core import path as paths
from virtnet.core.model import HostState
from virtnet.core.path import Hop, Path, Switch
from virtnet.errors import UsageError
from virtnet.host import libvirt, qmp
from virtnet.host import monitors as host_monitors

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

LIBVIRT = "libvirt"
"""Beside sockets, which have a `/` in their names or can be written with one."""

PICTURE_WIDTH = 110
"""Columns of an SVG: a hop's switches in one or two lines."""

TITLES = {
    paths.GUEST: "guest NIC",
    paths.QEMU: "QEMU",
    paths.VHOST: "vhost",
    paths.TAP: "tap",
    paths.BRIDGE: "bridge",
    paths.UPLINK: "uplink",
}
_TITLE = 9
_FONTS = re.compile(r"\s*@font-face\s*\{[^}]*\}")


def run(name: str | None, files: Sequence[str], place: Where, form: PathForm, monitors: Sequence[str] = ()) -> int:
    """Always 0 when the path could be looked at: what breaks it is news, not an error.

    `monitors` are sockets of QMP, and LIBVIRT for the monitors that libvirt holds.
    """
    wanted = policies.read(files) if files else None
    policies.say_doubts(wanted or ())
    with place.open(write=False) as workplace:
        found = inspecting.look(workplace, wanted)
        for notice in workplace.notices:
            terminal.say(notice)
    plans = paths.Plans(tuple(found.look.desired.policies.values()), found.look.desired, found.rows or ())
    state = _asked(found.state, name, monitors, place) if monitors else found.state
    traced = paths.trace(state, plans, name)
    if form is PathForm.JSON:
        print(json.dumps([to_json(path) for path in traced], indent=2))
    elif form is PathForm.SVG:
        print(svg(traced))
    else:
        show(terminal.console(), traced)
    return 0


def _asked(state: HostState, name: str | None, monitors: Sequence[str], place: Where) -> HostState:
    """The look with what the QEMUs themselves tell; by libvirt only those whose path is shown, for it taints them."""
    told = qmp.tell(state.running, [each for each in monitors if each != LIBVIRT])
    if LIBVIRT in monitors:
        uri = place.libvirt_uri or libvirt.default_uri()
        if uri is None:
            raise UsageError("--qmp libvirt: no libvirt listens here; name one by --libvirt-uri")
        told = host_monitors.tell(told, uri, paths.processes(state, name))
    return replace(state, running=told)


# --- for programs ------------------------------------------------------------------------------------------


def to_json(path: Path) -> dict[str, Any]:
    """A path as programs get it: `broken` is the number of the first hop that breaks the wish, null when none does."""
    return {
        "guest": path.guest,
        "mac": path.mac,
        "tap": path.tap,
        "broken": path.first,
        "sentence": path.sentence,
        "hops": [_hop_json(hop) for hop in path.hops],
    }


def _hop_json(hop: Hop) -> dict[str, Any]:
    return {
        "kind": hop.kind,
        "name": hop.name,
        "facts": list(hop.facts),
        "switches": [
            {"name": each.name, "wanted": each.wanted, "configured": each.configured, "actual": each.actual}
            for each in hop.switches
        ],
        "breaks": list(hop.breaks),
        "remarks": list(hop.remarks),
    }


# --- for people --------------------------------------------------------------------------------------------


def svg(traced: Sequence[Path]) -> str:
    """The picture as one SVG document that loads nothing from anywhere."""
    from rich.console import Console
    from rich.terminal_theme import SVG_EXPORT_THEME

    console = Console(
        file=io.StringIO(),
        record=True,
        width=PICTURE_WIDTH,
        markup=False,
        emoji=False,
        highlight=False,
        force_terminal=True,
        color_system="truecolor",
    )
    show(console, traced)
    names = ", ".join(dict.fromkeys(path.guest or path.tap for path in traced))
    drawn = console.export_svg(title=terminal.plain(f"virtnet path {names}"), theme=SVG_EXPORT_THEME, unique_id="path")
    return _FONTS.sub("", drawn)


def show(console: Console, traced: Iterable[Path]) -> None:
    """Each path from the guest down to the uplink; what breaks it comes last, next to the prompt."""
    empty = True
    for path in traced:
        console.print() if not empty else None
        _show_path(console, path)
        empty = False
    if empty:
        console.print(text("there is no tap here", QUIET))


def _show_path(console: Console, path: Path) -> None:
    console.print(text(" ".join(filter(None, (path.guest or path.tap, path.mac))), HEADING))
    console.print()
    for place, hop in enumerate(path.hops):
        if place:
            console.print(text("  │", QUIET))
        for line in _lines(hop, broken=place == path.first, width=console.width):
            console.print(line)
    console.print()
    if path.sentence:
        console.print(text(f"  ✗ {path.sentence}", f"bold {BAD}"), soft_wrap=True)
    elif any(switch.wanted is not None for hop in path.hops for switch in hop.switches):
        console.print(text("  ✓ the path is as the policies want it", GOOD))
    else:
        console.print(text("  no policy asks anything of this path", QUIET))


def _lines(hop: Hop, *, broken: bool, width: int) -> Iterator[Text]:
    """`● tap  tap0  facts`, then its switches, what it breaks (yellow, the first in red) and what is remarkable."""
    from rich.text import Text

    style = f"bold {BAD}" if broken else SETTLED if hop.breaks else "bold"
    head = Text.assemble((f"  {'✗' if broken else '●'} ", style if hop.breaks else GOOD))
    head.append(f"{TITLES[hop.kind]:<{_TITLE}}  ", f"bold {BAD}" if broken else QUIET)
    head.append(terminal.plain(hop.name), style)
    yield from _wrapped(head, [text(fact, QUIET) for fact in hop.facts], width)
    if hop.switches:
        yield from _wrapped(_gutter(), [_switch(switch) for switch in hop.switches], width)
    for number, sentence in enumerate(hop.breaks):
        yield from _wrapped(_gutter(), [text(sentence, BAD if broken and not number else SETTLED)], width)
    for sentence in hop.remarks:
        yield from _wrapped(_gutter(), [text(f"note: {sentence}", SETTLED)], width)


def _gutter() -> Text:
    return text(f"  │ {'':<{_TITLE}}", QUIET)


def _wrapped(head: Text, parts: Sequence[Text], width: int) -> Iterator[Text]:
    """`head  part · part`, broken between parts where it can be, below the gutter where it goes on."""
    line, fresh = head.copy(), True
    room = max(width - _gutter().cell_len - 2, 20)
    for part in parts:
        for number, piece in enumerate(_pieces(part, room)):
            if number or line.cell_len + 3 + piece.cell_len > width:
                yield line
                line, fresh = _gutter(), True
            line.append("  " if fresh else " · ", QUIET).append_text(piece)
            fresh = False
    yield line


def _pieces(part: Text, room: int) -> Sequence[Text]:
    return [part] if part.cell_len <= room else [_trimmed(piece) for piece in part.wrap(_ruler(), room)]


def _trimmed(piece: Text) -> Text:
    piece.rstrip()
    return piece


def _ruler() -> Console:
    from rich.console import Console

    return Console(file=io.StringIO(), width=PICTURE_WIDTH)


def _switch(switch: Switch) -> Text:
    """`tso4 on`; `tso4 off → on` where it is wanted otherwise; `tso4 off (told on)` where QEMU was told otherwise."""
    from rich.text import Text

    seen = switch.configured if switch.actual is None else switch.actual
    drawn = Text.assemble((f"{switch.name} ", QUIET), (_word(seen), BAD if switch.wrong else ""))
    if switch.wrong:
        drawn.append(" → ", QUIET).append(_word(switch.wanted), "bold")
    elif switch.wanted is not None:
        drawn.append(" ✓", GOOD)
    if switch.actual is not None and switch.configured not in {None, switch.actual}:
        drawn.append(f" (told {_word(switch.configured)})", QUIET)
    return drawn


def _word(value: Any) -> str:
    if value is None:
        return "?"
    return ("on" if value else "off") if isinstance(value, bool) else terminal.plain(value)
