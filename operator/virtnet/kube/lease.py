"""One replica works at a time: who holds a Lease, and nobody else; whoever loses it must end.

The rules are those of client-go's leaderelection: a holder that could not renew for 10 seconds gives up before
anybody else may take over, which others do 15 seconds after they last *saw* it renewed. No clock is compared with
another machine's.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from datetime import UTC, datetime
from typing import NoReturn

from virtnet import errors
from virtnet.kube.connection import Connection, Object, Resource
from virtnet.values import frozen

log = logging.getLogger(__name__)

LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")


@frozen
class Times:
    """In seconds: how long a lease lasts, how long a holder may fail to renew it, and between two attempts."""

    lease: int = 15
    renew: float = 10.0
    retry: float = 2.0


class Lease:
    """The right to work, as a Lease object. No two processes have the same `identity` at the same time.

    One that has the identity of its former life (a container that its pod began anew) goes on with the lease at once.
    """

    def __init__(
        self,
        connection: Connection,
        namespace: str,
        name: str,
        identity: str,
        times: Times = Times(),  # noqa: B008 - a value
    ) -> None:
        self.identity, self.held, self.times = identity, False, times
        self._connection, self._namespace, self._name = connection, namespace, name
        self._path = LEASES.path(name, namespace=namespace)
        self._seen: tuple[object, float] = (None, 0.0)
        """The version of the object that we saw last, and when we first saw it."""
        self._stored: Object | None = None

    async def acquire(self) -> None:
        """Wait until the lease is ours. The API server may be away for as long as it likes."""
        while True:
            if await self._try():
                break
            await asyncio.sleep(random.uniform(1.0, 1.2) * self.times.retry)
        self.held = True
        log.info("this replica (%s) works from now on", self.identity)

    async def keep(self) -> NoReturn:
        """Renew until cancelled. Raises Conflict when somebody else has it, Unreachable when it takes too long."""
        renewed = time.monotonic()
        while True:
            await asyncio.sleep(self.times.retry)
            began = time.monotonic()
            left = renewed + self.times.renew - began
            try:
                async with asyncio.timeout(max(0.0, left)):
                    if await self._try():
                        renewed = began
                    elif self._taken():
                        self.held = False
                        raise errors.Conflict(f"the lease {self._name} was lost to {self._holder()}")
            except TimeoutError:
                self.held = False
                sentence = f"the lease {self._name} could not be renewed for {self.times.renew:g} seconds"
                raise errors.Unreachable(sentence) from None

    async def release(self) -> None:
        """Let the next replica have it at once; when that fails it waits for the lease to run out."""
        if not self.held or self._stored is None:
            return
        self.held = False
        spec = {**self._stored["spec"], "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _micro_time()}
        try:
            async with asyncio.timeout(self.times.retry):
                await self._connection.replace(self._path, {**self._stored, "spec": spec})
        except (errors.ApiError, TimeoutError) as error:
            log.info("the lease was not handed over, it runs out: %s", error)

    # --- one attempt ---

    async def _try(self) -> bool:
        """Take or renew it; False when it is another's, or the API server does not answer well."""
        try:
            stored = await self._read()
            if stored is None:
                self._stored = await self._connection.create(LEASES, self._wanted(None), namespace=self._namespace)
                return True
            self._observe(stored)
            if self._taken() and not self._run_out():
                return False
            self._stored = await self._connection.replace(self._path, self._wanted(stored))
        except errors.ApiError as error:
            log.log(logging.DEBUG if isinstance(error, errors.Conflict) else logging.WARNING, "lease: %s", error)
            return False
        return True

    async def _read(self) -> Object | None:
        try:
            return await self._connection.get(self._path)
        except errors.NotFound:
            return None

    def _observe(self, stored: Object) -> None:
        version = stored["metadata"].get("resourceVersion")
        if self._seen[0] != version:
            self._seen = version, time.monotonic()
        self._stored = stored

    def _holder(self) -> str:
        return str(((self._stored or {}).get("spec") or {}).get("holderIdentity") or "")

    def _taken(self) -> bool:
        return self._holder() not in {"", self.identity}

    def _run_out(self) -> bool:
        spec = (self._stored or {}).get("spec") or {}
        lasts = spec.get("leaseDurationSeconds")
        return time.monotonic() >= self._seen[1] + (lasts if isinstance(lasts, int) else self.times.lease)

    def _wanted(self, stored: Object | None) -> Object:
        before = (stored or {}).get("spec") or {}
        now, transitions = _micro_time(), int(before.get("leaseTransitions") or 0)
        ours = before.get("holderIdentity") == self.identity
        spec = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self.times.lease,
            "acquireTime": before.get("acquireTime", now) if ours else now,
            "renewTime": now,
            "leaseTransitions": transitions if ours or stored is None else transitions + 1,
        }
        return {"metadata": (stored or {}).get("metadata") or {"name": self._name}, "spec": spec}


def _micro_time() -> str:
    """metav1.MicroTime, for whoever looks at the object: nothing here compares it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
