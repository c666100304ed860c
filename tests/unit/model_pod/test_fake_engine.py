"""The fake engine: what it says, for how long, and that it repeats itself when it should."""

from __future__ import annotations

import asyncio

import pytest

from model_pod.engine import BadPrompt, Overloaded, Params
from model_pod.fake_engine import FakeEngine, Lengths, Pace, load_prose
from model_pod.fake_scheduler import Costs
from tests.harness import clock

FREE = Costs(step_ms=0, sequence_ms=0, kv_token_ns=0, prefill_token_ms=0)


class Reader:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.text = ""
        self.tokens = 0
        self.finish: str | None = None
        self.scheduled = 0
        self.first = asyncio.Event()
        self.over = asyncio.Event()

    def on_scheduled(self, at: float) -> None:
        self.scheduled += 1

    def on_tokens(self, text: str, count: int, finish: str | None) -> None:
        self.text += text
        self.tokens += count
        self.first.set()
        if finish:
            self.finish = finish
            self.over.set()

    def on_error(self, error: Exception) -> None:
        raise error


async def answer(engine: FakeEngine, text: str, **params: object) -> Reader:
    reader = Reader()
    engine.submit(await engine.text_prompt(text), Params(**params), reader)
    await reader.over.wait()
    return reader


def run(scene, **options: object):
    """Run `scene(engine)` for at most ten seconds; its result."""

    async def inside():
        async with asyncio.timeout(10):
            engine = FakeEngine(options.pop("costs", FREE), options.pop("lengths", Lengths()), **options)
            await engine.start()
            try:
                return await scene(engine)
            finally:
                await engine.stop()

    return asyncio.run(inside())


@pytest.mark.parametrize(("text", "tokens"), [("", 1), ("abcde", 2), ("äöü", 2), ("x" * 400, 100)])
def test_prompt_tokens_are_bytes_by_four(text, tokens):
    async def scene(engine):
        return (await engine.text_prompt(text)).tokens, (await engine.chat_prompt([{"content": text}])).tokens

    assert run(scene) == (tokens, tokens)


def test_max_tokens_sets_the_length():
    reader = run(lambda engine: answer(engine, "hi", max_tokens=7))
    assert (reader.tokens, reader.finish, len(reader.text), reader.scheduled) == (7, "length", 28, 1)


def test_an_answer_is_a_stretch_of_the_prose():
    assert run(lambda engine: answer(engine, "hi", max_tokens=9)).text in load_prose() * 2


def test_without_max_tokens_the_length_is_drawn():
    lengths = Lengths(output_median=50, output_sigma=0.0)
    reader = run(lambda engine: answer(engine, "hi"), lengths=lengths)
    assert (reader.tokens, reader.finish) == (50, "stop")


def test_a_drawn_length_ends_with_the_context():
    lengths = Lengths(output_median=50, output_sigma=0.0)
    reader = run(lambda engine: answer(engine, "abcdefgh"), lengths=lengths, max_model_len=12)
    assert (reader.tokens, reader.finish) == (10, "length")


def test_greedy_and_seeded_answers_repeat():
    cold = {"temperature": 0}

    async def scene(engine):
        return [
            (await answer(engine, "hi", max_tokens=5, **params)).text
            for params in (cold, cold, {"seed": 3}, {"seed": 3}, {"seed": 4}, {}, {})
        ]

    greedy, again, three, three_again, four, sampled, sampled_again = run(scene)
    assert (greedy, three) == (again, three_again)
    assert len({greedy, three, four, sampled, sampled_again}) == 5


def test_a_run_repeats_under_its_seed():
    async def scene(engine):
        return [(await answer(engine, "hi")).text for _ in range(3)]

    assert run(scene, seed=1) == run(scene, seed=1) != run(scene, seed=2)


def test_a_cancelled_request_hears_nothing_more_and_holds_nothing():
    async def scene(engine):
        reader, other = Reader(), Reader()
        prompt = await engine.text_prompt("hi")
        handle = engine.submit(prompt, Params(max_tokens=1000), reader)
        await reader.first.wait()
        engine.cancel(handle)
        heard = reader.tokens
        assert (engine.stats().running, engine.stats().kv_used) == (0, 0.0)
        engine.submit(prompt, Params(max_tokens=3), other)
        await other.over.wait()
        assert reader.tokens == heard
        engine.cancel(handle)

    run(scene)


def test_a_full_queue_refuses():
    async def scene(engine):
        prompt = await engine.text_prompt("hi")
        with pytest.raises(Overloaded):
            engine.submit(prompt, Params(), Reader())

    run(scene, max_waiting=0)


def test_token_ids_are_checked():
    async def scene(engine):
        with pytest.raises(BadPrompt):
            await engine.token_prompt([1, -1])
        return (await engine.token_prompt([1, 2, 3])).tokens

    assert run(scene) == 3


def test_the_context_is_never_larger_than_the_cache():
    async def scene(engine):
        return engine.max_model_len

    assert run(scene, costs=Costs(kv_tokens=1000)) == 1000


def test_a_failure_of_the_step_is_the_death_of_the_engine(caplog):
    async def scene(engine):
        class Broken(Reader):
            def on_tokens(self, text, count, finish):
                raise RuntimeError("broken sink")

        engine.submit(await engine.text_prompt("hi"), Params(max_tokens=1), Broken())
        await engine.died.wait()

    run(scene)
    assert "broken sink" in caplog.text


@pytest.mark.parametrize(
    ("factor", "now", "end"),
    [(1, 100.0, 100.5), (1, 100.4, 100.5), (1, 100.9, 100.5), (1, 101.5, 101.0), (4, 100.9, 102.0)],
)
def test_a_step_ends_as_planned_and_does_not_catch_up_more_than_itself(factor, now, end):
    pace = Pace()
    pace.factor = factor
    assert pace.end(100.0, 0.5, now) == end


SECONDS = Costs(step_ms=1000, sequence_ms=0, kv_token_ns=0, prefill_token_ms=0)


def on_a_jumping_clock(scene):
    """Run `scene(engine, time, reader)`, ten steps of a second of which are the reader's answer."""

    async def inside():
        time = asyncio.get_running_loop().time
        engine = FakeEngine(SECONDS, Lengths(), clock=time)
        await engine.start()
        try:
            reader = Reader()
            engine.submit(await engine.text_prompt("hi"), Params(max_tokens=10), reader)
            return await scene(engine, time, reader)
        finally:
            await engine.stop()

    return clock.run(inside())


def test_a_slower_pace_holds_for_a_running_answer_from_its_next_step_on():
    async def scene(engine, time, reader):
        await asyncio.sleep(2.5)
        engine.pace.factor = 4.0
        await asyncio.sleep(8)
        engine.pace.factor = 1.0
        slow = reader.tokens  # those of the seconds 1, 2, 3 and 7
        await reader.over.wait()  # 11, and 12 to 16
        return slow, time()

    assert on_a_jumping_clock(scene) == (4, 16.0)


def test_while_nothing_moves_no_step_runs_and_then_it_goes_on_where_it_stood():
    async def scene(engine, time, reader):
        await asyncio.sleep(2.5)
        engine.pace.moving.clear()
        other = Reader()
        engine.submit(await engine.text_prompt("hi"), Params(max_tokens=1), other)
        await asyncio.sleep(100)
        assert (reader.tokens, other.scheduled) == (2, 0)
        engine.pace.moving.set()
        await reader.over.wait()  # 102.5, and seven seconds more
        return time(), other.tokens

    assert on_a_jumping_clock(scene) == (109.5, 1)


def test_an_idle_engine_that_does_not_move_schedules_nothing():
    async def scene(engine, time, reader):
        await reader.over.wait()
        engine.pace.moving.clear()
        other = Reader()
        engine.submit(await engine.text_prompt("hi"), Params(max_tokens=1), other)
        await asyncio.sleep(100)
        assert (other.scheduled, engine.stats().waiting) == (0, 1)
        engine.pace.moving.set()
        await other.over.wait()
        return time()

    assert on_a_jumping_clock(scene) == 111.0
