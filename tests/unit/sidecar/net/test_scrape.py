"""Looking at an engine's metrics page, against engines on real sockets."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest

from sidecar.balance.endpoint import Endpoint
from sidecar.balance.engine_page import EnginePage
from sidecar.net.scrape import watch_load
from sidecar.settings import Engine, EngineMetrics
from sidecar.values import Address
from tests.harness.clock import FakeClock, run
from tests.harness.engine import answer, ok

PAGE = b"tgi_queue_size 3\ntgi_batch_current_size 2\n"
OTHER = b"tgi_queue_size 4\n"
NOTHING = answer(b"404 No", b"", b"content-length: 0")


class LoopClock(FakeClock):
    """The loop's own time."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()


class Looked:
    """An engine that gives these answers in turn (b"": silence), the last for ever, and who looks at it."""

    def __init__(self, *answers: bytes, interval_s: float = 1.0) -> None:
        self._answers = answers
        self._interval_s = interval_s
        self.asked: list[bytes] = []
        self.at: list[float] = []
        self.open = self.most_open = 0
        self.endpoint = Endpoint("127.0.0.1", 1)
        self.page = EnginePage(lambda: 0, 3 * interval_s)

    @property
    def pauses(self) -> list[float]:
        return [after - before for before, after in pairwise(self.at)]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        with contextlib.suppress(ConnectionError):
            self.at.append(asyncio.get_running_loop().time())
            self.asked.append(await reader.readuntil(b"\r\n\r\n"))
            said = self._answers[min(len(self.asked), len(self._answers)) - 1]
            if said:
                writer.write(said)
                await writer.drain()
            else:
                await reader.read()
        self.open -= 1
        writer.close()

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """It is looked at while the block lasts."""
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
            metrics = EngineMetrics(address=address, path="/m", interval_s=self._interval_s)
            engine = Engine(address=Address("127.0.0.1", 1), metrics=metrics)
            watch = asyncio.ensure_future(watch_load(engine, self.endpoint, self.page, LoopClock()))
            yield
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        await asyncio.sleep(0.01)  # let connections end

    async def until(self, count: int) -> float:
        """Until so many looks are over; the time."""
        while len(self.asked) < count or self.open:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        return asyncio.get_running_loop().time()


def test_the_load_and_the_page_follow_the_engine() -> None:
    looked = Looked(ok(PAGE, b"content-type: text/plain; a=b"), ok(OTHER))

    async def main() -> None:
        async with looked.watched():
            now = await looked.until(1)
            load = looked.endpoint.load
            assert (load.waiting, load.running) == (3, 2)
            assert load.is_fresh(now, 0.2)
            assert looked.page.shown(now) == PAGE
            assert looked.page.content_type == b"text/plain; a=b"
            now = await looked.until(2)
            assert (looked.endpoint.load.waiting, looked.endpoint.load.running) == (4, None)
            assert looked.page.shown(now) == OTHER

    run(main())
    assert looked.asked[0].startswith(b"GET /m HTTP/1.1\r\n")


def test_one_look_after_the_other_in_the_interval_and_its_jitter() -> None:
    looked = Looked(ok(PAGE), interval_s=2.0)

    async def main() -> None:
        async with looked.watched():
            await looked.until(4)

    run(main())
    assert looked.pauses == [pytest.approx(2.2, abs=0.05)] * 3
    assert looked.most_open == 1


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (NOTHING, "answers 404"),
        (b"nonsense", "status line"),
        (ok(PAGE, b"content-encoding: gzip"), "compressed"),
        (answer(b"200 OK", b"x" * (8 * 1024 * 1024 + 1)), "too large"),
        (ok(PAGE)[:-1], "in the middle"),
        (b"", "not answer in time"),
    ],
)
def test_a_look_that_fails_says_nothing_of_the_engine(
    said: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    looked = Looked(ok(PAGE), said)

    async def main() -> None:
        async with looked.watched():
            await looked.until(5)
            load = looked.endpoint.load
            assert (load.waiting, load.running) == (3, 2), "it is just old"
            assert not load.is_fresh(asyncio.get_running_loop().time(), 3.0)
            assert looked.endpoint.healthy

    with caplog.at_level(logging.WARNING, "headgate"):
        run(main())
    (message,) = caplog.messages
    assert why in message
    silence = 0 if said else 3.0
    assert looked.pauses[1:] == [pytest.approx(pause * 1.1 + silence, abs=0.1) for pause in (2, 4, 5)]
    assert looked.most_open == 1


def test_what_works_again_is_looked_at_as_before_and_its_loss_is_said_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    looked = Looked(NOTHING, ok(PAGE), NOTHING, NOTHING, ok(PAGE), ok(PAGE))

    async def main() -> None:
        async with looked.watched():
            await looked.until(7)

    with caplog.at_level(logging.WARNING, "headgate"):
        run(main())
    assert looked.pauses == [pytest.approx(pause * 1.1, abs=0.1) for pause in (2, 1, 2, 4, 1, 1)]
    assert len(caplog.messages) == 2


def test_a_page_of_nothing_that_is_known_is_shown_but_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    looked = Looked(ok(b"up 1\n"))

    async def main() -> None:
        async with looked.watched():
            now = await looked.until(3)
            assert looked.endpoint.load.waiting is None
            assert not looked.endpoint.load.is_fresh(now, 1e9)
            assert looked.page.shown(now) == b"up 1\n"

    with caplog.at_level(logging.WARNING, "headgate"):
        run(main())
    assert len(caplog.messages) == 1
