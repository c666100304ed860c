"""A request as admission sees it: what it will cost, who pays, and what has become of it.

Three measures of one request, all in tokens:

    work    prompt still to compute + DECODE x answer     engine time, for fairness and predicted waits
    room    prompt + what the answer will hold            KV cache
    backlog prompt still to compute, until its first token    what newer first tokens wait for

A decoded token takes a step of the whole batch where a prompt token shares one with hundreds: about four
times the engine time on the engines we know.
"""

from __future__ import annotations

from typing import Any, Final

DECODE: Final = 4.0
_LEAST_ANSWER: Final = 64  # tokens that anybody may turn out to write
_MARGIN: Final = 32

NEW, WAITING, RUNNING, GONE = range(4)
# Who goes first among equals: callers who were invited back and came in time, first attempts, other repeats.
INVITED, FIRST, REPEAT = range(3)


class Ticket:
    """Instants are monotonic seconds; 0.0 means that it has not happened."""

    tier: int = FIRST
    promised: bool = False  # it was invited for about now, and is here for the first time since
    stays: bool = False  # gives way to nobody: it has done so once, or runs by its class's guaranteed share
    steady: bool = True  # its tokens are seen as they come: it streams
    size: int = 0  # bytes held for it while it waits
    unread: bool = False  # its client does not read as fast as it could: its pace is not the engine's

    state: int = NEW
    serial: int = 0  # order of arrival
    queued: float = 0.0
    predicted: float = 0.0  # seconds it was to wait when it came
    position: int = 0  # how many of its class and above waited then
    dispatched: float = 0.0
    ahead: float = 0.0  # backlog at dispatch, its own included,
    clear_s: float = 0.0  # and how long it should take
    first: float = 0.0  # when its first token came
    tokens: int = 0  # of its answer, so far
    seen: int = 0  # of them counted by the meter
    marked: int = 0  # of them counted when the meter's window began

    def __init__(
        self,
        member: Any,
        cls: int,
        tenant: str,
        weight: float,
        prompt: float,
        fresh: float,
        answer: float,
        came: float,
        due: float,
    ) -> None:
        self.member = member  # whose it is
        self.cls = cls  # rank of its class, 0 is the highest
        self.tenant = tenant
        self.weight = weight  # of the tenant
        self.prompt = prompt  # tokens
        self.fresh = fresh  # of them not cached
        self.answer = answer  # tokens it is expected to get
        self.came = came  # when the caller first asked, wherever that was
        self.due = due  # when its first token should be there
        self.work = fresh + DECODE * answer  # expected engine time of all of it
        reserve = 0.6 * answer  # as `needs` has it, before the first token
        # KV tokens set aside for it, once it runs
        self.room = prompt + (reserve if reserve > _LEAST_ANSWER else _LEAST_ANSWER)

    def needs(self) -> float:
        """KV tokens to set aside for it, as far as can be told by now."""
        return self.prompt + max(0.6 * self.answer, 1.25 * self.tokens + _MARGIN, _LEAST_ANSWER)
