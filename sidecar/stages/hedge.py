"""A second attempt beside the first: whichever comes to a first token goes on, and the other ends.

Hedged requests (Dean and Barroso, The Tail at Scale, 2013), before the first token alone: until then nobody
has seen which of two it is. The second attempt is an exchange of its own that passes no stage. Its client is
a `Rival`, which waits for its first token and then hands the connection over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.exchange import DONE, FORWARDED, Exchange, Reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.http1.response import ResponseHead

_COPIED = (
    "client_ip", "by_proxy", "request_id", "tenant", "cls", "model", "path", "stream", "is_openai", "is_work",
    "weight", "max_tokens", "answers", "size", "origin", "deadline", "last_byte_by", "repeat", "body", "cost",
    "expected_s",
)  # fmt: skip


class Rival:
    """The client of the second attempt at `x`. `won(x, second)` is told when it is the one that goes on."""

    def __init__(self, x: Exchange, won: Callable[[Exchange, Exchange], None]) -> None:
        self.peer = x.client.peer
        self.is_mesh = False
        self.takes_chunks = False
        self._x = x
        self._won = won

    @property
    def is_congested(self) -> bool:
        return False

    def want_body(self, x: Exchange) -> None:
        """It is all here."""

    def read_on(self, on: bool) -> None:
        """Likewise."""

    def interim(self, x: Exchange, lines: bytes) -> None:
        """Nobody asked for two of them."""

    def pass_on(self, x: Exchange, chunks: bytes, length: int) -> None:
        """Only after a head, and that is the end of this."""

    def relay(self, second: Exchange, head: ResponseHead | None, data: bytes, complete: bool) -> None:
        """It has come to its first token, or to its end."""
        x, carrier = self._x, second.upstream
        end(second)
        is_ours = x.rival is second and x.state == FORWARDED
        x.rival = None if x.rival is second else x.rival
        # What is no answer is one only when there is no other.
        if not is_ours or head is None or (second.status != 200 and x.upstream is not None):
            if carrier is not None:
                carrier.abandon()
            return
        if x.upstream is not None:
            x.upstream.abandon()
        self._won(x, second)
        if carrier is not None:
            carrier.adopt(x)
        if x.pipeline.response(x):
            x.client.relay(x, head, data, complete)

    def answer(self, second: Exchange, reply: Reply) -> None:
        """It has come to nothing; so has the exchange, if the first attempt had before."""
        x = self._x
        end(second)
        if x.rival is second:
            x.rival = None
            if x.state == FORWARDED and x.upstream is None:
                x.pipeline.fail(x, reply)


def second_of(x: Exchange, won: Callable[[Exchange, Exchange], None]) -> Exchange:
    """Another attempt at `x`, which no stage has seen."""
    second = Exchange(x.request, Rival(x, won), x.pipeline, x.timeouts, x.arrived)
    for name in _COPIED:
        setattr(second, name, getattr(x, name))
    second.state = FORWARDED
    second.hop = 1  # from where it goes it goes no further
    second.attempt = x.attempt + 1
    return second


def end(second: Exchange) -> None:
    """It is no attempt any more; its connection is somebody else's matter."""
    second.state = DONE
    if second.endpoint is not None:
        second.endpoint.carried.pop(second, None)


def drop(x: Exchange) -> None:
    """End the second attempt at `x`, if there is one."""
    second, x.rival = x.rival, None
    if second is not None:
        end(second)
        if second.upstream is not None:
            second.upstream.abandon()
