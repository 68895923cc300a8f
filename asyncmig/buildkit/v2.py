"""The records of a ``metadata_v2.db``: the parts that ``verify`` checks.

Any v2 cache, also one that newer daemons have worked with.  Sources: moby/buildkit ``cache/metadata.go``, v0.7 to v0.27;
``cache/manager.go``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from asyncmig.bolt import BucketValue, Checkpoint
from asyncmig.bolt.walk import no_checkpoint
from asyncmig.buildkit import gojson, keys
from asyncmig.buildkit.gojson import GoJSONError
from asyncmig.buildkit.metadata import MetadataDb, Progress, no_progress

BLOB_ONLY = b"cache.blobonly"
"""True for a layer that is not extracted yet.  It may have no snapshot, and its blob may be remote."""
MERGE_PARENTS = b"cache.mergeParents"
LOWER_PARENT = b"cache.lowerDiffParent"
UPPER_PARENT = b"cache.upperDiffParent"


class V2Record:
    """A record.  Missing strings are "", missing lists are empty; a missing ``blob_size`` (bytes) is -1, as in BuildKit.

    ``parents`` are those of a merge, or ``lower`` and ``upper`` of a diff; neither has a ``parent``.  ``indexes`` are those
    that its values ask for, ``malformed`` what is wrong with values that can't be read.
    """

    __slots__ = (
        "blob",
        "blob_chain_id",
        "blob_only",
        "blob_size",
        "chain_id",
        "committed",
        "deleted",
        "diff_id",
        "equal_mutable",
        "id",
        "indexes",
        "lower",
        "malformed",
        "media_type",
        "parent",
        "parents",
        "snapshot",
        "upper",
    )

    def __init__(self, record_id: str) -> None:
        self.id = record_id
        self.snapshot = record_id
        self.committed = self.deleted = self.blob_only = False
        self.blob_size = -1
        self.equal_mutable = self.parent = self.lower = self.upper = ""
        self.blob = self.diff_id = self.media_type = self.chain_id = self.blob_chain_id = ""
        self.parents: list[str] = []
        self.indexes: list[str] = []
        self.malformed: list[str] = []

    @property
    def is_holder(self) -> bool:
        """Whether this record is not finalised: its data is the snapshot of the record ``equal_mutable``."""
        return bool(self.equal_mutable)

    @property
    def is_composed(self) -> bool:
        """Whether it is a merge or a diff: BuildKit makes its snapshot when one is needed for the first time, if ever."""
        return bool(self.parents) and not self.parent

    @property
    def all_parents(self) -> list[str]:
        """Ids of the records that this record is built on."""
        return [self.parent] if self.parent else self.parents

    def __repr__(self) -> str:
        return f"V2Record({self.id!r})"


def read_records(
    database: MetadataDb, *, checkpoint: Checkpoint = no_checkpoint, progress: Progress = no_progress
) -> list[V2Record]:
    """All records, in the order of their ids.  Blocks.  Raises :class:`DatabaseError`."""
    found = []
    for name, names, values in database.raw_records(checkpoint):
        record = V2Record(name)
        for key, value in zip(names, values, strict=True):
            if type(value) is BucketValue:
                if key in _READERS:
                    record.malformed.append(f"key {key.decode()}: it is a bucket where a value is expected")
            elif value:  # a cleared key has an empty value
                _read_value(record, key, value)
        # v0.10.0 and v0.10.1 forgot to write it (moby/buildkit#2740), and all since take it for granted.
        record.committed |= record.is_composed
        found.append(record)
        progress(1)
    return found


def _read_value(record: V2Record, key: bytes, value: bytes) -> None:
    try:
        reader = _READERS.get(key)
        if reader is None:
            gojson.validate(value)
        else:
            reader(record, value)
        index = gojson.decode_index(value)
    except GoJSONError as error:
        record.malformed.append(f"key {key.decode(errors='replace')}: {error}")
        return
    if index:
        record.indexes.append(index)


def _string(attribute: str) -> Callable[[V2Record, bytes], None]:
    def read(record: V2Record, value: bytes) -> None:
        text = gojson.decode_string(value)
        if text or attribute != "snapshot":
            setattr(record, attribute, text)

    return read


def _bool(attribute: str) -> Callable[[V2Record, bytes], None]:
    return lambda record, value: setattr(record, attribute, gojson.decode_bool(value))


def _parent_of_diff(attribute: str) -> Callable[[V2Record, bytes], None]:
    def read(record: V2Record, value: bytes) -> None:
        if parent := gojson.decode_string(value):
            setattr(record, attribute, parent)
            record.parents.append(parent)

    return read


def _parents_of_merge(record: V2Record, value: bytes) -> None:
    found = gojson.decode(value).value
    if isinstance(found, list):
        record.parents += [parent for parent in found if isinstance(parent, str)]


def _media_type(record: V2Record, value: bytes) -> None:
    record.media_type = sys.intern(gojson.decode_string(value))  # few media types are different


def _blob_size(record: V2Record, value: bytes) -> None:
    try:
        record.blob_size = int(str(gojson.decode(value).value))
    except ValueError:
        raise GoJSONError("the field 'value' is not a number") from None


_READERS: dict[bytes, Callable[[V2Record, bytes], None]] = {
    keys.COMMITTED: _bool("committed"),
    keys.DELETED: _bool("deleted"),
    BLOB_ONLY: _bool("blob_only"),
    keys.PARENT: _string("parent"),
    keys.SNAPSHOT: _string("snapshot"),
    keys.EQUAL_MUTABLE: _string("equal_mutable"),
    keys.BLOB: _string("blob"),
    keys.DIFF_ID: _string("diff_id"),
    keys.CHAIN_ID: _string("chain_id"),
    keys.BLOB_CHAIN_ID: _string("blob_chain_id"),
    keys.MEDIA_TYPE: _media_type,
    keys.BLOB_SIZE: _blob_size,
    MERGE_PARENTS: _parents_of_merge,
    LOWER_PARENT: _parent_of_diff("lower"),
    UPPER_PARENT: _parent_of_diff("upper"),
}
