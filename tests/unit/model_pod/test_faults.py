"""What a fault may say, and which one applies when."""

from __future__ import annotations

import msgspec
import pytest

from model_pod.faults import (
    SOUND,
    BadFault,
    Empty,
    Fault,
    Flap,
    Framing,
    Hang,
    Refuse,
    Reset,
    Slow,
    Spread,
    Status,
    decode,
    in_force,
)

FLAP = Flap(up_s=2, down_s=0.5, fault=Status(status=503))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"kind": "none"}', SOUND),
        ('{"kind": "hang"}', Hang(health="ok")),
        ('{"kind": "hang", "health": "silent"}', Hang(health="silent")),
        ('{"kind": "slow"}', Slow(factor=3)),
        ('{"kind": "slow", "factor": 1.5}', Slow(factor=1.5)),
        ('{"kind": "status"}', Status(status=500, rate=1)),
        ('{"kind": "status", "status": 599, "rate": 0}', Status(status=599, rate=0)),
        ('{"kind": "reset"}', Reset(after_bytes=0)),
        ('{"kind": "empty", "done": true}', Empty(done=True)),
        ('{"kind": "framing", "what": "head"}', Framing(what="head")),
        ('{"kind": "refuse"}', Refuse()),
        ('{"kind": "flap", "up_s": 2, "down_s": 0.5, "fault": {"kind": "status", "status": 503}}', FLAP),
    ],
)
def test_a_fault_is_read_and_shown_as_it_was_said(text: str, fault: Fault) -> None:
    assert decode(text.encode()) == fault
    assert decode(msgspec.json.encode(fault)) == fault


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "truncated"),
        ("[]", "object"),
        ("{}", "kind"),
        ('{"kind": "fire"}', "fire"),
        ('{"kind": "none", "factor": 2}', "factor"),
        ('{"kind": "hang", "health": "bad"}', "health"),
        ('{"kind": "slow", "factor": 1}', "factor"),
        ('{"kind": "slow", "factor": 1e9}', "factor"),
        ('{"kind": "status", "status": 404}', "status"),
        ('{"kind": "status", "rate": 1.1}', "rate"),
        ('{"kind": "reset", "after_bytes": -1}', "after_bytes"),
        ('{"kind": "framing"}', "what"),
        ('{"kind": "framing", "what": "all"}', "what"),
        ('{"kind": "flap", "up_s": 1, "fault": {"kind": "refuse"}}', "down_s"),
        ('{"kind": "flap", "up_s": 0, "down_s": 1, "fault": {"kind": "refuse"}}', "up_s"),
        (
            '{"kind": "flap", "up_s": 1, "down_s": 1, "fault": {"kind": "flap", "up_s": 1, "down_s": 1}}',
            "fault.kind",
        ),
        ('{"kind": "flap", "up_s": 1, "down_s": 1, "fault": {"kind": "slow", "factor": 0}}', "fault.factor"),
    ],
)
def test_what_is_no_fault_is_told_why(text: str, named: str) -> None:
    with pytest.raises(BadFault, match=named):
        decode(text.encode())


def test_a_text_that_is_none_is_no_fault() -> None:
    with pytest.raises(BadFault):
        decode(b'{"kind": "\xff"}')


@pytest.mark.parametrize(
    ("elapsed_s", "applies", "left_s"),
    [(0, True, 0.5), (0.25, True, 0.25), (0.5, False, 2), (2.25, False, 0.25), (2.5, True, 0.5)],
)
def test_a_flap_begins_with_its_fault_and_goes_round(elapsed_s: float, applies: bool, left_s: float) -> None:
    assert in_force(FLAP, elapsed_s) == (FLAP.fault if applies else SOUND, left_s)


def test_any_other_fault_stays() -> None:
    assert in_force(Hang(), 1e6) == (Hang(), None)


@pytest.mark.parametrize(
    ("rate", "hits"),
    [
        (0, "........"),
        (1, "xxxxxxxx"),
        (0.5, ".x.x.x.x"),
        (0.25, "...x...x"),
        (0.75, ".xxx.xxx"),
        (0.4, "..x.x..x"),
    ],
)
def test_a_part_is_spread_evenly(rate: float, hits: str) -> None:
    spread = Spread()
    assert "".join("x" if spread.hits(rate) else "." for _ in hits) == hits


@pytest.mark.parametrize("percent", range(101))
def test_of_a_hundred_exactly_the_part_is_hit(percent: int) -> None:
    spread = Spread()
    assert sum(spread.hits(percent / 100) for _ in range(100)) == percent
