"""An amount that many share and none may exceed together."""

from __future__ import annotations


class Budget:
    """`held` of `limit` is taken. What was taken is given back, once."""

    __slots__ = ("held", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    def take(self, amount: int) -> bool:
        """Take `amount` whole, or nothing and answer False."""
        if self.held + amount > self.limit:
            return False
        self.held += amount
        return True

    def take_spare(self, amount: int) -> bool:
        """The same, for what is worth less: only where half of the limit stays free."""
        return self.held + amount <= self.limit // 2 and self.take(amount)

    def give_back(self, amount: int) -> None:
        self.held -= amount
