"""What is broken for whom."""

import pytest

from mesh.bench.faults import trials
from mesh.bench.faults.trials import ALL, Trial
from model_pod import config

EVERY = pytest.mark.parametrize("trial", ALL.values(), ids=lambda trial: trial.name)


@EVERY
@pytest.mark.parametrize("pods", [2, 8])
def test_victims_are_pods(trial: Trial, pods: int) -> None:
    victims = trial.victims(pods)
    assert bool(victims) is bool(trial.breaks)
    assert victims <= set(range(pods))


@pytest.mark.parametrize(
    ("name", "count"), [("killed", 1), ("errors", 5), ("storm", 8), ("rolling", 8), ("healthy", 0)]
)
def test_how_many_of_eight_are_broken(name: str, count: int) -> None:
    assert len(ALL[name].victims(8)) == count


@EVERY
def test_every_trial_has_bounds_that_say_something(trial: Trial) -> None:
    assert trial.bounds
    assert all((bound.most is None) != (bound.least is None) for bound in trial.bounds)


@EVERY
def test_callers_ask_once(trial: Trial) -> None:
    assert {each.retries for each in trial.traffic(2)} == {0}


@EVERY
def test_engines_know_their_flags(trial: Trial) -> None:
    settings = config.parse(["--engine", "fake", *trial.engine])
    assert settings.max_running == trial.seats


def test_the_load_is_a_share_of_what_engines_can_do() -> None:
    costs = config.parse(["--engine", "fake", *trials.ENGINE]).costs
    step_s = (costs.step_ms + costs.sequence_ms * trials.SEATS) / 1000
    tokens_s = sum(each.rate for each in trials.traffic(8)) * trials.ANSWER
    assert tokens_s == pytest.approx(0.6 * 8 * trials.SEATS / step_s)


def test_a_thousand_streams_run_while_sidecars_restart() -> None:
    rolling = ALL["rolling"]
    costs = config.parse(["--engine", "fake", *rolling.engine]).costs
    (crowd,) = rolling.traffic(8)
    assert crowd.answer is not None
    assert crowd.rate * crowd.answer * costs.step_ms / 1000 == pytest.approx(1000)


def test_only_what_is_compared_needs_a_healthy_run() -> None:
    assert [name for name, trial in ALL.items() if trial.is_compared] == ["slow"]


def test_ten_minutes_are_not_the_default() -> None:
    assert set(ALL) - set(trials.DEFAULT) == {"healthy"}
