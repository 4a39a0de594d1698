"""What must still work after a change that can cut the node off; it asks, and leaves every decision to the caller.

gateway      it is the next hop of a default route and has just answered neighbour discovery or, where that cannot
             tell, a ping
tcp          a connection is accepted or refused by HOST:PORT: a refusal has come all the way back, too
apiServer    the same, under the name that users know
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Literal

from virtnet.errors import HostError, Refused, Temporary
from virtnet.host import gateways as routers
from virtnet.host import names, netlink
from virtnet.host.namespaces import Namespace
from virtnet.host.netlink import Connection
from virtnet.values import frozen

__all__ = ["Probe", "confirm", "gateways", "working"]

Kind = Literal["gateway", "tcp", "apiServer"]

_SPOKEN = {"gateway": "gateway", "tcp": "TCP", "apiServer": "API server"}
_PAUSE_SECONDS = 0.1
_CONNECT_SECONDS = 2.0
"""A lost SYN is sent again after 1 s and 3 s (RFC 6298); after a link came back, a fresh one is faster."""
_KERNEL_SECONDS = 1.0
_ADDRESSES_TRIED = 8


@frozen
class Probe:
    """One thing to ask. `target` is "ADDRESS%LINK" for a gateway, else "HOST:PORT" or "[IPV6]:PORT"."""

    kind: Kind
    target: str

    def __str__(self) -> str:
        return f"{_SPOKEN[self.kind]} {self.target}"


def gateways(namespace: Namespace) -> list[Probe]:
    """One probe for each gateway of a default route, IPv4 and IPv6; raises HostError."""
    with _connected(namespace) as connection:
        return [Probe("gateway", str(gateway)) for gateway in routers.find(connection, namespace)]


async def working(probes: Iterable[Probe], namespace: Namespace, within: float = 1.0) -> frozenset[Probe]:
    """The probes that work now: one attempt each, all at the same time, `within` seconds in total.

    What does not work before a change is not held against it.
    """
    outcomes = await _gather(probes, namespace, lambda ask: _once(ask, within))
    return frozenset(probe for probe, failure in outcomes.items() if failure is None)


async def confirm(probes: Iterable[Probe], namespace: Namespace, within: float) -> dict[Probe, str]:
    """Why each probe that never worked did not; empty, and at once, when all have worked. `within` seconds in total.

    Each is asked again and again until it works: links need a moment to come back after a change.
    """
    outcomes = await _gather(probes, namespace, lambda ask: _again(ask, within))
    return {probe: failure for probe, failure in outcomes.items() if failure is not None}


Ask = Callable[[], Awaitable[None]]
"""One attempt: returns when it worked, raises HostError with the reason when it did not."""


async def _gather(
    probes: Iterable[Probe], namespace: Namespace, patience: Callable[[Ask], Awaitable[str | None]]
) -> dict[Probe, str | None]:
    with _connected(namespace) as connection:

        async def outcome(probe: Probe) -> str | None:
            return await patience(lambda: _ask(probe, connection, namespace))

        async with asyncio.TaskGroup() as group:
            tasks = {probe: group.create_task(outcome(probe)) for probe in probes}
        return {probe: task.result() for probe, task in tasks.items()}


async def _once(ask: Ask, within: float) -> str | None:
    try:
        async with asyncio.timeout(within):
            await ask()
            return None
    except (HostError, TimeoutError) as error:
        return str(error) or f"no answer within {within:g} s"


async def _again(ask: Ask, within: float) -> str | None:
    reason = f"no answer within {within:.3g} s"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within):
            while True:
                try:
                    await ask()
                    return None
                except HostError as error:
                    reason = f"{error}, for {within:.3g} s"
                await asyncio.sleep(_PAUSE_SECONDS)
    return reason


async def _ask(probe: Probe, connection: Connection, namespace: Namespace) -> None:
    if probe.kind == "gateway":
        await routers.ask(probe.target, connection, namespace)
    else:
        await _connect(probe.target, namespace)


@contextlib.contextmanager
def _connected(namespace: Namespace) -> Iterator[Connection]:
    connection = Connection(netlink.ROUTE, namespace, timeout=_KERNEL_SECONDS)
    try:
        yield connection
    finally:
        connection.close()


# --- TCP ---------------------------------------------------------------------------------------------------


async def _connect(target: str, namespace: Namespace) -> None:
    """To every address of the name at once: a name often has an IPv6 address that leads nowhere."""
    host, port = _split(target)
    found = (await names.resolve(host, namespace))[:_ADDRESSES_TRIED]
    attempts = [asyncio.ensure_future(_connect_to(address, port, namespace)) for address in found]
    try:
        reasons = []
        for attempt in asyncio.as_completed(attempts):
            reason = await attempt
            if reason is None:
                return
            reasons.append(reason)
        raise Temporary("; ".join(reasons))
    finally:
        await _stop(attempts)


def _split(target: str) -> tuple[str, int]:
    host, _, port = target.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise Refused(f"{target!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


async def _connect_to(address: names.Address, port: int, namespace: Namespace) -> str | None:
    """None when the way to this address and back works, else why not."""
    text, scope = address
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    where = (text, port) if family == socket.AF_INET else (text, port, 0, scope)
    try:
        with _stream(family, namespace) as attempt:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await asyncio.get_running_loop().sock_connect(attempt, where)
    except ConnectionRefusedError:
        return None
    except TimeoutError:
        return f"{text} does not answer"
    except OSError as error:
        return f"{text}: {error.strerror or error}"
    return None


def _stream(family: int, namespace: Namespace) -> socket.socket:
    with namespace.entered():
        return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)


async def _stop(attempts: Iterable[asyncio.Future[str | None]]) -> None:
    for attempt in attempts:
        attempt.cancel()
    await asyncio.gather(*attempts, return_exceptions=True)
