"""What is read of a request's target and body, whatever callers write there."""

import msgspec
import pytest

from sidecar.llm.request import MAX_TOKENS, Asked, Route, read, with_priority


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        (b"{}", Asked()),
        (b'{"model": "llama", "stream": true}', Asked("llama", True)),
        (b'{"max_tokens": 7}', Asked(max_tokens=7)),
        (b'{"max_completion_tokens": 8, "max_tokens": 7}', Asked(max_tokens=8)),
        (b'{"max_output_tokens": 9}', Asked(max_tokens=9)),
        (b'{"service_tier": "priority"}', Asked(cls="highest")),
        (b'{"service_tier": "flex"}', Asked(cls="lowest")),
        (b'{"service_tier": "default"}', Asked(cls="own")),
        (b'{"service_tier": "auto"}', Asked(cls="own")),
        (b'{"model": "a", "model": "b"}', Asked("b")),
        (b'{"model": "\\u00fc"}', Asked("ü")),
        (b'{"n": 4}', Asked(answers=4)),
        (b'{"n": 1000000}', Asked(answers=128)),
        (b'{"prompt": "Once upon"}', Asked(size=11)),
        (b'{"input": ["a", "b"], "x": "not of the prompt"}', Asked(size=10)),
        (b'{"messages": [{"role": "user", "content": "{}"}]}', Asked(size=35)),
    ],
)
def test_reads_what_decides(body: bytes, asked: Asked) -> None:
    assert read(body) == asked


@pytest.mark.parametrize("around", [b'[{"image_url": {"url": "data:image/png,%s"}}]', b'[{"data": "%s"}]'])
def test_an_image_counts_for_what_it_costs_and_not_for_its_bytes(around: bytes) -> None:
    asked = read(b'{"messages": %s}' % (around % (b"iVBO" * 100_000)))
    assert 4000 <= asked.size <= 4100


def test_long_text_counts_with_every_byte() -> None:
    assert read(b'{"prompt": "%s"}' % (b"word " * 20_000)).size == 100_002


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": 7, "stream": "true", "service_tier": ["flex"], "n": "2"}',
        b'{"model": null, "stream": 1, "max_tokens": null, "service_tier": {}, "n": 0}',
        b'{"model": ["a"], "stream": null, "service_tier": "gold", "n": -3}',
        b'{"model": {"a": 1}, "n": 1.5}',
    ],
)
def test_members_of_other_types_are_the_engines_to_complain_about(body: bytes) -> None:
    assert read(body) == Asked()


@pytest.mark.parametrize("tokens", [b'"7"', b"true", b"7.5", b"-1", b"%d" % (MAX_TOKENS + 1)])
def test_an_absurd_number_of_tokens_is_noticed(tokens: bytes) -> None:
    asked = read(b'{"max_tokens": %s}' % tokens)
    assert asked.odd
    assert asked.max_tokens in (None, MAX_TOKENS)


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
        b'{"model": "\\ud800"}',
        b'\xef\xbb\xbf{"model": "a"}',
        b'{"max_tokens": NaN}',
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model": ' + b"[" * 100_000,
    ],
    ids=range(13),
)
def test_of_what_is_not_the_json_we_expect_only_the_size_is_known(body: bytes) -> None:
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


# The class, as vLLM reads it.


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "a"}',
        b"{}",
        b"{ \n}",
        b'{"priority": -5, "model": "a"}',
        b'{"model": "a", "priority": "high"}',
        b'{"priority": 1, "priority": 2}',
        b'{"nested": {"priority": 9}, "n": 1.50}',
    ],
)
def test_a_priority_takes_the_place_of_the_callers_own(body: bytes) -> None:
    members = msgspec.json.decode(body) | {"priority": 2}
    changed = with_priority(body, 2)
    assert msgspec.json.decode(changed) == members
    assert changed.count(b'"priority"') == max(1, body.count(b"nested") + 1)


def test_what_has_none_of_its_own_keeps_every_byte_beside_it() -> None:
    assert with_priority(b' {"n": 1.50,"s":"\\u00fc"}', 0) == b' {"priority":0,"n": 1.50,"s":"\\u00fc"}'


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"not json", b'{"model": ', b"[" * 100_000])
def test_what_is_no_json_object_is_left_alone(body: bytes) -> None:
    assert with_priority(body, 1) == body
