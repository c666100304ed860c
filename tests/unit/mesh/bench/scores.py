"""A score to show: premium served, half of standard refused."""

from array import array

from mesh.bench.origin import Attempt, Origin, Outcome
from mesh.bench.score import Result, score
from mesh.bench.workload import PREMIUM, STANDARD, Ask, stock


def result(contender: str = "ours", scenario: str = "step", capacity: float | None = 4.0) -> Result:
    origins = [_origin(second, PREMIUM, "served") for second in range(5)]
    origins += [_origin(second, STANDARD, "served" if second % 2 else "refused") for second in range(4)]
    found = score(origins, capacity=capacity, from_s=0, to_s=5, trouble_ends_s=0)
    return Result(scenario, contender, 3, found, ["the machine was busy"] if contender == "busy" else [])


def _origin(second: int, cls: str, outcome: Outcome) -> Origin:
    at = float(second)
    is_served = outcome == "served"
    first = at + (0.35 if second == 4 else 0.25)
    tokens = array("d", [first, first + 0.04, first + 0.08] if is_served else [])
    attempt = Attempt(at, 200) if is_served else Attempt(at, 503, "overloaded", retry_after_s=1.0)
    return Origin(Ask(at, stock(cls, 1), 100, second), [attempt], tokens, first + 0.15, outcome)
