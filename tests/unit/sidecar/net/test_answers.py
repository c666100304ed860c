"""The two heads a client can get."""

import json

import pytest

from sidecar import errors
from sidecar.errors import Refusal
from sidecar.exchange import Exchange, Reply
from sidecar.http1.encode import Date
from sidecar.http1.request import Request
from sidecar.http1.response import ResponseHead
from sidecar.net.answers import engine_head, interim_head, own_answer
from tests.harness.wire import Answer, Wire, read_answer

DATE = Date(lambda: 784111777.5)
LOAD = b"endpoint-load-metrics: TEXT eps=0\r\n"
REFUSALS = [value for value in vars(errors).values() if isinstance(value, Refusal)]


def exchange(*, openai: bool = True, method: bytes = b"POST") -> Exchange:
    wire = Wire()
    client, context = wire.client().downstream, wire.context
    request = Request(method, b"/", "1.1")
    x = Exchange(request, client, context.pipeline, context.timeouts, 0.0)
    x.request_id = b"id"
    x.is_openai = openai
    return x


def refused(reply: Reply, *, status: int | None = None, close: bool = False) -> Answer:
    refusal = reply.refusal
    data = own_answer(
        exchange(), reply, status or refusal.status, DATE, LOAD, close=close, elsewhere=refusal.elsewhere
    )
    answer, rest = read_answer(data)
    assert answer.complete
    assert rest == b""
    return answer


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.reason)
def test_every_refusal_says_why_and_whether_to_return(refusal: Refusal) -> None:
    vain, invited = refused(Reply(refusal)), refused(Reply(refusal, retry_after_s=1.2341))
    assert vain.reason == refusal.reason
    assert vain[b"x-request-id"] == b"id"
    assert vain[b"endpoint-load-metrics"] == b"TEXT eps=0"
    assert vain[b"date"] == b"Sun, 06 Nov 1994 08:49:37 GMT"
    assert (b"x-headgate-elsewhere" in vain) == refusal.elsewhere
    assert (b"x-envoy-ratelimited" in vain) == (refusal.status == 429)
    assert (b"x-should-retry" in vain) == refusal.inviting
    assert b"retry-after" not in vain
    assert json.loads(vain.body)["error"]["code"] == refusal.reason
    assert b"x-should-retry" not in invited
    assert (invited[b"retry-after"], invited[b"retry-after-ms"]) == (b"2", b"1235")


def test_a_refusal_in_another_words_and_status() -> None:
    reply = Reply(errors.OVERLOADED, message="because", headers=b"ratelimit: a\r\n")
    answer = refused(reply, status=529, close=True)
    assert answer.status == 529
    assert json.loads(answer.body)["error"]["message"] == "because"
    assert answer[b"ratelimit"] == b"a"
    assert answer[b"connection"] == b"close"


def test_elsewhere_than_on_openai_paths_it_is_plain() -> None:
    x = exchange(openai=False)
    reply = Reply(errors.FORBIDDEN)
    answer, _ = read_answer(own_answer(x, reply, 403, DATE, LOAD, close=False, elsewhere=False))
    assert answer.body == b"This path is not open to callers.\n"
    assert b"connection" not in answer
    assert x.bytes_out == len(answer.body)


def test_what_refuses_nothing_has_the_body_it_is_given() -> None:
    reply = Reply(Refusal("", 200, ""), body=b"a 1\n", content_type=b"text/plain; version=0.0.4")
    answer = refused(reply)
    assert (answer.status, answer.body) == (200, b"a 1\n")
    assert answer[b"content-type"] == b"text/plain; version=0.0.4"
    assert b"x-headgate-reason" not in answer


def test_head_gets_the_length_alone() -> None:
    answer, rest = read_answer(
        own_answer(
            exchange(method=b"HEAD"), Reply(errors.FORBIDDEN), 403, DATE, LOAD, close=False, elsewhere=False
        ),
        b"HEAD",
    )
    assert rest == b""
    assert int(answer[b"content-length"]) > 0


def test_where_the_time_went() -> None:
    x = exchange()
    x.waited, x.dispatched, x.responded = 0.0125, 2.0, 2.25
    engines = ResponseHead(200, "1.1", [b"content-length: 3"])
    head = b"".join(engine_head(x, engines, DATE, LOAD, chunked=False, close=False))
    assert b"\r\nserver-timing: limit;dur=0, queue;dur=12.5, upstream;dur=250.0\r\n" in head
    assert b"\r\n" + LOAD in head


def test_an_interim_head_is_stripped_too() -> None:
    lines = [b"link: a", b"connection: x", b"x: y", b"x-headgate-reason: z"]
    assert interim_head(ResponseHead(103, "1.1", lines)) == b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n"
