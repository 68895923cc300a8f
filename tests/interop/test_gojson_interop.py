"""Our reading and writing of record values against Go's own encoding/json, on random and on mutated input."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asyncmig.buildkit import gojson as ours
from asyncmig.buildkit.gojson import GoJSONError
from tests.buildkit.test_gojson import VALUES

SEEDS = [
    b'{"value":"text","index":"i::x"}',
    b'{"value":{"Blobsum":"sha256:00","DiffID":"sha256:11"},"index":"blobmap::sha256:00"}',
    b'{"value":{"blobsum":"lower","DIFFID":null,"other":[1,2]},"INDEX":"I"}',
    b' { "Value" : -12.5e+3 , "foo" : [ {"a":null} , true , false ] } ',
    b'{"value":null,"index":null}',
    b'{"value":"a","value":"b","index":"x","Index":"y"}',
    '{"value":"é\u2028\u00e9 \\u00e9\\ud83d\\ude00\\ud800x","index":"\\u003c"}'.encode(),
    b'{"value":"bad \xff\xe2\x82 bytes","index":"\xc3"}',
    '{"vA\u017fue":1,"Blob\u017fum":"s","\u212aey":2}'.encode(),
    '{"value":{"Blob\u017fum":"long s","DiffID":"x"}}'.encode(),
    b"null", b"5", b'"text"', b"[]", b"{}", b"", b" ", b"nul",
    b'{"value":01}', b'{"value":1.}', b'{"value":NaN}', b'{"value":-}',
    b'{"value":"\\x"}', b'{"value":"tab\there"}', b'{"value":1,}', b'{"value":1}x', b'{"value":"\\u12"}', b'{"index":5}',
    b'{"value":Infinity}', b"\xef\xbb\xbf{}", b'{"value":[[[[[[[[[[1]]]]]]]]]]}', b'{"value":"\x7f"}', b"{'value':1}",
    b'{"value":1e400}', b'{"value":123456789012345678901234567890}', b"{\"value\"\x0b:1}", b'{"a":1,"value":{"DiffID":[]}}',
]  # fmt: skip


def mutants(count: int, seed: int) -> list[bytes]:
    """The seeds, and copies of them with bytes changed, removed, doubled or taken from another."""
    r = random.Random(seed)
    found = list(SEEDS)
    while len(found) < count:
        text = bytearray(r.choice(SEEDS))
        for _ in range(r.choice((1, 1, 2, 4))):
            at = r.randrange(len(text) + 1)
            match r.randrange(4):
                case 0:
                    text[at : at + 1] = bytes([r.choice(b'{}[]",:\\u0123eE+-.ntf \xff\xc3\xa9')])
                case 1:
                    del text[at : at + r.randrange(1, 4)]
                case 2:
                    text[at:at] = text[at : at + r.randrange(1, 9)]
                case 3:
                    other = r.choice(SEEDS)
                    start = r.randrange(len(other) + 1)
                    text[at:at] = other[start : start + r.randrange(1, 12)]
        found.append(bytes(text))
    return found


def ask(program: Path, lines: Sequence[str]) -> list[Any]:
    done = subprocess.run([program], input="\n".join(lines) + "\n", capture_output=True, text=True, timeout=60, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def raw(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").hex()


def our_answer(value: bytes) -> dict[str, object]:
    nothing: dict[str, object] = {"err": True, "index": "", "string": "", "pairerr": False, "blobsum": "", "diffid": ""}
    try:
        index, text = ours.decode(value).index, ours.decode_string(value)
    except GoJSONError:
        return nothing
    answer = nothing | {"err": False, "index": raw(index), "string": raw(text)}
    try:
        blobsum, diff_id = ours.decode_string_pair(value, "Blobsum", "DiffID")
    except GoJSONError:
        return answer | {"pairerr": True}
    return answer | {"blobsum": raw(blobsum), "diffid": raw(diff_id)}


def test_values_are_read_as_go_reads_them(gojson: Path) -> None:
    values = mutants(20_000, seed=1) + VALUES
    theirs = ask(gojson, [f"decode {v.hex()}" for v in values])
    assert len(theirs) == len(values)
    differing = [(v, our_answer(v), t) for v, t in zip(values, theirs, strict=True) if our_answer(v) != t]
    assert differing == []
    accepted = sum(not t["err"] for t in theirs)
    assert 1_000 < accepted < 27_000, "the corpus must hold both"
    for value, answer in zip(values, theirs, strict=True):
        if value and not answer["err"]:
            assert raw(ours.decode_index(value)) == answer["index"]
        assert not value or not answer["err"] or not ours.are_usual([value]), value


def test_values_are_written_as_go_writes_them(gojson: Path) -> None:
    r = random.Random(2)
    # \b and \f are left out: Go 1.22 began to write them in their short form, and this Go may be older.
    alphabet = [b"a", b'"', b"\\", b"<", b">", b"&", b"\n", b"\r", b"\t", b"\0", b"\x1f", b"\x7f", b"\xff", b"\xe2\x82"]
    alphabet += ["é".encode(), "\u2028".encode(), "\u2029".encode(), "\ufffd".encode(), "😀".encode(), b"\xed\xa0\x80"]
    pairs = [
        (b"".join(r.choices(alphabet, k=r.randrange(8))), b"".join(r.choices(alphabet, k=r.randrange(4)))) for _ in range(5_000)
    ]
    theirs = ask(gojson, [f"encode {text.hex()} {index.hex()}" for text, index in pairs])
    for (text, index), answer in zip(pairs, theirs, strict=True):
        written = ours.encode_string(text.decode("utf-8", "surrogateescape"), index.decode("utf-8", "surrogateescape"))
        assert written.hex() == answer
