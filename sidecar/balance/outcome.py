"""What the end of an exchange says about the engine that had it.

In Envoy's words (split_external_local_origin_errors: false), so that its detectors can count it:

1. A refused connection, a connection lost before the answer, and an answer that is not HTTP are 503, no
   answer in time is 504; these are of local origin: the engine has not said them.
2. An answer without a token, one that broke off and one that stalled are 500, whatever their head said.
3. 429, 503 and 529 that say they are back-pressure say nothing of health: a full engine is not a broken one.
4. 4xx say nothing: the engine's front answers them without its GPU, so they must not hide a GPU that fails.
5. A caller that left says nothing.

Whoever fails fast looks fast, and so would attract the most load: for a balancer that follows latency, a
failure (also back-pressure) is a sample of max(retry-after, 5 s), never below the present estimate (Linkerd's
load-biaser).
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

PENALTY_S: Final = 5.0
LONGEST_PENALTY_S: Final = 300.0  # of what `retry-after` asks for
BACK_PRESSURE: Final = frozenset((429, 503, 529))


class Outcome(NamedTuple):
    """`code` is the status to count, 0: nothing is counted. `local`: the engine did not say it itself."""

    code: int
    local: bool = False


class Ending(Enum):
    """How an exchange with an engine ended."""

    WHOLE = "whole"  # the answer is complete; its status tells
    CONNECT_FAILED = "connect_failed"
    RESET = "reset"  # before an answer, or that was none
    TIMED_OUT = "timed_out"  # before an answer
    EMPTY = "empty"  # a stream without any token
    BROKEN = "broken"  # the connection ended in the middle of an answer
    STALLED = "stalled"  # no further token
    CLIENT_GONE = "client_gone"


NOTHING: Final = Outcome(0)
SUCCESS: Final = Outcome(200)
_UNUSABLE: Final = Outcome(500)
_BY_ENDING: Final = {
    Ending.CONNECT_FAILED: Outcome(503, local=True),
    Ending.RESET: Outcome(503, local=True),
    Ending.TIMED_OUT: Outcome(504, local=True),
    Ending.EMPTY: _UNUSABLE,
    Ending.BROKEN: _UNUSABLE,
    Ending.STALLED: _UNUSABLE,
    Ending.CLIENT_GONE: NOTHING,
}


def classify(ending: Ending, status: int = 0, *, is_refusal: bool = False) -> Outcome:
    """`status` is the answer's, if there is one; `is_refusal`: it has one of the fields of back-pressure,
    `x-headgate-reason`, `x-envoy-overloaded` or `retry-after`."""
    if ending is not Ending.WHOLE:
        return _BY_ENDING[ending]
    if status < 400:
        return SUCCESS
    if status < 500 or (is_refusal and status in BACK_PRESSURE):
        return NOTHING
    return Outcome(status)


def penalty_s(estimate_s: float, retry_after_s: float = 0.0) -> float:
    """The latency that a failure counts as; `estimate_s` is what the balancer believes of the engine now."""
    return max(PENALTY_S, min(retry_after_s, LONGEST_PENALTY_S), estimate_s)
