"""What a scrape shows after exchanges were counted."""

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from sidecar.telemetry import metrics as module
from sidecar.telemetry.metrics import GAUGES, Metric, Metrics


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """(name, label values in order of label names) -> value."""
    page = metrics.render("")[0].decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in parse(page)
        for sample in family.samples
    }


def test_requests_are_counted_by_outcome() -> None:
    metrics = Metrics("1", 10)
    series = metrics.series("acme", "llama", "premium")
    series.done(200, "", 0.5, 0.2, None, 100)
    series.done(200, "", 0.5, 0.2, None, 50)
    series.done(503, "queue_full", 0.01, None, None, 0)
    found = samples(metrics)
    # labels in order: class, model, reason, status, tenant
    assert found["headgate_requests_total", "premium", "llama", "", "200", "acme"] == 2
    assert found["headgate_requests_total", "premium", "llama", "queue_full", "503", "acme"] == 1
    assert found["headgate_response_bytes_total", "premium", "llama", "acme"] == 150
    assert found["headgate_request_duration_seconds_count", "premium", "llama"] == 3
    assert found["headgate_time_to_first_byte_seconds_count", "premium", "llama"] == 2
    assert found["headgate_queue_seconds_count", "premium", "llama"] == 0


def test_buckets_are_cumulative_and_hold_their_bound() -> None:
    metrics = Metrics("1", 10)
    series = metrics.series("t", "m", "batch")
    for seconds in (0.0, 0.005, 0.0051, 1.0, 300.0, 301.0):
        series.done(200, "", 1.0, None, seconds, 0)
    found = samples(metrics)
    bucket = "headgate_queue_seconds_bucket"
    # labels in order: class, le, model
    assert [found[bucket, "batch", le, "m"] for le in ("0.005", "0.01", "0.5", "1.0", "300.0", "+Inf")] == [
        2, 3, 3, 4, 5, 6,
    ]  # fmt: skip
    assert found["headgate_queue_seconds_sum", "batch", "m"] == 0.0 + 0.005 + 0.0051 + 1.0 + 300.0 + 301.0


def test_tenants_share_the_distributions_of_a_model() -> None:
    metrics = Metrics("1", 10)
    for tenant in ("a", "b"):
        metrics.series(tenant, "m", "batch").done(200, "", 1.0, None, None, 0)
    assert samples(metrics)["headgate_request_duration_seconds_count", "batch", "m"] == 2


def test_series_are_bounded() -> None:
    metrics = Metrics("1", 2)
    known = metrics.series("a", "m", "batch")
    metrics.series("b", "m", "batch")
    for i in range(100):
        metrics.series(f"new{i}", f"m{i}", "batch").done(200, "", 1.0, None, None, 0)
    assert metrics.series("a", "m", "batch") is known
    found = samples(metrics)
    assert found["headgate_requests_total", "batch", "other", "", "200", "other"] == 100
    assert len([key for key in found if key[0] == "headgate_response_bytes_total"]) == 3


def test_statuses_are_bounded() -> None:
    metrics = Metrics("1", 2)
    series = metrics.series("a", "m", "batch")
    for status in range(100, 600):
        series.done(status, "", 1.0, None, None, 0)
    series.done(100, "", 1.0, None, None, 0)
    found = samples(metrics)
    outcomes = {key[4]: value for key, value in found.items() if key[0] == "headgate_requests_total"}
    assert len(outcomes) == 65
    assert (outcomes["100"], outcomes["other"]) == (2, 500 - 64)


def test_gauges_are_read_when_asked() -> None:
    metrics = Metrics("1.2", 2)
    queue = [1, 2]
    metrics.gauge("headgate_queued", lambda: len(queue))
    metrics.gauge("headgate_connections", lambda: 7, "client")
    metrics.gauge("headgate_connections", lambda: 3, "engine")
    queue.append(3)
    found = samples(metrics)
    assert found["headgate_queued",] == 3
    assert (found["headgate_connections", "client"], found["headgate_connections", "engine"]) == (7, 3)
    assert [key[2] for key in found if key[0] == "headgate_info"] == ["1.2"]
    assert ("process_resident_memory_bytes",) in found


def test_what_is_shown_is_what_the_table_says() -> None:
    metrics = Metrics("1", 2)
    metrics.series("a", "m", "batch").done(200, "", 1.0, 1.0, 1.0, 1)
    metrics.corrected("deadline")
    metrics.shadowed("batch", "queue")
    metrics.preempted("batch", "requeued")
    metrics.anomaly("a")
    metrics.attempted("engine", "ok")
    metrics.predicted("batch", 1.0, 2.0)
    for name, row in GAUGES.items():
        metrics.gauge(name, lambda: 1, *(["client"] if row.labels else []))
    families = {f.name: f for f in parse(metrics.render("")[0].decode()) if f.name.startswith("headgate")}
    table = [row for row in vars(module).values() if isinstance(row, Metric)] + list(GAUGES.values())
    assert set(families) == {row.name.removesuffix("_total") for row in table}
    for row in table:
        family = families[row.name.removesuffix("_total")]
        assert family.documentation == row.help
        if row.labels:
            assert set(family.samples[0].labels) - {"le"} == set(row.labels)


def test_what_admission_did_is_counted() -> None:
    metrics = Metrics("1", 2)
    for cls, decision in (("batch", "queue"), ("batch", "queue"), ("premium", "refuse")):
        metrics.shadowed(cls, decision)
    metrics.preempted("batch", "requeued")
    metrics.corrected("max_tokens")
    for predicted, actual in ((2.0, 1.0), (1.0, 4.0)):
        metrics.predicted("batch", predicted, actual)
    found = samples(metrics)
    assert found["headgate_admission_shadow_total", "batch", "queue"] == 2
    assert found["headgate_admission_shadow_total", "premium", "refuse"] == 1
    assert found["headgate_preemptions_total", "batch", "requeued"] == 1
    assert found["headgate_corrected_total", "max_tokens"] == 1
    assert found["headgate_prediction_error_seconds_count", "batch"] == 2
    assert found["headgate_prediction_error_seconds_sum", "batch"] == 1.0 + 3.0, "the sign is dropped"


def test_formats() -> None:
    metrics = Metrics("1", 2)
    metrics.series("a", 'm"\n', "batch").done(200, "", 1.0, 1.0, 1.0, 1)
    page, content_type = metrics.render("application/openmetrics-text; version=1.0.0,text/plain;q=0.5")
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert {family.name for family in parse_openmetrics(page.decode())} >= {"headgate_requests", "headgate"}
    kind = "application/openmetrics-text; version="
    for accept in ("*/*", kind + "x", kind + "1.x"):
        assert metrics.render(accept)[1].startswith("text/plain; version=0.0.4")
