"""Record values by Go's rules; the comparison with Go itself is in tests/interop."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest

from asyncmig.buildkit import gojson
from asyncmig.buildkit.gojson import (
    ABSENT,
    GoJSONError,
    are_usual,
    decode,
    decode_bool,
    decode_index,
    decode_string,
    decode_string_pair,
    encode_string,
    quote,
    to_valid,
    validate,
)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b'{"value":"x"}', "x"),
        (b'{"value":"x","index":"i"}', "x"),
        (b'{ "VALUE" : "x" }', "x"),
        (b'{"value":"a","Value":"b"}', "b"),
        (b'{"value":5}', ""),
        (b'{"value":null}', ""),
        (b'{"value":["x"]}', ""),
        (b"{}", ""),
        (b"null", ""),
        (b'{"value":"\\u003c\\u0026"}', "<&"),
        (b'{"value":"\\ud83d\\ude00"}', "\U0001f600"),
        (b'{"value":"\\ud800"}', "\ufffd"),
        (b'{"value":"\xff\xfe"}', "\ufffd\ufffd"),
    ],
)
def test_strings(raw: bytes, text: str) -> None:
    validate(raw)
    assert decode_string(raw) == text


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"not json", "not valid JSON"),
        (b"5", "a value is a number where an object is expected"),
        (b'"x"', "a value is a string"),
        (b"[]", "a value is an array"),
        (b"true", "a value is true"),
        (b'{"index":5}', "the field 'index' is a number where a string is expected"),
        (b'{"value":NaN}', "unexpected NaN"),
        (b'{"value":1}{}', "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"", "not valid JSON"),
    ],
)
def test_what_go_rejects(raw: bytes, message: str) -> None:
    with pytest.raises(GoJSONError, match=message):
        validate(raw)


def test_numbers_are_not_converted() -> None:
    validate(b'{"value":' + b"9" * 10_000 + b"}")
    validate(b'{"value":1e999999}')


def test_missing_value_and_index() -> None:
    assert decode(b'{"index":"i"}').value is ABSENT
    assert decode(b'{"value":1,"index":null}').index == ""


@pytest.mark.parametrize(
    ("raw", "pair"),
    [
        (b'{"value":{"Blobsum":"b","DiffID":"d"}}', ("b", "d")),
        (b'{"value":{"blobsum":"b","diffid":"d","more":{}}}', ("b", "d")),
        (b'{"value":{"DiffID":"d"}}', ("", "d")),
        (b'{"value":{"Blobsum":null}}', ("", "")),
        (b'{"value":null}', ("", "")),
    ],
)
def test_pairs(raw: bytes, pair: tuple[str, str]) -> None:
    assert decode_string_pair(raw, "Blobsum", "DiffID") == pair


@pytest.mark.parametrize("raw", [b"{}", b"null", b'{"value":"text"}', b'{"value":{"Blobsum":5}}', b'{"value":[]}'])
def test_pairs_that_go_rejects(raw: bytes) -> None:
    with pytest.raises(GoJSONError):
        decode_string_pair(raw, "Blobsum", "DiffID")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("plain", b'{"value":"plain"}'),
        ('<a> & "b"\\', b'{"value":"\\u003ca\\u003e \\u0026 \\"b\\"\\\\"}'),
        ("\u2028é\x7f", b'{"value":"\\u2028\xc3\xa9\x7f"}'),
        ("\n\t\0", b'{"value":"\\n\\t\\u0000"}'),
        ("\udcff", b'{"value":"\\ufffd"}'),
        ("\ufffd", b'{"value":"\xef\xbf\xbd"}'),
    ],
)
def test_writing(text: str, written: bytes) -> None:
    assert encode_string(text) == written
    assert decode_string(written) == to_valid(text)


def test_writing_with_an_index() -> None:
    assert encode_string("d", "chainid:d") == b'{"value":"d","index":"chainid:d"}'


# -- the usual forms, and what is nearly one


TEXTS = [
    b"", b"x", b"sha256:0123", b"a b!#[]~", b"\x7f", b"\xc3\xa9", b"\xff", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"<&>", b"index",
    b"value", b"\\n", b"\\/", b"\\u0041", b"\\uD800", b"\\ud83d\\ude00", b"\\udc00x", b'\\"', b"\\\\", b"\\u00e9\\b\\f",
    b'\\"index\\":\\"i\\"',
]  # fmt: skip
BAD_TEXTS = [
    b"\n", b"\t", b"\0", b"\x1f", b'"', b"\\", b"\\x", b"\\u12", b"\\u12g4", b"\\U0041", b'","index":"', b'","value":"', b"\\'",
]  # fmt: skip
PLAIN = [b"0", b"-0", b"12", b"-7", b"true", b"false", b"9" * 5000]
BAD_PLAIN = [
    b"null", b"01", b"-", b"+1", b"1.5", b"1e3", b"NaN", b"True", b"[]", b"{}", b"", b" 1", b"-Infinity", "\u0661".encode(),
]  # fmt: skip
PIECES = [
    b'"', b"\\", b"{", b"}", b",", b":", b" ", b"\n", b"\r", b"\0", b"\xff", b"e", b"0", b"I", b'"index":', b'"value":',
    b"null", b"\\u",
]  # fmt: skip


def random_value(rng: random.Random) -> bytes:
    """A value of a usual form, or one that is wrong or unusual at one place."""

    def text() -> bytes:
        parts = rng.choices(TEXTS, k=rng.choice([0, 1, 1, 2]))
        if not rng.randrange(20):
            parts.append(rng.choice(BAD_TEXTS))
        return b'"%b"' % b"".join(parts)

    match rng.randrange(4):
        case 0:
            content = rng.choice(BAD_PLAIN if rng.random() < 0.2 else PLAIN)
        case 1:
            content = b'{"Blobsum":%b,"DiffID":%b}' % (text(), text())
        case _:
            content = text()
    name = rng.choice([b"Index", b"indeX", b"value", b"inde\\u0078", b"x"]) if rng.random() < 0.1 else b"index"
    index = b',"%b":%b' % (name, text()) if rng.random() < 0.5 else b""
    value = bytearray(b'{"value":%b%b}' % (content, index))
    while rng.random() < 0.3:
        at = rng.randrange(len(value) + 1)
        value[at : at + rng.choice([0, 0, 1, 3])] = rng.choice([*PIECES, b"", value[at : at + 9]])
    return bytes(value)


VALUES = [random_value(random.Random(seed)) for seed in range(8000)]


def result(function: Callable[..., object], *args: object) -> object:
    """What a function returns, or that it raises, and what."""
    try:
        return function(*args)
    except GoJSONError as error:
        return GoJSONError, str(error)


def test_short_ways_come_to_what_the_long_way_comes_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each value: whether it is one, its string, its pair, its truth and its index."""
    functions: list[tuple[Callable[..., object], tuple[str, ...]]] = [
        (validate, ()),
        (decode_string, ()),
        (decode_string_pair, ("Blobsum", "DiffID")),
        (decode_bool, ()),
        (decode_index, ()),
    ]
    short = [[result(function, value, *names) for function, names in functions] for value in VALUES]
    for name in ("_USUAL", "_USUAL_INDEX", "_USUAL_STRING", "_USUAL_PAIR"):
        monkeypatch.setattr(gojson, name, re.compile(rb"(?!)"))
    for value, found in zip(VALUES, short, strict=True):
        assert [result(function, value, *names) for function, names in functions] == found, value
        if value:
            decoded = result(decode, value)
            assert found[4] == (decoded.index if isinstance(decoded, gojson.Value) else decoded), value


def test_what_is_usual_is_a_value() -> None:
    usual = [value for value in VALUES if are_usual([value])]
    for value in usual:
        validate(value)
        assert not value or decode(value).value is not ABSENT
        # An index stands where it is looked for, and is spelt like this.
        assert b'"index":' in value or not value or not decode(value).index
    assert 3000 < len(usual) < 7500, "there must be both"
    assert sum(not isinstance(result(decode, value), gojson.Value) for value in VALUES) > 500


def test_many_are_usual_if_each_is() -> None:
    rng = random.Random(1)
    good, bad = ([v for v in VALUES if are_usual([v]) is is_good] for is_good in (True, False))
    for _ in range(500):
        some = rng.choices([*good, b""], k=rng.randrange(6))
        assert are_usual(some)
        some.insert(rng.randrange(len(some) + 1), rng.choice(bad))
        assert not are_usual(some)
    first, rest = b'{"value":"a', b'b"}'
    assert not are_usual([first, rest])
    assert not are_usual([b'{"value":1}\n{"value":2}'])
    assert not are_usual([b"\n"])
    assert not are_usual([b'{"value":1}\n', b'{"value":2}'])
    assert not are_usual([b'{"value":1}\n'])
    assert are_usual([])


@pytest.mark.parametrize("text", ['"' + "\\n" * 200_000, '"' + "x" * 400_000, '"' + "\\" * 200_001])
def test_a_text_without_end_takes_no_long(text: str) -> None:
    """Nor does one take recursion."""
    value = ('{"value":' + text).encode()
    with pytest.raises(GoJSONError, match="not valid JSON"):
        validate(value)
    assert not are_usual([value] * 3)


def test_quoting_plainly() -> None:
    """Ids and digests are quoted without a look at each character."""
    rng = random.Random(2)
    alphabet = ["a", "0", ":", ":", "<", '"', "\\", "\n", "\0", "\x7f", "é", "²", "\u0661", "\u2028", "\udcff", " ", "-"]
    for _ in range(2000):
        text = "".join(rng.choices(alphabet, weights=[20, 20, *[1] * 15], k=rng.randrange(8)))
        assert quote(text) == '"' + gojson._ESCAPED.sub(gojson._escape, text) + '"'
