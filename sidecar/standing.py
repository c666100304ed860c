"""How this pod stands, for people: who waits for what, and where work can go. Plain values for /debug."""

from __future__ import annotations

from itertools import islice
from math import inf
from typing import TYPE_CHECKING, Any, Final

from msgspec import to_builtins

if TYPE_CHECKING:
    from sidecar.balance.endpoint import Endpoint
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


def endpoints(plane: Plane) -> list[dict[str, Any]]:
    """The engine beside us, then the mesh's other pods by name.

    `until_s`: seconds until an ejection ends. `voters`: who asked for it. `heard_s`: since a peer last said
    how it is. What an engine said of its load is `age_s` old, or null: never.
    """
    own, now = plane.endpoint, plane.clock.now()
    said = to_builtins(own.load)
    ages = {name: now - said.pop(name) for name in ("at", "counted_at")}
    shown = {f"{name[:-2]}age_s": None if age == inf else round(age, 3) for name, age in ages.items()}
    first = {
        "pod": plane.hop.pod,
        "kind": "engine",
        **_about(plane, own, plane.hop.pod, now),
        "state": plane.state(),
        "why": _why(plane) or plane.unready() or "",
        "hung": own.hung,
        "share": round(plane.fleet.share, 3),
        "load": said | shown,
    }
    others = [
        {
            "pod": pod,
            "kind": "peer",
            **_about(plane, peer, pod, now),
            "state": "ejected" if peer.ejected else peer.state,
            "why": plane.judge.granted[pod].why if pod in plane.judge.granted else peer.why,
            "models": sorted(peer.models),
            "waiting_and_running": peer.waits,
            "utilization": round(peer.utilization, 3),
            "capacity_tokens": round(peer.capacity),
            "first_byte_s": round(peer.expected_s(now), 4),
            "heard_s": round(now - peer.heard, 3),
        }
        for pod, peer in sorted(plane.fleet.peers.items())
    ]
    return [first, *others]


def _why(plane: Plane) -> str:
    own = plane.judge.granted.get(plane.hop.pod)
    return own.why if own is not None and plane.endpoint.ejected else ""


def _about(plane: Plane, endpoint: Endpoint, pod: str, now: float) -> dict[str, Any]:
    grant = plane.judge.granted.get(pod)
    # A ticket lasts longer than the ejection: it is good for the trials after it, too.
    until = plane.judge.until if not endpoint.is_peer else grant.until if grant is not None else 0.0
    return {
        "address": endpoint.name,
        "healthy": endpoint.healthy,
        "ejected": endpoint.ejected,
        "until_s": round(until - now, 1) if endpoint.ejected and until > now else None,
        "voters": list(grant.voters) if grant is not None else [],
        "in_flight": endpoint.in_flight,
        "blocked_s": round(max(endpoint.blocked_until - now, endpoint.not_before - now, 0.0), 3),
    }
