"""What engines say of themselves while a run goes on, and which refusals that makes wrong.

A refusal is *false* when some engine had room for at least as long as between two samples around it: nobody
waited there, less than `ROOM_KV` of its cache was in use and fewer than `ROOM_RUNNING` ran.
"""

import asyncio
import contextlib
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final
from urllib.parse import urlsplit

from mesh.bench.origin import Origin

EVERY_S: Final = 0.2
ROOM_KV: Final = 0.7
ROOM_RUNNING: Final = 48
_WITHIN_S: Final = 2.0
_SERIES: Final = re.compile(
    rb"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc|num_preemptions_total"
    rb"|request_success_total)\{[^}]*\} (\S+)",
    re.MULTILINE,
)
_NAMES: Final = {
    b"num_requests_running": "running",
    b"num_requests_waiting": "waiting",
    b"kv_cache_usage_perc": "kv",
    b"num_preemptions_total": "preemptions",
    b"request_success_total": "ended",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One engine at one time, in seconds after the start."""

    at: float
    running: float = 0.0
    waiting: float = 0.0
    kv: float = 0.0  # share of the cache in use
    preemptions: float = 0.0  # so far
    ended: float = 0.0  # requests so far, however they did

    @property
    def arrived(self) -> float:
        """Requests so far."""
        return self.running + self.waiting + self.ended

    @property
    def has_room(self) -> bool:
        return not self.waiting and self.kv < ROOM_KV and self.running < ROOM_RUNNING


@dataclass(slots=True)
class Watched:
    """All samples of each engine."""

    samples: list[list[Sample]] = field(default_factory=list)

    def false_refusals(self, origins: Iterable[Origin], from_s: float, to_s: float) -> int:
        """How many tries of those who arrived in the window were refused beside an engine with room."""
        moments = (
            attempt.ended
            for origin in origins
            if from_s <= origin.ask.at < to_s
            for attempt in origin.attempts
            if attempt.status in (429, 503, 529)
        )
        return sum(any(_had_room(samples, at) for samples in self.samples) for at in moments)

    def mean(self, name: str, from_s: float, to_s: float) -> float:
        """Over all engines and the samples in the window."""
        found = [getattr(each, name) for each in self._within(from_s, to_s)]
        return sum(found) / len(found) if found else 0.0

    def preempted(self, from_s: float, to_s: float) -> int:
        """Preemptions of all engines in the window."""
        total = 0.0
        for samples in self.samples:
            counts = [each.preemptions for each in samples if from_s <= each.at < to_s]
            total += counts[-1] - counts[0] if counts else 0.0
        return round(total)

    def _within(self, from_s: float, to_s: float) -> Iterable[Sample]:
        return (each for samples in self.samples for each in samples if from_s <= each.at < to_s)


def _had_room(samples: Sequence[Sample], at: float) -> bool:
    after = bisect_left(samples, at, key=lambda sample: sample.at)
    return 0 < after < len(samples) and samples[after - 1].has_room and samples[after].has_room


@contextlib.asynccontextmanager
async def watched(urls: Sequence[str]) -> AsyncIterator[Watched]:
    """Ask the engines at `urls` for their metrics while the block runs; the start is now."""
    began = perf_counter()
    found = Watched([[] for _ in urls])
    places = zip(urls, found.samples, strict=True)
    tasks = [asyncio.ensure_future(_watch(url, began, into)) for url, into in places]
    try:
        yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _watch(url: str, began: float, into: list[Sample]) -> None:
    place = urlsplit(url)
    request = f"GET /metrics HTTP/1.1\r\nhost: {place.netloc}\r\nconnection: close\r\n\r\n".encode()
    while True:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_WITHIN_S):
                page = await _ask(place.hostname or "", place.port or 80, request)
            into.append(read(page, perf_counter() - began))
        await asyncio.sleep(EVERY_S)


async def _ask(host: str, port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(request)
        return await reader.read()
    finally:
        writer.close()


def read(page: bytes, at: float) -> Sample:
    """What a page of metrics under vLLM's names says."""
    found: defaultdict[str, float] = defaultdict(float)  # some have a series for each reason
    for name, value in _SERIES.findall(page):
        found[_NAMES[name]] += float(value)
    return Sample(at=at, **found)
