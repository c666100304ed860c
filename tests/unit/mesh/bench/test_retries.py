"""A caller repeats as the OpenAI SDK does, which is asked itself."""

import itertools
from collections.abc import Iterator
from random import Random
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from mesh.bench.retries import pause, read_retry_after

RETRIES = 4


@pytest.fixture(scope="module")
def sdk() -> Iterator[Any]:
    with openai.OpenAI(api_key="any") as client:
        yield client


def asked_again(sdk: Any, repeats: int, status: int, fields: dict[str, str]) -> float | None:
    """What the SDK makes of it: the longest pause it could draw, or None."""
    if not sdk._should_retry(SimpleNamespace(status_code=status, headers=fields)):
        return None
    options = SimpleNamespace(get_max_retries=lambda _: RETRIES)
    return max(sdk._calculate_retry_timeout(RETRIES - repeats, options, fields) for _ in range(60))


class Unlucky(Random):
    """No jitter: the longest pause."""

    def random(self) -> float:
        return 0.0


@pytest.mark.parametrize("status", [400, 401, 404, 408, 409, 413, 429, 499, 500, 502, 503, 504, 529])
def test_it_repeats_when_and_as_late_as_the_sdk_does(sdk: Any, status: int) -> None:
    seconds = [None, "0", "2", "1.5", "60", "120", "121", "-3", "soon", "inf", "nan"]
    millis = [None, "1", "700", "130000", "-5", "x"]
    words = [None, "true", "false", "perhaps"]
    for repeats, after, after_ms, should in itertools.product((0, 1, 3), seconds, millis, words):
        fields = {"retry-after": after, "retry-after-ms": after_ms, "x-should-retry": should}
        said = {name: value for name, value in fields.items() if value is not None}
        ours = pause(
            repeats,
            status,
            retry_after_s=read_retry_after(after_ms, after),
            should_retry={"true": True, "false": False}.get(should or ""),
            obeys=True,
            random=Unlucky(),
        )
        theirs = asked_again(sdk, repeats, status, said)
        assert ours == (None if theirs is None else pytest.approx(theirs, rel=0.12)), (repeats, said)


def again(repeats: int, status: int, **said: Any) -> float | None:
    fields: dict[str, Any] = {"retry_after_s": None, "should_retry": None, "obeys": True} | said
    return pause(repeats, status, random=Random(1), **fields)


def test_what_failed_before_an_answer_is_repeated() -> None:
    assert again(0, 0) is not None


def test_pauses_double_up_to_eight_seconds_less_a_quarter_at_most() -> None:
    for repeats, most in enumerate((0.5, 1, 2, 4, 8, 8, 8)):
        drawn = [pause(repeats, 503, retry_after_s=None, should_retry=None, obeys=True, random=Random(seed))
                 for seed in range(100)]  # fmt: skip
        pauses = [each for each in drawn if each is not None]
        assert len(pauses) == 100
        assert 0.75 * most <= min(pauses) < 0.8 * most
        assert 0.95 * most < max(pauses) <= most


def test_who_does_not_obey_reads_the_status_alone() -> None:
    for said in ({"should_retry": False}, {"retry_after_s": 500.0}, {"retry_after_s": 30.0}):
        paused = again(0, 503, obeys=False, **said)
        assert paused is not None
        assert paused <= 0.5
    assert again(0, 400, obeys=False, should_retry=True) is None
