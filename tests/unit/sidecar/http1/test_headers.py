"""Which fields pass."""

import pytest

from sidecar.http1.headers import joined, request_fields, response_fields

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


def passed(
    fields: list[tuple[bytes, bytes]], connection: bytes | None = None, *, trusted: bool = False
) -> bytes:
    return b"".join(request_fields(fields, connection, trusted=trusted))


def returned(fields: list[tuple[bytes, bytes]], connection: bytes | None = None) -> bytes:
    return b"".join(response_fields(fields, connection))


def test_order_and_repeats_are_kept() -> None:
    fields = [(b"b", b"1"), (b"a", b"2"), (b"b", b""), (b"accept", b"*/*")]
    lines = b"b: 1\r\na: 2\r\nb: \r\naccept: */*\r\n"
    assert passed(fields) == lines
    assert returned(fields) == lines


@pytest.mark.parametrize("name", HOP_BY_HOP)
def test_hop_by_hop_fields_end_here(name: bytes) -> None:
    assert passed([(name, b"x")]) == b""
    assert returned([(name, b"x")]) == b""


@pytest.mark.parametrize("name", OURS)
def test_what_is_written_anew_or_not_the_callers_to_set_is_dropped(name: bytes) -> None:
    assert passed([(name, b"x")]) == b""
    assert passed([(name, b"x")], trusted=True) == b""


@pytest.mark.parametrize("name", [*HOP_BY_HOP, *OURS, *PROXY_WORDS])
def test_a_name_that_many_frameworks_read_as_a_dropped_one_is_dropped_too(name: bytes) -> None:
    for alias in (name.replace(b"-", b"_"), name.replace(b"-", b"_", 1)):
        assert passed([(alias, b"x")]) == b""


@pytest.mark.parametrize("name", [b"user_id", b"_", b"x_headgate", b"x_forwarded", b"x__forwarded_for"])
def test_other_names_with_an_underscore_pass(name: bytes) -> None:
    assert passed([(name, b"x")]) == name + b": x\r\n"


def test_what_connection_names_is_dropped_under_either_spelling() -> None:
    assert passed([(b"x-one", b"1"), (b"x_one", b"2")], b"x-one") == b""


@pytest.mark.parametrize("name", PROXY_WORDS)
def test_words_of_a_proxy_pass_from_a_proxy_alone(name: bytes) -> None:
    assert passed([(name, b"x")]) == b""
    assert passed([(name, b"x")], trusted=True) == name + b": x\r\n"


@pytest.mark.parametrize(
    "name", [b"content-length", b"via", b"x-request-id", b"x-headgate-reason", b"x-headgate-"]
)
def test_what_is_written_anew_on_answers_is_dropped(name: bytes) -> None:
    assert returned([(name, b"x")]) == b""


@pytest.mark.parametrize("connection", [b"X-One , x-two,", b"close, x-one, X-TWO", b"x-one,,x-two,close"])
def test_what_connection_names_is_hop_by_hop(connection: bytes) -> None:
    fields = [(b"x-one", b"1"), (b"x-two", b"2"), (b"x-three", b"3")]
    assert passed(fields, connection) == b"x-three: 3\r\n"
    assert returned(fields, connection) == b"x-three: 3\r\n"


@pytest.mark.parametrize("name", [b"authorization", b"cache-control", b"content-type"])
def test_connection_cannot_name_what_goes_end_to_end(name: bytes) -> None:
    assert passed([(name, b"x")], name) == name + b": x\r\n"


def test_values_of_a_list_are_joined_in_order() -> None:
    assert joined([(b"via", b"1"), (b"a", b"x"), (b"via", b"2, 3")], b"via") == b"1, 2, 3"
    assert joined([], b"via") == b""
