"""Where it runs: the engine beside us, or a peer's sidecar. Pure parts: `balance.fleet`, `balance.retry`.

At dispatch, not at arrival, so that it sees what is true now. This is the retry point.

The engine beside us takes all that it can. What Admit has set aside for a peer (`x.away`), and what comes
while our engine is down, goes to one; from there it goes no further. An attempt that came to nothing before
its caller got a byte is made again on another pod, if its kind of failure, its deadline and the budget allow.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from sidecar.balance.retry import pause_s
from sidecar.errors import (
    CONNECT_FAILED,
    FIRST_TOKEN_TIMEOUT,
    NO_ENDPOINT,
    OVERLOADED,
    TIMEOUT,
    UPSTREAM_RESET,
)
from sidecar.exchange import FORWARDED, Exchange, Reply, Verdict
from sidecar.pipeline import Stage
from sidecar.stages.hedge import drop, second_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.balance.endpoint import Endpoint
    from sidecar.balance.fleet import Fleet
    from sidecar.balance.progress import Progress
    from sidecar.balance.retry import FirstTokens, RetryBudget
    from sidecar.clock import Alarms, Clock
    from sidecar.settings import Config
    from sidecar.stages.judge import Judge
    from sidecar.telemetry.metrics import Metrics

log = logging.getLogger("headgate.pick")

_SCATTER: Final = 0.2
_PATIENCE: Final = 2.0  # of the time that the prompts before a first token should take
_CAUTIOUS: Final = 200.0  # prompt tokens a second, of an engine that may be a CPU
_BYTES: Final = 3.0  # of text in a token, at the least
_TICK_S: Final = 0.05  # of alarms: a shorter pause is none
_LATEST: Final = 0.95  # of first tokens: one that takes longer is late
_OUTRUN: Final = "outrun"  # by a second attempt
_MOVED: Final = "moved"  # the engine is down: that is no retry of anybody's choice
_BROKEN: Final = frozenset({CONNECT_FAILED.reason, UPSTREAM_RESET.reason})
_ELSEWHERE: Final = frozenset(
    {b"overloaded", b"queue_full", b"queue_timeout", b"no_endpoint", b"draining", b"forbidden"}
)
_SAFE: Final = (b"GET", b"HEAD", b"OPTIONS")  # RFC 9110 section 9.2.1


class Pick(Stage):
    """`restart_at` is the index of the stage that an exchange for a peer enters again.

    `send` carries a second attempt to its endpoint. `let_go` has admission forget one that goes on elsewhere.
    """

    def __init__(
        self,
        config: Config,
        fleet: Fleet,
        progress: Progress,
        budget: RetryBudget,
        first_tokens: FirstTokens,
        judge: Judge,
        metrics: Metrics,
        clock: Clock,
        alarms: Alarms,
        restart_at: int,
        send: Callable[[Exchange], None],
        let_go: Callable[[Exchange], None],
    ) -> None:
        retry = config.retry
        self._retries = retry.max_retries if retry.mode == "on" else 0
        self._statuses = frozenset(retry.statuses)
        self._base_s = retry.base_ms / 1000
        self._longest_s = retry.max_ms / 1000
        self._most_retries = config.engine.max_retries
        self._retry_after_s = config.engine.health.interval_s
        self._trial_s = config.engine.health.progress_s
        self._max_age_s = config.engine.metrics.max_age_s
        self._watches = config.engine.health.progress == "on"
        self._fleet = fleet
        self._progress = progress
        self._seen = (0, 0)  # at the last tick: what had come from the engine, and its own counters
        self._came = 0  # and what ran had got
        self._was_healthy = fleet.own.healthy
        self._budget = budget
        self._first_tokens = first_tokens
        self._judge = judge
        self._metrics = metrics
        self._clock = clock
        self._alarms = alarms
        self._restart_at = restart_at
        self._send = send
        self._let_go = let_go
        self._hedges = retry.mode == "on" and retry.hedge == "on"
        self._hedge_s = 0.0  # until then too few first tokens have been seen

    def on_request(self, x: Exchange) -> Verdict:
        now = self._clock.now()
        x.endpoint = None
        if x.deadline is not None and x.deadline <= now:
            return Reply(TIMEOUT)  # nobody waits for it any more
        x.failure = ""
        endpoint = self._choose(x, now)
        if endpoint is None:
            return Reply(NO_ENDPOINT, retry_after_s=self._clock.jitter(self._retry_after_s, _SCATTER))
        if len(endpoint.carried) >= endpoint.max_requests:
            return Reply(OVERLOADED, retry_after_s=self._clock.jitter(1.0, _SCATTER))
        x.endpoint = endpoint
        endpoint.carried[x] = None
        x.dispatched = now
        if x.attempt == 1:
            if x.cost:
                self._budget.deposit(x.cost, now)
            if self._hedge_s and x.stream and x.hop == 0 and x.body is not None:
                x.hedge = self._alarms.after(self._hedge_s, self._ask_two, x)
        return None

    def on_response(self, x: Exchange) -> None:
        endpoint = x.endpoint
        assert endpoint is not None
        endpoint.unblock()
        self._ask_one(x)
        if x.is_work and x.status == 200:
            endpoint.moved += 1
        if x.stream or endpoint.is_peer:
            took, now = x.responded - x.dispatched, x.responded
            endpoint.sample(took, now)
            if x.stream and x.status == 200:
                self._first_tokens.add(took)
                if not endpoint.is_peer:
                    self._judge.on_first_token(x)

    def on_complete(self, x: Exchange) -> None:
        self._ask_one(x)
        endpoint = x.endpoint
        if endpoint is not None:
            endpoint.carried.pop(x, None)
            if x.is_work and x.status == 200 and not x.reason:
                endpoint.moved += 1
            outcome = x.failure or x.reason or ("ok" if x.status < 500 else "status")
            self._metrics.attempted("peer" if endpoint.is_peer else "engine", outcome)
            if x.is_work:
                self._judge.on_attempt(x, endpoint)

    def recover(self, x: Exchange) -> bool:
        """Send `x`, whose attempt failed as it says, to another pod; False: there is none for it."""
        endpoint, now = x.endpoint, self._clock.now()
        assert endpoint is not None
        if x.failure in _BROKEN:
            endpoint.block(now)
        elif x.failure == "status":
            endpoint.not_before = max(endpoint.not_before, now + x.refused_for)
        if x.rival is not None:
            return True  # that one goes on
        if x.attempt > self._retries or not self._may_move(x, now) or not self._is_worth_it(x, now):
            return False
        if self._fleet.peer(x.model, (*x.tried, endpoint), now) is None or not self._pays(x, endpoint, now):
            return False
        self._forget(x, endpoint)
        pause = pause_s(x.attempt, self._base_s, self._longest_s, self._clock.jitter(1.0, 1.0) - 1.0)
        if pause < _TICK_S / 2:
            x.pipeline.retry(x, at=self._restart_at)
        else:
            self._alarms.after(pause, self._go_on, (x, x.attempt))
        return True

    def tick(self, gap_s: float, prompt_rate: float) -> None:
        """Several times a second: see whether the engine moves, and whether what it has must go elsewhere.

        `gap_s`: mean time between its tokens. `prompt_rate`: prompt tokens a second, 0.0: not known.
        """
        own, now, progress = self._fleet.own, self._clock.now(), self._progress
        if own.healthy and not self._was_healthy:
            progress.begin_anew(now)
        self._was_healthy = own.healthy
        if self._hedges:
            usual = self._first_tokens.quantile(_LATEST)
            self._hedge_s = 0.0 if usual is None else max(usual, _TICK_S)
        moved, busy = self._has_moved(own, now)
        prompts_s = sum(map(_prompt, own.carried)) / (prompt_rate or _CAUTIOUS)
        if moved:
            own.moved_at = now
        if self._watches and progress.tick(now, busy=busy, moved=moved, gap_s=gap_s, prompts_s=prompts_s):
            log.warning("engine %s %s", own.name, "hangs" if progress.hung else "moves again")
        own.hung = progress.hung
        if own.hung and own.carried:
            self._move_all(own, now)

    def _has_moved(self, own: Endpoint, now: float) -> tuple[bool, bool]:
        """Whether there was progress since the last look, and whether it would have been seen.

        A stream shows its events, or its bytes where it has none that can be told. Of an answer that comes
        whole nothing is seen but the engine's counters, if it is one that is made of tokens; where the
        engine's check fails as well, that is enough to go by.
        """
        load, before = own.load, self._seen
        counts = load.generated_total is not None and now - load.counted_at <= self._max_age_s
        came, busy = 0, False
        for x in own.carried:
            if x.is_work:
                if x.responded:  # else it is a role chunk, or what keeps a connection alive
                    came += x.tokens or x.bytes_out
                counted = counts and x.body is not None and x.answers > 0
                shows = x.stream or counted or not own.healthy
                busy = busy or (shows and not x.client.is_congested)
        total = (load.generated_total or 0) + (load.prompt_total or 0) if counts else before[1]
        self._seen = own.moved, total
        moved = own.moved != before[0] or came > self._came or total > before[1]
        self._came = came
        return moved, busy

    def _move_all(self, own: Endpoint, now: float) -> None:
        """What it has not begun to answer goes to peers, or its callers are told to go there."""
        for x in list(own.carried):
            if x.state != FORWARDED or x.responded or x.upstream is None or not x.is_work:
                continue
            if x.on_trial and now - x.dispatched < self._trial_s:
                continue
            if self._may_move(x, now) and self._fleet.peer(x.model, (*x.tried, own), now):
                x.failure, x.failed_with = _MOVED, 0
                x.upstream.abandon()
                self._budget.owe(x.cost, now)
                self._forget(x, own)
                x.pipeline.retry(x, at=self._restart_at)
            elif x.hop or self._progress.is_certain(now):  # else it may still come, for nobody else does it
                x.pipeline.refuse(
                    x, Reply(NO_ENDPOINT, retry_after_s=self._clock.jitter(self._retry_after_s, _SCATTER))
                )

    def _ask_two(self, x: Exchange) -> None:
        """Its first token is late: another pod is asked as well, if one has room and the budget allows."""
        now, x.hedge = self._clock.now(), None
        endpoint = x.endpoint
        if x.state != FORWARDED or x.attempt != 1 or endpoint is None or not self._may_move(x, now):
            return
        peer = self._fleet.peer(x.model, (*x.tried, endpoint), now)
        if peer is None or peer.utilization >= 1 or now - x.dispatched < _PATIENCE * _expected_s(x):
            return
        if self._retrying() >= self._most_retries or not self._budget.withdraw(x.cost, now):
            return
        second = x.rival = second_of(x, self._second_won)
        second.endpoint = peer
        second.dispatched = now
        peer.carried[second] = None
        peer.sent += 1
        self._send(second)

    def _second_won(self, x: Exchange, second: Exchange) -> None:
        first, endpoint = x.endpoint, second.endpoint
        assert first is not None
        assert endpoint is not None
        first.carried.pop(x, None)
        self._metrics.attempted("peer" if first.is_peer else "engine", _OUTRUN)
        x.failure = _OUTRUN
        tokens, tail = second.tokens, second.tail
        self._forget(x, first)
        self._let_go(x)
        endpoint.carried[x] = None
        x.endpoint = endpoint
        x.failure = ""
        x.attempt = second.attempt
        x.dispatched, x.responded, x.status = second.dispatched, second.responded, second.status
        x.tokens, x.tail = tokens, tail

    def _ask_one(self, x: Exchange) -> None:
        """Whatever is the matter, there is no need of a second attempt any more."""
        if x.hedge is not None:
            x.hedge.cancel()
            x.hedge = None
        if x.rival is not None:
            drop(x)

    def _choose(self, x: Exchange, now: float) -> Endpoint | None:
        fleet = self._fleet
        own = fleet.own
        if not x.away and (fleet.own_can(now) or x.on_trial):
            return own
        peer = fleet.peer(x.model, x.tried, now) if x.hop == 0 else None
        if peer is not None:
            peer.sent += 1
            return peer
        return own if own.usable and not x.away else None

    def _is_worth_it(self, x: Exchange, now: float) -> bool:
        """Another pod may do better."""
        endpoint = x.endpoint
        assert endpoint is not None
        if x.failure == FIRST_TOKEN_TIMEOUT.reason:
            return now - x.dispatched >= _PATIENCE * _expected_s(x)  # else it is long, not late
        if x.failure != "status":
            return True
        if endpoint.is_peer and x.refused_by:  # it has not been started
            return x.refused_by in _ELSEWHERE
        return x.failed_with in self._statuses

    def _pays(self, x: Exchange, endpoint: Endpoint, now: float) -> bool:
        """The budget has its cost; where the engine is down that is not asked."""
        if x.failure == CONNECT_FAILED.reason:
            return True  # it has cost nobody anything
        if endpoint.is_peer or endpoint.usable:
            return self._retrying() < self._most_retries and self._budget.withdraw(x.cost, now)
        self._budget.owe(x.cost, now)
        return True

    def _may_move(self, x: Exchange, now: float) -> bool:
        """It can be sent a second time, and there is time for that."""
        request = x.request
        if x.hop or x.responded or (x.deadline is not None and x.deadline <= now):
            return False
        return x.body is not None or (
            request.method in _SAFE and request.complete and not request.received
        )

    def _retrying(self) -> int:
        return sum(x.attempt > 1 for peer in self._fleet.peers.values() for x in peer.carried)

    def _forget(self, x: Exchange, endpoint: Endpoint) -> None:
        """It goes to a peer, and what its attempt left behind is forgotten."""
        x.tried = (*x.tried, endpoint)
        x.trail += f"{'; ' if x.trail else ''}{endpoint.name} {x.failure}"
        x.away = True
        x.on_trial = False
        x.tokens = 0
        x.tail = b""
        x.status = 0

    def _go_on(self, of: tuple[Exchange, int]) -> None:
        x, attempt = of
        if x.state == FORWARDED and x.attempt == attempt:
            x.pipeline.retry(x, at=self._restart_at)


def _expected_s(x: Exchange) -> float:
    """Until the prompts are computed that stood before its first token, its own included."""
    return x.ticket.clear_s if x.ticket is not None and not x.away else 0.0


def _prompt(x: Exchange) -> float:
    """Its tokens that are still to be computed before its first one."""
    ticket = x.ticket
    if x.responded or not x.is_work or x.away:
        return 0.0
    if ticket is None:
        return x.size / _BYTES
    return 0.0 if ticket.first else ticket.fresh
