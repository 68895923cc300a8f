"""How containerd encodes times, numbers and names in its databases."""

from __future__ import annotations

import time

_UNIX_TO_GO = 62135596800
"""Seconds from 0001-01-01, Go's zero time, to 1970-01-01."""

ZERO_TIME = bytes.fromhex("01") + bytes(12) + b"\xff\xff"
"""Go's zero time."""


def encode_time(unix_ns: int) -> bytes:
    """Go's ``time.Time.MarshalBinary`` of a UTC time: version 1, seconds, nanoseconds, zone offset -1 for UTC."""
    seconds, nanoseconds = divmod(unix_ns, 1_000_000_000)
    return b"\1" + (seconds + _UNIX_TO_GO).to_bytes(8, "big") + nanoseconds.to_bytes(4, "big") + b"\xff\xff"


def now() -> bytes:
    """The current time, encoded."""
    return encode_time(time.time_ns())


def encode_varint(value: int) -> bytes:
    """Go's ``binary.PutVarint``: zigzag, seven bits a byte."""
    return encode_uvarint(value << 1 if value >= 0 else ~(value << 1))


def encode_uvarint(value: int) -> bytes:
    """Go's ``binary.PutUvarint``: seven bits a byte, the lowest first."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_uvarint(raw: bytes) -> int:
    """The inverse of :func:`encode_uvarint`; 0 if ``raw`` is not such a number."""
    value = 0
    for i, byte in enumerate(raw[:10]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value
    return 0


def decode_varint(raw: bytes) -> int:
    """The inverse of :func:`encode_varint`; 0 if ``raw`` is not such a number."""
    value = decode_uvarint(raw)
    return value >> 1 if value & 1 == 0 else ~(value >> 1)


def to_bytes(text: str) -> bytes:
    """A name as stored."""
    return text.encode("utf-8", "surrogateescape")


def to_text(raw: bytes) -> str:
    """A stored name; bytes that are not UTF-8 become lone surrogates."""
    return raw.decode("utf-8", "surrogateescape")
