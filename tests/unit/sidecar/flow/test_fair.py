"""Whose turn it is inside a class: tiers, tenants, deadlines; and what that costs."""

from __future__ import annotations

from math import log2
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from sidecar.flow.fair import ClassQueue
from sidecar.flow.ticket import FIRST, INVITED, REPEAT, Ticket
from tests.unit.sidecar.flow.tickets import ticket

if TYPE_CHECKING:
    from collections.abc import Callable


def waiting(*tickets: Ticket) -> ClassQueue:
    """`tickets` in order of arrival."""
    queue = ClassQueue()
    for serial, one in enumerate(tickets):
        one.serial = serial
        queue.add(one)
    return queue


def take(queue: ClassQueue) -> Ticket:
    """The next one is dispatched."""
    head = queue.head()
    assert head is not None
    queue.remove(head)
    queue.serve(head)
    return head


def order(queue: ClassQueue) -> list[Ticket]:
    return [take(queue) for _ in range(len(queue))]


def test_invited_before_first_attempts_before_repeats() -> None:
    """Even when those are due first, and when their tenants have had less."""
    repeat = ticket(tier=REPEAT, tenant="poor", due=1.0)
    first = ticket(tier=FIRST, tenant="rich", due=2.0)
    invited = ticket(tier=INVITED, tenant="rich", due=3.0)
    queue = waiting(repeat, first, invited)
    queue.serve(ticket(tenant="rich", answer=1000.0))
    assert order(queue) == [invited, first, repeat]


def test_earliest_deadline_first_inside_a_tenant() -> None:
    late, soon, middle = ticket(due=30.0), ticket(due=10.0), ticket(due=20.0)
    assert order(waiting(late, soon, middle)) == [soon, middle, late]


def test_a_deadline_says_nothing_between_tenants() -> None:
    """Or whoever claims to be in a hurry would have it all."""
    queue = waiting(*(ticket(tenant=tenant, due=due) for tenant, due in [("hasty", 1.0), ("calm", 9.0)] * 20))
    served = [one.tenant for one in order(queue)]
    assert served[:20].count("calm") == 10


def test_in_order_of_arrival_among_equals() -> None:
    tickets = [ticket() for _ in range(5)]
    assert order(waiting(*tickets)) == tickets


def test_who_has_had_less_goes_first() -> None:
    had, has_not = ticket(tenant="had"), ticket(tenant="has not")
    queue = waiting(had, has_not)
    queue.serve(ticket(tenant="had"))
    assert order(queue) == [has_not, had]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 2.0), (1.0, 10.0), (0.5, 7.0)])
def test_two_that_always_wait_get_by_weight_within_two_of_the_largest(weights: tuple[float, float]) -> None:
    random = Random(7)
    queue, served, largest, serial = ClassQueue(), {"a": 0.0, "b": 0.0}, 0.0, 0

    def ask(tenant: str) -> None:
        nonlocal largest, serial
        # One of them asks for twenty times as much at once: it is work that counts.
        scale = 20.0 if tenant == "a" else 1.0
        weight = weights[tenant == "b"]
        one = ticket(tenant=tenant, weight=weight, answer=scale * random.uniform(1.0, 50.0), serial=serial)
        serial += 1
        largest = max(largest, one.work / one.weight)
        queue.add(one)

    for tenant in "ab" * 3:
        ask(tenant)
    for _ in range(2000):
        one = take(queue)
        served[one.tenant] += one.work / one.weight
        assert abs(served["a"] - served["b"]) <= 2 * largest
        ask(one.tenant)
    assert min(served.values()) > 5 * largest


def test_six_times_the_requests_get_no_more() -> None:
    tickets = [ticket(tenant=tenant) for tenant in ["noisy"] * 6 + ["quiet"] for _ in range(30)]
    Random(1).shuffle(tickets)
    served = [one.tenant for one in order(waiting(*tickets))]
    assert abs(served[:50].count("quiet") - 25) <= 2


def test_idling_saves_nothing_up() -> None:
    queue = waiting(*(ticket(tenant="busy") for _ in range(40)))
    queue.serve(ticket(tenant="idle"))
    for _ in range(20):
        take(queue)
    for serial in range(100, 120):
        queue.add(ticket(tenant="idle", serial=serial))
    served = [take(queue).tenant for _ in range(20)]
    assert 9 <= served.count("idle") <= 11


def test_a_newcomer_begins_where_the_others_are() -> None:
    queue = waiting(*(ticket(tenant="busy") for _ in range(40)))
    for _ in range(20):
        take(queue)
    for serial in range(100, 120):
        queue.add(ticket(tenant="new", serial=serial))
    served = [take(queue).tenant for _ in range(20)]
    assert 9 <= served.count("new") <= 11


def test_answers_that_were_shorter_than_expected_put_nobody_back_who_was_away() -> None:
    """What the others got back is not what a newcomer had."""
    queue = ClassQueue()
    before = [ticket(tenant="busy", answer=1000.0) for _ in range(10)]
    for one in before:
        queue.serve(one)
    for serial in range(20):
        queue.add(ticket(tenant="busy", serial=serial))
    for one in before:
        queue.settle(one, 100.0)
    take(queue)
    queue.add(ticket(tenant="idle", serial=100))
    assert "idle" in [take(queue).tenant for _ in range(2)]


def test_leaving_the_queue_pays_no_debt() -> None:
    """Who was served and comes back is still behind one that was not."""
    queue = waiting(ticket(tenant="heavy", answer=1000.0), ticket(tenant="light"))
    assert [take(queue).tenant, take(queue).tenant] == ["heavy", "light"]
    queue.add(ticket(tenant="heavy", serial=10))
    queue.add(ticket(tenant="light", serial=11))
    assert take(queue).tenant == "light"


def test_an_answer_that_took_more_than_expected_is_charged_when_it_ends() -> None:
    longer, shorter = ticket(tenant="longer"), ticket(tenant="shorter")
    queue = ClassQueue()
    queue.serve(longer)
    queue.serve(shorter)
    queue.add(ticket(tenant="longer", serial=1))
    queue.add(ticket(tenant="shorter", serial=2))
    queue.settle(longer, 4000.0)
    queue.settle(shorter, 100.0)
    assert [one.tenant for one in order(queue)] == ["shorter", "longer"]


def test_who_gave_nothing_pays_nothing() -> None:
    """A request that was sent back to the queue, or whose caller left at once."""
    queue = ClassQueue()
    first = ticket(tenant="z", answer=1000.0)
    queue.serve(first)
    queue.settle(first, 0.0)
    queue.add(ticket(tenant="z", serial=1))
    queue.add(ticket(tenant="a", serial=2, answer=1.0))
    assert [one.tenant for one in order(queue)] == ["a", "z"]  # level, hence by name
    queue = ClassQueue()
    queue.serve(ticket(tenant="a", answer=1.0))
    queue.serve(first)
    queue.settle(first, 0.0)
    queue.add(ticket(tenant="z", serial=1))
    queue.add(ticket(tenant="a", serial=2))
    assert [one.tenant for one in order(queue)] == ["z", "a"]


def test_the_last_is_the_least_important() -> None:
    """Of the last tier the tenant that has had most, and of that what is due last."""
    poor, rich_soon, rich_late = (
        ticket(tier=REPEAT, tenant="poor", due=99.0),
        ticket(tier=REPEAT, tenant="rich", due=5.0),
        ticket(tier=REPEAT, tenant="rich", due=6.0),
    )
    first_soon, first_late = ticket(due=7.0), ticket(due=8.0)
    invited = ticket(tier=INVITED, due=100.0)
    queue = waiting(poor, rich_soon, first_soon, invited, rich_late, first_late)
    queue.serve(ticket(tenant="rich"))
    assert list(queue.spared(-1)) == [rich_late, rich_soon, poor, first_late, first_soon, invited]
    assert list(queue.spared(FIRST)) == [rich_late, rich_soon, poor]


def test_who_leaves_is_gone_at_once() -> None:
    tickets = [ticket(tenant="ab"[n % 2], tier=n % 3, due=float(n % 5)) for n in range(30)]
    queue = waiting(*tickets)
    Random(3).shuffle(tickets)
    for left, one in enumerate(tickets, 1):
        queue.remove(one)
        assert len(queue) == 30 - left
        assert one not in list(queue)
    assert (queue.head(), [*queue.spared(-1)], queue.oldest, queue.work) == (None, [], None, 0.0)


def test_the_oldest_is_by_arrival_whoever_is_next() -> None:
    late, soon = ticket(due=9.0), ticket(due=1.0)
    queue = waiting(late, soon)
    assert (queue.oldest, queue.head(), list(queue)) == (late, soon, [late, soon])


def test_work_ahead_is_ones_own_and_a_fair_share_of_others() -> None:
    queue = waiting(*(ticket(tenant="noisy") for _ in range(100)), ticket(tenant="own"))
    own, new, noisy = ticket(tenant="own"), ticket(tenant="new"), ticket(tenant="noisy")
    assert queue.ahead_of(new) == pytest.approx(500.0 + 500.0)  # no more of each than its own
    assert queue.ahead_of(own) == pytest.approx(500.0 + 1000.0)
    assert queue.ahead_of(noisy) == queue.work
    assert queue.ahead_of(ticket(tenant="new", weight=2.0)) == pytest.approx(250.0 + 250.0)


def test_a_share_is_of_the_waiting_work() -> None:
    queue = waiting(ticket(tenant="a", answer=400.0), ticket(tenant="b", answer=100.0))
    assert queue.share_of("a") == pytest.approx(1700.0 / 2200.0)
    assert queue.share_of("nobody") == 0.0
    assert ClassQueue().share_of("a") == 0.0


def test_tenants_are_counted_once() -> None:
    queue = waiting(ticket(tenant="a"), ticket(tenant="a", tier=REPEAT), ticket(tenant="b"))
    assert queue.tenants == 2


def test_accounts_of_those_who_wait_no_longer_are_bounded() -> None:
    queue = waiting(ticket(tenant="stays"))
    for n in range(10_000):
        queue.serve(ticket(tenant=str(n)))
    assert len(queue._accounts) <= 4096
    assert queue.head() is not None


class Compared(float):
    """A deadline that counts how often it is asked whether it comes before another."""

    count = 0

    def __lt__(self, other: float) -> bool:
        Compared.count += 1
        return float.__lt__(self, other)

    def __gt__(self, other: float) -> bool:
        Compared.count += 1
        return float.__gt__(self, other)

    def __eq__(self, other: object) -> bool:
        Compared.count += 1
        return float.__eq__(self, other)

    __hash__ = float.__hash__

    def __neg__(self) -> Compared:
        return Compared(float.__neg__(self))


def one_tenant(_: int) -> dict[str, Any]:
    return {"tenant": "a"}


def a_tenant_each(n: int) -> dict[str, Any]:
    return {"tenant": f"t{n}", "weight": Compared(1.0)}


@pytest.mark.parametrize("who", [one_tenant, a_tenant_each])
def test_to_enter_and_to_leave_takes_logarithmic_comparisons(who: Callable[[int], dict[str, Any]]) -> None:
    """With 1,000 waiting. Comparisons, for times are not stable; three sorted lists are searched at most."""
    random = Random(5)
    queue = waiting(*(ticket(due=Compared(random.random()), **who(n)) for n in range(1000)))
    for account in queue._accounts.values():
        account.counter = Compared(account.counter)
    for n in range(200):
        one = ticket(due=Compared(random.random()), serial=1000 + n, **who(random.randrange(1000)))
        Compared.count = 0
        queue.add(one)
        take(queue)
        assert Compared.count <= 6 * 2 * log2(1000)
