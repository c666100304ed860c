"""The HTTP side over an engine that the test plays itself."""

from __future__ import annotations

import asyncio
import json
from io import BytesIO

import pytest
from aiohttp.test_utils import TestClient, TestServer

from model_pod.engine import BadPrompt, Overloaded, Prompt, Stats
from model_pod.openai import Shape
from model_pod.server import Events, Server

MESSAGES = [{"role": "user", "content": "hi"}]


class PlayedEngine:
    """Notes what it is asked and does nothing by itself. One token per word of a prompt."""

    max_model_len = 20
    seeds = True

    def __init__(self) -> None:
        self.died = asyncio.Event()
        self.asked: asyncio.Queue = asyncio.Queue()  # (prompt, params, sink)
        self.cancelled: asyncio.Queue = asyncio.Queue()
        self.refusal: Exception | None = None

    async def chat_prompt(self, messages):
        if messages[0]["role"] == "tool":
            raise BadPrompt("this model knows no tools")
        return await self.text_prompt(" ".join(message["content"] for message in messages))

    async def text_prompt(self, text):
        return Prompt(len(text.split()), text)

    async def token_prompt(self, tokens):
        return Prompt(len(tokens), tokens)

    def submit(self, prompt, params, sink):
        if self.refusal:
            raise self.refusal
        self.asked.put_nowait((prompt, params, sink))
        return sink

    def cancel(self, handle):
        self.cancelled.put_nowait(handle)

    def stats(self):
        return Stats(running=2, waiting=3, kv_used=0.5, block_size=16, blocks=100, preemptions=4)


class Bench:
    def __init__(self) -> None:
        self.engine = PlayedEngine()
        self.server = Server(self.engine, "m")
        self.test_server = TestServer(self.server.app())
        self.client = TestClient(self.test_server)

    async def post(self, path: str = "/v1/chat/completions", /, **body: object):
        return await self.client.post(path, json={"messages": MESSAGES} | body)

    async def play(self, response, *tokens: str, finish: str = "length") -> dict:
        """Answer the request in flight with these tokens; the decoded body."""
        _, _, sink = await self.engine.asked.get()
        for token in tokens:
            sink.on_tokens(token, 1, None)
        sink.on_tokens("", 0, finish)
        return await (await response).json()

    async def metric(self, line: str) -> str:
        text = await (await self.client.get("/metrics")).text()
        return next(row for row in text.splitlines() if row.startswith(line)).rpartition(" ")[2]


def play(scene) -> None:
    """Run `scene(bench)` for at most ten seconds."""

    async def run() -> None:
        async with asyncio.timeout(10):
            bench = Bench()
            async with bench.client:
                await scene(bench)

    asyncio.run(run())


def events(text: str) -> list[object]:
    bodies = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [body if body == "[DONE]" else json.loads(body) for body in bodies]


def test_a_whole_answer():
    async def scene(bench):
        response = asyncio.ensure_future(bench.post(model="m", max_tokens=5, temperature=0))
        body = await bench.play(response, "a", "b")
        assert body["choices"][0]["message"]["content"] == "ab"
        assert body["choices"][0]["finish_reason"] == "length"
        assert body["usage"] == {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
        assert body["model"] == "m"

    play(scene)


def test_a_completion_of_token_ids():
    async def scene(bench):
        response = asyncio.ensure_future(bench.post("/v1/completions", prompt=[4, 5, 6]))
        body = await bench.play(response, "a", finish="stop")
        assert (body["choices"][0]["text"], body["usage"]["prompt_tokens"]) == ("a", 3)

    play(scene)


def test_events_come_as_the_tokens_do():
    async def scene(bench):
        response = await bench.post(stream=True, stream_options={"include_usage": True})
        assert response.headers["content-type"].startswith("text/event-stream")
        _, _, sink = await bench.engine.asked.get()
        sink.on_tokens("a", 1, None)
        first = (await response.content.readuntil(b"}\n\n"), await response.content.readuntil(b"}\n\n"))
        assert b'"role":"assistant"' in first[0]
        assert b'"content":"a"' in first[1]
        sink.on_tokens("b", 1, "stop")
        *rest, usage, done = events(await response.text())
        assert [event["choices"][0]["delta"] for event in rest] == [{"content": "b"}, {}]
        assert rest[-1]["choices"][0]["finish_reason"] == "stop"
        assert (usage["usage"]["completion_tokens"], done) == (2, "[DONE]")

    play(scene)


def test_a_stop_sequence_ends_the_answer_and_frees_the_slot():
    async def scene(bench):
        response = await bench.post(stream=True, stop="END")
        _, _, sink = await bench.engine.asked.get()
        for token in ("on", "e E", "ND two"):
            sink.on_tokens(token, 1, None)
        sink.on_tokens("late", 1, "length")
        texts = [event["choices"][0]["delta"].get("content") for event in events(await response.text())[:-1]]
        assert texts == ["", "on", "e ", None]
        assert await bench.engine.cancelled.get() is sink

    play(scene)


def test_held_back_text_is_shown_when_the_answer_ends():
    async def scene(bench):
        body = await bench.play(asyncio.ensure_future(bench.post(stop=["END"])), "the EN")
        assert body["choices"][0]["message"]["content"] == "the EN"

    play(scene)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_slot(stream):
    async def scene(bench):
        body = json.dumps({"messages": MESSAGES, "stream": stream}).encode()
        reader, writer = await asyncio.open_connection(bench.test_server.host, bench.test_server.port)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
        writer.write(b"content-length: %d\r\n\r\n%b" % (len(body), body))
        _, _, sink = await bench.engine.asked.get()
        sink.on_tokens("a", 1, None)
        if stream:
            await reader.readuntil(b'"content":"a"')
        writer.close()
        assert await bench.engine.cancelled.get() is sink
        sink.on_tokens("b", 1, None)  # the step that was running
        assert await bench.metric('vllm:request_success_total{engine="0",finished_reason="abort"') == "1.0"

    play(scene)


class SlowTransport:
    def __init__(self) -> None:
        self.buffered = 0
        self.written = b""

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def write(self, data: bytes) -> None:
        self.written += data


def test_a_slow_reader_gets_fewer_events_and_the_whole_text():
    transport = SlowTransport()
    answer = Events(Shape(chat=False, id="i", created=0, model="m"))
    answer.emit("before the head ")
    assert transport.written == b""
    answer.open(transport, chunked=False)
    answer.emit("a")
    transport.buffered = 1 << 20
    answer.emit("b")
    answer.emit("c")
    transport.buffered = 0
    answer.emit("d")
    transport.buffered = 1 << 20
    answer.emit("e")
    texts = [event["choices"][0]["text"] for event in events((transport.written + answer.rest()).decode())]
    assert texts == ["before the head a", "bcd", "e"]


def test_http_1_0_gets_its_events_without_chunks():
    async def scene(bench):
        body = json.dumps({"prompt": "x", "stream": True}).encode()
        reader, writer = await asyncio.open_connection(bench.test_server.host, bench.test_server.port)
        writer.write(b"POST /v1/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        _, _, sink = await bench.engine.asked.get()
        sink.on_tokens("a", 1, "stop")
        head, _, text = (await reader.read()).decode().partition("\r\n\r\n")
        assert "chunked" not in head.lower()
        assert [event if event == "[DONE]" else event["choices"][0]["text"] for event in events(text)] == [
            "a", "", "[DONE]",
        ]  # fmt: skip
        writer.close()

    play(scene)


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"model": "other"}, 404, "model", "model_not_found"),
        ({"max_tokens": 0}, 400, "max_tokens", None),
        ({"n": 2}, 400, "n", None),
        ({"max_tokens": 20}, 400, "max_tokens", "context_length_exceeded"),
        ({"max_completion_tokens": 10**9}, 400, "max_completion_tokens", "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "x " * 20}]}, 400, "messages", "context_length_exceeded"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages", None),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(body, status, param, code):
    async def scene(bench):
        response = await bench.post(**body)
        error = (await response.json())["error"]
        assert (response.status, error["param"], error["code"]) == (status, param, code)
        assert error["type"] == "invalid_request_error"
        assert bench.engine.asked.empty()

    play(scene)


def test_a_seed_is_refused_where_it_would_be_ignored():
    async def scene(bench):
        bench.engine.seeds = False
        error = (await (await bench.post(seed=1)).json())["error"]
        assert error["param"] == "seed"

    play(scene)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405), ("POST", "/health", 405)],
)
def test_wrong_paths_and_methods_are_answered_in_the_same_shape(method, path, status):
    async def scene(bench):
        response = await bench.client.request(method, path)
        error = (await response.json())["error"]
        assert (response.status, error["type"]) == (status, "invalid_request_error")
        assert ("Allow" in response.headers) == (status == 405)

    play(scene)


def test_a_body_that_is_too_large_is_refused():
    async def scene(bench):
        response = await bench.client.post("/v1/completions", data=BytesIO(b"x" * (17 << 20)))
        assert (response.status, (await response.json())["error"]["type"]) == (413, "invalid_request_error")

    play(scene)


def test_a_full_queue_is_503():
    async def scene(bench):
        bench.engine.refusal = Overloaded()
        response = await bench.post()
        assert (response.status, (await response.json())["error"]["code"]) == (503, "overloaded")

    play(scene)


def test_a_bug_is_logged_and_not_shown(caplog):
    async def scene(bench):
        bench.engine.refusal = RuntimeError("secret detail")
        response = await bench.post()
        text = await response.text()
        assert (response.status, json.loads(text)["error"]["code"]) == (500, "internal")
        assert "secret" not in text

    play(scene)
    assert "secret detail" in caplog.text


def test_an_answer_that_breaks_off_never_looks_complete(caplog):
    async def scene(bench):
        body = json.dumps({"prompt": "x", "stream": True}).encode()
        reader, writer = await asyncio.open_connection(bench.test_server.host, bench.test_server.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n")
        writer.write(b"content-length: %d\r\n\r\n%b" % (len(body), body))
        _, _, sink = await bench.engine.asked.get()
        sink.on_tokens("a", 1, None)
        sink.on_error(RuntimeError("secret detail"))
        answer = await reader.read()
        assert b'"code":"internal"' in answer
        assert not answer.endswith(b"0\r\n\r\n")
        assert b"[DONE]" not in answer
        assert b"secret" not in answer
        writer.close()

    play(scene)
    assert "secret detail" in caplog.text


def test_a_server_that_stops_lets_what_runs_finish():
    async def scene(bench):
        response = asyncio.ensure_future(bench.post())
        _, _, sink = await bench.engine.asked.get()
        drained = asyncio.ensure_future(bench.server.drain(grace_s=60))
        await asyncio.sleep(0)
        refused = await bench.post()
        assert (refused.status, refused.headers["connection"]) == (503, "close")
        assert (await bench.client.get("/health")).status == 503
        assert not drained.done()
        sink.on_tokens("a", 1, "stop")
        await drained
        assert (await response).status == 200

    play(scene)


def test_a_server_that_must_stop_cuts_off_what_is_left():
    async def scene(bench):
        response = asyncio.ensure_future(bench.post())
        await bench.engine.asked.get()
        await bench.server.drain(grace_s=0)
        assert (await response).status == 503
        assert bench.engine.cancelled.qsize() == 1

    play(scene)


def test_health_follows_the_engine():
    async def scene(bench):
        assert (await bench.client.get("/health")).status == 200
        bench.engine.died.set()
        assert (await bench.client.get("/health")).status == 503
        assert (await bench.post()).status == 503

    play(scene)


def test_the_model_is_listed():
    async def scene(bench):
        body = await (await bench.client.get("/v1/models")).json()
        assert [model["id"] for model in body["data"]] == ["m"]

    play(scene)


def test_metrics_have_the_names_and_meanings_of_vllm():
    async def scene(bench):
        response = asyncio.ensure_future(bench.post())
        _, _, sink = await bench.engine.asked.get()
        sink.on_scheduled(0.0)
        sink.on_tokens("a", 1, None)
        sink.on_tokens("bc", 2, "stop")
        await response
        labels = '{engine="0",model_name="m"}'
        for name, value in {
            "num_requests_running": "2.0",
            "num_requests_waiting": "3.0",
            "kv_cache_usage_perc": "0.5",
            "num_preemptions_total": "4.0",
            "prompt_tokens_total": "1.0",
            "generation_tokens_total": "3.0",
            "time_to_first_token_seconds_count": "1.0",
            "inter_token_latency_seconds_count": "1.0",
            "e2e_request_latency_seconds_count": "1.0",
            "request_queue_time_seconds_count": "1.0",
        }.items():
            assert await bench.metric(f"vllm:{name}{labels}") == value, name
        info = 'vllm:cache_config_info{block_size="16",engine="0",model_name="m",num_gpu_blocks="100"}'
        assert await bench.metric(info) == "1.0"
        assert await bench.metric('vllm:request_success_total{engine="0",finished_reason="stop"') == "1.0"

    play(scene)
