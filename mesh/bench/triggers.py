"""How long a burst may last until a system does not recover from it: bisected.

A system whose repeats keep it overloaded after the burst is in a metastable state (Bronson et al., HotOS
2021): the shorter the burst that leads there, the worse. It has recovered when attainment was back at
`score.RECOVERED` within the judged time after the burst.
"""

from collections.abc import Awaitable, Callable
from typing import Final

from mesh.bench import scenarios
from mesh.bench.capacity import Capacity
from mesh.bench.contenders import Contender
from mesh.bench.runs import run

MOST_S: Final = 20.0
_TRIES: Final = 3
CONTENDERS: Final = ("headgate", "headgate-off", "envoy-adaptive", "engine-64")


async def longest(contender: Contender, *, capacity: Capacity, pods: int, seed: int) -> float | None:
    """The longest burst in seconds that was survived; None if none of those tried was."""

    async def survives(trigger_s: float) -> bool:
        scenario = scenarios.spike(trigger_s)
        result = await run(scenario, contender, capacity=capacity, pods=pods, seed=seed)
        return result.score.recovery_s is not None

    return await bisected(survives)


async def bisected(survives: Callable[[float], Awaitable[bool]]) -> float | None:
    """The longest that survives, of `MOST_S` and those that halve what is left."""
    if await survives(MOST_S):
        return MOST_S
    best, low, high = None, 0.0, MOST_S
    for _ in range(_TRIES - 1):
        middle = (low + high) / 2
        if await survives(middle):
            best = low = middle
        else:
            high = middle
    return best


def words(longest_s: float | None) -> str:
    """For people."""
    if longest_s is None:
        return f"none of {MOST_S / 2 ** (_TRIES - 1):g} s or more"
    return f"{longest_s:g} s" + (" or more" if longest_s == MOST_S else "")
