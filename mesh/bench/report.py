"""Scores as tables, JSON and files of pictures.

Tables are as wide as they need, in colour on a terminal alone: cut or wrapped cells would say something else.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Final

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mesh.bench.score import ClassScore, Result, Score

_WIDE: Final = 240  # columns
_DIGITS: Final = 6  # of a number in JSON
NOTHING: Final = "-"
ALL: Final = "all"


class NoPlots(Exception):
    """The library that draws is not installed."""

    def __init__(self) -> None:
        super().__init__("plots need matplotlib: pip install 'headgate[bench]'")


def percent(share: float | None) -> str:
    """A share for people; one that is not quite all or nothing never reads as if it were."""
    if share is None:
        return NOTHING
    for digits in (1, 2):
        text = f"{100 * share:.{digits}f}"
        if float(text) not in (0, 100) or share in (0, 1):
            break
    return f"{text.rstrip('0').rstrip('.')} %"


def number(value: float | None, digits: int = 2) -> str:
    return NOTHING if value is None else f"{value:,.{digits}f}"


def seconds(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.2f} s"


def milliseconds(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.{0 if value >= 10 else 1}f} ms"


_FIGURES: Final[Sequence[tuple[str, Callable[[ClassScore], str]]]] = (
    ("asked", lambda score: f"{score.origins}"),
    ("served", lambda score: percent(score.served)),
    ("shed", lambda score: percent(score.shed)),
    ("failed", lambda score: percent(score.failures)),
    ("within objective", lambda score: percent(score.attainment)),
    ("tries of each", lambda score: number(score.attempts)),
    ("first token p50", lambda score: seconds(score.ttft_s.p50)),
    ("  p90", lambda score: seconds(score.ttft_s.p90)),
    ("  p99", lambda score: seconds(score.ttft_s.p99)),
    ("between tokens p50", lambda score: milliseconds(score.itl_ms.p50)),
    ("  p90", lambda score: milliseconds(score.itl_ms.p90)),
    ("  p99", lambda score: milliseconds(score.itl_ms.p99)),
    ("whole answer p50", lambda score: seconds(score.latency_s.p50)),
    ("  p90", lambda score: seconds(score.latency_s.p90)),
    ("  p99", lambda score: seconds(score.latency_s.p99)),
    ("tokens/s", lambda score: number(score.throughput, 0)),
    ("  within objective", lambda score: number(score.goodput, 0)),
)


def by_class(score: Score) -> Table:
    """One run: a column for each class, and one for all."""
    columns = dict(score.classes)
    if len(columns) > 1:
        columns[ALL] = score.total
    found = table(["", *columns])
    for name, show in _FIGURES:
        found.add_row(name, *map(show, columns.values()))
    return found


def by_contender(results: Sequence[Result]) -> Table:
    """One scenario: a column for each run, with what matters most of each class."""
    found = table(["", *(_heading(result) for result in results)])
    for name, show in _OVERALL:
        found.add_row(name, *map(show, results))
    for cls in dict.fromkeys(cls for result in results for cls in result.score.classes):
        found.add_section()
        for name, show_class in _PER_CLASS:
            found.add_row(f"{cls} {name}", *(_of_class(result, cls, show_class) for result in results))
    return found


def _heading(result: Result) -> str:
    # In two lines, so that seven of them fit into a hundred columns.
    return result.contender.replace("-", "-\n", 1) + (" *" if result.notes else "")


_OVERALL: Final[Sequence[tuple[str, Callable[[Result], str]]]] = (
    ("goodput", lambda result: _goodput(result.score)),
    ("shed", lambda result: percent(result.score.total.shed)),
    ("shed beside room", lambda result: number(result.false_sheds)),
    ("wasted tokens", lambda result: f"{result.score.total.wasted_tokens:,}"),
    ("tries", lambda result: number(result.score.total.attempts)),
    ("invited and served", lambda result: percent(result.score.total.returned_served)),
    ("Jain", lambda result: number(result.score.jain)),
    ("recovery", lambda result: seconds(result.score.recovery_s)),
)
_PER_CLASS: Final[Sequence[tuple[str, Callable[[ClassScore], str]]]] = (
    ("within objective", lambda score: percent(score.attainment)),
    ("shed", lambda score: percent(score.shed)),
    ("failed", lambda score: percent(score.failures)),
    ("first token p50", lambda score: seconds(score.ttft_s.p50)),
    ("first token p99", lambda score: seconds(score.ttft_s.p99)),
)


def _goodput(score: Score) -> str:
    return f"{score.total.goodput:,.0f}/s" if score.goodput_share is None else percent(score.goodput_share)


def _of_class(result: Result, cls: str, show: Callable[[ClassScore], str]) -> str:
    score = result.score.classes.get(cls)
    return NOTHING if score is None or not score.origins else show(score)


def table(columns: Iterable[str]) -> Table:
    """The first column names, the others have figures."""
    first, *others = columns
    found = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    found.add_column(first, no_wrap=True)
    for name in others:
        found.add_column(name, justify="right")
    return found


def terminal(file: IO[str] | None = None, *, stderr: bool = False) -> Console:
    """Where tables go."""
    return Console(file=file, stderr=stderr, width=_WIDE, highlight=False, markup=False)


def progress() -> Progress:
    """A bar on a terminal's stderr, gone when all is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    return Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)


def bar() -> Progress:
    """Likewise, for runs that can be counted."""
    columns = (TextColumn("{task.description:<32}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    return Progress(*columns, TimeElapsedColumn(), console=terminal(stderr=True), transient=True)


def notes(results: Iterable[Result]) -> list[str]:
    """What the stars of the tables mean."""
    return [
        f"* {result.scenario}, {result.contender}: {note}" for result in results for note in result.notes
    ]


def to_json(about: Mapping[str, Any], results: Iterable[Result]) -> str:
    """All figures; `about` says what was asked for. Absent figures are null."""
    found = {"about": dict(about), "results": [_rounded(asdict(result)) for result in results]}
    return json.dumps(found, indent=1) + "\n"


def rounded(value: float) -> float:
    """To the digits that JSON shows."""
    return float(f"{value:.{_DIGITS}g}")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return rounded(value)
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value


def plotter() -> Callable[[Sequence[Result], Path], Path]:
    """What draws the runs of one scenario into a file; raises `NoPlots`, so ask before a long run."""
    try:
        from mesh.bench.plot import save  # matplotlib, an extra
    except ImportError:
        raise NoPlots from None
    return save


def save_plots(results: Sequence[Result], folder: Path) -> list[Path]:
    """One picture for each scenario; the files."""
    save = plotter()
    folder.mkdir(parents=True, exist_ok=True)
    scenarios = dict.fromkeys(result.scenario for result in results)
    return [
        save([result for result in results if result.scenario == scenario], folder / f"{scenario}.png")
        for scenario in scenarios
    ]
