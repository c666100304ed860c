"""An engine's metrics page, in Prometheus' text format: what it says of load, and our queue put into it.

    vLLM    vllm/v1/metrics/loggers.py; before 0.9 the names with `gpu_`, for a while both
    SGLang  srt/observability/metrics_collector.py, started with --enable-metrics
    TGI     docs/source/reference/metrics.md
    ours    vLLM's names

A page has thousands of lines, of which twenty matter: one regular expression finds them. Nothing on a page
can make the reading fail; a value that is no number counts as absent.

Ranks. vLLM labels each with `engine`, SGLang with `dp_rank`; counts add up over them. Series of one rank
that differ otherwise (tensor-parallel ranks, processes, priorities beside their total) say the same thing:
the largest counts. Totals are split by other labels (`is_streaming`, …) and add up over all series.
"""

from __future__ import annotations

import re
from math import isfinite
from typing import TYPE_CHECKING, Final, NamedTuple

from sidecar.balance.load import EngineLoad

if TYPE_CHECKING:
    from collections.abc import Callable


class _Source(NamedTuple):
    """One family a number comes from; `label` must be among a series' labels for it to count."""

    name: bytes
    label: bytes = b""


_Span = tuple[int, int]


class _Sample(NamedTuple):
    name: bytes
    labels: bytes
    value: bytes
    span: _Span  # of the value


# By field of EngineLoad, the first source that is there counts.
_GAUGES: Final = {
    "running": (
        _Source(b"vllm:num_requests_running"),
        _Source(b"sglang:num_running_reqs"),
        _Source(b"tgi_batch_current_size"),
    ),
    "waiting": (
        # What is deferred (for a transfer of its cache, say) does not wait for room.
        _Source(b"vllm:num_requests_waiting_by_reason", b'reason="capacity"'),
        _Source(b"vllm:num_requests_waiting"),
        _Source(b"sglang:num_queue_reqs"),
        _Source(b"tgi_queue_size"),
    ),
    "kv_used": (
        _Source(b"vllm:kv_cache_usage_perc"),
        _Source(b"vllm:gpu_cache_usage_perc"),
        _Source(b"sglang:token_usage"),
    ),
    "kv_tokens": (_Source(b"vllm:cache_config_info"), _Source(b"sglang:max_total_num_tokens")),
}
_TOTALS: Final = {
    "preemptions_total": (
        _Source(b"vllm:num_preemptions_total"),
        _Source(b"sglang:num_retracted_requests_total"),
    ),
    "generated_total": (
        # Those that count each step. SGLang's other one, and TGI's, count a request's tokens when it ends.
        _Source(b"vllm:generation_tokens_total"),
        _Source(b"sglang:realtime_tokens_total", b'mode="decode"'),
    ),
    "prompt_total": (
        _Source(b"vllm:prompt_tokens_total"),
        _Source(b"sglang:prompt_tokens_total"),
        _Source(b"tgi_request_input_length_sum"),
    ),
    "prefix_hits_total": (
        _Source(b"vllm:prefix_cache_hits_total"),
        _Source(b"vllm:gpu_prefix_cache_hits_total"),
        _Source(b"sglang:cached_tokens_total"),
    ),
    "prefix_queries_total": (
        _Source(b"vllm:prefix_cache_queries_total"),
        _Source(b"vllm:gpu_prefix_cache_queries_total"),
        _Source(b"sglang:prompt_tokens_total"),
    ),
}
_SOURCES: Final = [
    source for fields in (_GAUGES, _TOTALS) for sources in fields.values() for source in sources
]
_BY_NAME: Final = {name: {each for each in _SOURCES if each.name == name} for name, _ in _SOURCES}
# Grouped by what they begin with, or each line would be tried with each: 0.9 ms for 5,000 lines, else 7.
_FAMILIES: Final = b"|".join(
    b"%b(?:%b)" % (prefix, b"|".join(name.removeprefix(prefix) for name in names))
    for prefix in (b"vllm:", b"sglang:", b"tgi_")
    if (names := [name for name in _BY_NAME if name.startswith(prefix)])
)
_SAMPLE: Final = re.compile(rb"\n(%b)(?:\{([^\n]*)\})?[ \t]+([^\s]+)" % _FAMILIES)
_RANK: Final = re.compile(rb'(?:^|,)(?:engine|dp_rank)="([^"]*)"')
_PART: Final = re.compile(rb'(?:^|,)priority="[^"]')  # of a total that has none
_KV_TOKENS: Final = re.compile(rb'(?:^|,)kv_cache_size_tokens="([0-9]{1,18})"')
_BLOCKS: Final = re.compile(rb'(?:^|,)num_gpu_blocks="([0-9]{1,18})"')
_BLOCK_SIZE: Final = re.compile(rb'(?:^|,)block_size="([0-9]{1,9})"')


def read_page(page: bytes, at: float) -> EngineLoad | None:
    """What `page`, true of the instant `at`, says; None when it is not that of an engine known here."""
    return _load(_samples(page), at)


def with_queue(page: bytes, queued: int) -> bytes:
    """`page` with `queued` more requests waiting, so that whoever adds up its ranks sees all who wait.

    They join one rank's; all else stays as it is. A page that counts nobody who waits stays unchanged.
    """
    return _put_in(page, _queues(_samples(page)), queued)


class EnginePage:
    """The engine's last page, and how long it may stand for the engine's own answer.

    `queued` says how many wait in this sidecar.
    """

    def __init__(self, queued: Callable[[], int], max_age_s: float) -> None:
        self.max_age_s = max_age_s
        self.content_type = b""
        self._queued = queued
        self._page = b""
        self._at = float("-inf")
        self._queues: list[_Span] = []

    def take(self, page: bytes, content_type: bytes, at: float) -> EngineLoad | None:
        """What the engine answered to who asked at the instant `at`, and what that says."""
        samples = _samples(page)
        self._page, self.content_type, self._at = page, content_type, at
        self._queues = _queues(samples)
        return _load(samples, at)

    def shown(self, now: float) -> bytes | None:
        """The page with our queue in it; None when there is none that is fresh."""
        fresh = now - self._at <= self.max_age_s
        return _put_in(self._page, self._queues, self._queued()) if fresh else None


def _samples(page: bytes) -> list[_Sample]:
    """Those of the families above."""
    return [
        _Sample(match[1], match[2] or b"", match[3], (match.start(3) - 1, match.end(3) - 1))
        for match in _SAMPLE.finditer(b"\n" + page)
    ]


def _load(samples: list[_Sample], at: float) -> EngineLoad | None:
    found = _by_source(samples)
    if not found:
        return None
    load = EngineLoad(at, at)
    for fields in (_GAUGES, _TOTALS):
        for field, sources in fields.items():
            values = next((found[source].values() for source in sources if source in found), None)
            if values is not None:
                whole = sum(values)
                setattr(load, field, min(whole / len(values), 1.0) if field == "kv_used" else int(whole))
    return load


def _by_source(samples: list[_Sample]) -> dict[_Source, dict[bytes, float]]:
    """Of each rank the largest value; of a total the value of each series."""
    found: dict[_Source, dict[bytes, float]] = {}
    for name, labels, text, _ in samples:
        value = _kv_tokens(labels) if name == b"vllm:cache_config_info" else _number(text)
        if value is None:
            continue
        key = labels if name.endswith((b"_total", b"_sum")) else _rank(labels)
        for source in _BY_NAME[name]:
            if source.label in labels:
                values = found.setdefault(source, {})
                values[key] = max(values.get(key, 0.0), value)
    return found


def _queues(samples: list[_Sample]) -> list[_Span]:
    """Where the values are that count who waits: in each family the first that is no part of another."""
    spans: dict[_Source, _Span] = {}
    for name, labels, text, span in samples:
        for source in _BY_NAME[name].intersection(_GAUGES["waiting"]):
            if source.label in labels and not _PART.search(labels) and _number(text) is not None:
                spans.setdefault(source, span)
    return sorted(spans.values())


def _put_in(page: bytes, queues: list[_Span], queued: int) -> bytes:
    if not (queued and queues):
        return page
    whole = memoryview(page)
    pieces: list[bytes | memoryview] = []
    end = 0
    for start, stop in queues:
        pieces += whole[end:start], _sum(page[start:stop], queued)
        end = stop
    pieces.append(whole[end:])
    return b"".join(pieces)


def _rank(labels: bytes) -> bytes:
    match = _RANK.search(labels)
    return match[1] if match else b""


def _number(text: bytes) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) and value >= 0 else None


def _sum(text: bytes, more: int) -> bytes:
    """In the form that `text` has."""
    return b"%d" % (int(text) + more) if text.isdigit() else repr(float(text) + more).encode()


def _kv_tokens(labels: bytes) -> float | None:
    """vLLM's own figure, else its blocks: those of models that mix kinds of attention are not of one size."""
    whole, blocks, size = (pattern.search(labels) for pattern in (_KV_TOKENS, _BLOCKS, _BLOCK_SIZE))
    if whole:
        return float(whole[1])
    return float(blocks[1]) * float(size[1]) if blocks and size else None
