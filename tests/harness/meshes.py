"""A mesh of real processes: fake pods with faults on demand, a sidecar beside each, a Valkey to meet at.

What is waited for is what a process says of itself or of others; `Mesh.recover` is how a test
leaves it to the next.
"""

import contextlib
import http.client
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from tests.harness.processes import HOST, Running, free_port, free_ports, valkey
from tests.harness.sidecars import Pod, Settings, Sidecar, ask, chat_body, fake_pod, sidecar, sidecar_settings

# Faults are seen and forgotten within seconds. Slowness is left out: two cores are no quiet place. So is
# panic, which would hide the cap of so few pods. Callers are few: retries are a large part of what they ask.
QUICK: Final[Settings] = {
    "outlier": {
        "interval_s": 1,
        "base_ejection_time_s": 2,
        "max_ejection_time_s": 2,
        "max_ejection_time_jitter_s": 0,
        "slow_start_s": 0,
        "slow_windows": 1_000_000,
        "panic_threshold_percent": 0,
    },
    "retry": {"budget": 1},
    "timeouts": {"engine_idle_s": 1},
}
_HEALTH: Final = {"kind": "http", "interval_s": 0.5, "progress_s": 1}
KEY: Final = "the first key of this mesh"
_QUIET_S: Final = 60.0

Entry = dict[str, Any]


class Stream:
    """A streamed chat completion that is sent; the answer is read when it is asked for."""

    def __init__(self, port: int, *, headers: Mapping[str, str] | None = None, **members: Any) -> None:
        self._connection = http.client.HTTPConnection(HOST, port, timeout=_QUIET_S)
        body = chat_body(**{"stream": True, "max_tokens": 60} | members)
        self._connection.request("POST", "/v1/chat/completions", body, dict(headers or {}))
        self._answer: http.client.HTTPResponse | None = None
        self.body = b""
        self.is_cut = False

    @property
    def answer(self) -> http.client.HTTPResponse:
        """Once its head is here."""
        self._answer = self._answer or self._connection.getresponse()
        return self._answer

    @property
    def status(self) -> int:
        return self.answer.status

    @property
    def is_whole(self) -> bool:
        """Answered to its last event and its last chunk."""
        return self.status == 200 and not self.is_cut and self.body.endswith(b"data: [DONE]\n\n")

    @property
    def error(self) -> Any:
        """The error event it ends with, or the refusal's; None: there is none."""
        last = self.body.rstrip().rpartition(b"\n\n")[2].removeprefix(b"data: ")
        return json.loads(last)["error"] if last.startswith(b'{"error"') else None

    def begin(self) -> None:
        """Read to its first token."""
        self.body += self.answer.readline() + self.answer.readline()
        while b'"content":"' not in self.body.replace(b'"content":""', b""):
            line = self.answer.readline()
            assert line, self.body
            self.body += line

    def end(self) -> "Stream":
        """Read it all."""
        try:
            self.body += self.answer.read()
        except http.client.IncompleteRead as cut:
            self.body += cut.partial
            self.is_cut = True
        finally:
            self.leave()
        return self

    def leave(self) -> None:
        """Close its connection."""
        self._connection.close()
        if self._answer is not None:
            self._answer.close()


class Member:
    """One pod of a mesh: an engine with faults on demand, and the sidecar beside it."""

    def __init__(self, name: str, folder: Path, settings: Settings, faults: int) -> None:
        self.name = name
        self.settings = settings
        self.pod: Pod
        self.gate: Sidecar
        self.folder = folder
        self._faults = faults
        self._port = int(settings["engine"]["address"].rpartition(":")[2])
        self._asked: list[Stream] = []
        self._engine = contextlib.ExitStack()
        self._sidecar = contextlib.ExitStack()

    def start_engine(self) -> None:
        """Also again, at the port where it was."""
        self._engine.close()
        options = ("--step-ms", "20", "--faults", f"{HOST}:{self._faults}")
        self.pod = self._engine.enter_context(fake_pod(*options, port=self._port))

    def start_sidecar(self) -> None:
        self._sidecar.close()
        self.gate = self._sidecar.enter_context(sidecar(self.folder, self.settings))

    def start(self) -> None:
        self.start_engine()
        self.start_sidecar()

    def stop(self) -> None:
        self._sidecar.close()
        self._engine.close()

    def fault(self, kind: str, **members: Any) -> None:
        """From now on the engine does wrong, running answers too."""
        body = json.dumps({"kind": kind, **members}).encode()
        answer = ask(f"http://{HOST}:{self._faults}/fault", "PUT", body=body)
        assert answer.status == 200, answer.text

    def heal(self) -> None:
        answer = ask(f"http://{HOST}:{self._faults}/fault", "DELETE")
        assert answer.status == 200, answer.text

    def wait_until_it_has(self, count: int) -> None:
        """So many requests, running or waiting."""

        def has() -> bool:
            gauges = self.gate.gauges()
            return gauges["in_flight"] + gauges["queued"] == count

        self.gate.process.wait_for(has, what=f"it has {count}")

    def leave(self) -> None:
        """Close what is still asked."""
        while self._asked:
            self._asked.pop().leave()

    def sees(self) -> dict[str, Entry]:
        """Each pod of the mesh, itself among them, as its sidecar sees it."""
        return {entry["pod"]: entry for entry in ask(f"{self.gate.admin}/debug/endpoints").json()}

    def stream(self, **members: Any) -> Stream:
        """Ask its sidecar."""
        self._asked.append(Stream(self.gate.port, **members))
        return self._asked[-1]

    def streams(self, count: int, **members: Any) -> list[Stream]:
        return [self.stream(**members) for _ in range(count)]

    def decision(self, stream: Stream) -> Entry:
        """What became of it here."""
        request_id = stream.answer.headers["x-request-id"]
        found = self.gate.process.wait_for(
            lambda: [each for each in self.gate.decisions() if each["request_id"] == request_id],
            what=f"a decision about {request_id}",
        )
        return found[0]

    def serves(self) -> bool:
        """Whether its own engine serves the next request, which is answered whole in any case."""
        stream = self.stream(max_tokens=4).end()
        assert stream.is_whole, stream.body
        return bool(self.decision(stream)["endpoint"] == self.settings["engine"]["address"])

    def attempts(self, where: str) -> float:
        """Attempts that its sidecar has made at its `engine`, or at a `peer`."""
        return self.gate.metric("headgate_attempts_total", to=where)


class Mesh:
    """Members, and the Valkey they meet at."""

    def __init__(self, members: list[Member], store: "Store") -> None:
        self.members = members
        self.store = store

    def others(self, member: Member) -> list[Member]:
        return [each for each in self.members if each is not member]

    def wait_until_seen(self, member: Member, state: str, *, by: list[Member] | None = None) -> None:
        """By all others, or those in `by`."""
        for each in self.others(member) if by is None else by:
            each.gate.process.wait_for(
                lambda each=each: each.sees().get(member.name, {}).get("state") == state,
                what=f"{each.name} sees {member.name} {state}: {each.sees()}",
            )

    def recover(self) -> None:
        """End what a test has done to it, and wait until that shows nowhere."""
        for member in self.members:
            member.leave()
            member.heal()
        self.wait_until_well()

    def wait_until_well(self) -> None:
        """Everybody sees everybody serve and has all of its work, and nothing is under way."""
        for member in self.members:
            member.gate.process.wait_for(
                lambda member=member: self._is_well(member), what=f"{member.name} sees all well"
            )
            member.gate.wait_for_gauges(in_flight=0, queued=0, buffered=0)

    def _is_well(self, member: Member) -> bool:
        seen = member.sees()
        return seen.keys() == {each.name for each in self.members} and all(
            (entry["state"], entry["ejected"], entry["blocked_s"]) == ("serving", False, 0)
            and entry.get("share", 1) == 1
            for entry in seen.values()
        )


class Store:
    """A Valkey that can be stopped and killed, and comes back at its port."""

    def __init__(self) -> None:
        self.port = free_port()
        self._stack = contextlib.ExitStack()
        self._process: Running

    def start(self) -> None:
        self._process = self._stack.enter_context(valkey(self.port))

    def send(self, number: signal.Signals) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._stack.close()


@contextlib.contextmanager
def mesh(
    folder: Path, *, pods: int = 3, health_listens: bool = False, **sections: Any
) -> Iterator[Mesh]:
    """A mesh whose members have met and served; `sections` are added to their settings, `mesh` merged.

    `health_listens`: their sidecars serve gRPC health, each at a port of its own.
    """
    store = Store()
    more = sections.pop("mesh", {})
    members = []
    ports = iter(free_ports(6 * pods))
    for i, (port, peers, health, listen, admin, faults) in enumerate(zip(*[ports] * 6, strict=True)):
        home = folder / f"pod-{i}"
        home.mkdir()
        secret = home / "secret"
        secret.write_text(KEY)
        settings = sidecar_settings(
            port,
            engine={"health": _HEALTH},
            redis={"url": f"redis://{HOST}:{store.port}/0", "timeout_ms": 200},
            mesh={"name": "faults", "pod": home.name, "listen": f"{HOST}:{peers}", "secret_file": str(secret)}
            | more,
            listen=f"{HOST}:{listen}",
            admin=f"{HOST}:{admin}",
            **(QUICK | sections),
        )
        if health_listens:
            settings["health_listen"] = f"{HOST}:{health}"
        members.append(Member(home.name, home, settings, faults))
    found = Mesh(members, store)
    with contextlib.ExitStack() as stack:
        stack.callback(at_once, [member.stop for member in members])
        for member in members:
            stack.callback(member.leave)
        stack.callback(store.close)
        store.start()
        at_once([member.start for member in members])
        found.wait_until_well()
        # An engine that has never said a token may have to compile, and is given time for it.
        assert all(member.stream(max_tokens=2).end().is_whole for member in members)
        yield found


def at_once(tasks: list[Callable[[], None]]) -> None:
    """In threads of their own; raises what one of them raised."""
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(task) for task in tasks]:
            done.result()
