"""Stores in memory: for tests, and for trying things out.

They behave like a remote daemon: every verb is made of single calls with bounded concurrency, and each call passes
:attr:`MemoryStores.on_call` first, where a test may wait, count or fail.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from asyncmig.stores.fanout import fan_out
from asyncmig.stores.ports import ContentInfo, Kind, Lease, Protected, Resource, SnapshotInfo, Stores


@dataclass(slots=True)
class MemorySnapshot:
    """A snapshot."""

    kind: Kind
    parent: str = ""
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class MemoryBlob:
    """A blob without its data."""

    size: int
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class MemoryLease:
    """A lease."""

    labels: dict[str, str]
    resources: set[Resource] = field(default_factory=set)


async def _no_hook(verb: str, name: str) -> None:
    """Let every call pass."""


@dataclass(slots=True)
class MemoryStores:
    """The state of the three stores.  ``on_call`` is awaited with verb and name before each single call."""

    snapshotter: str = "overlayfs"
    concurrency: int = 8
    shared: bool = False
    snapshots: dict[str, MemorySnapshot] = field(default_factory=dict)
    blobs: dict[str, MemoryBlob] = field(default_factory=dict)
    leases: dict[str, MemoryLease] = field(default_factory=dict)
    on_call: Callable[[str, str], Awaitable[None]] = _no_hook

    def stores(self) -> Stores:
        """The ports over this state."""
        return Stores(_Content(self), _Snapshots(self), _Leases(self))


class _Content:
    def __init__(self, state: MemoryStores) -> None:
        self._state = state

    async def info_many(self, digests: Sequence[str]) -> list[ContentInfo | None]:
        return await fan_out(self._info, digests, concurrency=self._state.concurrency)

    async def _info(self, digest: str) -> ContentInfo | None:
        await self._state.on_call("info", digest)
        blob = self._state.blobs.get(digest)
        return ContentInfo(digest, blob.size) if blob else None

    async def remove_label_many(self, digests: Sequence[str], label: str) -> list[bool]:
        async def remove(digest: str) -> bool:
            await self._state.on_call("update content", digest)
            return _remove_label(self._state.blobs.get(digest), label)

        return await fan_out(remove, digests, concurrency=self._state.concurrency)


class _Snapshots:
    def __init__(self, state: MemoryStores) -> None:
        self._state = state

    @property
    def snapshotter(self) -> str:
        return self._state.snapshotter

    @property
    def shared(self) -> bool:
        return self._state.shared

    async def stat_many(self, names: Sequence[str]) -> list[SnapshotInfo | None]:
        return await fan_out(self._stat, names, concurrency=self._state.concurrency)

    async def _stat(self, name: str) -> SnapshotInfo | None:
        await self._state.on_call("stat", name)
        found = self._state.snapshots.get(name)
        return SnapshotInfo(name, found.kind, found.parent) if found else None

    async def views(self) -> list[str]:
        await self._state.on_call("views", "")
        return [name for name, snapshot in self._state.snapshots.items() if snapshot.kind is Kind.VIEW]

    async def remove_label_many(self, names: Sequence[str], label: str) -> list[bool]:
        async def remove(name: str) -> bool:
            await self._state.on_call("update snapshot", name)
            return _remove_label(self._state.snapshots.get(name), label)

        return await fan_out(remove, names, concurrency=self._state.concurrency)


class _Leases:
    atomic = False

    def __init__(self, state: MemoryStores) -> None:
        self._state = state

    async def list_many(self, ids: Sequence[str]) -> list[Lease | None]:
        return await fan_out(self._list, ids, concurrency=self._state.concurrency)

    async def _list(self, lease_id: str) -> Lease | None:
        await self._state.on_call("list", lease_id)
        lease = self._state.leases.get(lease_id)
        return Lease(lease_id, dict(lease.labels), tuple(lease.resources)) if lease else None

    async def protect_many(self, leases: Sequence[Lease]) -> list[Protected]:
        async def protect(lease: Lease) -> Protected:
            await self._state.on_call("create lease", lease.id)
            is_new = lease.id not in self._state.leases
            stored = self._state.leases.setdefault(lease.id, MemoryLease(dict(lease.labels)))
            for resource in lease.resources:
                await self._state.on_call("add resource", f"{lease.id} {resource.type} {resource.id}")
                stored.resources.add(resource)
            return Protected(is_new, confirmed=False)

        return await fan_out(protect, leases, concurrency=self._state.concurrency)


def _remove_label(item: MemorySnapshot | MemoryBlob | None, label: str) -> bool:
    if item is None:
        return False
    item.labels.pop(label, None)
    return True
