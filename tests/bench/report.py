"""Figures, their budgets, and the tables that say both.

Every figure is the median over rounds, with the least and the most of them. Proxies take turns within a
round, and a ratio is the median of the rounds' own ratios: what slows the machine for a while slows both.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

SUBJECT: Final = "sidecar"  # whose budgets these are


@dataclass(frozen=True, slots=True)
class Budget:
    """What the sidecar's figure may be: at most `most`, or `most` times that of the proxy `of`."""

    most: float
    of: str = ""
    aim: float | None = None

    def __str__(self) -> str:
        times = f"x {self.of}" if self.of else ""
        aim = f" (aim {self.aim:g})" if self.aim is not None else ""
        return f"≤ {self.most:g}{times}{aim}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that was measured: `values` has, for each proxy, a value of each round."""

    what: str
    unit: str
    values: Mapping[str, Sequence[float]]
    budget: Budget | None = None

    def ratios(self, of: str) -> list[float]:
        """The sidecar's value as a multiple of another's, round by round; empty if that was not measured."""
        ours, theirs = self.values.get(SUBJECT, ()), self.values.get(of, ())
        if len(ours) != len(theirs):
            return []
        return [a / b for a, b in zip(ours, theirs, strict=True) if b > 0]

    @property
    def judged(self) -> list[float]:
        """What the budget is about."""
        if self.budget is None:
            return []
        return self.ratios(self.budget.of) if self.budget.of else list(self.values.get(SUBJECT, ()))

    @property
    def is_met(self) -> bool | None:
        """None: there is no budget, or nothing to hold against it."""
        if self.budget is None or not self.judged:
            return None
        return median(self.judged) <= self.budget.most

    def as_json(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "unit": self.unit,
            "values": {name: list(values) for name, values in self.values.items()},
            "budget": str(self.budget) if self.budget else None,
            "judged": self.judged,
            "met": self.is_met,
        }


def number(value: float) -> str:
    """Three digits that mean something."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}"


def spread(values: Sequence[float]) -> str:
    """Median (least - most)."""
    if not values:
        return ""
    if len(values) == 1:
        return number(values[0])
    return f"{number(median(values))} ({number(min(values))} – {number(max(values))})"  # noqa: RUF001


def table(figures: Sequence[Figure], baseline: str) -> str:
    """Markdown, aligned so that it reads as it stands. What nobody could say has no row."""
    figures = [figure for figure in figures if any(figure.values.values())]
    names = list(dict.fromkeys(name for figure in figures for name in figure.values))
    compared = SUBJECT in names and baseline in names
    judged = any(figure.budget for figure in figures)
    head = ["", "unit", *names]
    head += [f"{SUBJECT} ÷ {baseline}"] * compared + ["budget", "met"] * judged
    rows = [head]
    for figure in figures:
        row = [figure.what, figure.unit, *(spread(figure.values.get(name, ())) for name in names)]
        row += [spread(figure.ratios(baseline))] * compared
        if judged:
            met = {None: "", True: "yes", False: "**no**"}[figure.is_met]
            row += [str(figure.budget or ""), met]
        rows.append(row)
    return _aligned(rows)


def machine_table(machine: Mapping[str, str]) -> str:
    return _aligned([["", ""], *([name, value] for name, value in machine.items())])


def _aligned(rows: Iterable[Sequence[str]]) -> str:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    )
