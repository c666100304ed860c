"""The composition root: what a sidecar is made of, wired once.

All shared state belongs to the thread of the event loop, so there are no locks. What survives a
reload (the gate, connections, endpoints, metrics, receipts) is made here and passed in; a reload
builds a new pipeline around it, and running exchanges keep the pipeline they started with.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from sidecar.admin_routes import routes
from sidecar.balance.endpoint import Endpoint
from sidecar.clock import SystemClock
from sidecar.config import decode, needs_restart, read
from sidecar.errors import ConfigError
from sidecar.flow.gate import Gate
from sidecar.http1.forwarded import Trust
from sidecar.lifecycle import Lifecycle
from sidecar.llm.models import Catalog
from sidecar.net.admin import Admin
from sidecar.net.connections import Connections, LoopDialer
from sidecar.net.context import Context
from sidecar.net.listener import Listener
from sidecar.net.probe import HttpProber, Prober, watch_health, watch_models
from sidecar.net.timers import TICK_S, Timers
from sidecar.net.watch import FileWatch
from sidecar.pipeline import Pipeline, Ready, Stage
from sidecar.stages.account import Account
from sidecar.stages.admit import Admit
from sidecar.stages.identify import Identify
from sidecar.stages.pick import Pick
from sidecar.telemetry.access_log import AccessLog
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.receipts import Receipts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sidecar.exchange import Exchange, Reply
    from sidecar.net.health import HealthServer
    from sidecar.settings import Config, Engine

VERSION: Final = version("headgate")
_LAG_FOR_S: Final = 1.0
_ACCESS_LOG_BYTES: Final = 8 * 1024 * 1024

log = logging.getLogger("headgate.app")


class App:
    """One sidecar, configured by the file at `path`; raises ConfigError when that cannot be.

    `env` fills in what the file takes from the environment. Changes of the file are looked for.
    """

    def __init__(self, path: Path, env: Mapping[str, str]) -> None:
        content = read(path)
        config = self.config = decode(content, env)
        self._env = env
        self._watch = FileWatch(path, content)
        self.clock = SystemClock()
        self.lifecycle = Lifecycle()
        self.timers = Timers(self.clock.now)
        self.context = Context(self.clock, self.timers, self.lifecycle)
        self.gate: Gate[Exchange] = Gate(config.admission.max_in_flight, config.admission.max_queue)
        self.catalog = Catalog()
        self.metrics = Metrics(VERSION, config.telemetry.max_series)
        self.access_log = AccessLog(
            config.telemetry.access_log, config.telemetry.access_log_sample, _ACCESS_LOG_BYTES
        )
        self.receipts = Receipts(config.telemetry.receipts)
        self.endpoint = _endpoint(config.engine)
        self.listener = Listener(self.context, config.listen)
        self._ready = Ready()
        self._reloading = asyncio.Lock()
        self._warned: set[str] = set()
        self._late_since: float | None = None
        self._watchers: list[asyncio.Task[None]] = []
        self._health: HealthServer | None = None
        self._measure()

    async def run(self) -> int:
        """Serve until told to stop; returns the exit status."""
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._stop = asyncio.Event()
        self.context.connections = Connections(self.context, LoopDialer(loop))
        self._put_in_force(self.config)
        self._tick(self.clock.now())
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._watch_engine()
            admin = Admin(self.config.admin, routes(self, loop))
            admin.start()
            self._start_health()
            await self.listener.start()
            self.lifecycle.serving = True
            self._tell_health()
            chores = tasks.create_task(self._chores())
            for number, act in (
                (signal.SIGTERM, self.drain),
                (signal.SIGINT, self.drain),
                (signal.SIGHUP, self.reload),
            ):
                loop.add_signal_handler(number, act)
            log.info("listening on %s, admin on %s", self._where(), self.config.admin)
            await self._stop.wait()
            await self._leave()
            for task in (chores, *self._watchers):
                task.cancel()
        await self._write_access_log()
        if self._health is not None:
            self._health.stop()
        admin.stop()
        return 0

    # Asked for from outside.

    def drain(self) -> None:
        """Stop accepting, let what runs end, exit. Asked for again: exit at once."""
        if self.lifecycle.draining:
            log.warning("told to stop a second time: cutting what still runs")
            self.listener.hurry()
            return
        log.info("draining for up to %g s", self.config.drain_s)
        self.lifecycle.draining = True
        if self._health is not None:
            self._health.drain()
        self.listener.stop_accepting()
        self._stop.set()

    def reload(self) -> None:
        """Read the configuration again: in force whole, or not at all."""
        self._tasks.create_task(self._look_for_changes(asked=True))

    def is_ready(self) -> bool:
        """New work is welcome, and there is an engine to do it."""
        return self.unready() is None

    def unready(self) -> str | None:
        """Why new work is not welcome."""
        lifecycle = self.lifecycle
        if lifecycle.draining:
            return "draining"
        if not lifecycle.serving:
            return "starting"
        if lifecycle.lagging:
            return f"the event loop is {lifecycle.lag_s:.1f} s late"
        return None if self.endpoint.healthy else f"the engine at {self.endpoint.name} is not healthy"

    # The pipeline.

    def _put_in_force(self, config: Config) -> None:
        self.config = config
        self.gate.limit = config.admission.max_in_flight
        self.gate.max_queue = config.admission.max_queue
        logging.getLogger("headgate").setLevel(config.log_level.upper())
        trust = Trust(config.trusted_proxies)
        admit = Admit(config.admission, self.gate, self.clock, self.timers)
        self.context.configure(config, self._pipeline(config, trust, admit), trust)
        admit.let_in()  # a higher limit
        for section in config.unbuilt():
            if section not in self._warned:
                self._warned.add(section)
                log.warning("%s: accepted, but without effect in this version", section)

    def _pipeline(self, config: Config, trust: Trust, admit: Admit) -> Pipeline:
        stages: list[Stage] = [
            # First in, last out: it sees every outcome, refusals among them.
            Account(self.clock, self.metrics, self.access_log, self.receipts),
            # Everything below keys on tenant, class and model. The body is read here and nowhere else.
            Identify(config, self.clock, self.catalog, trust, self.lifecycle),
            # Directly above Pick: what it hands out is held until the end, across attempts.
            admit,
            # At dispatch, not at arrival, so that it sees what is true now. The retry point.
            Pick([self.endpoint], self.clock, config.engine.health.interval_s),
        ]
        return Pipeline(
            stages,
            retry_at=len(stages) - 1,
            forward=self.context.connections.send,
            answer=_answer,
            ready=self._ready,
        )

    async def _look_for_changes(self, *, asked: bool = False) -> None:
        async with self._reloading:  # the newest file must not be overtaken by one read before it
            content = self._watch.changed()
            if content is not None:
                await self._take(content)
            elif asked:
                log.info("the configuration has not changed")

    async def _take(self, content: bytes) -> None:
        try:
            # Ten thousand tenants take a second to read: not on the event loop.
            config = await self._loop.run_in_executor(None, decode, content, self._env)
        except ConfigError as error:
            log.error("the new configuration is refused, the old one stays in force: %s", error)
            return
        except Exception:
            log.exception("reading the new configuration failed, the old one stays in force")
            return
        key = needs_restart(self.config, config)
        if key is not None:
            log.error("the new configuration is refused: a change of %s needs a restart", key)
            return
        old, new = self.config.engine, config.engine
        if new.address != old.address:
            self.endpoint = _endpoint(new)
        self.access_log.configure(config.telemetry.access_log, config.telemetry.access_log_sample)
        self.receipts.resize(config.telemetry.receipts)
        self._put_in_force(config)
        if (new.address, new.health) != (old.address, old.health):
            self._watch_engine()
        log.info("the new configuration is in force")

    # The engine.

    def _watch_engine(self) -> None:
        for task in self._watchers:
            task.cancel()
        engine = self.config.engine
        self._watchers = [self._tasks.create_task(watch_models(engine.address, self.catalog))]
        prober = self._prober()
        if prober is None:
            self.endpoint.healthy = True  # taken as it is
        else:
            self._watchers.append(
                self._tasks.create_task(
                    watch_health(prober, self.endpoint, engine.health.interval_s, self._tell_health)
                )
            )
        self._tell_health()

    def _prober(self) -> Prober | None:
        health = self.config.engine.health
        address = self.config.engine.health_address
        if health.kind == "http":
            return HttpProber(address, health.path, health.timeout_s)
        if health.kind == "grpc":
            from sidecar.net.probe_grpc import GrpcProber

            return GrpcProber(address, health.timeout_s)
        return None

    def _start_health(self) -> None:
        if self.config.health_listen is not None:
            from sidecar.net.health import HealthServer

            self._health = HealthServer(self.config.health_listen)
            self._health.start()
            self._tell_health()

    def _tell_health(self) -> None:
        if self._health is not None:
            self._health.set(self.is_ready())

    # What happens by itself.

    def _tick(self, due: float) -> None:
        """Turn the timers, and notice how late we are."""
        now = self.clock.now()
        lifecycle = self.lifecycle
        lifecycle.beat = now
        lifecycle.lag_s = lag = max(now - due, 0.0)
        if lag * 1000 <= self.config.max_loop_lag_ms:
            self._late_since = None
        elif self._late_since is None:
            self._late_since = now
        lagging = self._late_since is not None and now - self._late_since >= _LAG_FOR_S
        if lagging != lifecycle.lagging:
            lifecycle.lagging = lagging
            self._tell_health()
        self.timers.advance()
        self._loop.call_later(TICK_S, self._tick, now + TICK_S)

    async def _chores(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self.context.connections.sweep()
            await self._look_for_changes()
            await self._write_access_log()

    async def _write_access_log(self) -> None:
        lines = self.access_log.take()
        if lines:
            await asyncio.get_running_loop().run_in_executor(None, _write, lines)

    async def _leave(self) -> None:
        cut = await self.listener.finish(self.config.drain_s)
        if cut:
            log.warning("%d exchanges outlasted drain_s and were cut", cut)
        self.context.connections.close()

    def _measure(self) -> None:
        gauge, context = self.metrics.gauge, self.context
        gauge("headgate_in_flight", lambda: self.gate.in_flight)
        gauge("headgate_queued", lambda: self.gate.queued)
        gauge("headgate_connections", lambda: len(context.clients), "downstream")
        gauge("headgate_connections", lambda: len(context.connections), "upstream")
        gauge("headgate_buffered_bytes", lambda: context.buffered)
        gauge("headgate_loop_lag_seconds", lambda: self.lifecycle.lag_s)
        gauge("headgate_ready", lambda: float(self.is_ready()))
        gauge("headgate_access_log_dropped_lines", lambda: self.access_log.dropped)

    def _where(self) -> str:
        address = self.config.listen
        return str(address) if address.path else f"{address.host}:{self.listener.port}"


def _answer(x: Exchange, reply: Reply) -> None:
    x.client.answer(x, reply)


def _endpoint(engine: Engine) -> Endpoint:
    """Not healthy before a check has said so, where there are checks."""
    address = engine.address
    endpoint = Endpoint(address.host, address.port, address.path)
    endpoint.healthy = engine.health.kind == "none"
    return endpoint


def _write(lines: bytes) -> None:
    sys.stdout.buffer.write(lines)
    sys.stdout.buffer.flush()
