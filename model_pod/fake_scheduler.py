"""The scheduler and the clock of a GPU engine that does not exist. Pure: no asyncio, no time, no randomness.

One step of the engine, in the order of vLLM's scheduler:

1. Every running sequence whose prompt is computed decodes one token and needs one more KV token.
   When there is none, the latest running sequence (under priority scheduling: of the highest
   ``priority`` value) is preempted: it loses its KV and waits again, before newer arrivals, to
   have prompt *and* generated tokens computed once more.
2. What is left of ``prefill_chunk`` prompt tokens goes to running sequences in admission order.
3. Waiting sequences are admitted, first come first served or by (priority, arrival), while there are
   seats (``max_running``), prefill budget and KV for the whole prompt, unless this step preempted.
4. A sequence whose prompt is complete in this step emits its first token in it.

The step takes  ``step_ms + sequence_ms * running + kv_token_ns * KV tokens held
+ prefill_token_ms * prompt tokens of this step``  (the defaults resemble an 8B model on one GPU: about
14k tokens/s at 64-96 running).
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

URGENCY = attrgetter("urgency")


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """The constants of the latency model and its limits. Each is a command-line flag."""

    step_ms: float = field(default=8.0, metadata={"help": "fixed time of a step"})
    sequence_ms: float = field(default=0.06, metadata={"help": "time per running sequence in a step"})
    kv_token_ns: float = field(default=5.0, metadata={"help": "time per KV token held in a step"})
    prefill_token_ms: float = field(default=0.05, metadata={"help": "time per prompt token in a step"})
    prefill_chunk: int = field(default=512, metadata={"help": "most prompt tokens in a step"})
    kv_tokens: int = field(default=120_000, metadata={"help": "KV cache size in tokens"})
    block_size: int = field(default=16, metadata={"help": "KV tokens in a block (metrics only)"})


class Sequence:
    """One request inside the scheduler."""

    __slots__ = (
        "generated", "held", "limit", "owner", "priority", "prompt", "running", "to_prefill", "urgency",
    )  # fmt: skip

    def __init__(self, prompt: int, limit: int, priority: int = 0, owner: Any = None) -> None:
        self.prompt = prompt  # tokens
        self.limit = limit  # tokens to generate
        self.priority = priority  # lower runs first, under priority scheduling
        self.owner = owner  # whatever the caller wants back
        self.urgency = (0, 0)  # the highest runs first and is preempted last
        self.generated = 0
        self.held = 0  # KV tokens
        self.to_prefill = prompt
        self.running = False

    @property
    def done(self) -> bool:
        return self.generated >= self.limit


@dataclass(slots=True)
class Step:
    """What one step did: how long it took, and who got one token each."""

    seconds: float
    emitted: list[Sequence]
    admitted: list[Sequence]


class Scheduler:
    """Sequences in, steps out. Never holds more than `Costs.kv_tokens` and `max_running` sequences."""

    def __init__(self, costs: Costs, max_running: int, *, by_priority: bool = False) -> None:
        self.costs = costs
        self.max_running = max_running
        self.running: list[Sequence] = []  # in admission order
        self.waiting: list[Sequence] = []  # by urgency: the next one last, so that taking it is cheap
        self.kv_used = 0
        self.preemptions = 0
        self._by_priority = by_priority
        self._arrivals = 0

    def fits(self, prompt: int, limit: int) -> bool:
        """Whether such a sequence can ever finish: alone, it must fit the KV cache."""
        return prompt + limit <= self.costs.kv_tokens

    def add(self, sequence: Sequence) -> None:
        self._arrivals += 1
        sequence.urgency = (-sequence.priority if self._by_priority else 0, -self._arrivals)
        insort(self.waiting, sequence, key=URGENCY)

    def cancel(self, sequence: Sequence) -> None:
        """Forget a sequence; its seat and its KV are free at once. Safe for one that is gone."""
        if sequence.running:
            self.running.remove(sequence)
            self._release(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def step(self) -> Step | None:
        """Run one step; None when there is nothing to do. Finished sequences have left when it returns."""
        if not self.running and not self.waiting:
            return None
        preempted = self.preemptions
        emitted = self._decode()
        budget = self._prefill(self.costs.prefill_chunk, emitted)
        admitted: list[Sequence] = []
        if self.preemptions == preempted:
            budget = self._admit(budget, emitted, admitted)
        seconds = self._cost(self.costs.prefill_chunk - budget)
        finished = [sequence for sequence in emitted if sequence.done]
        if finished:
            for sequence in finished:
                self._release(sequence)
            self.running = [sequence for sequence in self.running if sequence.running]
        return Step(seconds, emitted, admitted)

    def _cost(self, prefilled: int) -> float:
        costs = self.costs
        ms = costs.step_ms + costs.sequence_ms * len(self.running) + costs.prefill_token_ms * prefilled
        return ms * 1e-3 + costs.kv_token_ns * self.kv_used * 1e-9

    def _decode(self) -> list[Sequence]:
        decoding = [sequence for sequence in self.running if not sequence.to_prefill]
        while self.kv_used + len(decoding) > self.costs.kv_tokens:
            victim = min(self.running, key=URGENCY)
            self._preempt(victim)
            decoding = [sequence for sequence in decoding if sequence is not victim]
        for sequence in decoding:
            sequence.generated += 1
            sequence.held += 1
        self.kv_used += len(decoding)
        return decoding

    def _prefill(self, budget: int, emitted: list[Sequence]) -> int:
        for sequence in self.running:
            if budget and sequence.to_prefill:
                budget = self._compute(sequence, budget, emitted)
        return budget

    def _admit(self, budget: int, emitted: list[Sequence], admitted: list[Sequence]) -> int:
        while self.waiting and budget and len(self.running) < self.max_running:
            sequence = self.waiting[-1]
            # One more than the prompt, for the token that its last chunk emits.
            need = sequence.to_prefill + 1
            if self.kv_used + need > self.costs.kv_tokens:
                break
            self.waiting.pop()
            sequence.running = True
            sequence.held = need
            self.kv_used += need
            self.running.append(sequence)
            admitted.append(sequence)
            budget = self._compute(sequence, budget, emitted)
        return budget

    def _compute(self, sequence: Sequence, budget: int, emitted: list[Sequence]) -> int:
        chunk = min(budget, sequence.to_prefill)
        sequence.to_prefill -= chunk
        if not sequence.to_prefill:
            sequence.generated += 1
            emitted.append(sequence)
        return budget - chunk

    def _preempt(self, sequence: Sequence) -> None:
        self.preemptions += 1
        self.running.remove(sequence)
        self._release(sequence)
        sequence.to_prefill = sequence.prompt + sequence.generated
        insort(self.waiting, sequence, key=URGENCY)

    def _release(self, sequence: Sequence) -> None:
        self.kv_used -= sequence.held
        sequence.held = 0
        sequence.running = False
