"""The one way to the API server: one pool of connections, our own requests, and sessions on the same pool for kopf.

Objects go in and come out as plain JSON values. Every error of the HTTP library and every refusal becomes one of
`errors.ApiError` here. It repeats nothing by itself: who asks decides, by `error.retry`, whether to ask again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, NamedTuple

import aiohttp

from virtnet import __version__, errors
from virtnet.kube import credentials, pace
from virtnet.kube.credentials import Server

__all__ = ["NODES", "NODE_STATES", "POLICIES", "Connection", "Object", "Resource"]

Object = dict[str, Any]

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 15.0
PAGE = 500
"""Objects in one page of a list."""
CONNECTIONS = 16
"""At the same time; a watch holds one as long as it lasts."""

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
NAMES_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1, application/json"


class Resource(NamedTuple):
    """A kind of objects; `group` is "" for the core ones, `plural` as in the path."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, name: str = "", *, namespace: str = "", subresource: str = "") -> str:
        """Where the objects, or one of them, or a part of one, live on the server."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        inside = f"/namespaces/{namespace}" if namespace else ""
        return "/".join(part for part in (root + inside, self.plural, name, subresource) if part)


POLICIES = Resource("virtnet.dev", "v1alpha1", "virtionetworkpolicies", "VirtioNetworkPolicy")
NODE_STATES = Resource("virtnet.dev", "v1alpha1", "virtionetworknodestates", "VirtioNetworkNodeState")
NODES = Resource("", "v1", "nodes", "Node")

OnAnswer = Callable[[str, bool, int], None]
"""Told the path, whether it was a watch, and the status of the answer."""


class Connection:
    """A way to one API server. Nothing is sent before the first request; `close` ends it for good."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.requests = 0
        """How many were sent, kopf's among them."""
        self.on_answer: OnAnswer | None = None
        """Told of each list and watch that kopf got an answer to: it tells nobody else when it begins anew."""
        self._connector: aiohttp.TCPConnector | None = None
        self._session: aiohttp.ClientSession | None = None
        self._lent: list[aiohttp.ClientSession] = []
        self._pace = pace.Pace()

    @classmethod
    def find(cls, kubeconfig: str | None = None) -> Connection:
        """To the server of a kubeconfig file, or of the pod we are in; UsageError when neither is there."""
        return cls(credentials.find(kubeconfig))

    # --- sessions ---

    def lend(self) -> aiohttp.ClientSession:
        """A session for kopf, which closes it when it likes: the pool stays. Its requests are paced."""
        self._lent = [session for session in self._lent if not session.closed]

        async def paced(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
            await self._wait_for_turn(request)
            if session.closed:
                raise RuntimeError("Session is closed")  # as aiohttp says it, and kopf understands it
            # Also a watch is begun at once. kopf would wait for that as long as for the next event.
            async with asyncio.timeout(ANSWER_SECONDS):
                response = await send(request)
            self._notice(request, response)
            return response

        session = self._new_session(paced, self._identified)
        self._lent.append(session)
        return session

    async def close(self) -> None:
        for session in (*self._lent, self._session):
            if session is not None:
                await session.close()
        if self._connector is not None:
            await self._connector.close()

    def _new_session(self, *middlewares: aiohttp.ClientMiddlewareType) -> aiohttp.ClientSession:
        if self._connector is None or self._connector.closed:
            context = self.server.context
            self._connector = aiohttp.TCPConnector(limit=CONNECTIONS, ssl=True if context is None else context)
        return aiohttp.ClientSession(
            connector=self._connector,
            connector_owner=False,
            headers={"User-Agent": f"virtnet/{__version__}", **self.server.headers},
            cookie_jar=aiohttp.DummyCookieJar(),
            middlewares=middlewares,
        )

    async def _identified(
        self, request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """With the token as it is now: it may be another one than when the session was made."""
        token = self.server.token
        if token is not None:
            request.headers.update(token.headers())
        self.requests += 1
        response = await send(request)
        if token is not None and response.status == HTTPStatus.UNAUTHORIZED:
            token.distrust()
        return response

    async def _wait_for_turn(self, request: aiohttp.ClientRequest) -> None:
        if request.method == "GET":
            watch = _is_watch(request)
            spread = pace.SPREAD if watch else 0.0
            await asyncio.sleep(self._pace.wait((request.url.path, watch), spread=spread))

    def _notice(self, request: aiohttp.ClientRequest, response: aiohttp.ClientResponse) -> None:
        if self.on_answer is not None and request.method == "GET":
            self.on_answer(request.url.path, _is_watch(request), response.status)

    # --- requests ---

    async def get(self, path: str, **query: str) -> Object:
        """One object, or whatever else is at a path (`Resource.path`); `query` as the API names its parameters."""
        return await self.request("GET", path, query=query)

    async def list(
        self, resource: Resource, *, namespace: str = "", labels: str = "", fields: str = "", names_only: bool = False
    ) -> list[Object]:
        """All objects that both selectors let through, read page by page; `names_only`: their metadata alone."""
        query = {"limit": str(PAGE), "labelSelector": labels, "fieldSelector": fields}
        accept = NAMES_ONLY if names_only else "application/json"
        found: list[Object] = []
        while True:
            asked = {name: value for name, value in query.items() if value}
            page = await self.request("GET", resource.path(namespace=namespace), query=asked, accept=accept)
            found += page.get("items") or []
            query["continue"] = page.get("metadata", {}).get("continue", "")
            if not query["continue"]:
                return found

    async def kinds(self, api_version: str) -> frozenset[str]:
        """The plurals of this group and version that the server has and will keep.

        The discovery of a definition that is being deleted lists its kind without "create" (apiextensions-apiserver,
        customresource_discovery_controller.go): its objects are being deleted too, and nobody asked for that.
        """
        try:
            found = await self.get(f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}")
        except errors.NotFound:
            return frozenset()
        kinds = found.get("resources") or ()
        return frozenset(kind["name"] for kind in kinds if "create" in (kind.get("verbs") or ()))

    async def apply(
        self, resource: Resource, wanted: Object, *, manager: str, subresource: str = "", namespace: str = ""
    ) -> Object:
        """Server-side apply: these fields are `manager`'s from now on, whoever had them; the object as it is then."""
        path = resource.path(wanted["metadata"]["name"], namespace=namespace, subresource=subresource)
        body = {"apiVersion": resource.api_version, "kind": resource.kind, **wanted}
        query = {"fieldManager": manager, "force": "true"}
        return await self.request("PATCH", path, body, query=query, content_type=APPLY)

    async def patch(self, path: str, change: Object) -> Object:
        """A JSON merge patch; a null removes a field."""
        return await self.request("PATCH", path, change, content_type=MERGE)

    async def create(self, resource: Resource, wanted: Object, *, namespace: str = "") -> Object:
        """Raises Conflict when the name is taken."""
        body = {"apiVersion": resource.api_version, "kind": resource.kind, **wanted}
        return await self.request("POST", resource.path(namespace=namespace), body)

    async def replace(self, path: str, wanted: Object) -> Object:
        """The whole object; Conflict when it is no longer at the resourceVersion that `wanted` has."""
        return await self.request("PUT", path, wanted)

    async def delete(self, path: str, *, uid: str = "") -> None:
        """Deleting what is not there is success; with `uid`, Conflict when another one has the name by now."""
        body = {"preconditions": {"uid": uid}} if uid else None
        try:
            await self.request("DELETE", path, body)
        except errors.NotFound:
            return

    async def request(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Object:
        """The JSON object that is answered; any `ApiError`."""
        headers = {"Accept": accept} | ({} if body is None else {"Content-Type": content_type})
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS, sock_connect=CONNECT_SECONDS)
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        async with self.answer(method, path, query=query, headers=headers, data=data, timeout=timeout) as response:
            found = await response.json(content_type=None)
        if not isinstance(found, dict):
            raise errors.Unreachable(f"{method} {path}: the answer is no JSON object")
        return found

    @asynccontextmanager
    async def answer(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A good answer, still to be read, inside which all that goes wrong is an `ApiError`; for streams."""
        if self._session is None or self._session.closed:
            self._session = self._new_session(self._identified)
        asked = f"{method} {path}"
        try:
            async with self._session.request(method, self.server.url + path, params=query, **options) as response:
                if response.status >= HTTPStatus.BAD_REQUEST:
                    raise _refusal(asked, response.status, await response.read())
                yield response
        except TimeoutError as error:
            raise errors.Unreachable(f"{asked}: no answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise errors.Unreachable(f"{asked}: {error}") from error
        except ValueError as error:
            raise errors.Unreachable(f"{asked}: the answer is not JSON: {error}") from error


def _is_watch(request: aiohttp.ClientRequest) -> bool:
    return request.url.query.get("watch") == "true"


_KINDS: Mapping[int, type[errors.ApiError]] = {
    HTTPStatus.UNAUTHORIZED: errors.Unauthorized,
    HTTPStatus.FORBIDDEN: errors.Forbidden,
    HTTPStatus.NOT_FOUND: errors.NotFound,
    HTTPStatus.REQUEST_TIMEOUT: errors.Unreachable,
    HTTPStatus.CONFLICT: errors.Conflict,
    HTTPStatus.GONE: errors.Expired,
    HTTPStatus.TOO_MANY_REQUESTS: errors.Unreachable,
}


def _refusal(asked: str, status: int, body: bytes) -> errors.ApiError:
    """The error that an answer of 400 or more stands for."""
    default = errors.Invalid if status < HTTPStatus.INTERNAL_SERVER_ERROR else errors.Unreachable
    return _KINDS.get(status, default)(f"{asked}: {status}: {_message(body)}")


def _message(body: bytes) -> str:
    """What a metav1.Status says, or the beginning of whatever else came (a proxy's page)."""
    try:
        status = json.loads(body)
    except ValueError:
        return body[:200].decode("utf-8", "replace").strip() or "no text"
    return str(status.get("message") or status.get("reason") or "no text") if isinstance(status, dict) else "no text"
