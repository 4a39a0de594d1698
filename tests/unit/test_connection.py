"""The way to the API server: who we say we are, how soon we ask again, and what becomes of its errors and its log."""

from __future__ import annotations

import inspect
import json
import logging
import os
import ssl
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import aiohttp
import pytest

from virtnet import errors
from virtnet.kube import connection, credentials, operators, pace
from virtnet.kube.connection import NODE_STATES, NODES, POLICIES
from virtnet.kube.credentials import Server, TokenFile
from virtnet.kube.operators import Backoffs, Muffle, Watch
from virtnet.kube.pace import Pace

ROOT = Path(__file__).parents[2]

# --- who we are --------------------------------------------------------------------------------------------


def kubeconfig(path: Path, user: dict[str, str], server: str = "https://[2001:db8::1]:6443/") -> str:
    found = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "virtnet-system"}}],
        "clusters": [{"name": "k", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(json.dumps(found))
    return str(path)


def test_a_kubeconfig_gives_the_server_of_its_current_context_and_the_token(tmp_path: Path) -> None:
    found = credentials.find(kubeconfig(tmp_path / "config", {"token": "secret"}))
    assert (found.url, found.address) == ("https://[2001:db8::1]:6443", "[2001:db8::1]:6443")
    assert (found.headers, found.namespace) == ({"Authorization": "Bearer secret"}, "virtnet-system")
    assert found.context is not None


def test_reading_a_kubeconfig_leaves_the_environment_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/elsewhere")
    credentials.find(kubeconfig(tmp_path / "config", {"token": "secret"}))
    assert os.environ["KUBECONFIG"] == "/elsewhere"


@pytest.mark.parametrize("text", ["", "{}", "[]", "current-context: none", ": :"])
def test_a_kubeconfig_that_is_none_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(text)
    with pytest.raises(errors.UsageError, match="config"):
        credentials.find(str(tmp_path / "config"))


def test_outside_of_a_pod_a_kubeconfig_is_asked_for() -> None:
    with pytest.raises(errors.UsageError, match="--kubeconfig FILE"):
        credentials.in_cluster({})


def test_a_pod_without_its_service_account_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError, match="does the pod mount its service account"):
        credentials.in_cluster({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, tmp_path)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate authority."""
    path = tmp_path_factory.mktemp("authority") / "ca.crt"
    words = f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {path}.key -out {path}"
    subprocess.run([*words.split(), "-subj", "/CN=test", "-days", "1"], check=True, capture_output=True)
    return path


def test_in_a_cluster_the_address_is_the_environments_and_never_a_name(authority: Path, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_bytes(authority.read_bytes())
    (tmp_path / "token").write_text("one\n")
    (tmp_path / "namespace").write_text("virtnet-system")
    environment = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}
    found = credentials.in_cluster(environment, tmp_path)
    assert (found.url, found.address, found.namespace) == ("https://[fd00::1]:6443", "[fd00::1]:6443", "virtnet-system")
    assert found.token is not None
    assert found.token.headers() == {"Authorization": "Bearer one"}


def test_a_token_is_read_again_when_it_is_old_or_was_not_accepted(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("one")
    token = TokenFile(path)
    assert token.headers() == {"Authorization": "Bearer one"}
    path.write_text("two")
    assert token.headers() == {"Authorization": "Bearer one"}
    token.distrust()
    assert token.headers() == {"Authorization": "Bearer two"}


def test_a_token_that_cannot_be_read_any_more_is_used_on_and_one_that_never_was_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token = TokenFile(path)
    with pytest.raises(errors.Unauthorized, match="cannot be read"):
        token.headers()
    path.write_text("one")
    token.headers()
    path.unlink()
    token.distrust()
    assert token.headers() == {"Authorization": "Bearer one"}


def test_certificates_that_are_renewed_are_trusted_with_the_next_token(authority: Path, tmp_path: Path) -> None:
    ca, context = tmp_path / "ca.crt", ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    (tmp_path / "token").write_text("one")
    token = TokenFile(tmp_path / "token", ca=ca, context=context)
    token.headers()
    assert context.cert_store_stats()["x509_ca"] == 0
    ca.write_bytes(authority.read_bytes())
    token.distrust()
    token.headers()
    assert context.cert_store_stats()["x509_ca"] == 1


@pytest.mark.parametrize(
    ("url", "address"),
    [("https://10.0.0.1", "10.0.0.1:443"), ("http://host", "host:80"), ("https://host:6443", "host:6443")],
)
def test_an_address_has_always_a_port(url: str, address: str) -> None:
    assert Server(url).address == address


# --- where things are --------------------------------------------------------------------------------------


def test_paths_are_those_of_the_api() -> None:
    assert NODES.path("n1") == "/api/v1/nodes/n1"
    assert POLICIES.path() == "/apis/virtnet.dev/v1alpha1/virtionetworkpolicies"
    assert NODE_STATES.path("n1", subresource="status").endswith("/virtionetworknodestates/n1/status")
    leases = connection.Resource("coordination.k8s.io", "v1", "leases", "Lease")
    assert leases.path("a", namespace="b") == "/apis/coordination.k8s.io/v1/namespaces/b/leases/a"


# --- errors ------------------------------------------------------------------------------------------------


def library_errors() -> list[type[BaseException]]:
    """Every exception of aiohttp's that is about a request of a client, by its own export list."""
    found = [getattr(aiohttp, name) for name in aiohttp.__all__]
    kinds = [each for each in found if inspect.isclass(each) and issubclass(each, Exception)]
    others = {"BadContentDispositionHeader", "BadContentDispositionParam", "EofStream", "PayloadRegistry"}
    others |= {"WebSocketError", "WSMessageTypeError"}
    return [each for each in kinds if each.__name__ not in others and not issubclass(each, Warning)]


def test_every_error_of_the_http_library_is_one_that_is_translated() -> None:
    translated = (aiohttp.ClientError, TimeoutError, OSError, ValueError)
    assert len(library_errors()) > 10
    assert [kind for kind in library_errors() if not issubclass(kind, translated)] == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.Invalid),
        (401, errors.Unauthorized),
        (403, errors.Forbidden),
        (404, errors.NotFound),
        (408, errors.Unreachable),
        (409, errors.Conflict),
        (410, errors.Expired),
        (422, errors.Invalid),
        (429, errors.Unreachable),
        (500, errors.Unreachable),
        (504, errors.Unreachable),
    ],
)
def test_a_refusal_is_an_error_of_its_kind_with_the_servers_words(status: int, kind: type[errors.ApiError]) -> None:
    found = connection._refusal("GET /x", status, b'{"kind": "Status", "message": "not today"}')
    assert (type(found), str(found)) == (kind, f"GET /x: {status}: not today")


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b"\xff\xfe"])
def test_an_answer_that_is_no_status_is_told_all_the_same(body: bytes) -> None:
    assert str(connection._refusal("GET /x", 502, body)).startswith("GET /x: 502: ")


# --- pace --------------------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def asked_in(seconds: float, clock: Clock, paced: Pace, spread: float = 0.0) -> int:
    """How often somebody asks who asks again as soon as he may."""
    count, end = 0, clock.now + seconds
    while clock.now < end:
        clock.now += paced.wait("x", spread=spread)
        count += 1
    return count


def test_whoever_asks_again_at_once_is_slowed_down_to_some_times_a_minute() -> None:
    clock = Clock()
    assert asked_in(60.0, clock, Pace(clock)) < 20
    assert asked_in(3600.0, clock, Pace(clock)) < 3600 / (pace.LONGEST / 2) + 10


def test_the_first_request_and_one_after_a_long_time_wait_for_nothing() -> None:
    clock = Clock()
    paced = Pace(clock)
    assert paced.wait("x") == 0.0
    clock.now += 3 * pace.LONGEST
    assert paced.wait("x") == 0.0
    assert paced.wait("y") == 0.0


def test_watches_that_ended_together_do_not_begin_together() -> None:
    clock = Clock()
    agents = [Pace(clock) for _ in range(200)]
    for paced in agents:
        paced.wait("watch", spread=pace.SPREAD)
    clock.now += 400.0
    waits = sorted(paced.wait("watch", spread=pace.SPREAD) for paced in agents)
    assert waits[0] < 0.2
    assert 0.8 < waits[-1] <= pace.SPREAD


def test_backoffs_never_end_grow_and_have_no_length() -> None:
    found = list(islice(Backoffs(), 1000))
    assert not hasattr(Backoffs(), "__len__")
    assert pace.SHORTEST / 2 <= found[0] <= pace.SHORTEST
    assert all(pace.LONGEST / 2 <= seconds <= pace.LONGEST for seconds in found[10:])


# --- kopf --------------------------------------------------------------------------------------------------


def test_kopf_writes_nothing_scans_nothing_never_gives_up_and_never_kills_the_process() -> None:
    watches = [Watch(NODES, lambda *_: None, fields="metadata.name=n1")]
    found = operators.settings("virtnet.dev/mine", watches)
    assert (found.posting.enabled, found.scanning.disabled, found.peering.standalone) == (False, True, True)
    assert found.persistence.finalizer == "virtnet.dev/mine"
    assert found.process.ultimate_exiting_timeout is None
    assert isinstance(found.networking.error_backoffs, Backoffs)
    assert list(found.watching.field_selectors.values()) == ["metadata.name=n1"]


def record(message: str, name: str = "kopf._cogs.clients.watching") -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, __file__, 1, message, (), None)


def test_the_same_trouble_is_told_once_a_minute_with_how_often_it_came() -> None:
    muffle = Muffle(seconds=0.05)
    first = [muffle.filter(record(f"attempt #{n} failed: GET http://a/{n}")) for n in range(10)]
    assert first == [True] + [False] * 9
    time.sleep(0.06)
    last = record("attempt #11 failed: GET http://b")
    assert muffle.filter(last)
    assert last.getMessage().endswith("(and 9 times before)")


def test_what_is_not_kopfs_is_never_kept_back() -> None:
    muffle = Muffle()
    assert [muffle.filter(record("drift", name="virtnet.engine.reflex")) for _ in range(3)] == [True] * 3


def test_an_agent_imports_neither_a_client_library_nor_a_table() -> None:
    code = (
        "import sys, virtnet.cli.agent, virtnet.kube.agent, virtnet.cli.site; "
        "print(*({name.partition('.')[0] for name in sys.modules} & {'typer', 'rich', 'kubernetes', 'pykube'}))"
    )
    words = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "operator")}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_hiding_a_library_from_kopf_hides_it_from_nobody_else() -> None:
    code = (
        "import sys; from virtnet.kube.lean import UNWANTED, kopf; assert kopf.operator; "
        "print(*(set(UNWANTED) & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "operator")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
