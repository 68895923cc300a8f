"""What betterproto2 makes of an answer, if that does no harm.

betterproto2 0.10 lets pass a number where a text or a message should be, and the like, which whoever gets the message would
stumble over.  And it takes a time that grows with the square of the fields it does not know: a minute for a megabyte of them.
"""

from __future__ import annotations

from typing import Any, TypeVar

import betterproto2

M = TypeVar("M", bound=betterproto2.Message)

_MOST_UNKNOWN = 64 * 1024
"""Bytes of the fields of one message that are not known.  Up to here the square does not show."""
_MESSAGES = (betterproto2.TYPE_MESSAGE, betterproto2.TYPE_MAP)


def decode(data: bytes, cls: type[M]) -> M:
    """``cls.FromString(data)``, with fields of the types that they are declared with.

    Raises :class:`ValueError` for data that are no such message.
    """
    try:
        _check_unknown(data, cls)
        message: M = cls.FromString(data)
    except Exception as error:  # of many kinds
        raise ValueError(f"a damaged {cls.__name__} ({type(error).__name__}: {error})") from error
    _check_types(message)
    return message


def _check_unknown(data: bytes, cls: Any) -> None:
    """Raise :class:`ValueError` if a message in it has too much that is not known."""
    if len(data) <= _MOST_UNKNOWN:
        return
    unknown = 0
    for part in betterproto2.parse_fields(data):
        name = cls._betterproto.field_name_by_number.get(part.number)
        if name is None:
            unknown += len(part.raw)
            if unknown > _MOST_UNKNOWN:
                raise ValueError("too many unknown fields")
        elif isinstance(part.value, bytes) and cls._betterproto.meta_by_field_name[name].proto_type in _MESSAGES:
            _check_unknown(part.value, cls._betterproto.cls_by_field[name])


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
