"""Start and end of the server, in one process: which engine, and what ends the wait."""

from __future__ import annotations

import asyncio
import socket

import pytest

from model_pod.__main__ import main, make_engine, wait_for
from model_pod.config import parse
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


def test_a_port_in_use_is_said_in_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--engine", "fake", "--listen", f"127.0.0.1:{port}"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("model_pod: ")
    assert str(port) in captured.err
    assert "ready" not in captured.out
