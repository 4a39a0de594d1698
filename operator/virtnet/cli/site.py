"""The agent's small web site, /healthz /readyz /metrics, on the loop that does the work.

It answers GET and HEAD, one request a connection, and reads nothing of it but the path: what http.server and the like
bring along when they are imported (a web client, mail, HTML) takes more memory than a thousand links do.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping

from virtnet.engine import exposition
from virtnet.engine.engine import Engine
from virtnet.errors import UsageError

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 16
"""At a time. One more is closed at once: whoever can reach the port must not be able to use up our descriptors."""
SECONDS = 5.0
"""How long a connection may take."""
LONGEST_REQUEST = 16 << 10

PLAIN = "text/plain; charset=utf-8"
STATUS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}

Answer = tuple[int, str, str]
"""Status code, content type, text."""
Pages = Mapping[str, Callable[[], Answer]]


class Site:
    """A web site that is being served until `close`."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._open = 0
        self._server: asyncio.Server | None = None

    async def serve(self, listener: socket.socket) -> None:
        self._server = await asyncio.start_server(self._connected, sock=listener, limit=LONGEST_REQUEST)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= MOST_CONNECTIONS:
                await self._talk(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.debug("a request from %s failed: %s", writer.get_extra_info("peername"), error)
        finally:
            self._open -= 1
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(self._response(head.partition(b"\r\n")[0].decode("latin-1")))
            await writer.drain()

    def _response(self, request: str) -> bytes:
        """`request` is the first line: GET /healthz HTTP/1.1."""
        method, _, rest = request.partition(" ")
        code, kind, text = self._answer(method, rest.partition(" ")[0].partition("?")[0])
        body = text.encode()
        head = (
            f"HTTP/1.1 {code} {STATUS[code]}\r\n"
            f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + (b"" if method == "HEAD" else body)

    def _answer(self, method: str, path: str) -> Answer:
        if not path.startswith("/"):
            return 400, PLAIN, "this is no request\n"
        if method not in {"GET", "HEAD"}:
            return 405, PLAIN, "only GET and HEAD\n"
        if path not in self._pages:
            return 404, PLAIN, f"try {', '.join(self._pages)}\n"
        return self._pages[path]()


async def start(listen: str, pages: Pages) -> Site | None:
    """Listen on ADDRESS:PORT ("" for none). A port that is taken is a warning: enforcing goes on."""
    if not listen:
        return None
    host, port = address(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    site = Site(pages)
    try:
        await site.serve(socket.create_server((host, port), family=family, backlog=MOST_CONNECTIONS))
    except OSError as error:
        log.warning("cannot listen on %s: %s; no metrics from this process", listen, error.strerror or error)
        return None
    return site


def address(listen: str) -> tuple[str, int]:
    """ADDRESS:PORT taken apart; UsageError says how it is written."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"--listen {listen!r}: write ADDRESS:PORT, such as 127.0.0.1:9571")
    return host.strip("[]"), int(port)


def pages(engine: Engine) -> Pages:
    """What an engine says of itself."""
    return {
        "/healthz": lambda: said(*_healthy(engine)),
        "/readyz": lambda: said(*_ready(engine)),
        "/metrics": lambda: (200, exposition.CONTENT_TYPE, exposition.text(engine.metrics.registry)),
    }


def said(good: bool, sentence: str) -> Answer:
    """The answer to a question after health, as kubelet reads it."""
    return 200 if good else 503, PLAIN, sentence + "\n"


def _healthy(engine: Engine) -> tuple[bool, str]:
    """The loop answers and the last pass is not overdue by far."""
    late = engine.overdue()
    return (False, f"the last pass is {late:.0f} s overdue") if late > 0 else (True, "ok")


def _ready(engine: Engine) -> tuple[bool, str]:
    """Every policy is Ready on this node."""
    conditions = {entry["type"]: entry for entry in (engine.status or {}).get("conditions", [])}
    ready = conditions.get("Ready")
    if ready is None:
        return False, "no pass yet"
    return ready["status"] == "True", f"{ready['reason']}: {ready['message']}"
