"""The data plane of one sidecar, wired once: everything between a client's bytes and an engine's.

It needs no process, no socket and no running loop: `app` gives it those, tests others. All of it
belongs to one thread, so there are no locks. What survives a reload (the gate, the budget, engine
connections, metrics, receipts) is made here once; `put_in_force` builds a new pipeline around it, and
running exchanges keep the pipeline they started with.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from sidecar.balance.endpoint import Endpoint
from sidecar.balance.engine_page import EnginePage
from sidecar.balance.fleet import Fleet
from sidecar.balance.heartbeat import MAX_MODELS, Heartbeat, encode
from sidecar.balance.load import Occupancy
from sidecar.balance.orca import LoadReport
from sidecar.balance.progress import Progress
from sidecar.balance.retry import FirstTokens, RetryBudget
from sidecar.flow.admission import Admission, Terms
from sidecar.flow.budget import Budget
from sidecar.flow.controller import Controller
from sidecar.flow.estimates import Estimates
from sidecar.http1.forwarded import Trust
from sidecar.lifecycle import Lifecycle
from sidecar.llm.models import Catalog
from sidecar.net.connections import Connections
from sidecar.net.context import Context
from sidecar.net.timers import Timers
from sidecar.pipeline import Pipeline, Ready, Stage
from sidecar.stages.account import Account
from sidecar.stages.admit import Admit
from sidecar.stages.hop import Hop
from sidecar.stages.identify import Identify
from sidecar.stages.judge import Judge
from sidecar.stages.pick import Pick
from sidecar.telemetry.access_log import AccessLog
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.receipts import Receipts

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.balance.heartbeat import State
    from sidecar.balance.load import EngineLoad
    from sidecar.clock import Clock
    from sidecar.exchange import Exchange, Reply
    from sidecar.net.connections import Dialer
    from sidecar.settings import Config, Engine

POD: Final = ""  # what gRPC calls the whole server
ENGINE: Final = "engine"
_STOCK_S: Final = 0.1  # between two looks at what runs
_KV_TOKENS: Final = 120_000  # until somebody says how many there are
_ADMIT: Final = 2  # its place among the stages
_BACKLOG_S: Final = (0.35, 0.2)  # of prompts that a class may add to; the last for all further
_ACCESS_LOG_BYTES: Final = 8 * 1024 * 1024


class Plane:
    """`config` is in force from the start; `dialer` opens connections to the engine."""

    def __init__(self, config: Config, version: str, clock: Clock, dialer: Dialer) -> None:
        self.config = config
        self.clock = clock
        self.lifecycle = Lifecycle()
        self.timers = Timers(clock.now)
        self.bodies = Budget(config.max_buffered_bytes)
        self.report = LoadReport(self.occupancy, clock.now())
        self.context = Context(clock, self.timers, self.lifecycle, self.bodies, self.report)
        self.connections = self.context.connections = Connections(self.context, dialer)
        self.admission = _admission(config, clock.now())
        self.estimates = Estimates()
        self.catalog = Catalog()
        self.endpoint = _endpoint(config.engine)
        health = config.engine.health
        self.progress = Progress(health.progress_s, health.first_use_s, clock.now())
        self.fleet = Fleet(self.endpoint, lambda: clock.jitter(1.0, 1.0) - 1.0, self._may_try)
        self.retries = RetryBudget(config.retry.budget)
        self.hop = Hop(config.mesh.pod if config.mesh else "", clock, lambda: encode(self.heartbeat()))
        self.context.introduce = self.hop.introduce
        self.context.has_elsewhere = self._has_elsewhere
        self.peer_address = ""  # where peers reach this pod
        self.first_tokens = FirstTokens()
        self.page = self._page(config.engine)
        telemetry = config.telemetry
        self.metrics = Metrics(version, telemetry.max_series)
        self.access_log = AccessLog(telemetry.access_log, telemetry.access_log_sample, _ACCESS_LOG_BYTES)
        self.receipts = Receipts(telemetry.receipts)
        self.judge = Judge(config.outlier, self.hop.pod, self.fleet, self.metrics, clock)
        self.changed: Callable[[], None] = _nothing  # called when `state` has
        self._state: State = "down"
        self._ready = Ready()
        self._took_stock = clock.now()
        self._measure()
        self.put_in_force(config)

    def put_in_force(self, config: Config) -> None:
        """Apply `config` to whatever begins from now on: all of it is built before any of it counts."""
        same = config.engine.address == self.config.engine.address
        endpoint = self.endpoint if same else _endpoint(config.engine)
        page = self.page if same else self._page(config.engine)
        trust = Trust(config.trusted_proxies)
        endpoint.max_requests = config.breakers().max_connections
        self.fleet.own = endpoint  # nothing below can fail but by a bug
        self._admit = admit = Admit(
            config,
            self.admission,
            self.estimates,
            endpoint.load,
            self.fleet,
            self.metrics,
            self.clock,
            self.timers,
            at=_ADMIT,
        )
        self._pick = Pick(
            config,
            self.fleet,
            self.progress,
            self.retries,
            self.first_tokens,
            self.judge,
            self.metrics,
            self.clock,
            self.timers,
            restart_at=_ADMIT,
            send=self.connections.send,
            let_go=admit.let_go,
        )
        pipeline = self._pipeline(config, page, trust, admit, self._pick)
        if config.outlier != self.config.outlier or not same:  # another engine has done nothing yet
            self.judge.configure(config.outlier)
        self.config = config
        self.endpoint = endpoint
        self.progress.least_s = config.engine.health.progress_s
        self.progress.first_use_s = config.engine.health.first_use_s
        self.retries.ratio = config.retry.budget
        self.page = page
        page.max_age_s = config.engine.metrics.max_age_s
        self.lifecycle.limit_s = config.max_loop_lag_ms / 1000
        _configure(self.admission, config)
        self.bodies.limit = config.max_buffered_bytes
        telemetry = config.telemetry
        self.access_log.configure(telemetry.access_log, telemetry.access_log_sample)
        self.receipts.resize(telemetry.receipts)
        self.context.configure(config, pipeline, trust)
        admit.let_in()  # a higher limit

    def tick(self) -> None:
        """Called every `TICK_S`."""
        self.timers.advance()
        now = self.clock.now()
        if now - self._took_stock >= _STOCK_S:
            self._took_stock = now
            admission = self.admission
            self._pick.tick(admission.meter.itl_s, admission.meter.measured_prompt_rate)
            self.judge.tick(now, self.progress.allowed_s)
            if self.state() != self._state:
                self._state = self.state()
                self.changed()
            if admission.queued and not self.endpoint.usable:
                self._admit.hand_over()
            self._admit.tick()
            retry = self.config.retry
            self.context.patience_s = (
                self.first_tokens.patience_s(retry.per_try_min_s, retry.per_try_max_s)
                if retry.mode == "on" and self.fleet.peers
                else inf
            )

    def unready(self) -> str | None:
        """Why new work is not welcome; None: it is. Safe to ask from any thread."""
        lifecycle = self.lifecycle
        if lifecycle.draining:
            return "draining"
        if not lifecycle.serving:
            return "starting"
        late = self.late_s()
        if lifecycle.lagging or late > lifecycle.tolerance_s:
            return f"the event loop is {max(late, lifecycle.lag_s):.1f} s late"
        own = self.endpoint
        if own.usable:
            return None
        state = "is not healthy" if not own.healthy else "hangs" if own.hung else "is ejected"
        return f"the engine at {own.name} {state}"

    def drain(self) -> None:
        """Begin nothing new: what waits and what comes goes to peers, or is told to go elsewhere."""
        self.lifecycle.draining = True
        self.lifecycle.ends = self.clock.now() + self.config.drain_s
        self.fleet.leaving = True
        self._admit.hand_over()

    def services(self) -> dict[str, bool]:
        """Which services of grpc.health.v1 serve: this pod, its engine, and each model it lists.

        A model serves where new work is welcome. That does not depend on how full the pod is: who finds no
        place is told so, and when to return. Safe to ask from any thread.
        """
        welcome = self.unready() is None
        is_well = self.endpoint.healthy and not self.endpoint.hung
        return {**dict.fromkeys(self.catalog.names(), welcome), POD: welcome, ENGINE: is_well}

    def late_s(self) -> float:
        """Seconds since the event loop last turned; about a tick when all is well."""
        return self.clock.now() - self.lifecycle.beat

    @property
    def engine_load(self) -> EngineLoad:
        """What the engine says of itself, fresh or not."""
        return self.endpoint.load

    def occupancy(self) -> Occupancy:
        """How full this pod is. An engine that has not said lately how many wait in it has none waiting."""
        load, dispatched, admission = self.endpoint.load, self.endpoint.in_flight, self.admission
        fresh = load.is_fresh(self.clock.now(), self.config.engine.metrics.max_age_s)
        held = min(load.waiting or 0, dispatched) if fresh else 0
        part = max(dispatched / admission.seats, admission.room / admission.controller.limit)
        return Occupancy(
            waiting=admission.queued + held,
            running=dispatched - held,
            # Who waits will need what those need who run.
            utilization=part * (1 + admission.queued / max(dispatched, 1)),
            kv_used=load.kv_used if fresh else None,
        )

    def _may_try(self, x: Exchange, now: float) -> bool:
        """Whether an engine that is down is to be given this request now."""
        own = self.endpoint
        if not own.healthy:
            return False
        return self.progress.may_try(now) if own.hung else own.ejected and self.judge.may_try(x, now)

    def _hands_on(self) -> bool:
        """Whether a peer takes what we do not."""
        return self.fleet.has_somebody(self.clock.now())

    def _has_elsewhere(self) -> bool:
        """Whether another pod may do better: where nobody is known, that is asked of whoever balances."""
        return not self.fleet.peers or self.fleet.has_room(self.clock.now())

    def state(self) -> State:
        """In one word, for peers."""
        own = self.endpoint
        if self.lifecycle.draining:
            return "draining"
        if own.ejected and own.healthy and not own.hung:
            return "ejected"
        return "serving" if self.unready() is None else "down"

    def heartbeat(self) -> Heartbeat:
        """What this pod says of itself to its peers."""
        occupancy, why = self.occupancy(), self.unready()
        answers, successes = self.judge.last_interval
        models = tuple(self.catalog.labels())
        return Heartbeat(
            pod=self.hop.pod,
            address=self.peer_address,
            state=self.state(),
            models=models if len(models) <= MAX_MODELS else (),  # none: any
            waiting=occupancy.waiting,
            running=occupancy.running,
            utilization=occupancy.utilization,
            capacity=self.admission.controller.limit,
            why=(why or "")[:64],
            pace=self.judge.pace,
            answers=answers,
            successes=successes,
            share=self.fleet.share,
        )

    def _page(self, engine: Engine) -> EnginePage:
        return EnginePage(lambda: self.admission.queued, engine.metrics.max_age_s)

    def _pipeline(self, config: Config, page: EnginePage, trust: Trust, admit: Admit, pick: Pick) -> Pipeline:
        stages: list[Stage] = [
            # First in, last out: it sees every outcome, refusals among them.
            Account(self.clock, self.metrics, self.access_log, self.receipts, self.report),
            # Everything below keys on tenant, class and model. The body is read here and nowhere else.
            Identify(
                config,
                self.clock,
                self.timers,
                self.catalog,
                trust,
                self.lifecycle,
                self.bodies,
                self.metrics,
                page,
                self.hop,
                self._hands_on,
            ),
            # Directly above Pick: what it hands out is held until the end, across attempts.
            admit,
            # At dispatch, not at arrival, so that it sees what is true now. The retry point.
            pick,
        ]
        return Pipeline(
            stages,
            retry_at=len(stages) - 1,
            forward=self.connections.send,
            answer=_answer,
            recover=pick.recover,
            ready=self._ready,
        )

    def _measure(self) -> None:
        gauge, context = self.metrics.gauge, self.context
        admission = self.admission
        gauge("headgate_in_flight", lambda: self.endpoint.in_flight)
        gauge("headgate_queued", lambda: admission.queued)
        for name, queue in zip(self.config.classes, admission.queues, strict=True):
            gauge("headgate_queue", queue.__len__, name)
        gauge("headgate_admission_limit_tokens", lambda: admission.controller.limit)
        gauge("headgate_admission_room_tokens", lambda: admission.room)
        gauge("headgate_admission_backlog_tokens", lambda: admission.backlog)
        gauge("headgate_admission_work_rate", lambda: admission.meter.work_rate or 0.0)
        gauge("headgate_admission_prompt_rate", lambda: admission.meter.prompt_rate)
        gauge("headgate_tenants_held", lambda: len(admission.anomaly.held))
        gauge("headgate_refused_remembered", admission.invitations.__len__)
        gauge("headgate_connections", lambda: len(context.clients), "downstream")
        gauge("headgate_connections", lambda: len(self.connections), "upstream")
        gauge("headgate_buffered_bytes", lambda: self.bodies.held)
        gauge("headgate_loop_lag_seconds", lambda: self.lifecycle.lag_s)
        gauge("headgate_timers", lambda: self.timers.pending)
        gauge("headgate_accepting", self._accepting)
        gauge("headgate_ready", lambda: float(self.unready() is None))
        gauge("headgate_access_log_dropped_lines", lambda: self.access_log.dropped)


    def _accepting(self) -> bool:
        lifecycle = self.lifecycle
        return lifecycle.serving and not (lifecycle.draining or lifecycle.crowded)


def _nothing() -> None:
    """Nobody is to be told."""


def _answer(x: Exchange, reply: Reply) -> None:
    x.client.answer(x, reply)


def _admission(config: Config, now: float) -> Admission:
    tokens = config.engine.kv_tokens
    controller = Controller(tokens or _KV_TOKENS, known=tokens is not None)
    settings = config.admission
    admission = Admission(
        _terms(config), controller, now=now, seats=settings.max_in_flight, max_queue=settings.max_queue
    )
    _configure(admission, config)
    return admission


def _configure(admission: Admission, config: Config) -> None:
    """What may change while it runs."""
    settings = config.admission
    breakers = config.breakers()
    admission.terms = _terms(config)
    admission.seats = min(settings.max_in_flight, breakers.max_connections)
    admission.max_queue = breakers.max_pending_requests
    admission.max_bytes = settings.max_queue_bytes
    admission.aging_s = settings.aging_s
    admission.invitations.part = settings.invited
    admission.shadow = settings.mode == "shadow"
    if config.engine.kv_tokens is not None:
        admission.controller.learn_capacity(config.engine.kv_tokens)


def _terms(config: Config) -> tuple[Terms, ...]:
    return tuple(
        Terms(
            share=one.share,
            ceiling=one.ceiling,
            wait_s=config.admission.queue_timeout_s or one.wait_s,
            backlog_s=_BACKLOG_S[min(rank, len(_BACKLOG_S) - 1)],
            itl_ms=one.itl_ms,
        )
        for rank, one in enumerate(config.classes.values())
    )


def _endpoint(engine: Engine) -> Endpoint:
    """Not healthy before a check has said so, where there are checks."""
    address = engine.address
    endpoint = Endpoint(address.host, address.port, address.path)
    endpoint.healthy = engine.health.kind == "none"
    return endpoint
