"""The whole sidecar in one process: how it starts, watches its engine, and leaves."""

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from sidecar.app import App
from sidecar.errors import ConfigError
from sidecar.net.probe import HttpProber, TcpProber
from sidecar.net.probe_grpc import GrpcProber
from sidecar.net.timers import TICK_S, Timers
from sidecar.values import Address
from tests.harness.clock import FakeClock
from tests.unit.sidecar.pod import CHUNKED, WITHIN_S, Caller, Pod, chunk, in_loop, until


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "headgate")
    return caplog


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


def test_a_bad_file_stops_the_start(pod: Pod) -> None:
    with pytest.raises(ConfigError, match=r"^drain_s: expected seconds above 0"):
        pod.app("drain_s: -1")
    with pytest.raises(ConfigError, match="No such file"):
        App(pod.folder / "absent.yaml", {})


# The engine.


@asynccontextmanager
async def engine_in(pod: Pod) -> AsyncIterator[list[bytes]]:
    """An engine that is well. The request lines it gets."""
    lines: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append((await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")[0])
        writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 12\r\nconnection: close\r\n\r\n{"data": []}')
        writer.close()

    async with await asyncio.start_unix_server(answer, f"{pod.folder}/engine"):
        yield lines


CHECKED = ", health: {kind: http, interval_s: %s}"


def test_what_is_not_about_health_does_not_disturb_the_checks(
    pod: Pod, log: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with engine_in(pod), pod.serving(engine=CHECKED % 5) as app:
            await until(lambda: app.plane.unready() is None)
            watchers, endpoint = list(app._watchers), app.plane.endpoint
            pod.write("drain_s: 7", engine=CHECKED % 5 + ", include_usage: off, deny_paths: [/x]")
            app.reload()
            seen = set()
            async with asyncio.timeout(WITHIN_S):
                while "the new configuration is in force" not in log.text:
                    seen.add(app.plane.unready())
                    await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert app.plane.config.engine.deny_paths == ("/x",)
            assert seen | {app.plane.unready()} == {None}, "ready all the time"
            assert app._watchers == watchers
            assert not any(task.done() or task.cancelling() for task in watchers)
            assert app.plane.endpoint is endpoint

    in_loop(scenario())


def test_other_checks_of_the_same_engine_begin_anew_and_it_stays_ready(
    pod: Pod, log: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with engine_in(pod) as asked, pod.serving(engine=CHECKED % 5) as app:
            await until(lambda: app.plane.unready() is None)
            watchers = list(app._watchers)
            pod.write(engine=CHECKED % "5, path: /well")
            app.reload()
            await until(lambda: b"GET /well HTTP/1.1" in asked)
            assert app.plane.unready() is None
            assert all(task.cancelled() for task in watchers)
            assert len(app._watchers) == 3

    in_loop(scenario())


def test_other_looks_at_the_engines_load_begin_anew(pod: Pod) -> None:
    async def scenario() -> None:
        async with engine_in(pod) as asked, pod.serving() as app:
            await until(lambda: b"GET /metrics HTTP/1.1" in asked)
            pod.write(engine=", metrics: {path: /load}")
            app.reload()
            await until(lambda: b"GET /load HTTP/1.1" in asked)
            pod.write(engine=", metrics: {kind: none}")
            app.reload()
            await until(lambda: app.plane.config.engine.metrics.kind == "none")
            assert len(app._watchers) == 1, "its models"

    in_loop(scenario())


def test_without_checks_an_engine_is_taken_as_it_is(pod: Pod, log: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with pod.serving(engine=CHECKED % 5) as app:
            assert app.plane.unready() == f"the engine at unix:{pod.folder}/engine is not healthy"
            pod.write()
            app.reload()
            await until(lambda: "the new configuration is in force" in log.text)
            assert app.plane.unready() is None
            assert len(app._watchers) == 2, "its models and its load"

    in_loop(scenario())


def test_each_kind_of_check_has_its_prober(pod: Pod) -> None:
    def prober(health: str) -> object:
        return pod.app(engine=f", health: {{{health}}}")._prober()

    http = prober("kind: http, path: /well, timeout_s: 3, expected_statuses: [204]")
    assert isinstance(http, HttpProber)
    assert (http._path, http._timeout_s, http._expected) == ("/well", 3.0, (204,))
    tcp = prober("kind: tcp, timeout_s: 3")
    assert isinstance(tcp, TcpProber)
    assert tcp._timeout_s == 3.0
    assert prober("kind: none") is None

    async def grpc(health: str) -> None:
        asked = prober("kind: grpc, service: engine, timeout_s: 3" + health)
        assert isinstance(asked, GrpcProber)
        assert (asked._request.service, asked._timeout_s, asked._watch) == ("engine", 3.0, not health)
        await asked.close()

    in_loop(grpc(""))
    in_loop(grpc(", watch: off"))


def test_an_engine_whose_telemetry_is_lost_stays_well(pod: Pod, log: pytest.LogCaptureFixture) -> None:
    """Its metrics and its models are a convenience, and no sign of life."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET /health "):
            asked.append(head)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    asked: list[bytes] = []

    async def scenario() -> None:
        async with (
            await asyncio.start_unix_server(answer, f"{pod.folder}/engine"),
            pod.serving(engine=CHECKED % 0.01 + ", metrics: {interval_s: 0.01}") as app,
        ):
            await until(lambda: app.plane.unready() is None)
            await until(lambda: "load of engine" in log.text and "list of models" in log.text)
            seen = len(asked)
            await until(lambda: len(asked) > seen + 3)
            assert app.plane.unready() is None
            assert app.plane.services() == {"": True, "engine": True}
        assert log.text.count(" is healthy ") == 1
        assert " is out " not in log.text

    in_loop(scenario())


def test_who_asks_after_a_drain_at_the_start_hears_of_it(pod: Pod) -> None:
    async def scenario() -> None:
        app = pod.app()
        app.plane.config = msgspec.structs.replace(
            app.plane.config, health_listen=Address("127.0.0.1", 0), drain_s=0.1
        )
        app._start_health()
        assert app._health is not None
        assert app._health._servicer.said["engine"] == 1
        app._health.stop()
        app.plane.lifecycle.draining = True
        app._start_health()
        assert set(app._health._servicer.said.values()) == {2}
        app._health.stop()

    in_loop(scenario())


# What happens by itself.


def test_a_tick_turns_the_timers_and_tells_how_late_it_is(pod: Pod) -> None:
    class Loop:
        def call_later(self, delay: float, call: Callable[[float], None], due: float) -> None:
            assert (delay, call) == (TICK_S, app._tick)
            self.due = due

    app, clock, loop = pod.app("max_loop_lag_ms: 500"), FakeClock(), Loop()
    app.plane.clock, app._loop = clock, loop  # type: ignore[assignment]
    app.plane.timers = Timers(clock.now)
    rung: list[float] = []
    app.plane.timers.after(1.0, lambda _: rung.append(clock.now()), None)
    app._tick(clock.now())
    for late_s in (0.0, 0.4, 0.6, 0.6):
        clock.advance(loop.due + late_s - clock.now())
        app._tick(loop.due)
        assert app.plane.lifecycle.lag_s == pytest.approx(late_s)
        assert app.plane.lifecycle.beat == clock.now()
    assert app.plane.lifecycle.lagging
    assert len(rung) == 1


def test_a_file_that_changes_is_noticed(pod: Pod) -> None:
    async def scenario() -> None:
        async with pod.serving("drain_s: 5") as app:
            pod.write("drain_s: 7")
            await until(lambda: app.plane.config.drain_s == 7)

    in_loop(scenario())


def test_the_tasks_of_the_loop_are_counted(pod: Pod) -> None:
    def shown(app: App) -> list[bytes]:
        lines = app.plane.metrics.render("")[0].splitlines()
        return [line for line in lines if line.startswith(b"headgate_event_loop_tasks ")]

    async def scenario() -> None:
        async with pod.serving() as app:
            counted = len(asyncio.all_tasks())
            assert shown(app) == [b"headgate_event_loop_tasks %d.0" % counted]
            sleeping = asyncio.create_task(asyncio.sleep(60))
            assert shown(app) == [b"headgate_event_loop_tasks %d.0" % (counted + 1)]
            sleeping.cancel()

    in_loop(scenario())


# The mesh.


def mesh(pod: Pod) -> list[str]:
    """A mesh whose Redis is not there."""
    return [f"redis: {{url: 'unix://{pod.folder}/redis'}}", "mesh: {name: demo, pod: pod-0}"]


def test_a_member_of_a_mesh_serves_without_redis(pod: Pod, log: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with pod.serving(*mesh(pod)) as app:
            await until(lambda: "nothing is shared with peers" in log.text)
            assert app.plane.unready() is None
            for n in range(4100):
                app.plane.admission.invitations.remember(("anonymous", n, 1), 0.0, 0.0, None)
            page = app.plane.metrics.render("")[0]
            assert b"headgate_board_connected 0.0" in page
            assert b"headgate_board_dropped_entries 4.0" in page

    in_loop(scenario())


def test_nothing_is_kept_for_peers_without_a_mesh(pod: Pod) -> None:
    app = pod.app(mesh(pod)[0])
    assert app.plane.admission.invitations.news is None


def test_a_redis_that_cannot_be_stops_the_start(pod: Pod) -> None:
    with pytest.raises(ConfigError, match=r"redis\.url: Port"):
        pod.app("redis: {url: 'redis://h:port'}", mesh(pod)[1])


def test_a_redis_that_cannot_be_is_refused_whole(pod: Pod, log: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with pod.serving(*mesh(pod)) as app:
            before = app.plane.config
            pod.write("redis: {url_file: /nowhere/at/all}", mesh(pod)[1], "drain_s: 7")
            app.reload()
            await until(lambda: "redis.url_file: cannot be read" in log.text)
            assert app.plane.config is before

    in_loop(scenario())


# Leaving.


def test_what_runs_is_let_finish_and_what_comes_then_is_not_taken(pod: Pod) -> None:
    async def scenario() -> None:
        async with pod.serving() as app:
            late, early = await Caller.of(pod), await Caller.of(pod)
            late.send(CHUNKED)
            early.send(CHUNKED + chunk(10))
            await until(lambda: sum(not client.is_idle for client in app.plane.context.clients) == 2)
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
            await until(lambda: any(not client.is_idle for client in app.plane.context.clients))
            answer = asyncio.create_task(caller.answer())
            app.drain()
        assert await answer == (503, "draining")

    in_loop(scenario())
    assert "told to stop a second time" in log.text
    assert "1 exchanges outlasted drain_s and were cut" in log.text


def test_the_last_lines_of_the_access_log_are_written(pod: Pod, capfd: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        async with pod.serving("telemetry: {access_log: all}") as app:
            caller = await Caller.of(pod)
            caller.send(CHUNKED + b"0\r\n\r\n")
            assert await caller.answer() == (502, "connect_failed")
            app.drain()

    before = threading.enumerate()
    in_loop(scenario())
    assert [thread.name for thread in threading.enumerate() if thread not in before] == []
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["reason"] for line in lines] == ["connect_failed"]
