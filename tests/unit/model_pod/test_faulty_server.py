"""What each fault makes of an answer, byte by byte, over a fake engine whose steps take no time."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp.test_utils import TestServer

from model_pod.fake_engine import FakeEngine, Lengths
from model_pod.fake_scheduler import Costs
from model_pod.fault_switch import Switch
from model_pod.faults import SOUND, Empty, Fault, Framing, Hang, Reset, Slow, Status
from model_pod.faulty_server import FaultyServer, refusal

FREE = Costs(step_ms=0, sequence_ms=0, kv_token_ns=0, prefill_token_ms=0)
STREAM, WHOLE = True, False


GET = b"GET %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


def post(*, stream: bool, close: bool = True) -> bytes:
    fields = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "seed": 1}
    body = json.dumps(fields | {"stream": stream}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n%bcontent-length: %d\r\n\r\n"
    return head % (b"connection: close\r\n" if close else b"", len(body)) + body


class Ear(asyncio.Protocol):
    """Keeps what comes, and how it ended."""

    def __init__(self) -> None:
        self.came = b""
        self.over: asyncio.Future[tuple[bytes, bool]] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.came += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.over.set_result((self.came, isinstance(exc, ConnectionResetError)))


class Peer:
    """Asks the server on connections of its own."""

    def __init__(self, switch: Switch, engine: FakeEngine, server: TestServer) -> None:
        self.switch = switch
        self.engine = engine
        self._server = server

    async def send(self, request: bytes) -> tuple[bytes, bool]:
        """All that comes, and whether a reset ended it."""
        loop = asyncio.get_running_loop()
        transport, ear = await loop.create_connection(Ear, self._server.host, self._server.port)
        try:
            transport.write(request)
            return await ear.over
        finally:
            transport.close()

    async def ask(self, *, stream: bool) -> tuple[bytes, bool]:
        return await self.send(post(stream=stream))


def play(scene) -> None:
    """Run `scene(peer)` for at most ten seconds."""

    async def run() -> None:
        async with asyncio.timeout(10):
            engine = FakeEngine(FREE, Lengths())
            await engine.start()
            switch = Switch(engine.pace)
            async with TestServer(FaultyServer(engine, "m", switch).app()) as server:
                await scene(Peer(switch, engine, server))
                assert engine.stats().running == 0
            await engine.stop()

    asyncio.run(run())


@pytest.mark.parametrize("fault", [SOUND, Slow(), Empty(), Status(rate=0), Reset(after_bytes=10**6)])
def test_answers_that_no_fault_is_about_are_whole(fault: Fault):
    async def scene(peer):
        await peer.switch.set(fault)
        came, reset = await peer.ask(stream=WHOLE)
        head, _, body = came.partition(b"\r\n\r\n")
        assert (head.split(b"\r\n")[0], reset) == (b"HTTP/1.1 200 OK", False)
        assert json.loads(body)["usage"]["completion_tokens"] == 5

    play(scene)


@pytest.mark.parametrize("stream", [STREAM, WHOLE])
@pytest.mark.parametrize("after_bytes", [0, 1, 150, 400])
def test_a_reset_comes_after_exactly_so_many_bytes(stream: bool, after_bytes: int):
    async def scene(peer):
        await peer.switch.set(Reset(after_bytes=after_bytes))
        for _ in range(2):
            came, reset = await peer.ask(stream=stream)
            assert (len(came), reset) == (after_bytes, True)

    play(scene)


def test_the_count_begins_with_each_answer_of_a_connection():
    async def scene(peer):
        length = len((await peer.ask(stream=WHOLE))[0])
        await peer.switch.set(Reset(after_bytes=length + 1))
        came, reset = await peer.send(post(stream=WHOLE, close=False) + post(stream=WHOLE))
        assert came.count(b"HTTP/1.1 200 OK\r\n") == 2
        assert (len(came) > length + 1, reset) == (True, False)

    play(scene)


@pytest.mark.parametrize(("done", "body"), [(False, b""), (True, b"e\r\ndata: [DONE]\n\n\r\n")])
def test_an_empty_stream_is_framed_well(done: bool, body: bytes):
    async def scene(peer):
        await peer.switch.set(Empty(done=done))
        came, _ = await peer.ask(stream=STREAM)
        head, _, rest = came.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream")
        assert rest == body + b"0\r\n\r\n"

    play(scene)


@pytest.mark.parametrize("stream", [STREAM, WHOLE])
def test_a_head_that_is_no_http(stream: bool):
    async def scene(peer):
        await peer.switch.set(Framing(what="head"))
        came, reset = await peer.ask(stream=stream)
        assert came
        assert (came.startswith(b"HTTP/"), reset) == (False, False)

    play(scene)


@pytest.mark.parametrize("stream", [STREAM, WHOLE])
def test_a_content_length_that_promises_too_much(stream: bool):
    async def scene(peer):
        await peer.switch.set(Framing(what="content_length"))
        came, reset = await peer.ask(stream=stream)
        head, _, body = came.lower().partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head
        assert int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]) > len(body)
        assert body.endswith(b"data: [done]\n\n" if stream else b"}")
        assert not reset

    play(scene)


@pytest.mark.parametrize("stream", [STREAM, WHOLE])
def test_a_chunk_size_that_is_no_number_in_the_middle(stream: bool):
    async def scene(peer):
        await peer.switch.set(Framing(what="chunk_size"))
        came, _ = await peer.ask(stream=stream)
        head, _, rest = came.partition(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head.lower()
        size, _, rest = rest.partition(b"\r\n")
        chunk, rest = rest[: int(size, 16)], rest[int(size, 16) :]
        assert (b"assistant" in chunk) is stream
        assert rest.startswith(b"\r\nzz\r\n")

    play(scene)


def test_the_part_of_requests_that_gets_a_status():
    async def scene(peer):
        await peer.switch.set(Status(status=503, rate=0.25))
        lines = [(await peer.ask(stream=STREAM))[0].split(b"\r\n")[0][9:12] for _ in range(8)]
        assert lines == [b"200", b"200", b"200", b"503"] * 2

    play(scene)


@pytest.mark.parametrize(("status", "kind"), [(500, "InternalServerError"), (599, "ServerError")])
def test_a_status_has_the_body_of_an_engine_s_error(status: int, kind: str):
    error = json.loads(refusal(status).body)["error"]
    assert (error["type"], error["code"], error["param"]) == (kind, status, None)
    assert error["message"]


def test_a_hang_holds_new_answers_and_silent_health_until_it_ends():
    async def scene(peer):
        await peer.switch.set(Hang(health="silent"))
        asked = [asyncio.ensure_future(peer.ask(stream=stream)) for stream in (STREAM, WHOLE)]
        health = asyncio.ensure_future(peer.send(GET % b"/health"))
        while peer.engine.stats().waiting < 2:
            await asyncio.sleep(0)
        done, _ = await asyncio.wait([*asked, health], timeout=0.05)
        assert done == set()
        assert peer.engine.stats().running == 0
        await peer.switch.set(Hang())
        assert (await health)[0].startswith(b"HTTP/1.1 200 OK\r\n")
        assert not any(each.done() for each in asked)
        await peer.switch.set(SOUND)
        for came, reset in await asyncio.gather(*asked):
            assert came.startswith(b"HTTP/1.1 200 OK\r\n")
            assert not reset

    play(scene)


def test_a_hang_stops_a_stream_where_it_is():
    async def scene(peer):
        whole, _ = await peer.ask(stream=STREAM)
        asked = asyncio.ensure_future(peer.ask(stream=STREAM))
        while not peer.engine.stats().running:
            await asyncio.sleep(0)
        await peer.switch.set(Hang())
        done, _ = await asyncio.wait([asked], timeout=0.05)
        assert done == set()
        await peer.switch.set(SOUND)
        came, _ = await asked
        assert came.count(b"content") == whole.count(b"content")
        assert came.endswith(b"0\r\n\r\n")

    play(scene)


@pytest.mark.parametrize("fault", [Status(), Reset(), Empty(), Framing(what="head")])
def test_what_is_no_post_stays_sound(fault: Fault):
    async def scene(peer):
        await peer.switch.set(fault)
        for path in (b"/health", b"/v1/models", b"/metrics"):
            assert (await peer.send(GET % path))[0].startswith(b"HTTP/1.1 200 OK\r\n")

    play(scene)
