"""What the server needs of an engine: a prompt and parameters in, tokens out into a sink.

Sinks rather than async iterators: a task switch per token would cost as much as all the rest of our work on
it. Everything here lives on the event loop; an engine that works in a thread hands its tokens over with
``call_soon_threadsafe`` and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence


class CannotServe(Exception):
    """What the command line asks for cannot be served, now or later. The message says why."""


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


class Sink(Protocol):
    """Where the engine puts one answer. Called on the event loop, and not after `Engine.cancel`."""

    def on_scheduled(self, at: float) -> None:
        """The request left the waiting queue at this time.monotonic(). Called at most once."""

    def on_tokens(self, text: str, count: int, finish: str | None) -> None:
        """`count` tokens more. `finish` is "stop" or "length" on the last call.

        The text may lag behind the tokens: a character can be split between two of them.
        """

    def on_error(self, error: Exception) -> None:
        """The answer cannot be finished; nothing follows."""


@dataclass(slots=True)
class Stats:
    """An engine at this moment."""

    running: int = 0  # requests
    waiting: int = 0
    kv_used: float | None = 0.0  # 0..1; None: there is no paged cache
    block_size: int = 0  # KV tokens
    blocks: int = 0
    preemptions: int | None = None  # since the start; None: the engine does not say


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

    def submit(self, prompt: Prompt, params: Params, sink: Sink) -> object:
        """Queue a request whose prompt and answer fit `max_model_len`; its handle. Raises Overloaded."""

    def cancel(self, handle: object) -> None:
        """Nobody wants the answer: the slot is free within one step. Safe for one that has finished."""

    def stats(self) -> Stats: ...
