"""One trial of one system, from its start to what its bounds say."""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Final

from mesh.bench.clients import drive
from mesh.bench.contenders import Broken, Contender, Running, started
from mesh.bench.faults import breaks, judge, systems
from mesh.bench.faults.evidence import Evidence
from mesh.bench.faults.trials import ENDING_S, HEALTHY_S, Bound, Trial
from mesh.bench.faults.watch import watching
from mesh.bench.runs import doubts, without_collector
from mesh.bench.score import score
from mesh.bench.usage import Usage, metered
from mesh.bench.workload import arrivals

_MOST_OF_MACHINE: Final = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A bound, and what was found."""

    bound: str
    unit: str
    most: float | None
    least: float | None
    figure: float | None  # None: nobody can say
    met: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One trial of one system."""

    trial: str
    contender: str
    seed: int
    verdicts: tuple[Verdict, ...]
    asked: int
    fates: dict[str, int]
    reasons: dict[str, int]  # why callers failed or were refused
    machine: float  # share of all its cores' time that was used, whoever used it
    own: float  # likewise, by this run
    cores: dict[str, float]
    notes: list[str]


async def run(trial: Trial, contender: Contender, *, pods: int, seed: int) -> Result:
    """Raises contenders.Broken."""
    healthy = None
    if trial.is_compared:
        healthy, _, _ = await _observe(replace(trial, breaks=()), contender, pods, seed)
    evidence, usage, notes = await _observe(trial, contender, pods, seed)
    evidence = replace(evidence, healthy=healthy)
    figures = score(evidence.origins, capacity=None, from_s=evidence.from_s, to_s=evidence.to_s)
    concerned = judge.concerned(evidence)
    fates = [judge.fate(each, evidence) for each in concerned]
    if usage.machine > _MOST_OF_MACHINE:
        notes.append(f"{usage.machine:.0%} of the machine was used: figures may be its, not the system's")
    return Result(
        trial=trial.name,
        contender=contender.name,
        seed=seed,
        verdicts=tuple(verdicts(trial.bounds, evidence)),
        asked=len(evidence.asked(evidence.from_s, evidence.to_s)),
        fates={fate: fates.count(fate) for fate in dict.fromkeys(fates)},
        reasons=figures.reasons,
        machine=usage.machine,
        own=sum(usage.cores.values()) / (os.cpu_count() or 1),
        cores=usage.cores,
        notes=[*notes, *doubts(usage, figures.lag_p99_ms)],
    )


def verdicts(bounds: tuple[Bound, ...], evidence: Evidence) -> Iterator[Verdict]:
    """What each bound says of this run."""
    for bound in bounds:
        figure = bound.figure(evidence)
        most = bound.most(evidence) if callable(bound.most) else bound.most
        met = figure is not None and (most is None or figure <= most)
        met = met and (bound.least is None or (figure is not None and figure >= bound.least))
        yield Verdict(
            bound=bound.says,
            unit=bound.unit,
            most=most,
            least=bound.least,
            figure=figure,
            met=None if figure is None else met,
        )


async def _observe(
    trial: Trial, contender: Contender, pods: int, seed: int
) -> tuple[Evidence, Usage, list[str]]:
    if systems.has_sidecars(contender):
        contender = replace(contender, admission=trial.admission)
    traffic = trial.traffic(pods)
    to_s = HEALTHY_S + trial.lasts_s
    asks = arrivals(traffic, to_s, seed)
    at_gateway = trial.counts_at == "gateway" or not systems.has_sidecars(contender)
    async with started(
        contender, pods=pods, traffic=traffic, engine=trial.engine, seed=seed, faults=trial.has_faults
    ) as running:
        with without_collector(), metered(running.pids) as usage:
            async with watching(running, trial.victims(pods), at_gateway=at_gateway) as seen:
                breaking = asyncio.ensure_future(_break(trial, running, pods))
                try:
                    origins = await drive(
                        asks,
                        running.targets,
                        model=running.model,
                        extra_body=running.extra_body,
                        until_s=to_s + ENDING_S,
                    )
                    from_s, notes = _broken_at(breaking, contender)
                finally:
                    breaking.cancel()
        running.check()
    evidence = Evidence(
        origins=origins,
        seen=seen(),
        victims=trial.victims(pods),
        from_s=from_s,
        to_s=to_s,
        over_s=to_s + ENDING_S,
        cap=systems.cap(contender, pods),
        seats=trial.seats,
    )
    return evidence, usage, notes


async def _break(trial: Trial, running: Running, pods: int) -> float:
    """Break all; when, in seconds after now, the last of them was begun."""
    began = perf_counter()
    at = HEALTHY_S
    for each in sorted(trial.breaks, key=lambda each: -each.before_s):
        await asyncio.sleep(HEALTHY_S - each.before_s - (perf_counter() - began))
        at = perf_counter() - began
        await breaks.apply(each, running, trial.victims(pods))
    return at


def _broken_at(breaking: "asyncio.Future[float]", contender: Contender) -> tuple[float, list[str]]:
    if not breaking.done():
        return HEALTHY_S, ["not all was broken when the run ended"]
    try:
        return breaking.result(), []
    except (OSError, TimeoutError) as error:
        raise Broken(f"{contender.name}: {error or 'a process did not come back'}") from None
