"""How admission stands, for people: what bounds it, and who waits for what. Plain values for /debug/queue."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from sidecar.flow.admission import Admission
    from sidecar.flow.ticket import Ticket
    from sidecar.plane import Plane

_TIERS: Final = ("invited", "first", "repeat")


def standing(plane: Plane, most: int) -> dict[str, Any]:
    """The gate, its classes, and up to `most` of those who wait."""
    admission, now = plane.admission, plane.clock.now()
    controller, meter = admission.controller, admission.meter
    names = list(plane.config.classes)
    return {
        "mode": plane.config.admission.mode,
        "running": admission.in_flight,
        "queued": admission.queued,
        "queued_bytes": admission.queued_bytes,
        "seats": admission.seats,
        "room_tokens": round(admission.room),
        "limit_tokens": round(controller.limit),
        "limit_moved_by": controller.why,
        "kv_tokens": round(controller.capacity),
        "backlog_tokens": round(admission.backlog),
        "backlog_s": round(admission.backlog_s(now), 3),
        "prompt_tokens_per_s": round(meter.prompt_rate),
        "work_tokens_per_s": None if meter.work_rate is None else round(meter.work_rate),
        "inter_token_ms": round(meter.itl_s * 1000, 1),
        "tenants_held": sorted(admission.anomaly.held),
        "classes": [
            {
                "class": name,
                "queued": len(queue),
                "queued_work": round(queue.work),
                "ceiling": round(ceiling, 3),
                "blocked_by": blocked_by(admission, cls, now),
            }
            for cls, (name, queue, ceiling) in enumerate(
                zip(names, admission.queues, admission.ceilings, strict=True)
            )
        ],
        "waiting": [_one(ticket, names, now) for ticket in islice(admission.waiting(), most)],
    }


def _one(ticket: Ticket, names: list[str], now: float) -> dict[str, Any]:
    return {
        "request_id": ticket.member.request_id.decode("latin-1"),
        "class": names[ticket.cls],
        "tenant": ticket.tenant,
        "tier": _TIERS[ticket.tier],
        "waited_ms": round((now - ticket.queued) * 1000),
        "predicted_ms": round(ticket.predicted * 1000),
        "due_in_ms": round((ticket.due - now) * 1000),
        "position_on_arrival": ticket.position,
        "prompt_tokens": round(ticket.prompt),
        "answer_tokens": round(ticket.answer),
        "work": round(ticket.work),
    }


def blocked_by(admission: Admission, cls: int, now: float) -> str | None:
    """What the next of a class waits for; None: nobody waits, or its turn has come."""
    head = admission.queues[cls].head()
    if head is None:
        return None
    if any(len(queue) for queue in admission.queues[:cls]):
        return "a higher class"
    if admission.fits(head, cls, now):
        return None
    if admission.in_flight >= admission.seats * admission.ceilings[cls]:
        return "seats"
    full = admission.room + head.room > admission.controller.limit * admission.ceilings[cls]
    return "room" if full else "prompts that are not computed yet"
