"""A sidecar and a fake model pod as real processes, and what tests ask of them.

Whoever waits, waits for something that one of them says: a metric, a decision, a line of its log.
"""

import contextlib
import http.client
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import openai
import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

import sidecar as sidecar_package
from tests.harness.processes import HOST, Running, free_port, free_ports, running

Settings = dict[str, Any]
HELLO: Final = [{"role": "user", "content": "Hello"}]
INSTALLED: Final = Path(sidecar_package.__file__).parents[1]  # the sources, or what was compiled from them
_QUIET_S: Final = 60.0  # no answer takes longer; a test that hangs should say where


class Reply:
    """An answer, read whole."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self.body = answer.read()

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    url: str, method: str = "GET", *, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Reply:
    """One request on a connection of its own; any status is an answer."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=_QUIET_S)
    with contextlib.closing(connection):
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target, body, dict(headers or {}))
        return Reply(connection.getresponse())


def metric(base: str, name: str, **labels: str) -> float:
    """The sum of the samples called `name` at `base`/metrics that have these labels."""
    return total(samples(base), name, **labels)


def samples(base: str) -> list[Sample]:
    """All that `base`/metrics shows, at one instant."""
    families = text_string_to_metric_families(ask(f"{base}/metrics").text)
    return [sample for family in families for sample in family.samples]


def total(page: list[Sample], name: str, **labels: str) -> float:
    """The sum of the samples called `name` that have these labels."""
    return sum(each.value for each in page if each.name == name and labels.items() <= each.labels.items())


@dataclass
class Pod:
    """A running model server."""

    process: Running
    port: int

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def generating(self) -> int:
        """Requests in its batch."""
        return int(metric(self.url, "vllm:num_requests_running"))

    def wait_until_generating(self, count: int) -> None:
        self.process.wait_for(lambda: self.generating() == count, what=f"the engine runs {count}")


@contextlib.contextmanager
def fake_pod(*options: str, port: int | None = None) -> Iterator[Pod]:
    """The model server's fake engine; `options` are its flags."""
    port = port or free_port()
    argv = [sys.executable, "-m", "model_pod", "--engine", "fake", "--listen", f"{HOST}:{port}", *options]
    with running(argv) as process:
        process.wait_for_line("ready http://")
        yield Pod(process, port)


@contextlib.contextmanager
def frozen(pod: Pod) -> Iterator[None]:
    """The engine stands still: what is under way stays so."""
    os.kill(pod.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pod.process.pid, signal.SIGCONT)


@dataclass
class Sidecar:
    """A running sidecar and the file it was configured with."""

    process: Running
    file: Path
    settings: Settings

    @property
    def url(self) -> str:
        return f"http://{self.settings['listen']}"

    @property
    def admin(self) -> str:
        return f"http://{self.settings['admin']}"

    @property
    def port(self) -> int:
        return int(self.settings["listen"].rpartition(":")[2])

    def metric(self, name: str, **labels: str) -> float:
        return metric(self.admin, name, **labels)

    def gauges(self) -> dict[str, float]:
        """What is under way: all zero when nobody is there."""
        page = samples(self.admin)
        return {
            "in_flight": total(page, "headgate_in_flight"),
            "queued": total(page, "headgate_queued"),
            "downstream": total(page, "headgate_connections", side="downstream"),
            "upstream": total(page, "headgate_connections", side="upstream"),
            "buffered": total(page, "headgate_buffered_bytes"),
            "timers": total(page, "headgate_timers"),
        }

    def wait_for_gauges(self, **expected: float) -> None:
        """Until these gauges have these values."""
        self.process.wait_for(lambda: expected.items() <= self.gauges().items(), what=f"gauges {expected}")

    def wait_until_idle(self) -> None:
        """Until nothing is under way and every connection is gone."""
        self.process.wait_for(lambda: not any(self.gauges().values()), what="all gauges are zero")

    def decisions(self) -> list[dict[str, Any]]:
        """What became of the last exchanges, newest first."""
        return list(ask(f"{self.admin}/debug/decisions?n=1000").json())

    def wait_for_decision(self, reason: str) -> dict[str, Any]:
        """The newest exchange that ended for this reason."""
        found = self.process.wait_for(
            lambda: next((each for each in self.decisions() if each["reason"] == reason), None),
            what=f"a decision {reason}",
        )
        assert found is not None
        return found

    def client(self, **options: Any) -> openai.OpenAI:
        """The SDK, which repeats nothing unless `options` say so. Close it."""
        settings: dict[str, Any] = {"api_key": "any", "max_retries": 0, "timeout": _QUIET_S} | options
        return openai.OpenAI(base_url=f"{self.url}/v1", **settings)

    def chat(self, *, headers: Mapping[str, str] | None = None, **members: Any) -> Reply:
        """One chat completion, without the SDK; any status is an answer."""
        return ask(f"{self.url}/v1/chat/completions", "POST", body=chat_body(**members), headers=headers)

    @contextlib.contextmanager
    def asking(self, **members: Any) -> Iterator[http.client.HTTPConnection]:
        """A chat completion that is sent, and whose answer nobody reads. The client leaves with the block."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=_QUIET_S)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/chat/completions", chat_body(**members))
            yield connection

    def write(self, settings: Settings) -> None:
        replace_text(self.file, yaml.safe_dump(settings))


def chat_body(**members: Any) -> bytes:
    """The body of a chat completion; short unless `members` say so."""
    return json.dumps({"model": "fake", "messages": HELLO, "max_tokens": 4} | members).encode()


def replace_text(file: Path, text: str) -> None:
    """At once, as a good editor does: nobody reads half of it."""
    unfinished = file.with_suffix(".new")
    unfinished.write_text(text)
    os.replace(unfinished, file)


def sidecar_settings(engine_port: int, **sections: Any) -> Settings:
    """A configuration on free ports in front of the engine at `engine_port`; `sections` are added to it.

    Nobody balances over it: when it drains, it needs no time to be noticed.
    """
    listen, admin = free_ports(2)
    engine = {"address": f"{HOST}:{engine_port}"} | sections.pop("engine", {})
    addresses = {"listen": f"{HOST}:{listen}", "admin": f"{HOST}:{admin}", "engine": engine}
    return addresses | {"drain_notice_s": 0} | sections


@contextlib.contextmanager
def sidecar(
    folder: Path, settings: Settings, *, program: tuple[str | Path, ...] = ("-m", "sidecar")
) -> Iterator[Sidecar]:
    """A sidecar that serves, with its file in `folder` (`sidecar.yaml`, kept if it is there).

    `program` is what the interpreter runs, where it is not the package.
    """
    file = folder / "sidecar.yaml"
    if not file.exists():
        file.write_text(yaml.safe_dump(settings))
    with running([sys.executable, *program, "--config", str(file)]) as process:
        started = Sidecar(process, file, settings)
        # The line of the log comes after both ports are open.
        process.wait_for_line("listening on")
        yield started
