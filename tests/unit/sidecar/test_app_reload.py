"""A sidecar gets another configuration: whole, or not at all. What that asks for in vain is said."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from sidecar.config import load
from tests.unit.sidecar.pod import CHUNKED, WITHIN_S, Caller, Pod, chunk, in_loop, until


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "headgate")
    return caplog


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["drain_s: 7", "drian_s: 8"], "drian_s: unknown key; did you mean drain_s?"),
        (["drain_s: 7", "max_body_bytes: 1TB"], "max_body_bytes: expected bytes"),
        (["drain_s: 7", "limits: ["], "line"),
    ],
)
def test_a_bad_file_changes_nothing(
    pod: Pod, log: pytest.LogCaptureFixture, lines: list[str], why: str
) -> None:
    async def scenario() -> None:
        async with pod.serving("drain_s: 5") as app:
            before, pipeline = app.plane.config, app.plane.context.pipeline
            pod.write(*lines)
            app.reload()
            await until(lambda: "the new configuration is refused, the old one stays in force" in log.text)
            assert why in log.text
            assert app.plane.config is before
            assert app.plane.context.pipeline is pipeline

    in_loop(scenario())


class Env(Mapping[str, str]):
    """An environment whose variables are found out when they are asked for."""

    def __init__(self, **variables: Callable[[], str]) -> None:
        self._variables = variables

    def __getitem__(self, name: str) -> str:
        return self._variables[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._variables

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)


def test_a_bug_in_reading_it_changes_nothing(pod: Pod, log: pytest.LogCaptureFixture) -> None:
    def break_down() -> str:
        raise ZeroDivisionError

    pod.env = Env(VARIABLE=break_down)
    said = "reading the new configuration failed, the old one stays in force"

    async def scenario() -> None:
        async with pod.serving("drain_s: 5") as app:
            before = app.plane.config
            pod.write("drain_s: ${VARIABLE}")
            app.reload()
            await until(lambda: said in log.text)
            assert app.plane.config is before
            assert "ZeroDivisionError" in log.text
            pod.write("drain_s: 7")
            app.reload()
            await until(lambda: app.plane.config.drain_s == 7)

    in_loop(scenario())


class Slow:
    """A variable that takes as long to read as the test says."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.allowed = threading.Event()

    def __call__(self) -> str:
        self.asked.set()
        assert self.allowed.wait(WITHIN_S)
        return "6"


def test_what_was_read_later_is_in_force_later(pod: Pod, log: pytest.LogCaptureFixture) -> None:
    """However long the first takes to read."""
    slow = Slow()
    pod.env = Env(VARIABLE=slow)

    async def scenario() -> None:
        async with pod.serving("drain_s: 5") as app:
            pod.write("drain_s: ${VARIABLE}")
            app.reload()
            await until(slow.asked.is_set)
            pod.write("drain_s: 7")
            for _ in range(2):
                app.reload()
            for _ in range(10):
                await asyncio.sleep(0)
            assert "the configuration has not changed" not in log.text, "nobody looked meanwhile"
            slow.allowed.set()
            await until(lambda: "the configuration has not changed" in log.text)
            assert app.plane.config.drain_s == 7
            assert log.text.count("the new configuration is in force") == 2

    in_loop(scenario())


def test_a_reload_that_is_overtaken_by_the_end_begins_nothing(
    pod: Pod, log: pytest.LogCaptureFixture
) -> None:
    slow = Slow()
    pod.env = Env(VARIABLE=slow)

    async def scenario() -> None:
        async with pod.serving("drain_s: 5") as app:
            pod.write("drain_s: ${VARIABLE}", engine=", health: {kind: http}")
            app.reload()
            await until(slow.asked.is_set)
            app.drain()
            await until(lambda: all(task.done() for task in app._watchers))
            slow.allowed.set()

    in_loop(scenario())
    assert "the new configuration is in force" not in log.text


@pytest.mark.parametrize(
    ("key", "lines"),
    [
        ("listen", []),
        ("admin", []),
        ("health_listen", []),
        ("mesh", ["redis: {url: 'redis://127.0.0.1:9'}", "mesh: {pod: p}"]),
    ],
)
def test_what_needs_a_restart_is_refused_with_that_word(
    pod: Pod, log: pytest.LogCaptureFixture, key: str, lines: list[str]
) -> None:
    addresses = {} if lines else {key: f"unix:{pod.folder}/elsewhere"}

    async def scenario() -> None:
        async with pod.serving("drain_s: 5") as app:
            pod.write("drain_s: 7", *lines, **addresses)
            app.reload()
            await until(lambda: f"refused: a change of {key} needs a restart" in log.text)
            assert app.plane.config.drain_s == 5, "nor is anything else of that file taken"

    in_loop(scenario())


def test_a_good_file_is_in_force_for_what_begins_then(pod: Pod, log: pytest.LogCaptureFixture) -> None:
    """What runs keeps the rules under which it began."""

    async def scenario() -> None:
        async with pod.serving("max_body_bytes: 1024") as app:
            old = await Caller.of(pod)
            old.send(CHUNKED + chunk(10))
            await until(lambda: any(not client.is_idle for client in app.plane.context.clients))
            pod.write("max_body_bytes: 4096")
            app.reload()
            await until(lambda: "the new configuration is in force" in log.text)
            new = await Caller.of(pod)
            new.send(CHUNKED + chunk(2000) + b"0\r\n\r\n")
            assert await new.answer() == (502, "connect_failed")
            old.send(chunk(2000))
            assert await old.answer() == (413, "body_too_large")

    in_loop(scenario())


def test_asked_to_reload_what_is_in_force(pod: Pod, log: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with pod.serving() as app:
            pod.write()
            app.reload()
            await until(lambda: "the configuration has not changed" in log.text)

    in_loop(scenario())


# What is asked for in vain.


@pytest.fixture
def no_level() -> Iterator[None]:
    """What a test sets the level of the program's log to does not outlast it."""
    logger = logging.getLogger("headgate")
    before = logger.level
    yield
    logger.setLevel(before)


def warned(log: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in log.records if r.name == "headgate.app" and r.levelname == "WARNING"]


def test_what_has_no_effect_is_said_once(pod: Pod, log: pytest.LogCaptureFixture) -> None:
    app = pod.app("redis: {url: 'redis://h'}", "limits: [{name: a, limit: 1}]")
    redis = "redis: {url: 'redis://h'}"
    for lines in ([redis, "limits: []"], [redis, "telemetry: {slow_ms: 1}"]):
        app._announce(app.plane.config)
        pod.write(*lines)
        app.plane.put_in_force(load(pod.file, {}))
    app._announce(app.plane.config)
    assert warned(log) == [
        f"{key}: accepted, but without effect in this version"
        for key in ("limits", "redis", "telemetry.slow_ms")
    ]


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h"}, ["OTEL_EXPORTER_OTLP_ENDPOINT"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h"}, ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"]),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "", "OTEL_SERVICE_NAME": "a"}, []),
    ],
)
def test_traces_that_nobody_will_send_are_said_once(
    pod: Pod, log: pytest.LogCaptureFixture, env: dict[str, str], named: list[str]
) -> None:
    pod.env = env
    app = pod.app()
    for _ in range(2):
        app._announce(app.plane.config)
    assert warned(log) == [f"{name}: is set, but this version does not trace" for name in named]


@pytest.mark.parametrize(
    ("descriptors", "asked_for", "room"),
    [(None, 10_000, None), (1068, 500, 500), (1068, 501, 500), (1069, 501, 500), (1070, 501, 501), (9, 1, 1)],
)
def test_more_connections_than_there_are_descriptors_will_wait(
    pod: Pod, log: pytest.LogCaptureFixture, descriptors: int | None, asked_for: int, room: int | None
) -> None:
    """Two for each client, one of them to the engine, and some beside."""
    pod.descriptors = descriptors
    app = pod.app(f"max_connections: {asked_for}")
    for _ in range(2):
        app._announce(app.plane.config)
    assert app.listener.room == room
    assert app.plane.context.max_connections == asked_for
    more = f"max_connections: more than {room} will wait until they are accepted: this process may open"
    assert warned(log) == [f"{more} {descriptors} files"] * (room is not None and asked_for > room)


@pytest.mark.usefixtures("no_level")
def test_the_log_level_is_the_configurations(pod: Pod) -> None:
    app = pod.app("log_level: error")
    app._announce(app.plane.config)
    assert logging.getLogger("headgate").level == logging.ERROR
