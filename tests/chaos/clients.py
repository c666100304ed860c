"""The clients of a storm: some wait for their answers and judge them, the others leave, each in its way.

`python -m tests.chaos.clients PORT REQUESTS SEED FILE` makes so many requests, writes to FILE what became
of each (`id outcome status reason size`; outcome `left`: nobody waited for it), and prints a `Tally` as JSON.
"""

import asyncio
import contextlib
import socket
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Final

import msgspec
import uvloop

from tests.chaos.asks import HELD, STREAMED, Ask, Wrong, judge, make
from tests.chaos.faults import FAULTS, MEGABYTE, WHOLE
from tests.chaos.line import Answer, Ended, Line, Unreadable, answer_to, reset
from tests.chaos.malformed import FORBIDDEN, REFUSED

AT_ONCE: Final = 80
HUNG_AFTER_S: Final = 40.0  # nothing that a client does takes as long
LEFT: Final = "left"
_TURNED_AWAY: Final = "too_many_connections"
_MAX_WRONGS: Final = 50
_SMALL_BUFFER: Final = 4096
_OVERLOADED: Final = ("overloaded",)  # there is no room for bodies, large or not
_ON_REQUEST_TIMEOUT: Final = frozenset({"request_timeout"})


@dataclass
class Tally:
    """What the clients counted.

    `met`: how often which fault (`-`: the client's own) had which outcome. `wrong`: what no sidecar may do.
    """

    requests: int = 0
    answered: int = 0
    seconds: float = 0.0
    met: dict[str, int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class TurnedAway(Exception):
    """There are too many connections: nothing was wrong with this one."""


class Crowd:
    """What all clients share."""

    def __init__(self, port: int, requests: int, seed: str) -> None:
        self.port = port
        self.seed = seed
        self.tally = Tally()
        self.lines: list[str] = []
        self._to_make = requests

    @property
    def is_over(self) -> bool:
        return self._to_make <= 0

    def one_more(self) -> None:
        """A request is made."""
        self._to_make -= 1
        self.tally.requests += 1

    def take_back(self, requests: int) -> None:
        """So many were not made after all."""
        self._to_make += requests
        self.tally.requests -= requests

    def note(self, request_id: bytes, outcome: str, answer: Answer | None = None, reason: str = "") -> None:
        """What became of a request."""
        status, size = (answer.status, len(answer.body)) if answer is not None else (0, 0)
        self.lines.append(f"{request_id.decode()} {outcome} {status} {reason} {size}\n")


class Client:
    """One client after the other, each with a manner of its own."""

    def __init__(self, crowd: Crowd, slot: int) -> None:
        self._crowd = crowd
        self._slot = slot
        self._named = 0  # requests so far,
        self._before = 0  # and those before this visit
        self._chance = Random(f"{crowd.seed}/{slot}")
        self._about = b""

    async def run(self) -> None:
        while not self._crowd.is_over:
            manner = self._chance.choices(_MANNERS, cum_weights=_OFTEN)[0]
            try:
                async with asyncio.timeout(HUNG_AFTER_S):
                    await self._visit(manner)
            except (Wrong, Unreadable) as wrong:
                self._complain(manner, str(wrong))
            except Ended as end:
                self._complain(manner, f"{end}, and nobody had left")
            except TimeoutError:
                self._complain(manner, f"it hangs for {HUNG_AFTER_S:g} s")
            except TurnedAway:
                self._crowd.take_back(self._named - self._before)
                await asyncio.sleep(0.05)

    def _complain(self, manner: "Manner", what: str) -> None:
        if len(self._crowd.tally.wrong) < _MAX_WRONGS:
            self._crowd.tally.wrong.append(f"{manner.__name__} {self._about.decode()}: {what}")

    async def _visit(self, manner: "Manner") -> None:
        self._before = self._named
        sock = socket.socket()
        sock.setblocking(False)
        if manner is Client.deaf:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", self._crowd.port))
        _, line = await loop.create_connection(Line, sock=sock)
        try:
            await manner(self, line)
        finally:
            line.transport.abort()

    # What manners are made of.

    def _name(self) -> bytes:
        """The id of one more request."""
        self._crowd.one_more()
        self._named += 1
        return f"{self._crowd.seed}-{self._slot}-{self._named}".encode()

    def _ask(self) -> Ask:
        ask = make(self._chance, self._name())
        self._about = ask.request_id + b" " + ask.fault.name.encode()
        return ask

    async def _answer(self, line: Line, ask: Ask) -> None:
        """Take the answer to `ask`, judge and note it."""
        self._about = ask.request_id + b" " + ask.fault.name.encode()
        answer = await answer_to(ask.method, line)
        if answer.reason == _TURNED_AWAY:
            await self._turned_away(line, answer)
        outcome, reason = judge(ask, answer)
        self._crowd.tally.answered += 1
        self._crowd.tally.met[f"{ask.fault.name} {outcome}"] += 1
        self._crowd.note(ask.request_id, outcome, answer, reason)
        if answer.closes or not answer.complete:
            await self._end(line, in_order=answer.complete)

    async def _check_silence(self, line: Line) -> None:
        if line.has_news:
            raise Wrong(f"unasked came {(await line.rest())[:80]!r}")

    async def _turned_away(self, line: Line, answer: Answer) -> None:
        self._note_own(answer)
        await line.rest()  # a body too, if we asked with HEAD: nobody has read that
        raise TurnedAway

    def _note_own(self, answer: Answer) -> None:
        """An answer to what had no id."""
        self._crowd.note(answer.fields.get(b"x-request-id", b"-"), "refused", answer, answer.reason)

    async def _end(self, line: Line, *, in_order: bool = True) -> None:
        """The sidecar must hang up, say nothing more, and not reset what it has answered."""
        rest = await line.rest()
        if rest or (in_order and line.was_reset):
            raise Wrong(f"after the last answer came {rest[:80]!r}, and a reset: {line.was_reset}")

    def _leave(self, line: Line, *left: Ask) -> None:
        for ask in left:
            self._crowd.note(ask.request_id, LEFT)
        if self._chance.random() < 0.5:
            reset(line.transport)
        else:
            line.transport.close()

    async def _pause(self, *seconds: float) -> None:
        """For one of these, or less."""
        await asyncio.sleep(self._chance.choice(seconds) * self._chance.random())

    async def _send(self, line: Line, ask: Ask) -> None:
        """All of it: at once, in pieces, or with the sidecar's leave."""
        head, body = ask.head(), ask.framed()
        if ask.expects:
            line.send(head)
            await line.news()
            line.send(body)
        elif body and self._chance.random() < 0.03:
            ask.outcomes |= _ON_REQUEST_TIMEOUT
            step = len(body) // 4 + 1
            for piece in (head, *(body[i : i + step] for i in range(0, len(body), step))):
                if line.has_news:
                    return
                line.send(piece)
                await self._pause(0.02)
        else:
            line.send(head + body)

    # Manners.

    async def calm(self, line: Line) -> None:
        """One request after the other; each waits for its answer."""
        for _ in range(self._chance.randrange(1, 24)):
            ask = self._ask()
            await self._send(line, ask)
            await self._answer(line, ask)
            if line.ended or self._crowd.is_over:
                return
            if self._chance.random() < 0.02:
                await self._pause(0.1)
            await self._check_silence(line)

    async def pipelining(self, line: Line) -> None:
        """Many requests at once. What is behind an answer that closes is not answered."""
        asks = [self._ask() for _ in range(self._chance.randrange(2, 21))]
        for ask in asks:
            ask.expects = False
        line.send(b"".join(ask.head() + ask.framed() for ask in asks))
        stays = self._chance.randrange(30)
        for i, ask in enumerate(asks):
            if i > stays:
                self._leave(line, *asks[i:])
                return
            await self._answer(line, ask)
            if line.ended:
                return
        await self._check_silence(line)

    async def malformed(self, line: Line) -> None:
        """Something that is no request, perhaps behind one that is."""
        data, reason = self._chance.choice(REFUSED)
        if self._chance.random() < 0.3:
            ask = self._ask()
            ask.expects = False
            line.send(ask.head() + ask.framed() + data)
            await self._answer(line, ask)
            if line.ended:
                return
        else:
            line.send(data)
        self._name()
        await self._refused(line, reason, *_OVERLOADED if reason == "body_too_large" else ())
        await self._end(line)

    async def forbidden(self, line: Line) -> None:
        """What is refused while nothing is wrong with the connection."""
        for _ in range(3):
            data, reason = self._chance.choice(FORBIDDEN)
            self._name()
            line.send(data)
            await self._refused(line, reason)

    async def _refused(self, line: Line, *reasons: str) -> None:
        self._about = reasons[0].encode()
        answer = await answer_to(b"", line)
        if answer.reason == _TURNED_AWAY:
            await self._turned_away(line, answer)
        if answer.reason not in reasons or not answer.complete:
            raise Wrong(f"was answered with {answer.status} {answer.reason}")
        self._crowd.tally.answered += 1
        self._crowd.tally.met[f"- {answer.reason}"] += 1
        self._note_own(answer)

    async def slow_head(self, line: Line) -> None:
        """Half a head, and then nothing."""
        head = self._ask().head()
        line.send(head[: self._chance.randrange(1, len(head) - 1)])
        await self._refused(line, "request_timeout")
        await self._end(line)

    async def slow_body(self, line: Line) -> None:
        """Half a body, and then nothing."""
        ask = self._ask()
        if not ask.body:
            ask.method, ask.path, ask.body = b"POST", self._chance.choice(HELD + STREAMED), b"x" * 500
        ask.outcomes = _ON_REQUEST_TIMEOUT | ({WHOLE} if ask.fault is FAULTS["early"] else set())
        sent = ask.head() + ask.framed()
        line.send(sent[: self._chance.randrange(len(ask.head()), len(sent) - 1)])
        await self._answer(line, ask)
        if not line.ended:
            raise Wrong("the connection stays open, with half a body to come")

    async def silent(self, line: Line) -> None:
        """Connects, and says nothing."""
        self._name()
        await line.news()
        if line.ended:
            await self._end(line)
        else:
            await self._refused(line, _TURNED_AWAY)

    async def leaving(self, line: Line) -> None:
        """In the head, in the body, in the queue, before or in the answer."""
        ask = self._ask()
        head, body = ask.head(), ask.framed()
        where = self._chance.randrange(10)
        if where == 0:
            line.send(head[: self._chance.randrange(1, len(head) - 1)])
            await self._pause(0, 0.01)
            self._leave(line)
            return
        sent = len(head) + (self._chance.randrange(len(body) + 1) if where == 1 else len(body))
        line.send((head + body)[:sent])
        if where < 6:
            await self._pause(0, 0.002, 0.02, 0.1)
        elif where < 9:
            await line.news()
        else:
            line.transport.write_eof()
            await line.rest()
        self._leave(line, ask)

    async def deaf(self, line: Line) -> None:
        """Asks for much and does not read it; then leaves, or reads on after all."""
        asks = [self._ask() for _ in range(3)]
        for ask in asks:
            ask.fault, ask.size, ask.method, ask.expects = FAULTS["big"], MEGABYTE, b"GET", False
            ask.outcomes, ask.body, ask.chunked = FAULTS["big"].outcomes, b"", False
        line.transport.pause_reading()
        line.send(b"".join(ask.head() for ask in asks))
        await self._pause(0.1, 0.5, 1.5)
        if self._chance.random() < 0.5:
            line.transport.resume_reading()
            # It may have been too slow: then what comes ends somewhere.
            with contextlib.suppress(Ended):
                for ask in asks:
                    answer = await answer_to(b"GET", line)
                    if not answer.complete or answer.reason == _TURNED_AWAY:
                        break
                    judge(ask, answer)
        self._leave(line, *asks)


Manner = Callable[[Client, Line], Awaitable[None]]
_WEIGHED: Final[tuple[tuple[Manner, float], ...]] = (
    (Client.calm, 50),
    (Client.pipelining, 20),
    (Client.malformed, 20),
    (Client.forbidden, 2),
    (Client.slow_head, 0.5),
    (Client.slow_body, 0.5),
    (Client.silent, 0.3),
    (Client.leaving, 45),
    (Client.deaf, 0.3),
)
_MANNERS: Final = tuple(manner for manner, _ in _WEIGHED)
_OFTEN: Final = tuple(accumulate(weight for _, weight in _WEIGHED))


async def main(crowd: Crowd) -> None:
    began = time.monotonic()
    async with asyncio.TaskGroup() as clients:
        for slot in range(AT_ONCE):
            clients.create_task(Client(crowd, slot).run())
    crowd.tally.seconds = time.monotonic() - began


if __name__ == "__main__":
    port, requests, seed, file = sys.argv[1:]
    made = Crowd(int(port), int(requests), seed)
    uvloop.run(main(made))
    Path(file).write_text("".join(made.lines))
    print(msgspec.json.encode(made.tally).decode(), flush=True)
