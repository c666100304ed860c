"""The fake engine: what it says, for how long, and that it repeats itself when it should."""

from __future__ import annotations

import asyncio

import pytest

from model_pod.engine import BadPrompt, Overloaded, Params
from model_pod.fake_engine import FakeEngine, Lengths, load_prose
from model_pod.fake_scheduler import Costs

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
