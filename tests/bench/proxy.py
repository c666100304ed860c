"""What a request and a streamed chunk cost the whole process, beside Envoy: user and system CPU.

Each proxy stands between the same engine and the same callers, one after the other, several rounds;
the CPU comes from the kernel's own accounting of the proxy's process. With two processors or more
the proxy has one to itself. Envoy runs bare (one worker, no filter but the router), which is less
than the sidecar does.
"""

import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.harness.processes import envoy_binary, free_port

ONE_WORKER = ("--concurrency", "1", "--disable-hot-restart", "-l", "off")
TICKS = os.sysconf("SC_CLK_TCK")
SIDECAR = """
listen: 127.0.0.1:{port}
admin: 127.0.0.1:{admin}
engine: {{address: 127.0.0.1:{engine}}}
telemetry: {{access_log: sampled}}
"""
_TYPE = "type.googleapis.com/envoy.extensions.filters"
ENVOY = """
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": {type}.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          codec_type: HTTP1
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{{match: {{prefix: /}}, route: {{cluster: engine, timeout: 0s}}}}]
          http_filters:
          - {{name: router, typed_config: {{"@type": {type}.http.router.v3.Router}}}}
  clusters:
  - name: engine
    type: STATIC
    load_assignment:
      cluster_name: engine
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {engine}}}}}}}
"""


@contextlib.contextmanager
def process(*command: str, core: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """A child, on one core if there are two, ended with the block."""
    started = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    cores = sorted(os.sched_getaffinity(0))
    if core is not None and len(cores) > 1:
        os.sched_setaffinity(started.pid, {cores[core]})
    try:
        yield started
    finally:
        started.kill()
        started.wait()
        for pipe in (started.stdin, started.stdout):
            if pipe is not None:
                pipe.close()


def cpu_s(pid: int) -> float:
    """User and system seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def load(kind: str, pid: int, port: int, connections: int, seconds: float) -> float:
    """Microseconds of CPU of process `pid` for each request or chunk that passed."""
    peers = (sys.executable, "-m", "tests.bench.peers")
    with process(*peers, kind, str(port), str(connections), core=0) as caller:
        assert caller.stdin is not None
        assert caller.stdout is not None
        caller.stdout.readline()
        done, spent = [], []
        for pause in (0.5, seconds):
            time.sleep(pause)
            spent.append(cpu_s(pid))
            print(file=caller.stdin, flush=True)
            done.append(int(caller.stdout.readline()))
        return (spent[1] - spent[0]) / max(done[1] - done[0], 1) * 1e6


def wait_for(port: int) -> None:
    """Until somebody listens."""
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.5):
            return
        time.sleep(0.05)
    raise RuntimeError(f"nobody listens on {port}")


def run(rounds: int = 3, seconds: float = 3.0) -> dict[str, dict[str, float]]:
    """Medians, and the median of the ratios within a round."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        engine = stack.enter_context(process(sys.executable, "-m", "tests.bench.peers", "engine", core=0))
        assert engine.stdout is not None
        engine_port = int(engine.stdout.readline())
        ports = {"sidecar": free_port(), "envoy": free_port()}
        sidecar_file, envoy_file = Path(folder, "sidecar.yaml"), Path(folder, "envoy.yaml")
        sidecar_file.write_text(
            SIDECAR.format(port=ports["sidecar"], admin=free_port(), engine=engine_port)
        )
        envoy_file.write_text(ENVOY.format(port=ports["envoy"], engine=engine_port, type=_TYPE))
        commands = {
            "sidecar": [sys.executable, "-m", "sidecar", "--config", str(sidecar_file)],
            "envoy": [str(envoy_binary()), "-c", str(envoy_file), *ONE_WORKER],
        }
        pids = {}
        for name, command in commands.items():
            pids[name] = stack.enter_context(process(*command, core=1)).pid
            wait_for(ports[name])
        result: dict[str, dict[str, float]] = {}
        for what, kind, connections in (
            ("request, 32 connections", "requests", 32),
            ("chunk, 64 streams", "streams", 64),
        ):
            costs: dict[str, list[float]] = {"sidecar": [], "envoy": []}
            for _ in range(rounds):
                for name in costs:
                    costs[name].append(load(kind, pids[name], ports[name], connections, seconds))
            result[what] = {name: statistics.median(values) for name, values in costs.items()}
            result[what]["ratio"] = statistics.median(
                a / b for a, b in zip(costs["sidecar"], costs["envoy"], strict=True)
            )
        return result


def show() -> None:
    for what, costs in run().items():
        print(f"  {what:26}" + "  ".join(f"{name} {value:.2f}" for name, value in costs.items()))


if __name__ == "__main__":
    show()
