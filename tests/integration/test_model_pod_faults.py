"""Faults on demand as they look from outside: a real process, raw sockets, h11 as the judge of framing.

That nothing comes is seen by a wait that ends in vain (`QUIET_S`); nothing is asserted about how long
anything takes.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
import h11
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.harness.processes import HOST, Running, free_ports, listens, running, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

QUIET_S = 0.3
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
CHECK = health_pb2.HealthCheckRequest()


class Answer:
    """What comes on one connection to which one request was sent."""

    def __init__(self, port: int, request: bytes) -> None:
        self.came = b""
        self._socket = socket.create_connection((HOST, port), timeout=30)
        self._socket.sendall(request)

    def until(self, mark: bytes, count: int = 1) -> None:
        while self.came.count(mark) < count:
            piece = self._socket.recv(65536)
            assert piece, self.came
            self.came += piece

    def end(self) -> str:
        """Read to the end: `closed` or `reset`."""
        try:
            while piece := self._socket.recv(65536):
                self.came += piece
        except ConnectionResetError:
            return "reset"
        finally:
            self._socket.close()
        return "closed"

    def is_quiet(self) -> bool:
        """Nothing more comes for a while."""
        self._socket.settimeout(QUIET_S)
        try:
            piece = self._socket.recv(65536)
        except TimeoutError:
            return True
        finally:
            self._socket.settimeout(30)
        assert piece, self.came
        self.came += piece
        return False

    def drain(self) -> None:
        """Take what was on its way."""
        while not self.is_quiet():
            pass

    def tokens(self) -> int:
        return self.came.count(b'"content":"') - self.came.count(b'"content":""')

    def status(self) -> int:
        return int(self.came.split(b" ", 2)[1])

    def read_as_http(self) -> bytes:
        """The body, for who is strict. Raises h11.RemoteProtocolError."""
        reader = h11.Connection(h11.CLIENT)
        reader.send(h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "0")]))
        reader.send(h11.EndOfMessage())
        reader.receive_data(self.came)
        reader.receive_data(b"")
        body = b""
        while not isinstance(event := reader.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                body += bytes(event.data)
        return body


@dataclass
class Pod:
    process: Running
    port: int
    health_port: int
    faults_port: int

    def fault(self, method: str, **fault: object) -> dict[str, object]:
        body = json.dumps(fault).encode() if fault else None
        request = urllib.request.Request(f"http://{HOST}:{self.faults_port}/fault", body, method=method)
        with DIRECT.open(request, timeout=30) as answer:
            return json.load(answer)

    def put(self, kind: str, **members: object) -> None:
        self.fault("PUT", kind=kind, **members)

    def end(self) -> None:
        self.fault("DELETE")

    def ask(self, *, stream: bool, tokens: int = 8) -> Answer:
        fields = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": tokens, "stream": stream}
        body = json.dumps(fields).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: "
        return Answer(self.port, head + b"%d\r\n\r\n" % len(body) + body)

    def get(self, path: str) -> Answer:
        return Answer(self.port, f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())

    def metric(self, name: str) -> float:
        page = self.get("/metrics")
        assert page.end() == "closed"
        found = re.search(rf"^{re.escape(name)}{{[^}}]*}} (\S+)$", page.came.decode(), re.MULTILINE)
        assert found, name
        return float(found[1])

    @contextmanager
    def health(self) -> Iterator[health_pb2_grpc.HealthStub]:
        with grpc.insecure_channel(f"{HOST}:{self.health_port}") as channel:
            yield health_pb2_grpc.HealthStub(channel)

    def serves(self) -> None:
        """Everything is as it should be."""
        for stream in (True, False):
            answer = self.ask(stream=stream)
            assert (answer.end(), answer.status()) == ("closed", 200)
            assert answer.read_as_http()
        health = self.get("/health")
        assert (health.end(), health.status()) == ("closed", 200)
        with self.health() as stub:
            assert stub.Check(CHECK, timeout=30).status == 1


@contextmanager
def started(*flags: str) -> Iterator[Pod]:
    ports = free_ports(3)
    words = zip(("--listen", "--health-listen", "--faults"), ports, strict=True)
    listeners = [word for flag, port in words for word in (flag, f"{HOST}:{port}")]
    argv = [sys.executable, "-m", "model_pod", "--engine", "fake", "--step-ms", "2", *listeners, *flags]
    with running(argv) as process:
        process.wait_for_line("ready http://")
        yield Pod(process, *ports)


@pytest.fixture(scope="module")
def _pod() -> Iterator[Pod]:
    with started() as pod:
        yield pod


@pytest.fixture
def pod(_pod: Pod) -> Iterator[Pod]:
    """Sound when a test begins, and again when it has ended its fault."""
    assert _pod.fault("GET") == {"kind": "none"}
    yield _pod
    assert _pod.fault("DELETE") == {"kind": "none"}
    _pod.serves()


def test_a_bad_fault_is_refused_with_a_sentence_and_changes_nothing(pod):
    pod.put("slow", factor=1.5)
    with pytest.raises(urllib.error.HTTPError) as caught:
        pod.put("status", status=404)
    with caught.value as error:
        assert error.code == 400
        assert b"status" in error.read()
    assert pod.fault("GET") == {"kind": "slow", "factor": 1.5}


def test_in_a_hang_nothing_moves_but_health_answers(pod):
    stream = pod.ask(stream=True, tokens=400)
    stream.until(b'"content":"', 3)
    pod.put("hang")
    stream.drain()
    made = pod.metric("vllm:generation_tokens_total")
    asked = [pod.ask(stream=streamed) for streamed in (True, False)]
    assert all(answer.is_quiet() for answer in (stream, *asked))
    assert pod.metric("vllm:num_requests_waiting") == 2
    assert pod.metric("vllm:generation_tokens_total") == made
    health = pod.get("/health")
    assert (health.end(), health.status()) == ("closed", 200)
    with pod.health() as stub:
        assert stub.Check(CHECK, timeout=30).status == 1
    pod.end()
    assert [answer.end() for answer in (stream, *asked)] == ["closed"] * 3
    assert [answer.read_as_http()[:6] for answer in asked] == [b"data: ", b'{"id":']
    assert stream.tokens() == 400


def test_in_a_silent_hang_health_does_not_answer_either(pod):
    pod.put("hang", health="silent")
    health = pod.get("/health")
    with pod.health() as stub:
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(CHECK, timeout=QUIET_S)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        waiting = stub.Check.future(CHECK, timeout=30)
        assert health.is_quiet()
        assert health.came == b""
        pod.put("hang", health="ok")
        assert waiting.result().status == 1
    assert (health.end(), health.status()) == ("closed", 200)


def test_slow_stretches_the_steps_of_a_running_answer(pod):
    stream = pod.ask(stream=True, tokens=400)
    stream.until(b'"content":"', 3)
    pod.put("slow", factor=1000)  # two seconds a step
    stream.drain()
    assert stream.tokens() < 400
    pod.end()
    assert stream.end() == "closed"
    assert stream.tokens() == 400


def test_a_status_for_half_of_the_requests(pod):
    pod.put("status", status=502, rate=0.5)
    answers = [pod.ask(stream=streamed) for streamed in (True, False) * 2]
    assert [answer.end() for answer in answers] == ["closed"] * 4
    assert sorted(answer.status() for answer in answers) == [200, 200, 502, 502]
    refused = next(answer for answer in answers if answer.status() == 502)
    assert json.loads(refused.read_as_http())["error"]["code"] == 502


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("after_bytes", [0, 7, 300])
def test_a_reset_after_exactly_so_many_bytes(pod, streamed, after_bytes):
    pod.put("reset", after_bytes=after_bytes)
    answer = pod.ask(stream=streamed)
    assert (answer.end(), len(answer.came)) == ("reset", after_bytes)


def test_a_reset_in_the_middle_of_streams(pod):
    running_already, size = pod.ask(stream=True, tokens=2000), 40_000
    running_already.until(b'"content":"', 3)
    pod.put("reset", after_bytes=size)
    answers = [running_already, pod.ask(stream=True, tokens=2000)]
    assert [(answer.end(), len(answer.came)) for answer in answers] == [("reset", size)] * 2
    answer = pod.ask(stream=True)
    assert (answer.end(), len(answer.came) < size) == ("closed", True)
    wait_until(lambda: pod.metric("vllm:num_requests_running") == 0)


@pytest.mark.parametrize(("done", "body"), [(False, b""), (True, b"data: [DONE]\n\n")])
def test_an_empty_stream(pod, done, body):
    pod.put("empty", done=done)
    answer = pod.ask(stream=True)
    assert (answer.end(), answer.status(), answer.read_as_http()) == ("closed", 200, body)
    assert b"text/event-stream" in answer.came


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    ("what", "complaint"),
    [("chunk_size", "illegal chunk header"), ("content_length", "peer closed"), ("head", "illegal")],
)
def test_framing_that_a_strict_reader_refuses(pod, streamed, what, complaint):
    pod.put("framing", what=what)
    answer = pod.ask(stream=streamed)
    answer.end()
    with pytest.raises(h11.RemoteProtocolError, match=complaint):
        answer.read_as_http()


def test_who_refuses_is_gone_until_it_ends(pod):
    stream = pod.ask(stream=True, tokens=2000)
    stream.until(b'"content":"', 3)
    pod.put("refuse")
    stream.end()
    assert stream.tokens() < 2000
    for port in (pod.port, pod.health_port):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, port), timeout=30)
    assert pod.fault("GET") == {"kind": "refuse"}
    pod.end()
    pod.serves()
    assert pod.metric("vllm:num_requests_running") == 0


def test_a_flap_comes_and_goes(pod):
    pod.put("flap", up_s=0.2, down_s=0.2, fault={"kind": "refuse"})
    for _ in range(2):
        wait_until(lambda: not listens(pod.port), what="it refuses")
        wait_until(lambda: listens(pod.port), what="it accepts")


@pytest.mark.parametrize("fault", [{"kind": "hang", "health": "silent"}, {"kind": "refuse"}])
def test_a_pod_at_fault_ends_in_good_order(fault):
    with started("--grace-s", "0") as pod:
        pod.fault("PUT", **fault)
        hung = [pod.ask(stream=False), pod.get("/health")] if fault["kind"] == "hang" else []
        assert all(answer.is_quiet() for answer in hung)
        pod.process.process.send_signal(signal.SIGTERM)
        assert pod.process.process.wait(timeout=30) == 0
        for answer in hung:
            answer.end()


def test_a_port_of_faults_that_is_taken_is_said_in_one_line(pod):
    argv = [sys.executable, "-m", "model_pod", "--engine", "fake", "--listen", f"{HOST}:0"]
    with running([*argv, "--faults", f"{HOST}:{pod.faults_port}"]) as second:
        assert second.process.wait(timeout=60) == 1
        assert str(pod.faults_port) in second.text()
        assert "Traceback" not in second.text()
