"""What the migration needs of the stores: content, snapshots, leases.

Each verb takes many items, so that an adapter can answer from one database transaction, or fan out over single calls with
bounded concurrency, whichever its medium likes.  All verbs are idempotent: after an interruption they can be called again.
Unless an adapter says otherwise, a cancelled call may have taken effect for some of the items.

Names are containerd's.  Strings are exact: bytes that are no UTF-8 are lone surrogates (``surrogateescape``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol


class Kind(Enum):
    """What a snapshot is; the values are those of containerd's API."""

    UNKNOWN = 0
    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot as Stat reports it.  ``parent`` is the key of the parent snapshot, "" if there is none."""

    name: str
    kind: Kind
    parent: str


@dataclass(frozen=True, slots=True)
class ContentInfo:
    """A blob as Info reports it.  ``size`` is in bytes."""

    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Resource:
    """Something a lease protects: ``type`` is ``content`` or ``snapshots/<snapshotter>``."""

    type: str
    id: str


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease with its labels and the resources it protects."""

    id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    resources: tuple[Resource, ...] = ()


@dataclass(frozen=True, slots=True)
class Protected:
    """What became of a lease that was to be made.

    ``confirmed``: the store has acknowledged each step of making it, so it need not be read back.
    """

    is_new: bool
    confirmed: bool


class ContentStore(Protocol):
    """Blobs, by digest."""

    async def info_many(self, digests: Sequence[str]) -> list[ContentInfo | None]:
        """Info of each blob, in order; ``None`` for one that the store does not know."""
        ...

    async def remove_label_many(self, digests: Sequence[str], label: str) -> list[bool]:
        """Remove ``label`` from each blob; tells for each, in order, whether the blob exists."""
        ...


class SnapshotStore(Protocol):
    """Snapshots of one snapshotter, by key."""

    @property
    def snapshotter(self) -> str:
        """Name of the snapshotter, as in the resource type ``snapshots/<name>``."""
        ...

    @property
    def shared(self) -> bool:
        """Whether others than this cache may have snapshots here, in the same namespace and snapshotter."""
        ...

    async def stat_many(self, names: Sequence[str]) -> list[SnapshotInfo | None]:
        """Stat of each snapshot, in order; ``None`` for one that does not exist."""
        ...

    async def views(self) -> list[str]:
        """Keys of all snapshots of kind View."""
        ...

    async def remove_label_many(self, names: Sequence[str], label: str) -> list[bool]:
        """Remove ``label`` from each snapshot; tells for each, in order, whether the snapshot exists."""
        ...


class LeaseStore(Protocol):
    """Leases, by id."""

    @property
    def atomic(self) -> bool:
        """Whether :meth:`protect_many`, if it fails, has changed nothing at all."""
        ...

    async def list_many(self, ids: Sequence[str]) -> list[Lease | None]:
        """Each lease with labels and resources, in order; ``None`` for one that does not exist."""
        ...

    async def protect_many(self, leases: Sequence[Lease]) -> list[Protected]:
        """Make sure that each lease exists and holds its resources; tells what became of each, in order.

        A lease that exists keeps its labels, and what it holds besides.
        """
        ...


@dataclass(frozen=True, slots=True)
class Stores:
    """The stores of one cache."""

    content: ContentStore
    snapshots: SnapshotStore
    leases: LeaseStore
