"""The HTTP side: routes, and what happens to one request between its engine and its client.

1. Whatever goes wrong is answered in OpenAI's shape; what is our fault is logged, and only logged.
2. A client that leaves cancels its handler, and the handler's end cancels the request in the engine.
3. An answer that breaks off ends with an error event and without the final chunk: it never looks complete.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from aiohttp import HttpVersion11, web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from model_pod import openai
from model_pod.engine import BadPrompt, Overloaded
from model_pod.metrics import Metrics, Record
from model_pod.openai import ApiError, ChatRequest, CompletionRequest, Request, Shape
from model_pod.text import StopMatcher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from model_pod.engine import Engine, Params, Prompt

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 16 << 20
BACKLOG = 4096  # a load test opens its connections at once
MOST_BUFFERED_BYTES = 64 << 10
SSE_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}


class Stopped(Exception):
    """The server ended before the answer did."""


class Generation:
    """One answer while it is made, and its engine's `Sink`: stop sequences, times, and how it ends."""

    def __init__(self, stops: list[str], record: Record, emit: Callable[[str], None]) -> None:
        self.record = record
        self.finish: str | None = None
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.on_scheduled = record.on_scheduled
        self._matcher = StopMatcher(stops) if stops else None
        self._emit = emit

    def on_tokens(self, text: str, count: int, finish: str | None) -> None:
        if self.over.done():
            return  # a stop sequence matched, and the engine is about to learn it
        self.record.on_tokens(count)
        matcher = self._matcher
        if matcher is not None:
            text = matcher.feed(text)
            if matcher.matched:
                finish = "stop"
            elif finish is not None:
                text += matcher.flush()
        if text:
            self._emit(text)
        if finish is not None:
            self.finish = finish
            self.over.set_result(None)

    def on_error(self, error: Exception) -> None:
        if not self.over.done():
            self.over.set_exception(error)


@dataclass(slots=True)
class Answer:
    """What is needed to make one answer."""

    shape: Shape
    prompt: Prompt
    params: Params
    stops: list[str]
    record: Record

    def usage(self) -> dict[str, int]:
        return openai.usage(self.prompt.tokens, self.record.tokens)


class Events:
    """Writes an answer's events to its client as they come, without waiting.

    A client that reads slower than the engine writes gets fewer, longer events: what it has not taken waits
    as text, which is never more than one answer.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._start = shape.start()
        self._waiting = ""
        self._chunked = False
        self._transport: asyncio.Transport | None = None

    def open(self, transport: asyncio.Transport | None, *, chunked: bool) -> None:
        """The head is written: events may follow."""
        self._transport = transport
        self._chunked = chunked

    def emit(self, text: str) -> None:
        transport = self._transport
        self._waiting += text
        if transport is None or transport.get_write_buffer_size() > MOST_BUFFERED_BYTES:
            return
        event = self.rest()
        # Straight to the transport: `StreamResponse.write` would need a task switch per token.
        transport.write(b"%x\r\n%b\r\n" % (len(event), event) if self._chunked else event)

    def rest(self) -> bytes:
        """What is not written yet, as events."""
        events = self._start
        if self._waiting:
            events += self._shape.text(self._waiting)
        self._start, self._waiting = b"", ""
        return events


class Server:
    """Serves one engine under one model name."""

    def __init__(self, engine: Engine, model_name: str) -> None:
        self._engine = engine
        self._name = model_name
        self._created = int(time.time())
        self._metrics = Metrics(model_name, engine.stats)
        self._active: set[Generation] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[openai_errors])
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._scrape)
        return app

    async def drain(self, grace_s: float) -> None:
        """Refuse what comes, wait for what runs; what is left after `grace_s` breaks off."""
        self._stopping = True
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            log.warning("%d requests are cut off", len(self._active))
            for generation in self._active:
                generation.on_error(Stopped())
            await self._idle.wait()

    async def _models(self, _: web.Request) -> web.Response:
        body = openai.models(self._name, self._created, self._engine.max_model_len)
        return web.Response(body=body, content_type="application/json")

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=503 if self._stopping or self._engine.died.is_set() else 200)

    async def _scrape(self, _: web.Request) -> web.Response:
        body = generate_latest(self._metrics.registry)
        return web.Response(body=body, headers={"content-type": CONTENT_TYPE_LATEST})

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        arrival = time.monotonic()
        request = await self._parse(http, ChatRequest)
        return await self._answer(http, request, "messages", arrival)

    async def _completions(self, http: web.Request) -> web.StreamResponse:
        arrival = time.monotonic()
        request = await self._parse(http, CompletionRequest)
        return await self._answer(http, request, "prompt", arrival)

    async def _parse(self, http: web.Request, kind: type[openai.R]) -> openai.R:
        if self._stopping or self._engine.died.is_set():
            raise unavailable("the server is stopping")
        request = openai.parse(await http.read(), kind)
        if request.model not in (None, self._name):
            message = f"the model `{request.model}` does not exist; `{self._name}` does"
            raise ApiError(message, status=404, param="model", code="model_not_found")
        if request.seed is not None and not self._engine.seeds:
            raise ApiError("`seed` is not supported for this model", param="seed")
        return request

    async def _answer(
        self, http: web.Request, request: Request, field: str, arrival: float
    ) -> web.StreamResponse:
        params = request.params()
        try:
            prompt = await self._prompt(request)
        except BadPrompt as error:
            raise ApiError(str(error), param=field) from None
        self._check_length(prompt, params, (field, request.limit_field))
        chat = isinstance(request, ChatRequest)
        shape = Shape(
            chat=chat,
            id=("chatcmpl-" if chat else "cmpl-") + uuid4().hex,
            created=int(time.time()),
            model=self._name,
            include_usage=request.include_usage,
        )
        answer = Answer(shape, prompt, params, request.stops, Record(self._metrics, prompt.tokens, arrival))
        return await (self._stream(http, answer) if request.stream else self._whole(answer))

    @asynccontextmanager
    async def _generate(self, answer: Answer, emit: Callable[[str], None]) -> AsyncIterator[Generation]:
        """Generate; the body waits for the end. However it ends, the engine's slot is free."""
        if self._stopping:
            raise unavailable("the server is stopping")
        generation = Generation(answer.stops, answer.record, emit)
        try:
            handle = self._engine.submit(answer.prompt, answer.params, generation)
        except Overloaded:
            raise unavailable("too many requests wait", "overloaded") from None
        self._active.add(generation)
        self._idle.clear()
        try:
            yield generation
        finally:
            # Also where the client has left: a slot must not generate for nobody.
            self._engine.cancel(handle)
            answer.record.on_end(generation.finish or "abort")
            self._active.discard(generation)
            if not self._active:
                self._idle.set()

    async def _prompt(self, request: Request) -> Prompt:
        if isinstance(request, ChatRequest):
            return await self._engine.chat_prompt(request.conversation())
        assert isinstance(request, CompletionRequest)
        prompt = request.single()
        if isinstance(prompt, str):
            return await self._engine.text_prompt(prompt)
        return await self._engine.token_prompt(prompt)

    def _check_length(self, prompt: Prompt, params: Params, fields: tuple[str, str]) -> None:
        """Name of the two fields the one without which there would be room: the prompt's, or the answer's."""
        most, (text, limit) = self._engine.max_model_len, fields
        if prompt.tokens + (params.max_tokens or 1) > most:
            wanted = f" and {limit} asks for {params.max_tokens}" if params.max_tokens else ""
            message = f"this model holds {most} tokens; {prompt.tokens} are in the {text}{wanted}"
            blamed = text if prompt.tokens >= most else limit
            raise ApiError(message, param=blamed, code="context_length_exceeded")

    async def _whole(self, answer: Answer) -> web.Response:
        texts: list[str] = []
        async with self._generate(answer, texts.append) as generation:
            await generation.over
        body = answer.shape.whole("".join(texts), generation.finish or "", answer.usage())
        return web.Response(body=body, content_type="application/json")

    async def _stream(self, http: web.Request, answer: Answer) -> web.StreamResponse:
        events = Events(answer.shape)
        async with self._generate(answer, events.emit) as generation:
            response = await self._open(http)
            events.open(http.transport, chunked=response.chunked)
            try:
                await generation.over
            except Exception as error:
                await response.write(b"data: %b\n\n" % _our_fault(error).body())
                if http.transport is not None:
                    http.transport.close()
                return response
            end = answer.shape.finish(generation.finish or "", answer.usage())
            await response.write(events.rest() + end)
        return response

    async def _open(self, http: web.Request) -> web.StreamResponse:
        """Send the head of a stream: before the first token, as vLLM does."""
        response = web.StreamResponse(headers=SSE_HEADERS)
        if http.version >= HttpVersion11:
            response.enable_chunked_encoding()
        await response.prepare(http)
        return response


def unavailable(message: str, code: str = "unavailable") -> ApiError:
    return ApiError(message, status=503, kind="server_error", code=code)


def _our_fault(error: Exception) -> ApiError:
    if isinstance(error, Stopped):
        return unavailable("the server is stopping")
    log.error("a request failed", exc_info=error)
    return ApiError("internal error", status=500, kind="server_error", code="internal")


@web.middleware
async def openai_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer every failure in OpenAI's shape."""
    headers: dict[str, Any] = {}
    try:
        return await handler(request)
    except ApiError as error:
        failure = error
    except web.HTTPException as error:
        if error.status < 400:
            raise
        failure = ApiError(f"{request.method} {request.path}: {error.reason}", status=error.status)
        headers = {name: value for name, value in error.headers.items() if name == "Allow"}
    except Exception as error:
        failure = _our_fault(error)
    if failure.status == 503:
        headers["connection"] = "close"
    body = failure.body()
    return web.Response(status=failure.status, body=body, content_type="application/json", headers=headers)
