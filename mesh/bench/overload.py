"""`headgate bench overload`: every system under every load, in one run on one machine.

Capacity is measured first; loads are multiples of it. Runs are interleaved by scenario, so that a machine
that gets slower meanwhile does so for all. Each run starts its system anew; all systems get the same asks.
"""

import asyncio
import contextlib
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

import typer
import uvloop
from rich.progress import Progress, TaskID

from mesh import exits
from mesh.bench import capacity, contenders, report, scenarios, triggers
from mesh.bench.capacity import Capacity
from mesh.bench.contenders import Broken, Contender
from mesh.bench.options import check_known
from mesh.bench.runs import run
from mesh.bench.scenarios import Scenario
from mesh.bench.score import Result
from mesh.local import machine

# Who is asked by default; the other when it is named, by a scenario or the command line.
USUAL: Final = tuple(name for name in contenders.ALL if name != "headgate-direct")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was asked for."""

    scenarios: Sequence[Scenario]
    contenders: Sequence[str]  # empty: those that each scenario names
    pods: int
    seeds: Sequence[int]
    tune_seeds: Sequence[int]  # which the constants were chosen on: not to be reported
    bisects: bool
    capacity: Capacity | None  # None: to be measured

    def runs(self) -> Iterator[tuple[Scenario, Contender, int]]:
        """In the order in which they run."""
        for scenario in self.scenarios:
            named = self.contenders or scenario.contenders or USUAL
            for seed in self.seeds:
                for name in named:
                    yield scenario, contenders.ALL[name], seed


@dataclass(slots=True)
class Outcome:
    """What is known at the end, or when it was ended."""

    capacity: Capacity
    results: list[Result]
    triggers: dict[str, float | None]  # longest burst that each contender recovered from, in seconds
    broken: list[str]  # runs that say nothing, and why
    is_whole: bool = False  # nobody pressed Ctrl-C


def command(
    scenario: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(scenarios.ALL)}; may be repeated.")
    ] = None,
    contender: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(contenders.ALL)}; may be repeated.")
    ] = None,
    pods: Annotated[int, typer.Option(min=1, max=16, help="How many engines.")] = 2,
    seed: Annotated[
        list[int] | None, typer.Option(help="Of arrivals and lengths; may be repeated. Default: 1.")
    ] = None,
    tune_seeds: Annotated[
        list[int] | None, typer.Option(help="Seeds that constants were chosen on, noted in the report.")
    ] = None,
    duration: Annotated[
        float | None, typer.Option(min=2, max=3600, help="Seconds of the judged window; else the scenario's.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every scenario, and how long a burst each survives; an hour.")
    ] = False,
    known: Annotated[
        float | None,
        typer.Option("--capacity", min=1, help="Tokens/s of one engine, from an earlier run; else measured."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="All figures; - for stdout.")
    ] = None,
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="A picture of each scenario.")] = None,
) -> None:
    """Compare ways to guard engines under loads beyond their capacity."""
    check_known("--scenario", scenario, scenarios.ALL)
    check_known("--contender", contender, contenders.ALL)
    names = scenario or (list(scenarios.ALL) if everything else list(scenarios.DEFAULT))
    plan = Plan(
        scenarios=[_lasting(scenarios.ALL[name], duration) for name in names],
        contenders=contender or (),
        pods=pods,
        seeds=seed or [1],
        tune_seeds=tune_seeds or [],
        bisects=everything and scenario is None,
        capacity=None if known is None else Capacity(known),
    )
    try:
        if plots is not None:
            report.plotter()
        machine.find_envoy()
        if pods > 1:
            machine.find_valkey()
        outcome = uvloop.run(_compare(plan))
    except (Broken, machine.MissingBinary, report.NoPlots) as error:
        typer.echo(f"headgate bench overload: {error}", err=True)
        raise typer.Exit(exits.FAILED) from None
    _publish(plan, outcome, json_file, plots)
    if outcome.broken or not outcome.is_whole:
        raise typer.Exit(exits.FAILED)


def _lasting(scenario: Scenario, duration_s: float | None) -> Scenario:
    """The scenario with a window of this length."""
    if duration_s is None:
        return scenario
    begins, _ = scenario.window
    return replace(scenario, window=(begins, begins + duration_s))


async def _compare(plan: Plan) -> Outcome:
    with report.bar() as bar:
        task = bar.add_task("capacity", total=len(list(plan.runs())) + 1)
        found = Outcome(plan.capacity or await capacity.measure(plan.pods), [], {}, [])
        # What was measured in half an hour is not thrown away by Ctrl-C.
        with contextlib.suppress(asyncio.CancelledError):
            await _run_all(plan, found, bar, task)
            found.is_whole = True
    return found


async def _run_all(plan: Plan, found: Outcome, bar: Progress, task: TaskID) -> None:
    for done, (scenario, contender, seed) in enumerate(plan.runs(), start=1):
        name = f"{scenario.name} · {contender.name}" + (f" · seed {seed}" if len(plan.seeds) > 1 else "")
        bar.update(task, completed=done, description=name)
        try:
            found.results.append(
                await run(scenario, contender, capacity=found.capacity, pods=plan.pods, seed=seed)
            )
        except Broken as error:
            found.broken.append(f"{name}: {error}")
    if plan.bisects:
        await _bisect(plan, found, bar, task)


async def _bisect(plan: Plan, found: Outcome, bar: Progress, task: TaskID) -> None:
    for name in plan.contenders or triggers.CONTENDERS:
        bar.update(task, description=f"longest burst · {name}")
        try:
            found.triggers[name] = await triggers.longest(
                contenders.ALL[name], capacity=found.capacity, pods=plan.pods, seed=plan.seeds[0]
            )
        except Broken as error:
            found.broken.append(f"longest burst · {name}: {error}")


def _publish(plan: Plan, outcome: Outcome, json_file: Path | None, plots: Path | None) -> None:
    text = report.to_json(_about(plan, outcome), outcome.results)
    if json_file is None:
        _print(plan, outcome)
    elif str(json_file) == "-":
        sys.stdout.write(text)
    else:
        json_file.write_text(text, "utf-8")
        _print(plan, outcome)
    if plots is not None:
        for file in report.save_plots(outcome.results, plots):
            typer.echo(f"{file}", err=True)


def _about(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    return {
        "capacity_tokens_s": outcome.capacity.tokens_s,
        "capacity_was_measured": plan.capacity is None,
        "capacity_requests_s": outcome.capacity.requests_s,
        "pods": plan.pods,
        "seeds": list(plan.seeds),
        "tune_seeds": list(plan.tune_seeds),
        "scenarios": {each.name: each.says for each in plan.scenarios},
        "contenders": {name: contenders.ALL[name].says for name in {r.contender for r in outcome.results}},
        "longest_burst_s": outcome.triggers,
        "broken": outcome.broken,
        "is_whole": outcome.is_whole,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def _print(plan: Plan, outcome: Outcome) -> None:
    terminal = report.terminal()
    whole = outcome.capacity.tokens_s * plan.pods
    seeds = ", ".join(map(str, plan.seeds))
    said = "" if plan.capacity is None else " as given"
    tuned = f"; constants chosen on {', '.join(map(str, plan.tune_seeds))}" if plan.tune_seeds else ""
    terminal.print(
        f"capacity {whole:,.0f} tokens/s, {outcome.capacity.requests_s * plan.pods:.1f} requests/s "
        f"from {plan.pods} engines{said}; seeds {seeds}{tuned}"
    )
    for scenario in plan.scenarios:
        results = [each for each in outcome.results if each.scenario == scenario.name]
        if results:
            terminal.print(f"\n{scenario.name}: {scenario.says}", style="bold")
            terminal.print(report.by_contender(results))
    for name, longest in outcome.triggers.items():
        terminal.print(f"longest burst that {name} recovered from: {triggers.words(longest)}")
    ended = [] if outcome.is_whole else ["ended before all had run"]
    for line in [*report.notes(outcome.results), *outcome.broken, *ended]:
        terminal.print(line)
