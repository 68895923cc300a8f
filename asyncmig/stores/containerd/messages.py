"""betterproto2's messages to bytes and back, in a fifth of the time that it takes for that itself.

betterproto2 0.10 looks up anew, for each field of each message, what the field is and what its default would be.  Here that is
looked up once for each class of messages.  What comes out is the same; whatever is unusual (kinds of fields that containerd's
API has not where we use it, fields in odd encodings, data that is damaged) is left to betterproto2.  Two things
that it lets pass are refused: a number where a text or a message should be, and the like, which whoever gets the message would
stumble over; and odd messages that are long, because it takes a time that grows with the square of the fields it does not know
(a minute for a megabyte of them).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import betterproto2

M = TypeVar("M", bound=betterproto2.Message)

_VARINT, _BYTES = 0, 2
"""Wire types: a number, and what has a length."""
_FIXED = {1: 8, 5: 4}
"""Wire types with a fixed number of bytes.  No field that is read here has one."""
_LONGEST_UNUSUAL = 64 * 1024
"""Bytes of a message that is left to betterproto2."""
_NO_FIELD = 1 << 29
"""Field numbers are below this."""


class _UnusualError(Exception):
    """betterproto2 is to look at it."""


def encode(message: betterproto2.Message) -> bytes:
    """``bytes(message)``."""
    cls = type(message)
    try:
        fields = _ENCODERS[cls]
    except KeyError:
        fields = _ENCODERS[cls] = _encoders(cls)
    if fields is None or message._unknown_fields:
        return bytes(message)
    values = message.__dict__
    parts: list[bytes] = []
    for name, write in fields:
        value = values[name]
        if value is not None:
            write(parts, value)
    return b"".join(parts)


def decode(data: bytes, cls: type[M]) -> M:
    """``cls.FromString(data)``, with fields of the types that they are declared with.

    Raises :class:`ValueError` for data that are no such message.
    """
    try:
        message: M = _decode(data, cls)
    except (_UnusualError, IndexError, UnicodeDecodeError):
        if len(data) > _LONGEST_UNUSUAL:
            raise ValueError(f"a damaged {cls.__name__} of {len(data)} bytes") from None
        try:
            message = cls.FromString(data)
        except Exception as error:  # of many kinds
            raise ValueError(f"a damaged {cls.__name__} ({type(error).__name__}: {error})") from error
        _check_types(message)
    return message


# -- encoding: for each field of a class a function that appends its value

_Write = Callable[[list[bytes], Any], None]
_ENCODERS: dict[type, list[tuple[str, _Write]] | None] = {}


def _encoders(cls: Any) -> list[tuple[str, _Write]] | None:
    fields = []
    for name, meta in cls._betterproto.meta_by_field_name.items():
        write = _writer(meta)
        if write is None:
            return None
        fields.append((name, write))
    return fields


def _writer(meta: Any) -> _Write | None:  # noqa: PLR0911  (a kind of field each)
    if _is_unusual(meta):
        return None
    key = betterproto2.encode_varint(meta.number << 3 | _BYTES)
    match meta.proto_type, bool(meta.repeated):
        case betterproto2.TYPE_STRING, False:
            return lambda parts, value: _write(parts, key, value.encode()) if value else None
        case betterproto2.TYPE_STRING, True:

            def strings(parts: list[bytes], values: list[str]) -> None:
                for value in values:
                    _write(parts, key, value.encode())

            return strings
        case betterproto2.TYPE_MESSAGE, False:
            return lambda parts, value: _write(parts, key, encode(value))
        case betterproto2.TYPE_MAP, False if _of_strings(meta):

            def entries(parts: list[bytes], values: dict[str, str]) -> None:
                for name, value in values.items():
                    entry: list[bytes] = []
                    _write(entry, b"\x0a", name.encode())
                    _write(entry, b"\x12", value.encode())
                    _write(parts, key, b"".join(entry))

            return entries
        case ((betterproto2.TYPE_INT64 | betterproto2.TYPE_INT32 | betterproto2.TYPE_BOOL | betterproto2.TYPE_ENUM), False):
            number_key = betterproto2.encode_varint(meta.number << 3 | _VARINT)
            return lambda parts, value: parts.extend((number_key, betterproto2.encode_varint(value))) if value else None
    return None


def _is_unusual(meta: Any) -> bool:
    """Whether its default may be written, too, or it is not what it seems to be."""
    return bool((meta.optional and meta.proto_type != betterproto2.TYPE_MESSAGE) or meta.group or meta.unwrap)


def _of_strings(meta: Any) -> bool:
    return all(part.proto_type == betterproto2.TYPE_STRING and part.unwrap is None for part in meta.map_meta)


def _write(parts: list[bytes], key: bytes, data: bytes) -> None:
    size = len(data)
    parts += (key, size.to_bytes(1, "big") if size < 0x80 else betterproto2.encode_varint(size), data)


# -- decoding: for each field of a class, by what stands before it, its name and what makes a value of it

_Read = Callable[[Any, Any], Any]
"""Takes the data, and what the field has so far."""
_DECODERS: dict[type, dict[int, tuple[str, _Read]]] = {}


def _decode(data: bytes, cls: Any) -> Any:  # noqa: PLR0912  (calls would cost as much as the work)
    try:
        fields = _DECODERS[cls]
    except KeyError:
        fields = _DECODERS[cls] = _decoders(cls)
    message = cls()
    values = message.__dict__
    unknown: list[bytes] = []  # joined at the end: to add to a string again and again takes the square of the time
    at, end = 0, len(data)
    while at < end:
        begin = at
        key = data[at]
        at += 1
        if key >= 0x80:
            key, at = _long(data, at, key)
        kind = key & 7
        value: Any
        if kind == _BYTES:
            size = data[at]
            at += 1
            if size >= 0x80:
                size, at = _long(data, at, size)
            at, start = at + size, at
            value = data[start:at]
        elif kind == _VARINT:
            value = data[at]
            at += 1
            if value >= 0x80:
                value, at = _long(data, at, value)
        else:
            value = None
            at += _FIXED.get(kind, end)
        if at > end:
            raise _UnusualError
        field = fields.get(key)
        if field is not None:
            name, read = field
            values[name] = read(value, values[name])
        elif not 0 < key >> 3 < _NO_FIELD or key >> 3 in cls._betterproto.field_name_by_number:
            raise _UnusualError  # of a kind that is not read here, or not in its usual form
        else:
            unknown.append(data[begin:at])
    if unknown:
        message._unknown_fields = b"".join(unknown)
    return message


def _long(data: bytes, at: int, first: int) -> tuple[int, int]:
    """A number of more than one byte, and where it ends."""
    number, shift = first & 0x7F, 7
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            if number >> 64:
                raise _UnusualError
            return number, at
        shift += 7
        if shift > 63:
            raise _UnusualError


def _decoders(cls: Any) -> dict[int, tuple[str, _Read]]:
    fields = {}
    for name, meta in cls._betterproto.meta_by_field_name.items():
        found = _reader(meta, cls._betterproto.cls_by_field[name])
        if found is not None:
            wire_type, read = found
            fields[meta.number << 3 | wire_type] = (name, read)
    return {key: field for key, field in fields.items() if key < 0x80}


def _reader(meta: Any, cls: Any) -> tuple[int, _Read] | None:  # noqa: PLR0911  (a kind of field each)
    if _is_unusual(meta):
        return None
    match meta.proto_type, bool(meta.repeated):
        case betterproto2.TYPE_STRING, False:
            return _BYTES, lambda data, _: data.decode()
        case betterproto2.TYPE_BYTES, False:
            return _BYTES, lambda data, _: data
        case betterproto2.TYPE_MESSAGE, False:
            return _BYTES, lambda data, _: _decode(data, cls)
        case betterproto2.TYPE_MESSAGE, True:

            def another(data: bytes, messages: list[Any]) -> list[Any]:
                messages.append(_decode(data, cls))
                return messages

            return _BYTES, another
        case betterproto2.TYPE_MAP, False if _of_strings(meta):
            return _BYTES, _entry
        case betterproto2.TYPE_INT64, False:
            return _VARINT, lambda number, _: _signed(number)
        case betterproto2.TYPE_ENUM, False:
            return _VARINT, lambda number, _: cls(_signed(number))
    return None


def _signed(number: int) -> int:
    return number if number < 1 << 63 else number - (1 << 64)


def _entry(data: bytes, values: dict[str, str]) -> dict[str, str]:
    """With an entry of a map of strings: key and value, as everybody writes them."""
    size = data[1]
    at = 2
    if size >= 0x80:
        size, at = _long(data, at, size)
    middle = at + size
    length = data[middle + 1]
    start = middle + 2
    if length >= 0x80:
        length, start = _long(data, start, length)
    if data[0] != 0x0A or data[middle] != 0x12 or start + length != len(data):
        raise _UnusualError
    values[data[at:middle].decode()] = data[start:].decode()
    return values


# -- what betterproto2 has decoded

_TYPES: dict[str, type] = {betterproto2.TYPE_STRING: str, betterproto2.TYPE_BYTES: bytes}


def _check_types(message: Any) -> None:
    """Raise :class:`ValueError` for a field whose value is not of its type: betterproto2 goes by the encoding alone."""
    for name, meta in message._betterproto.meta_by_field_name.items():
        value = getattr(message, name)
        if meta.proto_type == betterproto2.TYPE_MAP:
            for key_and_value in value.items():
                for part, declared in zip(key_and_value, meta.map_meta, strict=True):
                    _check_type(message, name, part, _TYPES.get(declared.proto_type, int))
            continue
        is_message = meta.proto_type == betterproto2.TYPE_MESSAGE
        wanted = message._betterproto.cls_by_field[name] if is_message else _TYPES.get(meta.proto_type, int)
        if value is None and is_message and not meta.repeated:
            continue  # it is not there
        for part in value if meta.repeated else (value,):
            _check_type(message, name, part, wanted)
            if is_message:
                _check_types(part)


def _check_type(message: Any, name: str, value: object, wanted: type) -> None:
    if not isinstance(value, wanted):
        raise ValueError(f"the field {name} of a {type(message).__name__} is damaged")  # noqa: TRY004  (it is the data)
