"""The command: what runs, in which order, and what is shown; nothing is started."""

import asyncio
import json
from collections.abc import Sequence
from math import inf
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from mesh.bench.contenders import Broken, Contender
from mesh.bench.faults import command, trials
from mesh.bench.faults.run import Result, Verdict
from mesh.bench.faults.trials import Trial
from mesh.local import machine
from mesh.local.machine import MissingBinary

app = typer.Typer()
app.command()(command.command)


def verdict(figure: float | None, *, met: bool | None, unit: str = "s") -> Verdict:
    return Verdict(bound="out after", unit=unit, most=6.0, least=None, figure=figure, met=met)


class Stage:
    """Stands in for what would be started."""

    def __init__(self) -> None:
        self.runs: list[tuple[str, str, int]] = []
        self.trials: list[Trial] = []
        self.pods = 0
        self.breaks: str | None = None
        self.interrupts: str | None = None
        self.verdicts: Sequence[Verdict] = (verdict(0.5, met=True), verdict(inf, met=False))

    async def run(self, trial: Trial, contender: Contender, *, pods: int, seed: int) -> Result:
        if contender.name == self.interrupts:
            raise asyncio.CancelledError
        if contender.name == self.breaks:
            raise Broken(f"{contender.name}: it fell over")
        self.runs.append((trial.name, contender.name, seed))
        self.trials.append(trial)
        self.pods = pods
        return Result(
            trial=trial.name, contender=contender.name, seed=seed, verdicts=tuple(self.verdicts), asked=321,
            fates={"served": 320, "broken": 1}, reasons={"reset": 1}, machine=0.5, own=0.25, cores={},
            notes=["it was late"],
        )  # fmt: skip


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    stand_in = Stage()
    monkeypatch.setattr(command, "run", stand_in.run)
    monkeypatch.setattr(machine, "find_envoy", lambda: Path("/bin/envoy"))
    monkeypatch.setattr(machine, "find_valkey", lambda: Path("/bin/valkey-server"))
    return stand_in


def invoke(*words: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert result.exit_code == status, result.output
    return result.output


def test_each_trial_has_both_unless_it_is_about_sidecars(stage: Stage) -> None:
    invoke()
    assert [name for name, contender, _ in stage.runs if contender == "headgate"] == [*trials.DEFAULT]
    assert {name for name, _, _ in stage.runs} - {name for name, who, _ in stage.runs if who == "envoy"} == {
        "no-redis", "sidecar", "rolling",
    }  # fmt: skip
    assert stage.pods == 8


def test_all_is_every_trial(stage: Stage) -> None:
    invoke("--all")
    assert {name for name, _, _ in stage.runs} == trials.ALL.keys()


def test_what_is_asked_for_is_run(stage: Stage) -> None:
    words = "--only slow --only killed --contender sidecars --seed 3 --seed 4 --pods 3 --seconds 7"
    invoke(*words.split())
    assert stage.runs == [(name, "sidecars", seed) for name in ("slow", "killed") for seed in (3, 4)]
    assert {trial.lasts_s for trial in stage.trials} == {7}
    assert stage.pods == 3


def test_redis_can_be_gone_in_all(stage: Stage) -> None:
    invoke("--without-redis")
    for trial in stage.trials:
        assert [each.part for each in trial.breaks].count("valkey") == 1
        assert trial.breaks[0].before_s > 0


def test_the_table_has_bound_figure_and_verdict(stage: Stage) -> None:
    said = invoke("--only", "killed")
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert "out after ≤ 6.00 s 0.50 s yes 0.50 s yes" in lines
    assert "out after ≤ 6.00 s never NO never NO" in lines
    assert "* killed, envoy: it was late" in said
    assert "killed, envoy, tries that failed: 1 reset" in said
    assert "50%" in said


def test_what_nobody_can_say_is_not_judged(stage: Stage) -> None:
    stage.verdicts = [verdict(None, met=None)]
    lines = [" ".join(line.split()) for line in invoke("--only", "killed").splitlines()]
    assert "out after ≤ 6.00 s - - - -" in lines


def test_figures_as_json(stage: Stage, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    invoke("--only", "killed", "--json", f"{file}")
    found = json.loads(file.read_text())
    assert found["about"]["trials"].keys() == {"killed"}
    assert [each["figure"] for each in found["results"][0]["verdicts"]] == [0.5, "never"]
    assert json.loads(invoke("--only", "killed", "--json", "-")) == found


def test_a_run_that_breaks_is_named_and_the_others_go_on(stage: Stage) -> None:
    stage.breaks = "headgate"
    said = invoke("--only", "killed", "--only", "hung", status=1)
    assert "killed · headgate: headgate: it fell over" in said
    assert stage.runs == [("killed", "envoy", 1), ("hung", "envoy", 1)]


def test_what_was_measured_is_shown_when_it_is_ended(stage: Stage) -> None:
    stage.interrupts = "envoy"
    said = invoke("--only", "killed", "--only", "hung", status=1)
    assert "0.50 s" in said
    assert "ended before all had run" in said


@pytest.mark.parametrize("words", [("--only", "nothing"), ("--contender", "nobody"), ("--pods", "1")])
def test_wrong_words(stage: Stage, words: Sequence[str]) -> None:
    assert words[0] in invoke(*words, status=2)
    assert not stage.runs


def test_what_is_missing_is_named_before_anything_runs(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> Path:
        raise MissingBinary("no Envoy")

    monkeypatch.setattr(machine, "find_envoy", nothing)
    assert "no Envoy" in invoke(status=1)
    assert not stage.runs
