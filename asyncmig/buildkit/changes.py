"""What a new database has otherwise than the old one, as a plan tells it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RecordChange:
    """A record that is changed, made (``old`` is ``None``) or dropped (``new`` is ``None``); values by key, changed ones only.

    In a dropped or made record all values count as changed.
    """

    record: str
    old: dict[bytes, bytes | None] | None
    new: dict[bytes, bytes | None] | None


@dataclass(frozen=True, slots=True)
class IndexChange:
    """An entry of the index that is added, or else removed."""

    key: bytes
    is_added: bool
