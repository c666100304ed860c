"""What a request may say, and the shapes of answers."""

from __future__ import annotations

import json

import pytest

from model_pod.openai import NEUTRAL, ApiError, ChatRequest, CompletionRequest, Shape, models, parse, usage


def chat(**fields: object) -> ChatRequest:
    return parse(json.dumps({"messages": [{"role": "user", "content": "hi"}]} | fields).encode(), ChatRequest)


def completion(**fields: object) -> CompletionRequest:
    return parse(json.dumps({"prompt": "hi"} | fields).encode(), CompletionRequest)


def test_absent_fields_have_the_api_defaults():
    params = chat().params()
    assert (params.max_tokens, params.temperature, params.top_p) == (None, 1.0, 1.0)
    assert (params.seed, params.priority, params.ignore_eos) == (None, 0, False)


def test_fields_arrive():
    params = chat(max_tokens=5, temperature=0, top_p=0.5, seed=7, priority=-2, ignore_eos=True).params()
    assert (params.max_tokens, params.temperature, params.top_p) == (5, 0.0, 0.5)
    assert (params.seed, params.priority, params.ignore_eos) == (7, -2, True)


def test_the_newer_name_of_the_token_limit_wins():
    assert chat(max_tokens=5, max_completion_tokens=6).params().max_tokens == 6


def test_stop_is_a_text_or_a_list():
    assert (chat().stops, chat(stop="a").stops, chat(stop=["a", "b"]).stops) == ([], ["a"], ["a", "b"])


def test_fields_that_change_nothing_or_that_nobody_knows_pass():
    chat(user="me", metadata={"a": "b"}, service_tier="auto", store=False, parallel_tool_calls=True, mine=[1])


NEUTRAL_VALUES = [(field, value) for field, values in NEUTRAL.items() for value in (None, *values)]


@pytest.mark.parametrize(("field", "value"), NEUTRAL_VALUES)
def test_neutral_values_pass(field, value):
    chat(**{field: value})
    completion(**{field: value})


@pytest.mark.parametrize("field", NEUTRAL)
def test_what_no_engine_honours_is_refused(field):
    for endpoint in (chat, completion):
        with pytest.raises(ApiError) as caught:
            endpoint(**{field: {"any": "other"}})
        assert caught.value.detail["param"] == field


def test_no_logprobs_and_those_of_the_text_itself_are_not_the_same():
    completion(logprobs=None)
    with pytest.raises(ApiError, match="logprobs"):
        completion(logprobs=0)


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = chat(messages=[{"role": "user", "content": parts}, {"role": "assistant", "content": None}])
    assert request.conversation() == [{"role": "user", "content": "ab"}, {"role": "assistant", "content": ""}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"seed": 1.5}, "seed"),
        ({"stop": 5}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"n": 2}, "n"),
        ({"n": "1"}, "n"),
        ({"n": True}, "n"),
        ({"echo": 0}, "echo"),
        ({"presence_penalty": False}, "presence_penalty"),
        ({"logprobs": True}, "logprobs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"min_tokens": 50}, "min_tokens"),
        ({"top_k": 40}, "top_k"),
        ({"min_p": 0.05}, "min_p"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"stop_token_ids": [2]}, "stop_token_ids"),
        ({"guided_json": {}}, "guided_json"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"priority": "high"}, "priority"),
        ({"model": 3}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user"}, {"role": "pilot"}]}, "messages[1].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ],
)
def test_a_bad_field_is_named(fields, param):
    with pytest.raises(ApiError) as caught:
        chat(**fields)
    error = json.loads(caught.value.body())["error"]
    assert (caught.value.status, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert param in error["message"]


def test_a_missing_field_is_named():
    with pytest.raises(ApiError) as caught:
        parse(b"{}", ChatRequest)
    assert caught.value.detail["param"] == "messages"


def test_an_image_is_refused_where_it_stands():
    request = chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}])
    with pytest.raises(ApiError) as caught:
        request.conversation()
    assert caught.value.detail["param"] == "messages[0].content"


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"messages": "\xff"}'])
def test_what_is_not_json_is_refused(body):
    with pytest.raises(ApiError) as caught:
        parse(body, ChatRequest)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("prompt", "single"), [("hi", "hi"), (["hi"], "hi"), ([1, 2], [1, 2]), ([[1, 2]], [1, 2])]
)
def test_one_prompt_is_taken(prompt, single):
    assert completion(prompt=prompt).single() == single


@pytest.mark.parametrize("prompt", ["", [], [""], ["a", "b"], [[1], [2]], [1, "a"], [True], [[]], [1.5]])
def test_any_other_prompt_is_refused(prompt):
    with pytest.raises(ApiError) as caught:
        completion(prompt=prompt).single()
    assert caught.value.detail["param"] == "prompt"


def shape(*, chat: bool, include_usage: bool = False) -> Shape:
    return Shape(chat=chat, id="id-1", created=12, model="m", include_usage=include_usage)


def events(data: bytes) -> list[object]:
    lines = data.split(b"\n\n")
    assert lines.pop() == b""
    bodies = [line.removeprefix(b"data: ") for line in lines]
    return [body.decode() if body == b"[DONE]" else json.loads(body) for body in bodies]


def test_chat_events():
    form = shape(chat=True)
    first, text, last, done = events(form.start() + form.text('"ü\n') + form.finish("stop", usage(1, 2)))
    assert first == {
        "id": "id-1",
        "created": 12,
        "model": "m",
        "object": "chat.completion.chunk",
        "choices": [
            {
                "index": 0,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
        ],
    }
    assert text["choices"][0]["delta"] == {"content": '"ü\n'}
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "stop")
    assert done == "[DONE]"


def test_completion_events():
    form = shape(chat=False)
    text, last, done = events(form.start() + form.text("a") + form.finish("length", usage(1, 2)))
    assert (text["object"], text["choices"][0]["text"]) == ("text_completion", "a")
    assert (last["choices"][0]["text"], last["choices"][0]["finish_reason"]) == ("", "length")
    assert done == "[DONE]"


def test_usage_is_an_event_of_its_own_where_it_is_asked_for():
    form = shape(chat=True, include_usage=True)
    text, last, total, done = events(form.text("a") + form.finish("stop", usage(1, 2)))
    assert (text["usage"], last["usage"], done) == (None, None, "[DONE]")
    assert (total["choices"], total["usage"]) == (
        [],
        {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    )


def test_whole_answers():
    body = json.loads(shape(chat=True).whole("hi", "stop", usage(1, 2)))
    assert (body["object"], body["choices"][0]["message"]["content"]) == ("chat.completion", "hi")
    body = json.loads(shape(chat=False).whole("hi", "stop", usage(1, 2)))
    assert (body["object"], body["choices"][0]["text"]) == ("text_completion", "hi")
    assert body["usage"]["total_tokens"] == 3


def test_the_list_of_models():
    body = json.loads(models("m", 12, 100))
    assert [(model["id"], model["max_model_len"]) for model in body["data"]] == [("m", 100)]
