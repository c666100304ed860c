"""A bug costs one request: whichever hook of whichever stage raises, and the two ways out of them.

The bug strikes requests whose target names it, and no others.
"""

from collections.abc import Callable
from typing import Any, Final

import pytest

from sidecar.net.connections import Connections
from sidecar.net.downstream import Downstream
from sidecar.pipeline import Stage
from sidecar.stages.account import Account
from sidecar.stages.admit import Admit
from sidecar.stages.identify import Identify
from sidecar.stages.pick import Pick
from tests.harness.engine import SSE, End, chunked, ok
from tests.harness.wire import CHAT, Answer, Client, Wire, get, post

STAGES: Final = (Account, Identify, Admit, Pick)
STRUCK: Final = f"{CHAT}?bug"
WHOLE: Final = (ok(b"answer"),)
STREAM: Final = (SSE, chunked(b"data: 1\n\n", last=False), chunked(b"data: 2\n\n"))


class Bug(Exception):
    """What no stage should raise."""


@pytest.fixture
def strike(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let a method raise for requests that ask for it, before it does its work or after.

    `spared`: so many of these calls go well first.
    """

    def strike(owner: type, method: str, *, after: bool, spared: int = 0) -> None:
        original = getattr(owner, method)
        calls = 0

        def struck(self: Any, x: Any, *args: Any) -> Any:
            nonlocal calls
            calls += b"?bug" in x.request.target
            is_bug = b"?bug" in x.request.target and calls > spared
            if is_bug and not after:
                raise Bug
            result = original(self, x, *args)
            if is_bug:
                raise Bug
            return result

        monkeypatch.setattr(owner, method, struck)

    return strike


class Case:
    """A sidecar in which a bug waits, and what it logs."""

    def __init__(self, config: str = "") -> None:
        self.wire = Wire(config)
        self.logged = 0

    def act(self, step: Callable[[], object]) -> None:
        """Do something that may log an error, which the harness raises."""
        try:
            step()
        except AssertionError:
            self.logged += 1
        self.wire.settle()

    def ask(self, answer: tuple[bytes, ...], target: str = STRUCK) -> tuple[Client, Answer]:
        """What comes of a request that the engine, if it is asked, answers in these pieces."""
        wire = self.wire
        seen = {engine.transport: len(engine.seen) for engine in wire.engines}
        client = wire.client()
        self.act(lambda: client >> post(target, b'{"stream": true}'))
        asked = [engine for engine in wire.engines if len(engine.seen) > seen.get(engine.transport, 0)]
        for engine in asked:
            for piece in answer:
                if engine.is_open:
                    self.act(lambda engine=engine, piece=piece: engine >> piece)  # type: ignore[misc]
        return client, client.answer(b"POST")

    def assert_it_cost_nothing_more(self) -> None:
        """The next one is served, and nothing is left of any of them."""
        wire = self.wire
        assert self.logged == 1
        _, answer = self.ask(WHOLE, CHAT)
        assert (answer.status, answer.body, answer.complete) == (200, b"answer", True)
        assert self.logged == 1
        wire.assert_at_rest()
        for client in list(wire.context.clients):
            client.close()
        for engine in wire.engines:
            if engine.is_open:
                engine >> End.CLOSE
        wire.settle()
        assert (len(wire.context.clients), len(wire.context.connections), wire.timers.pending) == (0, 0, 0)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("hook", ["on_request", "on_response", "on_data"])
@pytest.mark.parametrize("stage", STAGES)
def test_before_the_answer_has_begun_it_is_500(
    strike: Callable[..., None], stage: type[Stage], hook: str, after: bool
) -> None:
    strike(stage, hook, after=after)
    case = Case()
    client, answer = case.ask(WHOLE)
    assert (answer.status, answer.reason, answer.complete) == (500, "internal", True)
    assert client.is_open
    record = case.wire.record
    assert (record.status, record.reason) == (500, "internal")
    case.assert_it_cost_nothing_more()


@pytest.mark.parametrize("stage", STAGES)
def test_once_it_has_begun_it_is_broken_off(strike: Callable[..., None], stage: type[Stage]) -> None:
    strike(stage, "on_data", after=False, spared=1)
    case = Case()
    client, answer = case.ask(STREAM)
    assert (answer.status, answer.complete) == (200, False)
    assert answer.body.startswith(b'data: 1\n\n\n\ndata: {"error":')
    assert b'"code":"internal"' in answer.body
    assert not client.is_open
    assert case.wire.engine.aborted
    assert (case.wire.record.status, case.wire.record.reason) == (200, "internal")
    case.assert_it_cost_nothing_more()


@pytest.mark.parametrize("answer", [WHOLE, STREAM], ids=["whole", "stream"])
@pytest.mark.parametrize("stage", STAGES)
def test_on_the_way_out_nobody_notices(
    strike: Callable[..., None], stage: type[Stage], answer: tuple[bytes, ...]
) -> None:
    """What it held is given back by then: a stage that fails to do that has lost it."""
    strike(stage, "on_complete", after=True)
    case = Case()
    client, got = case.ask(answer)
    assert (got.status, got.complete) == (200, True)
    assert client.is_open
    assert len(case.wire.receipts.last(10)) == 1
    case.assert_it_cost_nothing_more()


@pytest.mark.parametrize("stage", STAGES)
def test_on_the_way_out_of_one_who_left(strike: Callable[..., None], stage: type[Stage]) -> None:
    strike(stage, "on_complete", after=True)
    case = Case()
    client, _ = case.ask(())
    case.act(lambda: client >> End.RESET)
    assert case.wire.record.reason == "client_gone"
    case.assert_it_cost_nothing_more()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_on_the_way_to_the_engine(strike: Callable[..., None], after: bool) -> None:
    strike(Connections, "send", after=after)
    case = Case()
    client, answer = case.ask(())
    assert (answer.status, answer.reason) == (500, "internal")
    assert client.is_open
    case.assert_it_cost_nothing_more()


@pytest.mark.interpreted
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_on_the_way_to_the_client(strike: Callable[..., None], after: bool) -> None:
    """The answer cannot be given: the client learns at least that there is none."""
    strike(Downstream, "_answer", after=after)
    case = Case()
    client = case.wire.client()
    case.act(lambda: client >> get("/sleep?bug"))
    assert client.transport.lost
    assert client.answer().status == (403 if after else 0)
    assert case.wire.record.reason == "forbidden"
    case.assert_it_cost_nothing_more()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_when_its_turn_comes_after_a_wait(strike: Callable[..., None], after: bool) -> None:
    """Whom it wakes next is not kept waiting."""
    strike(Pick, "on_request", after=after)
    case = Case("admission: {max_in_flight: 1}")
    wire = case.wire
    first = wire.client() >> post()
    struck = wire.client() >> post(STRUCK)
    third = wire.client() >> post(CHAT, b"{}")
    assert wire.gate.queued == 2
    case.act(lambda: wire.engine >> ok(b"1"))
    assert first.answer(b"POST").body == b"1"
    assert struck.answer(b"POST").reason == "internal"
    wire.engine >> ok(b"3")
    assert third.answer(b"POST").body == b"3"
    case.assert_it_cost_nothing_more()
