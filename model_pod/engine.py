"""What the server needs of an engine: prompts and parameters in, a stream of deltas out.

Everything here lives on the event loop. An engine that works in a thread hands its deltas over with
``call_soon_threadsafe`` and nothing else.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class BadPrompt(ValueError):
    """The prompt cannot be served. The message is for the client."""


class Overloaded(Exception):
    """The waiting queue is full."""


@dataclass(slots=True)
class Prompt:
    """A prompt in the engine's own form, and its length in tokens."""

    tokens: int
    content: object


@dataclass(slots=True, kw_only=True)
class Params:
    """How to generate. Stop strings are not here: the server matches them."""

    max_tokens: int | None = None  # None: until the model stops, or the context ends
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    seed: int | None = None
    priority: int = 0  # lower runs first, where the engine schedules by priority
    ignore_eos: bool = False


class Delta:
    """What one or several steps added to an answer. `finish` is "stop" or "length" on the last one."""

    __slots__ = ("finish", "text", "tokens")

    def __init__(self, text: str, tokens: int, finish: str | None = None) -> None:
        self.text = text
        self.tokens = tokens
        self.finish = finish


class Stream:
    """The deltas of one answer, from its engine to its reader.

    Holds at most one answer: the engine stops at `Params.max_tokens` or at the end of its context.
    """

    __slots__ = ("_deltas", "_error", "_waiter", "handle", "scheduled_at")

    def __init__(self) -> None:
        self.handle: object = None  # the engine's own name for this request
        self.scheduled_at: float | None = None  # loop time at which it left the waiting queue
        self._deltas: list[Delta] = []
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def push(self, delta: Delta) -> None:
        """Called by the engine."""
        self._deltas.append(delta)
        self._wake()

    def fail(self, error: Exception) -> None:
        """Called by the engine: no delta follows, and the reader gets the error."""
        self._error = error
        self._wake()

    async def read(self) -> list[Delta]:
        """Wait for the next deltas; all that have come, at least one. Called until one has `finish`."""
        if not self._deltas:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
            if not self._deltas:
                assert self._error is not None
                raise self._error
        deltas, self._deltas = self._deltas, []
        return deltas

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


@dataclass(slots=True)
class Stats:
    """An engine at this moment."""

    running: int = 0  # requests
    waiting: int = 0
    kv_used: float = 0.0  # 0..1
    block_size: int = 0  # KV tokens; 0: the engine has no paged cache
    blocks: int = 0
    preemptions: int = 0  # since the start


class Engine(Protocol):
    """A model that can be asked. All methods are called on the event loop."""

    max_model_len: int  # prompt and answer together, tokens
    seeds: bool  # whether Params.seed is honoured
    died: asyncio.Event  # set when it will never generate again, without having been stopped

    async def start(self) -> None:
        """Load; returns when requests can be served."""

    async def stop(self) -> None:
        """End what runs, and free what is held."""

    async def chat_prompt(self, messages: Sequence[dict[str, str]]) -> Prompt:
        """Render a conversation. Raises BadPrompt."""

    async def text_prompt(self, text: str) -> Prompt:
        """Take a text as it is."""

    async def token_prompt(self, tokens: Sequence[int]) -> Prompt:
        """Take token ids. Raises BadPrompt for ids outside the vocabulary."""

    def submit(self, prompt: Prompt, params: Params) -> Stream:
        """Queue a request whose prompt and answer fit `max_model_len`. Raises Overloaded."""

    def cancel(self, stream: Stream) -> None:
        """The reader is gone: the slot is free within one step. Safe for one that has finished."""

    def stats(self) -> Stats: ...
