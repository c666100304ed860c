"""What a run cost the machine: whether the load was made on time, and who used the cores.

On a machine with two cores the generator, the engines and what stands between share them. A run in which the
generator came late measures the generator.
"""

import asyncio
import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, process_time
from typing import Final

GENERATOR: Final = "generator"
# A generator that was later (p99) is not believed.
MOST_LAG_MS: Final = 20.0
_TICK_S: Final = 0.01
_USER, _SYSTEM = 11, 12  # places in /proc/<pid>/stat after the name, of CPU time in ticks
_IDLE, _WAITING = 3, 4  # places in the first line of /proc/stat
_TICKS_S: Final = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Usage:
    """Of one run."""

    cores: dict[str, float] = field(default_factory=dict)  # by process, and the generator's; 1 is a core
    lag_p99_ms: float = 0.0  # of the generator's event loop
    machine: float = 0.0  # share of all cores' time that anybody used


@contextlib.contextmanager
def metered(pids: Mapping[str, int]) -> Iterator[Usage]:
    """Measure while the block runs; the figures are there when it has ended."""
    usage, lags = Usage(), _Lags()
    began, before, own, all_before = perf_counter(), _cpu(pids), process_time(), _machine()
    try:
        yield usage
    finally:
        lags.stop()
        wall_s = perf_counter() - began
        after = _cpu(pids)
        usage.cores = {name: (after[name] - before[name]) / wall_s for name in before if name in after}
        usage.cores[GENERATOR] = (process_time() - own) / wall_s
        usage.lag_p99_ms = lags.p99_ms()
        busy, total = (now - then for now, then in zip(_machine(), all_before, strict=True))
        usage.machine = busy / total if total else 0.0


def _machine() -> tuple[int, int]:
    """Ticks that all cores were busy, and all ticks; nothing where the machine does not say."""
    try:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return 0, 0
    ticks = [int(word) for word in words]
    return sum(ticks) - ticks[_IDLE] - ticks[_WAITING], sum(ticks)


class _Lags:
    """How late the event loop calls back what is due."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._late: list[float] = []
        self._next()

    def stop(self) -> None:
        self._timer.cancel()

    def p99_ms(self) -> float:
        late = sorted(self._late)
        return 1000 * late[int(len(late) * 0.99)] if late else 0.0

    def _next(self) -> None:
        self._due = perf_counter() + _TICK_S
        self._timer = self._loop.call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        self._late.append(max(0.0, perf_counter() - self._due))
        self._next()


def _cpu(pids: Mapping[str, int]) -> dict[str, float]:
    """Seconds of CPU that each has used; without those that the machine says nothing about."""
    seconds = {}
    for name, pid in pids.items():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            seconds[name] = (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICKS_S
    return seconds
