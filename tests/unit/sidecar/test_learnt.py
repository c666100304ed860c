"""What survives a restart, and what is refused whole."""

import json

import pytest

from sidecar import learnt
from sidecar.flow.admission import Admission, Terms
from sidecar.flow.controller import Controller
from sidecar.flow.estimates import Estimates


def fresh(capacity: float = 100_000.0) -> tuple[Admission, Estimates]:
    controller = Controller(capacity, known=True)
    terms = [Terms(share=0.5), Terms(share=0.5)]
    return Admission(terms, controller, now=0.0, seats=8, max_queue=8), Estimates()


def taught() -> tuple[Admission, Estimates]:
    admission, estimates = fresh()
    admission.controller.fraction = 0.5
    admission.meter.prompt_rate = 12_345.0
    admission.meter.work_rate = 23_456.0
    admission.meter.itl_s = 0.017
    for _ in range(50):
        estimates.learn("acme", "llama", 900, size=3000, prompt=1000, cached=500)
    return admission, estimates


def test_a_restart_goes_on_where_the_last_life_ended() -> None:
    old, known = taught()
    new, estimates = fresh()
    learnt.load(learnt.dump(old, known), new, estimates)
    assert new.controller.limit == old.controller.limit == 50_000
    assert (new.meter.prompt_rate, new.meter.work_rate, new.meter.itl_s) == (12_345.0, 23_456.0, 0.017)
    ask = ("acme", "llama", 3000, None)
    assert estimates.expect(*ask) == pytest.approx(known.expect(*ask), rel=0.01)
    assert estimates.expect(*ask) != Estimates().expect(*ask)


def test_the_limit_is_remembered_in_tokens_for_another_cache() -> None:
    old, known = taught()
    new, estimates = fresh(80_000.0)
    learnt.load(learnt.dump(old, known), new, estimates)
    assert new.controller.limit == 50_000


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"prompt_rate": 0},
        {"work_rate": -5.0},
        {"prompt_rate": "fast"},
        {"itl_s": 0},
        {"fraction": 1e9},
        {"estimates": [{"tenant": "a"}]},
        {"estimates": [{"tenant": "a", "model": "b", "n": "x", "answer": 1, "cached": 0, "bytes": 4}]},
        {"estimates": None},
    ],
)
def test_what_makes_no_sense_is_refused_whole(change: dict[str, object]) -> None:
    content = json.loads(learnt.dump(*taught())) | change
    new, estimates = fresh()
    before = learnt.dump(new, estimates)
    with pytest.raises(ValueError, match=r"."):
        learnt.load(json.dumps(content).encode(), new, estimates)
    assert learnt.dump(new, estimates) == before


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 10_000, b"{}"])
def test_what_is_no_state_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        learnt.load(content, *fresh())
