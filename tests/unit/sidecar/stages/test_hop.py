"""What one sidecar tells the next of a request, and what that one makes of it."""

import pytest

from sidecar.balance.caller import CALLER, HOP, SIGNATURE, Caller, belongs_to, lines
from sidecar.exchange import FORWARDED, Exchange
from sidecar.http1.request import FIELDS
from tests.unit.sidecar.stages.asker import CHAT, Desk

KEYS = (b"first-key-of-the-mesh",)
ID = b"id-1"
WHOSE = Caller("pod-2", "acme", "premium", 2.5, "198.51.100.9", 3, 1500, 4000, 9000)


def desk(config: str = "") -> Desk:
    """Of pod-1."""
    it = Desk(config)
    it.hop.keys = KEYS
    return it


def ask(it: Desk, caller: Caller = WHOSE, *fields: str, target: str = CHAT, hop: str = "1") -> Exchange:
    """What another sidecar hands on."""
    about = belongs_to(b"POST", target.encode(), b"", 2)
    words = lines(caller, KEYS, about).decode().replace(f"{HOP.decode()}: 1", f"{HOP.decode()}: {hop}")
    return come(it, *words.rstrip("\r\n").split("\r\n"), *fields, target=target)


def come(it: Desk, *fields: str, target: str = CHAT, method: str = "POST", body: bytes = b"{}") -> Exchange:
    """It comes in where peers do."""
    return it.ask(*fields, target=target, method=method, body=body, is_mesh=True)


class TestReceiving:
    """The second half."""

    def test_what_the_first_knows_is_taken_over(self) -> None:
        it = desk()
        x = ask(it)
        assert (x.state, x.hop) == (FORWARDED, 1)
        assert (x.tenant, x.cls, x.weight, x.repeat) == ("acme", "premium", 2.5, 3)
        assert (x.client_ip, x.by_proxy) == ("198.51.100.9", True)
        now = it.clock.now()
        assert (x.origin, x.deadline, x.last_byte_by) == (now - 1.5, now + 4, now + 9)

    def test_a_caller_who_waits_for_ever_does_so_here(self) -> None:
        x = ask(desk(), WHOSE._replace(first_byte_ms=None, last_byte_ms=None))
        assert (x.deadline, x.last_byte_by, x.alarm) == (None, None, None)

    def test_the_deadline_ends_it_here_too(self) -> None:
        it = desk()
        x = ask(it)
        it.pass_time(3.75)
        assert it.reason(x) == ""
        it.pass_time(0.5)
        assert it.reason(x) == "timeout"

    def test_who_has_no_time_left_is_told_so(self) -> None:
        it = desk()
        assert it.reason(ask(it, WHOSE._replace(first_byte_ms=0))) == "timeout"

    def test_who_asks_is_not_asked_again(self) -> None:
        """Neither for a key nor for a class: that was settled where the caller came in."""
        x = ask(desk("unknown_keys: reject"), WHOSE, "x-priority: batch", "authorization: Bearer wrong")
        assert (x.state, x.tenant, x.cls) == (FORWARDED, "acme", "premium")

    def test_a_class_that_is_unknown_here_is_the_lowest(self) -> None:
        assert ask(desk(), WHOSE._replace(cls="urgent")).cls == "batch"

    @pytest.mark.parametrize("left_out", [HOP, CALLER, SIGNATURE])
    def test_who_is_not_introduced_does_not_come_in(self, left_out: bytes) -> None:
        it = desk()
        words = lines(WHOSE, KEYS, belongs_to(b"POST", CHAT.encode(), b"", 2)).decode()
        rest = [line for line in words.rstrip("\r\n").split("\r\n") if not line.startswith(left_out.decode())]
        x = come(it, *rest)
        assert len(rest) == 2
        assert it.reason(x) == ("loop" if left_out == HOP else "forbidden")
        assert not it.forwarded

    @pytest.mark.parametrize(
        "changed", [{"method": "PUT"}, {"target": CHAT + "?n=2"}, {"body": b"{ }"}]
    )
    def test_words_about_another_request_are_not_believed(self, changed: dict[str, object]) -> None:
        it = desk()
        words = lines(WHOSE, KEYS, belongs_to(b"POST", CHAT.encode(), b"", 2)).decode()
        x = come(it, *words.rstrip("\r\n").split("\r\n"), **changed)  # type: ignore[arg-type]
        assert it.reason(x) == "forbidden"
        assert "signature" in (it.answers[x].message or "")

    def test_without_keys_nobody_is_believed(self) -> None:
        it = desk()
        it.hop.keys = ()
        assert it.reason(ask(it)) == "forbidden"

    @pytest.mark.parametrize("hop", ["0", "2", "11", ""])
    def test_there_is_one_hop_at_most(self, hop: str) -> None:
        it = desk()
        assert it.reason(ask(it, hop=hop)) == "loop"

    def test_what_we_handed_on_does_not_come_back(self) -> None:
        it = desk()
        assert it.reason(ask(it, WHOSE._replace(pod="pod-1"))) == "loop"

    @pytest.mark.parametrize(
        ("via", "reason"), [("1.1 headgate", ""), ("1.1 headgate, 1.1 headgate", "loop")]
    )
    def test_what_has_come_further_is_a_loop(self, via: str, reason: str) -> None:
        it = desk()
        assert it.reason(ask(it, WHOSE, f"via: {via}")) == reason

    def test_what_nobody_may_ask_the_engine_no_peer_may(self) -> None:
        it = desk()
        assert it.reason(ask(it, target="/sleep")) == "forbidden"

    def test_members_are_told_how_this_pod_is(self) -> None:
        it = desk()
        x = ask(it, target="/.headgate/heartbeat")
        assert (it.answers[x].body, it.answers[x].content_type) == (b"a heartbeat", b"application/msgpack")
        assert not it.forwarded

    def test_nobody_else_is_told_how_this_pod_is(self) -> None:
        it = desk()
        x = come(it, target="/.headgate/heartbeat")
        assert it.reason(x) == "forbidden"

    def test_where_callers_come_in_such_words_are_nothing(self) -> None:
        it = desk()
        words = lines(WHOSE, KEYS, belongs_to(b"POST", CHAT.encode(), b"", 2)).decode()
        x = it.ask(*words.rstrip("\r\n").split("\r\n"))
        assert (x.state, x.hop, x.tenant, x.client_ip) == (FORWARDED, 0, "anonymous", "192.0.2.7")


class TestIntroducing:
    """The first half."""

    def test_it_is_understood_by_another_pod(self) -> None:
        first, second = desk(), desk()
        second.hop.pod = "pod-9"
        x = first.ask("x-request-timeout-ms: 5000", "x-stainless-retry-count: 2", "x-priority: batch")
        first.clock.advance(1.25)
        y = come(second, *said(first, x))
        now = second.clock.now()
        assert (y.hop, y.tenant, y.cls, y.weight, y.repeat) == (1, x.tenant, "batch", 1.0, 2)
        assert y.client_ip == "192.0.2.7"
        assert (now - y.origin, (y.deadline or 0) - now) == (1.25, 3.75)

    def test_elapsed_times_are_rounded_up_and_never_negative(self) -> None:
        it = desk()
        x = it.ask("x-request-timeout-ms: 1000")
        it.clock.advance(1.5001)
        words = dict(FIELDS.read([line.encode() for line in said(it, x)])[0])
        told = dict(pair.split("=") for pair in words[CALLER].decode().split(","))
        assert (told["elapsed_ms"], told["first_byte_ms"], told["pod"]) == ("1501", "0", "pod-1")

    def test_the_body_that_is_sent_is_meant(self) -> None:
        """It may have been rewritten here."""
        first, second = desk(), desk()
        second.hop.pod = "pod-9"
        x = first.ask()
        x.body = b'{"priority": 1}'
        y = come(second, *said(first, x), body=x.body)
        assert y.state == FORWARDED


def said(it: Desk, x: Exchange) -> list[str]:
    return it.hop.introduce(x, x.request.target).decode().rstrip("\r\n").split("\r\n")
