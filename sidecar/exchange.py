"""One request and its answer, and what a stage may say about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from sidecar.errors import Refusal  # noqa: TC001 - compiled, a dataclass looks up what its fields are

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.balance.endpoint import Endpoint
    from sidecar.clock import Timer
    from sidecar.flow.ticket import Ticket
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
    ending in CRLF. `body` is that of an answer which refuses nothing.
    """

    refusal: Refusal
    retry_after_s: float | None = None
    message: str | None = None
    headers: bytes = b""
    body: bytes = b""
    content_type: bytes = b"text/plain"


PARKED: Final = Parked()
Verdict = Reply | Parked | None  # None: go on

RUNNING, WAITING, HELD, FORWARDED, DONE = range(5)


class Attempt(Protocol):
    """What carries an exchange to its endpoint: a connection, or the making of one."""

    def abandon(self) -> None:
        """Close the connection at once: whoever asked has gone."""

    def adopt(self, x: Exchange) -> None:
        """Go on with `x`, in the place of a second attempt at it."""

    def send_more(self) -> None:
        """More of a body that streams through has come."""

    def pause(self) -> None:
        """Read no more of the answer for now."""

    def resume(self) -> None:
        """Read on."""


class Client(Protocol):
    """The connection an exchange came from."""

    peer: str  # its address
    is_mesh: bool  # it came in where peers do
    takes_chunks: bool  # the answer under way has begun, and is chunked

    @property
    def is_congested(self) -> bool:
        """It does not read as fast as the engine writes."""

    def want_body(self, x: Exchange) -> None:
        """Let the body come: answer `Expect: 100-continue`."""

    def read_on(self, on: bool) -> None:
        """Go on, or stop, reading a body that streams through."""

    def interim(self, x: Exchange, lines: bytes) -> None:
        """Pass on a 1xx answer."""

    def pass_on(self, x: Exchange, chunks: bytes, length: int) -> None:
        """Pass on `length` bytes of the engine's answer, framed as they came."""

    def relay(self, x: Exchange, head: ResponseHead | None, data: bytes, complete: bool) -> None:
        """Pass on what came of the engine's answer; `complete`: there is no more, settle it."""

    def answer(self, x: Exchange, reply: Reply) -> None:
        """Answer in the engine's place, or break off an answer that has begun."""


class Exchange:
    """State of one request and its response, shared by the stages it passes.

    The kernel owns the first group, `Identify` fills the second, `net` the third, and each later
    stage its own fields. Instants are monotonic seconds; 0.0 means that it has not happened.
    """

    request: Request
    client: Client
    pipeline: Pipeline
    timeouts: Timeouts
    arrived: float

    # The kernel.
    state: int = RUNNING
    entered: int = 0  # how many stages it is inside of
    pending: int = 0  # answers that must come before it is dispatched
    refusal: Reply | None = None  # a pending answer that said no while a stage ran
    attempt: int = 1

    # Who asks, and for what.
    client_ip: str = ""
    by_proxy: bool = False  # the connection is that of a proxy whose word about the caller counts
    request_id: bytes = b""
    tenant: str = "anonymous"
    cls: str = "standard"
    model: str = "other"
    path: str = ""
    stream: bool = False
    is_openai: bool = True  # until the path says otherwise: the shape that most callers read
    is_work: bool = False
    weight: float = 1.0  # of the tenant
    max_tokens: int | None = None
    answers: int = 1  # how many are wanted; 0: none that is written token by token
    size: int = 0  # bytes of text in its prompt
    origin: float = 0.0  # when its caller first asked
    deadline: float | None = None  # for the first byte
    last_byte_by: float | None = None
    repeat: int = 0
    body: bytes | None = None  # the whole body, when it is one that is read; may be replaced

    # Who may run.
    ticket: Ticket | None = None

    # Where it goes to.
    held: int = 0  # bytes of its body that count against the budget
    endpoint: Endpoint | None = None
    tried: tuple[Endpoint, ...] = ()  # in vain, the last of them last
    away: bool = False  # it is for a peer: no more of ours than to pass it on
    on_trial: bool = False  # it goes to an engine that is down, to see whether it still is
    hop: int = 0  # sidecars it has come through
    cost: float = 0.0  # its work, in tokens
    trail: str = ""  # where it was in vain, and why, for people
    expected_s: float = 0.0  # how long its whole answer should take
    failure: str = ""  # why its last attempt came to nothing,
    failed_with: int = 0  # and the status of it, if it was an answer,
    refused_by: bytes = b""  # with the reason that a peer gave,
    refused_for: float = 0.0  # and the seconds after which it may have room
    when_body: Callable[[Exchange], None] | None = None  # called once the whole body is here

    # What happened, and what is to happen.
    parked: float = 0.0  # when it joined the queue
    waited: float = 0.0  # seconds it spent there
    dispatched: float = 0.0
    responded: float = 0.0  # when the first byte of the answer came
    timer: Timer | None = None  # of the stage that parked it
    alarm: Timer | None = None  # of the deadline
    hedge: Timer | None = None  # of a second attempt beside the first
    tokens: int = 0  # events of the answer, for one that is streamed
    seen: int = 0  # of them when its pace was last looked at,
    seen_at: float = 0.0  # and when that was
    tail: bytes = b""  # the end of the answer, from its usage on
    status: int = 0
    reason: str = ""
    bytes_out: int = 0

    def __init__(
        self, request: Request, client: Client, pipeline: Pipeline, timeouts: Timeouts, arrived: float
    ) -> None:
        self.request = request
        self.client = client
        self.pipeline = pipeline
        self.timeouts = timeouts
        self.arrived = arrived
        self.rival: Exchange | None = None  # the second attempt, while there are two
        self.upstream: Attempt | None = None  # what carries it; mypyc loses a default of such a type

    def __repr__(self) -> str:
        return f"Exchange({self.request_id!r}, {self.request!r})"  # no more: it holds keys and prompts
