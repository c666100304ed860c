"""Literal samples of the fake GPU's scheduler: what a step costs, whom it serves, whom it evicts."""

from __future__ import annotations

import pytest

from model_pod.fake_scheduler import Costs, Scheduler, Sequence


def scheduler(*, max_running: int = 8, by_priority: bool = False, **costs: float) -> Scheduler:
    return Scheduler(Costs(**costs), max_running, by_priority=by_priority)


def names(sequences: list[Sequence]) -> list[object]:
    return [sequence.owner for sequence in sequences]


def test_nothing_to_do_is_no_step():
    assert scheduler().step() is None


def test_prefill_step_costs_its_prompt_tokens():
    engine = scheduler()
    engine.add(Sequence(100, 10, owner="a"))
    step = engine.step()
    # 8 ms + 0.06 ms * 1 + 5 ns * 101 + 0.05 ms * 100
    assert step.seconds == pytest.approx(0.013060505)
    assert names(step.emitted) == ["a"]
    assert names(step.admitted) == ["a"]


def test_decode_step_costs_its_sequences_and_their_kv():
    engine = scheduler()
    for name in "ab":
        engine.add(Sequence(100, 10, owner=name))
    engine.step()
    step = engine.step()
    # 8 ms + 0.06 ms * 2 + 5 ns * 204
    assert step.seconds == pytest.approx(0.00812102)
    assert names(step.emitted) == ["a", "b"]
    assert step.admitted == []


def test_a_long_prompt_is_computed_in_chunks_beside_decoding():
    engine = scheduler(prefill_chunk=512)
    engine.add(Sequence(10, 99, owner="short"))
    engine.step()
    engine.add(Sequence(1200, 99, owner="long"))
    emitted = [names(engine.step().emitted) for _ in range(4)]
    assert emitted == [["short"], ["short"], ["short", "long"], ["short", "long"]]


def test_a_chunk_is_shared_in_order_of_admission():
    engine = scheduler(prefill_chunk=100)
    first, second = Sequence(150, 9), Sequence(150, 9)
    engine.add(first)
    engine.add(second)
    engine.step()
    assert (first.to_prefill, second.to_prefill, second.running) == (50, 150, False)
    engine.step()
    assert (first.to_prefill, second.to_prefill, second.running) == (0, 100, True)


def test_no_more_run_than_there_are_seats():
    engine = scheduler(max_running=1)
    engine.add(Sequence(1, 2, owner="a"))
    engine.add(Sequence(1, 2, owner="b"))
    assert [names(engine.step().emitted) for _ in range(4)] == [["a"], ["a"], ["b"], ["b"]]
    assert engine.step() is None


def test_a_prompt_waits_until_the_kv_cache_has_room_for_all_of_it():
    engine = scheduler(kv_tokens=100)
    engine.add(Sequence(60, 3, owner="a"))
    engine.add(Sequence(60, 3, owner="b"))
    assert [names(engine.step().emitted) for _ in range(3)] == [["a"]] * 3
    assert engine.kv_used == 0
    assert names(engine.step().emitted) == ["b"]


def test_the_latest_is_preempted_and_computes_everything_again():
    engine = scheduler(kv_tokens=24, prefill_chunk=100)
    first, second = Sequence(10, 12, owner="first"), Sequence(10, 4, owner="second")
    engine.add(first)
    engine.add(second)
    engine.step()  # 11 + 11 held
    engine.step()  # 12 + 12: full
    step = engine.step()
    assert names(step.emitted) == ["first"]
    assert (engine.preemptions, second.running, second.to_prefill, engine.kv_used) == (1, False, 12, 13)
    served = [names(step.emitted) for step in iter(engine.step, None)]
    assert served == [["first"]] * 9 + [["second"]] * 2
    assert engine.kv_used == 0


def test_a_preempted_one_comes_before_newer_arrivals():
    engine = scheduler(kv_tokens=24, prefill_chunk=100)
    for name in ("a", "b"):
        engine.add(Sequence(10, 12, owner=name))
    engine.step()
    engine.step()
    engine.add(Sequence(1, 1, owner="new"))
    engine.step()  # evicts b
    assert names(engine.waiting) == ["new", "b"]  # the next one last


def test_lower_priority_values_run_first_where_that_is_the_policy():
    for by_priority, order in ((True, ["now", "soon", "later"]), (False, ["later", "now", "soon"])):
        engine = scheduler(max_running=1, by_priority=by_priority)
        for name, priority in (("later", 5), ("now", -1), ("soon", 0)):
            engine.add(Sequence(1, 1, priority, name))
        assert [names(step.emitted)[0] for step in iter(engine.step, None)] == order


def test_the_least_urgent_is_preempted_under_priority_scheduling():
    engine = scheduler(kv_tokens=24, prefill_chunk=100, by_priority=True)
    batch, urgent = Sequence(10, 12, 9, "batch"), Sequence(10, 12, 0, "urgent")
    engine.add(batch)
    engine.step()
    engine.add(urgent)
    engine.step()  # 12 + 11 held
    assert names(engine.step().emitted) == ["urgent"]
    assert (batch.running, batch.to_prefill) == (False, 12)


def test_a_step_that_evicts_admits_nobody():
    engine = scheduler(kv_tokens=24, prefill_chunk=100, max_running=2, by_priority=True)
    for name in "ab":
        engine.add(Sequence(10, 12, 5, name))
    engine.step()
    engine.step()
    engine.add(Sequence(1, 2, 0, "urgent"))  # waits for a seat
    assert [names(engine.step().admitted) for _ in range(2)] == [[], ["urgent"]]


def test_a_cancelled_sequence_frees_its_seat_and_its_kv_at_once():
    engine = scheduler(max_running=1)
    running, waiting = Sequence(50, 9), Sequence(50, 9)
    engine.add(running)
    engine.add(waiting)
    engine.step()
    engine.cancel(running)
    assert (engine.kv_used, engine.running) == (0, [])
    engine.cancel(waiting)
    engine.cancel(running)
    assert engine.step() is None


def test_the_last_token_frees_everything():
    engine = scheduler()
    engine.add(Sequence(5, 2))
    engine.step()
    assert engine.kv_used == 6
    engine.step()
    assert (engine.kv_used, engine.running, engine.step()) == (0, [], None)
