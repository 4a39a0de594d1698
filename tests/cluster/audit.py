"""Who asked the API server for what: the requests of our service accounts and those about our kinds, from its log."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

WRITES = ("create", "update", "patch", "delete", "deletecollection")


@dataclass(frozen=True, slots=True)
class Request:
    """`user` is the service account's or user's name; `code` the answer's; `time` seconds since 1970 of its end."""

    user: str
    node: str
    verb: str
    resource: str
    name: str
    uri: str
    code: int
    time: float

    @property
    def writes(self) -> bool:
        return self.verb in WRITES


def read(log: Path, since: float = 0) -> list[Request]:
    """All answered requests after `since`, in order; a watch is logged when it begins and when it ends."""
    with log.open() as lines:
        requests = (_request(json.loads(line)) for line in lines if line.endswith("\n"))
        return [request for request in requests if request.time > since]


def _request(event: dict[str, object]) -> Request:
    user, found = _table(event, "user"), _table(event, "objectRef")
    nodes = _table(user, "extra").get("authentication.kubernetes.io/node-name", [""])
    assert isinstance(nodes, list)
    code = _table(event, "responseStatus").get("code", 0)
    assert isinstance(code, int)
    return Request(
        user=str(user["username"]).removeprefix("system:serviceaccount:"),
        node=str(nodes[0]),
        verb=str(event["verb"]),
        resource="/".join(str(found[key]) for key in ("resource", "subresource") if key in found),
        name=str(found.get("name", "")),
        uri=str(event["requestURI"]),
        code=code,
        time=datetime.fromisoformat(str(event["stageTimestamp"])).timestamp(),
    )


def _table(value: dict[str, object], key: str) -> dict[str, object]:
    inner = value.get(key, {})
    assert isinstance(inner, dict)
    return inner
