"""Slow engines among simulated ones: no healthy one is taken for slow, and a slow one is found soon.

The engines are the fake engine's schedulers; each has the eyes its sidecar would have. Prompts and answers
are long-tailed (lognormal, 800 and 200 tokens in the middle, up to 8,000 and 2,000), arrivals are Poisson's;
one engine carries about 9 requests a second.
"""

import heapq
from dataclasses import dataclass
from itertools import count
from math import log
from random import Random

import pytest

from model_pod.fake_scheduler import Costs, Scheduler, Sequence, Step
from sidecar.balance.gray import Pace, Pacer, Slow, Slowness

ENGINES = 8
SLOW_ENGINE = 3
USUAL = Costs()


@dataclass
class Request:
    sent: float
    ahead: int
    last: float = 0.0  # token


class Engine:
    def __init__(self, costs: Costs) -> None:
        self.scheduler = Scheduler(costs, max_running=256)
        self.pacer = Pacer()
        self.in_flight = self.awaited = 0
        self.running_s = 0.0
        self.is_busy = False

    def add(self, prompt: int, answer: int, now: float) -> None:
        waiting = self.scheduler.waiting + self.scheduler.running
        ahead = prompt + sum(sequence.to_prefill for sequence in waiting)
        self.scheduler.add(Sequence(prompt, answer, owner=Request(now, ahead)))
        self.in_flight += 1
        self._await(1, now)

    def on_step(self, step: Step, seconds: float, now: float) -> None:
        self.running_s += seconds * len(self.scheduler.running)
        for sequence in step.emitted:
            request: Request = sequence.owner
            if request.last:
                self.pacer.on_gap(now - request.last, 1, now)
            else:
                self.pacer.on_start(now - request.sent, request.ahead)
                self._await(-1, now)
            request.last = now
            self.in_flight -= sequence.done

    def close(self) -> Pace:
        running, self.running_s = self.running_s, 0.0
        return self.pacer.close(running)

    def _await(self, more: int, now: float) -> None:
        self.awaited += more
        self.pacer.on_awaited(self.awaited, now)


@dataclass(frozen=True, kw_only=True)
class Load:
    """`policy`: turn, least, random (by `weights`). From `slow_at` on one engine is `slow` times slower."""

    seed: int
    rate: float
    seconds: float
    policy: str = "turn"
    weights: tuple[int, ...] = (1,) * ENGINES
    costs: Costs = USUAL
    slow: float = 1.0
    slow_at: float = 0.0


class Mesh:
    def __init__(self, load: Load) -> None:
        self.load = load
        self.engines = [Engine(load.costs) for _ in range(ENGINES)]
        self.judges = [Slowness(str(number), Slow()) for number in range(ENGINES)]
        self.found: list[tuple[int, int]] = []  # second, engine
        self._random = Random(load.seed)
        self._turns = count()
        self._steps: list[tuple[float, int, float, Step]] = []  # when each ends

    def run(self) -> list[tuple[int, int]]:
        random, load = self._random, self.load
        arrival, window = random.expovariate(load.rate), 1
        while window <= load.seconds:
            step_ends = self._steps[0][0] if self._steps else float("inf")
            now = min(step_ends, arrival, float(window))
            if now == window:
                self._judge(window)
                window += 1
            elif now == arrival:
                self._arrive(now)
                arrival = now + random.expovariate(load.rate)
            else:
                _, number, seconds, step = heapq.heappop(self._steps)
                self.engines[number].on_step(step, seconds, now)
                self._start(number, now)
        return self.found

    def _arrive(self, now: float) -> None:
        random = self._random
        prompt = max(1, min(8000, int(random.lognormvariate(log(800), 1.0))))
        answer = max(1, min(2000, int(random.lognormvariate(log(200), 0.8))))
        number = self._pick()
        self.engines[number].add(prompt, answer, now)
        if not self.engines[number].is_busy:
            self._start(number, now)

    def _pick(self) -> int:
        if self.load.policy == "turn":
            return next(self._turns) % ENGINES
        if self.load.policy == "random":
            return self._random.choices(range(ENGINES), self.load.weights)[0]
        least = min(engine.in_flight for engine in self.engines)
        return self._random.choice(
            [number for number, engine in enumerate(self.engines) if engine.in_flight == least]
        )

    def _start(self, number: int, now: float) -> None:
        engine, load = self.engines[number], self.load
        step = engine.scheduler.step()
        engine.is_busy = step is not None
        if step is not None:
            is_slow = number == SLOW_ENGINE and now >= load.slow_at
            seconds = step.seconds * (load.slow if is_slow else 1.0)
            heapq.heappush(self._steps, (now + seconds, number, seconds, step))

    def _judge(self, window: int) -> None:
        paces = [engine.close() for engine in self.engines]
        for number, judge in enumerate(self.judges):
            if judge.on_window(paces[number], paces[:number] + paces[number + 1 :]):
                self.found.append((window, number))


@pytest.mark.parametrize("policy", ["turn", "random", "least"])
def test_healthy_engines_are_not_slow(policy: str) -> None:
    """At 60 % of what they carry."""
    assert Mesh(Load(seed=1, rate=44.0, seconds=30.0, policy=policy)).run() == []


def test_the_busiest_engine_is_not_slow() -> None:
    """Three times its peers' load, on engines whose steps grow much with the batch."""
    costs = Costs(sequence_ms=0.3)
    weights = (3,) + (1,) * (ENGINES - 1)
    load = Load(seed=1, rate=15.0, seconds=40.0, policy="random", weights=weights, costs=costs)
    assert Mesh(load).run() == []


@pytest.mark.parametrize("policy", ["turn", "random", "least"])
@pytest.mark.parametrize("rate", [20.0, 44.0])
def test_a_slow_engine_is_found_within_five_seconds(policy: str, rate: float) -> None:
    load = Load(seed=1, rate=rate, seconds=15.0, policy=policy, slow=3.0, slow_at=10.0)
    assert [number for _, number in Mesh(load).run()] == [SLOW_ENGINE]


def test_when_all_are_slow_none_is() -> None:
    costs = Costs(step_ms=24.0, prefill_token_ms=0.15)
    assert Mesh(Load(seed=1, rate=10.0, seconds=20.0, costs=costs)).run() == []
