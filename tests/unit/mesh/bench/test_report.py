"""Scores as tables and JSON: the figures of the right run in the right place."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.table import Table

from mesh.bench import report
from tests.unit.mesh.bench.scores import result


def rows(table: Table) -> list[list[str]]:
    """As a reader who cannot see lines would get them."""
    file = io.StringIO()
    report.terminal(file).print(table)
    lines = [line for line in file.getvalue().splitlines() if line.strip()]
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]


def test_a_run_by_class() -> None:
    head, _, *found = rows(report.by_class(result().score))
    assert head == ["premium", "standard", "all"]
    shown = {row[0]: row[1:] for row in found if not row[0].startswith("p")}
    assert shown["asked"] == ["5", "4", "9"]
    assert shown["served"] == ["100 %", "50 %", "77.8 %"]
    assert shown["shed"] == ["0 %", "50 %", "22.2 %"]
    assert shown["first token p50"][0] == "0.25 s"
    assert shown["between tokens p50"][0] == "40 ms"
    assert shown["whole answer p50"][0] == "0.40 s"
    assert shown["tokens/s"][0] == "3"
    assert [row[1] for row in found if row[0] == "p99"] == ["0.35 s", "40 ms", "0.50 s"]


def test_one_class_needs_no_sum() -> None:
    score = result().score
    del score.classes["standard"]
    assert rows(report.by_class(score))[0] == ["premium"]


def test_a_scenario_by_contender() -> None:
    first, second, _, *found = rows(report.by_contender([result("ours-now"), result("busy")]))
    assert (first, second) == (["ours-"], ["now", "busy *"])
    shown = {row[0]: row[1:] for row in found}
    assert all(left == right for left, right in shown.values())
    assert shown["goodput"][0] == "105 %"
    assert shown["shed"][0] == "22.2 %"
    assert shown["standard within objective"][0] == "50 %"
    assert shown["standard shed"][0] == "50 %"
    assert shown["premium first token p50"][0] == "0.25 s"


def test_seven_contenders_fit_into_a_hundred_columns() -> None:
    names = ("headgate", "headgate-off", "envoy-adaptive", "envoy-admission", "fifo", "engine-256", "busy")
    file = io.StringIO()
    report.terminal(file).print(report.by_contender([result(name) for name in names]))
    assert max(len(line.rstrip()) for line in file.getvalue().splitlines()) <= 100


def test_without_a_capacity_goodput_is_tokens() -> None:
    found = rows(report.by_contender([result(capacity=None)]))
    assert ["goodput", "4/s"] in found


def test_a_class_of_whom_nothing_is_known_says_nothing() -> None:
    nobody = result()
    nobody.score.classes["premium"] = replace(nobody.score.classes["premium"], origins=0)
    assert ["premium within objective", "-"] in rows(report.by_contender([nobody]))


def test_notes_name_their_run() -> None:
    assert report.notes([result("ours"), result("busy")]) == ["* step, busy: the machine was busy"]


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (None, "-"),
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.5, "50 %"),
        (0.123, "12.3 %"),
        (0.9996, "99.96 %"),
        (0.0004, "0.04 %"),
        (1.204, "120.4 %"),
    ],
)
def test_nearly_all_does_not_read_as_all(share: float | None, shown: str) -> None:
    assert report.percent(share) == shown


def test_json_has_every_figure() -> None:
    found = json.loads(report.to_json({"url": "http://x"}, [result()]))
    assert found["about"] == {"url": "http://x"}
    (run,) = found["results"]
    assert (run["scenario"], run["contender"], run["seed"]) == ("step", "ours", 3)
    premium = run["score"]["classes"]["premium"]
    assert premium["ttft_s"] == {"p50": 0.25, "p90": 0.35, "p99": 0.35}
    assert premium["returned_served"] is None
    assert run["score"]["series"]["tokens"] == [3, 6, 3, 6, 3]


def test_a_table_in_a_file_is_plain_and_whole() -> None:
    file = io.StringIO()
    report.terminal(file).print(report.by_contender([result(), result(scenario="other")]))
    text = file.getvalue()
    assert "\x1b" not in text
    # A head and its rule, 8 rows for all and 5 for each of two classes: nothing is wrapped.
    assert len([line for line in text.splitlines() if line.strip()]) == 20


def test_pictures_need_their_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "mesh.bench.plot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(report.NoPlots, match=r"pip install 'headgate\[bench\]'"):
        report.save_plots([result()], tmp_path)


def test_each_scenario_has_its_picture(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    files = report.save_plots([result("ours"), result("busy"), result("ours", "spike")], folder)
    assert files == [folder / "step.png", folder / "spike.png"]
    assert files[1].read_bytes().startswith(b"\x89PNG")
