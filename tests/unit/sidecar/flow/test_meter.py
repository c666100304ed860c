"""Rates and gaps, told from first tokens, from counts and from who runs."""

from __future__ import annotations

import pytest

from sidecar.flow.meter import Meter
from sidecar.flow.ticket import DECODE, Ticket
from tests.unit.sidecar.flow.tickets import ticket


def stream(tokens: int, *, first: float = 0.5, steady: bool = True) -> Ticket:
    """One that got so many tokens since the window began."""
    return ticket(first=first, tokens=tokens, steady=steady)


def test_the_prompt_rate_is_what_was_ahead_by_the_time_it_took() -> None:
    meter = Meter(0.0)
    meter.itl_s = 0.0
    for n in range(200):
        meter.on_first_token(ticket(dispatched=float(n), ahead=2000.0), n + 0.5)
    assert meter.prompt_rate == pytest.approx(4000.0, rel=0.01)


def test_the_prompt_rate_follows_and_never_falls_to_nothing() -> None:
    meter = Meter(0.0)
    for n in range(400):
        meter.on_first_token(ticket(dispatched=float(n), ahead=2000.0), n + (0.5 if n < 200 else 2.0))
    assert meter.prompt_rate == pytest.approx(1000.0, rel=0.1)
    for _ in range(400):
        meter.on_first_token(ticket(dispatched=0.0, ahead=2000.0), 1e6)
    assert meter.prompt_rate >= 50.0


def test_what_is_only_believed_is_not_said_to_be_measured() -> None:
    meter = Meter(0.0)
    assert meter.measured_prompt_rate == 0.0
    for n in range(3):
        meter.on_first_token(ticket(dispatched=float(n), ahead=2000.0), n + 0.5)
    assert meter.measured_prompt_rate == meter.prompt_rate


def test_a_few_tokens_do_not_make_a_rate() -> None:
    meter = Meter(0.0)
    before = meter.prompt_rate
    meter.on_first_token(ticket(dispatched=0.0, ahead=10.0), 9.0)
    assert meter.prompt_rate == before


def close(meter: Meter, at: float, *, bound: bool = True) -> None:
    meter.on_tick(10, bound)
    meter.close(at, [], 60.0)


def test_the_work_rate_is_unknown_until_a_window_in_which_somebody_waited() -> None:
    meter = Meter(0.0)
    meter.on_tokens(1000)
    close(meter, 1.0, bound=False)
    assert meter.work_rate is None
    meter.on_tokens(1000)
    meter.on_first_token(ticket(fresh=500.0), 1.5)
    close(meter, 2.0)
    assert meter.work_rate == pytest.approx(500.0 + DECODE * 1000)


def test_the_work_rate_follows_bound_windows_alone() -> None:
    meter = Meter(0.0)
    for n in range(1, 50):
        meter.on_tokens(1000)
        close(meter, float(n))
    for n in range(50, 100):
        close(meter, float(n), bound=False)
    assert meter.work_rate == pytest.approx(DECODE * 1000)
    for n in range(100, 130):
        meter.on_tokens(500)
        close(meter, float(n))
    assert meter.work_rate == pytest.approx(DECODE * 500, rel=0.01)


def test_a_window_is_bound_only_if_somebody_waited_at_every_look() -> None:
    meter = Meter(0.0)
    for waits in (True, False, True):
        meter.on_tick(1, waits)
    assert not meter.close(0.5, [], 60.0).bound
    meter.on_tick(1, True)
    assert meter.close(1.0, [], 60.0).bound
    assert not meter.close(1.5, [], 60.0).bound, "nobody has looked"


def test_the_number_that_runs_is_the_mean_over_looks() -> None:
    meter = Meter(0.0)
    for running in (10, 20, 60):
        meter.on_tick(running, True)
    assert meter.close(0.5, [], 60.0).running == 30.0


def test_the_gap_is_the_ninetieth_percentile_over_streams() -> None:
    meter = Meter(1.0)
    running = [stream(50) for _ in range(20)] + [stream(10) for _ in range(3)] + [stream(1)]
    window = meter.close(2.0, running, 60.0)
    assert window.itl_ms == pytest.approx(100.0)
    for one in running:
        one.tokens += 25
    assert meter.close(3.0, running, 60.0).itl_ms == pytest.approx(40.0), "of this window alone"


def test_a_stall_of_all_streams_is_seen() -> None:
    meter = Meter(1.0)
    running = [stream(50) for _ in range(20)]
    meter.close(2.0, running, 60.0)
    assert (meter.close(3.0, running, 60.0).itl_ms or 0.0) >= 1000.0


def test_a_stall_of_all_streams_leaves_the_usual_gap_as_it_was() -> None:
    meter = Meter(1.0)
    running = [stream(20), stream(20)]
    meter.close(2.0, running, 60.0)
    usual = meter.itl_s
    meter.close(3.0, running, 60.0)
    assert meter.itl_s == usual
    running[0].tokens += 1
    meter.close(4.0, running, 60.0)
    assert meter.itl_s > usual, "slow is another thing"


def test_gaps_are_of_streams_that_ran_all_the_time() -> None:
    """One that got its first token inside the window, or whose tokens nobody sees, says nothing."""
    running = [stream(1, first=1.9), stream(1, first=0.0), stream(1, steady=False)]
    assert Meter(1.0).close(2.0, running, 60.0).itl_ms is None


def test_the_delay_is_what_first_tokens_took_beyond_what_was_to_be_expected() -> None:
    meter = Meter(0.0)
    meter.itl_s, meter.prompt_rate = 0.01, 1000.0
    meter.on_first_token(ticket(dispatched=0.0, ahead=500.0), 0.52)
    assert meter.close(0.6, [], 60.0).delay_ms == pytest.approx(0.0, abs=1.0)
    meter.on_first_token(ticket(dispatched=1.0, ahead=500.0), 1.72)
    assert meter.close(1.8, [], 60.0).delay_ms == pytest.approx(200.0, abs=20.0)
    assert meter.close(2.0, [], 60.0).delay_ms is None


def test_after_a_cut_only_what_was_dispatched_since_says_anything_of_delays() -> None:
    meter = Meter(0.0)
    meter.itl_s, meter.prompt_rate = 0.01, 1000.0
    meter.believe_from(5.0)
    meter.on_first_token(ticket(dispatched=4.0, ahead=500.0), 6.0)
    assert meter.close(6.5, [], 60.0).delay_ms is None
    meter.on_first_token(ticket(dispatched=5.5, ahead=500.0), 7.0)
    assert (meter.close(7.5, [], 60.0).delay_ms or 0.0) > 100.0
