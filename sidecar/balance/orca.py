"""Load reports on answers, in the form of ORCA (xds.data.orca.v3.OrcaLoadReport, gRFC A51).

    endpoint-load-metrics: TEXT application_utilization=0.5,rps_fractional=3.1,named_metrics.a=1
    endpoint-load-metrics: JSON {"application_utilization": 0.5, ...}

Envoy reads both (source/common/orca/orca_parser.cc) and discards a report with a name it does not know, a
name twice, or a value that is no finite number. vLLM and Triton send named metrics alone, to who asks by
`endpoint-load-metrics-format`; theirs end here, for they do not know of our queue. The binary form is what
gRPC servers send: it is not read, and does not pass either.

Envoy's client_side_weighted_round_robin weighs a host by rps / (utilization + eps / rps), and skips reports
in which rps or utilization is 0. So refusals count in neither rate, or who refuses most would look fastest.
"""

from __future__ import annotations

from math import exp, inf, isfinite
from typing import TYPE_CHECKING, Final

import msgspec

from sidecar.balance.load import EngineLoad

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sidecar.balance.load import Occupancy

FIELD: Final = b"endpoint-load-metrics"
FORMAT_FIELD: Final = b"endpoint-load-metrics-format"

_MOST_BYTES: Final = 16 * 1024
_RENEWED_EVERY_S: Final = 0.1
_RATES_OVER_S: Final = 5.0  # time constant of their exponential means
# Named metrics, of vLLM and of Triton.
_KV_USED: Final = ("kv_cache_usage_perc", "kv_cache_utilization")


class _Report(msgspec.Struct):
    named_metrics: dict[str, float] = {}


_decode: Final = msgspec.json.Decoder(_Report).decode


def read_report(value: bytes, at: float) -> EngineLoad | None:
    """What the engine's field says, true of the instant `at`; None when that is nothing we know."""
    if len(value) > _MOST_BYTES:
        return None
    form, _, text = value.partition(b" ")
    if form == b"TEXT":
        named = _pairs(text)
    elif form == b"JSON":
        try:
            named = _decode(text).named_metrics
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
    else:
        return None
    named = {name: value for name, value in named.items() if isfinite(value) and value >= 0}
    load = EngineLoad(at)
    load.waiting = _whole(named.get("num_requests_waiting"))
    load.running = _whole(named.get("num_requests_running"))
    load.kv_used = next((min(named[name], 1.0) for name in _KV_USED if name in named), None)
    load.kv_tokens = _whole(named.get("max_token_capacity"))
    return None if load == EngineLoad(at) else load


def text_line(of: Occupancy, rps: float, eps: float) -> bytes:
    """The field, with CRLF."""
    kv = "" if of.kv_used is None else f"named_metrics.kv_cache_usage_perc={of.kv_used:.4g},"
    return (
        f"endpoint-load-metrics: TEXT application_utilization={of.utilization:.4g},rps_fractional={rps:.4g},"
        f"eps={eps:.4g},{kv}named_metrics.num_requests_waiting={of.waiting},"
        f"named_metrics.num_requests_running={of.running}\r\n"
    ).encode()


def json_line(of: Occupancy, rps: float, eps: float) -> bytes:
    """The field, with CRLF."""
    named: dict[str, float] = {"num_requests_waiting": of.waiting, "num_requests_running": of.running}
    if of.kv_used is not None:
        named["kv_cache_usage_perc"] = round(of.kv_used, 4)
    report = {
        "application_utilization": round(of.utilization, 4),
        "rps_fractional": round(rps, 4),
        "eps": round(eps, 4),
        "named_metrics": named,
    }
    return b"endpoint-load-metrics: JSON %b\r\n" % msgspec.json.encode(report)


class LoadReport:
    """Our own report as it goes on answers, made anew at most ten times a second.

    `occupancy` is asked each time. Whoever settles work adds it to `answered`, and if the engine failed
    it, to `failed` too.
    """

    __slots__ = ("_due", "_eps", "_json", "_occupancy", "_rps", "_since", "_text", "answered", "failed")

    def __init__(self, occupancy: Callable[[], Occupancy], now: float) -> None:
        self.answered = 0
        self.failed = 0
        self._occupancy = occupancy
        self._since = now
        self._due = -inf
        self._rps = self._eps = 0.0
        self._text = self._json = b""

    def turn(self, on: bool) -> None:
        """Off: the line is empty."""
        self._due = -inf if on else inf
        self._text = self._json = b""

    def line(self, now: float, noted: Mapping[bytes, bytes]) -> bytes:
        """The field with CRLF, in the form that the request with these fields asks for."""
        if now >= self._due:
            self._renew(now)
        if FORMAT_FIELD in noted and noted[FORMAT_FIELD].upper() == b"JSON":
            return self._json
        return self._text

    def _renew(self, now: float) -> None:
        passed = now - self._since
        if passed > 0:
            weight = 1 - exp(-passed / _RATES_OVER_S)
            self._rps += (self.answered / passed - self._rps) * weight
            self._eps += (self.failed / passed - self._eps) * weight
            self.answered = self.failed = 0
            self._since = now
        self._due = now + _RENEWED_EVERY_S
        occupancy = self._occupancy()
        self._text = text_line(occupancy, self._rps, self._eps)
        self._json = json_line(occupancy, self._rps, self._eps)


def _pairs(text: bytes) -> dict[str, float]:
    """The named metrics of a list, without what is no number."""
    named: dict[str, float] = {}
    for entry in text.decode("latin-1").split(","):
        name, equals, value = entry.strip().replace(":", "=", 1).partition("=")
        try:
            number = float(value)
        except ValueError:
            continue
        if equals and name.startswith("named_metrics."):
            named[name.removeprefix("named_metrics.")] = number
    return named


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
