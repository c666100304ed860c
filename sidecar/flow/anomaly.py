"""Notices a tenant that is refused far more than it used to be, and holds it to its fair part.

For each tenant two exponential means of its part in all refused work, over 5 s and over 5 min. It is
abnormal while

    fast > 0.5   and   fast > slow + 0.3   and   others are there

An abnormal tenant may have no more waiting than an even part of its class's queue, and is not invited back: a
client gone wild fills no queue while the fair order works it off.
"""

from __future__ import annotations

from math import exp
from typing import Final

_FAST_S: Final = 5.0
_SLOW_S: Final = 300.0
_PART: Final = 0.5
_JUMP: Final = 0.3
_MOST_TENANTS: Final = 1024
_NOTHING: Final = 1e-3


class _Part:
    __slots__ = ("fast", "slow", "work")

    def __init__(self) -> None:
        self.fast = self.slow = self.work = 0.0


class Anomaly:
    """Fed with refusals; `held` are the abnormal tenants."""

    def __init__(self) -> None:
        self._parts: dict[str, _Part] = {}
        self.held: frozenset[str] = frozenset()
        self.found = 0  # tenants that became abnormal, since the start

    def on_refused(self, tenant: str, work: float) -> None:
        """So much of `tenant`'s work was turned away."""
        part = self._parts.get(tenant)
        if part is None:
            if len(self._parts) >= _MOST_TENANTS:
                return
            part = self._parts[tenant] = _Part()
        part.work += work

    def on_arrived(self, tenant: str) -> None:
        """`tenant` is there, whether or not it is ever refused."""
        if tenant not in self._parts and len(self._parts) < _MOST_TENANTS:
            self._parts[tenant] = _Part()

    def close(self, seconds: float) -> frozenset[str]:
        """A window of so many seconds is over; returns who has just become abnormal."""
        total = sum(part.work for part in self._parts.values())
        fast, slow = 1 - exp(-seconds / _FAST_S), 1 - exp(-seconds / _SLOW_S)
        abnormal = set()
        for tenant, part in list(self._parts.items()):
            share = part.work / total if total else 0.0
            part.fast += (share - part.fast) * fast
            part.slow += (share - part.slow) * slow
            part.work = 0.0
            if part.fast > _PART and part.fast > part.slow + _JUMP and len(self._parts) > 1:
                abnormal.add(tenant)
            elif part.fast < _NOTHING and part.slow < _NOTHING:
                del self._parts[tenant]
        new = frozenset(abnormal) - self.held
        self.held = frozenset(abnormal)
        self.found += len(new)
        return new
