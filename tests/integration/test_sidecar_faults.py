"""Engines that die, clients that do not read, bodies and crowds that are large: what the other side sees."""

import asyncio
import contextlib
import hashlib
import http.client
import http.server
import os
import select
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import openai
import pytest

from tests.harness.processes import HOST, free_port, wait_until
from tests.harness.sidecars import (
    HELLO,
    Sidecar,
    ask,
    chat_body,
    fake_pod,
    sidecar,
    sidecar_settings,
)

pytestmark = pytest.mark.integration

MESSAGES: Any = HELLO
MIB: Final = 2**20
# Paths whose bodies the sidecar keeps whole, and passes on as they come.
HELD, STREAMED = "/v1/chat/completions", "/v1/audio/transcriptions"
ENDLESS = 20_000  # tokens: longer than any test


# An engine that dies.


def test_killed_in_the_middle_of_a_stream(tmp_path: Path) -> None:
    with fake_pod() as pod, sidecar(tmp_path, sidecar_settings(pod.port)) as gate:
        with gate.client() as client, gate.asking(stream=True, max_tokens=ENDLESS) as wire:
            raw = wire.getresponse()
            stream = client.chat.completions.create(
                model="fake", messages=MESSAGES, stream=True, max_tokens=ENDLESS
            )
            with stream:
                next(iter(stream))
                assert raw.readline().startswith(b"data: ")
                pod.process.kill()
                with pytest.raises(openai.APIError, match="closed the connection") as caught:
                    list(stream)
                assert caught.value.code == "upstream_reset"
            # On the wire: a whole event that says so, and no last chunk.
            with pytest.raises(http.client.IncompleteRead) as broken:
                raw.read()
            *_, last, nothing = broken.value.partial.split(b"\n\n")
            assert last.startswith(b'data: {"error":{')
            assert nothing == b""
            assert b"[DONE]" not in broken.value.partial
        gate.wait_until_idle()
        assert [each["reason"] for each in gate.decisions()] == ["upstream_reset"] * 2


def test_killed_before_its_answer(tmp_path: Path) -> None:
    with fake_pod() as pod, sidecar(tmp_path, sidecar_settings(pod.port)) as gate:
        with gate.asking(max_tokens=ENDLESS) as wire:
            pod.wait_until_generating(1)
            pod.process.kill()
            answer = wire.getresponse()
            assert (answer.status, answer.headers["x-headgate-reason"]) == (502, "upstream_reset")
            assert b'"code":"upstream_reset"' in answer.read()
        gate.wait_until_idle()


def test_without_health_checks_a_dead_engine_is_a_failed_connection(tmp_path: Path) -> None:
    port = free_port()
    with sidecar(tmp_path, sidecar_settings(port)) as gate:
        answer = gate.chat()
        assert (answer.status, answer.headers["x-headgate-reason"]) == (502, "connect_failed")
        with fake_pod(port=port):
            assert gate.chat().status == 200
        assert gate.chat().status == 502
        with fake_pod(port=port):
            assert gate.chat().status == 200


def test_with_health_checks_a_dead_engine_is_no_endpoint(tmp_path: Path) -> None:
    port = free_port()
    engine = {"health": {"kind": "http", "interval_s": 0.1}}
    with sidecar(tmp_path, sidecar_settings(port, engine=engine)) as gate:

        def ready() -> bool:
            return ask(f"{gate.admin}/ready").status == 200

        answer = gate.chat()
        assert (answer.status, answer.headers["x-headgate-reason"]) == (503, "no_endpoint")
        assert answer.headers["x-headgate-elsewhere"] == "1"
        assert int(answer.headers["retry-after-ms"]) > 0
        with fake_pod(port=port) as first:
            gate.process.wait_for(ready, what="the engine is well")
            assert gate.chat().status == 200
            first.process.kill()
            gate.process.wait_for(lambda: not ready(), what="the engine is out")
            assert gate.chat().status == 503
        with fake_pod(port=port):
            gate.process.wait_for(ready, what="the engine is back")
            assert gate.chat().status == 200


# An engine that sends much, and says back what it was told.


class Bulk(http.server.BaseHTTPRequestHandler):
    """GET /bulk: BULK_BYTES. POST: the body it was sent, as it was framed."""

    protocol_version = "HTTP/1.1"
    BULK_BYTES: Final = 256 * MIB
    BLOCK: Final = bytes(range(256)) * 256
    held_up = threading.Event()  # nobody takes what we send

    def do_GET(self) -> None:
        if self.path != "/bulk":
            self.answer(b"{}")
            return
        self.send_response(200)
        self.send_header("content-length", str(self.BULK_BYTES))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            for _ in range(self.BULK_BYTES // len(self.BLOCK)):
                if not select.select([], [self.connection], [], 0.5)[1]:
                    self.held_up.set()
                self.wfile.write(self.BLOCK)

    def do_POST(self) -> None:
        if "chunked" in self.headers.get("transfer-encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["content-length"]))
        self.answer(body)

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class BulkServer(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Connections that the sidecar cuts are what this engine is for."""


@pytest.fixture
def bulk() -> Iterator[int]:
    """The port of a Bulk engine."""
    Bulk.held_up.clear()
    with BulkServer((HOST, 0), Bulk) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def resident(gate: Sidecar, which: str) -> int:
    """Bytes of memory: VmRSS of the moment, or VmHWM at most so far."""
    status = Path(f"/proc/{gate.process.pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(which))


def test_a_client_that_does_not_read_costs_no_memory_and_holds_up_nobody(bulk: int, tmp_path: Path) -> None:
    with sidecar(tmp_path, sidecar_settings(bulk)) as gate:
        assert ask(f"{gate.url}/small").status == 200
        before = resident(gate, "VmRSS")
        slow = http.client.HTTPConnection(HOST, gate.port, timeout=60)
        with contextlib.closing(slow):
            slow.request("GET", "/bulk")
            wait_until(Bulk.held_up.is_set, what="the engine feels the client's slowness")
            for _ in range(50):
                assert ask(f"{gate.url}/small").status == 200
            # It was slow, it is not gone: it gets everything.
            answer, size = slow.getresponse(), 0
            while piece := answer.read(MIB):
                assert piece.startswith(Bulk.BLOCK[size % 256 :][:256])
                size += len(piece)
            assert size == Bulk.BULK_BYTES
        gate.wait_for_gauges(downstream=0)
        assert resident(gate, "VmHWM") - before < 32 * MIB


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("path", [HELD, STREAMED], ids=["held", "streamed"])
def test_ten_megabytes_pass_both_ways(bulk: int, tmp_path: Path, path: str, chunked: bool) -> None:
    body = os.urandom(10 * MIB)
    with sidecar(tmp_path, sidecar_settings(bulk)) as gate:
        connection = http.client.HTTPConnection(HOST, gate.port, timeout=60)
        with contextlib.closing(connection):
            pieces = (body[i : i + 50_000] for i in range(0, len(body), 50_000))
            connection.request("POST", path, pieces if chunked else body)
            answer = connection.getresponse()
            assert answer.status == 200
            assert hashlib.sha256(answer.read()).digest() == hashlib.sha256(body).digest()
        gate.wait_for_gauges(downstream=0, buffered=0)
        assert gate.decisions()[0]["bytes_in"] == gate.decisions()[0]["bytes_out"] == len(body)


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_client_that_sends_too_much_can_read_why(bulk: int, tmp_path: Path, chunked: bool) -> None:
    """It sends everything first, and looks for an answer then."""
    with sidecar(tmp_path, sidecar_settings(bulk, max_body_bytes=MIB)) as gate:
        connection = http.client.HTTPConnection(HOST, gate.port, timeout=60)
        with contextlib.closing(connection):
            pieces = (bytes(65536) for _ in range(128))
            connection.request("POST", "/v1/completions", pieces if chunked else bytes(8 * MIB))
            answer = connection.getresponse()
            assert (answer.status, answer.headers["x-headgate-reason"]) == (413, "body_too_large")
            assert answer.headers["connection"] == "close"
            assert b"1048576 bytes" in answer.read()
        gate.wait_until_idle()


# A crowd.

CONNECTIONS, REQUESTS = 32, 10_000


async def ask_again_and_again(port: int, times: int) -> int:
    """On one connection; how many were answered with 200."""
    body = chat_body(max_tokens=1)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    reader, writer = await asyncio.open_connection(HOST, port)
    served = 0
    for _ in range(times):
        writer.write(head + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        served += answer.startswith(b"HTTP/1.1 200 ")
        length = answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
    writer.close()
    await writer.wait_closed()
    return served


def test_ten_thousand_requests_leave_nothing_behind(tmp_path: Path) -> None:
    async def crowd(port: int) -> int:
        callers = (ask_again_and_again(port, REQUESTS // CONNECTIONS) for _ in range(CONNECTIONS))
        return sum(await asyncio.gather(*callers))

    with fake_pod("--step-ms", "1", "--prefill-token-ms", "0") as pod:
        settings = sidecar_settings(pod.port, admission={"max_in_flight": 16})
        with sidecar(tmp_path, settings) as gate:
            sent = REQUESTS // CONNECTIONS * CONNECTIONS
            assert asyncio.run(crowd(gate.port)) == sent
            assert gate.metric("headgate_requests_total", status="200", reason="") == sent
            assert gate.metric("headgate_requests_total") == sent
            # Connections to the engine are used again; idle ones go after a while.
            assert gate.metric("headgate_connections", side="upstream") <= CONNECTIONS
            gate.wait_until_idle()
        pod.wait_until_generating(0)
