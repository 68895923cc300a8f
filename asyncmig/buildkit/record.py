"""One cache record: the parts of it that a migration uses."""

from __future__ import annotations

from asyncmig.buildkit.gojson import to_valid


class Changes:
    """Which v2 keys of a record to write: bits of :attr:`Record.changes`.

    They are plain numbers, because testing a bit of an ``IntFlag`` costs microseconds and happens several times per record.
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
    """Those that contain ``"index":``."""
    ANY = 2
    """Any of them: not all have a usual form."""


class Record:
    """A record of the cache.

    ``id`` and ``parent`` are exact (bytes that are not UTF-8 are lone surrogates); the other strings are as Go's JSON returns
    them.  An empty string means that there is none.  ``blob_mapping`` is v1's pair of blob digest and diffID; ``blob_size`` is
    in bytes.  ``edits`` are values that a repair sets besides those of ``changes``; an empty value clears its key.
    ``indexed`` says which of its values may have an index.
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
        """Whether this record is not finalised: its data is still the snapshot of the record ``equal_mutable``."""
        return bool(self.equal_mutable)

    @property
    def snapshot(self) -> str:
        """The value that BuildKit reads back from cache.snapshot; a migration writes the record's own id there."""
        return to_valid(self.id)

    def edit(self, name: bytes, value: bytes) -> None:
        """Set a value besides those of :attr:`changes`.  An empty value clears the key, as in BuildKit."""
        if self.edits is None:
            self.edits = {}
        self.edits[name] = value
        self.indexed = Indexed.ANY

    def __repr__(self) -> str:
        return f"Record({self.id!r})"
