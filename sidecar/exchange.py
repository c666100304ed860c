"""One request and its answer, and what a stage may say about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.balance.endpoint import Endpoint
    from sidecar.clock import Timer
    from sidecar.errors import Refusal
    from sidecar.http1.request import Request
    from sidecar.http1.response import ResponseHead
    from sidecar.pipeline import Pipeline
    from sidecar.settings import Timeouts


class Parked:
    """Verdict: the stage keeps the exchange and will resume it later."""

    __slots__ = ()


@dataclass(slots=True)
class Reply:
    """Verdict: the mesh answers the request itself.

    `retry_after_s` invites the caller back after so many seconds; without it an inviting refusal
    says that returning is in vain. `headers` are further fields, each a whole `name: value` line
    ending in CRLF.
    """

    refusal: Refusal
    retry_after_s: float | None = None
    message: str | None = None
    headers: bytes = b""


PARKED: Final = Parked()
Verdict = Reply | Parked | None  # None: go on

RUNNING, WAITING, HELD, FORWARDED, DONE = range(5)


class Attempt(Protocol):
    """What carries an exchange to its endpoint: a connection, or the making of one."""

    def abandon(self) -> None:
        """Close the connection at once: whoever asked has gone."""

    def send_more(self) -> None:
        """More of a body that streams through has come."""

    def pause(self) -> None:
        """Read no more of the answer for now."""

    def resume(self) -> None:
        """Read on."""


class Client(Protocol):
    """The connection an exchange came from."""

    peer: str  # its address

    @property
    def is_congested(self) -> bool:
        """It does not read as fast as the engine writes."""

    def want_body(self, x: Exchange) -> None:
        """Let the body come: answer `Expect: 100-continue`."""

    def read_on(self, on: bool) -> None:
        """Go on, or stop, reading a body that streams through."""

    def interim(self, x: Exchange, lines: bytes) -> None:
        """Pass on a 1xx answer."""

    def relay(self, x: Exchange, head: ResponseHead | None, data: bytes, complete: bool) -> None:
        """Pass on what came of the engine's answer; `complete`: there is no more, settle it."""

    def answer(self, x: Exchange, reply: Reply) -> None:
        """Answer in the engine's place, or break off an answer that has begun."""


class Exchange:
    """State of one request and its response, shared by the stages it passes.

    The kernel owns the first group, `Identify` fills the second, `net` the third, and each later
    stage its own fields. Instants are monotonic seconds; 0.0 means that it has not happened.
    """

    __slots__ = (
        # the kernel
        "attempt", "entered", "pending", "pipeline", "refusal", "state",
        # who asks, and for what
        "body", "by_proxy", "client_ip", "cls", "deadline", "is_openai", "is_work", "last_byte_by",
        "max_tokens", "model", "path", "repeat", "request_id", "stream", "tenant",
        # where it comes from and goes to
        "client", "endpoint", "held", "request", "timeouts", "upstream", "when_body",
        # what happened, and what is to happen
        "alarm", "arrived", "bytes_out", "dispatched", "parked", "reason", "responded", "status", "timer",
        "waited",
    )  # fmt: skip

    def __init__(
        self, request: Request, client: Client, pipeline: Pipeline, timeouts: Timeouts, now: float
    ) -> None:
        self.pipeline = pipeline
        self.state = RUNNING
        self.entered = 0  # how many stages it is inside of
        self.pending = 0  # answers that must come before it is dispatched
        self.refusal: Reply | None = None  # a pending answer that said no while a stage ran
        self.attempt = 1

        self.tenant = "anonymous"
        self.cls = "standard"
        self.model = "other"
        self.path = ""
        self.stream = False
        self.is_openai = True  # until the path says otherwise: the shape that most callers read
        self.is_work = False
        self.max_tokens: int | None = None
        self.deadline: float | None = None  # for the first byte
        self.last_byte_by: float | None = None
        self.repeat = 0
        self.by_proxy = False  # the connection is that of a proxy whose word about the caller counts
        self.request_id = b""
        self.client_ip = client.peer
        self.body: bytes | None = None  # the whole body, when it is one that is read; may be replaced

        self.request = request
        self.timeouts = timeouts
        self.held = 0  # bytes of its body that count against the budget
        self.client = client
        self.endpoint: Endpoint | None = None
        self.upstream: Attempt | None = None
        self.when_body: Callable[[Exchange], None] | None = None  # called once the whole body is here

        self.arrived = now
        self.parked = 0.0  # when it joined the queue
        self.waited = 0.0  # seconds it spent there
        self.dispatched = 0.0
        self.responded = 0.0  # when the first byte of the answer came
        self.timer: Timer | None = None  # of the stage that parked it
        self.alarm: Timer | None = None  # of the deadline
        self.status = 0
        self.reason = ""
        self.bytes_out = 0
