"""Three readers of the same bytes: ours, h11, and llhttp through httptools; each made to say it alike.

Ours may refuse what the others read. What it reads, it has to read as they do, and whether the
bytes come at once or in pieces may change nothing.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, NamedTuple

import h11
import httptools

from sidecar.errors import ProtocolError
from sidecar.http1.request import RequestReader
from sidecar.http1.response import ResponseHead, ResponseReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.harness.engine import Fields

_HUGE = 1 << 24  # so that h11 has no limits of its own
_EMPTY_LINES = re.compile(rb"(?:\r\n)*")


class Message(NamedTuple):
    """A request or an answer. `start` is its first line; `keep_alive` is None where nothing follows of it."""

    start: tuple[bytes | int | str, ...]
    fields: Fields
    body: bytes
    complete: bool
    keep_alive: bool | None


class Reading(NamedTuple):
    """What one reader made of the bytes of one connection."""

    messages: list[Message]
    refused: str = ""  # why it read no further
    apart: object = None  # what it says beside the messages
    to_the_end: bool = True  # False: it stopped for a reason that is none for others


def same(ours: Message, theirs: Message) -> bool:
    """Whether they read the same; what one of them cannot tell does not count."""
    if ours.keep_alive is None or theirs.keep_alive is None:
        return ours[:-1] == theirs[:-1]
    return ours == theirs


def lowered(fields: Fields) -> Fields:
    """Names, and transfer codings as h11 gives them, in lower case."""
    return [
        (name.lower(), value.lower() if name.lower() == b"transfer-encoding" else value)
        for name, value in fields
    ]


# Ours.


def our_requests(pieces: Iterable[bytes], make: Callable[[], RequestReader] = RequestReader) -> Reading:
    """The requests in `pieces`; of a refused connection those before, without a half one."""
    reader = make()
    bodies: list[bytes] = []
    refused = ""
    for piece in pieces:
        try:
            reader.feed(piece)
        except ProtocolError as error:
            refused = error.refusal.reason
        bodies += [b""] * (len(reader.requests) - len(bodies))
        for i, request in enumerate(reader.requests):
            bodies[i] += request.take_body()
        if refused:
            break
    found = []
    for request, body in zip(reader.requests, bodies, strict=True):
        assert request.received == len(body)
        for name, value in request.noted.items():
            values = [given for given_name, given in request.fields if given_name == name]
            assert value in (values[0], b", ".join(values))
        keep_alive = request.keep_alive if request.complete and request.version == "1.1" else None
        start = request.method, request.target, request.version
        found.append(Message(start, lowered(request.fields), body, request.complete, keep_alive))
    if refused:
        return Reading([message for message in found if message.complete], refused)
    assert (reader.current is None) == all(message.complete for message in found)
    return Reading(found, apart=reader.is_idle)


def our_answer(
    pieces: Iterable[bytes], method: bytes = b"GET", make: Callable[[], ResponseReader] = ResponseReader
) -> Reading:
    """The answer to a `method` request that ends, if nothing else ends it, with `pieces`."""
    reader = make()
    reader.expect(method)
    body = b""
    for piece in pieces:
        try:
            reader.feed(piece)
        except ProtocolError as error:
            assert not reader.complete
            return Reading([], error.refusal.reason)
        body += reader.take()
    head = reader.head
    if head is None:
        assert not reader.end_of_stream()
        return Reading([], apart=_told(reader.interim))
    framed = head.chunked or head.length is not None
    complete = reader.end_of_stream()
    keep_alive = head.keep_alive if complete and framed else None
    message = Message((head.status,), lowered(head.fields), body, complete, keep_alive)
    return Reading([message], apart=(_told(reader.interim), reader.excess))


def _told(heads: list[ResponseHead]) -> list[tuple[int, Fields]]:
    return [(head.status, head.fields) for head in heads]


# h11.


def h11_requests(data: bytes) -> Reading:
    """h11 does not skip the empty lines before a request line, as RFC 9112 section 2.2 wants it."""
    found: list[Message] = []
    while data := data[_EMPTY_LINES.match(data).end() :]:  # type: ignore[union-attr]
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=_HUGE)
        parser.receive_data(data)
        message = _h11_message(parser)
        if message is None:
            break
        found.append(message)
        if not message.complete:
            break
        data = parser.trailing_data[0]
    return Reading(found)


def h11_answer(data: bytes, method: bytes = b"GET") -> Reading:
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HUGE)
    parser.send(h11.Request(method=method, target=b"/", headers=[(b"host", b"a")]))
    parser.send(h11.EndOfMessage())
    parser.receive_data(data)
    parser.receive_data(b"")
    message = _h11_message(parser)
    return Reading([] if message is None else [message])


def _h11_message(parser: h11.Connection) -> Message | None:
    """The next message that is no interim answer; None when there is none, or its head is invalid."""
    head: h11.Request | h11.Response | None = None
    body, complete = b"", False
    try:
        while not complete:
            event = parser.next_event()
            if isinstance(event, h11.Request | h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                complete = True
            elif not isinstance(event, h11.InformationalResponse):
                break
    except h11.RemoteProtocolError:
        pass
    if head is None:
        return None
    version = head.http_version.decode()
    start = (head.method, head.target, version) if isinstance(head, h11.Request) else (head.status_code,)
    tells = complete and version == "1.1"  # with 1.0 it always closes
    # With an upgrade offered h11 waits for our answer before it says.
    tells = tells and parser.their_state is not h11.MIGHT_SWITCH_PROTOCOL
    keep_alive = parser.their_state is not h11.MUST_CLOSE if tells else None
    return Message(start, lowered(list(head.headers)), body, complete, keep_alive)


# llhttp.


class _Ended(Exception):
    """llhttp need not go on."""


class _Recorder:
    """What httptools calls back; `found` has the head, as far as it came, and the pieces of the body."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.to_the_end = True
        self.answers = False
        self.parser: httptools.HttpRequestParser | httptools.HttpResponseParser
        self.on_message_begin()

    def on_message_begin(self) -> None:
        self._target = b""
        self._fields: Fields = []
        self._head: Message | None = None
        self._body = b""

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head is None:
            self._fields.append((name, value.rstrip(b" \t")))

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_headers_complete(self) -> None:
        parser = self.parser
        if isinstance(parser, httptools.HttpRequestParser):
            if parser.should_upgrade():  # it calls what follows opaque; we do not take the offer
                self.to_the_end = False
                raise _Ended
            version = parser.get_http_version()
            start: tuple[bytes | int | str, ...] = parser.get_method(), self._target, version
            keep_alive = parser.should_keep_alive() if version == "1.1" else None
        else:
            start = (parser.get_status_code(),)
            framed = {b"content-length", b"transfer-encoding"} & {name.lower() for name, _ in self._fields}
            tells = framed and parser.get_http_version() == "1.1"
            keep_alive = parser.should_keep_alive() if tells else None
        self._head = Message(start, lowered(self._fields), b"", False, keep_alive)

    def on_message_complete(self) -> None:
        head = self._head
        assert head is not None
        interim = isinstance(head.start[0], int) and head.start[0] < 200
        if not interim:
            self.messages.append(head._replace(body=self._body, complete=True))
            self._head = None
        if self.answers and not interim:
            raise _Ended
        if not self.parser.should_keep_alive():
            self.to_the_end = False  # it would call what follows an error; whose that is, is not its matter
            raise _Ended

    def finish(self, *, ended: bool) -> Reading:
        """With the message that has only begun. `ended`: the connection is at its end."""
        head = self._head
        if head is not None and not (isinstance(head.start[0], int) and head.start[0] < 200):
            names = {name for name, _ in head.fields}
            counted = b"content-length" in names or b"transfer-encoding" in names
            complete = ended and not counted
            self.messages.append(head._replace(body=self._body, complete=complete, keep_alive=None))
        return Reading(self.messages, to_the_end=self.to_the_end)


def llhttp_requests(data: bytes) -> Reading:
    recorder = _Recorder()
    recorder.parser = httptools.HttpRequestParser(recorder)
    _feed(recorder, data)
    return recorder.finish(ended=False)


@functools.lru_cache(maxsize=1024)
def llhttp_knows(method: bytes | int | str) -> bool:
    """It reads the methods on its list alone."""
    assert isinstance(method, bytes)
    recorder = _Recorder()
    recorder.parser = httptools.HttpRequestParser(recorder)
    return not _feed(recorder, method + b" / HTTP/1.1\r\n")


def llhttp_answer(data: bytes) -> Reading:
    """To a GET: it cannot be told that an answer to HEAD has no body."""
    recorder = _Recorder()
    recorder.answers = True
    recorder.parser = httptools.HttpResponseParser(recorder)
    refused = _feed(recorder, data)
    return recorder.finish(ended=not refused)


def _feed(recorder: _Recorder, data: bytes) -> bool:
    """Whether it refused something of `data`."""
    try:
        recorder.parser.feed_data(data)
    except httptools.HttpParserCallbackError as error:
        if not isinstance(error.__context__, _Ended):
            raise
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError:
        return True
    return False
