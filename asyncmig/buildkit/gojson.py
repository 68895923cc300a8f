"""JSON as Go's ``encoding/json`` reads and writes it.

BuildKit stores each value as the JSON of a Go struct with the fields ``value`` (any JSON) and ``index`` (a string).  What Go
accepts and what it writes decides what a migrated cache holds, so this module follows its rules to the letter:

* field names match exactly or, failing that, in any case; unknown fields are ignored; of duplicate fields the last one counts;
* ``null`` leaves a field as it was;
* bytes that are not UTF-8, and lone surrogates, become U+FFFD, one for each byte;
* ``<``, ``>``, ``&``, U+2028 and U+2029 are written as escapes.

Sources: Go ``encoding/json`` (``decode.go``, ``fold.go``, ``encode.go``); ``Value`` in moby/buildkit
``cache/metadata/metadata.go``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn


class GoJSONError(ValueError):
    """Go's decoder would return an error here."""


class _Object(list[tuple[str, object]]):
    """A JSON object: its fields in order, duplicates included."""


class _Number(str):
    """A JSON number as text: Go's ``RawMessage`` doesn't convert it either."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Value:
    """A decoded value.  ``value`` is the content of the field of that name; :data:`ABSENT` without the field."""

    value: object
    index: str


ABSENT = object()

# The usual forms: a string, a pair of strings, a number or a boolean.  A match proves that a value is valid.
_TEXT = rb'"[ !#-\[\]-~]*"'
_ANY_TEXT = rb'"[^\x00-\x1f"\\]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^\x00-\x1f"\\]*)*"'
_USUAL_VALUE = (
    rb'\{"value":(?:' + _ANY_TEXT + rb"|-?(?:0|[1-9][0-9]*)|true|false"
    rb"|\{\"Blobsum\":" + _ANY_TEXT + rb',"DiffID":' + _ANY_TEXT + rb'\})(?:,"index":' + _ANY_TEXT + rb")?\}"
)
_USUAL = re.compile(_USUAL_VALUE)
_USUAL_INDEX = re.compile(_USUAL_VALUE.replace(rb',"index":' + _ANY_TEXT, rb',"index":"([ !#-\[\]-~]*)"'))
_ALL_USUAL = re.compile(rb"(?:(?:" + _USUAL_VALUE + rb")?\n)*")
_USUAL_STRING = re.compile(rb'\{"value":"([ !#-\[\]-~]*)"(?:,"index":' + _TEXT + rb")?\}")
_USUAL_PAIR = re.compile(
    rb'\{"value":\{"Blobsum":"([ !#-\[\]-~]*)","DiffID":"([ !#-\[\]-~]*)"\}(?:,"index":' + _TEXT + rb")?\}"
)
_SURROGATE = re.compile("[\ud800-\udfff]")


def validate(raw: bytes) -> None:
    """Raise :class:`GoJSONError` unless Go can decode ``raw`` into a value."""
    if not _USUAL.fullmatch(raw):
        decode(raw)


def are_usual(values: Sequence[bytes]) -> bool:
    """Whether all values have a usual form or are empty, so that none needs validation.  Quicker than checking each."""
    lines = b"\n".join((*values, b""))
    return lines.count(b"\n") == len(values) and _ALL_USUAL.fullmatch(lines) is not None


def decode(raw: bytes) -> Value:
    """Decode a value.  Raises :class:`GoJSONError`."""
    document = _parse(raw)
    value: object = ABSENT
    index = ""
    for name, field in _fields(document, "a value"):
        if _matches(name, "value"):
            value = field
        elif _matches(name, "index"):
            index = _string(field, index, "index")
    return Value(value, index)


def decode_string(raw: bytes) -> str:
    """The string in a value, "" if it holds anything else.  Raises :class:`GoJSONError` if ``raw`` is not a value."""
    usual = _USUAL_STRING.fullmatch(raw)
    if usual:
        return usual[1].decode("ascii")
    value = decode(raw).value
    return to_valid(value) if type(value) is str else ""


def decode_bool(raw: bytes) -> bool:
    """Whether a value is ``true``.  Raises :class:`GoJSONError` if ``raw`` is not a value."""
    return raw == TRUE or decode(raw).value is True


def decode_index(raw: bytes) -> str:
    """The index of a value, "" if it has none.  Raises :class:`GoJSONError` if ``raw`` is not a value."""
    if not raw:
        return ""
    usual = _USUAL_INDEX.fullmatch(raw)
    return (usual[1] or b"").decode("ascii") if usual else decode(raw).index


def decode_string_pair(raw: bytes, first: str, second: str) -> tuple[str, str]:
    """Two string fields of the object in a value; a field is "" if it is missing or null.

    Raises :class:`GoJSONError` if the value is missing or has another type.
    """
    usual = _USUAL_PAIR.fullmatch(raw) if (first, second) == ("Blobsum", "DiffID") else None
    if usual:
        return usual[1].decode("ascii"), usual[2].decode("ascii")
    value = decode(raw).value
    if value is ABSENT:
        raise GoJSONError("the field 'value' is missing")
    found = {first: "", second: ""}
    for name, field in _fields(value, "the field 'value'"):
        for wanted, before in found.items():
            if _matches(name, wanted):
                found[wanted] = _string(field, before, wanted)
    return found[first], found[second]


def _parse(raw: bytes) -> object:
    text = to_valid(raw.decode("utf-8", "surrogateescape"))
    try:
        return json.loads(text, object_pairs_hook=_Object, parse_int=_Number, parse_float=_Number, parse_constant=_no_constant)
    except RecursionError:
        raise GoJSONError("not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise GoJSONError(f"not valid JSON: {error}") from None


def _no_constant(name: str) -> NoReturn:
    # Python accepts NaN and Infinity as numbers, but they are not JSON.
    raise ValueError(f"unexpected {name}")


def _fields(document: object, what: str) -> _Object:
    if document is None:
        return _Object()
    if not isinstance(document, _Object):
        raise GoJSONError(f"{what} is {_kind(document)} where an object is expected")
    return document


def _string(field: object, before: str, name: str) -> str:
    if field is None:
        return before
    if type(field) is not str:
        raise GoJSONError(f"the field '{name}' is {_kind(field)} where a string is expected")
    return to_valid(field)


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    for kind, name in ((_Number, "a number"), (str, "a string"), (_Object, "an object"), (list, "an array")):
        if isinstance(value, kind):
            return name
    return "null"


def _matches(name: str, field: str) -> bool:
    # Besides ASCII letters, only the long s and the Kelvin sign fold to one; lower() handles the Kelvin sign.
    return name == field or name.lower().replace("\u017f", "s") == field.lower()


def to_valid(text: str) -> str:
    """``text`` as it comes back from Go's JSON: every invalid character is replaced by U+FFFD.

    Bytes that are not UTF-8 are lone surrogates in Python strings (``surrogateescape``).
    """
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


# -- writing

_ESCAPED = re.compile('[\0-\x1f"\\\\<>&\u2028\u2029\ud800-\udfff]')
_SHORT = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _escape(match: re.Match[str]) -> str:
    char = match[0]
    if char >= "\ud800":
        return "\\ufffd"
    return _SHORT.get(char) or f"\\u{ord(char):04x}"


def quote(text: str) -> str:
    """``text`` as Go writes a JSON string."""
    # Fast path for ids and digests.
    is_plain = text.isascii() and text.replace(":", "", 1).isalnum()
    return f'"{text}"' if is_plain else f'"{_ESCAPED.sub(_escape, text)}"'


def encode_string(text: str, index: str = "") -> bytes:
    """A value that holds a string, with an index unless it is empty."""
    if index:
        return f'{{"value":{quote(text)},"index":{quote(index)}}}'.encode()
    return f'{{"value":{quote(text)}}}'.encode()


def encode_int(number: int) -> bytes:
    """A value that holds an integer."""
    return b'{"value":%d}' % number


TRUE = b'{"value":true}'
"""The value that holds ``true``."""
