"""What one exchange leaves behind: a line of the access log and a receipt at /debug/decisions.

It holds no prompt, no key and no query string, which may carry one.
"""

from msgspec import Struct, field


# Only scalars: the garbage collector need not look at the thousands that are kept.
class Record(Struct, gc=False):
    """Facts about a finished exchange. Times that did not happen are 0."""

    arrived: int  # wall time, ms since 1970
    request_id: str
    client: str  # its address, as far as proxies are trusted
    method: str
    path: str  # without the query
    tenant: str
    cls: str = field(name="class")
    model: str
    stream: bool
    status: int  # 499: the client left before an answer
    reason: str  # why the mesh answered or ended it; "" when the engine did
    endpoint: str  # who answered; "" when nobody was asked
    attempts: int
    tried: str  # where it had been in vain, and why: `address reason; ...`
    repeat: int  # how often the caller says it has tried before
    invited: bool  # it was told to come back about now
    duration_ms: float
    position: int  # how many waited before it when it came; 0 too when it did not wait
    predicted_ms: float  # from its arrival to its first token, for one that waited
    queue_ms: float
    upstream_ms: float  # from dispatch to the first byte of the answer
    prompt_tokens: int  # estimated
    answer_tokens: int  # counted, or what the engine said
    bytes_in: int  # of the request body
    bytes_out: int  # of the response body
