"""What a sidecar says to its mesh's blackboard and what it is told: the two sides of `blackboard.lua`.

The script's head states the rules. One call carries a `Post`, gives a `View`, and may send a `Notice` to all.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

T = TypeVar("T")

PAYLOAD_BYTES: Final = 4096  # of one member, at most
EACH: Final = 8  # votes, pods to release, tickets held and probes in one call; the first ones count
LEFT: Final = "left"  # the state in the notice of a member that has gone
DOWN: Final = "down"
DRAINING: Final = "draining"
GRANTED: Final = "granted"
EXISTS: Final = "exists"
TOO_FEW: Final = "votes"
PARDONED: Final = "pardoned"

_WORD: Final = re.compile(r"[!-~]{1,128}")  # states, reasons, pods: parted by spaces in the keys
_PARTS: Final = (
    "members",
    "seen",
    "votes",
    "suspects",
    "ejected",
    "tickets",
    "pardons",
    "probes",
    "retries",
    "meta",
)


class Vote(Struct, array_like=True, frozen=True):
    """`pod` should be ejected. It is said with each post for as long as it is so: a vote lasts 10 s."""

    pod: str
    reason: str
    alone: bool  # this one is enough: by the pod's own sidecar, or as strong as that
    observers: int  # sidecars that watch this pod at all
    ms: int  # how long the ejection is to be


class Post(Struct, frozen=True, kw_only=True):
    """What one sidecar says. Capacity and demand are in one unit, the same in the whole mesh."""

    payload: bytes  # for peers; opaque here
    state: str  # one word: `down` counts nowhere, `draining` bears no load, all others serve
    capacity: float = 0.0
    demand: float = 0.0
    votes: tuple[Vote, ...] = ()
    uneject: tuple[str, ...] = ()  # pods that are well again; say it until the view has no such ticket
    probes: tuple[str, ...] = ()  # ejected pods that we would probe, or do
    origins: float = 0.0  # token cost of first attempts since the last post
    retries: float = 0.0  # and of others
    urgent: bool = False  # peers are told at once, as they are of another state


class Terms(Struct, frozen=True, kw_only=True):
    """The configuration's bounds."""

    max_replicas: int = 256
    max_percent: int = 20
    longest_ms: int = 300_000  # of any ejection
    lease_ms: int = 5_000  # of the right to probe


class Held(Struct, array_like=True, frozen=True):
    """A ticket as we remember it."""

    pod: str
    reason: str
    ms: int


class Member(Struct, frozen=True):
    """One sidecar, and how long before the view it was heard."""

    pod: str
    age_ms: int
    state: str
    capacity: float
    demand: float
    payload: bytes


class Ejected(Struct, frozen=True):
    """One ticket; `prober` may probe the pod now, if it is not empty."""

    pod: str
    remaining_ms: int
    reason: str
    voters: tuple[str, ...]
    prober: str


class View(Struct, frozen=True, kw_only=True):
    """What all know, as of `at_ms` by the server's clock, and what became of our own post.

    The words: granted, exists; votes: not enough yet; cap, capacity, systemic: not now, whoever votes;
    absent: no such member, or it is down; pardoned: that ticket was ended on purpose.
    """

    at_ms: int
    settled: bool  # False: the keys are new, or nobody called for a while: who is missing may be there
    full: bool  # we are no member: there are max_replicas of them
    members: tuple[Member, ...]
    ejected: tuple[Ejected, ...]  # what ends first is first
    suspects: tuple[str, ...]  # pods with votes, not ejected and not down
    votes: tuple[tuple[str, str], ...]  # pod and word, in the order of the post
    held: tuple[tuple[str, str], ...]  # likewise, for what we remembered
    origins: float  # the mesh's, over 10 s
    retries: float
    secret: str

    @property
    def pods(self) -> int:
        """Members that are not down."""
        return sum(member.state != DOWN for member in self.members)

    @property
    def systemic(self) -> bool:
        """Half of the pods or more, and more than one, are suspects or ejected: they are not what is ill."""
        up = {member.pod for member in self.members if member.state != DOWN}
        ill = len(self.suspects) + sum(ticket.pod in up for ticket in self.ejected)
        return ill >= max(2, len(up) / 2)


class Notice(Struct, frozen=True, kw_only=True):
    """What cannot wait for a heartbeat: one member (state `left`: it has gone), or all tickets."""

    at_ms: int
    member: Member | None = None
    ejected: tuple[Ejected, ...] | None = None


class _Ask(Struct, frozen=True, kw_only=True):
    pod: str
    leave: bool
    urgent: bool
    state: str
    capacity: float
    demand: float
    max_replicas: int
    max_percent: int
    longest_ms: int
    lease_ms: int
    suspects: int  # pods we would vote against, if they are more than fit
    votes: Sequence[Vote]
    uneject: Sequence[str]
    held: Sequence[Held]
    probes: Sequence[str]
    origins: float
    retries: float
    secret: str


class _Head(Struct, frozen=True, kw_only=True):
    at_ms: int
    settled: bool
    full: bool
    suspects: tuple[str, ...]
    votes: tuple[tuple[str, str], ...]
    held: tuple[tuple[str, str], ...]
    origins: float
    retries: float
    secret: str


class _NoticeHead(Struct, frozen=True, kw_only=True):
    at_ms: int
    pod: str = ""
    ejected: list[str] | None = None
    tickets: list[str] = []
    probes: list[str] = []


_pack: Final = msgspec.msgpack.Encoder().encode
_head: Final = msgspec.msgpack.Decoder(_Head).decode
_notice: Final = msgspec.msgpack.Decoder(_NoticeHead).decode


def cap(pods: int, max_percent: float) -> int:
    """How many of these may be ejected at once."""
    return max(1 if pods >= 3 else 0, int(max_percent * pods / 100))


def keys(mesh: str) -> tuple[str, ...]:
    """The script's KEYS."""
    return tuple(f"hg1:{{{mesh}}}:{part}" for part in _PARTS)


def channel(mesh: str) -> str:
    """Where its notices go."""
    return f"hg1:{{{mesh}}}:members"


def encode(
    mesh: str,
    pod: str,
    post: Post,
    terms: Terms,
    *,
    held: Sequence[Held] = (),
    secret: str = "",
    leave: bool = False,
) -> tuple[bytes, ...]:
    """The script's ARGV; ValueError when `post` is none. `secret` is kept if there is none yet."""
    if len(post.payload) > PAYLOAD_BYTES:
        raise ValueError(f"the payload has {len(post.payload)} bytes, more than {PAYLOAD_BYTES}")
    for word in (pod, post.state, *(each for vote in post.votes for each in (vote.pod, vote.reason))):
        if not _WORD.fullmatch(word):
            raise ValueError(f"{word!r} is no word")
    for number in (post.capacity, post.demand, post.origins, post.retries):
        if not (math.isfinite(number) and number >= 0):
            raise ValueError(f"{number} is no amount")
    if any(vote.observers < 1 for vote in post.votes):
        raise ValueError("who votes is one of the observers")
    ask = _Ask(
        pod=pod,
        leave=leave,
        urgent=post.urgent,
        state=post.state,
        capacity=post.capacity,
        demand=post.demand,
        **msgspec.structs.asdict(terms),
        suspects=len(post.votes) if len(post.votes) > EACH else 0,
        votes=post.votes[:EACH],
        uneject=post.uneject[:EACH],
        held=held[:EACH],
        probes=post.probes[:EACH],
        origins=post.origins,
        retries=post.retries,
        secret=secret,
    )
    return b"", post.payload, _pack(ask), channel(mesh).encode()


def decode(answer: Sequence[Any]) -> View:
    """What the script returned; ValueError when it is something else."""
    try:
        head = _head(answer[0])
        members = tuple(_member(head.at_ms, pod.decode(), record) for pod, record in _pairs(answer[1]))
        times, tickets, probes = ([each.decode() for each in flat] for flat in answer[2:])
        ejected = _ejected(head.at_ms, times, tickets, probes)
    except (msgspec.MsgspecError, ValueError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"not the blackboard's answer: {error}") from None
    up = {member.pod for member in members if member.state != DOWN} - {ticket.pod for ticket in ejected}
    suspects = tuple(pod for pod in head.suspects if pod in up)
    fields = msgspec.structs.asdict(head) | {"suspects": suspects}
    return View(members=members, ejected=ejected, **fields)


def decode_notice(message: bytes) -> Notice:
    """What was published; ValueError when it is something else."""
    end = 4 + int.from_bytes(message[:4])
    try:
        head = _notice(message[4:end])
        if head.ejected is not None:
            ejected = _ejected(head.at_ms, head.ejected, head.tickets, head.probes)
            return Notice(at_ms=head.at_ms, ejected=ejected)
        if end == len(message):
            return Notice(at_ms=head.at_ms, member=Member(head.pod, 0, LEFT, 0.0, 0.0, b""))
        return Notice(at_ms=head.at_ms, member=_member(head.at_ms, head.pod, message[end:]))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ValueError(f"not a notice: {error}") from None


def _pairs(flat: Sequence[T]) -> Iterator[tuple[T, T]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _member(at_ms: int, pod: str, record: bytes) -> Member:
    line, _, payload = record.partition(b"\n")
    heard, state, capacity, demand = line.decode().split(" ")
    return Member(pod, max(0, at_ms - int(heard)), state, float(capacity), float(demand), payload)


def _ejected(
    at_ms: int, times: Sequence[str], tickets: Sequence[str], probes: Sequence[str]
) -> tuple[Ejected, ...]:
    lines, leases = dict(_pairs(tickets)), dict(_pairs(probes))
    found = []
    for pod, ends in _pairs(times):
        reason, *voters = lines.get(pod, "").split(" ")
        until, _, prober = leases.get(pod, "0 ").partition(" ")
        if int(until) <= at_ms:
            prober = ""
        found.append(Ejected(pod, int(ends) - at_ms, reason, tuple(voters), prober))
    return tuple(found)


class Memory:
    """The tickets we voted for, so that they outlive the keys. `now` is the monotonic clock, in seconds.

    What is remembered ends no later than the ticket did: time counts from when the call was sent.
    """

    def __init__(self) -> None:
        self._tickets: dict[str, tuple[str, float]] = {}  # pod -> reason, and when it ends

    def forget(self, pods: Iterable[str]) -> None:
        """They are well again."""
        for pod in pods:
            self._tickets.pop(pod, None)

    def held(self, now: float) -> list[Held]:
        """What is still to run."""
        self._tickets = {pod: ticket for pod, ticket in self._tickets.items() if ticket[1] > now}
        return [Held(pod, reason, int((ends - now) * 1000)) for pod, (reason, ends) in self._tickets.items()]

    def heard(self, pod: str, view: View, sent: float) -> None:
        """`view` answers the call that `pod`, who remembers, sent at that time."""
        self.forget(each for each, word in view.held if word == PARDONED)
        for ticket in view.ejected:
            if pod in ticket.voters:
                self._tickets.pop(ticket.pod, None)
                self._tickets[ticket.pod] = ticket.reason, sent + ticket.remaining_ms / 1000
        while len(self._tickets) > EACH:
            del self._tickets[next(iter(self._tickets))]
