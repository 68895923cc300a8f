"""Reading the records of a ``metadata.db`` and writing them, with their v2 keys, into a ``metadata_v2.db``.

Both files have the same shape (moby/buildkit ``cache/metadata/metadata.go``): ``_main/<record id>/<key>`` holds JSON values, a
cleared key has an empty one; ``_index`` holds ``<index>::<record id>`` with empty values; ``_external/<record id>/<key>`` holds
raw bytes, which no migration touches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from heapq import merge
from itertools import groupby
from types import TracebackType

from asyncmig.bolt import (
    BucketBuilder,
    BucketValue,
    Checkpoint,
    Db,
    PageFile,
    Walker,
    build_file,
    most_bytes_copied,
    rebuild,
    verify_pages,
)
from asyncmig.bolt.build import Fill
from asyncmig.bolt.format import MAX_KEY_SIZE, Malformed, decode_inline
from asyncmig.bolt.walk import no_checkpoint
from asyncmig.buildkit import gojson, keys
from asyncmig.buildkit.changes import IndexChange, RecordChange
from asyncmig.buildkit.gojson import GoJSONError
from asyncmig.buildkit.keys import BLOB_CHAIN_INDEX, CHAIN_INDEX, EXTERNAL, INDEX, MAIN
from asyncmig.buildkit.record import Changes, Indexed, Record
from asyncmig.errors import CorruptDatabaseError, RecordError, StrPath
from asyncmig.sorting import sorted_in_steps

Progress = Callable[[int], None]
"""Called with the number of records dealt with since the last call."""


OnMalformed = Callable[[Record, bytes, str], None]
"""Called with a record, the key of a value that is not what its key requires, and why."""


def no_progress(count: int) -> None:
    """The progress callback of callers that don't care."""


class MetadataDb:
    """An open ``metadata.db``, locked for reading until :meth:`close`.  It is never written.

    All methods block.  They raise :class:`DatabaseError` for the file and :class:`RecordError` for a record.
    """

    def __init__(self, db: Db) -> None:
        self._db = db
        self.path = db.path
        self._top = _top_level(db.pages) if db.pages else {}
        self._nested: dict[str, list[int]] = {}  # root pages of buckets within records, which no BuildKit makes

    @classmethod
    def open(cls, path: StrPath, *, exclusive: bool = False) -> MetadataDb:
        """Open and lock the file, against readers too if ``exclusive``.

        Raises :class:`DatabaseLockedError` while a daemon has it open.
        """
        db = Db.open(path, exclusive=exclusive, follow=False)
        try:
            return cls(db)
        except BaseException:
            db.close()
            raise

    def close(self) -> None:
        """Close the file, which releases the lock."""
        self._db.close()

    def __enter__(self) -> MetadataDb:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def check(self, checkpoint: Checkpoint = no_checkpoint) -> None:
        """Raise for everything that :meth:`write` would fail on: damage anywhere in the file, a bucket within the index."""
        self.check_pages(checkpoint)
        for key, value in self._top_entries(INDEX, checkpoint):
            self._check_plain(key, value)

    def check_pages(self, checkpoint: Checkpoint = no_checkpoint) -> None:
        """Raise :class:`CorruptDatabaseError` for damage anywhere in the file."""
        if self._db.pages is not None:
            verify_pages(self._db.pages, checkpoint)

    def most_bytes_copied(self, checkpoint: Checkpoint = no_checkpoint) -> int:
        """How many bytes :meth:`write` takes from this file at most."""
        return most_bytes_copied(self._db.pages, checkpoint) if self._db.pages else 0

    def note(self) -> str:
        """What is odd about the file and does no harm, one sentence; "" if nothing is."""
        return self._db.note()

    @property
    def bucket_names(self) -> set[bytes]:
        """Names of the top-level buckets."""
        return set(self._top)

    # -- reading

    def read(
        self,
        *,
        checkpoint: Checkpoint = no_checkpoint,
        progress: Progress = no_progress,
        on_malformed: OnMalformed | None = None,
    ) -> list[Record]:
        """All records, in the order of their ids.  Each of their values is validated.

        Raises :class:`RecordError` for a value that is malformed, or calls ``on_malformed`` and goes on as if it were cleared.
        """
        self._nested.clear()
        records = []
        for key, _, names, values in self._main(checkpoint):
            if names is not None:
                records.append(self._read_record(key, names, values, on_malformed))
                if not len(records) & 63:
                    progress(64)
        progress(len(records) & 63)
        return records

    def _main(self, checkpoint: Checkpoint) -> Iterator[_MainEntry]:
        """Keys and values of ``_main`` in order; for a bucket the keys and values in it, too."""
        if MAIN not in self._top:
            return
        walker = Walker(self._pages, checkpoint)
        for key, value in self._entries(walker, MAIN, self._top[MAIN]):
            if type(value) is not BucketValue:
                yield key, value, None, ()
            elif value.root:
                entries = list(self._entries(walker, key, value))
                yield key, value, [k for k, _ in entries], [v for _, v in entries]
            else:
                yield key, value, *self._inline(key, value)

    def _inline(self, name: bytes, bucket: BucketValue) -> tuple[Sequence[bytes], Sequence[bytes]]:
        try:
            return decode_inline(bucket)
        except Malformed as error:
            raise CorruptDatabaseError(self.path, None, f"inline bucket {name!r}: {error}") from None

    def _top_entries(self, name: bytes, checkpoint: Checkpoint) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values of a top-level bucket, none if there is no such bucket."""
        if name in self._top:
            yield from self._entries(Walker(self._pages, checkpoint), name, self._top[name])

    def _entries(self, walker: Walker, name: bytes, bucket: BucketValue) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values of a bucket, wherever it is stored."""
        if bucket.root:
            for leaf in walker.leaves(bucket.root):
                yield from zip(leaf.keys, leaf.values, strict=True)
        else:
            yield from zip(*self._inline(name, bucket), strict=True)

    @property
    def _pages(self) -> PageFile:
        assert self._db.pages is not None
        return self._db.pages

    def _read_record(
        self, key: bytes, names: Sequence[bytes], values: Sequence[bytes], on_malformed: OnMalformed | None
    ) -> Record:
        record = Record(to_text(key))
        if not gojson.are_usual(values):
            record.indexed = Indexed.ANY
        elif _INDEX in b"".join(values):
            record.indexed = Indexed.PLAIN
        for name, value in zip(names, values, strict=True):
            if type(value) is BucketValue:
                self._note_nested(record, name, value)
            elif value and (name in _READ or record.indexed == Indexed.ANY):  # a cleared key has an empty value
                try:
                    _read_value(record, name, value)
                except GoJSONError as error:
                    if on_malformed is None:
                        cause = f"key {name.decode(errors='replace')!r}: {error}"
                        raise RecordError(self.path, record.id, cause) from None
                    on_malformed(record, name, str(error))
        return record

    def _note_nested(self, record: Record, name: bytes, bucket: BucketValue) -> None:
        if name in keys.WRITTEN or name in keys.READ:
            raise RecordError(self.path, record.id, f"key {name.decode()!r} is a bucket where a value is expected")
        if bucket.root:
            self._nested.setdefault(record.id, []).append(bucket.root)

    # -- writing

    def write(
        self,
        fd: int,
        path: str,
        revision: Revision,
        *,
        checkpoint: Checkpoint = no_checkpoint,
        progress: Progress = no_progress,
    ) -> None:
        """Write a copy with the changes of ``revision`` into the empty file ``fd``, and sync it."""
        if self._db.pages is None:
            build_file(fd, path, {})
            return
        fills: dict[bytes, Fill] = {}
        index = _NewIndex(revision)
        if MAIN in self._top:
            fills[MAIN] = lambda builder: self._fill_main(builder, revision, index, checkpoint, progress)
        if revision.tidy or any(record.changes & Changes.CHAIN for record in revision.records):
            # Filled after _main, which tells the new entries.
            fills[INDEX] = lambda builder: self._fill_index(builder, index, checkpoint)
        keep = [root for name, roots in self._nested.items() if revision.keeps(name) for root in roots]
        if revision.dropped and any(not revision.keeps(to_text(key)) for key, _ in self._top_entries(EXTERNAL, checkpoint)):
            fills[EXTERNAL] = lambda builder: self._fill_external(builder, revision, checkpoint)
            keep += [
                value.root
                for key, value in self._top_entries(EXTERNAL, checkpoint)
                if isinstance(value, BucketValue) and value.root and revision.keeps(to_text(key))
            ]
        rebuild(self._pages, fd, path, fills, keep=keep, checkpoint=checkpoint)

    def _fill_main(
        self, builder: BucketBuilder, revision: Revision, index: _NewIndex, checkpoint: Checkpoint, progress: Progress
    ) -> None:
        done = 0
        for key, stored, _, new in self._revised(revision, index, checkpoint):
            if new is None:
                if stored is not None and type(stored) is not BucketValue:
                    builder.put(key, stored)  # no record
                continue
            names = sorted(new)
            sequence = stored.sequence if isinstance(stored, BucketValue) else 0
            builder.put(key, builder.leaf_bucket(names, list(map(new.__getitem__, names)), sequence))
            done += 1
            if not done & 63:
                progress(64)
        progress(done & 63)

    def _revised(self, revision: Revision, index: _NewIndex, checkpoint: Checkpoint) -> Iterator[_Revised]:
        """All entries of ``_main`` in order, the new ones among them, and what becomes of them; fills ``index``."""
        records = ((to_bytes(record.id), record) for record in revision.records)
        name, record = next(records, _NO_RECORD)
        for key, value, names, values in self._main(checkpoint):
            if names is None:
                yield key, value, None, None
                continue
            while record is not None and name < key:
                yield name, None, None, index.note(record, set_new_values(record, {}))
                name, record = next(records, _NO_RECORD)
            if record is None or name != key:
                yield key, value, (names, values), None
                continue
            new = set_new_values(record, dict(zip(names, values, strict=True)))
            yield key, value, (names, values), index.note(record, new)
            name, record = next(records, _NO_RECORD)
        while record is not None:
            yield name, None, None, index.note(record, set_new_values(record, {}))
            name, record = next(records, _NO_RECORD)

    def _fill_external(self, builder: BucketBuilder, revision: Revision, checkpoint: Checkpoint) -> None:
        for key, value in self._top_entries(EXTERNAL, checkpoint):
            if revision.keeps(to_text(key)):
                builder.put(key, value)

    def _fill_index(self, builder: BucketBuilder, index: _NewIndex, checkpoint: Checkpoint) -> None:
        kept: dict[bytes, bytes] = {}  # values of old entries that are not empty; no BuildKit writes any
        new_keys: set[bytes] = set()

        def old_keys() -> Iterator[bytes]:
            for key, value in self._top_entries(INDEX, checkpoint):
                if value:
                    self._check_plain(key, value)
                if not index.keeps(key):
                    continue
                if value:
                    new_keys.update(() if new_keys else index.keys)
                    if key not in new_keys:
                        kept[key] = value
                yield key

        for key, _ in groupby(merge(old_keys(), index.in_order())):  # a key may be in both
            builder.put(key, kept.pop(key, b""))

    def _check_plain(self, key: bytes, value: bytes) -> None:
        if isinstance(value, BucketValue):
            raise CorruptDatabaseError(self.path, None, f"_index holds a bucket named {key!r}")

    def index_keys(self, record: Record) -> list[bytes]:
        """The index entries that the changes of ``record`` add.  Raises :class:`RecordError` for one that bolt can't hold."""
        if not record.changes & Changes.CHAIN:
            return []
        found = chain_index_keys(record.id, record.chain_id, record.blob_chain_id)
        longest = max(map(len, found))
        if longest > MAX_KEY_SIZE:
            raise RecordError(
                self.path, record.id, f"its index entry would be {longest} bytes long; bolt keys have {MAX_KEY_SIZE} at most"
            )
        return found

    # -- inspecting

    def raw_records(self, checkpoint: Checkpoint = no_checkpoint) -> Iterator[tuple[str, Sequence[bytes], Sequence[bytes]]]:
        """Each record with the keys and values in it, in the order of their ids."""
        for key, _, names, values in self._main(checkpoint):
            if names is not None:
                yield to_text(key), names, values

    def index_entries(self, checkpoint: Checkpoint = no_checkpoint) -> Iterator[bytes]:
        """The keys of the index, in order."""
        for key, _ in self._top_entries(INDEX, checkpoint):
            yield key

    # -- comparing

    def changes(self, revision: Revision, *, checkpoint: Checkpoint = no_checkpoint) -> Iterator[RecordChange | IndexChange]:
        """What :meth:`write` would change, records first, each in the order of its key."""
        index = _NewIndex(revision)
        for key, stored, old, values in self._revised(revision, index, checkpoint):
            before = dict(zip(*old, strict=True)) if old else None
            change = None if stored is not None and before is None else _change(to_text(key), before, values)
            if change is not None:
                yield change
        new = set(index.keys)
        for key, _ in self._top_entries(INDEX, checkpoint):
            if not index.keeps(key) and key not in new:
                yield IndexChange(key, False)
        present = (key for key, _ in self._top_entries(INDEX, checkpoint))
        yield from (IndexChange(key, True) for key in _only_right(present, index.in_order()))


@dataclass(frozen=True, slots=True)
class Revision:
    """What a new database is to hold.

    ``records`` in the order of their ids: those of :meth:`MetadataDb.read` with their changes, less those that are dropped,
    with those that are made.  What a dropped record had goes, too.  ``tidy``: the index is put in order by the values: entries
    that are missing are added, and those go that name no record, or a chain ID that its record does not have.
    """

    records: Sequence[Record]
    by_id: Mapping[str, Record]
    dropped: Set[str] = frozenset()
    tidy: bool = False

    def keeps(self, record_id: str) -> bool:
        """Whether what belongs to a record stays."""
        return record_id not in self.dropped


_MainEntry = tuple[bytes, bytes, Sequence[bytes] | None, Sequence[bytes]]
"""Key and value of an entry of ``_main``, and the keys and values in it; ``None`` for one that is no record."""
_Revised = tuple[bytes, bytes | None, tuple[Sequence[bytes], Sequence[bytes]] | None, dict[bytes, bytes] | None]
"""Key and stored value of an entry of ``_main``, keys and values in it before, values by key after; ``None`` where none are.

An entry that is no record has a stored value only.
"""
_NO_RECORD: tuple[bytes, Record | None] = (b"", None)


def _change(name: str, old: dict[bytes, bytes] | None, new: dict[bytes, bytes] | None) -> RecordChange | None:
    if old is None or new is None:
        return RecordChange(name, _copy(old), _copy(new))
    changed = {key: value for key, value in new.items() if old.get(key) != value}
    return RecordChange(name, {key: old.get(key) for key in changed}, dict(changed)) if changed else None


def _copy(values: dict[bytes, bytes] | None) -> dict[bytes, bytes | None] | None:
    return None if values is None else dict(values)


class _NewIndex:
    """The index entries that a revision adds, known when all of ``_main`` has been gone through, and which old ones stay."""

    def __init__(self, revision: Revision) -> None:
        self._revision = revision
        self.keys: list[bytes] = []

    def in_order(self) -> Iterator[bytes]:
        """The entries, ascending, each once."""
        last = None
        for key in sorted_in_steps(self.keys):
            if key != last:
                yield key
            last = key

    def note(self, record: Record, values: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """Collect the entries that a record with these values needs; returns the values."""
        if not self._revision.tidy or record.indexed == Indexed.NONE:
            # Of the values that a migration writes, only those of the chain have an index.
            if record.changes & Changes.CHAIN:
                self.keys += chain_index_keys(record.id, record.chain_id, record.blob_chain_id)
            return values
        end = b"::" + to_bytes(record.id)
        for value in values.values():
            if type(value) is not bytes or (record.indexed == Indexed.PLAIN and _INDEX not in value):
                continue
            if index := gojson.decode_index(value):
                key = to_bytes(index) + end
                if len(key) <= MAX_KEY_SIZE:
                    self.keys.append(key)
        return values

    def keeps(self, key: bytes) -> bool:
        """Whether an old entry stays.

        BuildKit looks for the record behind the last ``::`` (before v0.16 behind the index it searched), complains of one that
        does not exist, and loops for ever over a key that has no ``::`` at all.
        """
        revision = self._revision
        if not revision.tidy:
            return True
        if key.startswith(_CHAIN_PREFIXES):
            return False  # those that are right are among the new ones
        at = key.rfind(b"::")
        while at >= 0:
            if to_text(key[at + 2 :]) in revision.by_id:
                return True
            at = key.rfind(b"::", 0, at)
        return False


_CHAIN_PREFIXES = (CHAIN_INDEX.encode(), BLOB_CHAIN_INDEX.encode())


def chain_index_keys(record_id: str, chain_id: str, blob_chain_id: str) -> list[bytes]:
    """The index entries of a record's chain IDs."""
    return [to_bytes(f"{CHAIN_INDEX}{chain_id}::{record_id}"), to_bytes(f"{BLOB_CHAIN_INDEX}{blob_chain_id}::{record_id}")]


def _only_right(left: Iterator[bytes], right: Iterator[bytes]) -> Iterator[bytes]:
    """What of two ascending sequences is in the second one only."""
    item = next(left, None)
    for key in right:
        while item is not None and item < key:
            item = next(left, None)
        if key != item:
            yield key


def to_text(raw: bytes) -> str:
    """A record id or key as a string; bytes that are no UTF-8 become lone surrogates."""
    return raw.decode("utf-8", "surrogateescape")


def to_bytes(text: str) -> bytes:
    """The inverse of :func:`to_text`."""
    return text.encode("utf-8", "surrogateescape")


def _top_level(pages: PageFile) -> dict[bytes, BucketValue]:
    """The top-level buckets."""
    leaves = Walker(pages).leaves(pages.meta.root)
    return {
        key: value
        for leaf in leaves
        for key, value in zip(leaf.keys, leaf.values, strict=True)
        if isinstance(value, BucketValue)
    }


def _read_value(record: Record, name: bytes, value: bytes) -> None:
    attribute = _STRINGS.get(name)
    if attribute is not None:
        setattr(record, attribute, gojson.decode_string(value))
    elif name == keys.DELETED:
        record.deleted = gojson.decode_bool(value)
    elif name == keys.BLOB_MAPPING:
        record.blob_mapping = gojson.decode_string_pair(value, "Blobsum", "DiffID")
    else:
        gojson.validate(value)


_STRINGS = {
    keys.EQUAL_MUTABLE: "equal_mutable",
    keys.PARENT: "parent",
    keys.BLOB: "blob",
    keys.DIFF_ID: "diff_id",
    keys.CHAIN_ID: "chain_id",
    keys.BLOB_CHAIN_ID: "blob_chain_id",
}


_INDEX = b'"index":'
_READ = frozenset({*_STRINGS, keys.DELETED, keys.BLOB_MAPPING})
"""The keys whose values are looked at; the others need only be valid."""


def set_new_values(record: Record, values: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Set the v2 keys that the changes of ``record`` ask for among its ``values``, and return these."""
    changes, encode = record.changes, gojson.encode_string
    if record.edits:
        values.update(record.edits)  # first: what the changes set prevails
    if changes & Changes.COMMITTED:
        values[keys.COMMITTED] = gojson.TRUE
    if changes & Changes.PARENT:
        values[keys.PARENT] = encode(record.parent)
    if changes & Changes.SNAPSHOT:
        values[keys.SNAPSHOT] = encode(record.id)
    if changes & Changes.BLOB:
        values[keys.BLOB] = encode(record.blob)
        values[keys.DIFF_ID] = encode(record.diff_id)
        values[keys.MEDIA_TYPE] = encode(record.media_type)
    if changes & Changes.CHAIN:
        values[keys.CHAIN_ID] = encode(record.chain_id, CHAIN_INDEX + record.chain_id)
        values[keys.BLOB_CHAIN_ID] = encode(record.blob_chain_id, BLOB_CHAIN_INDEX + record.blob_chain_id)
    if changes & Changes.SIZE:
        values[keys.BLOB_SIZE] = gojson.encode_int(record.blob_size)
    return values
