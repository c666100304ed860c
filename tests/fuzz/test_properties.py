"""A reader that breaks a property is caught."""

import pytest

from sidecar.errors import MALFORMED, UPSTREAM_PROTOCOL, ProtocolError
from sidecar.http1.request import RequestReader
from sidecar.http1.response import ResponseReader
from tests.fuzz.properties import (
    Broken,
    check_answer_without_end,
    check_answers,
    check_requests,
    check_requests_without_end,
    held,
)
from tests.harness.engine import answer, chunked, ok
from tests.harness.wire import get, post, post_chunked


class Deaf(RequestReader):
    """Loses a field."""

    def feed(self, data: bytes) -> None:
        super().feed(data)
        for request in self.requests:
            del request.lines[1:]
            request.noted = dict(request.fields)


class Impatient(RequestReader):
    """Takes the end of a piece for the end of a line."""

    def feed(self, data: bytes) -> None:
        if data.endswith(b"\r"):
            raise ProtocolError(MALFORMED, "a bare CR")
        super().feed(data)


class Levelling(RequestReader):
    """Takes a path for the same in lower case."""

    def feed(self, data: bytes) -> None:
        super().feed(data)
        for request in self.requests:
            request.target = request.target.lower()


class Closing(RequestReader):
    """Never keeps a connection."""

    def feed(self, data: bytes) -> None:
        super().feed(data)
        for request in self.requests:
            request.keep_alive = False


class Clumsy(RequestReader):
    """Has a bug."""

    def feed(self, data: bytes) -> None:
        data.decode("ascii")
        super().feed(data)


class Hoarding(RequestReader):
    """Keeps all it was fed."""

    __slots__ = ("all",)

    def __init__(self) -> None:
        super().__init__()
        self.all: list[bytes] = []

    def feed(self, data: bytes) -> None:
        self.all.append(data)
        super().feed(data)


@pytest.mark.interpreted
@pytest.mark.parametrize(
    ("kind", "sent", "error"),
    [
        (Deaf, get("/", "a: b"), "h11 reads"),
        (Impatient, get(), "cut into"),
        (Levelling, get("/A"), "h11 reads"),
        (Closing, get(), "h11 reads"),
    ],
)
def test_a_reader_of_requests_that_lies_is_caught(kind: type[RequestReader], sent: bytes, error: str) -> None:
    check_requests(sent)
    with pytest.raises(Broken, match=error):
        check_requests(sent, kind)


@pytest.mark.interpreted
def test_a_bug_is_no_refusal() -> None:
    check_requests(get("/", "a: é"))
    with pytest.raises(UnicodeDecodeError):
        check_requests(get("/", "a: é"), Clumsy)


@pytest.mark.interpreted
def test_one_that_keeps_all_is_caught() -> None:
    sent = post_chunked("/", last=False), b"3e8\r\n" + b"x" * 1000 + b"\r\n"
    check_requests_without_end(*sent)
    with pytest.raises(Broken, match="holds"):
        check_requests_without_end(*sent, Hoarding)


class Wholesale(ResponseReader):
    """Takes any end of the connection for the end of the answer."""

    __slots__ = ()

    def end_of_stream(self) -> bool:
        self.complete = self.head is not None
        return self.complete


class Blind(ResponseReader):
    """Does not see what follows an answer in another piece."""

    __slots__ = ()

    def feed(self, data: bytes) -> None:
        if not self.complete:
            super().feed(data)


class Headless(ResponseReader):
    """Does not know what has no body."""

    __slots__ = ()

    def expect(self, method: bytes) -> None:
        super().expect(b"GET")


class Sore(ResponseReader):
    """Refuses an answer for what follows it."""

    __slots__ = ()

    def feed(self, data: bytes) -> None:
        super().feed(data)
        if self.excess:
            raise ProtocolError(UPSTREAM_PROTOCOL, "more than was asked for")


class Collecting(ResponseReader):
    """Keeps the body."""

    __slots__ = ("all",)

    def __init__(self) -> None:
        self.all = b""
        super().__init__()

    def feed(self, data: bytes) -> None:
        super().feed(data)
        self.all += data


@pytest.mark.interpreted
@pytest.mark.parametrize(
    ("kind", "sent", "error"),
    [
        (Wholesale, ok(b"hello")[:-1], "h11 reads"),
        (Blind, ok(b"mine") + ok(b"poison"), "cut into"),
        (Headless, answer(b"200 OK", b"", b"content-length: 5"), "h11 reads"),
        (Sore, ok() + b"x", None),
    ],
)
def test_a_reader_of_answers_that_lies_is_caught(
    kind: type[ResponseReader], sent: bytes, error: str | None
) -> None:
    check_answers(sent)
    with pytest.raises(AssertionError, match=error):
        check_answers(sent, kind)


@pytest.mark.interpreted
def test_one_that_keeps_the_body_is_caught() -> None:
    sent = answer(b"200 OK", b"", b"transfer-encoding: chunked"), chunked(b"x" * 1000, last=False)
    check_answer_without_end(*sent)
    with pytest.raises(Broken, match="holds"):
        check_answer_without_end(*sent, Collecting)


@pytest.mark.interpreted
def test_what_is_held_is_all_that_is_reached() -> None:
    reader = RequestReader()
    empty = held(reader)
    reader.feed(get("/" + "t" * 1000, "n" * 1000 + ": " + "v" * 1000) + post("/", b"b" * 1000))
    assert held(reader) > empty + 4000
