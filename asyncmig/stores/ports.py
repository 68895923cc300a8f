"""What a migration needs from the stores: content, snapshots, leases.

Each verb takes many items.  So an adapter can answer from one database transaction, or make single calls with bounded
concurrency.  All verbs are idempotent: they can be called again after an interruption.  Unless an adapter says otherwise, a
cancelled call may have taken effect for some of the items.

Names are containerd's.  Strings are exact: bytes that are not UTF-8 are lone surrogates (``surrogateescape``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple, Protocol

GC_ROOT = "containerd.io/gc.root"
"""containerd's garbage collector keeps what has this label, whatever its value (containerd ``metadata/gc.go``).

BuildKit v1 put it on every snapshot and blob that it made, with the time as its value.
"""

HEAD_SIZE = 64
"""How many bytes of a blob are read to find out what it is."""


class Kind(Enum):
    """What a snapshot is; the values are those of containerd's API."""

    UNKNOWN = 0
    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


class SnapshotInfo(NamedTuple):
    """A snapshot as Stat reports it.

    ``parent`` is the key of the parent snapshot, "" if there is none.  ``root`` is the value of the label :data:`GC_ROOT`,
    ``None`` without the label.
    """

    name: str
    kind: Kind
    parent: str
    root: str | None = None


class ContentInfo(NamedTuple):
    """A blob as Info reports it.

    ``size`` is in bytes.  ``root`` is the value of the label :data:`GC_ROOT`, ``None`` without the label.
    """

    digest: str
    size: int
    root: str | None = None


class Resource(NamedTuple):
    """Something a lease protects: ``type`` is ``content`` or ``snapshots/<snapshotter>``."""

    type: str
    id: str


class Kept(NamedTuple):
    """What something else than records, leases and the label :data:`GC_ROOT` keeps: keys of snapshots, and digests."""

    snapshots: Set[str]
    blobs: Set[str]


class Lease(NamedTuple):
    """A lease with its labels and the resources it protects."""

    id: str
    labels: Mapping[str, str] = MappingProxyType({})
    resources: tuple[Resource, ...] = ()


class Protected(NamedTuple):
    """The result of making a lease.

    ``is_new``: the lease did not exist before.  ``confirmed``: the store has acknowledged each step of making the lease, so it
    need not be read back.
    """

    is_new: bool
    confirmed: bool


class ContentStore(Protocol):
    """Blobs, by digest."""

    async def info_many(self, digests: Sequence[str]) -> list[ContentInfo | None]:
        """Info of each blob, in order; ``None`` for a blob that the store does not know."""
        ...

    async def list_all(self, *, rooted: bool = False) -> list[ContentInfo]:
        """All blobs of the namespace; only those with the label :data:`GC_ROOT` if ``rooted``."""
        ...

    async def head_many(self, blobs: Sequence[ContentInfo]) -> list[bytes | None]:
        """The first :data:`HEAD_SIZE` bytes of each blob's data, or all of it if it is shorter, in order.

        ``None`` for a blob whose data is missing, can't be read, or is not ``size`` bytes long.  Info says only what the store
        believes to have; this finds out whether it has the data.
        """
        ...

    async def remove_label_many(self, digests: Sequence[str], label: str, *, tidy: bool = False) -> list[bool]:
        """Remove ``label`` from each blob; return for each, in order, whether the blob exists.

        ``tidy``: where that is in this store's hands, no empty bucket of labels stays behind.  BuildKit 0.10 to 0.12 take one
        for "the size is known, and is 0".
        """
        ...

    async def set_label_many(self, values: Sequence[tuple[str, str]], label: str) -> list[bool]:
        """Set ``label`` of each blob, given as digest and value; return for each, in order, whether the blob exists."""
        ...


class SnapshotStore(Protocol):
    """Snapshots of one snapshotter, by key."""

    @property
    def snapshotter(self) -> str:
        """Name of the snapshotter, as in the resource type ``snapshots/<name>``."""
        ...

    @property
    def shared(self) -> bool:
        """Whether anyone besides this cache may have snapshots in this namespace and snapshotter."""
        ...

    async def stat_many(self, names: Sequence[str]) -> list[SnapshotInfo | None]:
        """Stat of each snapshot, in order; ``None`` for a snapshot that does not exist."""
        ...

    async def views(self) -> list[SnapshotInfo]:
        """All snapshots of kind View."""
        ...

    async def list_all(self, *, rooted: bool = False) -> list[SnapshotInfo]:
        """All snapshots; only those with the label :data:`GC_ROOT` if ``rooted``."""
        ...

    async def remove_label_many(self, names: Sequence[str], label: str, *, tidy: bool = False) -> list[bool]:
        """Remove ``label`` from each snapshot; return for each, in order, whether the snapshot exists.

        ``tidy`` as :meth:`ContentStore.remove_label_many` has it.
        """
        ...

    async def set_label_many(self, values: Sequence[tuple[str, str]], label: str) -> list[bool]:
        """Set ``label`` of each snapshot, given as key and value; return for each, in order, whether the snapshot exists."""
        ...

    async def missing_directories(self, names: Sequence[str]) -> Mapping[str, str] | None:
        """Those of the snapshots whose directory does not exist, each with its path; what is no snapshot is passed over.

        ``None`` if it can't be told: from afar, or of a snapshotter that keeps no directories.
        """
        ...

    async def recorded_sizes(self, names: Sequence[str]) -> Mapping[str, int]:
        """The bytes that belong to each snapshot alone, as they were recorded; without those of which they were not."""
        ...

    async def kept_besides(self, roots: Sequence[Resource]) -> Kept | None:
        """What images and containers keep, and what labels of theirs and of ``roots`` refer to, as containerd's collector does.

        ``None`` if it can't be told.
        """
        ...


class LeaseStore(Protocol):
    """Leases, by id."""

    @property
    def atomic(self) -> bool:
        """Whether a :meth:`protect_many` that fails has changed nothing at all."""
        ...

    async def list_many(self, ids: Sequence[str]) -> list[Lease | None]:
        """Each lease with labels and resources, in order; ``None`` for a lease that does not exist."""
        ...

    async def list_all(self) -> list[Lease]:
        """All leases of the namespace, with labels and resources."""
        ...

    async def protect_many(self, leases: Sequence[Lease]) -> list[Protected]:
        """Make sure that each lease exists and holds its resources; return the result for each, in order.

        A lease that already exists keeps its labels, and everything else that it holds.
        """
        ...

    async def delete_many(self, ids: Sequence[str]) -> None:
        """Delete each lease that exists.  From then on the garbage collector may remove what only this lease held."""
        ...

    async def remove_resources_many(self, leases: Sequence[Lease]) -> None:
        """Remove the resources given here from each lease that exists and holds them."""
        ...


@dataclass(frozen=True, slots=True)
class Stores:
    """The stores of one cache."""

    content: ContentStore
    snapshots: SnapshotStore
    leases: LeaseStore
