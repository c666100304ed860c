"""Attainment of those who arrived in the window, by what may have decided it. Pure.

By tenant: whether one's noise is another's loss. By length of the prompt: long ones cost more, so a gate that
only counts what it lets through prefers short ones.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

from mesh.bench.origin import Origin

# Upper bounds in tokens; half of the stock mix is in the first.
PROMPTS: Final = (800, 1600)


@dataclass(slots=True)
class Part:
    """Those who have something in common."""

    origins: int = 0
    attained: int = 0
    shed: int = 0
    tokens: int = 0  # they received, whenever


def breakdowns(origins: Iterable[Origin], from_s: float, to_s: float) -> dict[str, Any]:
    """By name of the breakdown, then by part."""
    here = [each for each in origins if from_s <= each.ask.at < to_s and not each.is_undecided]
    return {"tenants": _by(here, _tenant), "prompts": _by(here, _prompt)}


def _by(origins: Iterable[Origin], key: Callable[[Origin], str]) -> dict[str, Any]:
    parts: dict[str, Part] = defaultdict(Part)
    for origin in origins:
        part = parts[key(origin)]
        part.origins += 1
        part.attained += origin.attains
        part.shed += origin.outcome == "refused"
        part.tokens += len(origin.tokens_at)
    return {name: asdict(parts[name]) for name in sorted(parts)}


def _tenant(origin: Origin) -> str:
    return origin.ask.traffic.tenant


def _prompt(origin: Origin) -> str:
    bound = next((bound for bound in PROMPTS if origin.ask.prompt_tokens <= bound), None)
    return f"above {PROMPTS[-1]}" if bound is None else f"up to {bound}"
