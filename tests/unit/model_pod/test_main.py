"""Start and end of the server, in one process: which engine, and what ends the wait."""

from __future__ import annotations

import asyncio
import re
import socket
import sys

import pytest

from model_pod.__main__ import main, make_engine, wait_for
from model_pod.config import parse
from model_pod.engine import CannotServe
from model_pod.fake_engine import FakeEngine


def test_the_flags_reach_the_fake_engine():
    engine = make_engine(parse(["--engine", "fake", "--max-model-len", "500", "--kv-tokens", "800"]))
    assert isinstance(engine, FakeEngine)
    assert engine.max_model_len == 500
    assert (engine.stats().blocks, engine.stats().block_size) == (50, 16)


def test_a_signal_ends_the_wait_and_cancels_the_work():
    async def scene() -> bool:
        stop, cancelled = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            stop.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        await wait_for(work(), stop)
        await asyncio.sleep(0)
        return cancelled.is_set()

    assert asyncio.run(scene())


def test_a_failure_of_the_work_is_raised():
    async def work() -> None:
        raise OSError("no such model")

    async def scene() -> None:
        await wait_for(work(), asyncio.Event())

    with pytest.raises(OSError, match="no such model"):
        asyncio.run(scene())


def test_without_torch_the_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "model_pod.torch_engine", None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # it is set for good otherwise
    assert main(["--engine", "transformers", "--tiny", "--listen", "127.0.0.1:0"]) == 64
    assert re.fullmatch(r"model_pod: .* needs .*: pip install 'headgate\[pod\]'\n", capsys.readouterr().err)


def test_what_cannot_be_served_ends_with_64_and_one_line(monkeypatch, capsys):
    def refuse(settings):
        raise CannotServe("no weights")

    monkeypatch.setattr("model_pod.__main__.make_engine", refuse)
    assert main(["--engine", "fake", "--listen", "127.0.0.1:0"]) == 64
    assert capsys.readouterr().err == "model_pod: no weights\n"


def test_a_port_in_use_is_said_in_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--engine", "fake", "--listen", f"127.0.0.1:{port}"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("model_pod: ")
    assert str(port) in captured.err
    assert "ready" not in captured.out
