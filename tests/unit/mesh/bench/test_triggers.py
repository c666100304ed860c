"""The bisection: what is tried, and what it says."""

import asyncio

import pytest

from mesh.bench import triggers


def bisected(survivable_s: float) -> tuple[float | None, list[float]]:
    """The answer where bursts of up to so long are survived, and what was tried."""
    tried = []

    async def survives(trigger_s: float) -> bool:
        tried.append(trigger_s)
        return trigger_s <= survivable_s

    return asyncio.run(triggers.bisected(survives)), tried


@pytest.mark.parametrize(
    ("survivable_s", "longest", "tried"),
    [
        (99, 20, [20]),
        (12, 10, [20, 10, 15]),
        (16, 15, [20, 10, 15]),
        (7, 5, [20, 10, 5]),
        (1, None, [20, 10, 5]),
    ],
)
def test_the_longest_burst(survivable_s: float, longest: float | None, tried: list[float]) -> None:
    assert bisected(survivable_s) == (longest, tried)


@pytest.mark.parametrize(
    ("longest", "words"), [(None, "none of 5 s or more"), (20.0, "20 s or more"), (7.5, "7.5 s")]
)
def test_words(longest: float | None, words: str) -> None:
    assert triggers.words(longest) == words
