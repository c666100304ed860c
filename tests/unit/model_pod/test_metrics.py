"""What one request adds to the series, and what an engine without a number leaves out."""

from __future__ import annotations

import pytest

from model_pod import metrics
from model_pod.engine import Stats
from model_pod.metrics import Metrics, Record

LABELS = {"model_name": "m", "engine": "0"}


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time, in its only element."""
    now = [100.0]
    monkeypatch.setattr(metrics, "monotonic", lambda: now[0])
    return now


def value(series: Metrics, name: str, **labels: str) -> float | None:
    return series.registry.get_sample_value(f"vllm:{name}", LABELS | labels)


def test_a_request_is_timed_from_its_arrival(clock):
    series = Metrics("m", Stats)
    record = Record(series, 12, arrival=100.0)
    record.on_scheduled(100.25)
    for clock[0], count in ((100.5, 1), (100.75, 1), (101.75, 3)):
        record.on_tokens(count)
    clock[0] = 102.0
    record.on_end("length")
    assert value(series, "request_queue_time_seconds_sum") == 0.25
    assert value(series, "time_to_first_token_seconds_sum") == 0.5
    assert value(series, "inter_token_latency_seconds_sum") == 1.25
    assert value(series, "inter_token_latency_seconds_count") == 2
    assert value(series, "e2e_request_latency_seconds_sum") == 2.0
    assert (value(series, "prompt_tokens_total"), value(series, "generation_tokens_total")) == (12, 5)
    assert value(series, "request_success_total", finished_reason="length") == 1
    assert value(series, "request_success_total", finished_reason="abort") == 0


def test_a_step_that_began_before_the_request_came_is_no_negative_wait(clock):
    series = Metrics("m", Stats)
    Record(series, 1, arrival=100.0).on_scheduled(99.0)
    assert value(series, "request_queue_time_seconds_sum") == 0


def test_gauges_are_read_when_they_are_scraped():
    stats = Stats(running=1, waiting=2, kv_used=0.25, block_size=16, blocks=8, preemptions=3)
    series = Metrics("m", lambda: stats)
    assert (value(series, "num_requests_running"), value(series, "num_requests_waiting")) == (1, 2)
    stats.running = 5
    assert value(series, "num_requests_running") == 5
    assert (value(series, "kv_cache_usage_perc"), value(series, "num_preemptions_total")) == (0.25, 3)
    assert value(series, "cache_config_info", block_size="16", num_gpu_blocks="8") == 1


def test_what_an_engine_does_not_have_is_absent_not_zero():
    series = Metrics("m", lambda: Stats(kv_used=None, preemptions=None))
    assert value(series, "num_requests_running") == 0
    assert value(series, "kv_cache_usage_perc") is None
    assert value(series, "num_preemptions_total") is None
    assert "vllm:cache_config_info" not in {family.name for family in series.registry.collect()}
