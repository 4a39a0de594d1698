"""The one way to the API server: our own requests, and a part in the same session for kopf.

Objects go in and come out as plain JSON values. Every error of the HTTP library and every refusal becomes one of
`errors.ApiError` here. It repeats nothing by itself: who asks decides, by `error.retry`, whether to ask again.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, NamedTuple

import aiohttp

from virtnet import errors
from virtnet.kube import credentials, pace, sessions
from virtnet.kube.credentials import Server
from virtnet.kube.sessions import Lent, OnAnswer, Session

__all__ = ["NODES", "NODE_STATES", "POLICIES", "Connection", "Object", "Resource"]

Object = dict[str, Any]

PAGE = 500
"""Objects in one page of a list."""

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


class Connection:
    """A way to one API server. Nothing is sent before the first request; `close` ends it for good."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.on_answer: OnAnswer | None = None
        """Told of each list and watch that kopf got an answer to: it tells nobody else when it begins anew."""
        self._session = Session(server)
        self._turns = pace.Pace()

    @classmethod
    def find(cls, kubeconfig: str | None = None) -> Connection:
        """To the server of a kubeconfig file, or of the pod we are in; UsageError when neither is there."""
        return cls(credentials.find(kubeconfig))

    @property
    def requests(self) -> int:
        """How many were sent, kopf's among them."""
        return self._session.requests

    def lend(self) -> Lent:
        """A session for kopf, which closes it when it likes: ours stays. Its requests are paced."""
        return Lent(self._session, self._turns, self._notice)

    async def close(self) -> None:
        """Whatever is under way ends in an error, and so does whatever is asked later."""
        await self._session.close()

    def _notice(self, path: str, watch: bool, status: int) -> None:
        if self.on_answer is not None:
            self.on_answer(path, watch, status)

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
        timeout = aiohttp.ClientTimeout(total=sessions.ANSWER_SECONDS, sock_connect=sessions.CONNECT_SECONDS)
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
        asked = f"{method} {path}"
        try:
            async with await self._session.request(method, self.server.url + path, params=query, **options) as response:
                if response.status >= HTTPStatus.BAD_REQUEST:
                    raise _refusal(asked, response.status, await response.read())
                yield response
        except TimeoutError as error:
            raise errors.Unreachable(f"{asked}: no answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise errors.Unreachable(f"{asked}: {error}") from error
        except ValueError as error:
            raise errors.Unreachable(f"{asked}: the answer is not JSON: {error}") from error
        except RuntimeError as error:
            # So aiohttp says it of a body that is read after the end.
            if not self._session.closed:
                raise
            raise errors.Unreachable(f"{asked}: {error}") from error


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
