"""The record's shape on the wire."""

import msgspec

from sidecar.telemetry.record import Record


def test_it_is_written_with_the_words_of_the_glossary() -> None:
    record = Record(
        arrived=1_700_000_000_000,
        request_id="r",
        client="10.0.0.1",
        method="POST",
        path="/v1/completions",
        tenant="acme",
        cls="batch",
        model="m",
        stream=True,
        status=503,
        reason="queue_full",
        endpoint="",
        attempts=0,
        tried="",
        repeat=2,
        invited=False,
        duration_ms=1.5,
        position=4,
        predicted_ms=900.0,
        queue_ms=0.0,
        upstream_ms=0.0,
        prompt_tokens=7,
        answer_tokens=0,
        bytes_in=10,
        bytes_out=0,
    )
    line = msgspec.json.decode(msgspec.json.encode(record))
    assert line["class"] == "batch"
    assert (line["reason"], line["repeat"]) == ("queue_full", 2)
    assert set(line) == {f.encode_name for f in msgspec.structs.fields(Record)}
