"""The usage that engines write at the end of an answer, in whatever bytes it comes."""

import pytest

from sidecar.llm.usage import Usage, read_usage

USAGE = b'"usage":{"prompt_tokens":7,"total_tokens":12,"completion_tokens":5}'


@pytest.mark.parametrize(
    "tail",
    [
        b'{"id":"x","choices":[],' + USAGE + b"}",
        b'{"choices":[{"text":"..."}],\n  ' + USAGE.replace(b":", b" : ") + b"\n}\n",
        b"data: {" + USAGE + b"}\n\ndata: [DONE]\n\n",
        b'n":"cut off at the front"}],' + USAGE + b"}",
        b'{"text":"\\"usage\\":{\\"prompt_tokens\\":1}",' + USAGE + b"}",
        b'{"usage":null}\n\ndata: {' + USAGE + b"}",
        b'{"usage":{"prompt_tokens":1,"completion_tokens":1}}data: {' + USAGE + b"}",
    ],
    ids=range(7),
)
def test_it_is_found_at_the_end(tail: bytes) -> None:
    assert read_usage(tail) == Usage(prompt=7, cached=0, answer=5)


@pytest.mark.parametrize(
    ("details", "cached"),
    [
        (b"null", 0),
        (b"{}", 0),
        (b'{"cached_tokens":null}', 0),
        (b'{"cached_tokens":4}', 4),
        (b'{"cached_tokens":99}', 7),
    ],
)
def test_what_was_cached_is_a_part_of_the_prompt(details: bytes, cached: int) -> None:
    tail = USAGE[:-1] + b',"prompt_tokens_details":' + details + b',"x":{"y":{}}}'
    assert read_usage(b"{" + tail + b"}") == Usage(prompt=7, cached=cached, answer=5)


def test_other_names_for_the_same() -> None:
    tail = b'{"usage":{"input_tokens":7,"input_tokens_details":{"cached_tokens":4},"output_tokens":5}}'
    assert read_usage(tail) == Usage(prompt=7, cached=4, answer=5)


def test_embeddings_are_answered_without_a_token() -> None:
    tail = b'{"usage":{"prompt_tokens":7,"total_tokens":7}}'
    assert read_usage(tail) == Usage(prompt=7, cached=0, answer=0)


@pytest.mark.parametrize(
    "tail",
    [
        b"",
        b"no json at all",
        b'{"usage":null}',
        b'{"usage":[]}',
        b'{"usage":"{}"}',
        b'{"usage":',
        b'{"usage":{"prompt_tokens":7,"compl',
        b'{"usage":{"prompt_tokens":"7","completion_tokens":5}}',
        b'{"usage":{"prompt_tokens":7,"completion_tokens":-5}}',
        b'{"usage":{"prompt_tokens":-7,"completion_tokens":5}}',
        b'{"usage":{"prompt_tokens":7,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":-1}}}',
        b'{"usage":{"prompt_tokens":7.5,"completion_tokens":5}}',
        b'{"usage":{}}',
        b'{"usage":{"completion_tokens":5}}',
        b'"usage":{' + b'"a":{' * 5000,
    ],
    ids=range(15),
)
def test_what_cannot_be_read_says_nothing(tail: bytes) -> None:
    assert read_usage(tail) is None
