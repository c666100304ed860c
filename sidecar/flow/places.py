"""A limit that holds for each of many by itself.

Only those who hold something are remembered, so that the memory is bounded by what is held.
"""

from __future__ import annotations


class Places:
    """At most `limit` for each; None: any number. What was taken is given back, once."""

    __slots__ = ("_held", "limit")

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self._held: dict[str, int] = {}

    def __len__(self) -> int:
        """How many hold something."""
        return len(self._held)

    def take(self, who: str) -> bool:
        """One more for `who`; False when that would be too many."""
        held = self._held.get(who, 0)
        if self.limit is not None and held >= self.limit:
            return False
        self._held[who] = held + 1
        return True

    def give_back(self, who: str) -> None:
        held = self._held[who] - 1
        if held:
            self._held[who] = held
        else:
            del self._held[who]
