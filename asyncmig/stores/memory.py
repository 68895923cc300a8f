"""Stores in memory: for tests, and for trying things out.

They behave like a remote daemon: every verb makes single calls with bounded concurrency.  Each call first awaits
:attr:`MemoryStores.on_call`, where a test may wait, count or fail.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from asyncmig.stores.fanout import fan_out
from asyncmig.stores.ports import GC_ROOT, HEAD_SIZE, ContentInfo, Kept, Kind, Lease, Protected, Resource, SnapshotInfo, Stores


@dataclass(slots=True)
class MemorySnapshot:
    """A snapshot."""

    kind: Kind
    parent: str = ""
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class MemoryBlob:
    """A blob.

    ``size`` is the size that the store believes in, as containerd's database does.  ``data`` is the real data, ``None`` if it
    is missing.
    """

    size: int
    labels: dict[str, str] = field(default_factory=dict)
    data: bytes | None = None


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
        return _content_info(digest, blob) if blob else None

    async def list_all(self, *, rooted: bool = False) -> list[ContentInfo]:
        await self._state.on_call("list content", "")
        found = [_content_info(digest, blob) for digest, blob in self._state.blobs.items()]
        return [info for info in found if info.root is not None or not rooted]

    async def head_many(self, blobs: Sequence[ContentInfo]) -> list[bytes | None]:
        return await fan_out(self._head, blobs, concurrency=self._state.concurrency)

    async def _head(self, info: ContentInfo) -> bytes | None:
        await self._state.on_call("read content", info.digest)
        blob = self._state.blobs.get(info.digest)
        data = blob.data if blob else None
        return data[:HEAD_SIZE] if data is not None and len(data) == info.size else None

    async def remove_label_many(self, digests: Sequence[str], label: str, *, tidy: bool = False) -> list[bool]:
        async def remove(digest: str) -> bool:
            await self._state.on_call("update content", digest)
            return _set_label(self._state.blobs.get(digest), label, "")

        return await fan_out(remove, digests, concurrency=self._state.concurrency)

    async def set_label_many(self, values: Sequence[tuple[str, str]], label: str) -> list[bool]:
        async def set_one(item: tuple[str, str]) -> bool:
            digest, value = item
            await self._state.on_call("update content", digest)
            return _set_label(self._state.blobs.get(digest), label, value)

        return await fan_out(set_one, values, concurrency=self._state.concurrency)


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
        return _snapshot_info(name, found) if found else None

    async def views(self) -> list[SnapshotInfo]:
        await self._state.on_call("views", "")
        return [info for info in self._all() if info.kind is Kind.VIEW]

    async def list_all(self, *, rooted: bool = False) -> list[SnapshotInfo]:
        await self._state.on_call("list snapshots", "")
        return [info for info in self._all() if info.root is not None or not rooted]

    def _all(self) -> list[SnapshotInfo]:
        return [_snapshot_info(name, snapshot) for name, snapshot in self._state.snapshots.items()]

    async def remove_label_many(self, names: Sequence[str], label: str, *, tidy: bool = False) -> list[bool]:
        async def remove(name: str) -> bool:
            await self._state.on_call("update snapshot", name)
            return _set_label(self._state.snapshots.get(name), label, "")

        return await fan_out(remove, names, concurrency=self._state.concurrency)

    async def set_label_many(self, values: Sequence[tuple[str, str]], label: str) -> list[bool]:
        async def set_one(item: tuple[str, str]) -> bool:
            name, value = item
            await self._state.on_call("update snapshot", name)
            return _set_label(self._state.snapshots.get(name), label, value)

        return await fan_out(set_one, values, concurrency=self._state.concurrency)

    async def missing_directories(self, names: Sequence[str]) -> Mapping[str, str] | None:
        """Nothing in memory is a directory."""
        return None

    async def recorded_sizes(self, names: Sequence[str]) -> Mapping[str, int]:
        """None is recorded."""
        return {}

    async def kept_besides(self, roots: Sequence[Resource]) -> Kept | None:
        """Others are not known."""
        return None if self._state.shared else Kept(set(), set())


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

    async def list_all(self) -> list[Lease]:
        await self._state.on_call("list leases", "")
        found = await self.list_many(list(self._state.leases))
        return [lease for lease in found if lease is not None]

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

    async def delete_many(self, ids: Sequence[str]) -> None:
        async def delete(lease_id: str) -> None:
            await self._state.on_call("delete lease", lease_id)
            self._state.leases.pop(lease_id, None)

        await fan_out(delete, ids, concurrency=self._state.concurrency)

    async def remove_resources_many(self, leases: Sequence[Lease]) -> None:
        async def remove(lease: Lease) -> None:
            for resource in lease.resources:
                await self._state.on_call("delete resource", f"{lease.id} {resource.type} {resource.id}")
                stored = self._state.leases.get(lease.id)
                if stored is not None:
                    stored.resources.discard(resource)

        await fan_out(remove, leases, concurrency=self._state.concurrency)


def _content_info(digest: str, blob: MemoryBlob) -> ContentInfo:
    return ContentInfo(digest, blob.size, blob.labels.get(GC_ROOT))


def _snapshot_info(name: str, snapshot: MemorySnapshot) -> SnapshotInfo:
    return SnapshotInfo(name, snapshot.kind, snapshot.parent, snapshot.labels.get(GC_ROOT))


def _set_label(item: MemorySnapshot | MemoryBlob | None, label: str, value: str) -> bool:
    """Set the label, or remove it if the value is empty: containerd stores no empty label."""
    if item is None:
        return False
    if value:
        item.labels[label] = value
    else:
        item.labels.pop(label, None)
    return True
