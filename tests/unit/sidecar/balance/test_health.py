"""From checks to a verdict: `+` serves, `-` says that it does not, `x` cannot be reached."""

import pytest

from sidecar.balance.health import Check, HealthState

SIGNS = {"+": Check.SERVING, "-": Check.NOT_SERVING, "x": Check.UNREACHABLE}


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
    state = HealthState()
    seen = [(state.on_check(SIGNS[sign]), state.healthy) for sign in checks]
    assert "".join(str(int(well)) for _, well in seen) == healthy
    assert "".join(str(int(news)) for news, _ in seen) == changed


def test_nothing_is_healthy_before_its_first_check() -> None:
    assert not HealthState().healthy
