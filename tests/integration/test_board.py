"""Sidecars of a mesh share whom they refused, through a real Valkey: who comes back is known to all."""

import asyncio
import concurrent.futures
import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from sidecar import learnt
from sidecar.clock import SystemClock
from sidecar.errors import ConfigError
from sidecar.flow.invitations import Invitations
from sidecar.net.board import Board
from sidecar.net.complaints import Complaints
from sidecar.net.redis import Channel
from sidecar.settings import Redis
from tests.harness.processes import HOST, free_port, valkey, wait_until
from tests.harness.sidecars import (
    Pod,
    Reply,
    Sidecar,
    fake_pod,
    replace_text,
    sidecar,
    sidecar_settings,
)

pytestmark = pytest.mark.integration

ENDLESS: Final = 20_000  # tokens: longer than any test
PATIENT: Final = {"standard": {"ttft_s": 60}}
# An engine whose rates are known, so that those who are refused can be told when to return.
STATE: Final = json.dumps(
    {
        "version": learnt.VERSION,
        "capacity": 120_000,
        "fraction": 1.0,
        "prompt_rate": 5000.0,
        "itl_s": 0.03,
        "work_rate": 1000.0,
        "estimates": [],
    }
)


@pytest.fixture(scope="module")
def pod() -> Iterator[Pod]:
    with fake_pod() as started:
        yield started


@contextlib.contextmanager
def member(folder: Path, pod: Pod, port: int, number: int, **sections: Any) -> Iterator[Sidecar]:
    """A sidecar of the mesh whose Redis is at `port`; it runs one request at a time, and lets few wait."""
    place = folder / str(number)
    place.mkdir()
    state = place / "state"
    state.write_text(STATE)
    settings = sidecar_settings(
        pod.port,
        classes=PATIENT,
        admission={"max_in_flight": 1, "max_queue": 2 * number},  # the first lets nobody wait
        redis={"url": f"redis://{HOST}:{port}/0"},
        mesh={"name": "demo", "pod": f"pod-{number}"},
        state_file=str(state),
    )
    with sidecar(place, settings | sections) as started:
        yield started


@contextlib.contextmanager
def mesh(folder: Path, pod: Pod, port: int) -> Iterator[tuple[Sidecar, Sidecar]]:
    with member(folder, pod, port, 0) as here, member(folder, pod, port, 1) as there:
        yield here, there


def wait_until_connected(*sidecars: Sidecar, is_connected: int = 1) -> None:
    for each in sidecars:
        each.process.wait_for(
            lambda each=each: each.metric("headgate_board_connected") == is_connected,
            within_s=40.0,
            what=f"connected: {is_connected}",
        )


def wait_until_remembered(gate: Sidecar, count: int) -> None:
    gate.process.wait_for(
        lambda: gate.metric("headgate_refused_remembered") == count, what=f"{count} are remembered"
    )


def said(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def invited(gate: Sidecar, text: str) -> float:
    """The seconds after which who asks this is to come back; `gate` is full."""
    answer = gate.chat(**said(text))
    assert (answer.status, answer.headers["x-headgate-reason"]) == (503, "queue_full"), answer.body
    return int(answer.headers["retry-after-ms"]) / 1000


def served_in_order(gate: Sidecar, *texts: str) -> list[bool]:
    """Ask these one after the other while nobody can run; whether each was invited, in the order served."""
    with concurrent.futures.ThreadPoolExecutor() as callers:
        with gate.asking(max_tokens=ENDLESS):
            gate.wait_for_gauges(in_flight=1)
            answers: list[concurrent.futures.Future[Reply]] = []
            for text in texts:
                answers.append(callers.submit(gate.chat, **said(text)))
                gate.wait_for_gauges(queued=len(answers))
        assert [answer.result().status for answer in answers] == [200] * len(texts)
    served = [each for each in gate.decisions() if each["status"] == 200]
    return [each["invited"] for each in reversed(served[: len(texts)])]


def refuse_and_return(here: Sidecar, there: Sidecar) -> None:
    """One whom `here` refuses is served before others at `there`, and then known nowhere."""
    with here.asking(max_tokens=ENDLESS):
        here.wait_for_gauges(in_flight=1)
        seconds = invited(here, "back")
        until = time.monotonic() + seconds
        wait_until_remembered(there, 1)
    wait_until(lambda: time.monotonic() >= until, what="the caller has waited as it was told")
    assert served_in_order(there, "first", "back") == [True, False]
    wait_until_remembered(here, 0)
    wait_until_remembered(there, 0)


def test_who_was_invited_by_one_is_served_first_by_another(tmp_path: Path, pod: Pod) -> None:
    port = free_port()
    with valkey(port), mesh(tmp_path, pod, port) as (here, there):
        wait_until_connected(here, there)
        refuse_and_return(here, there)
        assert here.metric("headgate_board_dropped_entries") == 0


def test_requests_go_on_without_redis_and_sharing_when_it_is_back(tmp_path: Path, pod: Pod) -> None:
    port = free_port()
    with mesh(tmp_path, pod, port) as (here, there):
        assert here.chat().status == 200, "it starts without Redis"
        with valkey(port) as store:
            wait_until_connected(here, there)
            store.kill()
            wait_until_connected(here, there, is_connected=0)
            assert [each.chat().status for each in (here, there)] == [200, 200]
            with here.asking(max_tokens=ENDLESS):
                here.wait_for_gauges(in_flight=1)
                seconds = invited(here, "alone")
            until = time.monotonic() + seconds
            wait_until(lambda: time.monotonic() >= until, what="the caller has waited as it was told")
            assert here.chat(**said("alone")).status == 200
            assert here.wait_for_decision("")["invited"], "its own callers are still known"
        with valkey(port):
            wait_until_connected(here, there)
            refuse_and_return(here, there)
            for each in (here, there):
                lines = [line for line in each.process.text().splitlines() if "shared with peers" in line]
                assert len(lines) == 4, "one line for each change, and none for a try"


def test_a_mesh_moves_to_another_redis(tmp_path: Path, pod: Pod) -> None:
    old, new = free_port(), free_port()
    with valkey(old), valkey(new) as moved, mesh(tmp_path, pod, old) as (here, there):
        wait_until_connected(here, there)
        for each in (here, there):
            each.write(each.settings | {"redis": {"url": f"redis://{HOST}:{new}/0"}})
            os.kill(each.process.pid, signal.SIGHUP)
            each.process.wait_for_line("the new configuration is in force")
        refuse_and_return(here, there)
        each.write(each.settings | {"redis": {"url": f"redis://{HOST}:first"}})
        each.process.wait_for_line("the new configuration is refused, the old one stays in force: redis.url")
        moved.kill()
        wait_until_connected(here, is_connected=0)


# The channel.


@contextlib.asynccontextmanager
async def channel(redis: Redis, quiet_s: float = 60.0) -> Any:
    """One that is open; it is closed with the block."""
    opened = Channel(redis, "hg1:{demo}:invited", quiet_s)
    try:
        await opened.open()
        yield opened
    finally:
        await opened.close()


async def listening(line: Channel) -> None:
    while True:
        await line.hear(0.05)


async def heard(line: Channel) -> bytes | None:
    """What is published, and comes back."""
    await line.publish(b"\xff\x00 text")
    for _ in range(50):
        if (message := await line.hear(0.1)) is not None:
            return message
    return None


@pytest.mark.parametrize("how", ["url", "url_file", "unix", "password", "another protocol"])
def test_ways_to_reach_redis(tmp_path: Path, how: str) -> None:
    port, socket, file = free_port(), tmp_path / "redis.sock", tmp_path / "url"
    url = f"redis://{HOST}:{port}/0"
    file.write_text(url + "\n")
    redis = {
        "url": Redis(url=url),
        "url_file": Redis(url_file=str(file)),
        "unix": Redis(url=f"unix://{socket}"),
        "password": Redis(url=f"redis://:secret@{HOST}:{port}/0"),
        "another protocol": Redis(url=f"{url}?protocol=3"),
    }[how]

    async def scenario() -> None:
        async with channel(redis) as line:
            assert await heard(line) == b"\xff\x00 text"

    options = ["--requirepass", "secret"] if how == "password" else []
    with valkey(port, "--unixsocket", str(socket), *options):
        asyncio.run(scenario())


def test_a_wrong_password_is_told_without_it(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    redis = Redis(url=f"redis://:wrong-secret@{HOST}:{port}/0")

    async def scenario() -> None:
        clock = SystemClock()
        board = Board(
            lambda: Channel(redis, "c"), "pod-0", Invitations(1, 0.5), clock, Complaints(clock.now)
        )
        task = asyncio.ensure_future(board.run())
        while not caplog.records:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with valkey(port, "--requirepass", "secret"), caplog.at_level(logging.INFO, "headgate"):
        asyncio.run(scenario())
    assert "nothing is shared with peers" in caplog.text
    assert "secret" not in caplog.text


def test_a_server_that_says_nothing_any_more_is_noticed(tmp_path: Path) -> None:
    port = free_port()

    async def scenario(pid: int) -> None:
        async with channel(Redis(url=f"redis://{HOST}:{port}"), quiet_s=0.2) as line:
            for _ in range(20):
                await line.hear(0.05)  # it is asked for signs of life, and gives them
            os.kill(pid, signal.SIGSTOP)
            try:
                with pytest.raises(TimeoutError, match="silent"):
                    await listening(line)
            finally:
                os.kill(pid, signal.SIGCONT)

    with valkey(port) as store:
        asyncio.run(scenario(store.pid))


@pytest.mark.parametrize(
    ("redis", "path", "why"),
    [
        (Redis(url="redis://h:port/0"), "redis.url", "Port"),
        (Redis(url="redis://h?socket_timeout=soon"), "redis.url", "socket_timeout"),
        (Redis(url_file="/nowhere/at/all"), "redis.url_file", "cannot be read: No such file"),
    ],
)
def test_what_is_no_url_is_refused(redis: Redis, path: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        Channel(redis, "c")
    assert refused.value.path == path


def test_what_a_file_holds_is_read_when_a_channel_is_made(tmp_path: Path) -> None:
    file = tmp_path / "url"
    redis = Redis(url_file=str(file))
    for content, why in ((b"http://h", "scheme"), (b"\xff", "not text"), (b"", "scheme")):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=why) as refused:
            Channel(redis, "c")
        assert refused.value.path == "redis.url_file"
    replace_text(file, "redis://h")
    Channel(redis, "c")
