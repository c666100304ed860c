"""What /debug/queue shows of a gate with somebody before it, and /debug/endpoints of a pod and its peers."""

import json

from sidecar.standing import endpoints, standing
from tests.harness.wire import Wire, post
from tests.unit.sidecar.stages.judging import Judged


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


# Where work can go.


def test_an_engine_without_a_mesh() -> None:
    wire = Wire()
    wire.client() >> post()
    (own,) = endpoints(wire.plane)
    assert (own["pod"], own["kind"], own["address"]) == ("", "engine", "127.0.0.1:8000")
    assert (own["state"], own["why"], own["healthy"], own["hung"]) == ("down", "starting", True, False)
    assert (own["in_flight"], own["share"], own["voters"], own["until_s"]) == (1, 1.0, [], None)
    assert (own["load"]["waiting"], own["load"]["age_s"], own["load"]["counted_age_s"]) == (None, None, None)
    json.dumps(own, allow_nan=False)


def test_an_engine_that_has_said_how_full_it_is() -> None:
    pod = Judged()
    load = pod.endpoint.load
    load.waiting, load.at = 3, pod.clock.now() - 0.5
    own = endpoints(pod.plane)[0]
    assert (own["state"], own["why"]) == ("serving", "")
    assert (own["load"]["waiting"], own["load"]["age_s"], own["load"]["counted_age_s"]) == (3, 0.5, None)


def test_peers_by_name_and_what_they_say() -> None:
    pod = Judged(peers=0)
    pod.hears(2, "down", why="lost")
    pod.hears(1, models=("b", "a"), waiting=2, running=3, utilization=0.4567, capacity=99.9)
    pod.plane.fleet.peers["pod-1"].block(pod.clock.now())
    pod.advance(0.25)
    own, first, second = endpoints(pod.plane)
    assert (own["pod"], first["pod"], second["pod"]) == ("pod-0", "pod-1", "pod-2")
    assert (first["kind"], first["address"], first["state"], first["why"]) == (
        "peer", "10.0.0.1:80", "serving", "",
    )  # fmt: skip
    assert (first["models"], first["waiting_and_running"], first["utilization"]) == (["a", "b"], 5, 0.457)
    assert (first["capacity_tokens"], first["heard_s"], first["blocked_s"]) == (100, 0.25, 0.25)
    assert (second["state"], second["why"]) == ("down", "lost")
    json.dumps(own, allow_nan=False)


def test_who_is_ejected_why_and_for_how_long() -> None:
    pod = Judged(peers=4)
    pod.board.ejects("pod-0", 65.0, "pod-1", "pod-2")
    pod.board.ejects("pod-3", 40.0, "pod-0")
    pod.pass_time(1.0)
    own, *_, third, fourth = endpoints(pod.plane)
    assert (own["state"], own["why"], own["voters"]) == ("ejected", "consecutive_5xx", ["pod-1", "pod-2"])
    assert (own["ejected"], own["until_s"]) == (True, 30.0)
    assert (third["state"], third["why"], third["voters"]) == ("ejected", "consecutive_5xx", ["pod-0"])
    assert (third["ejected"], third["until_s"]) == (True, 39.0)
    assert (fourth["state"], fourth["until_s"], fourth["voters"]) == ("serving", None, [])


def test_an_engine_that_is_out_without_a_ticket() -> None:
    pod = Judged()
    pod.board.here = False
    pod.fails()
    own = endpoints(pod.plane)[0]
    assert (own["state"], own["why"]) == ("ejected", "the engine at 127.0.0.1:8000 is ejected")
    assert (own["until_s"], own["voters"]) == (30.0, [])
