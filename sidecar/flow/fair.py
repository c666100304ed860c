"""The waiting of one class: fair between tenants, earliest deadline first inside a tenant.

Three tiers, each served before the next: callers invited back, first attempts, uninvited repeats. Inside a
tier the tenant that has had the least service goes first, by the virtual token counter of Sheng et al.,
"Fairness in Serving Large Language Models" (OSDI 2024):

    counter += work / weight                       when a request is dispatched, by its expected work,
                                                   and by what it took beyond that, when it ends
    counter  = max(own, min(that of who was served last, the least of those who wait))
                                                  when a tenant comes back: idling saves nothing up

so that of two tenants which both always wait, neither gets ahead of the other by more than the work of two
largest requests. All lists are sorted and small to move, so that whoever leaves is unlinked at once: there
are no tombstones. O(log n) comparisons for each operation.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sidecar.flow.ticket import Ticket

_TIERS: Final = 3
_MAX_ACCOUNTS: Final = 4096  # idle ones beyond this are forgotten, as are old debts
_MOST_ASKED: Final = 64  # tenants looked at for a predicted wait; more are extrapolated from


class Account:
    """What one tenant has had of a class, and what it has waiting there."""

    __slots__ = ("counter", "lines", "name", "waiting", "weight", "work")

    def __init__(self, name: str, weight: float, counter: float) -> None:
        self.name = name
        self.weight = weight
        self.counter = counter
        self.work = 0.0  # that waits
        self.waiting = 0  # tickets
        # For each tier (-due, -serial, ticket), ascending: the next one is the last.
        self.lines: tuple[list[tuple[float, int, Ticket]], ...] = tuple([] for _ in range(_TIERS))


class ClassQueue:
    """Tickets of one class that wait."""

    __slots__ = ("_accounts", "_active", "_arrivals", "_virtual", "work")

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        # For each tier (counter, name, account) of the tenants that wait in it, ascending.
        self._active: tuple[list[tuple[float, str, Account]], ...] = tuple([] for _ in range(_TIERS))
        self._arrivals: OrderedDict[Ticket, None] = OrderedDict()
        self._virtual = 0.0  # the counter of who was served last
        self.work = 0.0

    def __len__(self) -> int:
        return len(self._arrivals)

    def __iter__(self):  # type: ignore[no-untyped-def]
        """Tickets in order of arrival."""
        return iter(self._arrivals)

    @property
    def oldest(self) -> Ticket | None:
        """Who has waited longest."""
        return next(iter(self._arrivals), None)

    @property
    def tenants(self) -> int:
        """How many wait for first or repeated attempts."""
        return len({account.name for active in self._active for _, _, account in active})

    def head(self) -> Ticket | None:
        """Whose turn it is."""
        for tier, active in enumerate(self._active):
            if active:
                return active[0][2].lines[tier][-1][2]
        return None

    def small(self, room: float) -> Ticket | None:
        """The first in turn, of the next few, that needs no more than `room`."""
        return next((ticket for ticket in islice(self._in_turn(), _MOST_ASKED) if ticket.room <= room), None)

    def _in_turn(self) -> Iterator[Ticket]:
        for tier in range(_TIERS):
            for _, _, account in self._active[tier]:
                for _, _, ticket in reversed(account.lines[tier]):
                    yield ticket

    def spared(self, tier: int) -> Iterator[Ticket]:
        """Who waits behind `tier`, the least important first: the most served tenant's, the latest due."""
        for behind in range(_TIERS - 1, tier, -1):
            for _, _, account in reversed(self._active[behind]):
                for _, _, ticket in account.lines[behind]:
                    yield ticket

    def add(self, ticket: Ticket) -> None:
        """`ticket` waits from now on."""
        account = self._account(ticket)
        line = account.lines[ticket.tier]
        if not account.waiting:
            account.counter = max(account.counter, self._floor())
        account.waiting += 1
        if not line:
            insort(self._active[ticket.tier], (account.counter, account.name, account))
        insort(line, (-ticket.due, -ticket.serial, ticket))
        self._arrivals[ticket] = None
        account.work += ticket.work
        self.work += ticket.work

    def remove(self, ticket: Ticket) -> None:
        """`ticket` waits no longer, whatever the reason."""
        account = self._accounts[ticket.tenant]
        line = account.lines[ticket.tier]
        del line[bisect_left(line, (-ticket.due, -ticket.serial))]
        del self._arrivals[ticket]
        account.waiting -= 1
        account.work -= ticket.work
        self.work -= ticket.work
        if not line:
            self._unlink(account, ticket.tier)
        if not self._arrivals:
            self.work = 0.0  # nor shall rounding be left

    def serve(self, ticket: Ticket) -> None:
        """`ticket`, which does not wait, is dispatched: its tenant is charged what it is expected to cost."""
        account = self._accounts.get(ticket.tenant) or self._account(ticket)
        counter = account.counter
        if not account.waiting:
            floor = self._floor() if self._arrivals else self._virtual
            if counter < floor:
                account.counter = counter = floor
        if counter > self._virtual:
            self._virtual = counter
        self._move(account, ticket.work / ticket.weight)

    def settle(self, ticket: Ticket, work: float) -> None:
        """`ticket` has ended and took `work` in all."""
        account = self._accounts.get(ticket.tenant) or self._account(ticket)
        self._move(account, (work - ticket.work) / ticket.weight)

    def _floor(self) -> float:
        """Where whoever comes back begins: where the others are, of whom some may have got something back."""
        return min((self._virtual, *(active[0][0] for active in self._active if active)))

    def _move(self, account: Account, by: float) -> None:
        if not account.waiting:
            account.counter += by
            return
        waits = [tier for tier in range(_TIERS) if account.lines[tier]]
        for tier in waits:
            self._unlink(account, tier)
        account.counter += by
        for tier in waits:
            insort(self._active[tier], (account.counter, account.name, account))

    def ahead_of(self, ticket: Ticket) -> float:
        """Work that would be served before `ticket`, were it added now: of others only a fair share."""
        own = self._accounts.get(ticket.tenant)
        mine = own.work if own is not None else 0.0
        fair = (mine + ticket.work) / ticket.weight
        total, asked = mine, 0
        for active in self._active:
            for _, _, account in active[:_MOST_ASKED]:
                if account is not own:
                    total += min(account.work, fair * account.weight)
                    asked += 1
        if asked >= _MOST_ASKED:
            total *= max(self.tenants / asked, 1.0)
        return min(total, self.work)

    def share_of(self, tenant: str) -> float:
        """The part of the waiting work that is `tenant`'s."""
        account = self._accounts.get(tenant)
        return account.work / self.work if account is not None and self.work > 0 else 0.0

    def _account(self, ticket: Ticket) -> Account:
        account = self._accounts.get(ticket.tenant)
        if account is None:
            if len(self._accounts) >= _MAX_ACCOUNTS:
                self._accounts = {name: one for name, one in self._accounts.items() if one.waiting}
            account = self._accounts[ticket.tenant] = Account(ticket.tenant, ticket.weight, 0.0)
        account.weight = ticket.weight
        return account

    def _unlink(self, account: Account, tier: int) -> None:
        active = self._active[tier]
        del active[bisect_left(active, (account.counter, account.name))]
