"""From checks to a verdict: `+` serves, `-` says that it does not, `x` cannot be reached."""

import pytest

from sidecar.balance.health import Backoff, Check, HealthState, Rules

SIGNS = {"+": Check.SERVING, "-": Check.NOT_SERVING, "x": Check.UNREACHABLE}
USUAL = Rules()


@pytest.mark.parametrize(
    ("checks", "healthy", "changed"),
    [
        ("+", "1", "1"),
        ("x", "0", "1"),
        ("-", "0", "1"),
        ("++", "11", "10"),
        ("+x", "11", "10"),
        ("+xx", "110", "101"),
        ("+xxx+", "11001", "10101"),
        ("+x+x+", "11111", "10000"),
        ("+-", "10", "11"),
        ("+x-+", "1101", "1011"),
        ("x+", "01", "11"),
        ("xx+x", "0011", "1010"),
        ("--", "00", "10"),
        ("-x+", "001", "101"),
    ],
)
def test_verdicts(checks: str, healthy: str, changed: str) -> None:
    state = HealthState(USUAL)
    seen = [(state.on_check(SIGNS[sign]), state.healthy) for sign in checks]
    assert "".join(str(int(well)) for _, well in seen) == healthy
    assert "".join(str(int(news)) for news, _ in seen) == changed


@pytest.mark.parametrize(
    ("unhealthy", "healthy", "checks", "verdicts"),
    [
        # The first result decides, whatever the thresholds; a first failure takes that away from successes.
        (3, 3, "+", "1"),
        (3, 3, "x", "0"),
        (3, 3, "x+++", "0001"),
        (3, 3, "-+++", "0001"),
        # What was suffered is counted, in a row.
        (3, 1, "+xxx", "1110"),
        (3, 1, "+xx+xx", "111111"),
        (1, 1, "+x", "10"),
        # What was said is not.
        (3, 1, "+-", "10"),
        (3, 1, "+x-", "110"),
        # A failure forgets successes.
        (1, 3, "-++x+++", "0000001"),
        (1, 3, "-++-+++", "0000001"),
        # Counting begins anew after each turn.
        (2, 2, "+xx++xx++", "110011001"),
        (3, 2, "+x-++xxx", "11001110"),
        # More failures than the threshold count for nothing.
        (2, 1, "+xxxxx+x", "11000011"),
    ],
)
def test_thresholds(unhealthy: int, healthy: int, checks: str, verdicts: str) -> None:
    state = HealthState(Rules(unhealthy, healthy))
    seen = []
    for sign in checks:
        state.on_check(SIGNS[sign])
        seen.append(str(int(state.healthy)))
    assert "".join(seen) == verdicts


@pytest.mark.parametrize("checks", ["+", "x", "-"])
def test_the_first_result_decides_also_over_what_was_before(checks: str) -> None:
    for before in (True, False):
        state = HealthState(Rules(5, 5), before)
        assert state.healthy == before
        assert state.on_check(SIGNS[checks])
        assert state.healthy == (checks == "+")


def test_nothing_is_healthy_before_its_first_check() -> None:
    assert not HealthState(USUAL).healthy


@pytest.mark.parametrize(
    ("checks", "pauses"),
    [
        # i: interval, u: unhealthy interval, x: failures are being counted, h: successes are.
        ("+++", "iii"),
        ("xxx", "uuu"),
        ("+xxx", "ixxu"),
        ("+x+xx", "ixixx"),
        ("+-", "iu"),
        ("+-+++", "iuhhi"),
        ("-+x+++", "uhuhhi"),
        ("+xxx+++xx", "ixxuhhixx"),
    ],
)
def test_pauses(checks: str, pauses: str) -> None:
    lengths = {"i": 10.0, "u": 3.0, "x": 2.0, "h": 1.0}
    state = HealthState(Rules(3, 3, *lengths.values()))
    seen = []
    for sign in checks:
        state.on_check(SIGNS[sign])
        seen.append(state.pause_s)
    assert seen == [lengths[pause] for pause in pauses]


def test_no_pause_is_shorter_than_a_millisecond() -> None:
    state = HealthState(Rules(2, 2, *[0.0] * 4))
    for sign in "+xx+":  # one of each kind
        state.on_check(SIGNS[sign])
        assert state.pause_s == 0.001


def test_calls_that_end_are_made_less_and_less_often_until_one_is_of_use() -> None:
    backoff = Backoff(1.0, 5.0)
    assert [round(backoff.pause_s(), 3) for _ in range(6)] == [1.0, 1.6, 2.56, 4.096, 5.0, 5.0]
    backoff.reset()
    assert [backoff.pause_s() for _ in range(2)] == [1.0, 1.6]
