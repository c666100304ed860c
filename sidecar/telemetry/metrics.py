"""Every metric of the sidecar: one table of names, and the handles the hot path uses.

An exchange looks up one `Series` by (tenant, model, class) and counts in it. prometheus-client locks
for each number and searches buckets one by one, 9 us for one exchange where plain numbers take 1 us:
so its place is behind a collector, which turns the numbers into samples when somebody asks.
One thread counts. Another may render meanwhile: it copies each container before it reads it, and
sees every number either before or after an exchange.

Label sets are bounded: beyond `max_series` tenant and model are counted as `other`, as is the status
beyond `_MAX_OUTCOMES` outcomes of one series.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Final, Literal, NamedTuple

from prometheus_client import CollectorRegistry, Gauge, Info, ProcessCollector
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

_MAX_OUTCOMES: Final = 64
# Up to 300 s: answers of language models take minutes, and a request may queue for one.
_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_LE: Final = (*map(floatToGoString, _BUCKETS), "+Inf")

GaugeName = Literal[
    "headgate_in_flight",
    "headgate_queued",
    "headgate_queue",
    "headgate_admission_limit_tokens",
    "headgate_admission_room_tokens",
    "headgate_admission_backlog_tokens",
    "headgate_admission_work_rate",
    "headgate_admission_prompt_rate",
    "headgate_tenants_held",
    "headgate_refused_remembered",
    "headgate_board_connected",
    "headgate_board_dropped_entries",
    "headgate_connections",
    "headgate_buffered_bytes",
    "headgate_loop_lag_seconds",
    "headgate_timers",
    "headgate_event_loop_tasks",
    "headgate_accepting",
    "headgate_ready",
    "headgate_access_log_dropped_lines",
]


class Metric(NamedTuple):
    """A row of the table: what is measured, and what it is told apart by."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


REQUESTS: Final = Metric(
    "headgate_requests_total",
    "Finished requests; reason is empty when the engine answered",
    ("tenant", "model", "class", "status", "reason"),
)
RESPONSE_BYTES: Final = Metric(
    "headgate_response_bytes_total", "Bytes of response bodies sent to clients", ("tenant", "model", "class")
)
DURATION: Final = Metric(
    "headgate_request_duration_seconds", "Arrival to last byte, of every finished request", ("model", "class")
)
FIRST_BYTE: Final = Metric(
    "headgate_time_to_first_byte_seconds", "Arrival to first byte of the engine's answer", ("model", "class")
)
TOKENS: Final = Metric(
    "headgate_tokens_total",
    "Tokens of finished requests: prompts as estimated, answers as counted or as the engine said",
    ("tenant", "model", "class", "kind"),
)
CORRECTED: Final = Metric(
    "headgate_corrected_total", "What callers asked for and did not get as they wrote it", ("what",)
)
SHADOWED: Final = Metric(
    "headgate_admission_shadow_total", "What admission would have done, in shadow mode", ("class", "decision")
)
PREEMPTIONS: Final = Metric(
    "headgate_preemptions_total", "Requests that gave way to a higher class", ("class", "how")
)
ANOMALIES: Final = Metric(
    "headgate_anomalies_total", "How often a tenant asked and was refused far more than usual", ("tenant",)
)
ERROR: Final = Metric(
    "headgate_prediction_error_seconds", "How wrong a predicted time to the first token was", ("class",)
)
QUEUE: Final = Metric("headgate_queue_seconds", "Time spent in the admission queue", ("model", "class"))
ATTEMPTS: Final = Metric(
    "headgate_attempts_total",
    "Attempts, by where they went and what became of them; requests are counted in headgate_requests_total",
    ("to", "outcome"),
)
INFO: Final = Metric("headgate_info", "The running version, and whether it is compiled")
GAUGES: Final[dict[GaugeName, Metric]] = {
    "headgate_in_flight": Metric("headgate_in_flight", "Requests that the engine is working on"),
    "headgate_queued": Metric("headgate_queued", "Requests that wait for admission"),
    "headgate_queue": Metric("headgate_queue", "Requests of a class that wait for admission", ("class",)),
    "headgate_admission_limit_tokens": Metric(
        "headgate_admission_limit_tokens", "KV tokens that may be set aside for what runs"
    ),
    "headgate_admission_room_tokens": Metric(
        "headgate_admission_room_tokens", "KV tokens that are set aside for what runs"
    ),
    "headgate_admission_backlog_tokens": Metric(
        "headgate_admission_backlog_tokens", "Prompt tokens of running requests without a first token"
    ),
    "headgate_admission_work_rate": Metric(
        "headgate_admission_work_rate", "Weighted tokens a second that a busy engine does; 0: not known"
    ),
    "headgate_admission_prompt_rate": Metric(
        "headgate_admission_prompt_rate", "Prompt tokens a second that the engine computes"
    ),
    "headgate_tenants_held": Metric("headgate_tenants_held", "Tenants held to their part: abnormal traffic"),
    "headgate_refused_remembered": Metric(
        "headgate_refused_remembered", "Refused callers, peers' among them, that would be known again"
    ),
    "headgate_board_connected": Metric(
        "headgate_board_connected", "1 while refusals are shared with peers; 0 also without a mesh"
    ),
    "headgate_board_dropped_entries": Metric(
        "headgate_board_dropped_entries", "Refusals and returns that peers were not told of"
    ),
    "headgate_connections": Metric("headgate_connections", "Open connections", ("side",)),
    "headgate_buffered_bytes": Metric("headgate_buffered_bytes", "Bytes of bodies held in memory"),
    "headgate_loop_lag_seconds": Metric("headgate_loop_lag_seconds", "How late the event loop runs"),
    "headgate_timers": Metric("headgate_timers", "Time-outs that are watched; none at rest"),
    "headgate_event_loop_tasks": Metric("headgate_event_loop_tasks", "Tasks of the event loop: few at rest"),
    "headgate_accepting": Metric(
        "headgate_accepting", "0 while new connections wait because descriptors are short, or are not taken"
    ),
    "headgate_ready": Metric("headgate_ready", "1 when this pod wants traffic"),
    "headgate_access_log_dropped_lines": Metric(
        "headgate_access_log_dropped_lines", "Lines the access log lost because its reader was too slow"
    ),
}


class Distribution:
    """How many values fell between each two bounds, and their sum."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * len(_LE)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count `value` under the smallest bound that is not below it."""
        self.counts[bisect_left(_BUCKETS, value)] += 1
        self.sum += value


class Latencies(NamedTuple):
    """Distributions of one (model, class); tenants would multiply their many lines."""

    duration: Distribution
    first_byte: Distribution
    queue: Distribution


class Series:
    """The numbers of one (tenant, model, class)."""

    __slots__ = (
        "_duration",
        "_first_byte",
        "_queue",
        "answer_tokens",
        "bytes_out",
        "outcomes",
        "prompt_tokens",
    )

    def __init__(self, latencies: Latencies) -> None:
        self.outcomes: dict[tuple[int | str, str], int] = {}  # by (status, reason)
        self.bytes_out = 0
        self.prompt_tokens = 0.0
        self.answer_tokens = 0
        self._duration = latencies.duration.observe
        self._first_byte = latencies.first_byte.observe
        self._queue = latencies.queue.observe

    def done(
        self,
        status: int,
        reason: str,
        duration_s: float,
        first_byte_s: float | None,
        queue_s: float | None,
        bytes_out: int,
    ) -> None:
        """Count a finished exchange. None: it got no byte from an engine, or did not queue."""
        outcomes = self.outcomes
        outcome: tuple[int | str, str] = (status, reason)
        count = outcomes.get(outcome, 0)
        # An engine may answer with any status; reasons are ours and few.
        if not count and len(outcomes) >= _MAX_OUTCOMES:
            outcome = ("other", reason)
            count = outcomes.get(outcome, 0)
        outcomes[outcome] = count + 1
        self.bytes_out += bytes_out
        self._duration(duration_s)
        if first_byte_s is not None:
            self._first_byte(first_byte_s)
        if queue_s is not None:
            self._queue(queue_s)


class Metrics(Collector):
    """All metrics of one sidecar, in a registry of their own."""

    def __init__(self, version: str, max_series: int) -> None:
        self._max_series = max_series
        self._series: dict[tuple[str, str, str], Series] = {}
        self._latencies: dict[tuple[str, str], Latencies] = {}
        self._counts: dict[Metric, dict[tuple[str, ...], int]] = {
            row: {} for row in (CORRECTED, SHADOWED, PREEMPTIONS, ANOMALIES, ATTEMPTS)
        }
        self._errors: dict[str, Distribution] = {}
        self._registry = registry = CollectorRegistry()
        registry.register(self)
        self._gauges = {name: Gauge(*row, registry=registry) for name, row in GAUGES.items()}
        compiled = "no" if __file__.endswith((".py", ".pyc")) else "yes"
        info = Info(INFO.name.removesuffix("_info"), INFO.help, registry=registry)
        info.info({"compiled": compiled, "version": version})
        ProcessCollector(registry=registry)

    def series(self, tenant: str, model: str, cls: str) -> Series:
        """Where exchanges of (tenant, model, class) are counted."""
        key = (tenant, model, cls)
        return self._series.get(key) or self._open(key)

    def corrected(self, what: str) -> None:
        """A caller asked for something it does not get as it wrote it."""
        self._add(CORRECTED, (what,))

    def shadowed(self, cls: str, decision: str) -> None:
        """Admission would have made this `decision`."""
        self._add(SHADOWED, (cls, decision))

    def preempted(self, cls: str, how: str) -> None:
        """A request gave way."""
        self._add(PREEMPTIONS, (cls, how))

    def anomaly(self, tenant: str) -> None:
        """A tenant has become abnormal."""
        self._add(ANOMALIES, (tenant,))

    def attempted(self, to: str, outcome: str) -> None:
        """An attempt at an engine or at a peer is over."""
        self._add(ATTEMPTS, (to, outcome))

    def predicted(self, cls: str, seconds: float, actual: float) -> None:
        """The first token was to come in `seconds` and came after `actual`."""
        errors = self._errors.get(cls)
        if errors is None:
            errors = self._errors[cls] = Distribution()
        errors.observe(abs(seconds - actual))

    def _add(self, row: Metric, labels: tuple[str, ...]) -> None:
        counts = self._counts[row]
        counts[labels] = counts.get(labels, 0) + 1

    def gauge(self, name: GaugeName, read: Callable[[], float], *labels: str) -> None:
        """`read` gives the value of a gauge. It is called from whichever thread renders."""
        gauge = self._gauges[name]
        (gauge.labels(*labels) if labels else gauge).set_function(read)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The page and its content type: OpenMetrics when `accept` asks for it, else Prometheus text.

        Takes tens of milliseconds for thousands of lines: not for the event loop.
        """
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is no number
            encode, content_type = choose_encoder("")
        return encode(self._registry), content_type

    def collect(self) -> Iterator[CounterMetricFamily | HistogramMetricFamily]:
        """For the registry."""
        requests = CounterMetricFamily(REQUESTS.name, REQUESTS.help, labels=REQUESTS.labels)
        sent = CounterMetricFamily(RESPONSE_BYTES.name, RESPONSE_BYTES.help, labels=RESPONSE_BYTES.labels)
        tokens = CounterMetricFamily(TOKENS.name, TOKENS.help, labels=TOKENS.labels)
        for key, series in self._series.copy().items():
            tokens.add_metric((*key, "prompt"), series.prompt_tokens)
            tokens.add_metric((*key, "answer"), series.answer_tokens)
            sent.add_metric(key, series.bytes_out)
            for (status, reason), count in series.outcomes.copy().items():
                requests.add_metric((*key, str(status), reason), count)
        yield requests
        yield sent
        yield tokens
        for row, counts in self._counts.items():
            counter = CounterMetricFamily(row.name, row.help, labels=row.labels)
            for labels, count in counts.copy().items():
                counter.add_metric(labels, count)
            yield counter
        errors = HistogramMetricFamily(ERROR.name, ERROR.help, labels=ERROR.labels)
        for cls, distribution in self._errors.copy().items():
            _add_histogram(errors, (cls,), distribution)
        yield errors
        latencies = self._latencies.copy()
        for i, row in enumerate((DURATION, FIRST_BYTE, QUEUE)):
            family = HistogramMetricFamily(row.name, row.help, labels=row.labels)
            for labels, distributions in latencies.items():
                _add_histogram(family, labels, distributions[i])
            yield family

    def _open(self, key: tuple[str, str, str]) -> Series:
        if len(self._series) >= self._max_series:
            key = ("other", "other", key[2])
            found = self._series.get(key)
            if found is not None:
                return found
        labels = key[1:]
        if labels not in self._latencies:
            self._latencies[labels] = Latencies(Distribution(), Distribution(), Distribution())
        series = self._series[key] = Series(self._latencies[labels])
        return series


def _add_histogram(
    family: HistogramMetricFamily, labels: tuple[str, ...], distribution: Distribution
) -> None:
    below = accumulate(distribution.counts.copy())
    family.add_metric(labels, list(zip(_LE, below, strict=True)), distribution.sum)
