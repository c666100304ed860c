"""How full a pod is: what it hears of its engine, and what it tells."""


from sidecar.balance.load import EngineLoad, Occupancy
from sidecar.config import decode
from tests.harness.engine import ok
from tests.harness.wire import Answer, Wire, get, post


def report(answer: Answer) -> dict[str, float]:
    """The load report of an answer."""
    text = answer[b"endpoint-load-metrics"].decode().removeprefix("TEXT ")
    return {name.removeprefix("named_metrics."): float(value) for name, value in
            (entry.split("=") for entry in text.split(","))}  # fmt: skip


def test_answers_and_refusals_of_work_say_how_full_the_pod_is() -> None:
    wire = Wire("admission: {max_in_flight: 2, max_queue: 1}")
    first = wire.client() >> post()
    wire.client() >> post()
    wire.client() >> post()
    refused = (wire.client() >> post()).answer(b"POST")
    full = {"num_requests_running": 2, "num_requests_waiting": 1, "application_utilization": 1.5, "eps": 0}
    assert refused.reason == "queue_full"
    assert full.items() <= report(refused).items()
    wire.engines[0] >> ok()
    assert full.items() <= report(first.answer(b"POST")).items()
    assert b"endpoint-load-metrics" not in (wire.client() >> get("/sleep")).answer()


def test_the_report_comes_in_the_form_that_is_asked_for() -> None:
    wire = Wire()
    client = wire.client() >> get("/x", "endpoint-load-metrics-format: JSON")
    assert wire.engine.request()[b"endpoint-load-metrics-format"] == b"JSON", "the engine is asked too"
    wire.engine >> ok()
    assert client.answer()[b"endpoint-load-metrics"].startswith(b'JSON {"application_utilization":')


def test_the_engines_own_report_is_heard_and_goes_no_further() -> None:
    wire = Wire()
    for field in (
        b"endpoint-load-metrics: TEXT named_metrics.kv_cache_usage_perc=0.4, "
        b"named_metrics.num_requests_waiting=1.0",
        b"endpoint-load-metrics-bin: CQAAAAAAAOA/",
        b"endpoint-load-metrics: nonsense",
    ):
        client = wire.client() >> get("/x")
        wire.engine >> ok(b"", field)
        back = client.answer()
        seen = report(back)
        assert (seen["kv_cache_usage_perc"], seen["num_requests_waiting"]) == (0.4, 1), "one field, and ours"
        assert b"endpoint-load-metrics-bin" not in back
    load = wire.plane.engine_load
    assert (load.kv_used, load.waiting) == (0.4, 1)
    assert load.is_fresh(wire.clock.now(), 3.0)
    wire.advance(3.25)
    client = wire.client() >> get("/x")
    wire.engine >> ok()
    seen = report(client.answer())
    assert "kv_cache_usage_perc" not in seen
    assert seen["num_requests_waiting"] == 0


def test_whoever_waits_in_the_engine_does_not_run() -> None:
    wire = Wire("admission: {max_in_flight: 4}")
    for _ in range(3):
        wire.client() >> post()
    assert wire.plane.occupancy() == Occupancy(0, 3, 0.75)
    wire.plane.engine_load.take(EngineLoad(wire.clock.now(), waiting=2, kv_used=0.9))
    assert wire.plane.occupancy() == Occupancy(2, 1, 0.75, 0.9)
    wire.plane.engine_load.take(EngineLoad(wire.clock.now(), waiting=9))
    assert wire.plane.occupancy() == Occupancy(3, 0, 0.75), "others may use the engine too"


def test_whichever_is_scarcer_says_how_full_it_is() -> None:
    wire = Wire("admission: {max_in_flight: 4}")
    wire.client() >> post()
    admission = wire.plane.admission
    assert wire.plane.occupancy().utilization == 0.25
    admission.room = admission.controller.limit / 2
    assert wire.plane.occupancy().utilization == 0.5


def test_reports_can_be_switched_off_and_on() -> None:
    wire = Wire("telemetry: {orca: off}")
    for there in (False, True, False):
        wire.configure(f"telemetry: {{orca: {'on' if there else 'off'}}}")
        client = wire.client() >> get("/x")
        wire.engine >> ok(b"", b"endpoint-load-metrics: TEXT named_metrics.kv_cache_usage_perc=0.4")
        assert (b"endpoint-load-metrics" in client.answer()) == there


def test_another_engine_has_said_nothing_yet() -> None:
    wire = Wire()
    wire.plane.engine_load.take(EngineLoad(wire.clock.now(), waiting=2))
    wire.plane.page.take(b"tgi_queue_size 1\n", b"text/plain", wire.clock.now())
    wire.configure("drain_s: 7")
    assert wire.plane.engine_load.waiting == 2
    assert (wire.client() >> get("/metrics")).answer().body == b"tgi_queue_size 1\n"
    wire.plane.put_in_force(decode("engine: {address: '127.0.0.1:8001'}", {}))
    assert wire.plane.engine_load == EngineLoad()
    wire.client() >> get("/metrics")
    assert wire.engine.request().target == b"/metrics", "it is asked itself"


def test_how_long_a_page_is_believed_is_the_new_configurations() -> None:
    wire = Wire()
    wire.plane.page.take(b"tgi_queue_size 1\n", b"text/plain", wire.clock.now())
    wire.advance(4)
    assert wire.plane.page.shown(wire.clock.now()) is None
    engine = "{address: '127.0.0.1:8000', metrics: {interval_s: 2}}"
    wire.plane.put_in_force(decode(f"engine: {engine}", {}))
    assert wire.plane.page.shown(wire.clock.now()) is not None


def test_the_page_shows_who_waits_here() -> None:
    wire = Wire("admission: {max_in_flight: 1}")
    wire.plane.page.take(b"tgi_queue_size 1\n", b"text/plain", wire.clock.now())
    for _ in range(4):
        wire.client() >> post()
    assert (wire.client() >> get("/metrics")).answer().body == b"tgi_queue_size 4\n"
