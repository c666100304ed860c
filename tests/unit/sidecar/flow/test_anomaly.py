"""Who is abnormal: one that asks far more than it used to and is refused most; nobody else."""

from sidecar.flow.anomaly import Anomaly

WINDOW_S = 0.5


def play(anomaly: Anomaly, seconds: float, *, refused: tuple[str, ...] = (), **work: float) -> list[str]:
    """Work a window by tenant, all of it refused to some; who became abnormal, in order."""
    found = []
    for _ in range(int(seconds / WINDOW_S)):
        for tenant, amount in work.items():
            if amount:
                anomaly.on_arrived(tenant, amount)
                if tenant in refused:
                    anomaly.on_refused(tenant, amount)
        found += sorted(anomaly.close(WINDOW_S))
    return found


def test_a_client_gone_wild_is_noticed_once_and_within_seconds() -> None:
    anomaly = Anomaly()
    play(anomaly, 60.0, a=10.0, b=10.0, c=10.0)
    assert play(anomaly, 10.0, refused=("a",), a=300.0, b=10.0, c=10.0) == ["a"]
    assert set(anomaly.held) == {"a"}
    assert anomaly.found == 1


def test_it_is_let_go_when_it_is_as_before() -> None:
    anomaly = Anomaly()
    play(anomaly, 60.0, a=10.0, b=10.0)
    play(anomaly, 10.0, refused=("a",), a=300.0, b=10.0)
    play(anomaly, 30.0, a=10.0, b=10.0)
    assert anomaly.held == frozenset()


def test_who_has_always_asked_for_most_is_not_abnormal_for_being_refused() -> None:
    anomaly = Anomaly()
    play(anomaly, 60.0, a=100.0, b=10.0)
    assert play(anomaly, 30.0, refused=("a",), a=200.0, b=20.0) == []


def test_who_asks_for_more_and_gets_it_is_not_abnormal() -> None:
    anomaly = Anomaly()
    play(anomaly, 60.0, a=10.0, b=90.0)
    assert play(anomaly, 30.0, a=900.0, b=90.0) == []


def test_who_is_refused_little_of_what_is_refused_is_not_abnormal() -> None:
    anomaly = Anomaly()
    play(anomaly, 60.0, a=10.0, b=10.0, c=100.0)
    found = play(anomaly, 10.0, refused=("a", "c"), a=60.0, b=10.0, c=100.0)
    assert "c" not in found
    assert "b" not in found


def test_a_crowd_that_grows_together_is_not_abnormal() -> None:
    anomaly = Anomaly()
    play(anomaly, 60.0, a=10.0, b=10.0, c=10.0)
    assert play(anomaly, 30.0, refused=("a", "b", "c"), a=100.0, b=100.0, c=100.0) == []


def test_the_only_tenant_there_is_is_not_abnormal() -> None:
    anomaly = Anomaly()
    play(anomaly, 60.0, a=10.0)
    assert play(anomaly, 30.0, refused=("a",), a=1000.0) == []


def test_nobody_is_held_while_nothing_arrives() -> None:
    anomaly = Anomaly()
    play(anomaly, 60.0, a=10.0, b=10.0)
    play(anomaly, 10.0, refused=("a",), a=300.0, b=10.0)
    play(anomaly, 0.5)
    assert anomaly.held == frozenset()


def test_who_has_not_been_seen_for_long_is_forgotten() -> None:
    anomaly = Anomaly()
    for n in range(3000):
        anomaly.on_arrived(f"t{n}", 1.0)
    assert len(anomaly._parts) <= 1024, "and no more are known than there is room for"
    play(anomaly, 3600.0, a=1.0, t0=1.0)
    assert anomaly._parts.keys() == {"a", "t0"}
