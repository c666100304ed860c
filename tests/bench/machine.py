"""The machine as an instrument: its cores, the kernel's accounting of a process, and its name and versions.

One core is for what is measured, another for the engine, the callers and everything else. With a single core
all share it, and only CPU figures mean anything.
"""

import ctypes
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from mesh.local.machine import MissingBinary, find_envoy
from sidecar import pipeline

_CORES: Final = sorted(os.sched_getaffinity(0))
OURS: Final = {_CORES[0]}
MEASURED: Final = {_CORES[-1]}
LIBC: Final = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG: Final = 1


class Broken(Exception):
    """A proxy refused or dropped somebody: what was measured means nothing."""


def claim() -> None:
    """Keep this process, and children that are not measured, on our core; let it have many connections."""
    os.sched_setaffinity(0, OURS)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def follow(cores: set[int]) -> Callable[[], None]:
    """For a child, before its program: onto these cores with all its threads, and killed if we are."""

    def prepare() -> None:
        os.sched_setaffinity(0, cores)
        LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return prepare


def most_streams(wanted: int) -> int:
    """How many of `wanted` streams fit: each is two descriptors, here as in what is measured."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if limit == resource.RLIM_INFINITY else min(wanted, (limit - 500) // 2)


@dataclass(frozen=True, slots=True)
class Cpu:
    """Seconds of CPU time, all threads together."""

    total: float
    user: float
    system: float

    @property
    def has_parts(self) -> bool:
        """Whether enough ticks saw it, a hundred at least, to say which part was user code."""
        return self.total >= 0.4

    def __sub__(self, before: "Cpu") -> "Cpu":
        """What was spent since; the sum exactly, its parts in the proportion of the ticks that saw them."""
        total = self.total - before.total
        user, system = self.user - before.user, self.system - before.system
        share = user / (user + system) if user + system else 0.5
        return Cpu(total, total * share, total * (1 - share))


def cpu(pids: Iterable[int]) -> Cpu:
    """What these processes have spent so far.

    The sum is the scheduler's, to the nanosecond. How much of it was user code is sampled by most kernels, at
    each timer tick (250 a second): of two busy seconds that share is good to a few percent.
    """
    total = user = system = 0.0
    for pid in pids:
        clock = ctypes.c_int()
        if LIBC.clock_getcpuclockid(pid, ctypes.byref(clock)):
            raise ProcessLookupError(f"process {pid} has ended")
        total += time.clock_gettime(clock.value)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        user += int(fields[11])
        system += int(fields[12])
    return Cpu(total, user, system)


def resident_kb(pids: Iterable[int]) -> float:
    """Resident memory, counted page by page: /proc/PID/statm lags behind by up to megabytes."""
    return sum(
        float(line.split()[1])
        for pid in pids
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        if line.startswith("Rss:")
    )


def others_since() -> Callable[[], float]:
    """Tells how much of the cores' time from now on is neither ours nor our ended children's, in percent."""

    def used() -> tuple[float, float]:
        ticks = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        user, nice, system, _idle, _waiting, *interrupts_and_stolen = map(int, ticks)
        everybody = (user + nice + system + sum(interrupts_and_stolen)) / os.sysconf("SC_CLK_TCK")
        own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return everybody - sum(each.ru_utime + each.ru_stime for each in own), time.perf_counter()

    before, start = used()

    def percent() -> float:
        now, end = used()
        return max(0.0, (now - before) / (end - start) / (os.cpu_count() or 1) * 100)

    return percent


def describe() -> dict[str, str]:
    """What a result depends on and the figures do not say."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "processor": f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("uvloop", "httptools", "msgspec")},
        "envoy": _envoy(),
        "nginx": _version("nginx", "-v"),
        "haproxy": _version("haproxy", "-v"),
        "wrk": _version("wrk", "-v"),
        "sidecar": "interpreted" if pipeline.__file__.endswith(".py") else "compiled",
        "commit": _said("git", "describe", "--always", "--dirty").strip() or "unknown",
    }


def _envoy() -> str:
    try:
        return _version(str(find_envoy()), "--version")
    except MissingBinary:
        return "absent"


def _version(*command: str) -> str:
    found = re.search(r"[0-9]+\.[0-9]+\.[0-9]+", _said(*command))
    return found[0] if found else "absent"


def _said(*command: str) -> str:
    """What a program prints, on either stream and whatever its status; nothing if there is none."""
    if not shutil.which(command[0]):
        return ""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=10, check=False
    )
    return done.stdout
