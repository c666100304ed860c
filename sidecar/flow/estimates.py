"""What a request will cost, learnt from those that ended.

    prompt    bytes of text / bytes for a token, 4.0 at first       for each model
    fresh     prompt x (1 - part that the engine had cached)        for each tenant and model, or the model
    answer    exponential mean of what answers took, 300 at first;  likewise
              no more than the caller's max_tokens

Only answers that came whole teach. New keys start from the model's values and believe their first answers
more than later ones: the n-th counts 1/(n + 4), at least 2 %.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_BYTES: Final = 4.0
_ANSWER: Final = 300.0
_LEAST_WEIGHT: Final = 0.02
_PRIOR: Final = 4
_SETTLED: Final = 46  # answers after which each counts the same
_MOST_KEYS: Final = 4096  # the longest known are forgotten
_SANE_BYTES: Final = (0.5, 16.0)


class _Known:
    """What is known of one tenant's requests to a model or, without `model`, of all to it."""

    __slots__ = ("answer", "bytes", "cached", "model", "n")

    def __init__(self, model: _Known | None = None) -> None:
        self.model = model
        self.n = 0
        self.answer: float = _ANSWER if model is None else model.answer
        self.cached: float = 0.0 if model is None else model.cached
        self.bytes: float = _BYTES if model is None else model.bytes

    def learn(self, answer: int, per_token: float, cached: float) -> None:
        """`per_token` bytes, of them a part `cached`; 0.0: the engine did not say."""
        n = self.n
        self.n = n + 1
        weight = 1 / (n + _PRIOR) if n < _SETTLED else _LEAST_WEIGHT
        self.answer += (answer - self.answer) * weight
        if per_token:
            self.bytes += (per_token - self.bytes) * weight
            self.cached += (cached - self.cached) * weight


class Estimates:
    """Everything in tokens."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], _Known] = {}  # by tenant ("": all) and model

    def __len__(self) -> int:
        return len(self._known)

    def expect(self, tenant: str, model: str, size: int, most: int | None) -> tuple[float, float, float]:
        """Prompt, uncached prompt and answer (at most `most`) of a request with `size` bytes of text."""
        known = self._known.get((tenant, model)) or self._known.get(("", model)) or _DEFAULT
        prompt = size / (known.model or known).bytes
        answer = known.answer if most is None or most > known.answer else float(most)
        return prompt + 1.0, prompt * (1.0 - known.cached) + 1.0, answer

    def learn(
        self, tenant: str, model: str, answer: int, *, size: int, prompt: int | None = None, cached: int = 0
    ) -> None:
        """An answer came whole. `prompt` and `cached` tokens are what the engine said, None: it did not."""
        known = self._known.get((tenant, model)) or self._add(tenant, model)
        per_token = part = 0.0
        if prompt:
            per_token = min(max(size / prompt, _SANE_BYTES[0]), _SANE_BYTES[1])
            part = min(cached / prompt, 1.0)
        known.learn(answer, per_token, part)
        if known.model is not None:
            known.model.learn(answer, per_token, part)

    def _add(self, tenant: str, model: str) -> _Known:
        whole = self._known.setdefault(("", model), _Known()) if tenant else None
        known = self._known[tenant, model] = _Known(whole)
        while len(self._known) > _MOST_KEYS:
            oldest = next(iter(self._known))
            if not oldest[0]:  # newcomers start from it
                self._known[oldest] = self._known.pop(oldest)
                oldest = next(iter(self._known))
            del self._known[oldest]
        return known

    def dump(self) -> list[dict[str, Any]]:
        """What is known, as plain values."""
        return [
            {"tenant": tenant, "model": model, "n": known.n, "answer": round(known.answer, 1),
             "cached": round(known.cached, 3), "bytes": round(known.bytes, 3)}
            for (tenant, model), known in self._known.items()
        ]  # fmt: skip

    def load(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take what `dump` gave; raises KeyError, TypeError or ValueError, and takes nothing, if not."""
        found: dict[tuple[str, str], _Known] = {}
        for row in rows[:_MOST_KEYS]:
            known = _Known()
            known.n = max(int(row["n"]), 0)
            known.answer = min(max(float(row["answer"]), 0.0), 1e6)
            known.cached = min(max(float(row["cached"]), 0.0), 1.0)
            known.bytes = min(max(float(row["bytes"]), _SANE_BYTES[0]), _SANE_BYTES[1])
            found[str(row["tenant"]), str(row["model"])] = known
        for (tenant, model), known in list(found.items()):
            if tenant:
                known.model = found.setdefault(("", model), _Known())
        self._known = found


_DEFAULT: Final = _Known()
