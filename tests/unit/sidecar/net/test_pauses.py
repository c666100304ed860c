"""Pauses grow up to a bound, and begin anew."""

import asyncio

from sidecar.net.pauses import Pauses
from tests.harness.clock import FakeClock, run


async def lengths(pauses: Pauses, count: int) -> list[float]:
    """Of the next ones; the clock of the test draws the longest each time."""
    found, now = [], asyncio.get_running_loop().time
    for _ in range(count):
        began = now()
        await pauses.wait()
        found.append(round(now() - began, 3))
    return found


def test_each_is_twice_as_long_up_to_a_bound() -> None:
    assert run(lengths(Pauses(FakeClock()), 7)) == [0.75, 1.5, 3.0, 6.0, 12.0, 15.0, 15.0]


def test_they_begin_anew() -> None:
    async def scenario() -> None:
        pauses = Pauses(FakeClock())
        await lengths(pauses, 4)
        pauses.reset()
        assert await lengths(pauses, 2) == [0.75, 1.5]

    run(scenario())
