"""Where the API server is and how to prove who we are; it reads files and never asks the network.

In a cluster that is the service account that every pod has. The server's address comes from the environment, never from
a name: an agent in the node's own network has no cluster DNS.
"""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from virtnet.errors import Unauthorized, UsageError
from virtnet.values import frozen

log = logging.getLogger(__name__)

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
REREAD_SECONDS = 30.0
"""A kubelet replaces a token when a fifth of its life is left; both old and new are good meanwhile."""


class TokenFile:
    """A bearer token in a file that somebody renews, and the certificates beside it that are renewed with it."""

    def __init__(self, path: Path, *, ca: Path | None = None, context: ssl.SSLContext | None = None) -> None:
        self.path, self._ca, self._context = path, ca, context
        self._token = ""
        self._read = -REREAD_SECONDS
        self._trusted = _changed(ca) if ca else None

    def headers(self) -> Mapping[str, str]:
        """What proves who we are, at most half a minute old. Raises Unauthorized when there never was a token."""
        if time.monotonic() - self._read >= REREAD_SECONDS:
            self._reread()
        return {"Authorization": f"Bearer {self._token}"}

    def distrust(self) -> None:
        """The server did not take it: the next request reads the file again."""
        self._read = -REREAD_SECONDS

    def _reread(self) -> None:
        try:
            self._token = self.path.read_text("ascii").strip() or self._token
        except (OSError, ValueError) as error:
            if not self._token:
                raise Unauthorized(f"{self.path} cannot be read: {error}") from error
            log.warning("%s cannot be read, the last token is used on: %s", self.path, error)
        self._read = time.monotonic()
        self._trust_more()

    def _trust_more(self) -> None:
        """Certificates can be added to a context in use; connections that stand keep theirs."""
        if self._ca and self._context and (now := _changed(self._ca)) != self._trusted:
            try:
                self._context.load_verify_locations(self._ca)
                self._trusted = now
            except (OSError, ssl.SSLError) as error:
                log.warning("%s cannot be read, the certificates of before are used on: %s", self._ca, error)


def _changed(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


@frozen
class Server:
    """`url` without a slash at its end; `context` None: plain HTTP. `namespace` is our own, "" when nobody says."""

    url: str
    context: ssl.SSLContext | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    token: TokenFile | None = None
    namespace: str = ""

    @property
    def address(self) -> str:
        """HOST:PORT, or [IPV6]:PORT."""
        parts = urlsplit(self.url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        host = parts.hostname or ""
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def find(kubeconfig: str | None = None) -> Server:
    """The server of a kubeconfig file when one is given, else that of the pod we are in; UsageError when neither is."""
    return from_kubeconfig(kubeconfig) if kubeconfig else in_cluster()


def in_cluster(environment: Mapping[str, str] = os.environ, directory: Path = SERVICE_ACCOUNT) -> Server:
    """The server that the kubelet names to every pod, with the pod's service account."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise UsageError("this is no pod (KUBERNETES_SERVICE_HOST is not set): write --kubeconfig FILE")
    ca = directory / "ca.crt"
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"{ca} cannot be read: {error}; does the pod mount its service account?") from error
    url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    token = TokenFile(directory / "token", ca=ca, context=context)
    return Server(url, context, token=token, namespace=_namespace(directory))


def _namespace(directory: Path) -> str:
    try:
        return (directory / "namespace").read_text("utf-8").strip()
    except (OSError, ValueError):
        return ""


def from_kubeconfig(file: str) -> Server:
    """The current context of a kubeconfig; tokens, basic authentication and client certificates are understood."""
    from virtnet.kube.lean import kopf

    with _environment("KUBECONFIG", file):
        try:
            found = kopf.login_with_kubeconfig(settings=kopf.OperatorSettings())
            if found is None or not found.server:
                raise UsageError(f"{file}: its current context names no server")
            secure = found.server.startswith("https")
            context = found.as_ssl_context() if secure else None
        # kopf reads the file as if it could not be otherwise.
        except (OSError, KeyError, ValueError, TypeError, AttributeError, yaml.YAMLError, kopf.LoginError) as error:
            raise UsageError(f"{file} is no usable kubeconfig: {error or type(error).__name__}") from error
    return Server(found.server.rstrip("/"), context, found.as_http_headers(), namespace=found.default_namespace or "")


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """kopf takes the file's name from the environment only."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
