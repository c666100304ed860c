"""Which fields are read, and which pass."""

import pytest

from sidecar.errors import MALFORMED, UPSTREAM_PROTOCOL, ProtocolError
from sidecar.http1.fields import answer_fields, has_token, pairs, request_fields

HOP_BY_HOP = [
    b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
    b"http2-settings",
]  # fmt: skip

OURS = [
    b"content-length", b"host", b"via", b"expect", b"proxy-authorization", b"x-forwarded-for",
    b"x-forwarded-proto", b"x-forwarded-host", b"x-request-id", b"x-headgate-hop", b"x-headgate-",
    b"content_length", b"transfer_encoding",
]  # fmt: skip

PROXY_WORDS = [b"forwarded", b"x-real-ip", b"x-request-start"]


def passed(*lines: bytes) -> bytes:
    return b"".join(request_fields(MALFORMED, {}).read(list(lines))[1])


def returned(*lines: bytes) -> bytes:
    return b"".join(answer_fields(UPSTREAM_PROTOCOL, {}).read(list(lines))[1])


def noted(*lines: bytes) -> dict[bytes, bytes]:
    return request_fields(MALFORMED, {}).read(list(lines))[0]


def test_order_and_repeats_are_kept() -> None:
    lines = b"b:1", b"A: 2 ", b"b:\t", b"accept: */*"
    assert passed(*lines) == returned(*lines) == b"b: 1\r\na: 2\r\nb: \r\naccept: */*\r\n"


@pytest.mark.parametrize("name", HOP_BY_HOP)
def test_hop_by_hop_fields_end_here(name: bytes) -> None:
    assert passed(name + b": x") == b""
    assert returned(name + b": x") == b""


@pytest.mark.parametrize("name", [*OURS, *PROXY_WORDS])
def test_what_is_written_anew_or_not_the_callers_to_set_is_dropped(name: bytes) -> None:
    assert passed(name + b": x") == b""


@pytest.mark.parametrize("name", [*HOP_BY_HOP, *OURS, *PROXY_WORDS])
def test_a_name_that_many_frameworks_read_as_a_dropped_one_is_dropped_too(name: bytes) -> None:
    for alias in (name.replace(b"-", b"_"), name.replace(b"-", b"_", 1)):
        assert passed(alias + b": x") == b""


@pytest.mark.parametrize("name", [b"x_api_key", b"content_length", b"x_priority"])
def test_a_name_with_an_underscore_is_not_the_one_without(name: bytes) -> None:
    assert noted(name + b": x") == {}


@pytest.mark.parametrize("name", [b"user_id", b"_", b"x_headgate", b"x_forwarded", b"x__forwarded_for"])
def test_other_names_with_an_underscore_pass(name: bytes) -> None:
    assert passed(name + b": x") == name + b": x\r\n"


def test_what_connection_names_is_dropped_under_either_spelling() -> None:
    assert passed(b"x-one: 1", b"connection: x-one", b"x_one: 2") == b""


@pytest.mark.parametrize(
    "name", [b"content-length", b"via", b"x-request-id", b"x-headgate-reason", b"x-headgate-"]
)
def test_what_is_written_anew_on_answers_is_dropped(name: bytes) -> None:
    assert returned(name + b": x") == b""


@pytest.mark.parametrize("connection", [b"X-One , x-two,", b"close, x-one, X-TWO", b"x-one,,x-two,close"])
def test_what_connection_names_is_hop_by_hop(connection: bytes) -> None:
    lines = b"x-one: 1", b"connection: " + connection, b"x-two: 2", b"x-three: 3"
    assert passed(*lines) == returned(*lines) == b"x-three: 3\r\n"


@pytest.mark.parametrize("name", [b"authorization", b"cache-control", b"content-type"])
def test_connection_cannot_name_what_goes_end_to_end(name: bytes) -> None:
    assert passed(name + b": x", b"connection: " + name) == name + b": x\r\n"


def test_what_is_read_here_is_noted_whether_or_not_it_passes() -> None:
    lines = b"Host: h", b"Authorization: Bearer k", b"user-agent: x"
    assert noted(*lines) == {b"host": b"h", b"authorization": b"Bearer k"}
    assert passed(*lines) == b"authorization: Bearer k\r\nuser-agent: x\r\n"


def test_of_a_repeated_field_the_first_counts_and_of_a_list_all() -> None:
    assert noted(b"x-priority: a", b"x-priority: b") == {b"x-priority": b"a"}
    assert noted(b"via: 1", b"a: x", b"Via: 2, 3") == {b"via": b"1, 2, 3"}


@pytest.mark.parametrize(
    "name",
    [b"host", b"content-length", b"transfer-encoding", b"content-type", b"expect", b"authorization",
     b"x-api-key"],
)
def test_what_readers_would_take_differently_must_not_be_repeated(name: bytes) -> None:
    with pytest.raises(ProtocolError, match="repeated"):
        noted(name + b": 1", name + b": 1")


@pytest.mark.parametrize(
    "line",
    [b"a", b": b", b"a : b", b" a: b", b"a\t: b", b"a: \0", b"a: b\r", b"a: b\nc: d", b"a(: b", b"",
     b"a: \x7f", b"checked", b"Checked"],
)
def test_what_is_no_field_is_refused_each_time(line: bytes) -> None:
    reader = request_fields(MALFORMED, {b"checked": lambda value: None})
    for _ in range(2):
        with pytest.raises(ProtocolError) as error:
            reader.read([b"x: y", line])
        assert error.value.refusal is MALFORMED


def test_values_are_checked_each_time() -> None:
    def check(value: bytes) -> None:
        if value == b"bad":
            raise ProtocolError(MALFORMED, "bad")

    reader = request_fields(MALFORMED, {b"a": check})
    for _ in range(2):
        assert reader.read([b"a: good"])[1] == [b"a: good\r\n"]
        with pytest.raises(ProtocolError, match="bad"):
            reader.read([b"A:bad "])


def test_a_flood_of_lines_changes_no_meaning() -> None:
    reader = request_fields(MALFORMED, {})
    for i in range(5000):
        line = b"x-%d: %d" % (i, i)
        assert reader.read([line, b"host: h"]) == ({b"host": b"h"}, [line + b"\r\n"])
    assert len(reader._known) < 3000


def test_pairs_are_all_fields_in_order() -> None:
    assert pairs([b"A: 1", b"b:", b"a:\t2 "]) == [(b"a", b"1"), (b"b", b""), (b"a", b"2")]


@pytest.mark.parametrize(
    ("value", "found"),
    [(b"close", True), (b"x, Close ", True), (b"closed", False), (b"", False), (None, False)],
)
def test_tokens_of_a_list(value: bytes | None, found: bool) -> None:
    assert has_token(value, b"close") is found
