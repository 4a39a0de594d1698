"""A strict fake of the API server over HTTP, with the faults that real ones have; it counts what it is asked.

What it does not know it answers with 501 and remembers in `surprises`, which must be empty at the end of a test.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.agent.objects import Event, Kind, Missing, Object, Objects, Taken, TooOld, matches

POLICIES = Kind("virtnet.dev", "v1alpha1", "virtionetworkpolicies", "VirtioNetworkPolicy")
NODE_STATES = Kind("virtnet.dev", "v1alpha1", "virtionetworknodestates", "VirtioNetworkNodeState")
NODES = Kind("", "v1", "nodes", "Node")
NAMESPACES = Kind("", "v1", "namespaces", "Namespace")
DEFINITIONS = Kind("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition")
KINDS = (POLICIES, NODE_STATES, NODES, NAMESPACES, DEFINITIONS)

VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
TOKEN = "a-token"
BOOKMARK_SECONDS = 5.0

Refusal = Callable[[web.Request], int | None]
"""The status to refuse a request with, None to answer it."""


@dataclass(frozen=True)
class Asked:
    """One request, as it came."""

    method: str
    path: str
    query: dict[str, str]
    at: float
    manager: str = ""

    @property
    def is_watch(self) -> bool:
        return self.query.get("watch") == "true"

    @property
    def is_write(self) -> bool:
        return self.method != "GET"


@dataclass
class ApiServer:
    """`await start()` to listen, `await stop()` to refuse connections; both as often as you like, on the same port."""

    kinds: tuple[Kind, ...] = KINDS
    port: int = 0
    asked: list[Asked] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=lambda: {TOKEN})
    refuse: Refusal = lambda _: None
    hanging: bool = False
    """Requests are taken and never answered, and no watch is told anything."""
    resetting: bool = False
    """Requests are taken, and their connections cut off."""
    brief: bool = False
    """Watches are begun well, and end at once."""
    terminating: set[str] = field(default_factory=set)
    """Plurals whose definition is being deleted."""
    removed: set[str] = field(default_factory=set)
    """Plurals whose definition is gone."""

    def __post_init__(self) -> None:
        clock = itertools.count(1000)
        self.objects = {kind.plural: Objects(kind, clock) for kind in self.kinds}
        self._changed = asyncio.Event()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # --- being there ---

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Every connection is cut off, and new ones are refused."""
        if self._runner is not None:
            self.cut()
            await self._runner.cleanup()
            self._runner = None

    def cut(self) -> None:
        """Every connection ends with a reset."""
        for connection in self.connections:
            if connection.transport is not None:
                connection.transport.abort()

    @property
    def connections(self) -> list[Any]:
        """Those that clients hold open."""
        assert self._runner is not None
        assert self._runner.server is not None
        return list(self._runner.server.connections)

    # --- what tests do to objects ---

    def create(self, kind: Kind, one: Object, namespace: str = "") -> Object:
        return self.tell(self.objects[kind.plural].create(one, namespace))

    def merge(self, kind: Kind, name: str, change: Object, subresource: str = "") -> Object:
        return self.tell(self.objects[kind.plural].merge(name, change, subresource=subresource))

    def delete(self, kind: Kind, name: str) -> Object:
        return self.tell(self.objects[kind.plural].delete(name))

    def forget(self) -> None:
        """Compaction, and the watches that stand are told to begin anew."""
        for objects in self.objects.values():
            objects.forget()
        self.tell(None)

    def tell(self, result: Any) -> Any:
        """Wake the watches."""
        self._changed.set()
        self._changed = asyncio.Event()
        return result

    # --- what was asked ---

    def count(self, method: str = "", path: str = "", *, watch: bool | None = None, since: float = 0.0) -> int:
        return len(self.select(method, path, watch=watch, since=since))

    def select(self, method: str = "", path: str = "", *, watch: bool | None = None, since: float = 0.0) -> list[Asked]:
        return [
            each
            for each in self.asked
            if method in ("", each.method) and path in each.path and watch in (None, each.is_watch) and each.at >= since
        ]

    # --- answering ---

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path, query = request.path, dict(request.query)
        self.asked.append(Asked(request.method, path, query, time.monotonic(), query.get("fieldManager", "")))
        if self.hanging:
            await asyncio.sleep(3600)
        if self.resetting:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if request.headers.get("Authorization", "").removeprefix("Bearer ") not in self.tokens:
            return _status(401, "Unauthorized")
        refusal = self.refuse(request)
        if refusal is not None:
            return _status(refusal, "no")
        try:
            return await self._serve(request, path, query)
        except Missing as error:
            return _status(404, str(error))
        except Taken as error:
            return _status(409, str(error))
        except TooOld as error:
            return _status(410, str(error))
        except (AssertionError, KeyError) as error:
            self.surprises.append(f"{request.method} {request.path_qs}: {error!r}")
            return _status(501, f"this server does not know that: {error!r}")

    async def _serve(self, request: web.Request, path: str, query: dict[str, str]) -> web.StreamResponse:
        found = self._discovery(path)
        if found is not None:
            assert request.method == "GET"
            return web.json_response(found)
        kind, namespace, name, subresource = self._place(path)
        objects = self.objects[kind.plural]
        if kind.plural in self.removed:
            return _status(404, "the server could not find the requested resource")
        if request.method == "GET" and not name:
            if query.get("watch") == "true":
                return await self._watch(request, objects, namespace, query)
            return _listed(request, objects, namespace, query)
        return await self._single(request, objects, namespace, name, subresource, query)

    def _discovery(self, path: str) -> Object | None:
        groups = {kind.group: kind.version for kind in self.kinds if kind.group}
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            shown = [
                {"name": group, "versions": [{"version": version}], "preferredVersion": {"version": version}}
                for group, version in groups.items()
            ]
            return {"kind": "APIGroupList", "groups": shown}
        for api_version in {kind.api_version for kind in self.kinds}:
            if path == (f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"):
                kinds = [k for k in self.kinds if k.api_version == api_version and k.plural not in self.removed]
                if not kinds:
                    raise Missing("the server could not find the requested resource")
                return {"kind": "APIResourceList", "resources": [e for kind in kinds for e in self._described(kind)]}
        return None

    def _described(self, kind: Kind) -> list[Object]:
        verbs = [verb for verb in VERBS if verb != "create" or kind.plural not in self.terminating]
        entry = {"kind": kind.kind, "namespaced": kind.namespaced, "singularName": kind.kind.lower()}
        subresource = [{"name": f"{kind.plural}/status", **entry, "verbs": ["get", "patch", "update"]}]
        return [{"name": kind.plural, **entry, "verbs": verbs}, *(subresource if kind.status else [])]

    def _place(self, path: str) -> tuple[Kind, str, str, str]:
        for kind in self.kinds:
            root = f"/apis/{kind.api_version}/" if kind.group else f"/api/{kind.version}/"
            rest = path.removeprefix(root)
            if rest == path:
                continue
            namespace = ""
            parts = rest.split("/")
            if kind.namespaced and parts[0] == "namespaces" and len(parts) > 2:
                namespace, parts = parts[1], parts[2:]
            name, subresource = [*parts[1:], "", ""][:2]
            if parts[0] == kind.plural and len(parts) <= 3 and subresource in ("", "status"):
                return kind, namespace, name, subresource
        raise AssertionError(f"no such path: {path}")

    async def _single(
        self,
        request: web.Request,
        objects: Objects,
        namespace: str,
        name: str,
        subresource: str,
        query: dict[str, str],
    ) -> web.StreamResponse:
        body = await request.json() if request.can_read_body else None
        if request.method == "GET":
            assert not query
            assert not subresource
            return web.json_response(objects.get(name, namespace))
        if request.method == "POST":
            assert not name
            assert not query
            return web.json_response(self.tell(objects.create(body, namespace)), status=201)
        if request.method == "PUT":
            assert not query
            return web.json_response(self.tell(objects.replace(body, namespace, subresource)))
        if request.method == "DELETE":
            uid = ((body or {}).get("preconditions") or {}).get("uid", "")
            return web.json_response(self.tell(objects.delete(name, namespace, uid)))
        assert request.method == "PATCH"
        if request.content_type == "application/merge-patch+json":
            return web.json_response(self.tell(objects.merge(name, body, namespace, subresource)))
        assert request.content_type == "application/apply-patch+yaml", request.content_type
        assert query.pop("force") == "true"
        manager = query.pop("fieldManager")
        assert manager
        assert not query, query
        return web.json_response(self.tell(objects.apply(name, body, manager, namespace, subresource)))

    # --- watching ---

    async def _watch(
        self, request: web.Request, objects: Objects, namespace: str, query: dict[str, str]
    ) -> web.StreamResponse:
        selectors = query.get("labelSelector", ""), query.get("fieldSelector", "")
        allowed = {"watch", "allowWatchBookmarks", "labelSelector", "fieldSelector", "resourceVersion"}
        assert set(query) <= allowed | {"timeoutSeconds"}, query
        version, end = int(query["resourceVersion"]), time.monotonic() + int(query.get("timeoutSeconds", "300"))
        objects.since(version)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            async for event in self._events(objects, version, end):
                if event.type in ("BOOKMARK", "ERROR") or _selected(event, namespace, *selectors):
                    line = json.dumps({"type": event.type, "object": event.object})
                    await response.write(line.encode() + b"\n")
        return response

    async def _events(self, objects: Objects, version: int, end: float) -> AsyncIterator[Event]:
        while time.monotonic() < end:
            changed = self._changed
            try:
                for event in objects.since(version):
                    while self.hanging:  # noqa: ASYNC110 - a flag that tests set
                        await asyncio.sleep(0.05)
                    yield event
                    version = event.version
            except TooOld as error:
                yield Event(version, "ERROR", {"kind": "Status", "code": 410, "message": str(error)})
                return
            if objects.kind.plural in self.removed or self.brief:
                return
            try:
                async with asyncio.timeout(min(BOOKMARK_SECONDS, max(0.01, end - time.monotonic()))):
                    await changed.wait()
            except TimeoutError:
                version = max(version, objects.version)
                yield Event(
                    version, "BOOKMARK", {"kind": objects.kind.kind, "metadata": {"resourceVersion": str(version)}}
                )


def _selected(event: Event, namespace: str, labels: str, fields: str) -> bool:
    inside = namespace in ("", event.object["metadata"].get("namespace", ""))
    return inside and matches(event.object, labels, fields)


def _listed(request: web.Request, objects: Objects, namespace: str, query: dict[str, str]) -> web.Response:
    assert set(query) <= {"labelSelector", "fieldSelector", "limit", "continue"}, query
    found = objects.select(namespace, query.get("labelSelector", ""), query.get("fieldSelector", ""))
    start, limit = int(query.get("continue", "0")), int(query.get("limit", "0")) or len(found)
    metadata = {"resourceVersion": str(objects.version)}
    if start + limit < len(found):
        metadata["continue"] = str(start + limit)
    items = found[start : start + limit]
    kind = f"{objects.kind.kind}List"
    if "as=PartialObjectMetadataList" in request.headers.get("Accept", ""):
        kind, items = "PartialObjectMetadataList", [{"metadata": item["metadata"]} for item in items]
    return web.json_response({"kind": kind, "metadata": metadata, "items": items})


def _status(code: int, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "status": "Failure", "message": message, "code": code}, status=code)
