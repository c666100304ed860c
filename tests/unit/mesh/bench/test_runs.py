"""When a run's figures are doubted. Runs themselves: integration."""

import pytest

from mesh.bench.runs import doubts
from mesh.bench.usage import Usage


def test_a_run_on_time_with_cores_to_spare_is_believed() -> None:
    assert doubts(Usage({"pod-0": 0.5, "generator": 0.3}, lag_p99_ms=3)) == []


@pytest.mark.parametrize(
    ("usage", "words"),
    [
        (Usage({"pod-0": 0.1}, lag_p99_ms=35), "35 ms late"),
        (Usage({"pod-0": 0.1, "envoy": 0.97}), "bound by CPU, of one core: envoy 97%"),
    ],
)
def test_what_is_doubted(usage: Usage, words: str) -> None:
    (doubt,) = doubts(usage)
    assert words in doubt
