"""Notices a tenant that asks, and is refused, far more than it used to, and holds it to its fair part.

For each tenant exponential means of its part in all work that arrives, over 5 s and over 5 min (or as long
as it is known), and of its part in all refused work, over 5 s. It is abnormal while

    refused > 0.5   and   arriving now > min(max(2 x usually, usually + 0.2), (1 + usually) / 2)

Whoever has always asked for most is refused most under overload, and is not abnormal. An abnormal tenant
may have no more waiting than an even part of its class's queue, and is not invited back: a client gone wild
fills no queue while the fair order works it off.
"""

from __future__ import annotations

from typing import Final

_FAST_S: Final = 5.0
_SLOW_S: Final = 300.0
_REFUSED: Final = 0.5
_TIMES: Final = 2.0
_MORE: Final = 0.2
_MOST_TENANTS: Final = 1024
_NOTHING: Final = 1e-3


class _Parts:
    __slots__ = ("arrived", "now", "refused", "refused_now", "usually")

    def __init__(self) -> None:
        self.arrived = self.refused = 0.0  # work in this window
        self.now = self.usually = self.refused_now = 0.0  # parts of all


class Anomaly:
    """Fed with arrivals and refusals; `held` are the abnormal tenants, `found` how many became so."""

    def __init__(self) -> None:
        self._parts: dict[str, _Parts] = {}
        self._age = 0.0
        self.held: frozenset[str] = frozenset()
        self.found = 0

    def on_arrived(self, tenant: str, work: float) -> None:
        """`tenant` asks for so much work."""
        parts = self._parts.get(tenant)
        if parts is None:
            if len(self._parts) >= _MOST_TENANTS:
                return
            parts = self._parts[tenant] = _Parts()
        parts.arrived += work

    def on_refused(self, tenant: str, work: float) -> None:
        """So much of that was turned away."""
        parts = self._parts.get(tenant)
        if parts is not None:
            parts.refused += work

    def close(self, seconds: float) -> frozenset[str]:
        """A window of so many seconds is over; returns who has just become abnormal."""
        arrived = sum(parts.arrived for parts in self._parts.values())
        if not arrived:
            self.held = frozenset()
            return self.held
        refused = sum(parts.refused for parts in self._parts.values())
        self._age += seconds
        fast = min(seconds / min(_FAST_S, self._age), 1.0)
        slow = min(seconds / min(_SLOW_S, self._age), 1.0)
        abnormal = set()
        for tenant, parts in list(self._parts.items()):
            now = parts.arrived / arrived
            parts.now += (now - parts.now) * fast
            parts.usually += (now - parts.usually) * slow
            parts.refused_now += ((parts.refused / refused if refused else 0.0) - parts.refused_now) * fast
            parts.arrived = parts.refused = 0.0
            if _is_abnormal(parts):
                abnormal.add(tenant)
            elif parts.now < _NOTHING and parts.usually < _NOTHING:
                del self._parts[tenant]
        new = frozenset(abnormal) - self.held
        self.held = frozenset(abnormal)
        self.found += len(new)
        return new


def _is_abnormal(parts: _Parts) -> bool:
    usually = parts.usually
    # For one that asks for most anyway, half way from there to all.
    more = min(max(_TIMES * usually, usually + _MORE), (1 + usually) / 2)
    return parts.refused_now > _REFUSED and parts.now > more
