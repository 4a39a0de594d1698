"""Which probes a policy asks for, on the network of one namespace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from virtnet.core.model import Safety
from virtnet.host import probes
from virtnet.host.namespaces import Namespace
from virtnet.host.probes import Probe


class NetworkProber:
    """`transactions.Prober`: the gateways, the listed TCP targets, and the API server where there is one."""

    def __init__(self, namespace: Namespace, api_server: str | None = None) -> None:
        self.namespace, self.api_server = namespace, api_server

    def probes(self, safety: Safety) -> tuple[Probe, ...]:
        found = [Probe("tcp", target) for target in safety.tcp]
        if safety.gateway:
            found += probes.gateways(self.namespace)
        if safety.api_server and self.api_server:
            found.append(Probe("apiServer", self.api_server))
        return tuple(dict.fromkeys(found))

    async def working(self, wanted: Iterable[Probe], within: float) -> frozenset[Probe]:
        return await probes.working(wanted, self.namespace, within)

    async def confirm(self, wanted: Iterable[Probe], within: float) -> Mapping[Probe, str]:
        return await probes.confirm(wanted, self.namespace, within)
