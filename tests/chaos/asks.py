"""Requests of a storm: made by chance, and judged by what came back.

Each carries its own id. What answers it must carry it too, and the very bytes that the engine meant for it.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate
from random import Random
from typing import Final

from sidecar import errors
from tests.chaos.faults import CUT, FAULTS, HINTS, MEGABYTE, STRAY, WHOLE, Fault, meant
from tests.chaos.line import Answer

STATUS: Final = {
    refusal.reason: refusal.status
    for refusal in vars(errors).values()
    if isinstance(refusal, errors.Refusal)
}
HELD: Final = (b"/v1/chat/completions", b"/v1/completions", b"/v1/embeddings", b"/v1/responses")
STREAMED: Final = (b"/v1/audio/transcriptions", b"/generate")
READ: Final = (b"/health", b"/v1/models", b"/version")
_NAMES: Final = tuple(FAULTS)
_WEIGHTS: Final = tuple(accumulate(fault.weight for fault in FAULTS.values()))
_ERROR_EVENT: Final = re.compile(rb'\n\ndata: {"error":{.*"code":"(\w+)"}}\n\n')
_WORK: Final = frozenset({"queue_full", "queue_timeout", "overloaded"})
_LONG: Final = 20_000  # bytes
# Long enough never to pass, so that a deadline that is not taken back is kept in memory.
_PATIENT: Final = b"x-request-timeout-ms: 3600000\r\n"
_MODEST: Final = b"x-priority: batch\r\n"  # may have to give way


class Wrong(Exception):
    """What came back must never come back."""


@dataclass(slots=True)
class Ask:
    """One request. `outcomes`: how it may end, beside what may befall every request."""

    request_id: bytes
    fault: Fault
    outcomes: frozenset[str]
    size: int
    method: bytes
    path: bytes
    body: bytes = b""
    version: bytes = b"1.1"
    chunked: bool = False
    expects: bool = False
    hurried: bool = False  # its deadline is short
    fields: list[bytes] = field(default_factory=list)

    def head(self) -> bytes:
        lines = list(self.fields)
        if self.chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        elif self.method == b"POST":
            lines.append(b"content-length: %d\r\n" % len(self.body))
        if self.expects:
            lines.append(b"expect: 100-continue\r\n")
        return b"%b %b?%b=%d HTTP/%b\r\nhost: a\r\nx-request-id: %b\r\n%b\r\n" % (
            self.method,
            self.path,
            self.fault.name.encode(),
            self.size,
            self.version,
            self.request_id,
            b"".join(lines),
        )

    def framed(self) -> bytes:
        """The body as it is sent."""
        if not self.chunked:
            return self.body
        half = len(self.body) // 2 + 1
        parts = (self.body[:half], self.body[half:])
        return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts if part) + b"0\r\n\r\n"

    def may_end(self, outcome: str) -> bool:
        """Whether this can have happened to it."""
        return (
            outcome in self.outcomes
            or outcome in STRAY
            or (outcome in _WORK and self.method == b"POST")
            or (outcome in ("timeout", CUT) and self.hurried)
            # The head of an answer to HEAD is all of it, whatever was to follow.
            or (outcome == WHOLE and CUT in self.outcomes and self.method == b"HEAD")
        )

    def meant(self) -> bytes:
        """The body of the engine's answer."""
        if self.method == b"HEAD" or self.fault.name == "no_content":
            return b""
        return meant(self.request_id, b"" if self.fault.name == "early" else self.body, self.size)


def make(chance: Random, request_id: bytes) -> Ask:
    """Any request."""
    fault = FAULTS[chance.choices(_NAMES, cum_weights=_WEIGHTS)[0]]
    size = MEGABYTE if fault.name == "big" else chance.randrange(64, 1500)
    kind = chance.random()
    if kind < 0.35:
        method = b"GET" if kind < 0.3 else b"HEAD"
        ask = Ask(request_id, fault, fault.outcomes, size, method, chance.choice(READ))
    else:
        paths = HELD if kind < 0.8 else STREAMED if kind < 0.97 else (b"/tokenize",)
        ask = Ask(request_id, fault, fault.outcomes, size, b"POST", chance.choice(paths))
        ask.body = _body(chance)
        if len(ask.body) > _LONG:
            ask.outcomes |= {"request_timeout"}  # on a busy machine
        ask.chunked = chance.random() < 0.15
    if chance.random() < 0.04:
        ask.version = b"1.0"
        ask.chunked = False
    elif ask.body and chance.random() < 0.03:
        ask.expects = True
    if ask.method == b"POST" and chance.random() < 0.2:
        ask.fields.append(_MODEST)
    hurry = chance.random()
    if hurry < 0.04:
        ask.hurried = True
        ask.fields.append(b"x-request-timeout-ms: %d\r\n" % chance.randrange(1, 60))
    elif hurry < 0.2:
        ask.fields.append(_PATIENT)
    return ask


def _body(chance: Random) -> bytes:
    kind = chance.random()
    size = chance.randrange(400) if kind < 0.97 else chance.randrange(60_000 if kind < 0.995 else 250_000)
    stream = b"true" if kind < 0.1 else b"false"
    return b'{"model":"m%d","stream":%b,"prompt":"%b"}' % (chance.randrange(9), stream, b"x" * size)


def judge(ask: Ask, answer: Answer) -> tuple[str, str]:
    """The outcome of `ask`, and its reason ("?" where a client cannot know); raises Wrong."""
    if answer.fields.get(b"x-request-id") != ask.request_id:
        raise Wrong(f"its answer is called {answer.fields.get(b'x-request-id')!r}")
    outcome, reason = _refused(ask, answer) if answer.reason else _answered(ask, answer)
    if not ask.may_end(outcome):
        raise Wrong(f"it ended in {outcome} ({answer.status}, {reason or 'no reason'})")
    _check_interim(ask, answer, outcome)
    return outcome, reason


def _check_interim(ask: Ask, answer: Answer, outcome: str) -> None:
    """One 100 for who expects it, all of the engine's 103s, and none for HTTP/1.0."""
    knows = ask.version == b"1.1"
    found = Counter(answer.interim)
    continues, hints = found.pop(100, 0), found.pop(103, 0)
    most = HINTS if ask.fault.name == "interim" and knows else 0
    some_are_lost = hints < most and outcome == WHOLE
    if continues > (ask.expects and knows) or hints > most or some_are_lost or found:
        raise Wrong(f"before it came {answer.interim}")


def _refused(ask: Ask, answer: Answer) -> tuple[str, str]:
    reason = answer.reason
    if answer.status != STATUS.get(reason) or not answer.complete:
        raise Wrong(f"{reason} came with {answer.status}, complete: {answer.complete}")
    shown = ask.path[:4] == b"/v1/" and ask.method != b"HEAD"
    if shown and b'"code":"%b"' % reason.encode() not in answer.body:
        raise Wrong(f"{reason} has the body {answer.body!r}")
    return reason, reason


def _answered(ask: Ask, answer: Answer) -> tuple[str, str]:
    meant_body = ask.meant()
    name = ask.fault.name
    status = 503 if name == "busy" else (204, 304)[ask.size % 2] if name == "no_content" else 200
    if answer.status != status:
        raise Wrong(f"its status is {answer.status}")
    if answer.complete:
        if answer.body != meant_body:
            raise Wrong(f"it looks complete with {_difference(answer.body, meant_body)}")
        return WHOLE, ""
    reason = "?"
    body = answer.body
    if answer.fields.get(b"content-type") == b"text/event-stream" and ask.version == b"1.1":
        event = _ERROR_EVENT.search(body)
        if event is None or event.end() != len(body):
            raise Wrong(f"a stream broke off without a word: {body[-120:]!r}")
        body, reason = body[: event.start()], event[1].decode()
    if not meant_body.startswith(body):
        raise Wrong(f"it was cut with {_difference(body, meant_body)}")
    return CUT, reason


def _difference(body: bytes, meant_body: bytes) -> str:
    at = next((i for i, (a, b) in enumerate(zip(body, meant_body, strict=False)) if a != b), None)
    at = min(len(body), len(meant_body)) if at is None else at
    return f"{len(body)} of {len(meant_body)} bytes, and {body[at:][:60]!r} for {meant_body[at:][:60]!r}"
