"""One cache record, as far as a migration is concerned with it."""

from __future__ import annotations

from asyncmig.buildkit.gojson import to_valid


class Changes:
    """Which v2 keys of a record are to be written: bits of :attr:`Record.changes`.

    Plain numbers, because testing a bit of an ``IntFlag`` costs microseconds and happens several times a record.
    """

    COMMITTED = 1
    PARENT = 2
    SNAPSHOT = 4
    BLOB = 8
    """cache.blob, cache.diffID and cache.mediatype"""
    CHAIN = 16
    """cache.chainID and cache.blobChainID, with their index entries"""
    SIZE = 32
    """cache.blobsize"""


class Indexed:
    """Which values of a record may have an index: numbers of :attr:`Record.indexed`."""

    NONE = 0
    PLAIN = 1
    """Those in which ``"index":`` stands."""
    ANY = 2
    """Any: not all are of the usual forms."""


class Record:
    """A record of the cache.

    ``id`` and ``parent`` are exact (bytes that are no UTF-8 as lone surrogates), the other strings as Go's JSON gives them
    back.  An empty string means that there is none.  ``blob_mapping`` is v1's pair of blob digest and diffID, ``blob_size`` in
    bytes.  ``edits`` are values that a repair sets besides those of ``changes``; an empty one clears its key.
    ``indexed`` tells which of its values have to be looked at for an index.
    """

    __slots__ = (
        "blob",
        "blob_chain_id",
        "blob_mapping",
        "blob_size",
        "chain_id",
        "changes",
        "deleted",
        "diff_id",
        "edits",
        "equal_mutable",
        "id",
        "indexed",
        "media_type",
        "parent",
    )

    def __init__(self, record_id: str) -> None:
        self.id = record_id
        self.equal_mutable = ""
        self.blob_mapping: tuple[str, str] | None = None
        self.parent = ""
        self.blob = ""
        self.diff_id = ""
        self.blob_size = 0
        self.media_type = ""
        self.chain_id = ""
        self.blob_chain_id = ""
        self.deleted = False
        self.indexed = Indexed.NONE
        self.changes = 0
        self.edits: dict[bytes, bytes] | None = None

    @property
    def is_holder(self) -> bool:
        """Whether this is an unfinalised immutable record: its data is the snapshot of the record ``equal_mutable``."""
        return bool(self.equal_mutable)

    @property
    def snapshot(self) -> str:
        """What BuildKit reads back from cache.snapshot, which is written as the record's own id."""
        return to_valid(self.id)

    def edit(self, name: bytes, value: bytes) -> None:
        """Set a value besides those of :attr:`changes`; an empty one clears the key, as BuildKit does it."""
        if self.edits is None:
            self.edits = {}
        self.edits[name] = value
        self.indexed = Indexed.ANY

    def __repr__(self) -> str:
        return f"Record({self.id!r})"
