"""What is measured of an engine in a second, and when it is slow beside others."""

from math import inf, nan

import pytest

from sidecar.balance.gray import Pace, Pacer, Slow, Slowness
from sidecar.balance.outlier import Suspicion, Why

RULES = Slow()
USUAL = Pace(starts=10, start=0.06, gaps=1000, gap=0.010)
SLOW = USUAL._replace(gap=0.030)
PEERS = [USUAL, USUAL._replace(gap=0.0102, start=0.055), USUAL._replace(gap=0.0098, start=0.065)]


def judged(own: Pace, peers: list[Pace] = PEERS, **rules: float) -> Suspicion | None:
    """One window decides."""
    return Slowness("a", Slow(**(rules | {"slow_windows": 1}))).on_window(own, peers)  # type: ignore[arg-type]


def row(windows: str, rules: Slow = RULES) -> str:
    """`s` a slow window, `f` one as fast as its peers', `-` one with nothing in it; where it fires."""
    slowness = Slowness("a", rules)
    paces = {"s": SLOW, "f": USUAL, "-": Pace()}
    return "".join("!" if slowness.on_window(paces[kind], PEERS) else "." for kind in windows)


# Measuring.


def test_a_start_is_time_for_the_prompts_before_it_and_half_a_step() -> None:
    pacer = Pacer()
    pacer.on_start(1.024, 512.0)
    pacer.on_start(0.1, 488.0)
    pacer.on_start(9.0, 0.0)
    assert pacer.close(0.0) == Pace(3, 0.001, 0, 0.0)
    assert pacer.close(0.0) == Pace()


def test_a_gap_is_the_time_for_one_token() -> None:
    pacer = Pacer()
    pacer.on_gap(0.010, 1, 1.0)
    pacer.on_gap(0.060, 3, 1.1)
    pacer.on_gap(0.5, 1, 1.2)
    pacer.on_gap(0.5, 0, 1.3)
    assert pacer.close(0.0) == Pace(0, 0.0, 3, pytest.approx(0.020))


@pytest.mark.parametrize(
    ("awaited", "at", "counts"),
    [
        ([], 1.0, True),
        ([(1, 0.5)], 1.0, False),  # still being computed
        ([(1, 0.5), (0, 0.9)], 1.0, True),
        ([(1, 0.5), (0, 0.9)], 0.95, False),  # the gap began before that
        ([(2, 0.5), (1, 0.6)], 1.0, False),
        ([(1, 0.1), (0, 0.2), (0, 0.99)], 1.0, True),  # quiet since the first of them
        ([(1, 0.1), (0, 0.2), (1, 0.95)], 1.0, False),
    ],
)
def test_gaps_count_in_which_no_prompt_was_computed(
    awaited: list[tuple[int, float]], at: float, counts: bool
) -> None:
    pacer = Pacer()
    for number, now in awaited:
        pacer.on_awaited(number, now)
    pacer.on_gap(0.0625, 1, at)
    assert pacer.close(0.0).gaps == counts


def test_what_is_awaited_outlasts_a_window() -> None:
    pacer = Pacer()
    pacer.on_awaited(1, 0.5)
    pacer.close(0.0)
    pacer.on_gap(0.01, 1, 1.5)
    assert pacer.close(0.0).gaps == 0


def test_a_large_batch_has_its_longer_steps() -> None:
    pacer = Pacer()
    pacer.on_gap(0.02, 1, 1.0)
    pacer.on_start(1.024, 512)
    assert pacer.close(64.0) == Pace(1, 0.0005, 1, 0.01)


def test_samples_are_bounded_and_from_all_of_the_window() -> None:
    pacer = Pacer()
    for number in range(10_001):
        pacer.on_gap(1.0 + number, 1, 1e6)
    pace = pacer.close(0.0)
    assert pace.gaps == 10_001
    assert pace.gap == pytest.approx(5_000, rel=0.02)
    assert len(pacer._gaps._kept) == 0
    for number in range(300):
        pacer.on_gap(1.0 + number, 1, 1e6)
        assert len(pacer._gaps._kept) < 256
    for number in range(200):
        pacer.on_start(1.0, number)
    pacer.close(0.0)
    pacer.on_gap(1.0, 1, 1e6)
    pacer.on_gap(3.0, 1, 1e6)
    assert pacer.close(0.0) == Pace(0, 0.0, 2, 2.0), "every sample counts again"


# Judging.


def test_a_slow_window_says_by_what() -> None:
    verdict = judged(SLOW)
    threshold, usual = pytest.approx(0.01 * 1.6905, rel=1e-3), pytest.approx(0.01)
    assert verdict == Suspicion("a", Why.SLOW_TOKENS, 0.030, threshold, usual)
    verdict = judged(USUAL._replace(start=0.2))
    assert verdict is not None
    assert (verdict.why, verdict.value) == (Why.SLOW_START, 0.2)


@pytest.mark.parametrize(
    ("gap", "peers", "rules", "slow"),
    [
        # Alike peers: the floor, exp(3.5 x 0.15) = 1.69 times.
        (0.0168, [0.010, 0.010], {}, False),
        (0.0170, [0.010, 0.010], {}, True),
        (0.0050, [0.010, 0.010], {}, False),
        # The ratio, where it asks for more.
        (0.0199, [0.010, 0.010], {"slow_ratio": 2.0}, False),
        (0.0201, [0.010, 0.010], {"slow_ratio": 2.0}, True),
        (0.0151, [0.010, 0.010], {"slow_z": 0.1}, True),
        (0.0149, [0.010, 0.010], {"slow_z": 0.1}, False),
        # Unlike peers: ln 1.5 = 0.405 on each side of the median is a deviation of 0.601, 8.2 times.
        (0.0800, [0.010 / 1.5, 0.010, 0.010 * 1.5], {}, False),
        (0.0830, [0.010 / 1.5, 0.010, 0.010 * 1.5], {}, True),
        # One slow peer does not hide another, half of them do.
        (0.0300, [0.010, 0.010, 0.010, 0.030], {}, True),
        (0.0300, [0.010, 0.010, 0.030, 0.030], {}, False),
        # Three engines must report, so two others.
        (0.0300, [0.010], {}, False),
        (0.0300, [], {}, False),
    ],
)
def test_slower_than_its_peers(
    gap: float, peers: list[float], rules: dict[str, float], slow: bool
) -> None:
    others = [Pace(gaps=100, gap=peer) for peer in peers]
    assert (judged(Pace(gaps=100, gap=gap), others, **rules) is not None) is slow


@pytest.mark.parametrize(
    ("own", "slow"),
    [
        (Pace(gaps=20, gap=1.0), True),
        (Pace(gaps=19, gap=1.0), False),
        (Pace(starts=2, start=1.0), True),
        (Pace(starts=1, start=1.0), False),
        (Pace(starts=2, start=1.0, gaps=1000, gap=0.01), True),
        (Pace(starts=1, start=1.0, gaps=19, gap=1.0), False),
    ],
)
def test_either_measure_is_enough_if_it_has_enough(own: Pace, slow: bool) -> None:
    assert (judged(own) is not None) is slow


@pytest.mark.parametrize(
    "odd",
    [
        Pace(gaps=19, gap=0.03, starts=1, start=0.2),
        Pace(gaps=1000, gap=nan, starts=10, start=nan),
        Pace(gaps=1000, gap=inf, starts=10, start=inf),
        Pace(gaps=1000, gap=0.0, starts=10, start=0.0),
        Pace(gaps=1000, gap=-1.0, starts=10, start=-1.0),
    ],
)
def test_peers_with_too_little_or_with_nonsense_are_not_compared_with(odd: Pace) -> None:
    assert judged(SLOW, [*PEERS, odd, odd, odd, odd]) == judged(SLOW)
    assert judged(SLOW, [USUAL, odd]) is None


@pytest.mark.parametrize(
    ("windows", "fires"),
    [
        ("ss", ".."),
        ("sss", "..!"),
        ("ssfs", "...."),
        ("ssfsss", ".....!"),
        ("ssssss", "..!..!"),
        ("s-s-s", "....!"),
        ("ss--s", "....!"),
        ("ss---s", "......"),
        ("ss---sss", ".......!"),
        ("ss--f--s", "........"),
        ("s--s--s", "......!"),
    ],
)
def test_windows_in_a_row(windows: str, fires: str) -> None:
    assert row(windows) == fires


def test_one_window_may_be_the_row() -> None:
    assert row("sfs", Slow(slow_windows=1)) == "!.!"


def test_both_measures_make_one_row() -> None:
    slowness = Slowness("a", RULES)
    late = Pace(starts=5, start=0.3)
    assert [slowness.on_window(own, PEERS) is None for own in (SLOW, late, SLOW)] == [True, True, False]


def test_what_was_before_it_was_away_is_forgotten() -> None:
    slowness = Slowness("a", RULES)
    for _ in range(2):
        slowness.on_window(SLOW, PEERS)
    slowness.forget()
    assert slowness.on_window(SLOW, PEERS) is None


def test_a_huge_z_is_a_number_all_the_same() -> None:
    assert judged(SLOW, slow_z=1000.0) is None
