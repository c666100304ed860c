"""Pages as engines give them, what is read of them, and our queue put into them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families as parse

from model_pod.engine import Stats
from model_pod.metrics import Metrics
from sidecar.balance.engine_page import EnginePage, read_page, with_queue
from sidecar.balance.load import EngineLoad

VLLM = b"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="meta/m"} 37.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="meta/m"} 12.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="meta/m",reason="capacity"} 9.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="meta/m",reason="deferred"} 3.0
vllm:gpu_cache_usage_perc{engine="0",model_name="meta/m"} 0.5
vllm:kv_cache_usage_perc{engine="0",model_name="meta/m"} 0.75
vllm:prefix_cache_queries_total{engine="0",model_name="meta/m"} 4096.0
vllm:prefix_cache_hits_total{engine="0",model_name="meta/m"} 3168.0
vllm:num_preemptions_total{engine="0",model_name="meta/m"} 5.0
vllm:num_preemptions_created{engine="0",model_name="meta/m"} 1.788184174081528e+09
vllm:prompt_tokens_total{engine="0",model_name="meta/m"} 1.23456e+06
vllm:generation_tokens_total{engine="0",model_name="meta/m"} 9000.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="meta/m"} 1.0
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",num_gpu_blocks="1000"} 1.0
"""
OLD_VLLM = b"""\
vllm:num_requests_running{model_name="m"} 8.0
vllm:num_requests_waiting{model_name="m"} 3.0
vllm:gpu_cache_usage_perc{model_name="m"} 0.72
vllm:gpu_prefix_cache_hits_total{model_name="m"} 10
vllm:gpu_prefix_cache_queries_total{model_name="m"} 40
vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0
"""
RANKS = b"".join(
    b"""\
vllm:num_requests_running{engine="%d",model_name="m"} %d.0
vllm:num_requests_waiting{engine="%d",model_name="m"} %d.0
vllm:kv_cache_usage_perc{engine="%d",model_name="m",pid="11"} 0.0
vllm:kv_cache_usage_perc{engine="%d",model_name="m",pid="12"} 0.%d
vllm:generation_tokens_total{engine="%d",model_name="m"} %d00.0
vllm:cache_config_info{block_size="8",engine="%d",kv_cache_size_tokens="463459",num_gpu_blocks="320"} 1.0
"""
    % (rank, rank + 1, rank, rank, rank, rank, 2 + 4 * rank, rank, rank + 1, rank)
    for rank in range(2)
)
_SGLANG = b'engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"'
SGLANG = b"".join(
    b"%b%b} %b\n" % (name, b"{" + _SGLANG + more, value)
    for name, more, value in [
        (b"sglang:num_running_reqs", b',priority="1"', b"2.0"),
        (b"sglang:num_running_reqs", b',priority=""', b"6.0"),
        (b"sglang:num_running_reqs_offline_batch", b"", b"99.0"),
        (b"sglang:num_queue_reqs", b',priority="1"', b"1.0"),
        (b"sglang:num_queue_reqs", b',priority=""', b"4.0"),
        (b"sglang:token_usage", b"", b"0.28"),
        (b"sglang:max_total_num_tokens", b"", b"262144.0"),
        (b"sglang:num_retracted_requests_total", b"", b"3.0"),
        (b"sglang:prompt_tokens_total", b',is_streaming="true"', b"500.0"),
        (b"sglang:prompt_tokens_total", b',is_streaming="false"', b"20.0"),
        (b"sglang:generation_tokens_total", b',is_streaming="true"', b"1.0"),
        (b"sglang:realtime_tokens_total", b',mode="decode"', b"700.0"),
        (b"sglang:realtime_tokens_total", b',mode="prefill_compute"', b"9.0"),
        (b"sglang:cached_tokens_total", b',cache_source="device"', b"60.0"),
        (b"sglang:cached_tokens_total", b',cache_source="host"', b"5.0"),
    ]
)
TGI = b"""\
# TYPE tgi_queue_size gauge
tgi_queue_size 12

# TYPE tgi_batch_current_size gauge
tgi_batch_current_size 4
tgi_request_generated_tokens_sum 64000
tgi_request_input_length_sum 128
tgi_request_input_length_bucket{le="+Inf"} 3
"""


def test_vllm() -> None:
    assert read_page(VLLM, 5.0) == EngineLoad(
        at=5.0,
        counted_at=5.0,
        running=37,
        waiting=9,
        kv_used=0.75,
        kv_tokens=16_000,
        preemptions_total=5,
        generated_total=9000,
        prompt_total=1_234_560,
        prefix_hits_total=3168,
        prefix_queries_total=4096,
    )


def test_an_older_vllm_that_does_not_know_its_cache_yet() -> None:
    assert read_page(OLD_VLLM, 0.0) == EngineLoad(
        0.0, 0.0, running=8, waiting=3, kv_used=0.72, prefix_hits_total=10, prefix_queries_total=40
    )


def test_ranks_add_up_and_processes_of_one_rank_do_not() -> None:
    load = read_page(RANKS, 0.0)
    assert load is not None
    assert (load.running, load.waiting, load.generated_total) == (3, 1, 300)
    assert load.kv_used == pytest.approx(0.4)
    assert load.kv_tokens == 2 * 463_459, "the engine's own figure, not its blocks"


def test_a_rank_is_known_by_the_whole_name_of_its_label() -> None:
    page = b"".join(b'vllm:num_requests_running{an_engine="%d",engine="0"} 4.0\n' % each for each in range(2))
    load = read_page(page, 0.0)
    assert load is not None
    assert load.running == 4


def test_sglang() -> None:
    assert read_page(SGLANG, 0.0) == EngineLoad(
        0.0,
        0.0,
        running=6,
        waiting=4,
        kv_used=0.28,
        kv_tokens=262_144,
        preemptions_total=3,
        generated_total=700,
        prompt_total=520,
        prefix_hits_total=65,
        prefix_queries_total=520,
    )


def test_tensor_parallel_ranks_say_the_same_and_data_parallel_ones_do_not() -> None:
    page = b"".join(
        b'sglang:num_running_reqs{dp_rank="%d",tp_rank="%d"} 5.0\n' % (dp, tp)
        for dp in range(2)
        for tp in range(2)
    )
    load = read_page(page, 0.0)
    assert load is not None
    assert load.running == 10


def test_tgi() -> None:
    assert read_page(TGI, 0.0) == EngineLoad(0.0, 0.0, running=4, waiting=12, prompt_total=128)


def test_what_counts_tokens_only_when_an_answer_ends_does_not_count_them_as_they_are_made() -> None:
    load = read_page(b"sglang:num_running_reqs 1\nsglang:generation_tokens_total 7\n" + TGI, 0.0)
    assert load is not None
    assert load.generated_total is None


def test_our_own_pod() -> None:
    stats = Stats(running=3, waiting=2, kv_used=0.25, preemptions=1, block_size=16, blocks=100)
    load = read_page(generate_latest(Metrics("m", lambda: stats).registry), 0.0)
    assert load is not None
    assert (load.running, load.waiting, load.kv_used, load.kv_tokens) == (3, 2, 0.25, 1600)
    assert (load.preemptions_total, load.generated_total, load.prompt_total) == (1, 0, 0)


@pytest.mark.parametrize("text", [b"NaN", b"+Inf", b"-1", b"x", b"0x1", b"1" * 500])
def test_what_is_no_number_is_unknown(text: bytes) -> None:
    page = b'vllm:num_requests_running{a="b"} 1\nvllm:num_requests_waiting{a="b"} %b\n' % text
    assert read_page(page, 0.0) == EngineLoad(0.0, 0.0, running=1)
    assert with_queue(page, 3) == page


@pytest.mark.parametrize(
    "page", [b"", b"up 1\n", b"<html>", b"vllm:other 1\n", b"xvllm:num_requests_waiting 1\n"]
)
def test_other_pages_say_nothing_and_stay_as_they_are(page: bytes) -> None:
    assert read_page(page, 0.0) is None
    assert with_queue(page, 3) == page


@given(st.binary(), st.integers(0, 10**6))
def test_no_page_is_too_strange(noise: bytes, queued: int) -> None:
    for page in (noise, VLLM + noise, VLLM.replace(b"12.0", noise), VLLM.replace(b'"16"', noise)):
        read_page(page, 0.0)
        with_queue(page, queued)


def values(page: bytes, name: str) -> list[float]:
    return [s.value for family in parse(page.decode()) for s in family.samples if s.name == name]


def test_our_queue_joins_theirs() -> None:
    shown = with_queue(VLLM, 5)
    assert shown == VLLM.replace(b"} 12.0", b"} 17.0").replace(b'"capacity"} 9.0', b'"capacity"} 14.0')
    assert with_queue(VLLM, 0) == VLLM


def test_our_queue_is_counted_once_whatever_the_ranks() -> None:
    assert sum(values(with_queue(RANKS, 7), "vllm:num_requests_waiting")) == 8
    shown = with_queue(SGLANG, 7)
    assert shown == SGLANG.replace(b'priority=""} 4.0', b'priority=""} 11.0'), "the total, not a part of it"
    load = read_page(shown, 0.0)
    assert load is not None
    assert load.waiting == 11
    assert with_queue(TGI, 7) == TGI.replace(b"tgi_queue_size 12", b"tgi_queue_size 19")


def test_the_last_page_stands_for_the_engines_answer_while_it_is_fresh() -> None:
    queued = 4
    page = EnginePage(lambda: queued, 3.0)
    assert page.shown(0.0) is None
    assert page.take(TGI, b"text/plain; a=b", 10.0) == read_page(TGI, 10.0)
    assert page.content_type == b"text/plain; a=b"
    assert page.shown(13.0) == with_queue(TGI, 4)
    queued = 5
    assert page.shown(13.0) == with_queue(TGI, 5)
    assert page.shown(13.1) is None
