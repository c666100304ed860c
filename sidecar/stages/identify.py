"""Who asks, and for what. Pure parts: `llm`, `http1.forwarded`, `flow.budget`, `balance.engine_page`.

In two halves. The head says who: tenant, address, deadline; a caller who is turned away is
turned away before the body is sent. The body says what: model, stream, max_tokens, class. While
the body is still coming the exchange is parked here. Nothing below reads the request again.

The engine's metrics page is answered from here, with our queue in it, so that whoever watches the engine
sees all who wait; while we have none that is fresh, the engine answers.

What a peer hands on is introduced by it (`stages.hop`) and not asked again who it is.

Two things are taken here and given back at the end: room for the body, and an alarm for the deadline,
which ends the exchange wherever it is.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from sidecar.errors import (
    BODY_TOO_LARGE,
    DRAINING,
    EXPECTATION,
    FORBIDDEN,
    LOOP,
    OVERLOADED,
    TIMEOUT,
    UNAUTHENTICATED,
    Refusal,
)
from sidecar.exchange import PARKED, WAITING, Exchange, Reply, Verdict
from sidecar.http1.fields import PSEUDONYM
from sidecar.llm.patience import LONGEST_S, elapsed_s, patience_s, says_patience
from sidecar.llm.request import EMBEDDINGS, HIGHEST, LOWEST, OWN, Route, read
from sidecar.pipeline import Stage
from sidecar.stages.hop import HEARTBEAT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sidecar.balance.engine_page import EnginePage
    from sidecar.clock import Alarms, Clock
    from sidecar.flow.budget import Budget
    from sidecar.http1.forwarded import Trust
    from sidecar.http1.request import Request
    from sidecar.lifecycle import Lifecycle
    from sidecar.llm.models import Catalog
    from sidecar.settings import ClassRule, Config, Tenant
    from sidecar.stages.hop import Hop
    from sidecar.telemetry.metrics import Metrics

_UNREAD: Final = 4096  # bytes of text at most in a body that is not read: it may be sound or pictures
_MAX_ROUTES: Final = 1024  # distinct request lines remembered
_MAX_LINE: Final = 256  # longer ones are not worth remembering
_MAX_REPEAT: Final = 100
_MAX_ROUNDS: Final = 1  # of a request through here: a peer may have handed it on
_CHALLENGE: Final = b'www-authenticate: Bearer realm="headgate"\r\n'  # RFC 9110 section 15.5.2
# Nothing is refused, and the engine is not asked.
_OURS_TO_ANSWER: Final = Refusal("", 200, "")


class Identify(Stage):
    """Fills the second group of the exchange's fields."""

    def __init__(
        self,
        config: Config,
        clock: Clock,
        alarms: Alarms,
        catalog: Catalog,
        trust: Trust,
        lifecycle: Lifecycle,
        bodies: Budget,
        metrics: Metrics,
        page: EnginePage,
        hop: Hop,
        hands_on: Callable[[], bool],
    ) -> None:
        self._clock = clock
        self._alarms = alarms
        self._bodies = bodies
        self._catalog = catalog
        self._trust = trust
        self._lifecycle = lifecycle
        self._by_hash: dict[str, Tenant] = {
            key: tenant for tenant in config.tenants for key in tenant.key_sha256
        }
        # Known keys alone, so that its size is the configuration's: hashing costs more than all else here.
        self._by_key: dict[bytes, Tenant] = {}
        self._anonymous = next(tenant for tenant in config.tenants if tenant.name == "anonymous")
        self._reject_unknown = config.unknown_keys == "reject"
        self._rules = config.class_rules
        self._rank = {name: rank for rank, name in enumerate(config.classes)}
        names = list(config.classes)
        self._tiers = {HIGHEST: names[0], LOWEST: names[-1]}
        self._metrics = metrics
        self._denied = tuple(path.rstrip("/") for path in config.engine.deny_paths)
        self._max_body = config.max_body_bytes
        self._longest = config.timeouts.request_s
        self._routes: dict[bytes, tuple[Route, bool]] = {}
        self._page = page
        self._hop = hop
        self._hands_on = hands_on
        shown = config.engine.metrics
        self._page_path = shown.path if shown.reexport else None

    def on_request(self, x: Exchange) -> Verdict:
        request = x.request
        noted = request.noted
        self._read_fields(x, noted)
        route, denied = self._routes.get(request.line) or self._route(request)
        x.path = route.path
        x.is_work = route.is_work
        x.is_openai = route.is_openai
        x.size = min(request.length or 0, _UNREAD)
        lifecycle = self._lifecycle
        # Few requests need the closer look.
        if (
            lifecycle.draining
            or lifecycle.lagging
            or b"via" in noted
            or b"expect" in noted
            or request.goes_no_further
        ):
            reply = self._turned_away(x)
            if reply is not None:
                return reply
        if denied:
            return Reply(FORBIDDEN)
        if x.client.is_mesh:
            verdict = self._from_peer(x)
            if verdict is not None:
                return verdict
        else:
            tenant = self._tenant(noted)
            if tenant is None:
                return Reply(UNAUTHENTICATED, headers=_CHALLENGE)
            x.tenant = tenant.name
            x.weight = tenant.weight
            assert tenant.cls is not None
            x.cls = tenant.cls
        if x.deadline is not None:
            left = x.deadline - self._clock.now()  # it may have waited behind another one of its connection
            if left <= 0:
                return Reply(TIMEOUT)
            x.alarm = self._alarms.after(left, self._out_of_time, x)
        return self._wait_for_body(x) if route.is_buffered else self._let_through(x)

    def _turned_away(self, x: Exchange) -> Reply | None:
        """The answer to what cannot be served here, whoever asks."""
        request, lifecycle = x.request, self._lifecycle
        noted = request.noted
        if lifecycle.draining and (x.client.is_mesh or not self._hands_on()):
            return Reply(DRAINING, retry_after_s=self._clock.jitter(1.0, 0.2))
        if lifecycle.lagging and x.is_work:  # what is queued now would make everybody later still
            return Reply(OVERLOADED, retry_after_s=self._clock.jitter(1.0, 0.2))
        via = noted.get(b"via")
        if via is not None and _rounds(via) > _MAX_ROUNDS:
            return Reply(LOOP)
        if request.goes_no_further:  # it asks what the last one on its way can do: nothing in particular
            return Reply(_OURS_TO_ANSWER)
        expect = noted.get(b"expect")
        if expect is not None and expect.lower() != b"100-continue" and request.version == "1.1":
            return Reply(EXPECTATION)
        return None

    def _from_peer(self, x: Exchange) -> Verdict:
        verdict = self._hop.receive(x)
        if verdict is None and x.path == HEARTBEAT:
            return Reply(_OURS_TO_ANSWER, body=self._hop.heartbeat(), content_type=b"application/msgpack")
        if x.cls not in self._rank:  # its configuration is another one
            x.cls = next(reversed(self._rank))
        return verdict

    def _let_through(self, x: Exchange) -> Verdict:
        """What is not read: the engine's matter, but for its metrics page."""
        request = x.request
        if x.is_work:
            self._classify(x, None, None)
        elif x.path == self._page_path and request.method == b"GET":
            page = self._page.shown(self._clock.now())
            if page is not None:
                return Reply(_OURS_TO_ANSWER, body=page, content_type=self._page.content_type)
        if not request.complete:
            x.client.want_body(x)
        return None

    def on_complete(self, x: Exchange) -> None:
        if x.alarm is not None:
            x.alarm.cancel()
            x.alarm = None
        if x.held:
            self._bodies.give_back(x.held)
            x.held = 0

    def _out_of_time(self, x: Exchange) -> None:
        """The alarm for the first byte; once that is here, for the last."""
        if not x.responded:
            x.pipeline.refuse(x, Reply(TIMEOUT))
        elif x.last_byte_by is not None:
            left = x.last_byte_by - self._clock.now()
            if left <= 0:
                x.pipeline.refuse(x, Reply(TIMEOUT))
            else:
                x.alarm = self._alarms.after(left, self._out_of_time, x)

    def _wait_for_body(self, x: Exchange) -> Verdict:
        request = x.request
        no_room = self._hold(x)
        if no_room is not None:
            return no_room
        if request.complete:
            self._read(x)
            return None
        x.when_body = self._body_came
        x.client.want_body(x)
        return PARKED

    def _body_came(self, x: Exchange) -> None:
        """More of the body may be here; the client calls this until it is complete or refused."""
        if x.state != WAITING:
            return
        no_room = self._hold(x)
        if no_room is not None:
            x.pipeline.resume(x, no_room)
        elif x.request.complete:
            x.when_body = None
            self._read(x)
            x.pipeline.resume(x)

    def _hold(self, x: Exchange) -> Reply | None:
        """Count what has come of the body; the refusal, if that is too much."""
        request = x.request
        received = request.received
        if (request.length or received) > self._max_body:
            return Reply(BODY_TOO_LARGE, message=f"The body may have {self._max_body} bytes.")
        if not self._bodies.take(received - x.held):
            return Reply(OVERLOADED, retry_after_s=self._clock.jitter(1.0, 0.2))
        x.held = received
        return None

    def _read_fields(self, x: Exchange, noted: Mapping[bytes, bytes]) -> None:
        """Caller's address, repeat count, deadline."""
        repeat = noted.get(b"x-stainless-retry-count", b"0")
        if repeat != b"0" and repeat.isdigit():
            x.repeat = min(int(repeat[:9]), _MAX_REPEAT)
        x.by_proxy = by_proxy = self._trust.covers(x.client_ip)
        first_byte_s, last_byte_s = patience_s(noted)
        origin = x.arrived
        started = noted.get(b"x-request-start") if by_proxy else None
        if started:
            origin = min(origin, self._clock.now() - elapsed_s(started, self._clock.wall()))
        x.origin = origin
        if first_byte_s is not None:
            if first_byte_s >= LONGEST_S:
                self._metrics.corrected("deadline")
            x.deadline = origin + first_byte_s
            x.last_byte_by = None if last_byte_s is None else origin + last_byte_s
        elif says_patience(noted):
            self._metrics.corrected("deadline")
        if self._longest is not None:
            _end_by(x, x.arrived + self._longest)
        if by_proxy and b"x-forwarded-for" in noted:
            # A proxy may add a field of its own instead of extending the one that its caller sent.
            x.client_ip = self._trust.origin(x.client_ip, noted[b"x-forwarded-for"])

    def _route(self, request: Request) -> tuple[Route, bool]:
        """What the request line says, and whether that is denied; remembered."""
        route = Route(request.method, request.target)
        path = route.path
        known = route, any(path == denied or path.startswith(denied + "/") for denied in self._denied)
        if len(request.line) <= _MAX_LINE:
            if len(self._routes) >= _MAX_ROUTES:
                self._routes.clear()
            self._routes[request.line] = known
        return known

    def _tenant(self, noted: Mapping[bytes, bytes]) -> Tenant | None:
        """Whose key it is; None: nobody's, and that is not allowed."""
        key = _bare_key(noted)
        if key and self._by_hash:
            tenant = self._by_key.get(key) or self._by_hash.get(hashlib.sha256(key).hexdigest())
            if tenant is not None:
                self._by_key[key] = tenant
                return tenant
        return None if self._reject_unknown else self._anonymous

    def _read(self, x: Exchange) -> None:
        body = x.body
        if body is None:  # else it is entered anew, perhaps with another body
            x.body = body = x.request.take_body()
        asked = read(body)
        x.stream = asked.stream
        x.max_tokens = asked.max_tokens
        x.size = asked.size
        x.answers = asked.answers if x.path != EMBEDDINGS else 0
        if asked.odd:
            self._metrics.corrected("max_tokens")
        if asked.model is not None:
            x.model = self._catalog.label(asked.model)
        self._classify(x, asked.cls, asked.model)

    def _classify(self, x: Exchange, tier: str | None, model: str | None) -> None:
        """The caller's word, else the first rule that matches; the tenant's own class is the ceiling."""
        if x.hop:
            return  # it was said where the caller came in
        rank = self._rank
        given = x.request.noted.get(b"x-priority")
        cls = given.decode("latin-1").lower() if given else None
        if cls is not None and cls not in rank:
            self._metrics.corrected("class_unknown")
            cls = None
        if cls is None:
            if tier == OWN:
                return
            cls = self._tiers.get(tier) if tier is not None else None
        if cls is None:
            cls = self._ruled(x, model) if self._rules else None
        if cls is None:
            return
        if rank[cls] >= rank[x.cls]:
            x.cls = cls
        else:
            self._metrics.corrected("class_above_own")

    def _ruled(self, x: Exchange, model: str | None) -> str | None:
        first = dict(reversed(x.request.fields))  # of a repeated field the first counts
        for rule in self._rules:
            if _matches(rule, x.path, model, first):
                return rule.cls
        return None


def _end_by(x: Exchange, instant: float) -> None:
    """All of `x` ends then, or when its caller said, whichever is earlier."""
    x.deadline = instant if x.deadline is None else min(x.deadline, instant)
    x.last_byte_by = instant if x.last_byte_by is None else min(x.last_byte_by, instant)


def _matches(rule: ClassRule, path: str, model: str | None, first: Mapping[bytes, bytes]) -> bool:
    if rule.route is not None and not path.startswith(rule.route):
        return False
    if rule.model is not None and rule.model != model:
        return False
    for name, value in rule.header.items():
        if first.get(name.encode()) != value.encode():
            return False
    if rule.key_sha256:
        key = _bare_key(first)
        return key is not None and hashlib.sha256(key).hexdigest() in rule.key_sha256
    return True


def _rounds(via: bytes) -> int:
    """How often a request has come through here: an entry is a protocol, a name, perhaps a comment."""
    return sum(entry.split()[1:2] == [PSEUDONYM] for entry in via.split(b","))


def _bare_key(noted: Mapping[bytes, bytes]) -> bytes | None:
    """The API key as it was given out, from the first field that has one."""
    authorization = noted.get(b"authorization")
    if authorization is not None and authorization[:7].lower() == b"bearer ":
        return authorization[7:].strip()
    return noted.get(b"x-api-key") or noted.get(b"api-key")
