"""The real clock and dice, as far as they can be told from false ones."""

import time

from sidecar.clock import SystemClock
from tests.harness.clock import FakeClock


def test_now_is_monotonic_and_wall_is_not() -> None:
    clock = SystemClock()
    before = time.monotonic(), time.time()
    now, wall = clock.now(), clock.wall()
    assert before[0] <= now <= time.monotonic()
    assert abs(wall - before[1]) < 3600


def test_jitter_stretches_by_up_to_its_share() -> None:
    drawn = [SystemClock().jitter(10.0, 0.2) for _ in range(1000)]
    assert all(10.0 <= value <= 12.0 for value in drawn)
    assert max(drawn) > 11.0 > min(drawn)
    assert SystemClock().jitter(10.0, 0.0) == 10.0


def test_tokens_are_32_hex_digits_and_differ() -> None:
    tokens = {SystemClock().token() for _ in range(1000)}
    assert len(tokens) == 1000
    assert all(len(token) == 32 and int(token, 16) >= 0 for token in tokens)


def test_the_fake_one_offers_the_same() -> None:
    def public(clock: object) -> set[str]:
        return {name for name in dir(clock) if name[0] != "_"}

    assert public(FakeClock()) == public(SystemClock()) | {"advance"}
