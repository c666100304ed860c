"""Sets of engines for the tests of outlier detection."""

from sidecar.balance.ejection import Terms
from sidecar.balance.outcome import Outcome
from sidecar.balance.outlier import Outliers, Rules

ENVOY = Terms(probes=0)
# Limits which nothing reaches, for tests of rates.
NOT_IN_A_ROW = {
    "consecutive_5xx": 10**9,
    "consecutive_gateway_failure": 10**9,
    "consecutive_local_origin_failure": 10**9,
}


def outliers(
    hosts: int = 10, *, chance: float = 0.0, terms: Terms = ENVOY, decide: object = None, **rules: float
) -> Outliers:
    """Engines `0`, `1`, …; without jitter, and any number of them may be out, unless `rules` say so."""
    values = {"max_ejection_time_jitter_s": 0.0, "local_max_ejection_percent": 100} | rules
    found = Outliers(Rules(**values), terms, lambda: chance, decide)  # type: ignore[arg-type]
    found.set_members([str(number) for number in range(hosts)])
    return found


def put(found: Outliers, statuses: str | list[int], name: str = "0", now: float = 0.0) -> None:
    codes = [int(word) for word in statuses.split()] if isinstance(statuses, str) else statuses
    for code in codes:
        found.put(name, Outcome(code), now)


def rates(found: Outliers, successes: list[int], volume: int = 100) -> None:
    for number, good in enumerate(successes):
        put(found, [200] * good + [500] * (volume - good), str(number))


def out(found: Outliers) -> list[str]:
    return [host.name for host in found.hosts.values() if host.ejection.is_out]


def counts(found: Outliers) -> dict[str, int]:
    return {why.value: number for why, number in found.detected.items() if number}
