"""The agent's small web site, /healthz /readyz /metrics, on a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

from virtnet.engine.engine import Engine
from virtnet.errors import UsageError

log = logging.getLogger(__name__)

Start = Callable[[str, list[tuple[str, str]]], Any]


class Site:
    """A running web site; `close` ends it."""

    def __init__(self, server: WSGIServer) -> None:
        self._server = server
        self.port: int = server.server_port
        self._thread = threading.Thread(target=server.serve_forever, name="site", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(WSGIServer):
    request_queue_size = 16
    timeout = 5

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a request from %s failed", client_address)


class _Handler(WSGIRequestHandler):
    timeout = 5

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("%s", format % args)


def start(listen: str, engine: Engine) -> Site | None:
    """Listen on ADDRESS:PORT ("" for none). A port that is taken is a warning: enforcing goes on."""
    if not listen:
        return None
    host, port = address(listen)
    try:
        server = make_server(host, port, _app(engine), server_class=_Server, handler_class=_Handler)
    except OSError as error:
        log.warning("cannot listen on %s: %s; no metrics from this process", listen, error.strerror or error)
        return None
    return Site(server)


def address(listen: str) -> tuple[str, int]:
    """ADDRESS:PORT taken apart; UsageError says how it is written."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"--listen {listen!r}: write ADDRESS:PORT, such as 127.0.0.1:9571")
    return host.strip("[]"), int(port)


def _app(engine: Engine) -> Callable[[dict[str, Any], Start], Iterable[bytes]]:
    metrics = make_wsgi_app(engine.metrics.registry)
    pages = {"/healthz": lambda: _healthy(engine), "/readyz": lambda: _ready(engine)}

    def app(environ: dict[str, Any], respond: Start) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            answer: Iterable[bytes] = metrics(environ, respond)
            return answer
        good, text = pages[path]() if path in pages else (None, "try /healthz, /readyz or /metrics")
        status = {True: "200 OK", False: "503 Service Unavailable", None: "404 Not Found"}[good]
        respond(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [text.encode() + b"\n"]

    return app


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
