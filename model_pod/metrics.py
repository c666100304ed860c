"""What the server measures, under vLLM's names and with vLLM's meanings.

Gauges and preemptions are read from the engine when they are scraped; the rest is counted by `Record`, one
per request. Labels are fixed, so the number of series is.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.metrics_core import Metric

    from model_pod.engine import Stats

FIRST_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
NEXT_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
REQUEST_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240)
LABELS = ("model_name", "engine")


class EngineCollector:
    """Reads an engine at each scrape."""

    def __init__(
        self, stats: Callable[[], Stats], generated: Callable[[], int], labels: tuple[str, str]
    ) -> None:
        self._stats = stats
        self._generated = generated
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        gauges = (
            ("num_requests_running", stats.running, "Requests in the running batch."),
            ("num_requests_waiting", stats.waiting, "Requests that wait to be scheduled."),
            ("kv_cache_usage_perc", stats.kv_used, "KV cache in use, 0 to 1."),
        )
        counters = (
            ("num_preemptions", stats.preemptions, "Requests preempted."),
            ("generation_tokens", self._generated(), "Tokens generated."),
        )
        for family, series in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
            for name, value, text in series:
                if value is not None:  # absent is not zero
                    metric = family(f"vllm:{name}", text, labels=LABELS)
                    metric.add_metric(self._labels, value)
                    yield metric
        if stats.blocks:
            names = (*LABELS, "block_size", "num_gpu_blocks")
            info = GaugeMetricFamily("vllm:cache_config_info", "The KV cache's layout.", labels=names)
            info.add_metric((*self._labels, str(stats.block_size), str(stats.blocks)), 1)
            yield info


class Metrics:
    """All series of one server, looked up once."""

    def __init__(self, model_name: str, stats: Callable[[], Stats]) -> None:
        labels = (model_name, "0")
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(stats, lambda: self.generated, labels))

        def counter(name: str, text: str) -> Counter:
            return Counter(f"vllm:{name}", text, LABELS, registry=self.registry).labels(*labels)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            family = Histogram(f"vllm:{name}", text, LABELS, registry=self.registry, buckets=buckets)
            return family.labels(*labels)

        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens computed.")
        # Counted per token, and collected with the engine's numbers.
        self.generated = 0
        self.first_token = histogram("time_to_first_token_seconds", "Arrival to first token.", FIRST_S)
        self.next_token = histogram("inter_token_latency_seconds", "Token to token.", NEXT_S)
        self.end_to_end = histogram("e2e_request_latency_seconds", "Arrival to last token.", REQUEST_S)
        self.queued = histogram("request_queue_time_seconds", "Arrival to scheduled.", REQUEST_S)
        ended = (*LABELS, "finished_reason")
        success = Counter("vllm:request_success", "Requests that ended.", ended, registry=self.registry)
        self.finished = {reason: success.labels(*labels, reason) for reason in ("stop", "length", "abort")}
        ProcessCollector(registry=self.registry)


class Record:
    """The times of one request."""

    __slots__ = ("_arrival", "_last", "_metrics", "_prompt", "tokens")

    def __init__(self, metrics: Metrics, prompt: int, arrival: float) -> None:
        self._metrics = metrics
        self._prompt = prompt
        self._arrival = arrival  # time.monotonic()
        self._last = 0.0
        self.tokens = 0

    def on_scheduled(self, at: float) -> None:
        # A step that began before the request came may still take it in.
        self._metrics.queued.observe(max(0.0, at - self._arrival))

    def on_tokens(self, count: int) -> None:
        """`count` tokens came at once."""
        metrics, now = self._metrics, monotonic()
        if self.tokens:
            metrics.next_token.observe(now - self._last)
        else:
            metrics.prompt_tokens.inc(self._prompt)
            metrics.first_token.observe(now - self._arrival)
        metrics.generated += count
        self.tokens += count
        self._last = now

    def on_end(self, reason: str) -> None:
        self._metrics.finished[reason].inc()
        self._metrics.end_to_end.observe(monotonic() - self._arrival)
