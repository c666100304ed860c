"""What is read of a request's target and body, whatever callers write there."""

import json

import pytest
from msgspec.structs import replace

from sidecar.llm.request import (
    HIGHEST,
    LOWEST,
    MAX_TOKENS,
    OWN,
    Asked,
    Route,
    read,
    with_priority,
)


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        (b"{}", Asked()),
        (b'{"model": "llama", "stream": true}', Asked("llama", True)),
        (b'{"max_tokens": 7}', Asked(max_tokens=7)),
        (b'{"max_completion_tokens": 8, "max_tokens": 7}', Asked(max_tokens=8)),
        (b'{"max_output_tokens": 9}', Asked(max_tokens=9)),
        (b'{"service_tier": "priority"}', Asked(cls=HIGHEST)),
        (b'{"service_tier": "flex"}', Asked(cls=LOWEST)),
        (b'{"service_tier": "default"}', Asked(cls=OWN)),
        (b'{"service_tier": "auto"}', Asked(cls=OWN)),
        (b'{"model": "a", "model": "b"}', Asked("b")),
        (b'{"model": "\\u00fc", "messages": [{"role": "user", "content": "{}"}]}', Asked("ü", size=35)),
    ],
)
def test_reads_five_members(body: bytes, asked: Asked) -> None:
    assert read(body) == asked


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": 7, "stream": "true", "max_tokens": "7", "service_tier": ["flex"]}',
        b'{"model": null, "stream": 1, "max_tokens": true, "service_tier": {}}',
        b'{"model": ["a"], "stream": null, "max_tokens": 7.5, "service_tier": "gold"}',
        b'{"model": {"a": 1}, "max_tokens": -1}',
        b'{"max_tokens": 0}',
    ],
)
def test_members_of_other_types_are_the_engines_to_complain_about(body: bytes) -> None:
    assert replace(read(body), odd=False) == Asked()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b'"text"',
        b"null",
        b'{"model": "a"',
        b'{"model": "a"} trailing',
        b'{"model": "\xff"}',
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model": ' + b"[" * 100_000,
    ],
    ids=range(10),
)
def test_what_is_not_the_json_we_expect_says_nothing(body: bytes) -> None:
    assert read(body) == Asked(size=len(body))


@pytest.mark.parametrize("digits", ["1" + "0" * 8, "9" * 19, "9" * 30, "9" * 300, "9" * 5000, "1e9", "1e400"])
def test_a_number_no_engine_could_write_is_bounded(digits: str) -> None:
    asked = read(b'{"model": "a", "max_tokens": %s}' % digits.encode())
    assert asked.max_tokens in (MAX_TOKENS, None)


def route(target: bytes, method: bytes = b"POST") -> Route:
    return Route(method, target)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/sleep", "/sleep"),
        (b"/sleep?level=1", "/sleep"),
        (b"/sleep/", "/sleep"),
        (b"//sleep", "/sleep"),
        (b"/sleep//", "/sleep"),
        (b"/./sleep", "/sleep"),
        (b"/sleep/.", "/sleep"),
        (b"/v1/../sleep", "/sleep"),
        (b"/../../sleep", "/sleep"),
        (b"/v1/models/../../sleep?/..", "/sleep"),
        (b"/%73leep", "/sleep"),
        (b"/%73%6c%65%65%70%2f", "/sleep"),
        (b"/v1/%2e%2e/sleep", "/sleep"),
        (b"/v1%2f..%2fsleep", "/sleep"),
        (b"http://any.host/sleep", "/sleep"),
        (b"http://any.host:80//sleep/?a=b", "/sleep"),
        (b"HTTP://any.host/%2e/sleep", "/sleep"),
        (b"http://any.host?x/sleep", "/sleep"),
        (b"http:///sleep", "/sleep"),
        (b"/", "/"),
        (b"//", "/"),
        (b"/..", "/"),
        (b"http://any.host", "/"),
        (b"*", "*"),
        (b"/.well-known/x", "/.well-known/x"),
        (b"/v1/files/a..b", "/v1/files/a..b"),
        (b"/a%20b", "/a b"),
        (b"/%ff", "/�"),
        (b"/sleep%3fx", "/sleep?x"),
        (b"/%2573leep", "/%73leep"),
    ],
)
def test_a_path_is_read_as_the_engines_framework_reads_it(target: bytes, path: str) -> None:
    assert route(target).path == path


@pytest.mark.parametrize(
    ("method", "target", "is_work", "is_buffered", "is_openai"),
    [
        (b"POST", b"/v1/chat/completions", True, True, True),
        (b"POST", b"/v1/completions?x=y", True, True, True),
        (b"POST", b"/v1/embeddings/", True, True, True),
        (b"POST", b"//v1/responses", True, True, True),
        (b"POST", b"/v1/audio/transcriptions", True, False, True),
        (b"POST", b"/generate", True, False, False),
        (b"POST", b"/tokenize", False, False, False),
        (b"POST", b"/detokenize", False, False, False),
        (b"GET", b"/v1/chat/completions", False, False, True),
        (b"GET", b"/v1/models", False, False, True),
        (b"GET", b"/metrics", False, False, False),
        (b"OPTIONS", b"*", False, False, False),
        (b"DELETE", b"/v1/responses/1", False, False, True),
        (b"GET", b"/v1", False, False, False),
    ],
)
def test_what_is_work(
    method: bytes, target: bytes, is_work: bool, is_buffered: bool, is_openai: bool
) -> None:
    found = route(target, method)
    assert (found.is_work, found.is_buffered, found.is_openai) == (is_work, is_buffered, is_openai)


def test_the_size_is_that_of_the_text_wherever_it_is() -> None:
    text = b'"' + b"word " * 200 + b'"'
    for member in (b"messages", b"prompt", b"input"):
        body = b'{"model": "a", "%b": %b, "metadata": %b}' % (member, text, text)
        assert read(body).size == len(text)
    assert read(b'{"prompt": %b, "input": %b}' % (text, text)).size == 2 * len(text)


def test_a_body_that_cannot_be_read_counts_whole() -> None:
    assert read(b"x" * 1000).size == 1000


def test_media_count_for_what_they_cost_rather_than_for_their_bytes() -> None:
    text = "word " * 1000
    url = "data:image/png;base64," + "A" * 1_000_000
    sound = "UklGR" + "b" * 1_000_000
    body = json.dumps({"messages": [{"content": [text, {"url": url}, {"data": sound}]}]}).encode()
    plain = read(json.dumps({"messages": [{"content": [text]}]}).encode()).size
    assert plain + 2000 < read(body).size < plain + 20_000


@pytest.mark.parametrize("before", [0, 1, 1000, 2047, 2048, 5000])
@pytest.mark.parametrize("length", [4001, 6000, 100_000])
def test_wherever_they_stand(before: int, length: int) -> None:
    parts = ["." * before, "A" * length, "." * 100, "B" * length]
    size = read(json.dumps({"messages": parts}).encode()).size
    assert size == read(json.dumps({"messages": [parts[0], "", parts[2], ""]}).encode()).size + 8000


@pytest.mark.parametrize("piece", ["word, ", '"b" ', "A" * 5000 + " ", "A" * 5000 + "\n"])
def test_long_text_is_no_medium(piece: str) -> None:
    text = json.dumps({"prompt": piece * (600_000 // len(piece))}).encode()
    assert read(text).size == len(text) - len(b'{"prompt": }')


@pytest.mark.parametrize(
    ("n", "answers"),
    [(1, 1), (3, 3), (0, 1), (-2, 1), (10**9, 128), (2.0, 1), ("3", 1), (True, 1), (None, 1), ([2], 1)],
)
def test_how_many_answers_are_wanted(n: object, answers: int) -> None:
    assert read(json.dumps({"n": n}).encode()).answers == answers


@pytest.mark.parametrize(
    ("tokens", "odd"),
    [
        (None, False),
        (1, False),
        (10_000_000, False),
        (10_000_001, True),
        (-1, True),
        ("7", True),
        (7.5, True),
        (True, True),
    ],
)
def test_a_limit_that_makes_no_sense_is_said_to_be_odd(tokens: object, odd: bool) -> None:
    assert read(json.dumps({"max_tokens": tokens}).encode()).odd == odd


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b" { } ",
        b'{"model": "a", "messages": [{"content": "priority"}]}',
        b'{"priority": 7, "model": "a"}',
        b'{"model": "a", "priority": -7, "x": {"priority": 1}}',
        b'{"priority": "high"}',
        b'{"x": {"priority": 1}}',
        b'{"priority": 1, "priority": 2}',
    ],
    ids=range(8),
)
def test_the_priority_is_ours_and_all_else_the_callers(body: bytes) -> None:
    said = json.loads(with_priority(body, 2))
    assert said.pop("priority") == 2
    asked = json.loads(body)
    asked.pop("priority", None)
    assert said == asked


def test_a_priority_is_said_once() -> None:
    """Engines differ in which of two they believe."""
    for body in (b'{"priority": 1, "priority": 2}', b'{"a": 1, "priority": 3}', b"{}"):
        assert with_priority(body, 0).count(b'"priority"') == 1


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"not json", b'{"a": '])
def test_a_body_that_is_no_object_stays_as_it_is(body: bytes) -> None:
    assert with_priority(body, 1) == body


@pytest.mark.parametrize(
    "body",
    [
        b'\xef\xbb\xbf{"model": "a", "stream": true, "service_tier": "flex"}',
        b'{"model": "a", "stream": true, "service_tier": "flex", "temperature": NaN}',
        '{"model": "a", "stream": true, "service_tier": "flex"}'.encode("utf-16"),
    ],
    ids=["bom", "nan", "utf-16"],
)
def test_what_engines_read_all_the_same_does_not_slip_past_the_rules(body: bytes) -> None:
    assert read(body) == Asked("a", stream=True, cls=LOWEST, size=len(body))
    assert json.loads(with_priority(body, 2))["priority"] == 2


def test_a_callers_own_priority_is_replaced_wherever_it_can_be_read() -> None:
    body = b'{"priority": -1000, "temperature": NaN}'
    assert json.loads(with_priority(body, 1))["priority"] == 1
