"""Parts are kept running, tier by tier, and ended in the opposite order. The parts are shell scripts."""

import asyncio
import contextlib
import gc
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.local.plan import Part
from mesh.local.supervisor import PartFailed, Supervisor, describe


class Diary:
    """The Audience: everything it is told, and waiting for a word of it."""

    def __init__(self) -> None:
        self.entries: list[str] = []
        self._written = asyncio.Event()

    def starting(self, part: Part) -> None:
        self._write(f"{part.name} starting")

    def ready(self, part: Part, took_s: float) -> None:
        self._write(f"{part.name} ready")

    def died(self, part: Part, how: str, again_in_s: float) -> None:
        self._write(f"{part.name} {how}, again in {again_in_s}")

    def line(self, part: Part, text: str) -> None:
        self._write(f"{part.name} says {text}")

    def _write(self, entry: str) -> None:
        self.entries.append(entry)
        self._written.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._written.clear()
            await self._written.wait()


# Ends at SIGTERM, saying so; a shell runs its trap at once only while it waits.
STAYS = "trap 'echo ending; exit 0' TERM; echo up; sleep 1000 & wait"


def part(name: str, tier: int, script: str = STAYS, *, start_within_s: float = 30) -> Part:
    argv = ("/bin/sh", "-c", script)
    return Part(name, tier, argv, ready_line="up", start_within_s=start_within_s, end_within_s=20)


def test_tiers_start_upwards_and_end_downwards() -> None:
    async def scenario() -> list[str]:
        diary = Diary()
        async with Supervisor([part("gate", 2), part("store", 0), part("pod", 1)], diary) as supervisor:
            await supervisor.start()
            assert sorted(supervisor.pids()) == ["gate", "pod", "store"]
        return diary.entries

    entries = asyncio.run(scenario())
    assert [entry for entry in entries if "starting" in entry or "ready" in entry] == [
        f"{name} {what}" for name in ("store", "pod", "gate") for what in ("starting", "ready")
    ]
    assert [entry for entry in entries if "ending" in entry] == [
        f"{name} says ending" for name in ("gate", "pod", "store")
    ]


def test_a_part_that_dies_is_started_again(tmp_path: Path) -> None:
    async def scenario() -> list[str]:
        diary = Diary()
        first = f"[ -e {tmp_path}/was ] || {{ touch {tmp_path}/was; echo up; exit 3; }}; {STAYS}"
        async with Supervisor([part("pod", 0, first)], diary) as supervisor:
            await supervisor.start()
            await diary.until(lambda: diary.entries.count("pod ready") == 2)
        return diary.entries

    assert asyncio.run(scenario()) == [
        "pod starting",
        "pod says up",
        "pod ready",
        "pod exited with status 3, again in 0.25",
        "pod starting",
        "pod says up",
        "pod ready",
        "pod says ending",
    ]


def test_one_that_says_it_was_started_wrongly_is_given_up_with_its_last_words() -> None:
    async def scenario() -> tuple[PartFailed, list[str]]:
        diary = Diary()
        parts = [part("store", 0), part("pod", 1, "for i in $(seq 30); do echo line $i; done; exit 64")]
        with pytest.raises(PartFailed) as failed:
            async with Supervisor(parts, diary) as supervisor:
                await supervisor.start()
        return failed.value, diary.entries

    failure, entries = asyncio.run(scenario())
    assert str(failure) == "pod exited with status 64"
    assert failure.last_lines == tuple(f"line {number}" for number in range(11, 31))
    assert entries.count("pod starting") == 1, "to start it again cannot help"
    assert entries[-1] == "store says ending"


def test_a_failed_start_leaves_nothing_unheard(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        parts = [part("silent", 0, "sleep 1000 & wait"), part("pod", 0, "exit 64")]
        with contextlib.suppress(PartFailed):
            async with Supervisor(parts, Diary()) as supervisor:
                await supervisor.start()

    asyncio.run(scenario())
    gc.collect()  # asyncio complains when what it complains about is gone
    assert caplog.text == ""


def test_a_failure_after_the_start_ends_the_watch(tmp_path: Path) -> None:
    async def scenario() -> None:
        script = f"[ -e {tmp_path}/was ] && exit 64; touch {tmp_path}/was; echo up; exit 1"
        async with Supervisor([part("pod", 0, script)], Diary()) as supervisor:
            await supervisor.start()
            await supervisor.watch()

    with pytest.raises(PartFailed, match="pod exited with status 64"):
        asyncio.run(scenario())


def test_one_that_never_gets_ready_is_ended_and_started_again() -> None:
    async def scenario() -> None:
        diary = Diary()
        silent = "sleep 1000 & wait"
        async with Supervisor([part("pod", 0, silent, start_within_s=0.05)], diary) as supervisor:
            starting = asyncio.ensure_future(supervisor.start())
            await diary.until(lambda: "pod was not ready within 0.05 s, again in 0.25" in diary.entries)
            starting.cancel()

    asyncio.run(scenario())


def test_cancelling_in_the_middle_of_the_start_ends_what_was_started() -> None:
    async def scenario() -> list[str]:
        diary = Diary()
        silent = "sleep 1000 & wait"
        async with Supervisor([part("store", 0), part("pod", 1, silent)], diary) as supervisor:
            starting = asyncio.ensure_future(supervisor.start())
            await diary.until(lambda: "pod starting" in diary.entries)
            starting.cancel()
        return diary.entries

    assert asyncio.run(scenario())[-1] == "store says ending"


def test_in_a_hurry_nothing_is_waited_for() -> None:
    async def scenario() -> None:
        deaf = "trap '' TERM; echo up; sleep 1000 & wait"
        async with Supervisor([part("pod", 0, deaf)], Diary()) as supervisor:
            await supervisor.start()
            supervisor.hurry()

    asyncio.run(scenario())


def test_statuses_in_words() -> None:
    assert describe(-9) == "was killed by signal 9"
    assert describe(3) == "exited with status 3"


def test_one_that_is_lost_stays_dead_and_is_no_failure() -> None:
    async def scenario() -> list[str]:
        diary = Diary()
        async with Supervisor([part("pod", 0), part("other", 0, "echo up; exit 7")], diary) as supervisor:
            await supervisor.start()
            supervisor.lose("pod")
            supervisor.lose("pod")
            # The other is started again twice meanwhile, which takes longer than a first restart.
            await diary.until(lambda: diary.entries.count("other starting") == 3)
        return diary.entries

    entries = asyncio.run(scenario())
    assert entries.count("pod starting") == 1
    assert not [entry for entry in entries if entry.startswith("pod exited") or "pod was" in entry]


def test_one_that_is_lost_before_it_is_started_again_is_not() -> None:
    async def scenario() -> list[str]:
        diary = Diary()
        dying = "echo up; exit 7"
        async with Supervisor([part("pod", 0, dying), part("other", 0, dying)], diary) as supervisor:
            await supervisor.start()
            await diary.until(lambda: any(entry.startswith("pod exited") for entry in diary.entries))
            supervisor.lose("pod")
            # The other's third start is later than the second of this one would be.
            await diary.until(lambda: diary.entries.count("other starting") == 3)
        return diary.entries

    assert asyncio.run(scenario()).count("pod starting") == 1
