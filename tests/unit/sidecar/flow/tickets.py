"""Tickets and gates for tests, with everything that a test does not care about."""

from __future__ import annotations

from typing import Any

from sidecar.flow.admission import ENTERED, QUEUED, Admission, Terms
from sidecar.flow.controller import Controller
from sidecar.flow.ticket import Ticket

HIGH, MIDDLE, LOW = range(3)
TERMS = (
    Terms(share=0.4, wait_s=1.0),
    Terms(share=0.0, wait_s=3.0),
    Terms(share=0.0, wait_s=30.0),
)


def ticket(cls: int = HIGH, tenant: str = "a", **changes: Any) -> Ticket:
    """A request for 100 tokens that 100 tokens answer: 500 of work, 164 of room."""
    given: dict[str, Any] = {
        "member": None, "weight": 1.0, "came": 0.0, "due": 1e6,
        "prompt": 100.0, "fresh": 100.0, "answer": 100.0,
    }  # fmt: skip
    given = {name: changes.pop(name, value) for name, value in given.items()}
    found = Ticket(cls=cls, tenant=tenant, **given)
    for name, value in changes.items():
        assert hasattr(found, name), name
        setattr(found, name, value)
    return found


def gate(seats: int = 1, *, max_queue: int = 1000, capacity: float = 1e9, **changes: Any) -> Admission:
    """As many `seats` as a test wants to fill; memory for everything, and prompts take no time."""
    terms = changes.pop("terms", TERMS)
    found = Admission(
        terms, Controller(capacity, known=True, fraction=1.0), now=0.0, seats=seats, max_queue=max_queue
    )
    found.meter.prompt_rate = 1e12
    for name, value in changes.items():
        assert hasattr(found, name), name
        setattr(found, name, value)
    return found


def busy(seats: int = 1, **changes: Any) -> Admission:
    """A gate whose every seat is taken."""
    found = gate(seats, **changes)
    for _ in range(seats):
        assert found.arrive(ticket(tenant="first"), 0.0) == ENTERED
    return found


def wait(admission: Admission, one: Ticket, now: float = 0.0) -> Ticket:
    assert admission.arrive(one, now) == QUEUED
    return one


def turn(admission: Admission, now: float = 0.0) -> Ticket | None:
    """Somebody has got its answer, and so the next one enters."""
    one = next(iter(admission.running))
    admission.on_first_token(one, now)
    one.tokens = int(one.answer)
    admission.leave(one)
    return admission.next_in(now)


def order(admission: Admission, now: float = 0.0) -> list[Ticket | None]:
    return [turn(admission, now) for _ in range(admission.queued)]


def measured(admission: Admission, work: float = 1000.0, prompt: float = 10_000.0) -> Admission:
    """It is known how fast the engine is, in tokens a second."""
    admission.meter.work_rate, admission.meter.prompt_rate = work, prompt
    return admission
