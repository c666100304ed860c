"""What the admin port answers, about a stand-in of the application."""

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sidecar.admin_routes import STUCK_AFTER_S, routes
from sidecar.balance.load import EngineLoad
from sidecar.config import decode
from sidecar.net.admin import AdminReply
from sidecar.plane import Plane
from sidecar.telemetry.record import Record
from tests.harness.clock import FakeClock

SECRET = "cd" * 32
CONFIG = f"""
engine: {{address: '127.0.0.1:8000'}}
redis: {{url: redis://:hunter2@127.0.0.1:6379/0}}
tenants: [{{name: acme, key_sha256: ["{SECRET}"]}}]
"""


class Loop:
    """An event loop that gets to everything at once, or, stuck, to nothing."""

    def __init__(self) -> None:
        self.ended = False

    def call_soon_threadsafe(self, call: Callable[[], None]) -> None:
        if self.ended:
            raise RuntimeError("Event loop is closed")
        call()


class App:
    """A data plane that serves, and whether it was told to stop."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.plane = Plane(decode(CONFIG, {}), "1.2.3", self.clock, NoDialer())
        self.plane.lifecycle.serving = True
        self.plane.lifecycle.beat = self.clock.now()
        self.drained = 0

    def drain(self) -> None:
        self.drained += 1


class NoDialer:
    def dial(self, *_: object) -> None:
        raise AssertionError


class Admin:
    def __init__(self) -> None:
        self.app = App()
        self.loop = Loop()
        self._routes = routes(self.app, self.loop)  # type: ignore[arg-type]

    def __call__(self, method: str, path: str, body: bytes = b"", **query: str) -> AdminReply:
        return self._routes[method, path](query, body)

    def text(self, method: str, path: str, body: bytes = b"", **query: str) -> tuple[int, str]:
        reply = self(method, path, body, **query)
        return reply.status, reply.body.decode().rstrip("\n")

    def json(self, method: str, path: str, **query: str) -> Any:
        return json.loads(self(method, path, **query).body)


@pytest.fixture
def admin() -> Admin:
    return Admin()


def record(number: int) -> Record:
    facts = dict.fromkeys(Record.__struct_fields__, 0)
    return Record(**facts | {"request_id": str(number), "cls": "batch", "stream": False})  # type: ignore[arg-type]


def test_live_while_the_loop_turns(admin: Admin) -> None:
    assert admin.text("GET", "/live") == (200, "live")
    admin.app.clock.advance(STUCK_AFTER_S - 0.1)
    assert admin.text("GET", "/live") == (200, "live")
    admin.app.clock.advance(0.1)
    assert admin.text("GET", "/live") == (503, "the event loop is stuck for 5 s")


def test_live_asks_nothing_of_the_loop(admin: Admin) -> None:
    admin.loop.ended = True
    assert admin.text("GET", "/live") == (200, "live")
    assert admin.text("GET", "/ready") == (200, "ready")


def test_ready_says_why_not(admin: Admin) -> None:
    admin.app.plane.endpoint.healthy = False
    assert admin.text("GET", "/ready") == (503, "the engine at 127.0.0.1:8000 is not healthy")
    admin.app.clock.advance(2.0)
    assert admin.text("GET", "/ready") == (503, "the event loop is 2.0 s late")
    admin.app.plane.lifecycle.draining = True
    assert admin.text("GET", "/ready") == (503, "draining")


def test_metrics(admin: Admin) -> None:
    reply = admin("GET", "/metrics")
    assert (reply.status, reply.content_type.partition(";")[0]) == (200, "text/plain")
    assert b',version="1.2.3"} 1.0' in reply.body


def test_the_configuration_is_shown_without_what_opens_doors(admin: Admin) -> None:
    reply = admin("GET", "/debug/config")
    shown = json.loads(reply.body)
    assert shown["engine"]["address"] == "127.0.0.1:8000"
    assert shown["tenants"][0]["name"] == "acme"
    assert SECRET.encode() not in reply.body
    assert b"hunter2" not in reply.body


def test_endpoints(admin: Admin) -> None:
    admin.app.plane.endpoint.carried = dict.fromkeys(range(3))
    admin.app.plane.endpoint.healthy = False
    admin.app.plane.engine_load.hear(EngineLoad(admin.app.plane.clock.now() - 2, kv_used=0.5))
    (found,) = admin.json("GET", "/debug/endpoints")
    load = found.pop("load")
    assert found == {"address": "127.0.0.1:8000", "healthy": False, "in_flight": 3}
    assert (load["kv_used"], load["waiting"], load["age_s"], load["counted_age_s"]) == (0.5, None, 2.0, None)


def test_decisions_are_the_newest_first(admin: Admin) -> None:
    for number in range(150):
        admin.app.plane.receipts.add(record(number))

    def shown(**query: str) -> list[str]:
        return [decision["request_id"] for decision in admin.json("GET", "/debug/decisions", **query)]

    assert shown(n="2") == ["149", "148"]
    assert shown(n="0") == []
    assert len(shown()) == 100
    assert len(shown(n="9" * 300)) == 150
    assert admin.json("GET", "/debug/decisions", n="1")[0]["class"] == "batch"


@pytest.mark.parametrize("n", ["", "-1", "all", "1.5", " 1"])
def test_a_number_of_decisions_is_a_number(admin: Admin, n: str) -> None:
    reply = admin("GET", "/debug/decisions", n=n)
    assert (reply.status, json.loads(reply.body)) == (400, {"error": f"n: expected a number, got {n!r}"})


def test_drain_is_asked_for_on_the_loop(admin: Admin) -> None:
    assert admin.text("POST", "/drain") == (202, "draining")
    assert admin.app.drained == 1
    admin.loop.ended = True
    with pytest.raises(TimeoutError):
        admin("POST", "/drain")


@pytest.fixture
def level() -> Iterator[logging.Logger]:
    logger = logging.getLogger("headgate")
    before = logger.level
    yield logger
    logger.setLevel(before)


def test_the_log_level_is_set_by_query_or_body(admin: Admin, level: logging.Logger) -> None:
    assert admin.text("PUT", "/log-level", level="DEBUG") == (200, "debug")
    assert level.level == logging.DEBUG
    assert admin.text("PUT", "/log-level", body=b"error\n") == (200, "error")
    assert level.level == logging.ERROR


@pytest.mark.parametrize("body", [b"", b"loud", b"\xff", b"notset"])
def test_another_level_changes_nothing(admin: Admin, level: logging.Logger, body: bytes) -> None:
    level.setLevel("INFO")
    status, said = admin.text("PUT", "/log-level", body=body)
    assert status == 400
    assert "expected one of debug, info, warning, error" in said
    assert level.level == logging.INFO


def test_every_route_is_asked_with_the_method_that_fits_it(admin: Admin) -> None:
    assert sorted(f"{method} {path}" for method, path in routes(admin.app, admin.loop)) == [  # type: ignore[arg-type]
        "GET /debug/config",
        "GET /debug/decisions",
        "GET /debug/endpoints",
        "GET /debug/queue",
        "GET /live",
        "GET /metrics",
        "GET /ready",
        "POST /drain",
        "PUT /log-level",
    ]
