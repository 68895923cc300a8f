"""Inventing the contents of a cache: records, snapshots, blobs and leases in the order in which builds would make them.

The proportions are those of a real cache of BuildKit v0.6.4.  Only the relations between records are kept in memory.
Descriptions, sizes and the like are derived from each record's random number when they are written.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from random import Random

from asyncmig.synth.layers import build_layer, chain_id, digest_of, image_config, image_manifest

_REAL_RECORDS = 198
_REAL_PULLED = 6
_REAL_HOLDERS = 42
_REAL_VIEWS = 36

_FIRST_BUILD = 1_583_020_800_000_000_000  # 2020-03-01, when v0.6.4 was new
_MILLISECOND = 1_000_000
_MAX_DEPTH = 24
_MAX_PULLED = 8
_MIN_PULLED = 3
_MAX_RUN = 7

Tick = Callable[[], None]


class Kind(Enum):
    """What a record is in v1."""

    PULLED = "pulled"
    """A layer of an image, named by its chain ID."""
    COMMITTED = "committed"
    """An immutable record with a snapshot of its own."""
    MUTABLE = "mutable"
    HOLDER = "holder"
    """An immutable record whose data is the snapshot of a mutable one (``cache.equalMutable``)."""
    VIEW = "view"
    """Not a record but a stale view: a snapshot that a stopped daemon has left."""


class Source(Enum):
    """Which operation made a record."""

    IMAGE = "image"
    EXEC = "exec"
    FILE = "file"
    HTTP = "http"
    GIT = "git"
    GIT_REPOSITORY = "git repository"
    LOCAL = "local"
    CACHE_MOUNT = "cache mount"


# The sources of the 42 pairs in the real cache; a pair is a mutable record and its holder.
_PAIRS = (
    *[Source.EXEC] * 19,
    *[Source.FILE] * 11,
    *[Source.CACHE_MOUNT] * 5,
    *[Source.LOCAL] * 4,
    Source.GIT_REPOSITORY,
    Source.GIT,
    Source.HTTP,
)


class Blob:
    """A blob in the content store: a layer, or the config or manifest of an image (then ``diff_id`` is empty).

    The content of a layer is made again from ``seed``; ``data`` is the content of other blobs.  ``references`` are the digests
    in its labels, which keep other blobs alive.
    """

    __slots__ = ("created", "data", "diff_id", "digest", "references", "rooted", "seed", "size")

    def __init__(self, digest: bytes, size: int, created: int) -> None:
        self.digest = digest
        self.size = size
        self.created = created
        self.diff_id = b""
        self.seed = 0
        self.data = b""
        self.references: tuple[bytes, ...] = ()
        self.rooted = True

    def content(self) -> bytes:
        """The bytes of the blob."""
        return self.data or build_layer(self.seed).blob


class Record:
    """A record of the cache, or a stale view.

    ``number`` is the snapshot's number in containerd's database, ``backend_id`` its id in the snapshotter's; both are 0 for a
    holder, which has no snapshot.  ``target`` is the mutable record of a holder, ``group`` the number of the build that made
    the record.  Everything else follows from ``detail``, 64 random bits.
    """

    __slots__ = (
        "backend_id",
        "blob",
        "children",
        "created",
        "depth",
        "detail",
        "group",
        "id",
        "kind",
        "number",
        "parent",
        "source",
        "target",
    )

    def __init__(self, record_id: bytes, kind: Kind, source: Source, parent: Record | None, created: int, detail: int) -> None:
        self.id = record_id
        self.kind = kind
        self.source = source
        self.parent = parent
        self.created = created
        self.detail = detail
        self.group = 0
        self.depth: int = parent.depth + 1 if parent else 1
        self.number = 0
        self.backend_id = 0
        self.blob: Blob | None = None
        self.target: Record | None = None
        self.children: list[bytes] | None = None

    @property
    def is_committed(self) -> bool:
        """Whether its snapshot is committed."""
        return self.kind is Kind.COMMITTED or self.kind is Kind.PULLED

    @property
    def backend_name(self) -> bytes:
        """Name of the snapshot in the snapshotter's database."""
        return b"buildkit/%d/%s" % (self.number, self.id)

    @property
    def inodes(self) -> int:
        """Number of inodes of the snapshot."""
        return 2 + (self.detail >> 8) % 9

    @property
    def size(self) -> int:
        """Size of the snapshot in bytes."""
        size = 4096 * self.inodes + (self.detail >> 16) % 3000
        return size + (self.detail >> 24) % 5_000_000 if self.kind is Kind.PULLED else size


class Lease:
    """A short lease that a pull has made and nobody has deleted."""

    __slots__ = ("blobs", "created", "id")

    def __init__(self, lease_id: bytes, created: int, blobs: list[bytes]) -> None:
        self.id = lease_id
        self.created = created
        self.blobs = blobs


class Quota:
    """How many of each kind to make; counted down while they are made."""

    __slots__ = ("committed", "leases", "pairs", "pulled", "views")

    def __init__(self, records: int) -> None:
        self.pairs = _share(records, _REAL_HOLDERS)
        self.pulled = max(min(records, 1), _share(records, _REAL_PULLED))
        self.committed = records - 2 * self.pairs - self.pulled
        self.views = _share(records, _REAL_VIEWS)
        self.leases = min(9, records // 20) + records // 5000

    @property
    def snapshots(self) -> int:
        """How many snapshots to make."""
        return self.pulled + self.committed + self.pairs + self.views


def _share(records: int, real: int) -> int:
    return (2 * records * real + _REAL_RECORDS) // (2 * _REAL_RECORDS)


class Inventory:
    """Everything that a cache holds.  ``started`` is the time of the last start of its daemon, in nanoseconds."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.views: list[Record] = []
        self.blobs: list[Blob] = []
        self.leases: list[Lease] = []
        self.last_number = 0
        self.last_backend_id = 0
        self.started = 0
        self.worker_id = b""

    def snapshots(self) -> list[Record]:
        """All records that have a snapshot, and the views."""
        return [r for r in self.records if r.kind is not Kind.HOLDER] + self.views


def invent(records: int, seed: int, tick: Tick) -> Inventory:
    """Invent a cache of ``records`` records; ``tick`` is called for each."""
    # Seed with text, because Random takes a number and its negative for the same seed.
    return _Inventor(records, Random(str(seed)), tick).run()


_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_TWO_DIGITS = [(a + b).encode() for a in _DIGITS for b in _DIGITS]
_LEASE_DIGITS = _DIGITS + _DIGITS[10:].upper() + "-_"


class _Inventor:
    def __init__(self, records: int, rng: Random, tick: Tick) -> None:
        self._left = Quota(records)
        self._rng = rng
        self._tick = tick
        self._made = Inventory()
        self._now = _FIRST_BUILD
        self._group = 0
        self._tops: list[Record] = []  # top layers of images
        self._bases: list[Record] = []  # records that may have children
        self._layers: list[Blob] = []  # blobs that a second record may share
        self._images: list[tuple[bytes, ...]] = []  # manifest and config of each pulled image

    def run(self) -> Inventory:
        made, left = self._made, self._left
        made.worker_id = self._new_id()
        if left.pulled:
            self._image()
        while left.pulled or left.committed or left.pairs or left.views:
            self._next_group()
        for _ in range(left.leases):
            self._lease()
        made.started = self._now + 60_000 * _MILLISECOND
        return made

    def _next_group(self) -> None:
        """Make one more group of any kind; all kinds run out at about the same time."""
        left = self._left
        # In proportion to the groups left; on average an image has 6 layers and a run has 4 records.
        images, runs, pairs, views = 2 * left.pulled, 3 * left.committed, 12 * left.pairs, 12 * left.views
        choice = self._below(images + runs + pairs + views)
        self._group += 1
        if choice < images:
            self._image()
        elif choice < images + runs:
            self._run()
        elif choice < images + runs + pairs:
            self._pair()
        else:
            self._view()

    # -- chance

    def _below(self, limit: int) -> int:
        return int(self._rng.random() * limit)

    def _happens(self, percent: float) -> bool:
        return self._rng.random() * 100 < percent

    def _new_id(self) -> bytes:
        bits = self._rng.getrandbits(136)
        digits = []
        for _ in range(13):
            bits, rest = divmod(bits, 1296)
            digits.append(_TWO_DIGITS[rest])
        return b"".join(digits)[:25]

    # -- groups

    def _image(self) -> None:
        """Make the layers of a pulled image, or of an imported cache, which has no manifest."""
        parent = None
        blobs = []
        for _ in range(self._image_length()):
            blob = self._new_layer()
            record_id = chain_id(parent.id if parent else b"", blob.diff_id)
            parent = self._record(Kind.PULLED, Source.IMAGE, parent, record_id)
            parent.blob = blob
            blobs.append(blob)
        if parent:
            self._left.pulled -= len(blobs)
            self._tops.append(parent)
            self._bases.append(parent)
        if not self._images or self._happens(75):
            references = self._documents(blobs, rooted=False)
            self._images.append(references)
            for blob in blobs:
                blob.references = references

    def _image_length(self) -> int:
        left = self._left.pulled
        if left <= _MAX_PULLED:
            return left
        return min(_MIN_PULLED + self._below(_MAX_PULLED - _MIN_PULLED + 1), left - _MIN_PULLED)

    def _run(self) -> None:
        """Make some build steps, each on top of the one before."""
        parent = self._base()
        if parent is None and self._happens(30):
            self._download()
            return
        length = min(self._left.committed, 1 + self._below(_MAX_RUN), _MAX_DEPTH - (parent.depth if parent else 0))
        has_blobs = self._happens(60 if parent is None or parent.blob else 3)
        blobs = []
        for _ in range(length):
            source = Source.FILE if parent is None or self._happens(22) else Source.EXEC
            parent = self._record(Kind.COMMITTED, source, parent)
            if has_blobs:
                parent.blob = self._layer()
                blobs.append(parent.blob)
            has_blobs = has_blobs and not self._happens(4)
            self._bases.append(parent)
        self._left.committed -= length
        if blobs and self._happens(8):
            self._documents(blobs, rooted=True)  # an image export

    def _download(self) -> None:
        source = Source.HTTP if self._happens(50) else Source.GIT
        self._bases.append(self._record(Kind.COMMITTED, source, None))
        self._left.committed -= 1

    def _base(self) -> Record | None:
        if self._happens(12):
            return None
        if self._happens(50):
            base = self._bases[self._below(len(self._bases))]
            if base.depth < _MAX_DEPTH:
                return base
        return self._tops[self._below(len(self._tops))]

    def _pair(self) -> None:
        """Make a mutable record and the immutable record that was made from it but not finalised."""
        source = _PAIRS[self._below(len(_PAIRS))]
        parent = None
        if source in (Source.EXEC, Source.FILE) or (source is Source.CACHE_MOUNT and self._happens(20)):
            parent = self._bases[self._below(len(self._bases))]
        mutable = self._record(Kind.MUTABLE, source, parent)
        holder = self._record(Kind.HOLDER, source, parent)
        holder.target = mutable
        self._left.pairs -= 1

    def _view(self) -> None:
        parent = self._bases[self._below(len(self._bases))]
        view = self._new(Kind.VIEW, Source.EXEC, parent, self._new_id())
        self._made.views.append(view)
        self._left.views -= 1

    def _lease(self) -> None:
        suffix = "".join(_LEASE_DIGITS[self._below(len(_LEASE_DIGITS))] for _ in range(4))
        lease_id = f"{100_000_000 + self._below(900_000_000)}-{suffix}".encode()
        blobs = self._images[self._below(len(self._images))]
        self._made.leases.append(Lease(lease_id, self._later(), sorted(blobs)))

    # -- single things

    def _record(self, kind: Kind, source: Source, parent: Record | None, record_id: bytes = b"") -> Record:
        record = self._new(kind, source, parent, record_id or self._new_id())
        self._made.records.append(record)
        self._tick()
        return record

    def _new(self, kind: Kind, source: Source, parent: Record | None, record_id: bytes) -> Record:
        record = Record(record_id, kind, source, parent, self._later(), self._rng.getrandbits(64))
        record.group = self._group
        if kind is not Kind.HOLDER:
            self._add_snapshot(record)
        return record

    def _add_snapshot(self, record: Record) -> None:
        made = self._made
        if self._happens(6):  # another snapshot existed once and took a number
            made.last_number += 1 + self._below(2)
            made.last_backend_id += 1
        # containerd takes a number when it prepares a snapshot, and another one when it commits the snapshot.
        made.last_number += 2 if record.is_committed else 1
        made.last_backend_id += 1
        record.number, record.backend_id = made.last_number, made.last_backend_id
        if record.parent:
            if record.parent.children is None:
                record.parent.children = []
            record.parent.children.append(record.id)

    def _layer(self) -> Blob:
        """The blob of a build step; now and then an existing one, because two steps may have the same result."""
        if self._happens(2):
            return self._layers[self._below(len(self._layers))]
        return self._new_layer()

    def _new_layer(self) -> Blob:
        seed = self._rng.getrandbits(128)
        layer = build_layer(seed)
        blob = Blob(layer.digest, len(layer.blob), self._now)
        blob.seed, blob.diff_id = seed, layer.diff_id
        self._layers.append(blob)
        self._made.blobs.append(blob)
        return blob

    def _documents(self, layers: list[Blob], *, rooted: bool) -> tuple[bytes, ...]:
        """Make the manifest and the config of an image with these layers; return their digests."""
        config = image_config([blob.diff_id for blob in layers])
        manifest = image_manifest(config, [(blob.digest, blob.size) for blob in layers])
        digests = (digest_of(manifest), digest_of(config))
        for digest, data, references in zip(digests, (manifest, config), (digests[1:], ()), strict=True):
            blob = Blob(digest, len(data), self._now)
            blob.data, blob.references, blob.rooted = data, references, rooted
            self._made.blobs.append(blob)
        return digests

    def _later(self) -> int:
        self._now += 5 * _MILLISECOND + self._below(3000 * _MILLISECOND)
        return self._now
