"""The benchmark runs, and judges by its budgets as it says. What it measures is no test's business."""

import json
import sys
from pathlib import Path

import pytest

from tests.bench.report import Budget, Figure, number, table
from tests.harness.processes import envoy_binary, running

pytestmark = pytest.mark.integration

BENCH = (sys.executable, "-m", "tests.bench")


def test_a_quick_run_measures_the_sidecar_beside_envoy_that_does_the_same(tmp_path: Path) -> None:
    envoy_binary()
    results, tables = tmp_path / "results.json", tmp_path / "results.md"
    options = ["--quick", "--only", "python,requests,prompts", "--proxies", "sidecar,envoy+"]
    files = ["--json", str(results), "--markdown", str(tables)]
    with running([*BENCH, *options, *files]) as bench:
        assert bench.process.wait(120) == 0, bench.text()

    said = json.loads(results.read_text())
    assert said["machine"].keys() >= {"processor", "kernel", "python", "envoy", "commit", "run"}
    assert list(said["items"]) == ["python", "requests", "prompts"]
    figures = {figure["what"]: figure for figure in said["items"]["requests"]}
    busy = figures["32 connections"]
    assert busy["unit"] == "µs"
    assert busy["budget"] == "≤ 0.8x envoy+ (aim 0.6)"
    assert busy["met"] in (True, False)
    assert {name: len(values) for name, values in busy["values"].items()} == {"sidecar": 1, "envoy+": 1}
    assert all(value > 0 for values in busy["values"].values() for value in values)
    assert tables.read_text().count("\n### ") == 3


def test_an_item_that_there_is_not_is_named() -> None:
    with running([*BENCH, "--only", "requests,speed"]) as bench:
        assert bench.process.wait(60) == 2, bench.text()
        assert "speed: not one of python, requests" in bench.text()


def test_a_ratio_is_taken_within_each_round() -> None:
    half = Budget(0.5, "envoy+")
    slow_second_round = Figure("x", "µs", {"sidecar": [2, 20, 3], "envoy+": [4, 40, 4]}, half)
    assert slow_second_round.judged == [0.5, 0.5, 0.75]
    assert slow_second_round.is_met is True
    assert Figure("x", "µs", {"sidecar": [2, 3, 3], "envoy+": [4, 4, 4]}, half).is_met is False


def test_a_budget_of_its_own_is_held_against_the_median() -> None:
    assert Figure("x", "MB", {"sidecar": [59, 90, 60]}, Budget(60)).is_met is True
    assert Figure("x", "MB", {"sidecar": [59, 90, 61]}, Budget(60)).is_met is False


@pytest.mark.parametrize(
    "values", [{"sidecar": [1.0]}, {"sidecar": [1.0, 2.0], "envoy+": [1.0]}, {"envoy+": [1.0]}]
)
def test_without_the_other_side_nothing_is_judged(values: dict[str, list[float]]) -> None:
    assert Figure("x", "µs", values, Budget(1, "envoy+")).is_met is None


def test_a_table_says_median_spread_ratio_and_verdict() -> None:
    figures = [
        Figure("a", "µs", {"sidecar": [9, 8, 10], "envoy+": [10, 10, 10]}, Budget(0.8, "envoy+", aim=0.6)),
        Figure("b", "1/s", {"envoy+": [1234.5]}),
        Figure("c", "µs", {"sidecar": [], "envoy+": []}),
    ]
    head, line, first, second = table(figures, "envoy+").splitlines()
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert len({len(row) for row in (head, line, first, second)}) == 1
    ratio = "0.90 (0.80 – 1.00)"  # noqa: RUF001
    assert cells[4:] == [ratio, "≤ 0.8x envoy+ (aim 0.6)", "**no**"]
    assert "1,234" in second or "1,235" in second


@pytest.mark.parametrize(
    ("value", "text"), [(0.456, "0.46"), (12.34, "12.3"), (345.6, "346"), (67890, "67,890")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text
