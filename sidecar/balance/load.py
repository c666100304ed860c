"""How full an engine is, as it says itself, and how full this pod is, as we say.

What an engine says is never asked for while a request waits. It comes from its metrics page, read now and
then, and from load reports on its answers, and may be missing or old: None is unknown, not zero, and what
is not fresh says nothing, neither that the engine is full nor that it is idle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

_PAGE_MAX_AGE_S: Final = 10.0  # after which a report does not keep alive what a page said


@dataclass(slots=True)
class EngineLoad:
    """Gauges are true of the instant `at`, the totals of `counted_at`; both are monotonic seconds.

    Totals only grow, until the engine starts anew. Ranks of one engine are summed, but for `kv_used`,
    which is their mean.
    """

    at: float = float("-inf")  # never
    counted_at: float = float("-inf")
    running: int | None = None  # requests in the batch
    waiting: int | None = None  # requests that wait for room in it
    kv_used: float | None = None  # 0 to 1
    kv_tokens: int | None = None  # that the KV cache holds
    preemptions_total: int | None = None
    generated_total: int | None = None  # tokens, counted as they are made
    prompt_total: int | None = None  # tokens
    prefix_hits_total: int | None = None  # tokens that were found in the cache, of
    prefix_queries_total: int | None = None  # tokens that were looked for

    def is_fresh(self, now: float, max_age_s: float) -> bool:
        """Whether the gauges are younger than `max_age_s`."""
        return now - self.at <= max_age_s

    def take(self, page: EngineLoad) -> None:
        """All that a page says: what it does not name is unknown."""
        for name in EngineLoad.__slots__:
            setattr(self, name, getattr(page, name))

    def hear(self, report: EngineLoad) -> None:
        """A report knows gauges alone, and not all: what it does not name stays, while it is not old."""
        self.at = report.at
        is_old = report.at - self.counted_at > _PAGE_MAX_AGE_S
        for name in ("running", "waiting", "kv_used"):
            value = getattr(report, name)
            if value is not None or is_old:
                setattr(self, name, value)
        if report.kv_tokens is not None:
            self.kv_tokens = report.kv_tokens


class Occupancy(NamedTuple):
    """How full this pod is, its queue and its engine together."""

    waiting: int  # requests that wait: in this sidecar, and, where it is known, in the engine
    running: int  # requests that the engine works on
    utilization: float  # work over what the pod can carry; above 1 when some of it waits
    kv_used: float | None = None  # 0 to 1
