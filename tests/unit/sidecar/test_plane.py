"""The data plane as a whole: what a reload keeps, when it wants no work, and what it shows of itself."""

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from sidecar.config import decode
from sidecar.exchange import Exchange
from sidecar.plane import Plane
from tests.harness.clock import FakeClock
from tests.harness.engine import SSE, chunked, ok
from tests.harness.wire import CHAT, FakeDialer, Wire, get, post, post_chunked


def inside(wire: Wire) -> list[Exchange]:
    return [client._x for client in wire.context.clients if client._x is not None]


# A long prompt.


@pytest.mark.parametrize("mode", ["on", "shadow", "off"])
def test_the_first_long_prompt_is_not_taken_for_a_hang(mode: str) -> None:
    wire = Wire(f"admission: {{mode: '{mode}'}}")
    (wire.client() >> post(CHAT, b'{"stream": true}')).received()
    wire.engine >> SSE + chunked(b"data: {}\n\n")
    long = b'{"stream": true, "prompt": "%b"}' % (b"word " * 8000)
    client = wire.client() >> post(CHAT, long)
    wire.advance(30.0)
    assert not wire.endpoint.hung
    wire.engine >> SSE + chunked(b"data: {}\n\n")
    assert client.answer(b"POST").status == 200


# Reloads.


def test_what_was_learnt_survives_a_reload() -> None:
    wire = Wire()
    plane = wire.plane
    wire.client() >> get("/sleep")
    (wire.client() >> get()).received()
    wire.engine >> ok()
    reloaded = ("config", "_admit", "_pick")
    before = {name: value for name, value in vars(plane).items() if name not in reloaded}
    pipeline = plane.context.pipeline
    wire.configure("drain_s: 7")
    assert {name: value for name, value in vars(plane).items() if name not in reloaded} == before
    assert plane.config.drain_s == 7
    assert plane.context.pipeline is not pipeline
    assert plane.context.pipeline._ready is pipeline._ready, "the old and the new one wake each other's"
    assert [record.reason for record in wire.receipts.last(10)] == ["", "forbidden"]
    wire.client() >> get()
    assert len(wire.engines) == 1, "the engine's connection is used again"


def test_every_number_is_in_force_for_what_begins_then() -> None:
    wire = Wire()
    wire.configure("""
max_buffered_bytes: 4096
max_body_bytes: 2048
max_connections: 12
max_loop_lag_ms: 250
admission:
  {max_in_flight: 3, max_queue: 4, max_queue_bytes: 4096, aging_s: 5, invited: 0.5, mode: shadow,
   overload_status: 529}
classes: {premium: {share: 0.5, ceiling: 0.9, ttft_s: 2, itl_ms: 40}, batch: {max_wait_s: 7}}
timeouts: {stall_s: 5}
trusted_proxies: [10.0.0.0/8]
telemetry: {receipts: 2, access_log: all}
""")
    plane, context = wire.plane, wire.context
    admission = plane.admission
    assert (admission.seats, admission.max_queue, admission.max_bytes) == (3, 4, 4096)
    assert (admission.aging_s, admission.invitations.part, admission.shadow) == (5, 0.5, True)
    premium, _, batch = admission.terms
    assert (premium.share, premium.ceiling, premium.wait_s, premium.itl_ms) == (0.5, 0.9, 2, 40)
    assert (batch.share, batch.wait_s) == (0.05, 7)
    assert (plane.bodies.limit, plane.lifecycle.limit_s) == (4096, 0.25)
    assert (context.max_connections, context.overload_status, context.timeouts.stall_s) == (12, 529, 5)
    assert context.trust.covers("10.1.2.3")
    for _ in range(3):
        wire.client() >> get("/sleep")
    assert len(wire.receipts.last(10)) == 2
    assert plane.access_log.take().count(b"\n") == 3
    x = post(CHAT, b"x" * 2049)
    assert (wire.client() >> x).answer(b"POST").reason == "body_too_large"


def test_what_runs_keeps_the_pipeline_and_the_time_outs_it_began_with() -> None:
    wire = Wire("max_body_bytes: 4096\ntimeouts: {stall_s: 600}")
    client = wire.client() >> post_chunked(CHAT, b"x", last=False)
    (x,) = inside(wire)
    pipeline, timeouts = x.pipeline, x.timeouts
    wire.configure("max_body_bytes: 1024\ntimeouts: {stall_s: 1}")
    client >> b"800\r\n" + b"x" * 2048 + b"\r\n0\r\n\r\n"
    assert (x.pipeline, x.timeouts) == (pipeline, timeouts)
    assert len(wire.engine.request().body) == 2049
    wire.engine >> SSE + chunked(b"a", last=False)
    wire.advance(60)
    assert client.is_open


def test_a_higher_limit_lets_in_who_waits() -> None:
    wire = Wire("admission: {max_in_flight: 1}")
    for _ in range(4):
        wire.client() >> post()
    assert (wire.gate.in_flight, wire.gate.queued) == (1, 3)
    wire.configure("admission: {max_in_flight: 3}")
    assert (wire.gate.in_flight, wire.gate.queued, len(wire.engines)) == (3, 1, 3)


def test_what_the_cache_holds_is_known_from_a_reload_on_and_the_limit_keeps_its_part_of_it() -> None:
    wire = Wire()
    limit = wire.plane.admission.controller.limit
    engine_is(wire, "127.0.0.1:8000", more=", kv_tokens: 240000")
    assert wire.plane.admission.controller.capacity == 240_000
    assert wire.plane.admission.controller.limit == 2 * limit
    engine_is(wire, "127.0.0.1:8000")
    assert wire.plane.admission.controller.capacity == 240_000, "nobody says that it is another one"


def test_bodies_that_are_held_count_in_the_budget_of_a_reload() -> None:
    wire = Wire("max_buffered_bytes: 4096\nmax_body_bytes: 2048")
    for _ in range(2):
        wire.client() >> post(CHAT, b"x" * 1500)
    wire.configure("max_buffered_bytes: 3500\nmax_body_bytes: 2048")
    assert (wire.client() >> post(CHAT, b"x" * 501)).answer(b"POST").reason == "overloaded"
    for engine in wire.engines:
        engine >> ok()
    wire.assert_at_rest()


def engine_is(wire: Wire, address: str, health: str = "none", more: str = "") -> None:
    """A reload that changes the engine alone."""
    engine = f"engine: {{address: '{address}', health: {{kind: {health}}}{more}}}"
    wire.plane.put_in_force(decode(engine, {}))
    wire.settle()


def test_another_engine_is_another_endpoint() -> None:
    wire = Wire()
    old = wire.client() >> get("/old")
    engine_is(wire, "127.0.0.1:8001")
    new = wire.client() >> get("/new")
    assert [engine.endpoint.name for engine in wire.engines] == ["127.0.0.1:8000", "127.0.0.1:8001"]
    assert wire.plane.endpoint.in_flight == wire.endpoint.in_flight == 1
    for engine in wire.engines:
        engine >> ok()
    assert (old.answer().status, new.answer().status) == (200, 200)
    assert wire.plane.endpoint.in_flight == wire.endpoint.in_flight == 0


@pytest.mark.parametrize(("health", "welcome"), [("none", True), ("http", False), ("grpc", False)])
def test_where_there_are_checks_another_engine_has_to_pass_one_first(health: str, welcome: bool) -> None:
    wire = Wire()
    engine_is(wire, "127.0.0.1:8001", health)
    assert wire.plane.endpoint.healthy == welcome


def test_an_engine_that_is_the_same_stays_as_healthy_as_it_was() -> None:
    wire = Wire()
    engine_is(wire, "127.0.0.1:8000", "http")
    assert wire.plane.endpoint is wire.endpoint
    assert wire.endpoint.healthy
    wire.endpoint.healthy = False
    engine_is(wire, "127.0.0.1:8000", "grpc")
    assert not wire.endpoint.healthy


# Ready or not.


@pytest.fixture
def plane() -> Plane:
    """One that serves, and whose loop has just turned."""
    wire = Wire()
    wire.lifecycle.serving = True
    wire.lifecycle.beat = wire.clock.now()
    return wire.plane


def clock(plane: Plane) -> FakeClock:
    assert isinstance(plane.clock, FakeClock)
    return plane.clock


def test_nobody_is_welcome_before_it_serves() -> None:
    assert Wire().plane.unready() == "starting"


def test_why_new_work_is_not_welcome(plane: Plane) -> None:
    assert plane.unready() is None
    plane.endpoint.healthy = False
    assert plane.unready() == "the engine at 127.0.0.1:8000 is not healthy"
    plane.lifecycle.tick(clock(plane).now(), clock(plane).now() - 2.25, 0.05)
    assert plane.unready() == "the event loop is 2.2 s late"
    plane.lifecycle.draining = True
    assert plane.unready() == "draining"


def test_the_services_are_the_pod_its_engine_and_its_models(plane: Plane) -> None:
    assert plane.services() == {"": True, "engine": True}
    plane.catalog.load(b'{"data": [{"id": "llama"}, {"id": "sql", "parent": "llama"}, {"id": "engine"}]}')
    assert plane.services() == {"": True, "engine": True, "llama": True, "sql": True}
    plane.lifecycle.lagging = True
    assert plane.services() == {"": False, "engine": True, "llama": False, "sql": False}
    plane.lifecycle.lagging = False
    plane.endpoint.hung = True
    assert plane.services()["engine"] is False, "whatever its check says"
    plane.endpoint.hung = False
    plane.endpoint.healthy = False
    assert plane.services() == {"": False, "engine": False, "llama": False, "sql": False}
    plane.catalog.load(b'{"data": []}')
    assert plane.services() == {"": False, "engine": False}


def test_a_pod_that_is_full_serves_all_the_same() -> None:
    """Else its balancer would send everybody to the others, and these would be full next."""
    wire = Wire("admission: {max_in_flight: 1, max_queue: 1}")
    wire.lifecycle.serving = True
    wire.lifecycle.beat = wire.clock.now()
    wire.plane.catalog.load(b'{"data": [{"id": "llama"}]}')
    wire.client() >> post()
    wire.client() >> post()
    assert (wire.client() >> post()).answer(b"POST").reason == "queue_full"
    assert wire.plane.services() == {"": True, "engine": True, "llama": True}


def test_a_loop_that_says_nothing_is_late(plane: Plane) -> None:
    """Nobody has to tell: whoever asks sees when it last turned."""
    clock(plane).advance(1.5)  # max_loop_lag_ms and a second
    assert plane.unready() is None
    clock(plane).advance(0.125)
    assert plane.unready() == "the event loop is 1.6 s late"
    assert plane.late_s() == 1.625
    plane.lifecycle.beat = clock(plane).now()
    assert plane.unready() is None


def test_a_reload_decides_how_late_is_late(plane: Plane) -> None:
    plane.put_in_force(decode("engine: {address: '127.0.0.1:8000'}\nmax_loop_lag_ms: 3000", {}))
    clock(plane).advance(3.5)
    assert plane.unready() is None
    clock(plane).advance(1.0)
    assert plane.unready() == "the event loop is 4.5 s late"


def test_a_lag_sheds_new_work_and_nothing_else() -> None:
    wire = Wire("admission: {max_in_flight: 1}")
    first, second = wire.client() >> post(), wire.client() >> post()
    now = wire.clock.now()
    wire.lifecycle.tick(now, now - 2, 0.05)
    caller = wire.client() >> post()
    refusal = caller.answer(b"POST")
    assert (refusal.status, refusal.reason, refusal[b"x-headgate-elsewhere"]) == (503, "overloaded", b"1")
    assert int(refusal[b"retry-after-ms"]) == 1200
    assert (wire.gate.in_flight, wire.gate.queued) == (1, 1)
    caller >> get("/health")
    wire.engine >> ok(b"well")
    assert caller.answer().body == b"well"
    wire.engines[0] >> ok()
    wire.engines[0] >> ok()
    assert [client.answer(b"POST").status for client in (first, second)] == [200, 200]
    wire.assert_at_rest()


def gauges(plane: Plane) -> dict[str, float]:
    return {
        "".join(sample.labels.values()) or sample.name.removeprefix("headgate_"): sample.value
        for family in parse(plane.metrics.render("")[0].decode())
        for sample in family.samples
        if family.type == "gauge" and family.name.startswith("headgate_") and family.name != "headgate_info"
    }


def test_the_gauges_show_what_there_is() -> None:
    wire = Wire("admission: {max_in_flight: 2}\ntelemetry: {access_log: all}")
    wire.lifecycle.serving = True
    wire.lifecycle.beat, wire.lifecycle.lag_s = wire.clock.now(), 0.25
    for _ in range(5):
        wire.client() >> post(CHAT, b"x" * 100)
    wire.client() >> post(CHAT, b"x" * 100, "x-priority: batch")
    admission = wire.plane.admission
    admission.invitations.remember(("anonymous", 1, 1), 0.0, wire.clock.now(), None)
    assert gauges(wire.plane) == {
        "in_flight": 2,
        "queued": 4,
        "premium": 0,
        "standard": 3,
        "batch": 1,
        "admission_limit_tokens": admission.controller.limit,
        "admission_room_tokens": admission.room,
        "admission_backlog_tokens": admission.backlog,
        "admission_work_rate": 0,  # nothing is known
        "admission_prompt_rate": admission.meter.prompt_rate,
        "tenants_held": 0,
        "refused_remembered": 1,
        "board_connected": 0,  # the owner of the mesh knows
        "board_dropped_entries": 0,
        "mesh_connected": 0,
        "mesh_peers": 0,
        "downstream": 6,
        "upstream": 2,
        "buffered_bytes": 600,
        "loop_lag_seconds": 0.25,
        "timers": 6 + 2 + 4,  # of clients, of connections to the engine, of those who wait
        "event_loop_tasks": 0,  # the loop's owner knows them
        "accepting": 1,
        "ready": 1,
        "access_log_dropped_lines": 0,
    }
    assert min(admission.room, admission.backlog) > 0
    wire.lifecycle.crowded = True
    assert (gauges(wire.plane)["accepting"], gauges(wire.plane)["ready"]) == (0, 1)
    wire.lifecycle.crowded, wire.lifecycle.draining = False, True
    assert (gauges(wire.plane)["accepting"], gauges(wire.plane)["ready"]) == (0, 0)


# All stages together.


def test_a_deadline_that_has_passed_when_its_turn_comes_is_not_dispatched() -> None:
    """The slot became free before the timers had their turn."""
    wire = Wire("admission: {max_in_flight: 1, queue_timeout_s: 60}")
    wire.client() >> post()
    client = wire.client() >> post(CHAT, b"{}", "x-request-timeout-ms: 4000")
    third = wire.client() >> post(CHAT, b"{}")
    wire.clock.advance(10)
    wire.engine >> ok()
    refusal = client.answer(b"POST")
    assert (refusal.status, refusal.reason) == (503, "overloaded")
    assert refusal[b"x-should-retry"] == b"false", "it was asked for by then"
    assert (wire.gate.in_flight, wire.gate.queued) == (1, 0), "its slot went to the next"
    assert wire.record.endpoint == ""
    wire.engine >> ok()
    assert third.answer(b"POST").status == 200
    wire.assert_at_rest()


def test_the_series_of_metrics_are_bounded_from_the_start() -> None:
    config = decode("engine: {address: '127.0.0.1:8000'}\ntelemetry: {max_series: 1}", {})
    plane = Plane(config, "1.2.3", FakeClock(), FakeDialer(Wire()))
    series = [plane.metrics.series(tenant, "m", "standard") for tenant in "abc"]
    assert series[1] is series[2]
    assert b',version="1.2.3"} 1.0' in plane.metrics.render("")[0]


def test_what_cannot_be_built_leaves_all_as_it_was(plane: Plane) -> None:
    before = (plane.config, plane.endpoint, plane.context.pipeline, plane.admission.seats)
    broken = decode("engine: {address: '127.0.0.1:9'}\nadmission: {max_in_flight: 1}", {})
    msgspec.structs.force_setattr(broken, "trusted_proxies", ("no network",))
    with pytest.raises(ValueError, match="no network"):
        plane.put_in_force(broken)
    assert (plane.config, plane.endpoint, plane.context.pipeline, plane.admission.seats) == before
