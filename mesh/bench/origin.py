"""What became of one ask, over all its tries. Times are in seconds after the start of the run.

An origin *attains* its objective when it is served whole, its first token came within `ttft_s` of when it
first asked, and the mean time between its tokens is at most `itl_ms`. An answer that is not streamed has no
first token to see: it attains when it is whole within `ttft_s + itl_ms * (tokens - 1)`.

When a run is ended while origins are open, a stream that has begun counts by what it did so far, and one that
still had time for its first token says nothing: it is `undecided`.
"""

from array import array
from dataclasses import dataclass, field
from typing import Literal

from mesh.bench.workload import Ask

# Whole; told that there is no room; the caller gave up; broke off; anything else; the run ended first.
Outcome = Literal["served", "refused", "timeout", "cut", "error", "open"]


@dataclass(slots=True)
class Attempt:
    """One try of a caller."""

    sent: float
    status: int = 0  # 0: no answer
    reason: str = ""  # x-headgate-reason, or what went wrong before an answer
    first_token: float | None = None
    ended: float = 0.0
    retry_after_s: float | None = None
    should_retry: bool | None = None
    queue_ms: float | None = None  # from server-timing


@dataclass(slots=True)
class Origin:
    """One ask, and what came of it."""

    ask: Ask
    attempts: list[Attempt] = field(default_factory=list)
    tokens_at: "array[float]" = field(default_factory=lambda: array("d"))  # when each came
    ended: float = 0.0
    outcome: Outcome = "open"

    @property
    def ttft_s(self) -> float:
        """From when the caller first asked; to the end where there was no token."""
        return (self.tokens_at[0] if self.tokens_at else self.ended) - self.ask.at

    @property
    def itl_ms(self) -> float:
        """The mean time between its tokens; 0 for a single one."""
        at = self.tokens_at
        return 1000 * (at[-1] - at[0]) / (len(at) - 1) if len(at) > 1 else 0.0

    @property
    def latency_s(self) -> float:
        """From when the caller first asked to the last byte."""
        return self.ended - self.ask.at

    @property
    def is_served(self) -> bool:
        """Whole, or on the way when the run ended."""
        return self.outcome == "served" or (self.outcome == "open" and bool(self.tokens_at))

    @property
    def failed(self) -> bool:
        """Neither served nor told that there is no room."""
        return not self.is_served and self.outcome != "refused"

    @property
    def is_undecided(self) -> bool:
        """The run ended too early to say what would have become of it."""
        if self.outcome != "open" or self.tokens_at:
            return False
        return not self.ask.traffic.stream or self.latency_s < self.ask.traffic.ttft_s

    @property
    def attains(self) -> bool:
        """Whether this caller got what its objective says."""
        if not self.is_served or not self.tokens_at:
            return False
        traffic = self.ask.traffic
        if not traffic.stream:
            return self.latency_s <= traffic.ttft_s + traffic.itl_ms * (len(self.tokens_at) - 1) / 1000
        return self.ttft_s <= traffic.ttft_s and self.itl_ms <= traffic.itl_ms
