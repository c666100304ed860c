"""Our readers beside h11 and llhttp, over mutated messages: what has to hold is in `tests.fuzz.properties`.

We may refuse more. Where we accept what one of them does not, or read it otherwise, it is in `EXCUSED`,
with the reason why that is harmless, and an example that keeps the list honest.
"""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.corpus import TOKENS, seeds
from tests.fuzz.oracles import (
    h11_answer,
    h11_requests,
    llhttp_answer,
    llhttp_requests,
    our_answer,
    our_requests,
)
from tests.fuzz.properties import EXCUSED, agree, check_answers, check_requests

SEARCH = settings(max_examples=10 * settings.default.max_examples)
READERS = {
    ("requests", "h11"): (our_requests, h11_requests),
    ("requests", "llhttp"): (our_requests, llhttp_requests),
    ("answers", "h11"): (our_answer, h11_answer),
    ("answers", "llhttp"): (our_answer, llhttp_answer),
}


def edit(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for at, length, token in edits:
        at %= len(data) + 1
        data = data[:at] + token + data[at + length :]
    return data


def mutated(target: str) -> st.SearchStrategy[bytes]:
    token = st.sampled_from(TOKENS) | st.binary(max_size=2)
    edits = st.lists(st.tuples(st.integers(0, 300), st.sampled_from([0, 0, 1, 2, 8]), token), max_size=4)
    return st.builds(edit, st.sampled_from(list(seeds(target).values())), edits)


@SEARCH
@given(data=mutated("requests"))
def test_requests(data: bytes) -> None:
    check_requests(data)


@SEARCH
@given(data=mutated("answers"))
def test_answers(data: bytes) -> None:
    check_answers(data)


def test_every_excuse_is_needed() -> None:
    for point in EXCUSED:
        ours, theirs = READERS[point.target, point.oracle]
        assert not agree(ours([point.example]), theirs(point.example)), point.why
        assert point.pattern.search(point.example), point.why
