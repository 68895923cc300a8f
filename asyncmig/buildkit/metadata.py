"""Reading the records of a ``metadata.db`` and writing them, with their v2 keys, into a ``metadata_v2.db``.

Both files have the same shape (moby/buildkit ``cache/metadata/metadata.go``): ``_main/<record id>/<key>`` holds JSON values, a
cleared key has an empty one; ``_index`` holds ``<index>::<record id>`` with empty values; ``_external/<record id>/<key>`` holds
raw bytes, which no migration touches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from asyncmig.bolt import BucketBuilder, BucketValue, Checkpoint, Db, PageFile, Walker, build_file, rebuild, verify_pages
from asyncmig.bolt.format import MAX_KEY_SIZE, Malformed, decode_inline
from asyncmig.bolt.walk import no_checkpoint
from asyncmig.buildkit import gojson, keys
from asyncmig.buildkit.gojson import GoJSONError
from asyncmig.buildkit.keys import BLOB_CHAIN_INDEX, CHAIN_INDEX, INDEX, MAIN
from asyncmig.buildkit.record import Changes, Record
from asyncmig.errors import CorruptDatabaseError, RecordError, StrPath
from asyncmig.sorting import merge_sorted, sorted_in_steps

Progress = Callable[[int], None]
"""Called with the number of records dealt with since the last call."""


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
        self._nested: list[int] = []  # root pages of buckets within records, which no BuildKit makes

    @classmethod
    def open(cls, path: StrPath, *, exclusive: bool = False) -> MetadataDb:
        """Open and lock the file, against readers too if ``exclusive``.

        Raises :class:`DatabaseLockedError` while a daemon has it open.
        """
        db = Db.open(path, exclusive=exclusive)
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
        if self._db.pages is None:
            return
        verify_pages(self._db.pages, checkpoint)
        if INDEX in self._top:
            for key, value in self._entries(Walker(self._pages, checkpoint), INDEX, self._top[INDEX]):
                self._check_plain(key, value)

    def note(self) -> str:
        """What is odd about the file and does no harm, one sentence; "" if nothing is."""
        return self._db.note()

    @property
    def bucket_names(self) -> set[bytes]:
        """Names of the top-level buckets."""
        return set(self._top)

    # -- reading

    def read(self, *, checkpoint: Checkpoint = no_checkpoint, progress: Progress = no_progress) -> list[Record]:
        """All records, in the order of their ids.  Each of their values is validated."""
        self._nested.clear()
        records = []
        for key, _, content in self._main(checkpoint):
            if content is not None:
                records.append(self._read_record(key, *content))
                progress(1)
        return records

    def _main(self, checkpoint: Checkpoint) -> Iterator[tuple[bytes, bytes, _Content | None]]:
        """Keys and values of ``_main`` in order; for a bucket its content too."""
        if MAIN not in self._top:
            return
        walker = Walker(self._pages, checkpoint)
        for key, value in self._entries(walker, MAIN, self._top[MAIN]):
            if type(value) is BucketValue:
                entries = list(self._entries(walker, key, value))
                yield key, value, ([k for k, _ in entries], [v for _, v in entries])
            else:
                yield key, value, None

    def _entries(self, walker: Walker, name: bytes, bucket: BucketValue) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values of a bucket, wherever it is stored."""
        if bucket.root:
            for leaf in walker.leaves(bucket.root):
                yield from zip(leaf.keys, leaf.values, strict=True)
            return
        try:
            names, values = decode_inline(bucket)
        except Malformed as error:
            raise CorruptDatabaseError(self.path, None, f"inline bucket {name!r}: {error}") from None
        yield from zip(names, values, strict=True)

    @property
    def _pages(self) -> PageFile:
        assert self._db.pages is not None
        return self._db.pages

    def _read_record(self, key: bytes, names: list[bytes], values: list[bytes]) -> Record:
        record = Record(key.decode("utf-8", "surrogateescape"))
        for name, value in zip(names, values, strict=True):
            if type(value) is BucketValue:
                self._note_nested(record, name, value)
            elif value:  # a cleared key has an empty value
                try:
                    _read_value(record, name, value)
                except GoJSONError as error:
                    raise RecordError(self.path, record.id, f"key {name.decode(errors='replace')!r}: {error}") from None
        return record

    def _note_nested(self, record: Record, name: bytes, bucket: BucketValue) -> None:
        if name in keys.WRITTEN:
            raise RecordError(self.path, record.id, f"key {name.decode()!r} is a bucket where a value is expected")
        if bucket.root:
            self._nested.append(bucket.root)

    # -- writing

    def write(
        self,
        fd: int,
        path: str,
        records: Sequence[Record],
        *,
        checkpoint: Checkpoint = no_checkpoint,
        progress: Progress = no_progress,
    ) -> None:
        """Write a copy with the changes noted in ``records`` into the empty file ``fd``, and sync it.

        ``records`` must be what :meth:`read` returned.  Nothing but the keys of :data:`keys.WRITTEN` and their index entries
        differs from this file.
        """
        if self._db.pages is None:
            build_file(fd, path, {})
            return
        fills: dict[bytes, Callable[[BucketBuilder], None]] = {}
        if MAIN in self._top:
            fills[MAIN] = lambda builder: self._fill_main(builder, records, checkpoint, progress)
        new_index = [key for record in records for key in self.index_keys(record)]
        if new_index:
            fills[INDEX] = lambda builder: self._fill_index(builder, new_index, checkpoint)
        rebuild(self._pages, fd, path, fills, keep=self._nested, checkpoint=checkpoint)

    def _fill_main(self, builder: BucketBuilder, records: Sequence[Record], checkpoint: Checkpoint, progress: Progress) -> None:
        in_order = iter(records)
        for key, value, content in self._main(checkpoint):
            if content is None:
                builder.put(key, value)
                continue
            assert isinstance(value, BucketValue)
            merged = dict(zip(*content, strict=True))
            merged.update(new_values(next(in_order)))
            names = sorted(merged)
            builder.put(key, builder.leaf_bucket(names, [merged[name] for name in names], value.sequence))
            progress(1)

    def _fill_index(self, builder: BucketBuilder, new_index: list[bytes], checkpoint: Checkpoint) -> None:
        kept: dict[bytes, bytes] = {}  # values of old entries that are not empty; no BuildKit writes any
        new_keys: set[bytes] = set()

        def old_keys() -> Iterator[bytes]:
            if INDEX not in self._top:
                return
            for key, value in self._entries(Walker(self._pages, checkpoint), INDEX, self._top[INDEX]):
                if value:
                    self._check_plain(key, value)
                    new_keys.update(() if new_keys else new_index)
                    if key not in new_keys:
                        kept[key] = value
                yield key

        for key in merge_sorted(old_keys(), sorted_in_steps(new_index)):
            builder.put(key, kept.pop(key, b""))

    def _check_plain(self, key: bytes, value: bytes) -> None:
        if isinstance(value, BucketValue):
            raise CorruptDatabaseError(self.path, None, f"_index holds a bucket named {key!r}")

    def index_keys(self, record: Record) -> list[bytes]:
        """The index entries that the changes of ``record`` add.  Raises :class:`RecordError` for one that bolt can't hold."""
        if not record.changes & Changes.CHAIN:
            return []
        found = [
            f"{prefix}{value}::{record.id}".encode("utf-8", "surrogateescape")
            for prefix, value in ((CHAIN_INDEX, record.chain_id), (BLOB_CHAIN_INDEX, record.blob_chain_id))
        ]
        longest = max(map(len, found))
        if longest > MAX_KEY_SIZE:
            raise RecordError(
                self.path, record.id, f"its index entry would be {longest} bytes long; bolt keys have {MAX_KEY_SIZE} at most"
            )
        return found


_Content = tuple[list[bytes], list[bytes]]


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


def new_values(record: Record) -> list[tuple[bytes, bytes]]:
    """The v2 keys that the changes of ``record`` set, with their values."""
    changes, encode = record.changes, gojson.encode_string
    values = []
    if changes & Changes.COMMITTED:
        values.append((keys.COMMITTED, gojson.TRUE))
    if changes & Changes.PARENT:
        values.append((keys.PARENT, encode(record.parent)))
    if changes & Changes.SNAPSHOT:
        values.append((keys.SNAPSHOT, encode(record.id)))
    if changes & Changes.BLOB:
        values.append((keys.BLOB, encode(record.blob)))
        values.append((keys.DIFF_ID, encode(record.diff_id)))
        values.append((keys.MEDIA_TYPE, encode(record.media_type)))
    if changes & Changes.CHAIN:
        values.append((keys.CHAIN_ID, encode(record.chain_id, CHAIN_INDEX + record.chain_id)))
        values.append((keys.BLOB_CHAIN_ID, encode(record.blob_chain_id, BLOB_CHAIN_INDEX + record.blob_chain_id)))
    return values
