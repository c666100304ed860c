"""The command: what runs, in which order, and what is shown; nothing is started."""

import asyncio
import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from mesh.bench import capacity, overload, scenarios, triggers
from mesh.bench.capacity import Capacity
from mesh.bench.contenders import Broken, Contender
from mesh.bench.scenarios import Scenario
from mesh.bench.score import Result, score
from mesh.local import machine

app = typer.Typer()
app.command()(overload.command)


class Stage:
    """Stands in for what would be started."""

    def __init__(self) -> None:
        self.runs: list[tuple[str, str, int]] = []
        self.windows: list[tuple[float, float]] = []
        self.breaks: str | None = None
        self.interrupts: str | None = None

    async def measure(self, pods: int) -> Capacity:
        return Capacity(2000.0)

    async def run(
        self, scenario: Scenario, contender: Contender, *, capacity: Capacity, pods: int, seed: int
    ) -> Result:
        if contender.name == self.interrupts:
            raise asyncio.CancelledError
        if contender.name == self.breaks:
            raise Broken(f"{contender.name}: it fell over")
        self.runs.append((scenario.name, contender.name, seed))
        self.windows.append(scenario.window)
        figures = score([], capacity=capacity.tokens_s * pods, from_s=0, to_s=1)
        return Result(scenario.name, contender.name, seed, figures, ["it was late"])

    async def longest(self, contender: Contender, **_: object) -> float | None:
        return 7.5


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    stand_in = Stage()
    monkeypatch.setattr(capacity, "measure", stand_in.measure)
    monkeypatch.setattr(overload, "run", stand_in.run)
    monkeypatch.setattr(triggers, "longest", stand_in.longest)
    monkeypatch.setattr(machine, "find_envoy", lambda: Path("/bin/envoy"))
    monkeypatch.setattr(machine, "find_valkey", lambda: Path("/bin/valkey-server"))
    return stand_in


def invoke(*words: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert result.exit_code == status, result.output
    return result.output


def test_the_default_set_is_interleaved_by_scenario(stage: Stage) -> None:
    invoke()
    assert [name for name, _, _ in stage.runs] == [
        name for name in scenarios.DEFAULT for _ in overload.USUAL
    ]
    assert [name for _, name, _ in stage.runs] == [*overload.USUAL] * len(scenarios.DEFAULT)


def test_all_has_every_scenario_with_those_it_names(stage: Stage) -> None:
    said = invoke("--all")
    assert {name for name, _, _ in stage.runs} == scenarios.ALL.keys()
    assert [name for scenario, name, _ in stage.runs if scenario == "low"] == ["headgate", "headgate-off"]
    assert "longest burst that headgate recovered from: 7.5 s" in said


def test_what_is_named_runs_for_each_seed(stage: Stage) -> None:
    both = ("--contender", "fifo", "--contender", "headgate")
    invoke("--scenario", "spike", *both, "--seed", "3", "--seed", "4")
    assert stage.runs == [
        ("spike", "fifo", 3),
        ("spike", "headgate", 3),
        ("spike", "fifo", 4),
        ("spike", "headgate", 4),
    ]


def test_the_window_can_be_shorter(stage: Stage) -> None:
    invoke("--scenario", "step-3x", "--contender", "fifo", "--duration", "5")
    begins, _ = scenarios.ALL["step-3x"].window
    assert stage.windows == [(begins, begins + 5)]


def test_the_table_says_what_was_measured_and_what_to_doubt(stage: Stage) -> None:
    said = invoke("--scenario", "spike", "--contender", "fifo", "--seed", "3", "--tune-seeds", "1")
    assert "capacity 4,000 tokens/s" in said
    assert "seeds 3; constants chosen on 1" in said
    assert scenarios.ALL["spike"].says in said
    assert "it was late" in said


def test_a_capacity_that_is_known_is_not_measured(stage: Stage) -> None:
    said = invoke("--scenario", "spike", "--contender", "fifo", "--capacity", "2500")
    assert "capacity 5,000 tokens/s" in said
    assert "from 2 engines as given" in said


def test_json_has_everything(stage: Stage, tmp_path: Path) -> None:
    said = invoke("--scenario", "spike", "--contender", "fifo", "--json", "-")
    file = tmp_path / "figures.json"
    invoke("--scenario", "spike", "--contender", "fifo", "--json", str(file))
    for found in (json.loads(said), json.loads(file.read_text())):
        assert found["about"]["capacity_tokens_s"] == 2000
        assert found["about"]["seeds"] == [1]
        assert [result["contender"] for result in found["results"]] == ["fifo"]


def test_a_broken_run_is_named_and_the_others_go_on(stage: Stage) -> None:
    stage.breaks = "fifo"
    said = invoke("--scenario", "spike", "--contender", "fifo", "--contender", "headgate", status=1)
    assert [name for _, name, _ in stage.runs] == ["headgate"]
    assert "it fell over" in said


def test_what_was_measured_before_ctrl_c_is_shown(stage: Stage) -> None:
    stage.interrupts = "headgate"
    said = invoke("--scenario", "spike", "--contender", "fifo", "--contender", "headgate", status=1)
    assert scenarios.ALL["spike"].says in said
    assert "ended before all had run" in said


@pytest.mark.parametrize("words", [("--scenario", "step-4x"), ("--contender", "nobody")])
def test_names_that_nobody_has_are_wrong_use(stage: Stage, words: tuple[str, str]) -> None:
    said = invoke(*words, status=2)
    assert words[1] in said
    assert not stage.runs


def test_without_envoy_nothing_starts(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise machine.MissingBinary("no Envoy")

    monkeypatch.setattr(machine, "find_envoy", missing)
    assert "no Envoy" in invoke(status=1)
    assert not stage.runs


def test_without_valkey_there_are_no_meshes(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise machine.MissingBinary("no Valkey")

    monkeypatch.setattr(machine, "find_valkey", missing)
    assert "no Valkey" in invoke("--pods", "2", status=1)
    assert not stage.runs
    invoke("--pods", "1")
    assert stage.runs


