"""What pods say of themselves, between versions and within bounds."""

import msgspec
import pytest

from sidecar.balance.heartbeat import MAX_BYTES, MAX_MODELS, Heartbeat, decode, encode

FULL = Heartbeat(
    pod="pod-1",
    address="10.0.0.1:8080",
    state="down",
    models=("llama", "llama:adapter"),
    waiting=3,
    running=4,
    utilization=1.5,
    capacity=120_000.0,
    why="the engine is not healthy",
    pace=(5, 0.25, 7, 1.5),
    answers=9,
    successes=8,
)
WORDS = list(msgspec.structs.astuple(FULL))
PLACES = {name: place for place, name in enumerate(Heartbeat.__struct_fields__)}
pack = msgspec.msgpack.encode


def test_what_is_said_is_understood() -> None:
    assert decode(encode(FULL)) == FULL
    assert pack(WORDS) == encode(FULL), "an array, in the order of the fields"


def test_the_order_of_the_fields_is_the_agreement() -> None:
    """New ones come at the end."""
    assert Heartbeat.__struct_fields__[:12] == (
        "pod", "address", "state", "models", "waiting", "running", "utilization", "capacity", "why",
        "pace", "answers", "successes",
    )  # fmt: skip


def test_a_newer_version_says_more() -> None:
    assert decode(pack([*WORDS, "a field of tomorrow", {"and": [1, None]}])) == FULL


def test_an_older_version_says_less() -> None:
    assert decode(pack(["pod-1", "", "serving"])) == Heartbeat("pod-1", "", "serving")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pod", ""),
        ("pod", "p" * 129),
        ("pod", 7),
        ("address", "a" * 301),
        ("state", "well"),
        ("models", ["m"] * (MAX_MODELS + 1)),
        ("models", ["m" * 257]),
        ("models", "m"),
        ("waiting", -1),
        ("waiting", 10**12 + 1),
        ("running", 1.5),
        ("utilization", -0.1),
        ("utilization", float("nan")),
        ("utilization", float("inf")),
        ("capacity", float("nan")),
        ("capacity", 1e16),
        ("why", "w" * 65),
        ("pace", [0, 0.0, 0]),
        ("pace", [0, float("nan"), 0, 0.0]),
        ("answers", -1),
        ("successes", 10**12 + 1),
    ],
)
def test_what_is_out_of_bounds_is_refused(field: str, value: object) -> None:
    words = list(WORDS)
    words[PLACES[field]] = value
    with pytest.raises(ValueError, match=r".+"):
        decode(pack(words))


@pytest.mark.parametrize(
    "payload",
    [b"", b"\x00", b"nonsense", b"\xc1", b"\x91" * 2000]
    + [pack({"pod": "pod-1"}), pack([]), pack(["pod-1", ""])]
    + [encode(FULL)[:n] for n in range(0, len(encode(FULL)), 7)],
)
def test_garbage_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode(payload)


def test_what_is_too_long_is_not_even_read() -> None:
    padded = pack([*WORDS, "x" * MAX_BYTES])
    with pytest.raises(ValueError, match=f"{len(padded)} bytes"):
        decode(padded)


def test_whatever_an_engine_calls_its_models_the_pod_is_heard() -> None:
    """Names are the engine's, and a pod whose heartbeat is refused would be lost for its mesh."""
    longest = tuple("\u00e9" * 254 + f"{n:02}" for n in range(MAX_MODELS))
    most = 10**12, 1e15
    load = most[0], most[0], most[1], most[1]
    worst = Heartbeat("p" * 128, "a" * 300, "draining", longest, *load, "w" * 64, most * 2, *load[:2])
    assert decode(encode(worst)) == worst
    unheard = Heartbeat("pod-1", "", "serving", ("short", "m" * 257))
    assert decode(encode(unheard)).models == ("short",)
