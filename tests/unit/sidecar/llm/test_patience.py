"""The words in which callers say how long they wait, and the ones that say nothing."""

import pytest

from sidecar.llm.patience import LONGEST_S, elapsed_s, patience_s

MS, SDK, GRPC = b"x-request-timeout-ms", b"x-stainless-read-timeout", b"grpc-timeout"


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({MS: b"1500"}, 1.5),
        ({MS: b"0.5"}, 0.0005),
        ({SDK: b"600"}, 600.0),
        ({SDK: b"0.25"}, 0.25),
        ({GRPC: b"2H"}, 7200.0),
        ({GRPC: b"3M"}, 180.0),
        ({GRPC: b"4S"}, 4.0),
        ({GRPC: b"5m"}, 0.005),
        ({GRPC: b"6u"}, 6e-6),
        ({GRPC: b"7n"}, 7e-9),
        ({GRPC: b"99999999m"}, 86_400.0),
        ({MS: b"1e300"}, None),
        ({MS: b"999999999999"}, LONGEST_S),
        ({SDK: b"31536000"}, LONGEST_S),
    ],
)
def test_each_word(fields: dict[bytes, bytes], seconds: float | None) -> None:
    first_byte_s, last_byte_s = patience_s(fields)
    expected = None if seconds is None else pytest.approx(seconds)
    assert first_byte_s == expected
    assert last_byte_s == (None if SDK in fields else expected), "a read time-out is for the next byte alone"


def test_the_shortest_counts() -> None:
    said = {MS: b"3000", SDK: b"2", GRPC: b"4S"}
    assert patience_s(said) == (2.0, 3.0)
    assert patience_s(said | {GRPC: b"1S"}) == (1.0, 1.0)
    assert patience_s(said | {MS: b"500"}) == (0.5, 0.5)
    assert patience_s(said | {SDK: b"3.5"}) == (3.0, 3.0)


def test_nonsense_in_one_word_does_not_hide_another() -> None:
    assert patience_s({MS: b"soon", SDK: b"2", GRPC: b"never"}) == (2.0, None)
    assert patience_s({MS: b"1500", SDK: b"never", GRPC: b"soon"}) == (1.5, 1.5)


@pytest.mark.parametrize("value", b"|0|-1|nan|inf|-inf|1e999|soon|1 2|\xff".split(b"|"))
def test_what_is_not_a_positive_number_says_nothing(value: bytes) -> None:
    assert patience_s({MS: value, SDK: value, GRPC: value}) == (None, None)


@pytest.mark.parametrize("value", b"S|1|1s|0S|-1S|+1S|1.5S|1 S|123456789S|1SS".split(b"|"))
def test_what_is_not_a_grpc_timeout_says_nothing(value: bytes) -> None:
    assert patience_s({GRPC: value}) == (None, None)


def test_silence() -> None:
    assert patience_s({b"host": b"a"}) == (None, None)


@pytest.mark.parametrize(
    "start",
    [
        b"t=1700000000.25",
        b"1700000000.25",
        b"t=1700000000250",
        b"1700000000250",
        b"t=1700000000250000",
        b"1700000000250000000",
    ],
)
def test_a_start_is_read_in_seconds_and_their_thousandths(start: bytes) -> None:
    assert elapsed_s(start, 1700000001.0) == pytest.approx(0.75, abs=1e-5)


def test_a_start_in_the_future_is_now_and_the_distant_past_is_a_day_ago() -> None:
    assert elapsed_s(b"t=1700000009", 1700000000.0) == 0.0
    assert elapsed_s(b"t=1", 1700000000.0) == LONGEST_S


@pytest.mark.parametrize("start", [b"", b"t=", b"t=nan", b"t=inf", b"t=-5", b"yesterday", b"t=1e999", b"t=0"])
def test_a_start_that_is_no_instant_is_now(start: bytes) -> None:
    assert elapsed_s(start, 1700000000.0) == 0.0
