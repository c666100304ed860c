"""Who used the cores, and whether the loop was late."""

import asyncio
import os
import time

from mesh.bench.usage import GENERATOR, Usage, metered


def _spin(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_a_loop_that_is_held_up_is_late() -> None:
    async def hold_up() -> Usage:
        with metered({}) as usage:
            await asyncio.sleep(0.02)
            _spin(0.1)
            await asyncio.sleep(0.02)
        return usage

    assert asyncio.run(hold_up()).lag_p99_ms > 50


def test_cpu_is_counted_for_each_process() -> None:
    async def spin() -> Usage:
        with metered({"ours": os.getpid()}) as usage:
            _spin(0.1)  # ten of the kernel's ticks
        return usage

    usage = asyncio.run(spin())
    assert usage.cores[GENERATOR] > 0
    assert usage.cores["ours"] > 0
    assert 0 < usage.machine <= 1


def test_a_process_that_is_gone_is_left_out() -> None:
    async def nothing() -> Usage:
        with metered({"gone": 2**22 + 1}) as usage:
            pass
        return usage

    assert asyncio.run(nothing()).cores.keys() == {GENERATOR}
