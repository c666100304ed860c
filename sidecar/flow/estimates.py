"""What a request will cost, learnt from those that ended.

    prompt    bytes of text / bytes for a token, 4.0 at first       for each model
    fresh     prompt x (1 - part that the engine had cached)        for each tenant and model, or the model
    answer    exponential mean of what answers took, 300 at first;  likewise
              no more than the caller's max_tokens

Only answers that came whole teach. New keys start from the model's values and believe their first answers
more than later ones: the n-th counts 1/(n + 4), at least 2 %.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_BYTES: Final = 4.0
_ANSWER: Final = 300.0
_LEAST_WEIGHT: Final = 0.02
_PRIOR: Final = 4
_MOST_KEYS: Final = 4096  # the longest unused are forgotten
_SANE_BYTES: Final = (0.5, 16.0)


class _Known:
    __slots__ = ("answer", "bytes", "cached", "n")

    def __init__(self, like: _Known | None = None) -> None:
        self.n = 0
        self.answer: float = _ANSWER if like is None else like.answer
        self.cached: float = 0.0 if like is None else like.cached
        self.bytes: float = _BYTES if like is None else like.bytes


class Estimates:
    """Everything in tokens."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], _Known] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def expect(self, tenant: str, model: str, size: int, most: int | None) -> tuple[float, float, float]:
        """Prompt, uncached prompt and answer (at most `most`) of a request with `size` bytes of text."""
        model_known = self._known.get(("", model)) or _DEFAULT
        known = self._known.get((tenant, model)) or model_known
        prompt = size / model_known.bytes + 1.0
        answer = known.answer if most is None or most > known.answer else float(most)
        return prompt, prompt * (1.0 - known.cached), answer

    def learn(
        self, tenant: str, model: str, answer: int, *, size: int, prompt: int | None = None, cached: int = 0
    ) -> None:
        """An answer came whole. `prompt` and `cached` tokens are what the engine said, None: it did not."""
        for key in (("", model), (tenant, model)):
            known = self._known.get(key)
            if known is None:
                known = self._known[key] = _Known(self._known.get(("", model)))
                if len(self._known) > _MOST_KEYS:
                    self._known.popitem(last=False)
            else:
                self._known.move_to_end(key)
            weight = max(_LEAST_WEIGHT, 1 / (known.n + _PRIOR))
            known.n += 1
            known.answer += (answer - known.answer) * weight
            if prompt:
                per_token = min(max(size / prompt, _SANE_BYTES[0]), _SANE_BYTES[1])
                known.bytes += (per_token - known.bytes) * weight
                known.cached += (min(cached / prompt, 1.0) - known.cached) * weight

    def dump(self) -> list[dict[str, Any]]:
        """What is known, as plain values."""
        return [
            {"tenant": tenant, "model": model, "n": known.n, "answer": round(known.answer, 1),
             "cached": round(known.cached, 3), "bytes": round(known.bytes, 3)}
            for (tenant, model), known in self._known.items()
        ]  # fmt: skip

    def load(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take what `dump` gave; raises KeyError, TypeError or ValueError, and takes nothing, if not."""
        found: OrderedDict[tuple[str, str], _Known] = OrderedDict()
        for row in rows[:_MOST_KEYS]:
            known = _Known()
            known.n = int(row["n"])
            known.answer = min(max(float(row["answer"]), 0.0), 1e6)
            known.cached = min(max(float(row["cached"]), 0.0), 1.0)
            known.bytes = min(max(float(row["bytes"]), _SANE_BYTES[0]), _SANE_BYTES[1])
            found[str(row["tenant"]), str(row["model"])] = known
        self._known = found


_DEFAULT: Final = _Known()
