"""What callers ask for and do not get as they wrote it is counted, and so are classes of other names."""

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.unit.sidecar.stages.asker import Desk


def corrected(rig: Desk) -> dict[str, float]:
    return {
        sample.labels["what"]: sample.value
        for family in parse(rig.metrics.render("")[0].decode())
        for sample in family.samples
        if sample.name == "headgate_corrected_total"
    }


@pytest.mark.parametrize(
    ("fields", "body", "what"),
    [
        (["x-priority: premium"], b"{}", "class_above_own"),
        ([], b'{"service_tier": "priority"}', "class_above_own"),
        (["x-priority: urgent"], b"{}", "class_unknown"),
        (["x-request-timeout-ms: -5"], b"{}", "deadline"),
        (["x-request-timeout-ms: soon"], b"{}", "deadline"),
        (["x-request-timeout-ms: 1e300"], b"{}", "deadline"),
        (["grpc-timeout: 99999999H"], b"{}", "deadline"),
        (["x-stainless-read-timeout: nan"], b"{}", "deadline"),
        ([], b'{"max_tokens": -1}', "max_tokens"),
        ([], b'{"max_tokens": 99999999999}', "max_tokens"),
        ([], b'{"max_completion_tokens": "many"}', "max_tokens"),
    ],
)
def test_what_makes_no_sense_is_counted_and_the_request_goes_on(
    fields: list[str], body: bytes, what: str
) -> None:
    rig = Desk()
    x = rig.ask(*fields, body=body)
    assert (corrected(rig), rig.reason(x), x.cls) == ({what: 1}, "", "standard")


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ([], b"{}"),
        (["x-priority: batch"], b"{}"),
        (["x-priority: standard"], b'{"max_tokens": 7, "service_tier": "flex"}'),
        ([], b'{"service_tier": "default"}'),
        (["x-request-timeout-ms: 5000", "x-stainless-read-timeout: 600"], b"{}"),
    ],
)
def test_what_is_as_it_should_be_is_not(fields: list[str], body: bytes) -> None:
    rig = Desk()
    rig.ask(*fields, body=body)
    assert corrected(rig) == {}


@pytest.mark.parametrize(
    ("said", "body", "cls"),
    [
        ("", b'{"service_tier": "priority"}', "gold"),
        ("", b'{"service_tier": "flex"}', "lead"),
        ("silver", b'{"service_tier": "flex"}', "silver"),
        ("LEAD", b"{}", "lead"),
        ("standard", b"{}", "gold"),
        ("", b"{}", "gold"),
    ],
)
def test_tiers_are_the_first_and_the_last_class_by_any_name(said: str, body: bytes, cls: str) -> None:
    rig = Desk("classes: {gold: {}, silver: {}, lead: {}}\ntenants: [{name: anonymous, class: gold}]")
    assert rig.ask(f"x-priority: {said}", body=body).cls == cls
