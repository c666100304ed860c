"""The admin port and the health port of a running sidecar, and what they must never show."""

import contextlib
import hashlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from tests.harness.processes import HOST, free_port, free_ports, listens
from tests.harness.sidecars import (
    INSTALLED,
    Pod,
    Sidecar,
    ask,
    chat_body,
    fake_pod,
    sidecar,
    sidecar_settings,
)

pytestmark = pytest.mark.integration

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
ENDLESS = 20_000  # tokens: longer than any test

# SIGHUP blocks the event loop until somebody has written to the file that it is given.
BLOCKED_BY_SIGHUP = """
import os, sys
from importlib.metadata import version
from pathlib import Path
from sidecar import __main__, admin_routes, app
admin_routes.STUCK_AFTER_S = float(os.environ["STUCK_AFTER_S"])
app.App.reload = lambda self: Path(os.environ["BLOCK"]).read_bytes()
sys.exit(__main__.main())
"""


@pytest.fixture(scope="module")
def pod() -> Iterator[Pod]:
    with fake_pod("--step-ms", "2") as started:
        yield started


@pytest.fixture
def blockable(
    pod: Pod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[tuple[Sidecar, Path]]:
    """A sidecar, and the pipe that unblocks it. The parameter: how late its loop may be."""
    pipe, script = tmp_path / "pipe", tmp_path / "blockable.py"
    os.mkfifo(pipe)
    script.write_text(BLOCKED_BY_SIGHUP)
    monkeypatch.setenv("BLOCK", str(pipe))
    monkeypatch.setenv("STUCK_AFTER_S", str(request.param))
    monkeypatch.setenv("PYTHONPATH", f"{INSTALLED}{os.pathsep}{Path(__file__).parents[2]}")
    with sidecar(tmp_path, sidecar_settings(pod.port), program=(script,)) as gate:
        yield gate, pipe


@contextlib.contextmanager
def blocked(gate: Sidecar, pipe: Path) -> Iterator[None]:
    gate.process.process.send_signal(signal.SIGHUP)
    with pipe.open("wb"):  # returns once the loop reads, and lets it go when it is closed
        yield


@pytest.mark.parametrize("blockable", [1000], indirect=True)
def test_the_admin_port_answers_while_the_loop_is_blocked(blockable: tuple[Sidecar, Path]) -> None:
    gate, _ = blockable
    with blocked(*blockable):
        assert (answer := ask(f"{gate.admin}/live")).status == 200
        assert answer.text == "live\n"
        assert ask(f"{gate.admin}/ready").status == 200
        assert b"headgate_info" in ask(f"{gate.admin}/metrics").body
        # What belongs to the loop cannot be had, and nobody waits for it for ever.
        assert (answer := ask(f"{gate.admin}/debug/decisions")).status == 503
        assert answer.json() == {"error": "the data plane does not answer"}
    assert ask(f"{gate.url}/v1/models").status == 200
    assert ask(f"{gate.admin}/debug/decisions").json()[0]["path"] == "/v1/models"


@pytest.mark.parametrize("blockable", [0.5], indirect=True)
def test_a_loop_that_is_stuck_is_not_live(blockable: tuple[Sidecar, Path]) -> None:
    gate, _ = blockable
    with blocked(*blockable):
        gate.process.wait_for(lambda: ask(f"{gate.admin}/live").status == 503, what="it is not live")
        assert "the event loop is stuck for" in ask(f"{gate.admin}/live").text
    gate.process.wait_for(lambda: ask(f"{gate.admin}/live").status == 200, what="it is live again")


def why_unready(gate: Sidecar) -> str:
    """What /ready says; the metric agrees."""
    answer = ask(f"{gate.admin}/ready")
    assert answer.status == (200 if answer.text == "ready\n" else 503)
    return answer.text.strip()


def test_ready_says_why_not(tmp_path: Path) -> None:
    port = free_port()
    health = {"kind": "http", "interval_s": 0.1}
    with sidecar(tmp_path, sidecar_settings(port, engine={"health": health})) as gate:
        assert why_unready(gate) == f"the engine at {HOST}:{port} is not healthy"
        assert gate.metric("headgate_ready") == 0
        with fake_pod("--step-ms", "2", port=port):
            gate.process.wait_for(lambda: why_unready(gate) == "ready", what="it is ready")
            assert gate.metric("headgate_ready") == 1
            with gate.asking(max_tokens=ENDLESS):
                gate.wait_for_gauges(in_flight=1)
                gate.process.process.send_signal(signal.SIGTERM)
                gate.process.wait_for(lambda: why_unready(gate) == "draining", what="it drains")
                assert gate.metric("headgate_ready") == 0
                assert ask(f"{gate.admin}/live").status == 200


def test_metrics_count_what_was_sent(pod: Pod, tmp_path: Path) -> None:
    settings = sidecar_settings(
        pod.port,
        tenants=[{"name": "acme", "key_sha256": [hashlib.sha256(b"k").hexdigest()], "class": "premium"}],
        max_body_bytes=2048,
    )
    with sidecar(tmp_path, settings) as gate:
        answers = [gate.chat(headers={"x-api-key": "k"}) for _ in range(5)]
        gate.process.wait_for(lambda: gate.chat(headers={"api-key": "k"}) and model(gate) == "fake")
        answers += [gate.chat(headers={"x-priority": "batch"}), gate.chat(model="nobody"), gate.chat(n=3)]
        gate.chat(messages=[{"role": "user", "content": "x" * 3000}])
        page = ask(f"{gate.admin}/metrics")
        assert page.headers["content-type"].startswith("text/plain")
        families = {family.name: family for family in text_string_to_metric_families(page.text)}

        def requests(**labels: str) -> float:
            return gate.metric("headgate_requests_total", **labels)

        assert requests(tenant="acme", status="200", reason="", **{"class": "premium"}) >= 6
        assert requests(tenant="anonymous", status="200", model="fake", **{"class": "batch"}) == 1
        assert requests(status="404", reason="", model="other") == 1
        assert requests(status="400", reason="", model="fake") == 1
        assert requests(status="413", reason="body_too_large") == 1
        assert requests() == len(gate.decisions())
        assert gate.metric("headgate_request_duration_seconds_count") == requests()
        sent = gate.metric("headgate_response_bytes_total")
        assert sent == sum(each["bytes_out"] for each in gate.decisions())
        assert sent > sum(len(answer.body) for answer in answers)
        assert gate.metric("headgate_info", version=version("headgate")) == 1
        assert all(family.documentation for family in families.values())


def model(gate: Sidecar) -> str:
    """Of the newest exchange; names are known once the engine was asked for them."""
    return str(gate.decisions()[0]["model"])


def test_decisions_are_the_newest_first_and_bounded(pod: Pod, tmp_path: Path) -> None:
    with sidecar(tmp_path, sidecar_settings(pod.port, telemetry={"receipts": 5})) as gate:
        for i in range(8):
            ask(f"{gate.url}/v1/models?i={i}", headers={"x-request-id": f"r{i}"})
        url = f"{gate.admin}/debug/decisions"
        assert [each["request_id"] for each in ask(url).json()] == ["r7", "r6", "r5", "r4", "r3"]
        assert [each["request_id"] for each in ask(f"{url}?n=2").json()] == ["r7", "r6"]
        assert ask(f"{url}?n=two").status == 400


def talk_nonsense(listener: socket.socket) -> None:
    """An engine that does, until nobody listens any more."""
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"nonsense\r\n\r\n")


def test_the_log_level_changes_at_once(tmp_path: Path) -> None:
    """An engine that is not there is worth a warning, as is one that talks nonsense; each is said once."""

    def warnings(gate: Sidecar) -> int:
        assert gate.chat().status == 502
        return gate.process.text().count(" WARNING headgate.engine: ")

    port = free_port()
    with sidecar(tmp_path, sidecar_settings(port)) as gate:
        url = f"{gate.admin}/log-level"
        assert (answer := ask(f"{url}?level=error", "PUT")).status == 200
        assert answer.text == "error\n"
        assert warnings(gate) == 0
        assert ask(url, "PUT", body=b"Warning").text == "warning\n"
        with socket.create_server((HOST, port)) as listener:
            engine = threading.Thread(target=talk_nonsense, args=(listener,))
            engine.start()
            assert warnings(gate) == 1
            listener.shutdown(socket.SHUT_RDWR)
            engine.join()
        assert ask(url, "PUT", body=b"loud").status == 400
        assert (wrong := ask(url)).status == 405
        assert wrong.headers["allow"] == "PUT"


def test_an_endpoint_shows_what_it_does(pod: Pod, tmp_path: Path) -> None:
    def endpoints(in_flight: int) -> bool:
        shown = {"address": f"{HOST}:{pod.port}", "healthy": True, "in_flight": in_flight}
        (found,) = ask(f"{gate.admin}/debug/endpoints").json()
        return shown.items() <= found.items()

    with sidecar(tmp_path, sidecar_settings(pod.port)) as gate:
        with gate.asking(max_tokens=ENDLESS):
            pod.wait_until_generating(1)
            assert endpoints(1)
        gate.process.wait_for(lambda: endpoints(0), what="nothing in flight")


def health(gate: Sidecar) -> set[int]:
    """What grpc.health.v1 answers for the pod and for its engine."""
    with grpc.insecure_channel(gate.settings["health_listen"]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        names = ("", "engine")
        return {
            stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10).status for name in names
        }


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_the_health_port_follows_the_engine_and_the_drain(tmp_path: Path, kind: str) -> None:
    engine_port, health_port, own_port = free_ports(3)
    engine_health, own = f"{HOST}:{health_port}", f"{HOST}:{own_port}"
    asked = {"kind": kind, "interval_s": 0.1} | ({"address": engine_health} if kind == "grpc" else {})
    options = ("--step-ms", "2", "--health-listen", engine_health)
    settings = sidecar_settings(engine_port, engine={"health": asked}, health_listen=own)
    with sidecar(tmp_path, settings) as gate:
        assert health(gate) == {NOT_SERVING}
        with fake_pod(*options, port=engine_port) as engine:
            gate.process.wait_for(lambda: health(gate) == {SERVING}, what="SERVING")
            engine.process.kill()
        gate.process.wait_for(lambda: health(gate) == {NOT_SERVING}, what="NOT_SERVING without an engine")
        with fake_pod(*options, port=engine_port):
            gate.process.wait_for(lambda: health(gate) == {SERVING}, what="SERVING again")
            with gate.asking(max_tokens=ENDLESS):
                gate.wait_for_gauges(in_flight=1)
                assert ask(f"{gate.admin}/drain", "POST").status == 202
                gate.process.wait_for(lambda: not listens(gate.port), what="it takes nothing new")
                assert health(gate) == {NOT_SERVING}


CANARY_KEY, CANARY_PROMPT = "sk-canary-4711", "canary in a coal mine"


def malformed(gate: Sidecar) -> bytes:
    """The answer to a head that is not HTTP."""
    with socket.create_connection((HOST, gate.port), timeout=20) as wire:
        wire.sendall(
            f"POST /v1/chat/completions?key={CANARY_KEY} HTTP/1.1\r\nauthorization : Bearer {CANARY_KEY}\r\n"
            f" {CANARY_PROMPT}\r\n\r\n".encode()
        )
        answer = b""
        while data := wire.recv(65536):
            answer += data
        return answer


def test_keys_and_prompts_are_nowhere(pod: Pod, tmp_path: Path) -> None:
    """Whatever becomes of the requests that carry them."""
    password, header = "canary-password", "canary-header"
    digest = hashlib.sha256(CANARY_KEY.encode()).hexdigest()
    settings = sidecar_settings(
        pod.port,
        log_level="debug",
        telemetry={"access_log": "all"},
        max_body_bytes=4096,
        admission={"max_in_flight": 1, "max_queue": 0},
        tenants=[{"name": "acme", "key_sha256": [digest]}],
        class_rules=[{"class": "batch", "header": {"x-team": header}}],
        redis={"url": f"redis://:{password}@127.0.0.1:1/0"},
    )
    message = [{"role": "user", "content": CANARY_PROMPT}]
    keys: list[dict[str, str]] = [
        {"authorization": f"Bearer {CANARY_KEY}"},
        {"x-api-key": CANARY_KEY, "x-team": header},
        {"api-key": f"{CANARY_KEY}-unknown"},
        {"authorization": f"Basic {CANARY_KEY}"},
    ]
    outcomes: list[dict[str, Any]] = [{}, {"temperature": CANARY_PROMPT}, {"user": "x" * 5000}]
    with sidecar(tmp_path, settings) as gate:
        statuses = set()
        for fields in keys:
            statuses |= {gate.chat(messages=message, headers=fields, **more).status for more in outcomes}
        url = f"{gate.url}/v1/chat/completions?api_key={CANARY_KEY}"
        statuses.add(ask(url, "POST", body=chat_body(messages=message)[:-1], headers=keys[0]).status)
        statuses.add(ask(f"{gate.url}/sleep?{CANARY_KEY}", "POST", headers=keys[0]).status)
        with gate.asking(messages=message, max_tokens=ENDLESS):  # it leaves
            gate.wait_for_gauges(in_flight=1)
            statuses.add(gate.chat(messages=message).status)
        assert statuses == {200, 400, 403, 413, 503}
        assert malformed(gate).startswith(b"HTTP/1.1 400 ")
        gate.wait_for_decision("client_gone")
        gate.process.wait_for_line('"reason":"client_gone"')
        paths = ("/metrics", "/debug/endpoints", "/debug/config", "/debug/decisions?n=1000")
        pages = {path: ask(f"{gate.admin}{path}").text for path in paths}
        pages["the log"] = gate.process.text()
    secrets = (CANARY_KEY, CANARY_PROMPT, digest, password, header)
    assert [(where, each) for where, page in pages.items() for each in secrets if each in page] == []
    assert "***@127.0.0.1:1" in pages["/debug/config"]
    assert '"tenant":"acme"' in pages["the log"]
