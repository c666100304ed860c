"""How items are measured: in rounds, within which everything that is compared takes its turn."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Final, TypeVar

from tests.bench.peers import Engine
from tests.bench.proxies import DIRECT, Place

US: Final = 1e6
KB: Final = 1024
_TURN_WITHIN_S: Final = 120.0

Values = dict[str, list[float]]  # of each proxy, one for each round
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bench:
    """What an item needs. A `scale` below 1 makes it shorter, and worth less."""

    engine: Engine
    place: Place
    names: Sequence[str]
    rounds: int
    scale: float = 1.0

    def seconds(self, whole: float) -> float:
        return whole * self.scale

    def some(self, whole: int) -> int:
        return max(2, int(whole * self.scale))


async def in_turns(
    count: int, subjects: Mapping[str, T], measure: Callable[[T], Awaitable[dict[str, float]]]
) -> dict[str, Values]:
    """Measure every subject in every round, each of which begins with another; by figure and proxy.

    What a measurement could not say, it says as NaN.
    """
    found: dict[str, Values] = {}
    names = list(subjects)
    for turn in range(count):
        first = turn % len(names)
        for name in (*names[first:], *names[:first]):
            try:
                async with asyncio.timeout(_TURN_WITHIN_S):
                    measured = await measure(subjects[name])
            except Exception as error:
                error.add_note(f"while measuring {name}")
                raise
            for what, value in measured.items():
                values = found.setdefault(what, {}).setdefault(name, [])
                if not isnan(value):
                    values.append(value)
    return found


def beside_direct(waits: Values) -> Values:
    """What each proxy adds to the way without one, round by round."""
    return {
        name: [through - without for through, without in zip(values, waits[DIRECT], strict=True)]
        for name, values in waits.items()
        if name != DIRECT
    }
