"""What ends a caller's wait, and what an engine only says meanwhile."""

import json

import pytest

from sidecar.llm.tokens import has_token, is_keep_alive


def event(said: object) -> bytes:
    return b"data: %b\n\n" % json.dumps(said).encode()


def chat(*, finish: str | None = None, **delta: object) -> bytes:
    return event({"id": "1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


ROLE = chat(role="assistant", content="")
CALL = {"index": 0, "id": "call-1", "type": "function", "function": {"name": "f", "arguments": ""}}


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"\n\n",
        b"\r\n\r\n",
        ROLE,
        ROLE.replace(b"\n", b"\r\n"),
        chat(role="assistant"),
        chat(),
        chat(role="assistant", content=None, refusal=None, tool_calls=[], reasoning_content=""),
        event({"choices": [{"text": "", "finish_reason": None}]}),
        event({"choices": [], "usage": {"prompt_tokens": 1}}),
        event({"choices": [{"delta": {}}], "error": None}),
        b"data: [DONE]\n\n",
        b"data:[DONE]\r\n\r\n",
        b"data:\n\n",
        b": keep-alive\n\n",
        b":\r\n\r\n",
        b"retry: 3000\nid: 7\nevent: message\n",
        event({"type": "response.created", "response": {"id": "r"}}),
        event({"type": "response.queued"}),
        event({"type": "response.in_progress"}),
        event({"type": "response.output_item.added", "item": {}}),
        event({"type": "response.content_part.added", "part": {}}),
        event({"type": "response.reasoning_summary_part.added"}),
        b"event: message_start\n" + event({"type": "message_start", "message": {"content": []}}),
        event({"type": "content_block_start", "content_block": {"type": "text", "text": ""}}),
        event({"type": "ping"}),
        b": hello\n\n" + ROLE + b"data: [DONE]\n\n",
    ],
)
def test_nothing_was_said_yet(stream: bytes) -> None:
    assert not has_token(stream)


@pytest.mark.parametrize(
    "stream",
    [
        chat(content="Hi"),
        chat(content=" "),
        chat(role="assistant", content="Hi"),
        chat(content="Hi").replace(b"\n", b"\r\n"),
        chat(content="Hi").replace(b"data: ", b"data:"),
        chat(reasoning_content="Hm"),
        chat(reasoning="Hm"),
        chat(tool_calls=[CALL]),
        chat(function_call={"name": "f"}),
        chat(refusal="No."),
        chat(finish="stop"),
        event({"choices": [{"text": "Hi"}]}),
        event({"choices": [{"text": "", "finish_reason": "length"}]}),
        event({"choices": [{"delta": {"role": "assistant"}}, {"delta": {"content": "second"}}]}),
        event({"error": {"message": "out of memory"}}),
        event({"error": "out of memory", "choices": []}),
        event({"type": "response.output_text.delta", "delta": "Hi"}),
        event({"type": "response.reasoning_summary_text.delta", "delta": "Hm"}),
        event({"type": "response.function_call_arguments.delta", "delta": "{"}),
        event({"type": "response.completed"}),
        event({"type": "response.failed"}),
        event({"type": "response.incomplete"}),
        event({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hi"}}),
        event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}}),
        event({"type": "error", "error": {"type": "overloaded_error"}}),
    ],
)
def test_a_first_token(stream: bytes) -> None:
    assert has_token(stream)
    assert has_token(b": hello\n\n" + ROLE + stream), "what came before does not hide it"


@pytest.mark.parametrize(
    "stream",
    [
        b"data: not json\n",
        b"data: {\n",
        b'data: "\xff"\n',
        b"data: " + b"[" * 100_000 + b"\n",
        b"data: 1\n",
        b"data: null\n",
        b"data: {}\n",
        event({"generated": "Hi"}),
        event({"type": "something new"}),
        event({"choices": "?"}),
        event({"choices": [{"delta": "Hi"}]}),
        event({"choices": [{"message": {"content": "Hi"}}]}),
        event({"type": 7, "choices": []}),
        b"Hi\n",
        b'{"generated": "Hi"}\n',
    ],
    ids=range(15),
)
def test_what_is_not_known_to_be_empty_counts(stream: bytes) -> None:
    assert has_token(stream)


def test_half_an_event_says_nothing() -> None:
    whole = chat(content="Hi")
    ends = whole.index(b"\n") + 1
    for stream in (whole, ROLE + whole):
        before = len(stream) - len(whole)
        assert next(n for n in range(len(stream) + 1) if has_token(stream[:n])) == before + ends


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        (b": keep-alive\n\n", True),
        (b":\n\n", True),
        (b"e\r\n: keep-alive\n\n\r\n", True),  # a chunk
        (b"\n\n: keep-alive\n\n", True),
        (b'"content": "the rest of an event: so"}}]}\n\n', False),
        (b"5\r\nHi: a\r\n", False),
        (b"\n\n", False),
        (b"", False),
    ],
)
def test_keep_alives(piece: bytes, expected: bool) -> None:
    assert is_keep_alive(piece) is expected
