"""Whether and when a caller asks again: the rules of the OpenAI SDK (`openai._base_client`).

1. `retry-after-ms`, else `retry-after`, in seconds; above two minutes it is not asked again at all.
2. `x-should-retry: true` or `false` decides.
3. Else 408, 409, 429 and every 5xx are asked again, and so is what failed before an answer.
4. When: as the server said; else after 0.5 s, doubled with each try up to 8 s, less a random quarter at most.

A caller that does not obey leaves out what the server said: then rules 3 and 4 alone hold.
"""

from math import isfinite
from random import Random
from typing import Final

MOST_RETRY_AFTER_S: Final = 120.0
_FIRST_S: Final = 0.5
_MOST_S: Final = 8.0
_JITTER: Final = 0.25
_AGAIN: Final = frozenset({408, 409, 429})


def pause(
    repeats: int,
    status: int,
    *,
    retry_after_s: float | None,
    should_retry: bool | None,
    obeys: bool,
    random: Random,
) -> float | None:
    """Seconds until a caller that has repeated so often asks again; None: it does not.

    `status` is 0 when there was no answer.
    """
    if not obeys:
        retry_after_s = should_retry = None
    if retry_after_s is not None and retry_after_s > MOST_RETRY_AFTER_S:
        return None
    if should_retry is None:
        should_retry = status == 0 or status in _AGAIN or status >= 500
    if not should_retry:
        return None
    if retry_after_s is not None and retry_after_s > 0:
        return retry_after_s
    return min(_FIRST_S * 2.0 ** min(repeats, 10), _MOST_S) * (1 - _JITTER * random.random())


def read_retry_after(milliseconds: str | None, seconds: str | None) -> float | None:
    """Seconds that the two fields ask for: the first that is a number, unless it is no finite one."""
    for value, unit in ((milliseconds, 0.001), (seconds, 1.0)):
        try:
            found = float(value or "")
        except ValueError:
            continue
        return found * unit if isfinite(found) else None
    return None
