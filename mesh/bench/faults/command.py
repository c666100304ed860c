"""`headgate bench faults`: every system in every trial, in one run on one machine.

Runs are interleaved by trial; each starts its system anew, and all systems get the same asks. Callers ask
once, so that what a mesh cannot hide is seen. Bounds are reported, met or not.
"""

import asyncio
import contextlib
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isinf
from pathlib import Path
from typing import Annotated, Any, Final

import typer
import uvloop
from rich.progress import Progress, TaskID
from rich.table import Table

from mesh import exits
from mesh.bench import report
from mesh.bench.contenders import Broken, Contender
from mesh.bench.faults import systems, trials
from mesh.bench.faults.run import Result, Verdict, run
from mesh.bench.faults.trials import Break, Trial
from mesh.bench.options import check_known
from mesh.local import machine

_NO_REDIS: Final = Break(act="stop", part="valkey", before_s=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was asked for."""

    trials: Sequence[Trial]
    contenders: Sequence[Contender]
    pods: int
    seeds: Sequence[int]

    def runs(self) -> Iterator[tuple[Trial, Contender, int]]:
        """In the order in which they run."""
        for trial in self.trials:
            for seed in self.seeds:
                for contender in self.contenders:
                    if systems.has_sidecars(contender) or not trial.needs_sidecars:
                        yield trial, contender, seed


@dataclass(slots=True)
class Outcome:
    """What is known at the end, or when it was ended."""

    results: list[Result] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # runs that say nothing, and why
    is_whole: bool = False  # nobody pressed Ctrl-C


def command(
    only: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(trials.ALL)}; may be repeated.")
    ] = None,
    contender: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(systems.ALL)}; may be repeated.")
    ] = None,
    pods: Annotated[int, typer.Option(min=2, max=16, help="How many engines.")] = 8,
    seconds: Annotated[
        float | None, typer.Option(min=1, max=3600, help="How long a fault lasts; else as the trial has it.")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Of arrivals and lengths; may be repeated. Default: 1.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every trial, also ten minutes in which nothing is broken.")
    ] = False,
    without_redis: Annotated[
        bool, typer.Option("--without-redis", help="Redis hangs from 3 s before anything else breaks.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="All figures; - for stdout.")
    ] = None,
) -> None:
    """Break one thing after the other, and see what callers lose."""
    check_known("--only", only, trials.ALL)
    check_known("--contender", contender, systems.ALL)
    names = only or (list(trials.ALL) if everything else list(trials.DEFAULT))
    plan = Plan(
        trials=[_as_asked(trials.ALL[name], seconds, without_redis=without_redis) for name in names],
        contenders=[systems.ALL[name] for name in contender or systems.DEFAULT],
        pods=pods,
        seeds=seed or [1],
    )
    try:
        machine.find_envoy()
        machine.find_valkey()
        outcome = uvloop.run(_compare(plan))
    except machine.MissingBinary as error:
        typer.echo(f"headgate bench faults: {error}", err=True)
        raise typer.Exit(exits.FAILED) from None
    _publish(plan, outcome, json_file)
    if outcome.broken or not outcome.is_whole:
        raise typer.Exit(exits.FAILED)


def _as_asked(trial: Trial, seconds: float | None, *, without_redis: bool) -> Trial:
    if without_redis and _NO_REDIS not in trial.breaks:
        trial = replace(trial, breaks=(_NO_REDIS, *trial.breaks), says=f"{trial.says}; Redis hangs")
    return trial if seconds is None else replace(trial, lasts_s=seconds)


async def _compare(plan: Plan) -> Outcome:
    found = Outcome()
    with report.bar() as progress:
        task = progress.add_task("", total=len(list(plan.runs())))
        # What was measured in half an hour is not thrown away by Ctrl-C.
        with contextlib.suppress(asyncio.CancelledError):
            await _run_all(plan, found, progress, task)
            found.is_whole = True
    return found


async def _run_all(plan: Plan, found: Outcome, progress: Progress, task: TaskID) -> None:
    for done, (trial, contender, seed) in enumerate(plan.runs()):
        name = f"{trial.name} · {contender.name}" + (f" · seed {seed}" if len(plan.seeds) > 1 else "")
        progress.update(task, completed=done, description=name)
        try:
            found.results.append(await run(trial, contender, pods=plan.pods, seed=seed))
        except Broken as error:
            found.broken.append(f"{name}: {error}")


def _publish(plan: Plan, outcome: Outcome, json_file: Path | None) -> None:
    text = to_json(plan, outcome)
    if json_file is None:
        _print(plan, outcome)
    elif str(json_file) == "-":
        sys.stdout.write(text)
    else:
        json_file.write_text(text, "utf-8")
        _print(plan, outcome)


def to_json(plan: Plan, outcome: Outcome) -> str:
    """All figures; what never happened is the word."""
    about = {
        "pods": plan.pods,
        "load": trials.LOAD,
        "seeds": list(plan.seeds),
        "trials": {each.name: each.says for each in plan.trials},
        "contenders": {each.name: each.says for each in plan.contenders},
        "broken": outcome.broken,
        "is_whole": outcome.is_whole,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    found = {"about": about, "results": [_plain(asdict(result)) for result in outcome.results]}
    return json.dumps(found, indent=1) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return "never" if isinf(value) else report.rounded(value)
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _print(plan: Plan, outcome: Outcome) -> None:
    terminal = report.terminal()
    terminal.print(
        f"{plan.pods} pods; callers ask once, by default for {trials.LOAD:.0%} of what these can do; "
        f"seeds {', '.join(map(str, plan.seeds))}"
    )
    for trial in plan.trials:
        results = [each for each in outcome.results if each.trial == trial.name]
        if results:
            rate = sum(each.rate for each in trial.traffic(plan.pods))
            terminal.print(f"\n{trial.name}: {trial.says}; {rate:.0f} requests/s", style="bold")
            terminal.print(by_system(results))
    ended = [] if outcome.is_whole else ["ended before all had run"]
    why = [_reasons(each) for each in outcome.results if each.reasons]
    notes = [f"* {each.trial}, {each.contender}: {note}" for each in outcome.results for note in each.notes]
    for line in [*why, *notes, *outcome.broken, *ended]:
        terminal.print(line)


def _reasons(result: Result) -> str:
    counts = ", ".join(f"{count} {why}" for why, count in result.reasons.items())
    return f"{result.trial}, {result.contender}, tries that failed: {counts}"


def by_system(results: Sequence[Result]) -> Table:
    """One trial: two columns for each run, and a row for each bound."""
    names = [each.contender + (" *" if each.notes else "") for each in results]
    found = report.table(["", "bound", *(word for name in names for word in (name, "met"))])
    for verdicts in zip(*(each.verdicts for each in results), strict=True):
        cells = [word for each in verdicts for word in (_figure(each, each.figure), _met(each))]
        found.add_row(verdicts[0].bound, _limit(verdicts), *cells)
    found.add_section()
    found.add_row("asked since", "", *_pairs(f"{each.asked}" for each in results))
    for fate in ("served", "refused", "failed", "broken"):
        found.add_row(fate, "", *_pairs(f"{each.fates.get(fate, 0)}" for each in results))
    found.add_row("machine used", "", *_pairs(f"{each.machine:.0%}" for each in results))
    found.add_row("  by this run", "", *_pairs(f"{each.own:.0%}" for each in results))
    return found


def _pairs(words: Iterator[str]) -> Iterator[str]:
    return (word for each in words for word in (each, ""))


def _limit(verdicts: Sequence[Verdict]) -> str:
    words = dict.fromkeys(
        f"≥ {_figure(each, each.least)}" if each.most is None else f"≤ {_figure(each, each.most)}"
        for each in verdicts
    )
    return ", ".join(words)


def _figure(verdict: Verdict, value: float | None) -> str:
    if value is None:
        return report.NOTHING
    if isinf(value):
        return "never"
    match verdict.unit:
        case "s":
            return report.seconds(value)
        case "%":
            return report.percent(value)
        case "x":
            return f"{value:.2f}x"
        case _:
            return f"{value:g}"


def _met(verdict: Verdict) -> str:
    return report.NOTHING if verdict.met is None else "yes" if verdict.met else "NO"
