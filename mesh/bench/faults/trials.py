"""What `headgate bench faults` breaks, under which load, and the bounds that are judged. Pure.

Every engine has `SEATS` requests' worth of work and answers of `ANSWER` tokens, slowly: tokens cost the
machine its CPU time, and it must not be what limits. The load is `LOAD` of what all engines can do.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from mesh.bench.faults import judge
from mesh.bench.faults.evidence import Evidence
from mesh.bench.workload import BATCH, PREMIUM, STANDARD, Lengths, Traffic, stock

LOAD: Final = 0.6
HEALTHY_S: Final = 10.0  # before anything breaks
ENDING_S: Final = 8.0  # after the last request: twice as long as an answer takes
SEATS: Final = 12
ANSWER: Final = 100
_STEP_MS: Final = 40.0
_SEQUENCE_MS: Final = 0.06
# Few tokens in a cache: what is known of an engine's capacity, it says itself.
ENGINE: Final = (
    *("--step-ms", f"{_STEP_MS}", "--sequence-ms", f"{_SEQUENCE_MS}", "--max-running", f"{SEATS}"),
    *("--kv-tokens", "2400", "--output-median", "75", "--output-max", "800"),
)
PROMPT: Final = Lengths(median=64, sigma=0.4, most=200)
# Half is premium: of its p99 there must be something.
_SHARES: Final = {PREMIUM: 0.5, STANDARD: 0.3, BATCH: 0.2}
_PATIENCE_S: Final = 15.0

Act = Literal["kill", "stop", "restart", "fault"]
Figure = Callable[[Evidence], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Break:
    """One thing that is done, to the process `part` of each victim or to the one of this name."""

    act: Act
    part: Literal["pod", "sidecar", "valkey"] = "pod"
    fault: Mapping[str, Any] = field(default_factory=dict)  # of the engine, for `fault`
    before_s: float = 0.0  # so long before the time that counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What is promised. `most` or `least` is a number, or says it of a run."""

    says: str
    figure: Figure
    most: float | Figure | None = None
    least: float | None = None
    unit: Literal["s", "%", "x", ""] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One fault under one load."""

    name: str
    says: str
    breaks: tuple[Break, ...]
    bounds: tuple[Bound, ...]
    share: float = 0.0  # of all pods are victims; at least one when anything is broken
    lasts_s: float = 25.0
    needs_sidecars: bool = False
    counts_at: Literal["engine", "gateway"] = "engine"  # whose requests are a pod's
    traffic: Callable[[int], list[Traffic]] = lambda pods: traffic(pods)
    engine: tuple[str, ...] = ENGINE
    admission: Mapping[str, Any] = field(default_factory=dict)
    seats: int = SEATS

    def victims(self, pods: int) -> frozenset[int]:
        """Whom it breaks."""
        count = max(1, round(self.share * pods)) if self.breaks else 0
        return frozenset(range(min(pods, count)))

    @property
    def has_faults(self) -> bool:
        return any(each.act == "fault" for each in self.breaks)

    @property
    def is_compared(self) -> bool:
        """Whether the healthy system has to be measured, too."""
        return any(bound.figure is judge.ttft_ratio for bound in self.bounds)


def traffic(pods: int, load: float = LOAD, **changes: Any) -> list[Traffic]:
    """Callers who take this share of what so many engines can do, and ask once."""
    step_s = (_STEP_MS + _SEQUENCE_MS * SEATS) / 1000
    rate = load * pods * SEATS / (ANSWER * step_s)
    return [_callers(cls, rate * share, **changes) for cls, share in _SHARES.items()]


def _callers(cls: str, rate: float, **changes: Any) -> Traffic:
    usual: dict[str, Any] = {"prompt": PROMPT, "answer": ANSWER, "patience_s": _PATIENCE_S, "retries": 0}
    return stock(cls, rate, key=f"key-of-{cls}", **(usual | changes))


def _crowd(pods: int) -> list[Traffic]:
    # 125 streams at each pod: answers of 8 s.
    rate = 125 * pods / (_CROWD_ANSWER * _CROWD_STEP_MS / 1000)
    return [_callers(STANDARD, rate, answer=_CROWD_ANSWER, prompt=Lengths(32, 0.0, 32))]


_CROWD_ANSWER: Final = 16
_CROWD_STEP_MS: Final = 500.0
_CROWD_ENGINE: Final = ("--step-ms", f"{_CROWD_STEP_MS}", "--max-running", "512")

NO_FAILURES: Final = Bound(says="lost without a first token", figure=judge.lost, most=0)
_NO_FALSE_EJECTIONS: Final = Bound(says="false ejections", figure=judge.falsely_ejected, most=0)


def _out_within(seconds: float) -> Bound:
    return Bound(says="out after", figure=judge.out_after_s, most=seconds, unit="s")


def _engine(name: str, says: str, *breaks: Break, within_s: float) -> Trial:
    bounds = (NO_FAILURES, _out_within(within_s), _NO_FALSE_EJECTIONS)
    return Trial(name=name, says=says, breaks=breaks, bounds=bounds)


def _fault(**fault: Any) -> Break:
    return Break(act="fault", fault=fault)


_KILL: Final = Break(act="kill")

ALL: Final = {
    each.name: each
    for each in (
        _engine("killed", "an engine is killed", _KILL, within_s=1),
        _engine("stopped", "an engine hangs, and its health is silent", Break(act="stop"), within_s=6),
        _engine(
            "hung", "an engine hangs, and says that it is well", _fault(kind="hang", health="ok"), within_s=6
        ),
        Trial(
            name="slow",
            says="an engine is three times as slow",
            breaks=(_fault(kind="slow", factor=3),),
            bounds=(
                Bound(says="ejected after", figure=judge.ejected_after_s, most=5, unit="s"),
                Bound(says="premium p99, of healthy", figure=judge.ttft_ratio, most=1.3, unit="x"),
                NO_FAILURES,
                _NO_FALSE_EJECTIONS,
            ),
            lasts_s=45,
        ),
        Trial(
            name="errors",
            says="60 % of the engines answer 500",
            breaks=(_fault(kind="status", status=500, rate=1.0),),
            share=0.6,
            bounds=(
                Bound(says="ejected at once", figure=judge.most_ejected, most=lambda run: run.cap),
                Bound(says="ejections of one pod", figure=judge.most_ejections, most=1),
                Bound(says="use of the others", figure=judge.busy, least=0.9, unit="%"),
                _NO_FALSE_EJECTIONS,
            ),
        ),
        Trial(
            name="flaps",
            says="an engine refuses for 5 s, works for 5 s, and so on",
            breaks=(_fault(kind="flap", up_s=5, down_s=5, fault={"kind": "refuse"}),),
            bounds=(
                Bound(says="success", figure=judge.success, least=0.999, unit="%"),
                Bound(says="returns of its load", figure=judge.swings, most=1),
            ),
            lasts_s=40,
        ),
        Trial(
            name="storm",
            says="every engine answers 500",
            breaks=(_fault(kind="status", status=500, rate=1.0),),
            share=1.0,
            bounds=(Bound(says="tries of each", figure=judge.attempts, most=1.1, unit="x"),),
            lasts_s=15,
        ),
        Trial(
            name="no-redis",
            says="Redis hangs, and then an engine is killed",
            breaks=(Break(act="stop", part="valkey", before_s=3), _KILL),
            bounds=(NO_FAILURES, _out_within(1), _NO_FALSE_EJECTIONS),
            needs_sidecars=True,
        ),
        Trial(
            name="sidecar",
            says="a sidecar is killed",
            breaks=(Break(act="kill", part="sidecar"),),
            bounds=(
                Bound(says="lost of other pods", figure=judge.lost_elsewhere, most=0),
                Bound(says="lost who asked 1 s later", figure=lambda run: judge.lost_later(run, 1), most=0),
                _out_within(1),
            ),
            needs_sidecars=True,
            counts_at="gateway",
        ),
        Trial(
            name="rolling",
            says="all sidecars are restarted, one after the other",
            breaks=(Break(act="restart", part="sidecar"),),
            bounds=(
                Bound(says="streams at the start", figure=judge.streams, least=900),
                Bound(says="streams cut", figure=judge.broken, most=0),
                Bound(says="other failures", figure=judge.failed, most=0),
                Bound(says="refused", figure=judge.refused, most=0),
            ),
            share=1.0,
            lasts_s=100,
            needs_sidecars=True,
            traffic=_crowd,
            engine=_CROWD_ENGINE,
            # 500 ms between tokens is no objective of anybody.
            admission={"mode": "off"},
            seats=512,
        ),
        Trial(
            name="healthy",
            says="nothing is broken; what is asked is heavy-tailed",
            breaks=(),
            bounds=(_NO_FALSE_EJECTIONS, NO_FAILURES),
            lasts_s=600,
            traffic=lambda pods: traffic(pods, prompt=Lengths(64, 1.0, 1000), answer=None),
        ),
    )
}
# The last takes ten minutes.
DEFAULT: Final = tuple(name for name in ALL if name != "healthy")
