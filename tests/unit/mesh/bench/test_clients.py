"""Callers against a scripted server on loopback: what they send, count, repeat and give up.

Waits are short and real; what is asserted of time is only that something was not before its time.
"""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme

from mesh.bench.clients import Target, drive
from mesh.bench.origin import Origin
from mesh.bench.workload import PREMIUM, Ask, stock
from tests.harness.processes import HOST, free_port

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
REFUSED = b"HTTP/1.1 503 Busy\r\nx-headgate-reason: overloaded\r\ncontent-length: 2\r\n%b\r\n{}"
OK = b'HTTP/1.1 200 OK\r\ncontent-length: 34\r\n\r\n{"usage": {"completion_tokens":3}}'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


TOKEN = chunk(b'data: {"choices":[{"delta":{"content":"word"}}]}\n\n')
END = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
FOREVER = b""  # nothing more comes until the caller leaves
LATER = b"later"
LATER_S = 0.3


@dataclass
class Request:
    """What a caller sent, on which connection, and how many had been left by then."""

    connection: int
    left: int
    fields: dict[str, str]
    body: dict[str, Any]


@dataclass
class Server:
    """Answers the nth request with the nth list of pieces, or the last there is."""

    script: list[list[bytes]]
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    left: int = 0  # connections that the caller closed while it was being answered
    url: str = ""
    serving: dict[Any, asyncio.StreamWriter] = field(default_factory=dict)  # by task

    async def stop(self) -> None:
        for writer in self.serving.values():
            writer.transport.abort()
        await asyncio.gather(*self.serving)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving[asyncio.current_task()] = writer
        self.connections += 1
        number = self.connections
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
                fields = dict(line.lower().split(": ", 1) for line in head[1:-1])
                body = json.loads(await reader.readexactly(int(fields["content-length"])))
                self.requests.append(Request(number, self.left, {"": head[0]} | fields, body))
                for piece in self.script[min(len(self.requests), len(self.script)) - 1]:
                    if piece == LATER:
                        await asyncio.sleep(LATER_S)
                        continue
                    if piece == FOREVER:
                        self.left += await reader.read(1) == b""
                    writer.write(piece)
                if b"connection: close" in b"".join(self.script[-1]):
                    break
        writer.close()


@contextlib.asynccontextmanager
async def serving(*script: list[bytes], tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server(list(script))
    listening = await asyncio.start_server(server.serve, HOST, 0, ssl=tls)
    server.url = f"http{'s' if tls else ''}://{HOST}:{listening.sockets[0].getsockname()[1]}"
    async with listening:
        try:
            yield server
        finally:
            await server.stop()


def ask(at: float = 0.0, **traffic: Any) -> Ask:
    return Ask(at, stock(PREMIUM, 1, **traffic), 10, 0)


def driving(
    script: list[list[bytes]], *asks: Ask, **options: Any
) -> tuple[Server, list[Origin]]:
    """Drive these asks against a server with this script."""

    async def run() -> tuple[Server, list[Origin]]:
        async with serving(*script) as server:
            return server, await drive(asks, [server.url], model="m", **options)

    return asyncio.run(asyncio.wait_for(run(), 20))


STREAM = [HEAD + TOKEN, TOKEN, END]


def test_a_stream_is_asked_for_and_counted() -> None:
    server, (origin,) = driving([STREAM], ask(key="secret", answer=7, patience_s=8))
    assert (origin.outcome, len(origin.tokens_at)) == ("served", 2)
    (attempt,) = origin.attempts
    assert attempt.status == 200
    assert attempt.first_token == origin.tokens_at[0]
    assert 0 <= attempt.sent <= origin.tokens_at[0] <= origin.tokens_at[1] <= attempt.ended == origin.ended
    (request,) = server.requests
    assert request.fields[""] == "POST /v1/chat/completions HTTP/1.1"
    assert request.fields["authorization"] == "bearer secret"
    assert request.fields["x-priority"] == "premium"
    assert request.fields["x-stainless-retry-count"] == "0"
    assert request.fields["x-stainless-read-timeout"] == "8"
    assert (request.body["model"], request.body["stream"], request.body["max_tokens"]) == ("m", True, 7)
    assert request.body["stream_options"] == {"include_usage": True}
    assert len(request.body["messages"][0]["content"]) == 40


def test_what_is_not_wanted_is_not_sent() -> None:
    server, _ = driving([[OK]], ask(stream=False))
    (request,) = server.requests
    assert "authorization" not in request.fields
    assert not {"max_tokens", "stream_options"} & request.body.keys()


def test_a_body_may_have_more() -> None:
    server, _ = driving([STREAM], ask(), extra_body=lambda ask: {"priority": ask.number, "model": "other"})
    assert (server.requests[0].body["priority"], server.requests[0].body["model"]) == (0, "other")


def test_an_answer_of_one_piece_is_counted_by_its_usage() -> None:
    _, (origin,) = driving([[OK]], ask(stream=False))
    assert origin.outcome == "served"
    assert len(origin.tokens_at) == 3


def test_callers_come_on_time_and_share_connections() -> None:
    server, origins = driving([STREAM], ask(0.0), ask(0.2), ask(0.4))
    assert all(origin.attempts[0].sent >= origin.ask.at - 0.001 for origin in origins)
    assert [request.connection for request in server.requests] == [1, 1, 1]


def test_nobody_waits_for_another() -> None:
    server, origins = driving([[HEAD, FOREVER], STREAM], ask(patience_s=0.2, retries=0), ask(0.01))
    assert [origin.outcome for origin in origins] == ["timeout", "served"]
    assert server.connections == 2


def test_a_connection_that_the_server_closes_is_not_used_again() -> None:
    closing = OK.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)
    server, origins = driving([[closing]], ask(stream=False), ask(0.05, stream=False))
    assert [origin.outcome for origin in origins] == ["served"] * 2
    assert server.connections == 2


def test_a_connection_that_the_server_will_close_is_left() -> None:
    closing = OK.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)
    server, _ = driving([[closing, FOREVER]], ask(stream=False), ask(0.2, stream=False))
    assert [request.left for request in server.requests] == [0, 1]


def test_an_invitation_is_followed() -> None:
    server, (origin,) = driving([[REFUSED % b"retry-after-ms: 80\r\n"], STREAM], ask())
    refused, served = origin.attempts
    assert (refused.status, refused.reason, refused.retry_after_s) == (503, "overloaded", 0.08)
    assert served.sent >= refused.ended + 0.08 - 0.002
    assert origin.outcome == "served"
    assert [request.fields["x-stainless-retry-count"] for request in server.requests] == ["0", "1"]


def test_a_refusal_for_good_is_obeyed() -> None:
    server, (origin,) = driving([[REFUSED % b"x-should-retry: false\r\n"]], ask())
    assert origin.outcome == "refused"
    assert origin.attempts[0].should_retry is False
    assert len(server.requests) == 1


def test_retries_end() -> None:
    server, (origin,) = driving([[REFUSED % b"retry-after-ms: 1\r\n"]], ask(retries=3))
    assert (origin.outcome, len(server.requests)) == ("refused", 4)


def test_nobody_pauses_beyond_its_patience() -> None:
    server, (origin,) = driving([[REFUSED % b"retry-after: 9\r\n"]], ask(patience_s=2))
    assert (origin.outcome, len(server.requests)) == ("refused", 1)
    assert origin.ended < 2


@pytest.mark.parametrize("status", [b"429 Slow down", b"529 Overloaded"])
def test_other_words_for_no_room(status: bytes) -> None:
    _, (origin,) = driving([[REFUSED.replace(b"503 Busy", status) % b""]], ask(retries=0))
    assert origin.outcome == "refused"


def test_a_fault_is_no_refusal() -> None:
    _, (origin,) = driving([[REFUSED.replace(b"503 Busy", b"500 Oops") % b""]], ask(retries=0))
    assert (origin.outcome, origin.attempts[0].status) == ("error", 500)


@pytest.mark.parametrize("script", [[FOREVER], [HEAD, FOREVER]], ids=["no head", "no token"])
def test_patience_ends_and_the_connection_with_it(script: list[bytes]) -> None:
    server, (origin, _) = driving([script, STREAM], ask(patience_s=0.1), ask(0.3))
    assert (origin.outcome, origin.attempts[0].reason) == ("timeout", "gave_up")
    assert len(origin.attempts) == 1
    assert origin.ended >= 0.1 - 0.002
    assert [request.left for request in server.requests] == [0, 1]


def test_a_try_may_end_before_patience_does() -> None:
    _, (origin,) = driving([[FOREVER], STREAM], ask(patience_s=9, timeout_s=0.3))
    assert [attempt.reason for attempt in origin.attempts] == ["gave_up", ""]
    assert origin.outcome == "served"


def test_tokens_extend_patience_and_silence_ends_it() -> None:
    server, (origin, _) = driving([[HEAD + TOKEN, TOKEN, FOREVER], STREAM], ask(patience_s=0.3), ask(0.9))
    assert (origin.outcome, len(origin.tokens_at), len(origin.attempts)) == ("timeout", 2, 1)
    assert origin.ended >= origin.tokens_at[-1] + 0.3 - 0.002
    assert [request.left for request in server.requests] == [0, 1]


def test_a_stream_may_outlast_patience_while_tokens_come() -> None:
    _, (origin,) = driving([[HEAD + TOKEN, LATER, TOKEN, LATER, END]], ask(patience_s=0.5))
    assert origin.outcome == "served"
    assert origin.ended >= 2 * LATER_S - 0.01


def test_a_stream_that_has_begun_is_not_repeated() -> None:
    server, (origin,) = driving([[HEAD + TOKEN, FOREVER]], ask(patience_s=9, timeout_s=0.3))
    assert (origin.outcome, len(server.requests)) == ("timeout", 1)


BROKEN = chunk(b'data: {"error": {"code": "stalled"}}\n\n') + b"0\r\n\r\n"


@pytest.mark.parametrize("rest", [BROKEN, b"0\r\n\r\n"], ids=["error", "no end"])
def test_a_stream_that_breaks_off_is_cut_and_not_repeated(rest: bytes) -> None:
    server, (origin,) = driving([[HEAD + TOKEN, rest]], ask())
    assert (origin.outcome, len(origin.tokens_at)) == ("cut", 1)
    assert len(server.requests) == 1


def test_a_connection_that_breaks_cuts_its_stream() -> None:
    broken = HEAD.replace(b"\r\n", b"\r\nconnection: close\r\n", 1) + TOKEN
    _, (origin,) = driving([[broken]], ask())
    assert (origin.outcome, origin.attempts[0].reason, len(origin.tokens_at)) == ("cut", "reset", 1)


def test_an_answer_of_one_piece_that_breaks_is_repeated() -> None:
    broken = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 99\r\n\r\n{"
    server, (origin,) = driving([[broken]], ask(stream=False, retries=1, patience_s=3))
    assert (origin.outcome, len(server.requests)) == ("error", 2)


@pytest.mark.parametrize("said", [b"SMTP ready\r\n\r\n", HEAD + chunk(b"data: {half\n\n")])
def test_what_cannot_be_read_is_an_error(said: bytes) -> None:
    server, (origin, _) = driving([[said, FOREVER], STREAM], ask(retries=0), ask(0.2))
    assert origin.outcome == "error"
    assert origin.attempts[0].reason
    assert [request.left for request in server.requests] == [0, 1]


def test_nobody_listens() -> None:
    url = f"http://{HOST}:{free_port()}"
    (origin,) = asyncio.run(drive([ask(retries=0)], [url], model="m"))
    assert (origin.outcome, origin.attempts[0].reason) == ("error", "Connection refused")


def test_callers_are_dealt_round_robin_and_stay() -> None:
    async def run() -> list[int]:
        async with serving([REFUSED % b"retry-after-ms: 1\r\n"]) as first, serving(STREAM) as second:
            await drive([ask(retries=1) for _ in range(3)], [first.url, second.url], model="m")
            return [len(first.requests), len(second.requests)]

    assert asyncio.run(run()) == [4, 1]


def test_a_run_may_end_while_callers_wait() -> None:
    server, origins = driving([[HEAD + TOKEN, FOREVER]], ask(), ask(0.01), ask(3.0), until_s=0.6)
    assert [origin.outcome for origin in origins] == ["open"] * 3
    assert [len(origin.tokens_at) for origin in origins] == [1, 1, 0]
    assert [len(origin.attempts) for origin in origins] == [1, 1, 0]
    assert server.connections == 2


def test_progress_is_told() -> None:
    told: list[float] = []
    driving([STREAM], ask(), ask(0.15), progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1


def test_nothing_to_ask() -> None:
    assert driving([STREAM])[1] == []


def test_a_cancelled_run_leaves_nothing_behind() -> None:
    async def run() -> Server:
        async with serving([FOREVER]) as server:
            driven = asyncio.create_task(drive([ask(), ask(9.0)], [server.url], model="m"))
            await until(lambda: len(server.requests) == 1)
            driven.cancel()
            with pytest.raises(asyncio.CancelledError):
                await driven
            await until(lambda: server.left == 1)
            return server

    asyncio.run(asyncio.wait_for(run(), 20))


@pytest.mark.parametrize(
    ("trusts", "outcome", "reason"),
    [(True, "served", ""), (False, "error", "SSLCertVerificationError")],
)
def test_https(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusts: bool, outcome: str, reason: str
) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    if trusts:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))

    async def run() -> list[Origin]:
        async with serving(STREAM, tls=context) as server:
            return await drive([ask(retries=0)], [server.url], model="m")

    (origin,) = asyncio.run(asyncio.wait_for(run(), 20))
    assert (origin.outcome, origin.attempts[0].reason) == (outcome, reason)


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("url", "models"),
    [
        ("http://host:80", "http://host:80/v1/models"),
        ("http://host/", "http://host/v1/models"),
        ("https://host/v1/", "https://host/v1/models"),
        ("https://[::1]:8443/serve/v1", "https://[::1]:8443/serve/v1/models"),
    ],
)
def test_the_api_is_found_from_any_form_of_its_url(url: str, models: str) -> None:
    assert Target(url).url("models") == models


@pytest.mark.parametrize("url", ["", "host:80", "ftp://host", "http://", "/v1"])
def test_what_is_no_url_of_a_server(url: str) -> None:
    with pytest.raises(ValueError, match="http"):
        Target(url)
