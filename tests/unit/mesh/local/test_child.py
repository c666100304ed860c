"""One process: its lines, its end."""

import asyncio
import signal

import pytest

from mesh.local.child import MOST_LINE_BYTES, Child, Lines
from tests.harness.processes import is_alive, wait_until


async def run(script: str) -> tuple[int, list[str]]:
    """A shell script to its own end."""
    lines: list[str] = []
    child = await Child.start(["/bin/sh", "-c", script], {"WORD": "word"}, lines.append)
    await child.wait()
    await child.end(5, asyncio.Event())
    return await child.wait(), lines


def test_both_streams_are_read_to_the_last_unfinished_line() -> None:
    status, lines = asyncio.run(run("echo one; echo $WORD >&2; printf three; exit 7"))
    assert status == 7
    assert lines == ["one", "word", "three"]


def test_it_is_asked_to_end_first() -> None:
    async def scenario() -> list[str]:
        lines: list[str] = []
        said = asyncio.Event()

        def on_line(line: str) -> None:
            lines.append(line)
            said.set()

        script = "trap 'echo asked; exit 0' TERM; echo up; sleep 1000 & wait"
        child = await Child.start(["/bin/sh", "-c", script], {}, on_line)
        await said.wait()
        await child.end(20, asyncio.Event())
        return lines

    assert asyncio.run(scenario()) == ["up", "asked"]


@pytest.mark.parametrize("hurried", [True, False])
def test_one_that_does_not_listen_is_killed(hurried: bool) -> None:
    async def scenario() -> int:
        said = asyncio.Event()
        script = "trap '' TERM; echo up; sleep 1000 & wait"
        child = await Child.start(["/bin/sh", "-c", script], {}, lambda _: said.set())
        await said.wait()
        hurry = asyncio.Event()
        if hurried:
            hurry.set()
        await child.end(600 if hurried else 0.01, hurry)
        return await child.wait()

    assert asyncio.run(scenario()) == -signal.SIGKILL


def test_what_it_started_goes_with_it() -> None:
    async def scenario() -> int:
        lines: list[str] = []
        # The grandchild holds the pipe: only its death ends the reading.
        child = await Child.start(["/bin/sh", "-c", "sleep 1000 & echo $!"], {}, lines.append)
        await child.wait()
        await child.end(5, asyncio.Event())
        return int(lines[0])

    grandchild = asyncio.run(scenario())
    wait_until(lambda: not is_alive(grandchild))


def test_long_lines_are_cut() -> None:
    async def scenario() -> list[str]:
        lines: list[str] = []
        cut = Lines(lines.append)
        cut.data_received(b"x" * (2 * MOST_LINE_BYTES + 5))
        cut.data_received(b"y\nlast")
        cut.connection_lost(None)
        return lines

    lines = asyncio.run(scenario())
    assert [len(line) for line in lines] == [MOST_LINE_BYTES, MOST_LINE_BYTES, 6, 4]
    assert lines[-2:] == ["xxxxxy", "last"]


def test_a_program_that_does_not_exist_raises() -> None:
    with pytest.raises(FileNotFoundError):
        asyncio.run(Child.start(["/no/such/program"], {}, lambda _: None))
