"""What /debug/queue shows of a gate with somebody before it."""

import json

from sidecar.standing import standing
from tests.harness.wire import Wire, post


def body(text: str) -> bytes:
    return json.dumps({"stream": True, "messages": [{"role": "user", "content": text}]}).encode()


def test_who_waits_and_why() -> None:
    wire = Wire("admission: {max_in_flight: 1}")
    for text in ("one", "two", "three"):
        fields = "x-priority: batch", f"x-request-id: {text}"
        wire.client() >> post("/v1/chat/completions", body(text), *fields)
    wire.advance(1.0)
    shown = standing(wire.plane, 10)
    assert (shown["running"], shown["queued"], shown["mode"]) == (1, 2, "on")
    batch = next(one for one in shown["classes"] if one["class"] == "batch")
    assert (batch["queued"], batch["blocked_by"]) == (2, "seats")
    assert [one["request_id"] for one in shown["waiting"]] == ["two", "three"]
    second = shown["waiting"][1]
    assert (second["class"], second["tenant"], second["tier"]) == ("batch", "anonymous", "first")
    assert second["waited_ms"] == 1000
    assert second["due_in_ms"] == 29_000
    assert second["position_on_arrival"] == 1
    json.dumps(shown)


def test_no_more_than_was_asked_for() -> None:
    wire = Wire("admission: {max_in_flight: 1}")
    for n in range(4):
        wire.client() >> post("/v1/chat/completions", body(str(n)))
    assert len(standing(wire.plane, 2)["waiting"]) == 2


def test_a_lower_class_waits_for_a_higher_one_and_for_room() -> None:
    wire = Wire("admission: {max_in_flight: 4}")
    wire.plane.admission.controller.fraction = 0.1
    long = body("words " * 10_000)
    for cls in ("standard", "standard", "batch"):
        wire.client() >> post("/v1/chat/completions", long, f"x-priority: {cls}")
    why = {one["class"]: one["blocked_by"] for one in standing(wire.plane, 10)["classes"]}
    assert why == {"premium": None, "standard": "room", "batch": "a higher class"}
