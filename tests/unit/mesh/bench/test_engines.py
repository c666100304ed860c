"""Reading what engines say, and which refusals it makes wrong."""

import asyncio

import pytest
from prometheus_client import generate_latest

from mesh.bench.engines import Sample, Watched, read, watched
from mesh.bench.origin import Attempt, Origin
from mesh.bench.workload import Ask, stock
from model_pod.engine import Stats
from model_pod.metrics import Metrics

ROOM, FULL = Sample(at=0, running=10, kv=0.2), Sample(at=0, running=80, kv=0.99)


def at(seconds: float, sample: Sample) -> Sample:
    return Sample(at=seconds, running=sample.running, waiting=sample.waiting, kv=sample.kv)


def refused(arrived: float, when: float, status: int = 503) -> Origin:
    attempt = Attempt(arrived, status=status, ended=when)
    return Origin(Ask(arrived, stock("premium", 1.0), 10, 0), attempts=[attempt])


def test_the_page_of_our_own_engine_is_read() -> None:
    stats = Stats(running=3, waiting=2, kv_used=0.25, block_size=16, blocks=100, preemptions=5)
    metrics = Metrics("fake", lambda: stats)
    metrics.finished["stop"].inc(4)
    metrics.finished["abort"].inc(3)
    found = read(generate_latest(metrics.registry), 1.5)
    assert found == Sample(at=1.5, running=3, waiting=2, kv=0.25, preemptions=5, ended=7)
    assert found.arrived == 12


@pytest.mark.parametrize(
    ("sample", "has_room"),
    [
        (ROOM, True),
        (FULL, False),
        (Sample(at=0, running=10, kv=0.2, waiting=1), False),
        (Sample(at=0, running=10, kv=0.7), False),
        (Sample(at=0, running=48, kv=0.2), False),
    ],
)
def test_room(sample: Sample, has_room: bool) -> None:
    assert sample.has_room is has_room


@pytest.mark.parametrize(
    ("before", "after", "count"), [(ROOM, ROOM, 1), (ROOM, FULL, 0), (FULL, ROOM, 0), (FULL, FULL, 0)]
)
def test_a_refusal_is_false_with_room_before_and_after_it(before: Sample, after: Sample, count: int) -> None:
    found = Watched([[at(1.0, before), at(1.2, after)]])
    assert found.false_refusals([refused(0.5, 1.1)], 0, 2) == count


def test_one_engine_with_room_is_enough() -> None:
    found = Watched([[at(1.0, FULL), at(1.2, FULL)], [at(1.0, ROOM), at(1.2, ROOM)]])
    assert found.false_refusals([refused(0.5, 1.1)], 0, 2) == 1


def test_what_is_no_refusal_or_not_of_the_window_is_not_counted() -> None:
    found = Watched([[at(1.0, ROOM), at(1.2, ROOM)]])
    others = [refused(0.5, 1.1, status=200), refused(2.5, 1.1), refused(0.5, 0.9), refused(0.5, 1.3)]
    assert found.false_refusals(others, 0, 2) == 0


def test_means_and_preemptions_are_of_the_window() -> None:
    samples = [Sample(at=n, running=10 * n, preemptions=n) for n in range(6)]
    found = Watched([samples, samples])
    assert found.mean("running", 1, 4) == 20
    assert found.preempted(1, 4) == 4
    assert found.mean("running", 9, 10) == 0


def test_engines_are_asked_until_the_block_ends() -> None:
    async def watch() -> Watched:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b'HTTP/1.1 200 OK\r\n\r\nvllm:num_requests_running{engine="0"} 7.0\n')
            writer.close()
            answered.set()

        answered = asyncio.Event()
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, watched([f"http://127.0.0.1:{port}"]) as found:
            await answered.wait()
            while not found.samples[0]:
                await asyncio.sleep(0)
        return found

    assert asyncio.run(watch()).samples[0][0].running == 7
