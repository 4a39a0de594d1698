"""A cluster as `kubectl virtnet` reads it, with the kubeconfig that kubectl uses; it never writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from virtnet import errors

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

Object = dict[str, Any]

POLICIES = "/apis/virtnet.dev/v1alpha1/virtionetworkpolicies"
NODE_STATES = "/apis/virtnet.dev/v1alpha1/virtionetworknodestates"
AGENTS = {"labelSelector": "app.kubernetes.io/name=virtio-network-operator,app.kubernetes.io/component=agent"}

PAGE = 500
SECONDS = (5.0, 30.0)
"""To connect, and to answer."""

NO_CLIENT = "kubectl-virtnet needs the Kubernetes client: pip install 'virtio-network-operator[controller]'"


class Cluster:
    """Reads objects as plain JSON values. What goes wrong is an `ApiError` with a sentence for an administrator."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    @classmethod
    def connect(cls, kubeconfig: str | None = None, context: str | None = None) -> Cluster:
        """By a kubeconfig, found as kubectl finds it; UsageError when there is none, or no client library."""
        try:
            from kubernetes import config
        except ImportError as error:
            raise errors.UsageError(NO_CLIENT) from error
        try:
            client = config.new_client_from_config(kubeconfig, context, persist_config=False)  # type: ignore[no-untyped-call]
            return cls(client)
        except (config.ConfigException, OSError, ValueError, TypeError) as error:
            raise errors.UsageError(f"the kubeconfig cannot be used: {error}") from error

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Object:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        words = self._client.param_serialize(
            "GET",
            path,
            query_params=list((query or {}).items()),
            header_params={"Accept": "application/json"},
            auth_settings=["BearerToken"],
        )
        try:
            answer = self._client.call_api(*words, _request_timeout=SECONDS)
            text = answer.read()  # type: ignore[no-untyped-call]
        except (ApiException, HTTPError, OSError) as error:
            raise errors.Unreachable(f"the API server cannot be reached: {_innermost(error)}") from error
        return _judged(path, answer.status, text or b"")

    def list(self, path: str, query: Mapping[str, str] | None = None) -> list[Object]:
        """All objects, page by page, by name."""
        asked = {**(query or {}), "limit": str(PAGE)}
        found: list[Object] = []
        while True:
            page = self.get(path, asked)
            found += page.get("items") or []
            following = page.get("metadata", {}).get("continue", "")
            if not following:
                return sorted(found, key=name)
            asked["continue"] = following


def name(one: Object) -> str:
    return str(one["metadata"]["name"])


def agents(namespace: str) -> str:
    """Where the agents' pods are listed, with `AGENTS`."""
    return f"/api/v1/namespaces/{namespace}/pods"


def _judged(path: str, status: int, text: bytes) -> Object:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise errors.Unreachable(f"{path}: the answer is not JSON ({status})") from error
    if status < 400 and isinstance(found, dict):
        return found
    said = found.get("message") if isinstance(found, dict) else None
    kinds = {401: errors.Unauthorized, 403: errors.Forbidden, 404: errors.NotFound}
    raise kinds.get(status, errors.Unreachable)(f"{said or path} ({status})")


def _innermost(error: BaseException) -> str:
    """The client's own errors repeat the URL at every level; the reason inside says it once."""
    reason = getattr(error, "reason", None)
    return str(reason if isinstance(reason, BaseException | str) and reason else error)
