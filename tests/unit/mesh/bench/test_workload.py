"""Arrivals: reproducible, Poisson, shaped by profiles; and the stock mix."""

from dataclasses import replace
from statistics import fmean, median, pvariance

import pytest

from mesh.bench.workload import BATCH, PREMIUM, PROMPT, STANDARD, STOCK, Ask, Lengths, arrivals, mix, stock
from sidecar.settings import CLASSES


def seen(asks: list[Ask]) -> list[tuple[float, str, int]]:
    return [(ask.at, ask.traffic.cls, ask.prompt_tokens) for ask in asks]


def test_the_same_seed_asks_the_same() -> None:
    assert seen(arrivals(mix(20), 30, seed=1)) == seen(arrivals(mix(20), 30, seed=1))
    assert seen(arrivals(mix(20), 30, seed=1)) != seen(arrivals(mix(20), 30, seed=2))


def test_a_change_of_one_traffic_leaves_the_others_as_they_were() -> None:
    first, *others = mix(20)
    before, after = arrivals([first, *others], 30, 1), arrivals([replace(first, rate=90), *others], 30, 1)
    kept = [[each for each in seen(asks) if each[1] != first.cls] for asks in (before, after)]
    assert kept[0] == kept[1]


def test_alike_traffics_do_not_move_in_step() -> None:
    one = stock(PREMIUM, 5)
    times = [ask.at for ask in arrivals([one, one], 30, 1)]
    assert len(set(times)) == len(times)


def test_arrivals_are_in_order_and_numbered() -> None:
    asks = arrivals(mix(20), 30, seed=1)
    assert [ask.at for ask in asks] == sorted(ask.at for ask in asks)
    assert [ask.number for ask in asks] == list(range(len(asks)))
    assert asks[0].at >= 0
    assert asks[-1].at < 30


def test_arrivals_are_a_poisson_process() -> None:
    """Counts in seconds have their mean as variance."""
    asks = arrivals([stock(BATCH, 40)], 2000, seed=3)
    counts = [0] * 2000
    for ask in asks:
        counts[int(ask.at)] += 1
    assert fmean(counts) == pytest.approx(40, rel=0.02)
    assert pvariance(counts) == pytest.approx(40, rel=0.1)


def test_a_profile_shapes_the_rate() -> None:
    shaped = stock(BATCH, 100, profile=lambda at: 5.0 if 10 <= at < 20 else 0.0 if at < 30 else 1.0)
    times = [ask.at for ask in arrivals([shaped], 40, seed=1)]
    assert not [at for at in times if at < 10 or 20.05 < at < 30]  # the profile is looked at every 50 ms
    assert sum(10 <= at < 20 for at in times) == pytest.approx(5000, rel=0.05)
    assert sum(at >= 30 for at in times) == pytest.approx(1000, rel=0.1)


def test_traffic_begins_and_ends_when_it_says() -> None:
    times = [ask.at for ask in arrivals([stock(BATCH, 50, starts_s=5, ends_s=8)], 20, seed=1)]
    assert min(times) >= 5
    assert max(times) < 8
    assert arrivals([stock(BATCH, 50, starts_s=30)], 20, seed=1) == []
    assert arrivals([stock(BATCH, 0)], 20, seed=1) == []


def test_prompts_are_log_normal_and_bounded() -> None:
    drawn = [ask.prompt_tokens for ask in arrivals([stock(BATCH, 100)], 100, seed=1)]
    assert median(drawn) == pytest.approx(PROMPT.median, rel=0.05)
    assert max(drawn) == PROMPT.most
    assert min(drawn) >= 1
    fixed = stock(BATCH, 10, prompt=Lengths(median=12, sigma=0, most=100))
    assert {ask.prompt_tokens for ask in arrivals([fixed], 10, 1)} == {12}


def test_the_stock_mix_is_that_of_the_sidecar() -> None:
    assert list(STOCK) == list(CLASSES) == [PREMIUM, STANDARD, BATCH]
    for cls, each in STOCK.items():
        promised = CLASSES[cls]
        assert (each.ttft_s, each.itl_ms) == (promised.ttft_s, promised.itl_ms)
    assert sum(each.share for each in STOCK.values()) == pytest.approx(1)
    assert sum(each.rate for each in mix(7)) == pytest.approx(7)
    assert stock(PREMIUM, 1, patience_s=9).patience_s == 9
