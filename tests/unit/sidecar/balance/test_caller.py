"""What a sidecar says of a caller to the next, and that nobody else can say it."""

import pytest

from sidecar.balance.caller import (
    CALLER,
    HOP,
    SIGNATURE,
    Caller,
    Forged,
    Keys,
    belongs_to,
    lines,
    read,
    read_keys,
)

KEYS: Keys = (b"first-key-of-the-mesh",)
OTHER: Keys = (b"another-key-of-a-mesh",)
ABOUT = belongs_to(b"POST", b"/v1/chat/completions", b"id-1", 17)
CALLER_1 = Caller("pod-1", "acme", "premium", 2.5, "192.0.2.7", 1, 1200, 3000, 60_000)


def noted(caller: Caller = CALLER_1, keys: Keys = KEYS, about: bytes = ABOUT) -> dict[bytes, bytes]:
    """As the next sidecar reads the lines."""
    text = lines(caller, keys, about)
    assert text.endswith(b"\r\n")
    return dict(line.split(b": ", 1) for line in text[:-2].split(b"\r\n"))


@pytest.mark.parametrize(
    "caller",
    [
        CALLER_1,
        Caller("pod-1", "anonymous", "batch", 1.0, "", 0, 0, None, None),
        Caller("a/b:c@d+e", "t.1", "c", 1e-6, "2001:db8::1", 100, 10**9, 0, 10**9),
        CALLER_1._replace(first_byte_ms=None),
    ],
)
def test_what_is_said_is_understood(caller: Caller) -> None:
    said = noted(caller)
    assert said.keys() == {HOP, CALLER, SIGNATURE}
    assert said[HOP] == b"1"
    assert read(said, KEYS, ABOUT) == caller


@pytest.mark.parametrize("name", Caller._fields)
def test_no_word_can_be_changed(name: str) -> None:
    said = noted()
    before, _, rest = said[CALLER].partition(f"{name}=".encode())
    said[CALLER] = b"%b%b=%b" % (before, name.encode(), b"9" + rest)
    with pytest.raises(Forged, match="signature"):
        read(said, KEYS, ABOUT)


@pytest.mark.parametrize(
    "about",
    [
        belongs_to(b"PUT", b"/v1/chat/completions", b"id-1", 17),
        belongs_to(b"POST", b"/v1/completions", b"id-1", 17),
        belongs_to(b"POST", b"/v1/chat/completions", b"id-2", 17),
        belongs_to(b"POST", b"/v1/chat/completions", b"id-1", 18),
        belongs_to(b"POST", b"/v1/chat/completions", b"id-1", None),
    ],
)
def test_they_belong_to_one_request(about: bytes) -> None:
    with pytest.raises(Forged, match="signature"):
        read(noted(), KEYS, about)


@pytest.mark.parametrize("signature", [b"", b"0" * 64, b"\xff", noted(keys=OTHER)[SIGNATURE]])
def test_another_signature_is_not_believed(signature: bytes) -> None:
    with pytest.raises(Forged, match="signature"):
        read(noted() | {SIGNATURE: signature}, KEYS, ABOUT)


def test_what_nobody_has_signed_is_not_believed() -> None:
    said = noted()
    with pytest.raises(Forged, match="signature"):
        read({CALLER: said[CALLER]}, KEYS, ABOUT)
    with pytest.raises(Forged, match="nobody"):
        read({SIGNATURE: said[SIGNATURE]}, KEYS, ABOUT)
    with pytest.raises(Forged, match="signature"):
        read(said, (), ABOUT)


def test_the_first_key_signs_and_both_are_believed() -> None:
    exchanging = KEYS + OTHER
    assert noted(keys=exchanging) == noted(keys=KEYS)
    assert read(noted(keys=KEYS), exchanging, ABOUT) == CALLER_1
    assert read(noted(keys=OTHER), exchanging, ABOUT) == CALLER_1
    with pytest.raises(Forged):
        read(noted(keys=exchanging), OTHER, ABOUT)


@pytest.mark.parametrize("address", ["a,tenant=root", "a=b", "\u00e9", "a b", "a\r\nx: y", "9" * 257])
def test_an_odd_address_is_not_passed_on(address: str) -> None:
    assert read(noted(CALLER_1._replace(address=address)), KEYS, ABOUT) == CALLER_1._replace(address="")


def signed(text: bytes) -> dict[bytes, bytes]:
    """What a member of another version may say."""

    class Words(Caller):
        def _asdict(self) -> dict[str, object]:  # type: ignore[override]
            return dict(pair.split("=", 1) for pair in text.decode().split(","))

    return noted(Words(*CALLER_1))


def test_words_that_are_new_to_us_are_left_aside() -> None:
    text = noted()[CALLER] + b",region=eu"
    assert read(signed(text), KEYS, ABOUT) == CALLER_1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"tenant=acme,", b""),
        (b"weight=2.5", b"weight=much"),
        (b"repeat=1", b"repeat="),
        (b"elapsed_ms=1200", b"elapsed_ms=1.2"),
        (b"tenant=acme", b"tenant=a c"),
        (b"tenant=acme", b"tenant=" + b"a" * 257),
    ],
)
def test_words_that_make_no_sense_are_refused(old: bytes, new: bytes) -> None:
    text = noted()[CALLER]
    assert old in text
    with pytest.raises(Forged, match="understood"):
        read(signed(text.replace(old, new)), KEYS, ABOUT)


@pytest.mark.parametrize(
    ("old", "new", "field", "value"),
    [
        (b"weight=2.5", b"weight=-1", "weight", 1e-6),
        (b"weight=2.5", b"weight=inf", "weight", 1e6),
        (b"weight=2.5", b"weight=nan", "weight", 1e-6),
        (b"repeat=1", b"repeat=999", "repeat", 100),
        (b"repeat=1", b"repeat=-9", "repeat", 0),
        (b"elapsed_ms=1200", b"elapsed_ms=-5", "elapsed_ms", 0),
        (b"elapsed_ms=1200", b"elapsed_ms=", "elapsed_ms", 0),
        (b"first_byte_ms=3000", b"first_byte_ms=99999999999", "first_byte_ms", 10**9),
    ],
)
def test_numbers_are_bounded(old: bytes, new: bytes, field: str, value: float) -> None:
    text = noted()[CALLER]
    assert old in text
    assert getattr(read(signed(text.replace(old, new)), KEYS, ABOUT), field) == value


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        (b"a" * 16, (b"a" * 16,)),
        (b"\n  " + b"a" * 16 + b" \r\n\n", (b"a" * 16,)),
        (b"a" * 16 + b"\n" + b"b" * 16, (b"a" * 16, b"b" * 16)),
    ],
)
def test_keys_in_a_file(content: bytes, keys: Keys) -> None:
    assert read_keys(content) == keys


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "has 0 keys"),
        (b" \n\n", "has 0 keys"),
        (b"\n".join([b"a" * 16] * 3), "has 3 keys"),
        (b"a" * 15, "shorter than 16"),
        (b"a" * 16 + b"\nb", "shorter than 16"),
    ],
)
def test_a_file_without_good_keys(content: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as raised:
        read_keys(content)
    assert "aaa" not in str(raised.value), "a key is never shown"
