"""The 30 rules of HTTP/1.1 for an intermediary (RFC 9110, RFC 9112), as strictly as we take them.

Each has its tests beside this file, named after it: `pytest tests/conformance -k rule_21`. What is
refused of a client is in `test_http1_refused`, what passes in `test_http1_forwarded`, the engine's side in
`test_http1_answers`, chunks and trailers in `test_http1_bodies`, and what concerns a connection more than
a message in `test_http1_connections`. That two other readers agree is in `test_http1_differential`.
"""

import re
from pathlib import Path
from typing import Final

import pytest

RULES: Final = {
    1: "Connection, what it names and the other hop-by-hop fields end here; Connection cannot name Host, "
    "Content-Length, Authorization, Cache-Control or Content-Type (9110 7.6.1).",
    2: "TE is hop-by-hop, and not offered anew: trailers end here (9110 10.1.4).",
    3: "Max-Forwards of OPTIONS: at 0 we answer, else it counts down; what is none is 400. TRACE is 501: "
    "it would show a caller's credentials to whoever reads the answer (9110 7.6.2, 9.3.8).",
    4: "Via is appended both ways, with the version in which the message came (9110 7.6.3).",
    5: "A request that comes back is a loop, 508 (9110 7.3, 7.6.3).",
    6: "Path, query and content pass as they are; only an empty path becomes `/`, or `*` of OPTIONS "
    "(9110 7.7, 9112 3.2.4).",
    7: "Upgrade: the offer of h2c is ignored, a WebSocket is 501, and in 1.0 there is none; an engine's 101 "
    "is 502 (9110 7.8).",
    8: "100-continue is answered here, where it is waited for; other expectations are 417 (9110 10.1.1).",
    9: "1xx answers pass, but 100, and but to a client of 1.0 (9110 15.2).",
    10: "No content on answers to HEAD, on 1xx, 204 and 304, and no framing but Content-Length on HEAD and "
    "304 (9110 6.4.1, 8.6).",
    11: "Trailers are read, bounded and dropped, whatever they are (9110 6.5).",
    12: "Each refusal has the status, and the fields, that a gateway may use; an engine's status is three "
    "digits from 100, its reason phrase is not passed on (9110 15, 9112 4).",
    13: "Lines end in CRLF: a bare CR or LF is 400 everywhere. Empty lines before a request line are "
    "skipped, white space before the first field is 400 (9112 2.2).",
    14: "We speak our own version. A client of 1.0 gets no chunks and no second answer (9112 2.3, 9.3).",
    15: "A request line is three words with one space between; a method is any token up to 32 bytes, 501 "
    "above; a target too long is 414; a version but 1.0 and 1.1 is 505 (9112 3).",
    16: "Host: one, valid, or 400; an absolute target replaces it; `*` is for OPTIONS (9112 3.2).",
    17: "No fragment, control, or byte above 127 in a target (9112 3.2).",
    18: "No space before a colon, no obs-fold, no control in a value, both ways (9112 5).",
    19: "Transfer-Encoding is exactly `chunked`, and not in 1.0 (9112 6.1).",
    20: "Transfer-Encoding beside Content-Length is refused (9112 6.1, 6.3).",
    21: "Content-Length is digits, once; a list counts as repeated (9112 6.3).",
    22: "Chunk sizes are hex digits, bounded; extensions are dropped, 4 KiB a line and 16 KiB a body "
    "(9112 7.1).",
    23: "Half a message never looks whole, neither way (9112 8).",
    24: "Answers come in the order of their requests; what an engine may have done is not done twice "
    "(9112 9.3.1, 9.3.2).",
    25: "A body that is not read costs the connection, bytes after an answer the engine's; our last answer "
    "is not eaten by a reset (9112 9.3, 9.5, 9.6).",
    26: "CONNECT is 501 (9110 9.3.6).",
    27: 'Names with "_" that a framework would read as a dropped one with "-" are dropped.',
    28: "Heads, trailers, their fields and every line are bounded: 431, of an engine 502.",
    29: "A head or a body that comes too slowly is 408 (9110 15.5.9).",
    30: "Content-Type, Host and Content-Length stand once (9110 5.3).",
}


@pytest.mark.parametrize("number", RULES)
def test_every_rule_has_its_tests(number: int) -> None:
    files = [path.read_text() for path in Path(__file__).parent.glob("test_http1_*.py")]
    assert any(re.search(rf'(def test_|")rule_{number:02}(_|: )', text) for text in files)


def test_no_test_is_of_another_rule() -> None:
    files = [path.read_text() for path in Path(__file__).parent.glob("test_http1_*.py")]
    named = {int(number) for text in files for number in re.findall(r"rule_(\d+)", text)}
    assert sorted(named) == sorted(RULES) == list(range(1, 31))
