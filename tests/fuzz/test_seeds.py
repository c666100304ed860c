"""Every seed keeps the properties, and is refused, or not, as its name says."""

import pytest

from tests.fuzz.corpus import FOUND, REFUSED, seeds
from tests.fuzz.oracles import our_answer, our_requests
from tests.fuzz.properties import (
    check_answer_without_end,
    check_answers,
    check_requests,
    check_requests_without_end,
)


@pytest.mark.parametrize("name", seeds("requests"))
def test_requests(name: str) -> None:
    seed = seeds("requests")[name]
    check_requests(seed)
    check_requests_without_end(seed[: len(seed) // 2], seed[len(seed) // 2 :])
    if not name.startswith(FOUND):
        assert bool(our_requests([seed]).refused) == name.startswith(REFUSED)


@pytest.mark.parametrize("name", seeds("answers"))
def test_answers(name: str) -> None:
    seed = seeds("answers")[name]
    check_answers(seed)
    check_answer_without_end(seed[: len(seed) // 2], seed[len(seed) // 2 :])
    if not name.startswith(FOUND):
        assert bool(our_answer([seed]).refused) == name.startswith(REFUSED)
