"""What one request costs in Python, without sockets: as a ratio to httptools parsing the same bytes.

The ratio cancels the machine's speed. One request: 10 fields, a 1 KB JSON body, a tenant with a key,
three limits that nobody reaches, admission with room, a pooled engine connection, a 1 KB answer, metrics
and an access record.
"""

import hashlib
import statistics
import time
from dataclasses import dataclass
from typing import Any

import httptools

from sidecar.clock import SystemClock
from sidecar.config import decode
from sidecar.net.downstream import Downstream
from sidecar.plane import Plane

KEY = "sk-bench"
CONFIG = f"""
engine: {{address: 127.0.0.1:8000, kv_tokens: 1000000000}}
admission: {{max_in_flight: 20000}}
telemetry: {{access_log: sampled}}
tenants:
  - {{name: acme, key_sha256: ["{hashlib.sha256(KEY.encode()).hexdigest()}"], class: premium}}
limits:
  - {{name: requests, by: [tenant], unit: requests, limit: 1000000000}}
  - {{name: tokens, by: [tenant, model], unit: tokens, limit: 1000000000000}}
  - {{name: streams, by: [tenant], unit: concurrent, limit: 1000000}}
"""
BODY = b'{"model":"m","max_tokens":64,"messages":[{"role":"user","content":"%s"}]}' % (b"x" * 945)
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: model.example\r\nuser-agent: OpenAI/Python 1.0\r\n"
    b"accept: application/json\r\naccept-encoding: gzip, deflate\r\ncontent-type: application/json\r\n"
    b"authorization: Bearer " + KEY.encode() + b"\r\nx-stainless-lang: python\r\n"
    b"x-stainless-read-timeout: 600\r\nx-stainless-retry-count: 0\r\ncontent-length: %d\r\n\r\n" % len(BODY)
) + BODY
ANSWER = (
    b"HTTP/1.1 200 OK\r\ndate: Sun, 22 Nov 2026 08:16:17 GMT\r\nserver: uvicorn\r\n"
    b"content-type: application/json\r\ncontent-length: 1024\r\n\r\n"
) + b"y" * 1024
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
EVENT = b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"word"}}]}\n\n'
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)


class Transport:
    """Takes what is written and forgets it."""

    def __init__(self) -> None:
        self.written = 0

    def write(self, data: bytes) -> None:
        self.written += len(data)

    def writelines(self, parts: Any) -> None:
        self.written += sum(map(len, parts))

    def set_write_buffer_limits(self, high: int) -> None: ...

    def is_closing(self) -> bool:
        return False

    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 5000) if name == "peername" else None

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


class Engine:
    """Connects at once; remembers the connection, so that answers can be put into it."""

    def dial(self, endpoint: Any, timeout_s: float, made: Any, then: Any) -> None:
        self.connection = made()
        self.connection.connection_made(Transport())
        then(self.connection)


class Parsed:
    """What httptools at least has to do for any user of it: record fields and body."""

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.body: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))

    def on_body(self, data: bytes) -> None:
        self.body.append(data)

    def on_message_complete(self) -> None:
        self.fields.clear()
        self.body.clear()


def sidecar() -> tuple[Plane, Downstream, Engine]:
    """The data plane without a process, one client of it, and the engine behind it."""
    engine = Engine()
    plane = Plane(decode(CONFIG, {}), "bench", SystemClock(), engine)
    plane.lifecycle.serving = True
    client = Downstream(plane.context)
    client.connection_made(Transport())  # type: ignore[arg-type]
    return plane, client, engine


def microseconds(call: Any, n: int) -> float:
    """Of CPU for one of `n` calls, on average: not what others take meanwhile."""
    start = time.process_time()
    for _ in range(n):
        call()
    return (time.process_time() - start) / n * 1e6


@dataclass(frozen=True, slots=True)
class Run:
    """Microseconds, one value for each round."""

    requests: list[float]
    floors: list[float]  # httptools on the same bytes
    chunks: list[float]

    @property
    def ratios(self) -> list[float]:
        return [cost / floor for cost, floor in zip(self.requests, self.floors, strict=True)]


def run(rounds: int = 50, n: int = 500) -> Run:
    """Measure the three in turn, `n` times in each round, which is short so that all see the same machine."""
    plane, client, engine = sidecar()
    requests, answers = Parsed(), Parsed()
    read_request = httptools.HttpRequestParser(requests)
    read_answer = httptools.HttpResponseParser(answers)

    def one_request() -> None:
        client.data_received(REQUEST)
        engine.connection.data_received(ANSWER)

    def parse() -> None:
        read_request.feed_data(REQUEST)
        read_answer.feed_data(ANSWER)

    one_request()
    assert plane.receipts.last(1)[0].status == 200
    found = Run([], [], [])
    for _ in range(rounds):
        found.requests.append(microseconds(one_request, n))
        found.floors.append(microseconds(parse, n))
        client.data_received(REQUEST)
        engine.connection.data_received(STREAM_HEAD)
        found.chunks.append(microseconds(lambda: engine.connection.data_received(CHUNK), n))
        engine.connection.data_received(b"0\r\n\r\n")
    return found


def show() -> None:
    found = run()
    named = {
        "request": found.requests,
        "httptools": found.floors,
        "ratio": found.ratios,
        "chunk": found.chunks,
    }
    for name, values in named.items():
        print(f"  {name:10} {statistics.median(values):.2f}")


if __name__ == "__main__":
    show()
