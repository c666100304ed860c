"""A refusal in the shape that OpenAI's clients read."""

import json

from sidecar.errors import QUEUE_FULL, Refusal
from sidecar.llm.errors import error_body, error_event, error_object


def test_the_shape() -> None:
    assert error_object(QUEUE_FULL) == {
        "error": {
            "message": "The queue is full. Retry as the headers say.",
            "type": "server_error",
            "param": None,
            "code": "queue_full",
        }
    }


def test_a_message_can_be_replaced_and_survives_encoding() -> None:
    body = error_body(QUEUE_FULL, 'say "ü"\n')
    assert json.loads(body)["error"]["message"] == 'say "ü"\n'


def test_the_event_ends_a_broken_line_first_and_is_one_event() -> None:
    refusal = Refusal("r", 500, "two\nlines")
    start, event, end = error_event(refusal).split(b"\n\n")
    assert (start, end) == (b"", b"")
    assert json.loads(event.removeprefix(b"data: ")) == error_object(refusal)
