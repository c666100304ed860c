"""The process around the data plane: event loop, signals, reload, health, draining."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import signal
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sidecar import learnt
from sidecar.admin_routes import routes
from sidecar.clock import SystemClock
from sidecar.config import decode, needs_restart, read
from sidecar.errors import ConfigError
from sidecar.member import Member
from sidecar.net.admin import Admin
from sidecar.net.board import Board
from sidecar.net.connections import LoopDialer
from sidecar.net.lines import LineWriter
from sidecar.net.listener import Listener
from sidecar.net.probe import HttpProber, Prober, watch_health, watch_models
from sidecar.net.scrape import watch_load
from sidecar.net.state_file import StateFile
from sidecar.net.timers import TICK_S
from sidecar.net.watch import FileWatch
from sidecar.plane import Plane

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sidecar.net.board import Line
    from sidecar.net.health import HealthServer
    from sidecar.settings import Config

VERSION: Final = version("headgate")
_STDOUT: Final = 1
_LAST_LINES_S: Final = 2.0
_DESCRIPTORS_BESIDE: Final = 64  # that are not connections
_SAVE_EVERY_S: Final = 30
_TRACING: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

log = logging.getLogger("headgate.app")


class App:
    """One sidecar, configured by the file at `path`; raises ConfigError when that cannot be.

    `env` fills in what the file takes from the environment. Changes of the file are looked for.
    `descriptors` is how many files this process may have open; None: no limit is known.
    """

    def __init__(self, path: Path, env: Mapping[str, str], descriptors: int | None = None) -> None:
        content = read(path)
        config = decode(content, env)
        self._env = env
        self._descriptors = descriptors
        self._watch = FileWatch(path, content)
        self._dialer = LoopDialer()
        self.plane = Plane(config, VERSION, SystemClock(), self._dialer)
        room = None if descriptors is None else descriptors - _DESCRIPTORS_BESIDE
        self.listener = Listener(self.plane.context, config.listen, room)
        self._state = StateFile(Path(config.state_file)) if config.state_file else None
        self._board = self._make_board(config)
        self._member = Member(self.plane, config, config.mesh, room) if config.mesh is not None else None
        self._reloading = asyncio.Lock()
        self.drained = asyncio.Event()  # all that ran has ended
        self._warned: set[str] = set()
        self._watchers: list[asyncio.Task[None]] = []
        self._health: HealthServer | None = None
        self._lines = LineWriter(_STDOUT)

    async def run(self) -> int:
        """Serve until told to stop; returns the exit status."""
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        config, plane = self.plane.config, self.plane
        self._announce(config)
        plane.metrics.gauge("headgate_event_loop_tasks", lambda: len(asyncio.all_tasks(self._loop)))
        self._remember()
        self._tick(plane.clock.now())
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            admin = Admin(config.admin, routes(self, self._loop))
            admin.start()
            await self.listener.start()
            mesh = await self._member.start(tasks) if self._member is not None else []
            if plane.lifecycle.draining:  # told so before there was anything to close
                self._stop_accepting()
            self._watch_engine()
            self._start_health()
            # What is here now stays: no full collection need look at its 30,000 objects again, for 10 ms.
            gc.collect()
            gc.freeze()
            plane.lifecycle.serving = True
            chores = tasks.create_task(self._chores())
            pacing = tasks.create_task(self.listener.pace())
            sharing = [tasks.create_task(self._board.run())] if self._board is not None else []
            self._listen_to_signals()
            log.info("listening on %s, admin on %s", self._where(), config.admin)
            await self._stop.wait()
            self._stop_accepting()
            cut = await self.listener.finish(plane.lifecycle.left_s(plane.clock.now()))
            if cut:
                log.warning("%d exchanges outlasted drain_s and were cut", cut)
            self.drained.set()
            plane.connections.close()
            for task in (chores, pacing, *mesh, *sharing, *self._watchers):
                task.cancel()
        await self._save()
        self._lines.offer(plane.access_log.take)
        self._lines.close(_LAST_LINES_S)
        if self._health is not None:
            self._health.stop()
        admin.stop()
        return 0

    # Asked for from outside.

    def drain(self) -> None:
        """Tell everybody, stop accepting, let what runs end, exit. Asked for again: exit at once."""
        if self.plane.lifecycle.draining:
            log.warning("told to stop a second time: cutting what still runs")
            self.listener.hurry()
            self._stop.set()
            return
        config = self.plane.config
        log.info("draining for up to %g s", config.drain_s)
        self.plane.drain()
        if self._health is not None:
            self._health.drain()
        notice_s = min(config.drain_notice_s, config.drain_s)
        # Until whoever balances has looked twice, new work still comes: it is sent elsewhere, or handed on.
        if notice_s:
            self._loop.call_later(notice_s, self._stop.set)
        else:
            self._stop_accepting()
            self._stop.set()

    def _stop_accepting(self) -> None:
        self.listener.stop_accepting()
        if self._member is not None:
            self._member.stop_accepting()

    def reload(self) -> None:
        """Read the configuration again: in force whole, or not at all."""
        self._tasks.create_task(self._look_for_changes(asked=True))

    def _listen_to_signals(self) -> None:
        for number, act in (
            (signal.SIGTERM, self.drain),
            (signal.SIGINT, self.drain),
            (signal.SIGHUP, self.reload),
        ):
            self._loop.add_signal_handler(number, act)

    # The configuration.

    async def _look_for_changes(self, *, asked: bool = False) -> None:
        async with self._reloading:  # the newest file must not be overtaken by one read before it
            content = self._watch.changed()
            if content is not None:
                await self._take(content)
            elif asked:
                log.info("the configuration has not changed")

    async def _take(self, content: bytes) -> None:
        old = self.plane.config
        try:
            # Ten thousand tenants take a second to read: not on the event loop.
            config = await self._loop.run_in_executor(None, decode, content, self._env)
            self._put_in_force(old, config)
        except ConfigError as error:
            log.error("the new configuration is refused, the old one stays in force: %s", error)
        except Exception:  # a bug, and no reason to end what runs
            log.exception("reading the new configuration failed, the old one stays in force")

    def _put_in_force(self, old: Config, config: Config) -> None:
        if self.plane.lifecycle.draining:
            return  # watchers that began now would outlive everything else
        key = needs_restart(old, config)
        if key is not None:
            log.error("the new configuration is refused: a change of %s needs a restart", key)
            return
        line = _line(config) if self._board is not None and config.redis != old.redis else None
        self.plane.put_in_force(config)
        if self._board is not None and line is not None:
            self._board.move(line)
        self._announce(config)
        if _watched(config) != _watched(old):
            self._watch_engine()
        log.info("the new configuration is in force")

    def _announce(self, config: Config) -> None:
        """The log level, and once each what the configuration asks for in vain."""
        logging.getLogger("headgate").setLevel(config.log_level.upper())
        in_vain = dict.fromkeys(config.unbuilt(), "accepted, but without effect in this version")
        for name in _TRACING:
            if self._env.get(name):
                in_vain[name] = "is set, but this version does not trace"
        room = self.listener.room
        if room is not None and config.max_connections > room:
            files = f"this process may open {self._descriptors} files"
            in_vain["max_connections"] = f"more than {room} will wait until they are accepted: {files}"
        for key, why in in_vain.items():
            if key not in self._warned:
                self._warned.add(key)
                log.warning("%s: %s", key, why)

    # The engine.

    def _watch_engine(self) -> None:
        for task in self._watchers:
            task.cancel()
        engine, endpoint = self.plane.config.engine, self.plane.endpoint
        watchers = [watch_models(engine.address, self.plane.catalog)]
        if engine.metrics.kind != "none":
            watchers.append(watch_load(engine, endpoint, self.plane.page, self.plane.clock))
        prober = self._prober()
        if prober is None:
            endpoint.healthy = True  # taken as it is
        else:
            watchers.append(watch_health(prober, endpoint, engine.health.interval_s))
        self._watchers = [self._tasks.create_task(watcher) for watcher in watchers]

    def _prober(self) -> Prober | None:
        engine = self.plane.config.engine
        health, address = engine.health, engine.health_address
        if health.kind == "http":
            return HttpProber(address, health.path, health.timeout_s)
        if health.kind == "grpc":
            from sidecar.net.probe_grpc import GrpcProber

            return GrpcProber(address, health.timeout_s)
        return None

    def _start_health(self) -> None:
        address = self.plane.config.health_listen
        if address is not None:
            from sidecar.net.health import ENGINE, POD, HealthServer

            plane = self.plane
            services = {POD: lambda: plane.unready() is None, ENGINE: lambda: plane.endpoint.healthy}
            self._health = HealthServer(address, services)
            self._health.start()

    # The mesh.

    def _make_board(self, config: Config) -> Board | None:
        if config.mesh is None or config.redis is None:
            return None
        plane = self.plane
        board = Board(
            _line(config), config.mesh.pod, plane.admission.invitations, plane.clock, plane.context.complaints
        )
        plane.metrics.gauge("headgate_board_connected", lambda: board.connected)
        plane.metrics.gauge("headgate_board_dropped_entries", lambda: board.news.dropped)
        return board

    # What happens by itself.

    def _tick(self, due: float) -> None:
        """Turn the timers, and notice how late we are."""
        plane = self.plane
        now = plane.clock.now()
        self._loop.call_later(TICK_S, self._tick, now + TICK_S)  # first: whatever fails, time goes on
        plane.lifecycle.tick(now, due, TICK_S)
        plane.tick()

    async def _chores(self) -> None:
        for second in itertools.count(1):
            await asyncio.sleep(1.0)
            if second % _SAVE_EVERY_S == 0:
                await self._save()
            self.plane.connections.sweep()
            self._lines.offer(self.plane.access_log.take)
            if self._member is not None:
                self._member.look_for_changes()
            await self._look_for_changes()

    def _remember(self) -> None:
        content = self._state.read() if self._state is not None else None
        if content is not None:
            try:
                learnt.load(content, self.plane.admission, self.plane.estimates)
            except ValueError as error:
                log.warning("state_file: %s; starting without what it held", error)

    async def _save(self) -> None:
        if self._state is not None:
            content = learnt.dump(self.plane.admission, self.plane.estimates)
            await self._loop.run_in_executor(None, self._state.write, content)

    def _where(self) -> str:
        address = self.plane.config.listen
        return str(address) if address.path else f"{address.host}:{self.listener.port}"


def _line(config: Config) -> Callable[[], Line]:
    """What connects to the mesh's channel; raises ConfigError where that can never be."""
    from sidecar.net.redis import Channel

    assert config.redis is not None
    assert config.mesh is not None
    line = partial(Channel, config.redis, f"hg1:{{{config.mesh.name}}}:invited")
    line()
    return line


def _watched(config: Config) -> tuple[object, ...]:
    """What a change of begins the watching anew."""
    engine = config.engine
    return engine.address, engine.health, engine.metrics
