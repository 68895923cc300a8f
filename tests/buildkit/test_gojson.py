"""Record values by Go's rules; the comparison with Go itself is in tests/interop."""

from __future__ import annotations

import pytest

from asyncmig.buildkit.gojson import (
    ABSENT,
    GoJSONError,
    decode,
    decode_string,
    decode_string_pair,
    encode_string,
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
