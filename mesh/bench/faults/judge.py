"""Figures of a run with a fault. Pure.

Fates. Callers never repeat a request, so that each failure of the system is one of a caller. Of those who
were there when something broke, or came later:

    served    whole; or the run ended while tokens came, the last of them within `SILENT_S`
    refused   told that there is no room
    broken    had a first token before the fault, and then broke off or fell silent: nobody could help
    failed    everything else, silence without a first token until the end among it

A pod is *out* from its last new request before `QUIET_S` without one.
A pod's load *swings* when, in slices of `SLICE_S`, it comes back to half of a fair share of all requests
after a slice without any.
"""

from collections.abc import Iterable
from itertools import pairwise
from math import ceil, inf
from typing import Final, Literal

from mesh.bench.faults.evidence import Evidence
from mesh.bench.origin import Origin
from mesh.bench.workload import PREMIUM

Fate = Literal["served", "refused", "broken", "failed"]

SILENT_S: Final = 3.0
QUIET_S: Final = 4.0
SLICE_S: Final = 2.5
FULL_S: Final = 10.0  # at the end of a fault, when those who are left must be in full use
SETTLED_S: Final = 5.0  # after the fault, when first tokens must be in time again
NEVER: Final = inf


def fate(origin: Origin, run: Evidence) -> Fate:
    """What became of this caller."""
    tokens = origin.tokens_at
    flows = bool(tokens) and run.over_s - tokens[-1] <= SILENT_S
    if origin.outcome == "served" or (origin.outcome == "open" and flows):
        return "served"
    if origin.outcome == "refused":
        return "refused"
    return "broken" if tokens and tokens[0] < run.from_s else "failed"


def concerned(run: Evidence) -> list[Origin]:
    """Who was there when something broke, or came later."""
    return [each for each in run.origins if each.ended >= run.from_s or each.ask.at >= run.from_s]


def lost(run: Evidence) -> int:
    """Callers who failed or were refused though a first token had not come before the fault."""
    return sum(fate(each, run) in ("failed", "refused") for each in concerned(run))


def failed(run: Evidence) -> int:
    """Likewise, without the refused."""
    return _count(run, "failed")


def refused(run: Evidence) -> int:
    return _count(run, "refused")


def broken(run: Evidence) -> int:
    """Streams that had begun and then broke."""
    return _count(run, "broken")


def lost_later(run: Evidence, after_s: float) -> int:
    """Callers who failed or were refused and had asked this long after the fault or later."""
    return sum(
        fate(each, run) in ("failed", "refused") for each in run.asked(run.from_s + after_s, run.to_s)
    )


def lost_elsewhere(run: Evidence) -> int:
    """How many more callers that asked before the fault were lost than its victims worked for."""
    gone = [
        each
        for each in concerned(run)
        if each.ask.at < run.from_s and fate(each, run) not in ("served", "refused")
    ]
    own = sum(_last_before(run, pod) for pod in run.victims)
    return max(0, len(gone) - ceil(own))


def success(run: Evidence) -> float:
    """Share of those who asked during the fault that was served."""
    asked = run.asked(run.from_s, run.to_s)
    return sum(fate(each, run) == "served" for each in asked) / len(asked) if asked else 1.0


def out_after_s(run: Evidence) -> float | None:
    """Until the last victim was out; None when nobody counted."""
    if not all(run.seen.counts[pod] for pod in run.victims):
        return None
    return max((_out_after_s(run, pod) for pod in run.victims), default=NEVER)


def _out_after_s(run: Evidence, pod: int) -> float:
    times = [run.from_s, *run.arrivals(pod, run.from_s, run.to_s), run.to_s]
    for last, following in pairwise(times):
        if following - last >= QUIET_S:
            return last - run.from_s
    return NEVER


def ejected_after_s(run: Evidence) -> float:
    """Until every victim was ejected once."""
    since = [seen for seen in run.seen.ejected if seen.at >= run.from_s]
    return max(
        (next((at - run.from_s for at, pods in since if pod in pods), NEVER) for pod in run.victims),
        default=NEVER,
    )


def most_ejected(run: Evidence) -> int:
    """Pods at the worst instant."""
    return max((len(pods) for _, pods in run.seen.ejected), default=0)


def falsely_ejected(run: Evidence) -> int:
    """Ejections of pods that nobody broke."""
    return sum(_ejections(run, pod) for pod in run.well)


def most_ejections(run: Evidence) -> int:
    """Of one pod: more than one means that it flaps, since no fault here outlasts an ejection."""
    return max((_ejections(run, pod) for pod in range(run.pods)), default=0)


def _ejections(run: Evidence, pod: int) -> int:
    states = [pod in pods for _, pods in run.seen.ejected]
    return sum(is_out and not was for was, is_out in zip([False, *states], states, strict=False))


def busy(run: Evidence) -> float | None:
    """How full the pods that nobody breaks were at the end of the fault, as a share of their seats."""
    seen = [
        requests
        for pod in run.well
        for at, requests in run.seen.running[pod]
        if run.to_s - FULL_S <= at < run.to_s
    ]
    return sum(seen) / len(seen) / run.seats if seen else None


def swings(run: Evidence) -> int | None:
    """How often a victim's load came back; None when nobody counted."""
    if not all(run.seen.counts[pod] for pod in run.victims):
        return None
    fair = len(run.asked(run.from_s, run.to_s)) / (run.to_s - run.from_s) * SLICE_S / run.pods
    return max((_swings(run, pod, fair) for pod in run.victims), default=0)


def _swings(run: Evidence, pod: int, fair: float) -> int:
    slices = [0] * int((run.to_s - run.from_s) / SLICE_S)
    for at in run.arrivals(pod, run.from_s, run.from_s + len(slices) * SLICE_S):
        slices[min(len(slices) - 1, int((at - run.from_s) / SLICE_S))] += 1
    found, is_away = 0, False
    for new in slices:
        if new == 0:
            is_away = True
        elif is_away and new >= fair / 2:
            found, is_away = found + 1, False
    return found


def attempts(run: Evidence) -> float | None:
    """Requests of engines for each of callers, from the fault on."""
    asked = len(run.asked(run.from_s, run.to_s))
    if not asked or not all(run.seen.counts):
        return None
    return sum(len(run.arrivals(pod, run.from_s, run.over_s)) for pod in range(run.pods)) / asked


def ttft_ratio(run: Evidence) -> float | None:
    """Premium's p99 to the first token from `SETTLED_S` after the fault, by that of the healthy system."""
    if run.healthy is None:
        return None
    found = [_ttft_p99(each, run.from_s + SETTLED_S, run.to_s) for each in (run, run.healthy)]
    ours, healthy = found
    return ours / healthy if ours is not None and healthy else None


def _ttft_p99(run: Evidence, from_s: float, to_s: float) -> float | None:
    times = sorted(
        each.ttft_s for each in run.asked(from_s, to_s) if each.ask.traffic.cls == PREMIUM and each.tokens_at
    )
    return times[ceil(0.99 * len(times)) - 1] if times else None


def streams(run: Evidence) -> int:
    """Streams that were open when something broke."""
    return sum(each.ask.at < run.from_s <= each.ended for each in run.origins)


def _count(run: Evidence, wanted: Fate) -> int:
    return sum(fate(each, run) == wanted for each in concerned(run))


def _last_before(run: Evidence, pod: int) -> float:
    return _last((requests for at, requests in run.seen.running[pod] if at < run.from_s), 0.0)


def _last(values: Iterable[float], default: float) -> float:
    for value in values:
        default = value
    return default
