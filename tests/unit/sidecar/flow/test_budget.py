"""An amount is taken whole or not at all, and what was given back can be taken again."""

from sidecar.flow.budget import Budget


def test_the_limit_can_be_reached_and_not_passed() -> None:
    budget = Budget(10)
    assert [budget.take(amount) for amount in (4, 6, 1, 0)] == [True, True, False, True]
    assert budget.held == 10


def test_who_gets_nothing_holds_nothing() -> None:
    budget = Budget(10)
    assert not budget.take(11)
    assert budget.held == 0
    assert budget.take(10)


def test_what_is_given_back_can_be_taken_again() -> None:
    budget = Budget(10)
    budget.take(10)
    budget.give_back(3)
    assert [budget.take(4), budget.take(3)] == [False, True]


def test_a_limit_that_shrinks_takes_nothing_away() -> None:
    budget = Budget(10)
    budget.take(8)
    budget.limit = 5
    assert (budget.held, budget.take(1)) == (8, False)
    budget.give_back(8)
    assert (budget.take(6), budget.take(5)) == (False, True)


def test_what_is_worth_less_leaves_half_free() -> None:
    budget = Budget(10)
    assert [budget.take_spare(amount) for amount in (3, 3, 2, 1)] == [True, False, True, False]
    assert budget.take(5)
    budget.give_back(5)
    budget.give_back(1)
    assert budget.take_spare(1)
    assert budget.held == 5


def test_what_is_worth_more_may_take_all_of_it() -> None:
    budget = Budget(10)
    assert budget.take(10)
    assert not budget.take_spare(1)
    assert not budget.take_spare(0)
    assert budget.held == 10
