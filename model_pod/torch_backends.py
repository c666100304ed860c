"""Two ways to generate with transformers: its continuous batching, and `generate` for models it cannot hold.

What the library's continuous batching leaves to us (5.23):

* It honours temperature and top-p per request, but not greedy beside sampling, nor a seed: the whole batch
  is drawn by one `multinomial`. `Sampler` stands in its place: one uniform number per request and position,
  from the request's seed, picks the token, so an answer does not depend on who shares its batch.
* Nobody is told of a cancelled request's end, and its handler stays for ever: `Router` keeps none.
* Some attentions do not fit its cache (DeepSeek's MLA), and nothing says which: a short generation does.

A backend generates in a thread, the library's or its own, and tells `deliver` there what came out.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from dataclasses import dataclass
from importlib.util import find_spec
from random import Random
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.continuous_api import OutputRouter
from transformers.generation.continuous_batching.requests import GenerationOutput, RequestStatus
from transformers.generation.streamers import BaseStreamer

from model_pod.engine import Stats

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from model_pod.engine import Params, Sink
    from model_pod.text import Detokenizer

# The attention mask of a CPU has a row per token of a step and a column per token held.
CPU_CACHE_TOKENS = 32_768
CPU_STEP_TOKENS = 512
PAGE_TOKENS = 16
# Room for the vocabulary-sized tensors of `pick`.
MEMORY_SHARE = 0.8
PROBE = "probe"
PROBE_TOKENS = 4
PROBE_S = 300.0  # a large model's first step compiles kernels


@dataclass(eq=False, slots=True)
class Answer:
    """One request, from its prompt to its last token."""

    id: str
    prompt: list[int]
    params: Params
    max_tokens: int
    ends: frozenset[int]  # tokens that end it
    seed: str
    sink: Sink
    detokenizer: Detokenizer
    tokens: int = 0  # generated
    cancelled: bool = False
    over: bool = False  # its last token is made

    def progress(self, tokens: Sequence[int], at: float | None) -> Progress:
        """Account for new tokens, in the generating thread."""
        self.tokens += len(tokens)
        finish = None
        if tokens and tokens[-1] in self.ends:
            finish = "stop"
        elif self.tokens >= self.max_tokens:
            finish = "length"
        text = self.detokenizer.feed(tokens)
        if finish:
            text += self.detokenizer.flush()
            self.over = True
        return Progress(self, text, len(tokens), finish, at)


@dataclass(slots=True)
class Progress:
    """News of one answer, on its way to the event loop."""

    answer: Answer
    text: str = ""
    count: int = 0
    finish: str | None = None
    scheduled_at: float | None = None  # time.monotonic(), with the first tokens
    error: Exception | None = None


class Backend(Protocol):
    """A way to generate. `start` and `stop` may block; the rest does not."""

    max_len: int  # most tokens of one request that it can hold

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def submit(self, answer: Answer) -> None: ...
    def cancel(self, answer: Answer) -> None: ...
    def stats(self) -> Stats: ...
    def alive(self) -> bool: ...


def pick(
    scores: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor, u: torch.Tensor
) -> torch.Tensor:
    """The next token of each row: greedy at temperature 0, else the `u`-quantile of what top-p keeps.

    `scores` is [rows, vocabulary], the others are [rows]. A row's token depends on nothing but the row.
    """
    greedy = scores.argmax(-1)
    warm = temperature > 0
    if scores.device.type == "cpu" and not warm.any():
        return greedy  # sorting a vocabulary is slow there; on a GPU it is asking that is
    scaled = scores / torch.where(warm, temperature, 1.0).unsqueeze(-1)
    ranked, tokens = scaled.sort(-1, descending=True)
    mass = ranked.softmax(-1).cumsum(-1)
    # Kept: the fewest likeliest tokens whose mass reaches top_p, the one that crosses it included.
    kept = (mass < top_p.unsqueeze(-1)).sum(-1, keepdim=True).clamp(max=scores.size(-1) - 1)
    point = u.unsqueeze(-1) * mass.gather(-1, kept)
    rank = (mass <= point).sum(-1, keepdim=True).minimum(kept)
    return torch.where(warm, tokens.gather(-1, rank).squeeze(-1), greedy)


def uniform(seed: str, position: int) -> float:
    """The random number that picks the token at a position of an answer."""
    return Random(f"{seed}/{position}").random()


class Sampler(ContinuousBatchingLogitsProcessorList):
    """Stands where the library has its logits processors, and leaves its argmax only one token to take.

    The arguments of a step travel as three rows of the library's int32 storage: float bits of temperature,
    top-p and the uniform number of each request that gets a token.
    """

    def __init__(self, answers: dict[str, Answer]) -> None:
        super().__init__(LogitsProcessorList())
        self._answers = answers
        self.tensors_required = 3
        self.do_processing = True

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_in_batch: list[Any], arg_storage: torch.Tensor) -> torch.Tensor:
        rows = [self._row(request.state) for request in requests_in_batch if request.has_new_token]
        if rows:
            values = torch.tensor(rows, dtype=torch.float32).T.contiguous().view(torch.int32)
            arg_storage[:, : len(rows)] = values.to(arg_storage.device)
        return arg_storage

    def __call__(
        self, input_ids: Any, scores: torch.Tensor, logits_processor_args: torch.Tensor
    ) -> torch.Tensor:
        rows = scores.size(0)
        temperature, top_p, u = logits_processor_args[:, :rows].contiguous().view(torch.float32)
        token = pick(scores, temperature, top_p, u)
        return torch.zeros_like(scores).scatter_(-1, token.unsqueeze(-1), 1.0)

    def _row(self, state: Any) -> tuple[float, float, float]:
        answer = self._answers.get(state.request_id)
        if answer is None:  # the probe, or just cancelled
            return 0.0, 1.0, 0.0
        # A request that was evicted has its generated tokens moved to its prompt: the sum stays.
        position = len(state.initial_tokens) + state.generated_len()
        return answer.params.temperature, answer.params.top_p, uniform(answer.seed, position)


class Router(OutputRouter):
    """Where the library puts its outputs: one call to the loop per step, and nothing kept for nobody."""

    def __init__(self, deliver: Callable[[list[Progress]], None]) -> None:
        super().__init__()
        self.answers: dict[str, Answer] = {}
        self.probe: queue.SimpleQueue[GenerationOutput] = queue.SimpleQueue()
        self._deliver = deliver

    def deliver(self, output: GenerationOutput) -> None:
        self.deliver_batch([output])

    def deliver_batch(self, outputs: list[GenerationOutput]) -> None:
        news = []
        for output in outputs:
            if output.request_id == PROBE:
                self.probe.put(output)
            elif (answer := self.answers.get(output.request_id)) is not None:
                news.append(self._progress(answer, output))
        if news:
            self._deliver(news)

    def _progress(self, answer: Answer, output: GenerationOutput) -> Progress:
        if output.is_finished():
            self.answers.pop(answer.id, None)
        if output.status == RequestStatus.FAILED:
            return Progress(answer, error=RuntimeError(output.error or "the model failed"))
        first = output.lifespan[0] if not answer.tokens else None
        return answer.progress(output.generated_tokens[answer.tokens :], first)


class ContinuousBackend:
    """The library's continuous batching: paged cache, chunked prefill, FIFO."""

    def __init__(self, model: Any, max_running: int, deliver: Callable[[list[Progress]], None]) -> None:
        on_cpu = model.device.type == "cpu"
        config = ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            # Only an accelerator's free memory says how large a cache may be.
            num_blocks=CPU_CACHE_TOKENS // PAGE_TOKENS if on_cpu else None,
            max_batch_tokens=CPU_STEP_TOKENS if on_cpu else None,
            max_requests_per_batch=max_running,
            max_memory_percent=MEMORY_SHARE,
            # The library would take a kernel from the network where flash attention is not installed.
            auto_switch_to_flash=find_spec("flash_attn") is not None,
            # Double buffering schedules a step before the last one's tokens are known: `Sampler` counts them.
            use_async_batching=False,
        )
        # Sampling is ours, and so is the end of an answer: both come with each request.
        generation = GenerationConfig(do_sample=False, eos_token_id=-1)
        self._router = Router(deliver)
        self._manager = model.init_continuous_batching(
            generation_config=generation, continuous_batching_config=config
        )
        self._manager.logit_processor = Sampler(self._router.answers)
        self._manager.output_router = self._router
        self.max_len = 0

    def start(self) -> None:
        """Start the library's thread and see whether the model runs in it. Raises what is wrong."""
        self._manager.start()
        try:
            self._manager.add_request(list(range(PROBE_TOKENS)), PROBE, max_new_tokens=PROBE_TOKENS)
            output = self._router.probe.get(timeout=PROBE_S)
            if output.status == RequestStatus.FAILED:
                raise RuntimeError(output.error)
        except BaseException:
            self.stop()
            raise
        cache = self._manager.batch_processor.cache
        self.max_len = cache.num_blocks * PAGE_TOKENS

    def stop(self) -> None:
        self._manager.stop(block=True, timeout=10, hard_stop=True)
        self._manager.destroy()

    def alive(self) -> bool:
        return bool(self._manager.is_running())

    def submit(self, answer: Answer) -> None:
        self._router.answers[answer.id] = answer
        accepted = self._manager.add_request(
            answer.prompt,
            answer.id,
            max_new_tokens=answer.max_tokens,
            streaming=True,
            eos_token_id=sorted(answer.ends),
        )
        if accepted is None:
            self._router.answers.pop(answer.id, None)
            raise RuntimeError("the model's thread has ended")

    def cancel(self, answer: Answer) -> None:
        if self._router.answers.pop(answer.id, None) is not None:
            self._manager.cancel_request(answer.id)

    def stats(self) -> Stats:
        processor = self._manager.batch_processor
        if processor is None:
            return Stats()
        scheduler, blocks = processor.scheduler, processor.cache.num_blocks
        active = list(scheduler.active_requests.values())
        # Pages kept for a shared prefix alone are free for the taking, so they are not in use.
        used = sum(-(-state.current_len() // PAGE_TOKENS) for state in active)
        return Stats(
            running=len(active),
            waiting=len(scheduler.waiting_requests) + self._manager.input_queue.qsize(),
            kv_used=min(1.0, used / blocks),
            block_size=PAGE_TOKENS,
            blocks=blocks,
        )


class GenerateBackend:
    """One request at a time through the library's `generate`, first come first served."""

    def __init__(self, model: Any, deliver: Callable[[list[Progress]], None]) -> None:
        self._model = model
        self._deliver = deliver
        self._waiting: deque[Answer] = deque()
        self._running: Answer | None = None
        self._stopping = False
        self._change = threading.Condition()  # held for every look at the three above
        self._thread = threading.Thread(target=self._run, name="generate", daemon=True)
        self.max_len = 1 << 30

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._change:
            self._stopping = True
            if self._running is not None:
                self._running.cancelled = True
            self._change.notify()
        self._thread.join(timeout=10)

    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, answer: Answer) -> None:
        with self._change:
            self._waiting.append(answer)
            self._change.notify()

    def cancel(self, answer: Answer) -> None:
        with self._change:
            answer.cancelled = True  # read after each token
            if answer in self._waiting:
                self._waiting.remove(answer)

    def stats(self) -> Stats:
        running = self._running
        busy = running is not None and not running.over
        return Stats(running=int(busy), waiting=len(self._waiting), kv_used=None)

    def _run(self) -> None:
        while (answer := self._next()) is not None:
            try:
                self._generate(answer)
            except Exception as error:
                self._deliver([Progress(answer, error=error)])

    def _next(self) -> Answer | None:
        with self._change:
            self._running = None
            self._change.wait_for(lambda: self._waiting or self._stopping)
            if self._stopping:
                return None
            self._running = self._waiting.popleft()
            return self._running

    def _generate(self, answer: Answer) -> None:
        device = self._model.device
        prompt = torch.tensor([answer.prompt], device=device)
        ends = sorted(answer.ends)
        self._model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=GenerationConfig(
                max_new_tokens=answer.max_tokens,
                do_sample=False,
                eos_token_id=ends or None,
                pad_token_id=ends[0] if ends else 0,
            ),
            logits_processor=LogitsProcessorList([OneSampler(answer)]),
            stopping_criteria=StoppingCriteriaList([Cancelled(answer)]),
            streamer=Streamer(answer, self._deliver),
        )


class OneSampler(LogitsProcessor):
    """`Sampler` for a batch of one."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        params = self._answer.params
        values = (params.temperature, params.top_p, uniform(self._answer.seed, input_ids.size(1)))
        token = pick(scores.float(), *(torch.tensor([value], device=scores.device) for value in values))
        return torch.zeros_like(scores).scatter_(-1, token.unsqueeze(-1), 1.0)


class Cancelled(StoppingCriteria):
    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((input_ids.size(0),), self._answer.cancelled, device=input_ids.device)


class Streamer(BaseStreamer):
    """Hands over each token of `generate`; the first call brings the prompt."""

    def __init__(self, answer: Answer, deliver: Callable[[list[Progress]], None]) -> None:
        self._answer = answer
        self._deliver = deliver
        self._began: float | None = None

    def put(self, value: torch.Tensor) -> None:
        if self._began is None:
            self._began = monotonic()
            return
        at = self._began if not self._answer.tokens else None
        self._deliver([self._answer.progress(value.tolist(), at)])

    def end(self) -> None:
        """The last token has said that it is the last."""
