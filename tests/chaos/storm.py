"""A storm: a real sidecar between the faulty engine and the misbehaving clients, reloaded and scraped.

    every configuration once, a small storm to warm up, rest; the storm, rest; SIGTERM

What was held at each rest, and all else that came of it, is in a `Report`, for tests to judge.
"""

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from tests.chaos import clients, engine
from tests.chaos.watched import PREFIX
from tests.harness.processes import HOST, free_ports, running
from tests.harness.sidecars import Settings, Sidecar, ask, sidecar, sidecar_settings

_WITHIN_S: Final = 3600.0  # a storm that lasts longer has got stuck
_AT_REST_WITHIN_S: Final = 20.0
_EVERY_S: Final = 0.5  # a look, a scrape, a reload
MAX_BUFFERED: Final = 256 * 1024
# Admission, connections and time-outs that take turns.
_LIMITS: Final[tuple[Settings, ...]] = (
    {"admission": {"max_in_flight": 16, "max_queue": 24, "queue_timeout_s": 0.3}},
    {"admission": {"max_in_flight": 4, "max_queue": 32, "queue_timeout_s": 0.1}},
    {"admission": {"max_in_flight": 64, "max_queue": 0}},
    {"admission": {"mode": "off"}},
    {"admission": {"max_in_flight": 16, "max_queue": 100, "queue_timeout_s": 3600}, "max_connections": 30},
)
MOST: Final = {"headgate_in_flight": 64, "headgate_queued": 100, "headgate_buffered_bytes": MAX_BUFFERED}
# What the interpreter finds open when nobody holds it any more is a leak that was mended by chance.
_PROGRAM: Final = ("-W", "always::ResourceWarning", "-m", "tests.chaos.watched")
_TAKEN: Final = " configuration "  # in each line of the log about one
# Objects that a cache may hold, by its limit.
_CACHES: Final = Counter(
    {
        "sidecar.llm.request.Route": 1024,
        "sidecar.flow.invitations.Refused": 16_384,
        "sidecar.flow.estimates._Known": 4096,
        "sidecar.flow.fair.Account": 4096,
        "sidecar.telemetry.metrics.Distribution": 8,  # of errors, one for each class
    }
)
_GAUGE: Final = re.compile(r"^(headgate_\w+) (\S+)$", re.MULTILINE)


@dataclass
class Vitals:
    """What the process holds, by kind, and what it says of itself."""

    descriptors: Counter[str]
    objects: Counter[str]
    threads: int
    resident: int  # bytes
    gauges: dict[str, float]

    def more_than(self, other: "Vitals") -> dict[str, int]:
        """What there is beyond what `other` had."""
        threads = Counter(threads=self.threads) - Counter(threads=other.threads)
        objects = self.objects - other.objects - _CACHES
        return dict(self.descriptors - other.descriptors + objects + threads)


@dataclass
class Made:
    """What became of one request, as its client saw it."""

    outcome: str
    status: int
    reason: str
    size: int  # of the answer's body


class Record(msgspec.Struct):
    """What is read of a line of the access log."""

    request_id: str
    status: int
    reason: str
    bytes_out: int
    attempts: int


@dataclass
class Counted:
    """What the metrics say of all requests. `ends`: how many, by status and reason."""

    ends: Counter[tuple[int, str]] = field(default_factory=Counter)
    bytes_out: int = 0
    dropped_lines: int = 0
    preempted: int = 0


@dataclass
class Report:
    """What came of a storm."""

    before: Vitals
    after: Vitals
    tallies: list[clients.Tally]
    made: dict[str, Made]  # by id
    excesses: list[str]  # gauges above their limits
    reloads: int
    counted: Counted
    records: list[Record]  # the access log
    log: list[str]
    exit_status: int | None  # None: it had to be killed
    engine: engine.Report


def settings(engine_port: int) -> Settings:
    """Short time-outs, so that every one of them comes to pass; bodies small enough to be too large."""
    return sidecar_settings(
        engine_port,
        max_body_bytes=MAX_BUFFERED,
        max_buffered_bytes=MAX_BUFFERED,
        timeouts={
            "connect_s": 0.5,
            "head_s": 1.0,
            "body_s": 1.0,
            "first_byte_s": 1.0,
            "stall_s": 1.0,
            "keep_alive_s": 2.5,
            "engine_idle_s": 1.0,
            "request_s": 3000.0,  # longer than the storm, so that an alarm that is not taken back is found
        },
        telemetry={"access_log": "all"},
        **_LIMITS[0],
    )


def _vitals(gate: Sidecar) -> Vitals:
    gauges = gate.gauges()
    pid = gate.process.pid
    descriptors: Counter[str] = Counter()
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            descriptors[re.sub(r"\d+", "n", os.readlink(f"/proc/{pid}/fd/{number}"))] += 1
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    return Vitals(
        descriptors, _objects(gate), int(status["Threads"]), 1024 * int(status["VmRSS"].split()[0]), gauges
    )


def _objects(gate: Sidecar) -> Counter[str]:
    log = Path(gate.process.output.name)
    before = log.stat().st_size
    os.kill(gate.process.pid, signal.SIGUSR1)

    def told() -> str | None:
        with log.open() as lines:
            lines.seek(before)
            return next((line for line in lines if line.startswith(PREFIX) and line[-1] == "\n"), None)

    line = gate.process.wait_for(told, what="it tells what it holds")
    assert line is not None
    return Counter(msgspec.json.decode(line.removeprefix(PREFIX), type=dict[str, int]))


class Storm:
    """One sidecar, and all that is done to it."""

    def __init__(self, gate: Sidecar, engine_ports: tuple[int, int], folder: Path) -> None:
        self._gate = gate
        self._folder = folder
        # Five limits and two ports: every pair has its turn.
        self._turns = zip(itertools.cycle(_LIMITS), itertools.cycle(engine_ports), strict=False)
        self.reloads = 0
        self.excesses: list[str] = []
        self.tallies: list[clients.Tally] = []
        self.made: dict[str, Made] = {}

    def take_every_turn(self) -> None:
        """So that what the sidecar remembers of each configuration is remembered from here on."""
        process = self._gate.process
        for _ in range(2 * len(_LIMITS)):
            taken = process.text().count(_TAKEN)
            self._reload()
            process.wait_for(partial(self._has_taken_more_than, taken), what="it takes a configuration")

    def rage(self, requests: int, seed: str) -> None:
        """Let clients make so many requests, and reload and scrape meanwhile."""
        file = self._folder / f"made-{seed}"
        program = (sys.executable, "-m", "tests.chaos.clients")
        with running([*program, str(self._gate.port), str(requests), seed, file]) as process:
            for _ in range(int(_WITHIN_S / _EVERY_S)):
                if _ends(process.process, _EVERY_S):
                    break
                self._gate.process.fail_if_ended()
                self._reload()
                self._scrape()
            assert process.end() == 0, process.text()
            self.tallies.append(msgspec.json.decode(process.text(), type=clients.Tally))
        for line in file.read_text().splitlines():
            request_id, outcome, status, reason, size = line.split(" ")
            assert request_id not in self.made, request_id
            self.made[request_id] = Made(outcome, int(status), reason, int(size))

    def rest(self, before: Vitals | None = None) -> Vitals:
        """What is held when all clients have gone and nothing is under way, and no more than before.

        If it does not come to that: what is left in the end.
        """
        last = before
        until = time.monotonic() + _AT_REST_WITHIN_S
        while True:
            found = _vitals(self._gate)
            is_at_rest = last is not None and not found.more_than(last) and not any(found.gauges.values())
            if is_at_rest or time.monotonic() > until or _ends(self._gate.process.process, _EVERY_S):
                return found
            last = before or found

    def count(self) -> Counted:
        """What the metrics say."""
        found = Counted()
        for family in text_string_to_metric_families(ask(f"{self._gate.admin}/metrics").text):
            for sample in family.samples:
                if sample.name == "headgate_requests_total":
                    found.ends[int(sample.labels["status"]), sample.labels["reason"]] += int(sample.value)
                elif sample.name == "headgate_response_bytes_total":
                    found.bytes_out += int(sample.value)
                elif sample.name == "headgate_preemptions_total":
                    found.preempted += int(sample.value)
                elif sample.name == "headgate_access_log_dropped_lines":
                    found.dropped_lines += int(sample.value)
        return found

    def _reload(self) -> None:
        limits, port = next(self._turns)
        self._gate.write(self._gate.settings | limits | {"engine": {"address": f"{HOST}:{port}"}})
        os.kill(self._gate.process.pid, signal.SIGHUP)
        self.reloads += 1

    def _has_taken_more_than(self, count: int) -> bool:
        return self._gate.process.text().count(_TAKEN) > count

    def _scrape(self) -> None:
        admin = self._gate.admin
        gauges = dict(_GAUGE.findall(ask(f"{admin}/metrics").text))
        found = {name: gauges[name] for name, most in MOST.items() if float(gauges[name]) > most}
        self.excesses += map(str, found.items())
        ask(f"{admin}/debug/decisions?n=50")


def _ends(process: subprocess.Popen[bytes], within_s: float) -> bool:
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def storm(folder: Path, requests: int, seed: str) -> Report:
    """So many requests, after some that warm up."""
    first, second = free_ports(2)
    argv = [sys.executable, "-m", "tests.chaos.engine", seed, str(first), str(second)]
    with running(argv) as wild, sidecar(folder, settings(first), program=_PROGRAM) as gate:
        wild.wait_for_line("ready")
        made = Storm(gate, (first, second), folder)
        made.take_every_turn()
        made.rage(requests // 10, f"{seed}w")
        before = made.rest()
        made.rage(requests, seed)
        after = made.rest(before)
        counted = made.count()
        process = gate.process.process
        process.send_signal(signal.SIGTERM)
        exit_status = process.returncode if _ends(process, _AT_REST_WITHIN_S) else None
        lines = gate.process.text().splitlines()
        assert wild.end() == 0, wild.text()
        return Report(
            before=before,
            after=after,
            tallies=made.tallies,
            made=made.made,
            excesses=made.excesses,
            reloads=made.reloads,
            counted=counted,
            records=[msgspec.json.decode(line, type=Record) for line in lines if line[:1] == "{"],
            log=[line for line in lines if line[:1] != "{" and not line.startswith(PREFIX)],
            exit_status=exit_status,
            engine=msgspec.json.decode(wild.text().splitlines()[-1], type=engine.Report),
        )
