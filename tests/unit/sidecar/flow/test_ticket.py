"""What a request is taken to cost, before and while it is answered."""

import pytest

from sidecar.flow.ticket import DECODE
from tests.unit.sidecar.flow.tickets import ticket


def test_work_is_what_is_left_of_the_prompt_and_the_answer_by_its_price() -> None:
    assert ticket(prompt=1000.0, fresh=200.0, answer=50.0).work == 200.0 + DECODE * 50.0


@pytest.mark.parametrize("answer", [0.0, 100.0, 106.0, 107.0, 5000.0])
def test_what_it_comes_with_is_what_it_needs(answer: float) -> None:
    new = ticket(prompt=10.5, answer=answer)
    assert new.room == new.needs()


def test_room_is_for_the_whole_prompt_cached_or_not() -> None:
    cold, warm = ticket(prompt=1000.0, fresh=1000.0), ticket(prompt=1000.0, fresh=10.0)
    assert cold.needs() == warm.needs() > 1000.0


@pytest.mark.parametrize("answer", [0.0, 1.0, 50.0])
def test_everybody_may_write_a_little(answer: float) -> None:
    assert ticket(prompt=100.0, answer=answer).needs() == 164.0


def test_a_part_of_the_expected_answer_is_set_aside_for_many_end_before() -> None:
    assert 1100.0 < ticket(prompt=100.0, answer=2000.0).needs() < 2100.0


def test_who_writes_more_than_expected_has_more_set_aside_than_it_holds() -> None:
    one = ticket(prompt=100.0, answer=100.0)
    before = one.needs()
    for tokens in (50, 100, 1000, 5000):
        one.tokens = tokens
        assert one.needs() >= before
        assert one.needs() > 100.0 + tokens
        before = one.needs()
