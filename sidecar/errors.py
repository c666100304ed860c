"""Everything that can go wrong, in three kinds that never mix.

1. A `Refusal` is an expected outcome of policy or of the world: a row of the table below, carried
   by a `Reply`. It is a value, because under overload it is the common case.
2. `ProtocolError` is raised where bytes are read and a peer sent what we will not interpret. It
   names the refusal that answers it.
3. Any other exception is a bug: the pipeline answers `internal`, logs it and settles the exchange.

`ConfigError` stops the program at its start, or keeps the last good configuration on reload.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason for which the mesh itself answers, or ends, an exchange.

    `reason` is the same word in `x-headgate-reason`, the metric label, the access log and the
    span. `kind` is the `type` of the OpenAI-shaped error. `close` ends the client's connection,
    because its framing or its time is lost. `elsewhere` says that another pod may do better:
    Envoy retries what carries `x-headgate-elsewhere`. `inviting` refusals tell the caller when
    to return, or, without a time, not to.
    """

    reason: str
    status: int
    message: str
    kind: str = "invalid_request_error"
    close: bool = False
    elsewhere: bool = False
    inviting: bool = False


_SERVER: Final = "server_error"

MALFORMED: Final = Refusal(
    "malformed", 400, "The request is not valid HTTP/1.1, or its length is ambiguous.", close=True
)
URI_TOO_LONG: Final = Refusal("uri_too_long", 414, "The request line is too long.", close=True)
NOT_IMPLEMENTED: Final = Refusal(
    "not_implemented", 501, "This method, upgrade or transfer coding is not supported.", close=True
)
VERSION: Final = Refusal("version", 505, "Use HTTP/1.1 or HTTP/1.0.", close=True)
EXPECTATION: Final = Refusal("expectation", 417, "The only expectation met is 100-continue.", close=True)
REQUEST_TIMEOUT: Final = Refusal("request_timeout", 408, "The request came too slowly.", close=True)
BODY_TOO_LARGE: Final = Refusal("body_too_large", 413, "The request body is too large.", close=True)
HEADERS_TOO_LARGE: Final = Refusal(
    "headers_too_large", 431, "The request has too many or too large header fields.", close=True
)
UNAUTHENTICATED: Final = Refusal(
    "unauthenticated",
    401,
    "Send a known API key as 'Authorization: Bearer', 'x-api-key' or 'api-key'.",
    "authentication_error",
)
FORBIDDEN: Final = Refusal("forbidden", 403, "This path is not open to callers.", "permission_error")
RATE_LIMITED: Final = Refusal(
    "rate_limited", 429, "Your quota is used up. Retry as the headers say.", "rate_limit_error", inviting=True
)
EXCEEDS_QUOTA: Final = Refusal(
    "exceeds_quota", 400, "The request is larger than your whole quota and can never pass.", inviting=True
)
OVERLOADED: Final = Refusal(
    "overloaded",
    503,
    "The model is at capacity. Retry as the headers say.",
    _SERVER,
    elsewhere=True,
    inviting=True,
)
QUEUE_FULL: Final = Refusal(
    "queue_full", 503, "The queue is full. Retry as the headers say.", _SERVER, elsewhere=True, inviting=True
)
QUEUE_TIMEOUT: Final = Refusal(
    "queue_timeout",
    503,
    "The request waited too long for its turn. Retry as the headers say.",
    _SERVER,
    elsewhere=True,
    inviting=True,
)
NO_ENDPOINT: Final = Refusal(
    "no_endpoint",
    503,
    "No healthy model server is available. Retry as the headers say.",
    _SERVER,
    elsewhere=True,
    inviting=True,
)
TOO_MANY_CONNECTIONS: Final = Refusal(
    "too_many_connections", 503, "Too many connections.", _SERVER, close=True, inviting=True
)
# Elsewhere, for not a byte was sent: a dead engine must not be the pod that answers fastest.
CONNECT_FAILED: Final = Refusal(
    "connect_failed", 502, "The model server refused the connection.", _SERVER, elsewhere=True
)
UPSTREAM_RESET: Final = Refusal("upstream_reset", 502, "The model server closed the connection.", _SERVER)
UPSTREAM_PROTOCOL: Final = Refusal(
    "upstream_protocol", 502, "The model server's answer is not valid HTTP/1.1.", _SERVER
)
FIRST_TOKEN_TIMEOUT: Final = Refusal(
    "first_token_timeout", 504, "The model server did not begin to answer in time.", _SERVER
)
STALLED: Final = Refusal("stalled", 504, "The model server stopped in the middle of its answer.", _SERVER)
TIMEOUT: Final = Refusal("timeout", 504, "The request's deadline passed.", _SERVER)
PREEMPTED: Final = Refusal(
    "preempted",
    503,
    "More important work took this request's place. Retry as the headers say.",
    _SERVER,
    inviting=True,
)
LOOP: Final = Refusal("loop", 508, "The request came back to where it had been.", _SERVER)
DRAINING: Final = Refusal(
    "draining",
    503,
    "This pod is going away. Retry: another one will answer.",
    _SERVER,
    close=True,
    elsewhere=True,
    inviting=True,
)
CLIENT_GONE: Final = Refusal("client_gone", 499, "The caller left.")
INTERNAL: Final = Refusal("internal", 500, "An internal error occurred.", _SERVER)


# All of them, for whoever must not believe in others.
REASONS: Final = frozenset(each.reason for each in list(globals().values()) if isinstance(each, Refusal))


class ProtocolError(Exception):
    """A peer sent bytes that are not interpreted; `refusal` says how it is answered."""

    def __init__(self, refusal: Refusal, detail: str) -> None:
        super().__init__(f"{refusal.reason}: {detail}")
        self.refusal = refusal
        self.detail = detail


class ConfigError(Exception):
    """The configuration is refused; `path` is the key, as in `limits[0].burst`."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}" if path else problem)
        self.path = path
        self.problem = problem
