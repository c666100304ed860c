"""What a sidecar has learnt of its engine and its callers, as the bytes of the state file.

JSON with a version: the admission limit as a part of the KV cache, the engine's rates, and what requests
cost. Taken whole or refused whole. It holds names of tenants and models, and nothing of what anybody asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from sidecar.flow.admission import Admission
    from sidecar.flow.estimates import Estimates

VERSION: Final = 1
_SANE_RATE: Final = (50.0, 1e8)


class _State(msgspec.Struct):
    version: int
    capacity: float  # KV tokens
    fraction: float
    prompt_rate: float
    itl_s: float
    work_rate: float | None
    estimates: list[dict[str, Any]]


def dump(admission: Admission, estimates: Estimates) -> bytes:
    """The state file's content."""
    controller, meter = admission.controller, admission.meter
    state = _State(
        VERSION,
        controller.capacity,
        controller.fraction,
        meter.prompt_rate,
        meter.itl_s,
        meter.work_rate,
        estimates.dump(),
    )
    return msgspec.json.format(msgspec.json.encode(state), indent=1) + b"\n"


def load(content: bytes, admission: Admission, estimates: Estimates) -> None:
    """Go on from what `dump` gave; raises ValueError, and changes nothing, when it is not that."""
    try:
        state = msgspec.json.decode(content, type=_State)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if state.version != VERSION:
        raise ValueError(f"version {state.version}, this sidecar reads {VERSION}")
    low, high = _SANE_RATE
    if not (low <= state.prompt_rate <= high and (state.work_rate is None or low <= state.work_rate <= high)):
        raise ValueError("a rate that no engine has")
    if not (0 < state.itl_s < 60 and 0 < state.fraction < 1000):
        raise ValueError("an inter-token time or a limit that no engine has")
    try:
        estimates.load(state.estimates)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"estimates: {error!r}") from None
    controller, meter = admission.controller, admission.meter
    controller.remember(state.capacity, state.fraction)
    meter.prompt_rate, meter.itl_s, meter.work_rate = state.prompt_rate, state.itl_s, state.work_rate
