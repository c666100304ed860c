"""The transformers engine from the inside: sampling, models without a paged cache, the tiny model."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from importlib.util import find_spec
from math import log
from pathlib import Path

import pytest

from model_pod.config import parse
from model_pod.engine import CannotServe, Params
from tests.harness.processes import missing

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
MLA = {
    "hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "max_position_embeddings": 256,
    "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": None, "initializer_range": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def torch():
    if find_spec("torch") is None:
        missing("torch is not installed")
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    torch.set_num_threads(1)
    return torch


@pytest.fixture(scope="module")
def mla(torch, tmp_path_factory) -> Path:
    """A DeepSeek-V3 of 200,000 parameters: its latent attention does not fit the paged cache."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    from model_pod.tiny import VOCABULARY, build_tokenizer

    folder = tmp_path_factory.mktemp("mla")
    torch.manual_seed(0)
    DeepseekV3ForCausalLM(DeepseekV3Config(vocab_size=VOCABULARY, **MLA)).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(torch, tmp_path_factory) -> Path:
    from model_pod.tiny import ensure_tiny

    return ensure_tiny(tmp_path_factory.mktemp("cache"))


def picked(torch, temperature: float, top_p: float, u: float) -> int:
    from model_pod.torch_backends import pick

    scores = torch.tensor([[log(0.2), log(0.5), log(0.3)]])
    return pick(scores, *(torch.tensor([value]) for value in (temperature, top_p, u))).item()


@pytest.mark.parametrize(
    ("temperature", "top_p", "u", "token"),
    [
        (0.0, 1.0, 0.99, 1),  # greedy
        (1.0, 1.0, 0.0, 1),
        (1.0, 1.0, 0.49, 1),
        (1.0, 1.0, 0.51, 2),
        (1.0, 1.0, 0.79, 2),
        (1.0, 1.0, 0.81, 0),
        (1.0, 1.0, 1.0, 0),
        (1.0, 0.6, 0.99, 2),  # 0.5 + 0.3 reach 0.6; the 0.2 are out
        (1.0, 0.5, 0.99, 1),
        (1.0, 1e-6, 0.99, 1),
        (0.5, 1.0, 0.64, 1),  # 0.25 / 0.38 = 0.658 of the mass
        (0.5, 1.0, 0.67, 2),
    ],
)
def test_the_quantile_of_what_top_p_keeps_is_picked(torch, temperature, top_p, u, token):
    assert picked(torch, temperature, top_p, u) == token


def test_a_row_does_not_depend_on_its_batch(torch):
    from model_pod.torch_backends import pick

    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(6, 50, generator=generator)
    temperature = torch.tensor([0.0, 0.7, 1.0, 1.3, 0.0, 2.0])
    rest = (temperature, torch.linspace(0.1, 1, 6), torch.rand(6, generator=generator))
    together = pick(scores, *rest)
    alone = [pick(scores[i : i + 1], *(column[i : i + 1] for column in rest)) for i in range(6)]
    assert together.tolist() == torch.cat(alone).tolist()


class Reader:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.text = ""
        self.tokens = 0
        self.first = asyncio.Event()
        self.over = asyncio.Event()

    def on_scheduled(self, at: float) -> None:
        self.at = at

    def on_tokens(self, text: str, count: int, finish: str | None) -> None:
        self.text += text
        self.tokens += count
        self.first.set()
        if finish:
            self.over.set()

    def on_error(self, error: Exception) -> None:
        raise error


def run(folder: Path, scene):
    """Run `scene(engine)` over the model in a folder for at most two minutes; its result."""
    from model_pod.torch_engine import load_engine

    async def inside():
        async with asyncio.timeout(120):
            argv = ["--engine", "transformers", "--model", str(folder), "--threads", "1"]
            engine = load_engine(parse(argv))
            await engine.start()
            try:
                return await scene(engine)
            finally:
                await engine.stop()

    return asyncio.run(inside())


async def answer(engine, text: str, **params: object) -> Reader:
    reader = Reader()
    engine.submit(await engine.text_prompt(text), Params(**params), reader)
    await reader.over.wait()
    return reader


def test_a_model_without_a_paged_cache_is_served_one_by_one(mla, caplog):
    async def scene(engine):
        readers = await asyncio.gather(*(answer(engine, "The lock", max_tokens=9, seed=4) for _ in range(3)))
        greedy = await answer(engine, "The lock", max_tokens=9, temperature=0)
        return [reader.text for reader in readers], greedy, engine.stats()

    texts, greedy, stats = run(mla, scene)
    assert "one request at a time" in caplog.text
    assert texts[0] == texts[1] == texts[2] != greedy.text
    assert (greedy.tokens, stats.kv_used, stats.running) == (9, None, 0)


def test_both_ways_of_generating_pick_the_same_tokens(tiny, monkeypatch):
    async def scene(engine):
        ways = ({"seed": 4}, {"temperature": 0})
        return [(await answer(engine, "The lock", max_tokens=20, **way)).text for way in ways]

    continuous = run(tiny, scene)

    def refuse(*_):
        raise RuntimeError("not today")

    monkeypatch.setattr("model_pod.torch_engine.ContinuousBackend", refuse)
    assert run(tiny, scene) == continuous


@pytest.mark.parametrize("model", ["mla", "tiny"])
def test_a_cancelled_request_frees_its_slot(model, request):
    async def scene(engine):
        prompt = await engine.text_prompt("The lock")
        running, waiting = Reader(), Reader()
        params = Params(max_tokens=200, ignore_eos=True)
        handles = [engine.submit(prompt, params, reader) for reader in (running, waiting)]
        await running.first.wait()
        for handle in handles:
            engine.cancel(handle)
        heard = running.tokens
        # Served by the next step, or the one after: the slots are free.
        await answer(engine, "The gate", max_tokens=1)
        assert (running.tokens, engine.stats().running, engine.stats().waiting) == (heard, 0, 0)

    run(request.getfixturevalue(model), scene)


def test_a_folder_without_a_model_is_named(torch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CannotServe, match=str(tmp_path)):
        run(tmp_path, None)


def test_text_is_never_broken(tiny):
    async def scene(engine):
        prompt = await engine.chat_prompt([{"role": "user", "content": "grün 門 🚪"}])
        tokens = await engine.text_prompt("grün 門 🚪")
        return engine._vocabulary.decode(prompt.content), engine._vocabulary.decode(tokens.content)

    chat, text = run(tiny, scene)
    assert text == "grün 門 🚪"
    assert chat == "user\ngrün 門 🚪\nassistant\n"


def test_two_pods_that_start_at_once_build_one_model(torch, tmp_path):
    code = "import pathlib, model_pod.tiny as tiny; print(tiny.ensure_tiny(pathlib.Path('{}')))"
    command = [sys.executable, "-c", code.format(tmp_path / "cache")]
    builders = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = {builder.communicate(timeout=120)[0] for builder in builders}
    assert len(folders) == 1
    assert [builder.returncode for builder in builders] == [0, 0]
    assert len(list((tmp_path / "cache").iterdir())) == 1
