"""Who was told to come back, and when.

A small part of each class's rate is kept for returns and handed out ahead of time, in order: the calendar
is one instant per class, the next that is free, moved on by work / (part x rate) with each booking (the
virtual scheduling of GCRA, ITU-T I.371). A caller fits when the instant comes before it stops waiting; else
it is told that there is no use.

A refused request is remembered by its fingerprint for as long as it may matter. One that was invited and
comes back in its window is served before first attempts; one that comes at another time, or was told not
to, after them.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidecar.flow.news import News

_SOONEST_S: Final = 0.25
_MOST: Final = 16_384  # refusals remembered
_WIDTH: Final = 0.2  # of the time to wait: how much callers are scattered
_SLACK_S: Final = 1.5  # a caller's own delays; OpenAI's SDK waits whole milliseconds, others whole seconds
_UNINVITED_S: Final = 60.0  # a refusal without an invitation is remembered

_ENDS: Final = 65_536  # bytes at both ends of a body that tell it from others

Fingerprint = tuple[str, int, int]


class Refused(NamedTuple):
    """What a caller was told. Instants are monotonic seconds; `opens` 0.0: not to come back."""

    opens: float
    closes: float
    came: float  # when it first asked


def fingerprint(tenant: str, body: bytes) -> Fingerprint:
    """What a repeated request has in common with the first: nothing that a caller must send for it."""
    return tenant, len(body), crc32(body[-_ENDS:], crc32(body[:_ENDS]))


class Invitations:
    """The calendar, and who was refused."""

    def __init__(self, classes: int, part: float) -> None:
        self.part = part  # of a class's rate
        self._free = [0.0] * classes  # from when on there is room
        self.news: News | None = None  # for peers; None: there are none
        self._refused: OrderedDict[Fingerprint, Refused] = OrderedDict()

    def __len__(self) -> int:
        return len(self._refused)

    def book(
        self, cls: int, work: float, rate: float, now: float, earliest: float, latest: float
    ) -> float | None:
        """Seconds from now to the instant that is kept for `work`, from `earliest` to `latest`.

        None: there is none. `rate`: work a second that the class gets.
        """
        if rate <= 0 or self.part <= 0:
            return None
        at = max(self._free[cls], earliest, now + _SOONEST_S)
        if at > latest:
            return None
        self._free[cls] = at + work / (rate * self.part)
        return at - now

    def remember(self, who: Fingerprint, came: float, now: float, wait: float | None) -> None:
        """`who` was refused, and invited back in `wait` seconds or, None, not."""
        if wait is None:
            told = Refused(0.0, now + _UNINVITED_S, came)
        else:
            told = Refused(now + wait, now + wait * (1 + _WIDTH) + _SLACK_S, came)
        self._keep(who, told)
        if self.news is not None:
            self.news.add(who, told)

    def returned(self, who: Fingerprint, now: float) -> Refused | None:
        """What `who` was told when it was refused, if that was lately. It counts once."""
        found = self._refused.pop(who, None)
        if found is None or now > found.closes + _UNINVITED_S:
            return None
        if self.news is not None:
            self.news.add(who, None)
        return found

    def hear(self, news: Iterable[tuple[Fingerprint, Refused | None]], now: float) -> None:
        """What a peer has told callers; None: that one has come back."""
        for who, told in news:
            if told is None:
                self._refused.pop(who, None)
            elif now <= told.closes + _UNINVITED_S:
                self._keep(who, told)

    def is_due(self, told: Refused, now: float) -> bool:
        """It was invited for about now. A proxy in between may be a little early."""
        return 0.0 < told.opens - _SOONEST_S <= now <= told.closes

    def _keep(self, who: Fingerprint, told: Refused) -> None:
        refused = self._refused
        refused[who] = told
        refused.move_to_end(who)
        if len(refused) > _MOST:
            refused.popitem(last=False)

    def forget(self, now: float) -> None:
        """Those that no longer matter, oldest first; now and then, so that an empty memory costs nothing."""
        refused = self._refused
        while refused:
            who = next(iter(refused))
            if now <= refused[who].closes + _UNINVITED_S:
                break
            del refused[who]
