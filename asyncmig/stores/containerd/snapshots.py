"""Snapshots of one snapshotter, through containerd's snapshots service."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from functools import partial

from asyncmig.stores.containerd._pb.containerd.services.snapshots.v1 import (
    Info,
    ListSnapshotsRequest,
    StatSnapshotRequest,
    UpdateSnapshotRequest,
)
from asyncmig.stores.containerd._pb.google.protobuf import FieldMask
from asyncmig.stores.containerd.bridge import Bridge
from asyncmig.stores.containerd.client import Client, NotFoundError
from asyncmig.stores.containerd.labels import ROOTED, SeenLabels
from asyncmig.stores.containerd.place import check_place
from asyncmig.stores.containerd.reading import Reader
from asyncmig.stores.fanout import Progress
from asyncmig.stores.ports import GC_ROOT, Kept, Kind, Resource, SnapshotInfo

_KINDS = {kind.value: kind for kind in Kind}


class ContainerdSnapshots:
    """The snapshot port."""

    def __init__(self, bridge: Bridge, client: Client, snapshotter: str, concurrency: int, progress: Progress) -> None:
        self._bridge = bridge
        self._client = client
        self._snapshotter = snapshotter
        self._labels = SeenLabels(concurrency, progress)
        self._reader = Reader(self._stat, self._list, self._found, concurrency, progress)

    @property
    def shared(self) -> bool:
        """Always: other users may have snapshots in a containerd."""
        return True

    @property
    def snapshotter(self) -> str:
        """Name of the snapshotter."""
        return self._snapshotter

    async def stat_many(self, names: Sequence[str]) -> list[SnapshotInfo | None]:
        """Stat of each snapshot; through List if there are many.

        Raises :class:`LayoutError` if none of a sample exists here but some exist in another namespace or snapshotter.
        """
        return await self._bridge.run(partial(self._stat_many, names))

    async def _stat_many(self, names: Sequence[str]) -> list[SnapshotInfo | None]:
        await check_place(self._client, self._snapshotter, names)
        return await self._reader.read_many(names)

    async def _stat(self, name: str) -> Info | None:
        request = StatSnapshotRequest(snapshotter=self._snapshotter, key=name)
        try:
            reply = await self._client.call(self._client.snapshots.stat, request, f"snapshot {name}")
        except NotFoundError:
            return None
        return self._client.required(reply.info, f"stat snapshot {name}")

    async def _list(self, *filters: str) -> AsyncGenerator[list[tuple[str, Info]]]:
        request = ListSnapshotsRequest(snapshotter=self._snapshotter, filters=list(filters))
        async with aclosing(self._client.stream(self._client.snapshots.list, request, "snapshots")) as replies:
            async for reply in replies:
                yield [(info.name, info) for info in reply.info]

    def _found(self, info: Info) -> SnapshotInfo:
        self._labels.note(info.name, info.labels)
        kind = _KINDS.get(int(info.kind), Kind.UNKNOWN)
        return SnapshotInfo(info.name, kind, info.parent, info.labels.get(GC_ROOT))

    # Check each listed snapshot here, too: containerd before 1.4, and some third-party snapshotters, ignore the filter and
    # list everything.

    async def views(self) -> list[SnapshotInfo]:
        """All snapshots of kind View."""
        return await self._bridge.run(lambda: self._reader.read_all(self._list("kind==view"), _is_view))

    async def list_all(self, *, rooted: bool = False) -> list[SnapshotInfo]:
        """All snapshots through List, which does not show one state in time."""
        filters = (ROOTED,) if rooted else ()
        return await self._bridge.run(
            lambda: self._reader.read_all(self._list(*filters), lambda info: not rooted or GC_ROOT in info.labels)
        )

    async def remove_label_many(self, names: Sequence[str], label: str, *, tidy: bool = False) -> list[bool]:
        """Remove the label; makes no call for a snapshot that was seen without it."""
        remove = partial(self._remove_label, label)
        return await self._bridge.run(partial(self._labels.remove_many, names, label, remove))

    async def _remove_label(self, label: str, name: str) -> None:
        mask = FieldMask(paths=[f"labels.{label}"])
        request = UpdateSnapshotRequest(snapshotter=self._snapshotter, info=Info(name=name), update_mask=mask)
        await self._client.call(self._client.snapshots.update, request, f"snapshot {name}")

    async def set_label_many(self, values: Sequence[tuple[str, str]], label: str) -> list[bool]:
        """Set the label.  If a snapshot is given several values, any of them may stay."""
        set_one = partial(self._set_label, label)
        return await self._bridge.run(partial(self._labels.set_many, values, set_one))

    async def _set_label(self, label: str, item: tuple[str, str]) -> None:
        name, value = item
        info, mask = Info(name=name, labels={label: value}), FieldMask(paths=[f"labels.{label}"])
        request = UpdateSnapshotRequest(snapshotter=self._snapshotter, info=info, update_mask=mask)
        await self._client.call(self._client.snapshots.update, request, f"snapshot {name}")

    # What follows is in files that are containerd's while it runs, which may even be on another machine's disk.

    async def missing_directories(self, names: Sequence[str]) -> Mapping[str, str] | None:
        """Can't be told."""
        return None

    async def recorded_sizes(self, names: Sequence[str]) -> Mapping[str, int]:
        """Not asked for: it would be a call for each, and a walk through the tree of some."""
        return {}

    async def kept_besides(self, roots: Sequence[Resource]) -> Kept | None:
        """Can't be told: images and containers are other services, and what they keep may change meanwhile."""
        return None


def _is_view(info: Info) -> bool:
    return int(info.kind) == Kind.VIEW.value
