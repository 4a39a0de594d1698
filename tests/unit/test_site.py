"""The web site: what it answers, and that nobody can hold it up or use up its descriptors."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from virtnet import errors
from virtnet.cli import site
from virtnet.cli.site import MOST_CONNECTIONS, Site

PAGES = {"/healthz": lambda: site.said(True, "ok"), "/readyz": lambda: site.said(False, "Missing: br9")}


def on_site(talk: Callable[[int], Awaitable[list[bytes]]]) -> list[bytes]:
    """What `talk`, given the port, heard from a running site."""

    async def run() -> list[bytes]:
        listener = socket.create_server(("127.0.0.1", 0))
        served = Site(PAGES)
        await served.serve(listener)
        try:
            return await talk(listener.getsockname()[1])
        finally:
            served.close()

    return asyncio.run(run())


async def ask(port: int, request: bytes) -> bytes:
    """Everything that is answered until the site closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def answers(*requests: bytes) -> list[bytes]:
    async def talk(port: int) -> list[bytes]:
        return [await ask(port, request) for request in requests]

    return on_site(talk)


def test_a_page_is_answered_whole_and_the_connection_closed() -> None:
    (answer,) = answers(b"GET /healthz?verbose HTTP/1.1\r\nHost: here\r\n\r\n")
    assert answer == (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n"
        b"Content-Length: 3\r\nConnection: close\r\n\r\nok\n"
    )


@pytest.mark.parametrize(
    ("request_line", "status", "body"),
    [
        (b"GET /readyz HTTP/1.1", b"503 Service Unavailable", b"Missing: br9\n"),
        (b"HEAD /healthz HTTP/1.0", b"200 OK", b""),
        (b"GET /nothing HTTP/1.1", b"404 Not Found", b"try /healthz, /readyz\n"),
        (b"POST /healthz HTTP/1.1", b"405 Method Not Allowed", b"only GET and HEAD\n"),
        (b"\x16\x03\x01\xff", b"400 Bad Request", b"this is no request\n"),
    ],
)
def test_every_other_request_is_answered_with_its_status(request_line: bytes, status: bytes, body: bytes) -> None:
    (answer,) = answers(request_line + b"\r\n\r\n")
    head, _, text = answer.partition(b"\r\n\r\n")
    assert (head.partition(b" ")[2].partition(b"\r\n")[0], text) == (status, body)


def test_a_request_without_end_is_cut_off_and_the_next_one_answered() -> None:
    endless, good = answers(b"GET /" + b"a" * (2 * site.LONGEST_REQUEST), b"GET /healthz HTTP/1.1\r\n\r\n")
    assert endless == b""
    assert good.endswith(b"ok\n")


def test_one_connection_too_many_is_closed_at_once() -> None:
    async def talk(port: int) -> list[bytes]:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MOST_CONNECTIONS)]
        refused = await ask(port, b"")
        for _, writer in silent:
            writer.close()
            await writer.wait_closed()
        await asyncio.sleep(0.05)
        return [refused, await ask(port, b"GET /healthz HTTP/1.1\r\n\r\n")]

    refused, good = on_site(talk)
    assert refused == b""
    assert good.endswith(b"ok\n")


def test_a_port_that_is_taken_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert asyncio.run(site.start(f"127.0.0.1:{taken.getsockname()[1]}", PAGES)) is None
    assert "no metrics from this process" in caplog.text


@pytest.mark.parametrize(
    ("listen", "found"), [("127.0.0.1:9571", ("127.0.0.1", 9571)), ("[::1]:80", ("::1", 80)), ("host:0", ("host", 0))]
)
def test_an_address_is_taken_apart(listen: str, found: tuple[str, int]) -> None:
    assert site.address(listen) == found


@pytest.mark.parametrize("listen", ["9571", ":9571", "host:", "host:x", "host:70000"])
def test_what_is_no_address_is_refused(listen: str) -> None:
    with pytest.raises(errors.UsageError, match="write ADDRESS:PORT"):
        site.address(listen)
