"""Stages that pass, park, refuse and crash, around the kernel that is put to the test."""

from collections import Counter
from functools import partial
from typing import Any

from sidecar.errors import OVERLOADED, RATE_LIMITED
from sidecar.exchange import FORWARDED, PARKED, WAITING, Exchange, Reply, Verdict
from sidecar.http1.request import Request
from sidecar.pipeline import Pipeline, Ready, Stage
from sidecar.settings import Timeouts

LIMIT = 3
TIMEOUTS = Timeouts()


class Nobody:
    peer = ""

    def want_body(self, x: Exchange) -> None:
        raise AssertionError


def exchange(pipeline: Pipeline) -> Exchange:
    return Exchange(Request(b"GET", b"/", "1.1"), Nobody(), pipeline, TIMEOUTS, 0.0)


class Recorder(Stage):
    """Checks that enters and leaves pair up; refuses, crashes, holds or refuses what it holds."""

    def __init__(self) -> None:
        self.inside: set[Exchange] = set()
        self.mode = "pass"
        self.entries: Counter[Exchange] = Counter()

    def on_request(self, x: Exchange) -> Verdict:
        assert x not in self.inside
        self.inside.add(x)
        self.entries[x] += 1
        if self.mode == "refuse":
            return Reply(OVERLOADED)
        if self.mode == "crash":
            raise ZeroDivisionError
        if self.mode in ("hold", "answered at once"):
            x.pipeline.hold(x)
        if self.mode == "answered at once":
            x.pipeline.release(x, Reply(RATE_LIMITED))
        return None

    def on_complete(self, x: Exchange) -> None:
        self.inside.remove(x)
        if self.mode == "crash":
            raise ZeroDivisionError


class Capacity(Stage):
    """A limit with a queue, shared by every pipeline it stands in."""

    def __init__(self) -> None:
        self.holders: set[Exchange] = set()
        self.queue: dict[Exchange, None] = {}  # in order of arrival

    def on_request(self, x: Exchange) -> Verdict:
        if len(self.holders) < LIMIT:
            self.holders.add(x)
            return None
        self.queue[x] = None
        return PARKED

    def on_complete(self, x: Exchange) -> None:
        self.holders.discard(x)
        self.queue.pop(x, None)
        while self.queue and len(self.holders) < LIMIT:
            y = next(iter(self.queue))
            del self.queue[y]
            if y.state == WAITING:
                self.holders.add(y)
                y.pipeline.resume(y)


class Rig:
    """Two pipelines over the same stages, as after a reload, and what came out of them.

    `recovers` says what becomes of an attempt that failed: another at once, another later (see `pausing`),
    none, or a bug.
    """

    def __init__(self) -> None:
        self.recovers = "no"
        self.pausing: dict[Exchange, int] = {}  # and its attempt then
        self.asked_about: list[tuple[int, str]] = []  # its state, and what failed
        self.recorders = (Recorder(), Recorder(), Recorder())
        self.capacity = Capacity()
        self.answers: Counter[Exchange] = Counter()
        self.reasons: dict[Exchange, str] = {}
        self.sent: list[Exchange] = []
        self.on_forward: Any = None
        self.on_answer: Any = None
        ready = Ready()
        first, second, third = self.recorders
        self.pipelines = [
            Pipeline(
                (first, second, self.capacity, third),
                retry_at=3,
                forward=partial(self.forward, number),
                answer=partial(self.answer, number),
                recover=self.recover,
                ready=ready,
            )
            for number in range(2)
        ]

    def forward(self, number: int, x: Exchange) -> None:
        assert x.pipeline is self.pipelines[number], "moved by a pipeline it did not start with"
        assert x.pending == 0, "dispatched while an answer is pending"
        self.sent.append(x)
        if self.on_forward is not None:
            self.on_forward(x)

    def answer(self, number: int, x: Exchange, reply: Reply) -> None:
        assert x.pipeline is self.pipelines[number], "answered by a pipeline it did not start with"
        self.answers[x] += 1
        self.reasons[x] = reply.refusal.reason
        if self.on_answer is not None:
            self.on_answer(x)

    def recover(self, x: Exchange) -> bool:
        self.asked_about.append((x.state, x.failure))  # what is raised here is caught
        if self.recovers == "crash":
            raise ZeroDivisionError
        if self.recovers == "at once":
            x.pipeline.retry(x, at=2)
        elif self.recovers == "later":
            self.pausing[x] = x.attempt
        return self.recovers in ("at once", "later")

    def go_on(self, x: Exchange) -> None:
        """Its pause is over."""
        attempt = self.pausing.pop(x)
        if x.state == FORWARDED and x.attempt == attempt:
            x.pipeline.retry(x)

    def arrive(self, mode: str = "pass", which: int = 0, pipeline: int = 0) -> Exchange:
        x = exchange(self.pipelines[pipeline])
        self.recorders[which].mode = mode
        x.pipeline.start(x)
        self.recorders[which].mode = "pass"
        return x
