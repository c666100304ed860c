"""The HTTP side: routes, and what happens to one request between its engine and its client.

1. Whatever goes wrong is answered in OpenAI's shape; what is our fault is logged, and only logged.
2. A client that leaves cancels its handler, and the handler's end cancels the request in the engine.
3. An answer that breaks off ends with an error event and without the final chunk: it never looks complete.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from model_pod import openai
from model_pod.engine import BadPrompt, Overloaded, Prompt
from model_pod.metrics import Metrics, Record
from model_pod.openai import ApiError, ChatRequest, CompletionRequest, Request, Shape
from model_pod.text import StopMatcher

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from model_pod.engine import Engine, Params, Stream

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 16 << 20
SSE_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}


class Stopped(Exception):
    """The server ended before the answer did."""


class Generation:
    """One answer while it is made: stop sequences, times, and why it ended."""

    def __init__(self, stream: Stream, stops: list[str], record: Record) -> None:
        self.stream = stream
        self.record = record
        self.finish: str | None = None
        self._matcher = StopMatcher(stops) if stops else None
        self._time = asyncio.get_running_loop().time

    async def next(self) -> str:
        """Wait for the next text. It may be empty; the answer is over once `finish` is set."""
        matcher = self._matcher
        text = ""
        for delta in await self.stream.read():
            self.record.on_tokens(delta.tokens, self._time(), self.stream.scheduled_at)
            if matcher is None:
                text += delta.text
            else:
                text += matcher.feed(delta.text)
                if matcher.matched:
                    self.finish = "stop"
                    break
            if delta.finish is not None:
                self.finish = delta.finish
                text += matcher.flush() if matcher else ""
        return text

    def end(self) -> None:
        self.record.on_end(self.finish or "abort", self._time())


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
                generation.stream.fail(Stopped())
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
        arrival = asyncio.get_running_loop().time()
        request = await self._parse(http, ChatRequest)
        return await self._answer(http, request, "messages", arrival)

    async def _completions(self, http: web.Request) -> web.StreamResponse:
        arrival = asyncio.get_running_loop().time()
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
        self._check_length(prompt, params, field)
        chat = isinstance(request, ChatRequest)
        shape = Shape(
            chat=chat,
            id=("chatcmpl-" if chat else "cmpl-") + uuid4().hex,
            created=int(time.time()),
            model=self._name,
            include_usage=request.include_usage,
        )
        send = self._stream if request.stream else self._whole
        generation = self._submit(prompt, params, request.stops, arrival)
        try:
            return await send(http, generation, shape, prompt.tokens)
        finally:
            # Also where the client has left: a slot must not generate for nobody.
            self._engine.cancel(generation.stream)
            generation.end()
            self._active.discard(generation)
            if not self._active:
                self._idle.set()

    def _submit(self, prompt: Prompt, params: Params, stops: list[str], arrival: float) -> Generation:
        if self._stopping:
            raise unavailable("the server is stopping")
        try:
            stream = self._engine.submit(prompt, params)
        except Overloaded:
            raise unavailable("too many requests wait", "overloaded") from None
        generation = Generation(stream, stops, Record(self._metrics, prompt.tokens, arrival))
        self._active.add(generation)
        self._idle.clear()
        return generation

    async def _prompt(self, request: Request) -> Prompt:
        if isinstance(request, ChatRequest):
            return await self._engine.chat_prompt(request.conversation())
        assert isinstance(request, CompletionRequest)
        prompt = request.single()
        if isinstance(prompt, str):
            return await self._engine.text_prompt(prompt)
        return await self._engine.token_prompt(prompt)

    def _check_length(self, prompt: Prompt, params: Params, field: str) -> None:
        most = self._engine.max_model_len
        if prompt.tokens + (params.max_tokens or 1) > most:
            wanted = f" and {params.max_tokens} for the answer" if params.max_tokens else ""
            message = f"this model holds {most} tokens; {prompt.tokens} are in the {field}{wanted}"
            raise ApiError(message, param=field, code="context_length_exceeded")

    async def _whole(self, _: web.Request, generation: Generation, shape: Shape, prompt: int) -> web.Response:
        texts: list[str] = []
        while generation.finish is None:
            texts.append(await generation.next())
        body = shape.whole("".join(texts), generation.finish, prompt, generation.record.tokens)
        return web.Response(body=body, content_type="application/json")

    async def _stream(
        self, http: web.Request, generation: Generation, shape: Shape, prompt: int
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=SSE_HEADERS)
        response.enable_chunked_encoding()
        # Sent before the first token, as vLLM's are.
        await response.prepare(http)
        write, events = response.write, shape.start()
        try:
            while True:
                text = await generation.next()
                if text:
                    events += shape.text(text)
                if generation.finish is not None:
                    break
                if events:
                    await write(events)
                    events = b""
            await write(events + shape.finish(generation.finish, prompt, generation.record.tokens))
        except ConnectionError:
            return response
        except Exception as error:
            await _break_off(http, response, error)
        return response


def unavailable(message: str, code: str = "unavailable") -> ApiError:
    return ApiError(message, status=503, kind="server_error", code=code)


async def _break_off(http: web.Request, response: web.StreamResponse, error: Exception) -> None:
    await response.write(b"data: %b\n\n" % _our_fault(error).body())
    if http.transport is not None:
        http.transport.close()


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
