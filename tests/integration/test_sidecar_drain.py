"""A sidecar is told to go: it takes nothing new, everything that runs ends well, and it leaves."""

import asyncio
import http.client
import io
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from tests.harness.processes import HOST, listens
from tests.harness.sidecars import (
    Pod,
    Sidecar,
    ask,
    chat_body,
    fake_pod,
    frozen,
    sidecar,
    sidecar_settings,
)

pytestmark = pytest.mark.integration

STREAMS = 200
ANSWER_TOKENS = 60
ENDLESS = 20_000  # tokens: longer than any test


@pytest.fixture(scope="module")
def pod() -> Iterator[Pod]:
    with fake_pod("--step-ms", "20") as started:
        yield started


def term(gate: Sidecar) -> None:
    gate.process.process.send_signal(signal.SIGTERM)


def post_drain(gate: Sidecar) -> None:
    answer = ask(f"{gate.admin}/drain", "POST")
    assert (answer.status, answer.text) == (202, "draining\n")


def wait_until_closed(gate: Sidecar) -> None:
    gate.process.wait_for(lambda: not listens(gate.port), what="new connections are refused")


def exit_status(gate: Sidecar) -> int:
    return gate.process.process.wait(30)


class Streams:
    """Clients of one stream each, on the wire: every byte they got."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self._readers: list[asyncio.StreamReader] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def send(self, gate: Sidecar, count: int, max_tokens: int) -> None:
        body = chat_body(stream=True, max_tokens=max_tokens)
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
        for _ in range(count):
            reader, writer = await asyncio.open_connection(HOST, gate.port)
            writer.write(head + body)
            self._readers.append(reader)
            self._writers.append(writer)
        self.got = [b""] * count

    async def begun(self) -> None:
        """The last one has its first event."""
        self.got[-1] = await self._readers[-1].readuntil(b"\n\n")

    async def rest(self) -> None:
        """Read on until every connection is closed."""
        for i, more in enumerate(await asyncio.gather(*(reader.read() for reader in self._readers))):
            self.got[i] += more

    async def leave(self) -> None:
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)


class Received:
    """What came, in the place of the socket that it came from."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def body_of(answer: bytes) -> bytes:
    """Raises IncompleteRead where the last chunk is missing."""
    response = http.client.HTTPResponse(Received(answer))  # type: ignore[arg-type]
    response.begin()
    return response.read()


@pytest.mark.parametrize("tell", [term, post_drain], ids=["SIGTERM", "POST /drain"])
def test_every_stream_comes_to_its_end(pod: Pod, tmp_path: Path, tell: Callable[[Sidecar], None]) -> None:
    async def scenario(gate: Sidecar) -> list[bytes]:
        streams = Streams()
        try:
            with frozen(pod):  # so that all begin together, and none has ended when the last begins
                await streams.send(gate, STREAMS, ANSWER_TOKENS)
                gate.wait_for_gauges(in_flight=STREAMS)
            await streams.begun()
            with frozen(pod):
                assert gate.gauges()["in_flight"] == STREAMS
                tell(gate)
                wait_until_closed(gate)
                assert (ready := ask(f"{gate.admin}/ready")).status == 503
                assert ready.text == "draining\n"
                assert gate.gauges()["in_flight"] == STREAMS
            await streams.rest()
        finally:
            await streams.leave()
        return streams.got

    with sidecar(tmp_path, sidecar_settings(pod.port)) as gate:
        got = asyncio.run(scenario(gate))
        bodies = [body_of(each) for each in got]
        assert [body[-200:] for body in bodies if not body.endswith(b"data: [DONE]\n\n")] == []
        # The first event has an empty text.
        assert [body.count(b'"content":') for body in bodies] == [ANSWER_TOKENS + 1] * STREAMS
        assert exit_status(gate) == 0
    pod.wait_until_generating(0)


def test_an_open_connection_is_told_to_go_elsewhere(pod: Pod, tmp_path: Path) -> None:
    with sidecar(tmp_path, sidecar_settings(pod.port)) as gate, gate.client() as client:
        assert client.models.list().data  # its connection stays open
        with gate.asking(max_tokens=ENDLESS) as held, frozen(pod):
            gate.wait_for_gauges(in_flight=1, downstream=2)
            term(gate)
            wait_until_closed(gate)
            with pytest.raises(openai.InternalServerError) as caught:
                client.models.list()
            held.close()
    headers = caught.value.response.headers
    assert (caught.value.code, headers["connection"]) == ("draining", "close")
    assert headers["x-headgate-elsewhere"] == "1"
    assert exit_status(gate) == 0


def test_what_outlasts_drain_s_is_cut_and_looks_cut(pod: Pod, tmp_path: Path) -> None:
    async def scenario(gate: Sidecar) -> bytes:
        streams = Streams()
        try:
            await streams.send(gate, 1, ENDLESS)
            await streams.begun()
            term(gate)
            await streams.rest()
        finally:
            await streams.leave()
        return streams.got[0]

    settings = sidecar_settings(pod.port, drain_s=0.2, telemetry={"access_log": "all"})
    with sidecar(tmp_path, settings) as gate:
        got = asyncio.run(scenario(gate))
        assert exit_status(gate) == 0
        log = gate.process.text()
    assert "1 exchanges outlasted drain_s and were cut" in log
    assert b"[DONE]" not in got
    with pytest.raises(http.client.IncompleteRead):
        body_of(got)
    # It was us who ended it, and both sides can know.
    assert b'"code":"draining"' in got[-300:]
    assert '"reason":"draining"' in log
    pod.wait_until_generating(0)


def test_told_twice_it_leaves_at_once(pod: Pod, tmp_path: Path) -> None:
    with sidecar(tmp_path, sidecar_settings(pod.port)) as gate, gate.asking(max_tokens=ENDLESS):
        gate.wait_for_gauges(in_flight=1)
        term(gate)
        wait_until_closed(gate)
        gate.wait_for_gauges(in_flight=1)
        term(gate)
        # drain_s is ten minutes.
        assert exit_status(gate) == 0
    pod.wait_until_generating(0)


def test_who_waits_in_the_queue_is_still_served(pod: Pod, tmp_path: Path) -> None:
    settings = sidecar_settings(pod.port, admission={"max_in_flight": 1})
    with sidecar(tmp_path, settings) as gate, gate.asking(max_tokens=8) as first:
        with frozen(pod):
            gate.wait_for_gauges(in_flight=1)
            with gate.asking(max_tokens=8) as second:
                gate.wait_for_gauges(queued=1)
                term(gate)
                wait_until_closed(gate)
                os.kill(pod.process.pid, signal.SIGCONT)
                assert [each.getresponse().status for each in (first, second)] == [200, 200]
        assert exit_status(gate) == 0
