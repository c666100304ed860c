"""A GPU engine's timing without a GPU: one task steps `fake_scheduler` in real time.

Prompt tokens are ``ceil(bytes / 4)``. An answer is a stretch of the shipped prose, four characters to a
token; `Params.max_tokens` sets its length, else a log-normal draw does. Where it starts and the draw follow
from (--seed, prompt, request seed); a sampled request without a seed adds its arrival number, so that equal
prompts get different answers and a whole run can still be repeated.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from dataclasses import dataclass, field
from importlib import resources
from math import exp
from random import Random
from time import monotonic
from typing import TYPE_CHECKING

from model_pod.engine import BadPrompt, Overloaded, Params, Prompt, Sink, Stats
from model_pod.fake_scheduler import Costs, Scheduler, Sequence

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Items

log = logging.getLogger(__name__)

TOKEN_CHARS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """How long answers are when the request does not say. Each is a command-line flag."""

    output_median: int = field(default=200, metadata={"help": "median answer in tokens without max_tokens"})
    output_sigma: float = field(default=0.8, metadata={"help": "sigma of the log-normal answer length"})
    output_max: int = field(default=2_000, metadata={"help": "longest answer in tokens without max_tokens"})

    def draw(self, random: Random) -> int:
        length = self.output_median * exp(random.gauss(0.0, self.output_sigma))
        return max(1, min(self.output_max, round(length)))


class Pace:
    """How the engine's steps run; others may change it at any time."""

    __slots__ = ("factor", "moving")

    def __init__(self) -> None:
        self.factor = 1.0  # of the latency model's times, from the next step on
        self.moving = asyncio.Event()  # while it is not set no step begins or ends
        self.moving.set()

    def end(self, began: float, seconds: float, now: float) -> float:
        """When a step ends that began at `began` and takes `seconds` by the latency model."""
        seconds *= self.factor
        # Planned times keep the rate exact; a loop that fell behind a whole step does not catch up.
        return max(began + seconds, now - seconds)


class Answer:
    """What is left to say to one request."""

    __slots__ = ("at", "finish", "sink")

    def __init__(self, sink: Sink, at: int, finish: str) -> None:
        self.sink = sink
        self.at = at  # offset of the next token in the prose
        self.finish = finish


class FakeEngine:
    """Implements `engine.Engine`."""

    seeds = True

    def __init__(
        self,
        costs: Costs,
        lengths: Lengths,
        *,
        max_model_len: int = 32_768,
        max_running: int = 256,
        max_waiting: int = 16_384,
        by_priority: bool = False,
        seed: int = 0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.max_model_len = min(max_model_len, costs.kv_tokens)
        self._scheduler = Scheduler(costs, max_running, by_priority=by_priority)
        self._lengths = lengths
        self._max_waiting = max_waiting
        self._seed = seed
        self._arrivals = 0
        self._prose = load_prose()
        # Any offset can be read on for one token without wrapping.
        self._ring = self._prose + self._prose[:TOKEN_CHARS]
        self.died = asyncio.Event()
        self.pace = Pace()
        self._clock = clock
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._on_end)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def chat_prompt(self, messages: Items[dict[str, str]]) -> Prompt:
        return await self.text_prompt("\n".join(message["content"] for message in messages))

    async def text_prompt(self, text: str) -> Prompt:
        data = text.encode()
        return Prompt(max(1, -(-len(data) // TOKEN_CHARS)), zlib.crc32(data))

    async def token_prompt(self, tokens: Items[int]) -> Prompt:
        if any(token < 0 for token in tokens):
            raise BadPrompt("token ids must not be negative")
        return Prompt(max(1, len(tokens)), zlib.crc32(repr(tokens).encode()))

    def submit(self, prompt: Prompt, params: Params, sink: Sink) -> Sequence:
        if len(self._scheduler.waiting) >= self._max_waiting:
            raise Overloaded
        self._arrivals += 1
        random = Random(self._key(prompt, params))
        start = random.randrange(len(self._prose))
        limit, finish = params.max_tokens, "length"
        if limit is None:
            room = self.max_model_len - prompt.tokens
            limit = self._lengths.draw(random)
            limit, finish = (limit, "stop") if limit <= room else (room, "length")
        sequence = Sequence(prompt.tokens, limit, params.priority, Answer(sink, start, finish))
        self._scheduler.add(sequence)
        self._work.set()
        return sequence

    def cancel(self, handle: object) -> None:
        assert isinstance(handle, Sequence)
        self._scheduler.cancel(handle)
        handle.owner = None

    def stats(self) -> Stats:
        scheduler = self._scheduler
        costs = scheduler.costs
        return Stats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            kv_used=scheduler.kv_used / costs.kv_tokens,
            block_size=costs.block_size,
            blocks=costs.kv_tokens // costs.block_size,
            preemptions=scheduler.preemptions,
        )

    def _key(self, prompt: Prompt, params: Params) -> str:
        arrival = self._arrivals if params.seed is None and params.temperature > 0 else 0
        return f"{self._seed}/{prompt.content}/{params.seed}/{arrival}"

    def _on_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            log.error("the fake engine failed", exc_info=task.exception())
            self.died.set()

    async def _run(self) -> None:
        """Step while there is work. A step is computed when it starts and told when it ends."""
        pace, clock = self.pace, self._clock
        now = clock()
        while True:
            step = self._scheduler.step()
            if step is None:
                self._work.clear()
                await self._work.wait()
                await pace.moving.wait()
                now = clock()
                continue
            for sequence in step.admitted:
                sequence.owner.sink.on_scheduled(now)
            now = pace.end(now, step.seconds, clock())
            await asyncio.sleep(now - clock())
            if not pace.moving.is_set():
                await pace.moving.wait()
                now = clock()
            self._tell(step.emitted)

    def _tell(self, emitted: list[Sequence]) -> None:
        ring, size = self._ring, len(self._prose)
        for sequence in emitted:
            answer: Answer | None = sequence.owner
            if answer is None:
                continue  # cancelled while the step ran
            at = answer.at
            answer.at = (at + TOKEN_CHARS) % size
            answer.sink.on_tokens(ring[at : at + TOKEN_CHARS], 1, answer.finish if sequence.done else None)


def load_prose() -> str:
    """The text that the package ships: training text of --tiny, and what the fake engine says."""
    return resources.files("model_pod").joinpath("data/rivers.txt").read_text(encoding="utf-8")
