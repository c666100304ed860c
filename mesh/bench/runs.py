"""One system under one load, from a cold start to the figures."""

import contextlib
import gc
from collections.abc import Iterator, Sequence
from typing import Final

from mesh.bench.breakdown import breakdowns
from mesh.bench.capacity import Capacity
from mesh.bench.clients import drive
from mesh.bench.contenders import Contender, started
from mesh.bench.engines import Watched, watched
from mesh.bench.origin import Origin
from mesh.bench.scenarios import Scenario
from mesh.bench.score import Result, score
from mesh.bench.usage import MOST_LAG_MS, Usage, metered
from mesh.bench.workload import arrivals

_BUSY: Final = 0.9  # of a core: whoever uses more may be what limits


async def run(
    scenario: Scenario, contender: Contender, *, capacity: Capacity, pods: int, seed: int
) -> Result:
    """Start the system, ask what this seed asks, end it. Raises contenders.Broken."""
    pods = scenario.pods or pods
    traffic = scenario.traffic(capacity.requests_s * pods)
    asks = arrivals(traffic, scenario.duration_s, seed)
    async with started(contender, pods=pods, traffic=traffic, seed=seed) as running:
        with without_collector(), metered(running.pids) as usage:
            async with watched(running.engines) as engines:
                origins = await drive(
                    asks,
                    running.targets,
                    model=running.model,
                    extra_body=running.extra_body,
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
    return Result(
        scenario=scenario.name,
        contender=contender.name,
        seed=seed,
        score=figures,
        notes=doubts(usage, figures.lag_p99_ms),
        false_sheds=_false_sheds(engines, origins, scenario),
        extras={
            "cores": usage.cores,
            "loop_lag_p99_ms": usage.lag_p99_ms,
            "engine_means": {name: engines.mean(name, from_s, to_s) for name in ("running", "waiting", "kv")},
            "preemptions": engines.preempted(from_s, to_s),
            **breakdowns(origins, from_s, to_s),
        },
    )


def doubts(usage: Usage, asked_late_ms: float) -> list[str]:
    """Why the figures may be the machine's rather than the system's; callers began so late (p99)."""
    found = []
    if max(usage.lag_p99_ms, asked_late_ms) > MOST_LAG_MS:
        found.append(f"callers began {asked_late_ms:.0f} ms late, the loop {usage.lag_p99_ms:.0f} ms (p99)")
    busy = [f"{name} {used:.0%}" for name, used in usage.cores.items() if used > _BUSY]
    if busy:
        found.append(f"bound by CPU, of one core: {', '.join(busy)}")
    return found


def _false_sheds(engines: Watched, origins: Sequence[Origin], scenario: Scenario) -> float:
    from_s, to_s = scenario.window
    arrived = sum(from_s <= origin.ask.at < to_s for origin in origins)
    return engines.false_refusals(origins, from_s, to_s) / max(1, arrived)


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Leave the garbage alone: its collector would visit every origin, and the load would come late."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
