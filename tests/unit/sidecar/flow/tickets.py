"""Tickets and gates for tests, with everything that a test does not care about."""

from __future__ import annotations

from typing import Any

from sidecar.flow.admission import Admission, Terms
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
    fields: dict[str, Any] = {
        "member": None, "weight": 1.0, "came": 0.0, "due": 1e6,
        "prompt": 100.0, "fresh": 100.0, "answer": 100.0,
    }  # fmt: skip
    return Ticket(cls=cls, tenant=tenant, **(fields | changes))


def gate(seats: int = 1, *, max_queue: int = 1000, capacity: float = 1e9, **changes: Any) -> Admission:
    """As many `seats` as a test wants to fill; memory for everything, and prompts take no time."""
    terms = changes.pop("terms", TERMS)
    found = Admission(
        terms, Controller(capacity, known=True, fraction=1.0), now=0.0, seats=seats, max_queue=max_queue
    )
    found.meter.prompt_rate = 1e12
    for name, value in changes.items():
        setattr(found, name, value)
    return found
