"""Pictures of scores: what was asked and served, second by second, one column for each run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mesh.bench.score import Result, Score

_COLOURS: Final = {"premium": "#1b6ca8", "standard": "#e08e0b", "batch": "#7a7a7a"}
_OTHERS: Final = "#8e44ad"
_WIDTH: Final = 4.2  # inches, of a column
_HEIGHT: Final = 6.0
_SMOOTH_S: Final = 3  # attainment of so many seconds together: few arrive in one


def save(results: Sequence[Result], file: Path) -> Path:
    """Draw runs of one scenario side by side into `file`."""
    figure = Figure(figsize=(_WIDTH * len(results), _HEIGHT), layout="constrained")
    axes = figure.subplots(2, len(results), sharex="col", sharey="row", squeeze=False)
    for column, result in enumerate(results):
        _draw_tokens(axes[0, column], result.score)
        _draw_attainment(axes[1, column], result.score)
        axes[0, column].set_title(result.contender)
        axes[1, column].set_xlabel("seconds")
    axes[0, 0].set_ylabel("tokens/s within the objective")
    axes[1, 0].set_ylabel("attainment of those who arrive")
    axes[0, 0].legend(loc="upper left", fontsize="small")
    figure.suptitle(results[0].scenario)
    figure.savefig(file, dpi=120)
    return file


def _draw_tokens(axes: Axes, score: Score) -> None:
    series = score.series
    seconds = range(len(series.tokens))
    axes.stackplot(
        seconds,
        *series.good_tokens.values(),
        labels=[*series.good_tokens],
        colors=[_COLOURS.get(cls, _OTHERS) for cls in series.good_tokens],
    )
    axes.plot(seconds, series.tokens, color="black", linewidth=0.8, label="all tokens")
    if score.capacity is not None:
        axes.axhline(score.capacity, color="black", linestyle="dashed", linewidth=0.8, label="capacity")
    axes.set_ylim(bottom=0)


def _draw_attainment(axes: Axes, score: Score) -> None:
    for cls, asked in score.series.origins.items():
        attained = score.series.attained[cls]
        axes.plot(range(len(asked)), smooth(attained, asked), color=_COLOURS.get(cls, _OTHERS), label=cls)
    axes.axvspan(score.from_s, score.to_s, color="black", alpha=0.05, linewidth=0)
    axes.set_ylim(-0.02, 1.02)


def smooth(counts: Sequence[int], of: Sequence[int]) -> list[float]:
    """The share over the last `_SMOOTH_S` seconds; not a number where nobody asked."""
    shares = []
    for second in range(len(of)):
        window = slice(max(0, second - _SMOOTH_S + 1), second + 1)
        asked = sum(of[window])
        shares.append(sum(counts[window]) / asked if asked else float("nan"))
    return shares
