"""The whole sidecar in one process, on unix sockets: how it starts, reloads, is ready, and leaves."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sidecar.app import App
from sidecar.errors import ConfigError
from tests.harness.clock import FakeClock

WITHIN_S = 20.0


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "headgate")
    return caplog


class Pod:
    """A sidecar in `folder`, whose engine is not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "sidecar.yaml"

    def write(self, *lines: str, **addresses: str) -> None:
        """A configuration on sockets in the folder, with `lines` added."""
        places = {name: f"unix:{self.folder}/{name}" for name in ("listen", "admin")} | addresses
        text = [f"{key}: {value}" for key, value in places.items()]
        self.file.write_text("\n".join([*text, f"engine: {{address: unix:{self.folder}/engine}}", *lines]))

    def app(self, *lines: str) -> App:
        self.write(*lines)
        return App(self.file, {})

    @asynccontextmanager
    async def serving(self, *lines: str) -> AsyncIterator[App]:
        """A sidecar that serves within the block, and must leave in good order after it."""
        app = self.app(*lines)
        running = asyncio.create_task(app.run())
        await until(lambda: app.lifecycle.serving or running.done())
        try:
            yield app
        finally:
            app.drain()
            assert await asyncio.wait_for(running, WITHIN_S) == 0


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


async def until(condition: Callable[[], object]) -> None:
    """Let others run until `condition` holds."""
    async with asyncio.timeout(WITHIN_S):
        while not condition():
            await asyncio.sleep(0.001)


def in_loop(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


class Caller:
    """A client connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def of(cls, pod: Pod) -> "Caller":
        return cls(*await asyncio.open_unix_connection(f"{pod.folder}/listen"))

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def answer(self) -> tuple[int, str]:
        """Status and reason. Closes."""
        async with asyncio.timeout(WITHIN_S):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        self._writer.close()
        lines = head.splitlines()
        reasons = [line.removeprefix("x-headgate-reason: ") for line in lines if "x-headgate-reason" in line]
        return int(lines[0].split()[1]), "".join(reasons)


CHUNKED = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(size: int) -> bytes:
    return b"%x\r\n%b\r\n" % (size, b"x" * size)


def test_a_bad_file_stops_the_start(pod: Pod) -> None:
    with pytest.raises(ConfigError, match=r"^drain_s: expected seconds above 0"):
        pod.app("drain_s: -1")
    with pytest.raises(ConfigError, match="No such file"):
        App(pod.folder / "absent.yaml", {})


# Reloads: whole, or not at all.


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
            before, pipeline = app.config, app.context.pipeline
            pod.write(*lines)
            app.reload()
            await until(lambda: "the new configuration is refused, the old one stays in force" in log.text)
            assert why in log.text
            assert app.config is before
            assert app.context.pipeline is pipeline

    in_loop(scenario())


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
            assert app.config.drain_s == 5, "nor is anything else of that file taken"

    in_loop(scenario())


def test_a_good_file_is_in_force_for_what_begins_then(pod: Pod, log: pytest.LogCaptureFixture) -> None:
    """What runs keeps the rules under which it began."""

    async def scenario() -> None:
        async with pod.serving("max_body_bytes: 1024") as app:
            old = await Caller.of(pod)
            old.send(CHUNKED + chunk(10))
            await until(lambda: any(not client.is_idle for client in app.context.clients))
            pod.write("max_body_bytes: 4096")
            app.reload()
            await until(lambda: "the new configuration is in force" in log.text)
            new = await Caller.of(pod)
            new.send(CHUNKED + chunk(2000) + b"0\r\n\r\n")
            assert await new.answer() == (502, "connect_failed")
            old.send(chunk(2000))
            assert await old.answer() == (413, "body_too_large")

    in_loop(scenario())


def test_what_was_learnt_survives_a_reload(pod: Pod, log: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with pod.serving("telemetry: {receipts: 10}") as app:
            caller = await Caller.of(pod)
            caller.send(b"GET /sleep HTTP/1.1\r\nhost: a\r\n\r\n")
            assert await caller.answer() == (403, "forbidden")
            kept = app.gate, app.metrics, app.receipts, app.endpoint, app.context.connections
            ready = app.context.pipeline._ready
            pod.write("admission: {max_in_flight: 3, max_queue: 4}", "telemetry: {receipts: 5}")
            app.reload()
            await until(lambda: "the new configuration is in force" in log.text)
            assert (app.gate, app.metrics, app.receipts, app.endpoint, app.context.connections) == kept
            assert (app.gate.limit, app.gate.max_queue) == (3, 4)
            assert app.context.pipeline._ready is ready, "the old and the new one wake each other's exchanges"
            assert [record.reason for record in app.receipts.last(10)] == ["forbidden"]

    in_loop(scenario())


def test_asked_to_reload_what_is_in_force(pod: Pod, log: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with pod.serving() as app:
            pod.write()
            app.reload()
            await until(lambda: "the configuration has not changed" in log.text)

    in_loop(scenario())


def test_a_section_that_is_not_built_warns_once(pod: Pod, log: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with pod.serving("outlier: {}", "retry: {budget: 1}") as app:
            pod.write("outlier: {}", "retry: {budget: 2}")
            app.reload()
            await until(lambda: "the new configuration is in force" in log.text)

    in_loop(scenario())
    assert log.text.count("retry: accepted, but without effect") == 1
    assert log.text.count("outlier: accepted, but without effect") == 1


# Ready or not.


def test_why_new_work_is_not_welcome(pod: Pod) -> None:
    app = pod.app()
    assert app.unready() == "starting"
    app.lifecycle.serving = True
    assert app.is_ready()
    app.endpoint.healthy = False
    assert app.unready() == f"the engine at unix:{pod.folder}/engine is not healthy"
    app.lifecycle.lagging, app.lifecycle.lag_s = True, 2.25
    assert app.unready() == "the event loop is 2.2 s late"
    app.lifecycle.draining = True
    assert app.unready() == "draining"
    assert not app.is_ready()


def test_a_loop_that_is_late_for_a_second_is_of_no_use(pod: Pod) -> None:
    class Loop:
        def call_later(self, delay: float, call: Callable[[float], None], due: float) -> None:
            self.due = due

    app, clock, loop = pod.app("max_loop_lag_ms: 500"), FakeClock(), Loop()
    app.clock, app._loop = clock, loop  # type: ignore[assignment]
    app._tick(clock.now())

    def turn(late_s: float) -> bool:
        clock.advance(loop.due + late_s - clock.now())
        app._tick(loop.due)
        assert app.lifecycle.lag_s == pytest.approx(late_s)
        assert app.lifecycle.beat == clock.now()
        return app.lifecycle.lagging

    assert [turn(late) for late in (0.0, 0.4, 0.6, 0.4, 0.6)] == [False] * 5
    assert [turn(late) for late in (0.6, 0.6, 0.6)] == [False, True, True]
    assert not turn(0.1)


# Leaving.


def test_what_runs_is_let_finish_and_what_comes_then_is_not_taken(pod: Pod) -> None:
    async def scenario() -> None:
        async with pod.serving() as app:
            late, early = await Caller.of(pod), await Caller.of(pod)
            late.send(CHUNKED)
            early.send(CHUNKED + chunk(10))
            await until(lambda: sum(not client.is_idle for client in app.context.clients) == 2)
            app.drain()
            with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
                await Caller.of(pod)
            for caller in (early, late):
                caller.send(b"0\r\n\r\n")
                assert await caller.answer() == (502, "connect_failed")

    in_loop(scenario())


def test_told_twice_it_waits_for_nobody(pod: Pod, log: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with pod.serving("drain_s: 600") as app:
            caller = await Caller.of(pod)
            caller.send(CHUNKED + chunk(10))
            await until(lambda: any(not client.is_idle for client in app.context.clients))
            answer = asyncio.create_task(caller.answer())
            app.drain()
        assert await answer == (503, "draining")

    in_loop(scenario())
    assert "told to stop a second time" in log.text
    assert "1 exchanges outlasted drain_s and were cut" in log.text
