"""Attainment by tenant and by length of the prompt."""

from array import array

from mesh.bench.breakdown import breakdowns
from mesh.bench.origin import Origin, Outcome
from mesh.bench.workload import Ask, stock


def origin(tenant: str, prompt: int, outcome: Outcome, *tokens_at: float, at: float = 1.0) -> Origin:
    ask = Ask(at, stock("premium", 1.0, tenant=tenant), prompt, 0)
    return Origin(ask, tokens_at=array("d", tokens_at), outcome=outcome, ended=5.0)


ORIGINS = [
    origin("a", 800, "served", 1.1, 1.14),
    origin("a", 801, "served", 4.0),
    origin("b", 1601, "refused"),
    origin("b", 100, "served", 1.5, at=9.0),
]


def test_by_tenant() -> None:
    found = breakdowns(ORIGINS, 0, 5)["tenants"]
    assert found == {
        "a": {"origins": 2, "attained": 1, "shed": 0, "tokens": 3},
        "b": {"origins": 1, "attained": 0, "shed": 1, "tokens": 0},
    }


def test_by_prompt() -> None:
    found = breakdowns(ORIGINS, 0, 5)["prompts"]
    assert {name: part["origins"] for name, part in found.items()} == {
        "up to 800": 1,
        "up to 1600": 1,
        "above 1600": 1,
    }


def test_the_undecided_are_left_out() -> None:
    undecided = Origin(Ask(4.5, stock("premium", 1.0), 10, 0), ended=5.0)
    assert breakdowns([undecided], 0, 5) == {"tenants": {}, "prompts": {}}
