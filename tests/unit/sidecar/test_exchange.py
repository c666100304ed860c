"""What an exchange is before any stage has seen it."""

from sidecar.exchange import PARKED, RUNNING, Exchange, Parked, Reply
from sidecar.settings import Timeouts
from tests.unit.sidecar.stages.asker import Asker


def fresh() -> Exchange:
    return Asker().ask(peer="192.0.2.7")


def test_nothing_is_known_and_nothing_is_held() -> None:
    asker = Asker()
    timeouts = Timeouts(stall_s=9.0)
    x = Exchange(asker.ask().request, fresh().client, asker.pipeline, timeouts, 7.0)
    assert x.timeouts is timeouts
    assert (x.state, x.entered, x.pending, x.attempt, x.refusal) == (RUNNING, 0, 0, 1, None)
    assert (x.arrived, x.parked, x.waited, x.dispatched, x.responded) == (7.0, 0.0, 0.0, 0.0, 0.0)
    assert (x.tenant, x.cls, x.model) == ("anonymous", "standard", "other")
    assert (x.is_work, x.deadline, x.last_byte_by, x.repeat) == (False, None, None, 0)
    assert (x.held, x.timer, x.alarm, x.when_body) == (0, None, None, None)
    assert (x.status, x.reason, x.bytes_out, x.endpoint, x.upstream, x.body) == (0, "", 0, None, None, None)


def test_verdicts_are_told_apart_by_identity_and_type() -> None:
    assert isinstance(PARKED, Parked)
    assert not isinstance(PARKED, Reply)


def test_it_shows_neither_key_nor_prompt() -> None:
    """Whatever is logged of it by mistake."""
    x = Asker().ask("authorization: Bearer sk-123", target="/v1/x?key=sk-456", body=b"my secret")
    shown = f"{x!r} {x.request!r}"
    assert "/v1/x" in shown
    assert not any(secret in shown for secret in ("sk-123", "sk-456", "my secret"))
