"""The OpenAI API's shapes: what a request may say, what an answer looks like.

A field that would change the answer and that no engine here honours (`n`, `logprobs`, `tools`, …) is refused
by name, never ignored; `NEUTRAL` lists them. Fields that nobody knows pass, since clients send extras, and so
does what leaves the answer as it is (`user`, `metadata`, `service_tier`). `model` may be left out.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from model_pod.engine import Params

JSON = msgspec.json.encode
MOST_STOPS = 16
PATH = re.compile(r" - at `\$\.?(.*?)`$")
MISSING = re.compile(r"missing required field `(\w+)`")


class ApiError(Exception):
    """Answered to the client as an OpenAI-shaped error."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | int | None = None,
        kind: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.detail = {"message": message, "type": kind, "param": param, "code": code}

    def body(self) -> bytes:
        return JSON({"error": self.detail})


class Part(msgspec.Struct):
    """One part of a message's content."""

    type: str
    text: str | None = None


class Message(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None

    def text(self, at: str) -> str:
        if isinstance(self.content, str):
            return self.content
        for part in self.content or ():
            if part.type != "text" or part.text is None:
                raise ApiError("only text parts are supported", param=f"{at}.content")
        return "".join(part.text or "" for part in self.content or ())


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


# What OpenAI's API, vLLM or SGLang know and no engine here honours, with the values that mean "as if it were
# absent".
NEUTRAL: dict[str, tuple[object, ...]] = {
    # How many answers, and what is said about them.
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False,),  # for completions, 0 asks for those of the text itself
    "top_logprobs": (0,),
    "prompt_logprobs": (),
    "echo": (False,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    # How the next token is drawn.
    "top_k": (0, -1),
    "min_p": (0,),
    "typical_p": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "logits_processors": ([],),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    # Where an answer ends.
    "min_tokens": (0,),
    "stop_token_ids": ([],),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    # What form it has.
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structural_tag": (),
    "regex": (),
    "ebnf": (),
    "json_schema": (),
    "modalities": (["text"],),
    "audio": (),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    # What becomes of the prompt.
    "suffix": ("",),
    "prompt_embeds": (),
    "truncate_prompt_tokens": (),
    "documents": ([],),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
}

Unsupported = msgspec.defstruct("Unsupported", [(name, Any, None) for name in NEUTRAL], kw_only=True)


class Request(Unsupported, kw_only=True):
    """What both endpoints take."""

    model: str | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: int | None = None
    ignore_eos: bool | None = None

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def limit_field(self) -> str:
        """Which field says how long the answer may be."""
        return "max_tokens"

    def limit(self) -> int | None:
        return self.max_tokens

    def params(self) -> Params:
        return Params(
            max_tokens=self.limit(),
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            priority=self.priority or 0,
            ignore_eos=bool(self.ignore_eos),
        )


class ChatRequest(Request, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None

    @property
    def limit_field(self) -> str:
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def conversation(self) -> list[dict[str, str]]:
        return [
            {"role": message.role, "content": message.text(f"messages[{i}]")}
            for i, message in enumerate(self.messages)
        ]


class CompletionRequest(Request, kw_only=True):
    prompt: str | list[Any]

    def single(self) -> str | list[int]:
        """The one prompt, as text or token ids."""
        prompt = self.prompt
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
            prompt = prompt[0]
        if isinstance(prompt, str) and prompt:
            return prompt
        if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
            return prompt
        raise ApiError("one non-empty text, or one non-empty list of token ids, is expected", param="prompt")


R = TypeVar("R", bound=Request)


def parse(body: bytes, kind: type[R]) -> R:
    """Decode and check a request. Raises ApiError that names the field."""
    try:
        request = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ApiError("the body is not valid JSON") from None
    for field, neutral in NEUTRAL.items():
        value = getattr(request, field)
        if value is not None and not any(_same(value, each) for each in neutral):
            raise ApiError(f"`{field}` is not supported by this server", param=field)
    if len(request.stops) > MOST_STOPS or not all(request.stops):
        raise ApiError(f"at most {MOST_STOPS} stop sequences, none empty", param="stop")
    if request.stream_options is not None and not request.stream:
        raise ApiError("`stream_options` needs `stream`", param="stream_options")
    return request


def _same(value: object, other: object) -> bool:
    """Equal, and true is not 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _invalid(problem: str) -> ApiError:
    """The client's words for msgspec's: "Expected `int`, got `str` - at `$.max_tokens`"."""
    at, missing = PATH.search(problem), MISSING.search(problem)
    field = ".".join(part for part in (at and at[1], missing and missing[1]) if part)
    message = PATH.sub("", problem)
    return ApiError(f"{field}: {message}" if field else message, param=field or None)


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class Shape:
    """The bytes of one answer. All but the text of an event is encoded once per request."""

    __slots__ = ("_after", "_before", "_chat", "_head", "_piece", "_usage")

    def __init__(self, *, chat: bool, id: str, created: int, model: str, include_usage: bool = False) -> None:
        self._chat = chat
        self._piece = "delta" if chat else "text"
        self._usage = include_usage
        self._head: dict[str, object] = {"id": id, "created": created, "model": model}
        # The text stands between the two halves of an event with a text that occurs nowhere else in it.
        event = self._event({"content": "\0"} if chat else "\0", None)
        self._before, self._after = event.split(JSON("\0"))

    def start(self) -> bytes:
        """The event before the first text."""
        return self._event({"role": "assistant", "content": ""}, None) if self._chat else b""

    def text(self, text: str) -> bytes:
        return b"%b%b%b" % (self._before, JSON(text), self._after)

    def finish(self, reason: str, usage: dict[str, int]) -> bytes:
        """The events after the last text."""
        events = self._event({} if self._chat else "", reason)
        if self._usage:
            events += self._encode({"choices": [], "usage": usage})
        return events + b"data: [DONE]\n\n"

    def whole(self, text: str, reason: str, usage: dict[str, int]) -> bytes:
        """The body of an answer that is not streamed."""
        choice: dict[str, object] = {"index": 0, "finish_reason": reason, "logprobs": None}
        if self._chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        kind = "chat.completion" if self._chat else "text_completion"
        return JSON(self._head | {"object": kind, "choices": [choice], "usage": usage})

    def _event(self, piece: object, reason: str | None) -> bytes:
        choice = {"index": 0, self._piece: piece, "logprobs": None, "finish_reason": reason}
        fields: dict[str, object] = {"choices": [choice]}
        if self._usage:
            fields["usage"] = None
        return self._encode(fields)

    def _encode(self, fields: dict[str, object]) -> bytes:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return b"data: %b\n\n" % JSON(self._head | {"object": kind} | fields)


def models(name: str, created: int, max_model_len: int) -> bytes:
    """The list of the one model there is."""
    model = {"id": name, "object": "model", "created": created, "owned_by": "headgate"}
    return JSON({"object": "list", "data": [model | {"max_model_len": max_model_len}]})
