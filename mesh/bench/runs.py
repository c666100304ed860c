"""One system under one load, from a cold start to the figures."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mesh.bench.capacity import Capacity
from mesh.bench.clients import drive
from mesh.bench.contenders import Contender, started
from mesh.bench.scenarios import Scenario
from mesh.bench.score import Score, score
from mesh.bench.usage import Usage, metered
from mesh.bench.workload import arrivals


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What came of it."""

    scenario: Scenario
    contender: Contender
    seed: int
    score: Score
    usage: Usage


async def run(
    scenario: Scenario,
    contender: Contender,
    *,
    capacity: Capacity,
    pods: int,
    seed: int,
    progress: Callable[[float], None] | None = None,
) -> Run:
    """Start the system, ask what this seed asks, end it. Raises contenders.Broken."""
    traffic = scenario.traffic(capacity.requests_s * pods)
    asks = arrivals(traffic, scenario.duration_s, seed)
    async with started(contender, pods=pods, traffic=traffic, seed=seed) as running:
        with _without_collector(), metered(running.pids) as usage:
            origins = await drive(
                asks,
                running.targets,
                model=running.model,
                extra_body=running.extra_body,
                progress=progress,
                until_s=scenario.duration_s,
            )
        running.check()
    from_s, to_s = scenario.window
    figures = score(
        origins,
        capacity=capacity.tokens_s * pods,
        from_s=from_s,
        to_s=to_s,
        trouble_ends_s=scenario.changes_at_s,
    )
    return Run(scenario=scenario, contender=contender, seed=seed, score=figures, usage=usage)


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """The collector would visit every origin, and the load would come late."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
