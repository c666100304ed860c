"""What may be tried again, and when."""

import copy

import pytest

from sidecar.balance.retry import RESERVE, FirstTokens, RetryBudget, pause_s

NOW = 1000.0
RATIO = 0.2


def asked(count: int, cost: float = 100.0, now: float = NOW) -> RetryBudget:
    """A budget after so many first attempts."""
    budget = RetryBudget(RATIO)
    for _ in range(count):
        budget.deposit(cost, now)
    return budget


def granted(budget: RetryBudget, cost: float = 100.0, now: float = NOW) -> int:
    """How many retries there may be."""
    count = 0
    while count < 1000 and budget.withdraw(cost, now):
        count += 1
    return count


@pytest.mark.parametrize(("first", "retries"), [(0, RESERVE), (1, RESERVE), (5, 11), (100, 30), (1000, 210)])
def test_a_part_of_the_first_attempts_and_a_reserve(first: int, retries: int) -> None:
    budget = asked(first)
    assert granted(budget) == retries
    assert budget.refused == 1
    assert budget.take() == (first * 100.0, retries * 100.0)
    assert budget.take() == (0.0, 0.0), "the mesh adds up what is new"


def test_it_is_work_that_counts() -> None:
    budget = asked(100)  # 10,000 tokens: 2,000 and 1,000 of reserve
    assert not budget.withdraw(3001.0, NOW)
    assert budget.withdraw(2900.0, NOW)
    assert not budget.withdraw(101.0, NOW)
    assert budget.withdraw(100.0, NOW), "what was refused is not counted"


@pytest.mark.parametrize(("after", "retries"), [(0.0, 30), (9.0, 30), (9.99, 30), (10.0, 10), (3600.0, 10)])
def test_what_is_older_than_the_window_counts_no_more(after: float, retries: int) -> None:
    assert granted(asked(100), now=NOW + after) == retries


@pytest.mark.parametrize(("after", "retries"), [(9.9, 0), (10.0, 10), (25.0, 10), (1e6, 10)])
def test_retries_are_forgotten_as_well(after: float, retries: int) -> None:
    budget = RetryBudget(RATIO)
    assert granted(budget) == RESERVE
    assert granted(budget, now=NOW + after) == retries


@pytest.mark.interpreted  # a compiled one cannot be copied
def test_the_window_slides_second_by_second() -> None:
    budget = RetryBudget(1.0)

    def asked_lately(now: float) -> int:
        return granted(copy.deepcopy(budget), 1.0, now) - RESERVE

    for second in range(25):
        budget.deposit(1.0, NOW + second)
        assert asked_lately(NOW + second) == min(second + 1, 10)
    assert [asked_lately(NOW + 24 + gap) for gap in (0, 1, 4, 9, 10)] == [10, 9, 6, 1, 0]
    late = NOW + 24 + 10 + 1000 * 10
    budget.deposit(1.0, late)  # the same place, much later
    assert asked_lately(late) == 1


def test_what_must_move_is_not_asked_for_and_makes_debt() -> None:
    budget = asked(100)
    budget.owe(50_000.0, NOW)
    assert budget.take() == (10_000.0, 50_000.0)
    assert granted(budget, cost=1.0) == 0
    assert granted(budget, cost=1.0, now=NOW + 9) == 0
    assert granted(budget, now=NOW + 10) == RESERVE


@pytest.mark.parametrize(
    ("of_mesh", "factor"),
    [
        (0.0, 1.0),
        (0.5 * RATIO, 1.0),
        (RATIO, 1.0),
        (1.25 * RATIO, 0.8),
        (2 * RATIO, 0.5),
        (2.001 * RATIO, 0.0),
        (50.0, 0.0),
    ],
)
def test_the_mesh_is_held_to_its_ratio(of_mesh: float, factor: float) -> None:
    budget = asked(100)
    budget.hear(1e6, of_mesh * 1e6)
    assert granted(budget) == int(30 * factor)
    budget.hear(1e6, 0.0)
    assert granted(budget) == 30 - int(30 * factor), "and is free again"


def test_a_mesh_without_first_attempts_holds_nobody() -> None:
    budget = asked(100)
    budget.hear(1e6, 1e6)
    budget.hear(0.0, 5.0)
    assert granted(budget) == 30


def test_a_ratio_of_nothing_leaves_the_reserve() -> None:
    budget = asked(100)
    budget.ratio = 0.0
    assert granted(budget) == RESERVE


def test_first_tokens_are_known_after_a_few() -> None:
    known = FirstTokens()
    for n in range(19):
        known.add(float(n))
    assert known.quantile(0.5) is None
    assert known.patience_s(2.0, 30.0) == 30.0, "until then patience is longest"
    known.add(19.0)
    assert known.quantile(0.5) == 10.0
    assert known.quantile(0.99) == 19.0
    assert known.quantile(1.0) == 19.0


def test_the_last_of_them_count() -> None:
    known = FirstTokens()
    for seconds in [60.0] * 500 + [1.0] * 256:
        known.add(seconds)
    assert known.quantile(0.99) == 1.0


@pytest.mark.parametrize(
    ("usual", "patience"), [(0.1, 2.0), (1.0, 2.0), (4.0, 8.0), (15.0, 30.0), (99.0, 30.0)]
)
def test_patience_is_twice_the_99th_percentile_within_bounds(usual: float, patience: float) -> None:
    known = FirstTokens()
    for _ in range(98):
        known.add(0.0)
    for _ in range(2):
        known.add(usual)
    assert known.patience_s(2.0, 30.0) == patience


@pytest.mark.parametrize(
    ("attempt", "chance", "pause"),
    [
        (1, 0.0, 0.0),
        (1, 1.0, 0.025),
        (2, 1.0, 0.05),
        (3, 1.0, 0.1),
        (3, 0.5, 0.05),
        (4, 1.0, 0.2),
        (5, 1.0, 0.25),
        (1000, 1.0, 0.25),
    ],
)
def test_pauses_double_up_to_the_longest(attempt: int, chance: float, pause: float) -> None:
    assert pause_s(attempt, 0.025, 0.25, chance) == pytest.approx(pause)
