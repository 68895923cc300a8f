"""The differences between a new database and the old one, as a plan reports them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RecordChange:
    """A record that is changed, created (``old`` is ``None``) or dropped (``new`` is ``None``).

    ``old`` and ``new`` are values by key.  They hold only values that change; in a created or dropped record that is all.
    """

    record: str
    old: dict[bytes, bytes | None] | None
    new: dict[bytes, bytes | None] | None


@dataclass(frozen=True, slots=True)
class IndexChange:
    """An entry of the index that is added, or removed if not ``is_added``."""

    key: bytes
    is_added: bool
