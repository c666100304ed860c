"""Which loads `headgate bench overload` puts on a system. Pure.

Rates are multiples of the capacity that was measured in the same run, as requests a second of the stock mix.
The loads go on until the end, which comes after the judged window, so that what is judged had its competition
to its own end. Tenants: each class is one, unless the scenario is about tenants.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import exp
from typing import Any, Final

from mesh.bench.workload import BATCH, PREMIUM, STANDARD, STOCK, Lengths, Traffic, stock

# An engine computes prompts before it answers, and needs this long until it gives as many tokens as it can.
_FILLING_S: Final = 10.0
_PATIENCE_OF_A_PULSE_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One load. Seconds count from its start."""

    name: str
    says: str
    traffic: Callable[[float], list[Traffic]]  # from the capacity in requests a second
    window: tuple[float, float]  # what is asked in it is judged
    changes_at_s: float | None = None  # from when on recovery counts
    contenders: tuple[str, ...] = ()  # whom it tells something; empty: the usual ones
    pods: int | None = None  # it is about this number of engines
    afterwards_s: float = 6.0  # from the window to the end: the median answer at full load

    @property
    def duration_s(self) -> float:
        return self.window[1] + self.afterwards_s


def _callers(cls: str, rate: float, *, tenant: str | None = None, **changes: Any) -> Traffic:
    name = tenant or cls
    return stock(cls, rate, tenant=name, key=f"key-of-{name}", **changes)


def _mix(rate: float, **changes: Any) -> list[Traffic]:
    return [_callers(cls, rate * usual.share, **changes) for cls, usual in STOCK.items()]


def _step(before: float, after: float, at_s: float) -> Callable[[float], list[Traffic]]:
    def profile(at: float) -> float:
        return before if at < at_s else after

    return lambda capacity: _mix(capacity, profile=profile)


def step(times: float) -> Scenario:
    """From 0.7x to `times` the capacity, at once and for good."""
    at = 8.0
    return Scenario(
        name=f"step-{times:g}x",
        says=f"0.7x, from {at:g} s on {times:g}x the capacity",
        traffic=_step(0.7, times, at),
        window=(at + _FILLING_S, at + _FILLING_S + 18),
        changes_at_s=at,
    )


def spike(trigger_s: float = 10.0) -> Scenario:
    """A burst that ends, whose repeats may not: is the system as before after it?"""
    begins, base, peak, retries = 5.0, 0.9, 5.0, 5
    ends = begins + trigger_s

    def profile(at: float) -> float:
        return peak if begins <= at < ends else base

    return Scenario(
        name="spike",
        says=f"{base:g}x, for {trigger_s:g} s {peak:g}x; callers repeat {retries} times; judged afterwards",
        traffic=lambda capacity: _mix(capacity, profile=profile, retries=retries),
        window=(ends + 5, ends + 18),
        changes_at_s=ends,
    )


def noisy(times: int, others: float) -> Scenario:
    """Five tenants of one class; one asks `times` as much as each of the others, who ask `others`."""

    def traffic(capacity: float) -> list[Traffic]:
        quiet = [_callers(STANDARD, others * capacity, tenant=f"quiet-{n}") for n in range(1, 5)]
        return [_callers(STANDARD, times * others * capacity, tenant="noisy"), *quiet]

    return Scenario(
        name=f"noisy-{times}",
        says=f"one tenant asks {times * others:g}x the capacity, four others {others:g}x each",
        traffic=traffic,
        window=(_FILLING_S + 2, _FILLING_S + 16),
    )


def _cold_start() -> Scenario:
    return Scenario(
        name="cold-start",
        says="3x from the first second on: nothing was learnt yet",
        traffic=_step(3, 3, 0),
        window=(0, 20),
        changes_at_s=0,
    )


def _inversion() -> Scenario:
    at = 15.0

    def traffic(capacity: float) -> list[Traffic]:
        # A longer prompt is a larger part of the cache, for longer.
        batch = _callers(BATCH, capacity, prompt=Lengths(2000, 0.5, 8000))
        return [batch, _callers(PREMIUM, 0.8 * capacity, starts_s=at)]

    return Scenario(
        name="inversion",
        says=f"batch fills the cache for {at:g} s, then premium asks 0.8x",
        traffic=traffic,
        window=(at, at + 12),
        changes_at_s=at,
    )


def _heavy_tail() -> Scenario:
    def traffic(capacity: float) -> list[Traffic]:
        # Beside the stock mix at 1.5x, one in a hundred asks for what takes as long as twenty others.
        long_prompt = Lengths(24_000, 0.0, 24_000)
        rare = 0.0075 * capacity
        return [
            *_mix(1.5 * capacity),
            _callers(BATCH, rare, tenant="long-prompts", prompt=long_prompt, answer=100),
            _callers(BATCH, rare, tenant="long-answers", answer=8000),
        ]

    return Scenario(
        name="heavy-tail",
        says="1.5x; 1 in 100 has a prompt of 24,000 tokens or an answer of 8,000",
        traffic=traffic,
        window=(_FILLING_S + 2, _FILLING_S + 22),
    )


def _pulse() -> Scenario:
    begins, peak, lasts = 5.0, 15.0, 120.0

    def profile(at: float) -> float:
        # Down to the base of 0.7 when it ends.
        since = at - begins
        return 0.7 if since < 0 or since >= lasts else 0.7 + (peak - 0.7) * exp(-4 * since / lasts)

    return Scenario(
        name="pulse",
        says=f"0.7x, then {peak:g}x that decays for {lasts:g} s; callers leave after 5 s",
        traffic=lambda capacity: _mix(capacity, profile=profile, patience_s=_PATIENCE_OF_A_PULSE_S),
        window=(begins + 2, begins + lasts + 20),
        changes_at_s=begins + lasts,
        contenders=("headgate", "headgate-off", "envoy-adaptive", "engine-64"),
    )


def _low() -> Scenario:
    return Scenario(
        name="low",
        says="0.8x: nothing may be refused, nobody may wait longer than without us",
        traffic=_step(0.8, 0.8, 0),
        window=(_FILLING_S + 2, _FILLING_S + 27),
        contenders=("headgate", "headgate-off"),
    )


def _entry_points() -> Scenario:
    return replace(
        step(3),
        name="entry-points",
        says="as step-3x with three engines; callers use Envoy alone, or Envoy and each sidecar",
        contenders=("headgate", "headgate-direct"),
        pods=3,
    )


ALL: Final = {
    each.name: each
    for each in (
        step(3),
        spike(),
        noisy(6, 0.3),
        step(10),
        _cold_start(),
        _inversion(),
        noisy(100, 0.1),
        _heavy_tail(),
        _pulse(),
        _low(),
        _entry_points(),
    )
}
DEFAULT: Final = ("step-3x", "spike", "noisy-6")
