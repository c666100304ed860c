"""Who `headgate bench faults` compares. Pure.

The first two are ours, the third is what Envoy does for the same engines alone.
"""

from typing import Final

from mesh.bench import envoys
from mesh.bench.contenders import Contender
from sidecar.faults import Outlier

ALL: Final = {
    each.name: each
    for each in (
        Contender(name="headgate", says="Envoy and a sidecar at each engine", admission={}),
        Contender(
            name="sidecars", says="the same without Envoy: callers ask each", admission={}, gateway=False
        ),
        Contender(
            name="envoy", says="Envoy's health checks, outlier detection, retries", envoy=envoys.outlier
        ),
    )
}
DEFAULT: Final = ("headgate", "envoy")


def has_sidecars(contender: Contender) -> bool:
    return contender.admission is not None


def cap(contender: Contender, pods: int) -> int:
    """How many of so many pods it may eject at any time, by its configuration."""
    if not has_sidecars(contender):
        return int(envoys.MOST_EJECTED * pods)
    return max(1 if pods >= 3 else 0, pods * Outlier().max_ejection_percent // 100)
