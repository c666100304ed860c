"""transformers as an engine: loading, prompts, and handing tokens over to the event loop.

How tokens are made is in `torch_backends`. A model whose first generation fails with continuous batching is
served one request at a time, and the log says so.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from model_pod.engine import BadPrompt, CannotServe, Overloaded, Params, Prompt, Sink, Stats
from model_pod.text import Detokenizer
from model_pod.tiny import ensure_tiny
from model_pod.torch_backends import Answer, Backend, ContinuousBackend, GenerateBackend, Progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model_pod.config import Settings

log = logging.getLogger(__name__)


def load_engine(settings: Settings) -> TransformersEngine:
    return TransformersEngine(settings)


@dataclass(slots=True)
class Vocabulary:
    """What the model's folder says about tokens."""

    tokenizer: Any
    size: int
    ends: frozenset[int] = frozenset()  # tokens that end an answer

    def decode(self, tokens: list[int]) -> str:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        # The wrapper around the fast tokenizer costs several times the decoding itself.
        decode = backend.decode if backend is not None else self.tokenizer.decode
        return str(decode(tokens, skip_special_tokens=True))


class TransformersEngine:
    """Implements `engine.Engine`."""

    seeds = True

    def __init__(self, settings: Settings) -> None:
        self.max_model_len = 0
        self.died = asyncio.Event()
        self._settings = settings
        self._random = Random(settings.seed)
        self._arrivals = 0
        self._backend: Backend | None = None
        self._vocabulary = Vocabulary(None, 0)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._load)
        self._watch = asyncio.create_task(self._watch_backend())

    async def stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if self._backend is not None:
            await asyncio.to_thread(self._backend.stop)

    async def chat_prompt(self, messages: Sequence[dict[str, str]]) -> Prompt:
        tokenizer = self._vocabulary.tokenizer
        if not tokenizer.chat_template:
            raise BadPrompt("this model has no chat template; use /v1/completions")
        return await asyncio.to_thread(self._render, messages)

    async def text_prompt(self, text: str) -> Prompt:
        tokens = await asyncio.to_thread(self._vocabulary.tokenizer.encode, text)
        if not tokens:
            raise BadPrompt("the prompt has no tokens")
        return Prompt(len(tokens), tokens)

    async def token_prompt(self, tokens: Sequence[int]) -> Prompt:
        if not all(0 <= token < self._vocabulary.size for token in tokens):
            raise BadPrompt(f"token ids must be from 0 to {self._vocabulary.size - 1}")
        return Prompt(len(tokens), list(tokens))

    def submit(self, prompt: Prompt, params: Params, sink: Sink) -> Answer:
        assert self._backend is not None
        if self._backend.stats().waiting >= self._settings.max_waiting:
            raise Overloaded
        self._arrivals += 1
        seed = self._random.getrandbits(64) if params.seed is None else params.seed
        room = self.max_model_len - prompt.tokens
        answer = Answer(
            id=str(self._arrivals),
            prompt=cast("list[int]", prompt.content),
            params=params,
            max_tokens=room if params.max_tokens is None else params.max_tokens,
            ends=frozenset() if params.ignore_eos else self._vocabulary.ends,
            seed=str(seed),
            sink=sink,
            detokenizer=Detokenizer(self._vocabulary.decode),
        )
        self._backend.submit(answer)
        return answer

    def cancel(self, handle: object) -> None:
        assert isinstance(handle, Answer)
        assert self._backend is not None
        handle.cancelled = True
        self._backend.cancel(handle)

    def stats(self) -> Stats:
        return self._backend.stats() if self._backend is not None else Stats()

    def _render(self, messages: Sequence[dict[str, str]]) -> Prompt:
        tokenizer = self._vocabulary.tokenizer
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:
            # A template refuses what it cannot render, for example a role, with an exception of its own.
            raise BadPrompt(f"the model's chat template refuses this conversation: {error}") from error
        tokens = tokenizer.encode(text, add_special_tokens=False)
        return Prompt(len(tokens), tokens)

    def _load(self) -> None:
        settings = self._settings
        disable_progress_bar()
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.WARNING)
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        folder = settings.model or str(ensure_tiny(settings.cache_dir))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        log.info("loading %s on %s", folder, device)
        tokenizer, model = _read(folder)
        model.to(device).eval()
        config = model.config.get_text_config()
        self._vocabulary = Vocabulary(tokenizer, config.vocab_size, _ends(model, tokenizer))
        self._backend = self._start_backend(model)
        context = getattr(config, "max_position_embeddings", None)
        limits = (settings.max_model_len, context, self._backend.max_len)
        self.max_model_len = min(limit for limit in limits if limit is not None)

    def _start_backend(self, model: Any) -> Backend:
        try:
            backend: Backend = ContinuousBackend(model, self._settings.max_running, self._deliver)
            backend.start()
        except Exception as error:
            log.warning("no continuous batching for this model (%s): one request at a time", error)
            backend = GenerateBackend(model, self._deliver)
            backend.start()
        return backend

    async def _watch_backend(self) -> None:
        """The library's thread ends by itself only when a step has failed."""
        assert self._backend is not None
        while self._backend.alive():
            await asyncio.sleep(0.5)
        log.error("the model's thread has ended")
        self.died.set()

    def _deliver(self, news: list[Progress]) -> None:
        """Called in the generating thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._tell, news)

    def _tell(self, news: list[Progress]) -> None:
        for progress in news:
            answer = progress.answer
            if answer.cancelled:
                continue
            if progress.error is not None:
                answer.sink.on_error(progress.error)
                continue
            if progress.scheduled_at is not None:
                answer.sink.on_scheduled(progress.scheduled_at)
            answer.sink.on_tokens(progress.text, progress.count, progress.finish)


def _read(folder: str) -> tuple[Any, Any]:
    """The tokenizer and the model in a folder."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype="auto", attn_implementation="sdpa"
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        log.debug("loading failed", exc_info=error)
        raise CannotServe(f"cannot load a model from {folder}: {error}") from error
    return tokenizer, model


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer, by the model's generation settings and its tokenizer."""
    ends = model.generation_config.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    return frozenset(end for end in (*listed, tokenizer.eos_token_id) if end is not None)
